"""For those who operate the models: replace the active one, try another out beside it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from app.api.dependencies import ServicesDependency
from app.api.problems import problem_docs
from app.domain.errors import BundleRefused, StartupError
from app.inference.served import ServedModel
from app.rollout import Rollout, Trial

router = APIRouter(prefix="/admin/models", tags=["models"])

_BUNDLE: Final = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*/[A-Za-z0-9_-][A-Za-z0-9._-]*$"  # no way out of the directory
_PROBLEMS: Final = problem_docs(400, 409, 413, 415, 422)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bundle: Annotated[str, Field(pattern=_BUNDLE, description="Name and version", examples=["e5-zh-sentiment/2.1.0"])]


class Activation(_Body):
    """The bundle that is to answer."""


class Candidacy(_Body):
    """The bundle that is to be tried out."""

    share: Annotated[float, Field(gt=0, le=1, description="Of the requests, told apart by their text")] = 0.1
    answers: Annotated[
        bool, Field(description="true: clients get its answers (canary); false: they are compared alone (shadow)")
    ] = False


class ModelStatus(BaseModel):
    """A model that is loaded."""

    name: str
    version: str
    fingerprint: str
    provider: str
    precision: str

    @classmethod
    def of(cls, model: ServedModel) -> "ModelStatus":
        """Return the status of `model`."""
        return cls(
            name=model.manifest.name,
            version=model.manifest.version,
            fingerprint=model.fingerprint,
            provider=model.placement.provider,
            precision=model.placement.precision,
        )


class TrialStatus(ModelStatus):
    """A candidate and its record: texts that both models scored."""

    share: float
    answers: bool
    same: int
    flipped: int
    failed: int

    @classmethod
    def during(cls, model: ServedModel, trial: Trial) -> "TrialStatus":
        """Return the status of the candidate `model`."""
        return cls(
            **ModelStatus.of(model).model_dump(),
            share=trial.share,
            answers=trial.answers,
            same=trial.same,
            flipped=trial.flipped,
            failed=trial.failed,
        )


class ModelsStatus(BaseModel):
    """Every model that is loaded."""

    active: ModelStatus
    candidate: TrialStatus | None

    @classmethod
    def of(cls, models: Rollout) -> "ModelsStatus":
        """Return the status of `models`."""
        candidate, trial = models.candidate, models.trial
        return cls(
            active=ModelStatus.of(models.active),
            candidate=TrialStatus.during(candidate, trial) if candidate is not None and trial is not None else None,
        )


@router.get("", summary="Which models are loaded?")
async def status(services: ServicesDependency) -> ModelsStatus:
    """Answer with the active model, and with the candidate and its record."""
    return ModelsStatus.of(services.models)


@router.put("/active", summary="Replace the model", responses=_PROBLEMS)
async def activate(body: Activation, services: ServicesDependency) -> ModelsStatus:
    """Load the bundle beside the old one, prove it, swap; a candidate is activated as it is. Nothing is lost."""
    with _refusal():
        await services.models.swap(services.bundles / body.bundle)
    return ModelsStatus.of(services.models)


@router.put("/candidate", summary="Try a model out", responses=_PROBLEMS)
async def try_out(body: Candidacy, services: ServicesDependency) -> ModelsStatus:
    """Load the bundle beside the active one and give it a share of the requests."""
    with _refusal():
        await services.models.try_candidate(services.bundles / body.bundle, share=body.share, answers=body.answers)
    return ModelsStatus.of(services.models)


@router.delete("/candidate", summary="End the trial")
async def end_trial(services: ServicesDependency) -> ModelsStatus:
    """Drop the candidate, if there is one."""
    services.models.end_trial()
    return ModelsStatus.of(services.models)


@contextmanager
def _refusal() -> Iterator[None]:
    try:
        yield
    except StartupError as error:
        raise BundleRefused(str(error)) from None
