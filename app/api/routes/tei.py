"""Text Embeddings Inference's `/predict`, for clients that speak to it already.

Differs from the original where the README says so.
"""

from collections.abc import Mapping
from http import HTTPStatus
from math import log
from typing import Annotated, Any, Final, Literal, TypeAlias

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, RootModel

from app.api.answering import answer_all
from app.api.dependencies import ServicesDependency
from app.api.dialects import Translate, name_of, sentence_of
from app.api.lean import LeanRoute
from app.api.problems import Problem
from app.api.routes import operations
from app.api.schemas import saying
from app.domain.errors import EmptyText, TextTooLong
from app.inference.classifier import Classified

ErrorType: TypeAlias = Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"]

_LEAST: Final = 1e-38  # about float32's least: what rounds to nothing has a logarithm, too
_DTYPES: Final = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_TOLD: Final[Mapping[str, tuple[int, ErrorType]]] = {
    "empty-text": (400, "Empty"),
    "text-too-long": (413, "Validation"),
    "invalid-text": (422, "Tokenizer"),
    "model-failure": (424, "Backend"),
    "shutting-down": (503, "Unhealthy"),
}
_OF_LOAD: Final = frozenset({429, 503, 504})


class ErrorResponse(BaseModel):
    """Why a request failed."""

    error: str = Field(examples=["The text is empty or blank."])
    error_type: ErrorType


class Prediction(BaseModel):
    """A label and its score."""

    score: float = Field(examples=[0.981213])
    label: str = Field(examples=["positive"])


_One: TypeAlias = Annotated[list[str], Field(min_length=1, max_length=1)]


class PredictRequest(BaseModel):
    """What to classify; fields that are not known are ignored."""

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={"examples": [{"inputs": "太好吃了"}, {"inputs": [["太好吃了"], ["等了两个小时"]]}]},
    )

    inputs: Annotated[
        str | _One | list[_One],
        saying(
            'A text is expected or, for many, [["first"], ["second"]]. ["first", "second"] is a pair in this protocol, '
            "and this model reads no pairs."
        ),
        Field(description="A text, or a list of lists of one text each"),
    ]
    raw_scores: bool = Field(default=False, description="Answer with logarithms of probabilities")
    truncate: bool | None = Field(
        default=None,
        description="false refuses a text longer than the model's window; else its middle is left out",
    )

    @property
    def batched(self) -> bool:
        """Whether the answer is a list of lists."""
        return isinstance(self.inputs, list) and not all(isinstance(text, str) for text in self.inputs)

    @property
    def texts(self) -> list[str]:
        """The texts, in order."""
        inputs = [self.inputs] if isinstance(self.inputs, str) else self.inputs
        return [text if isinstance(text, str) else text[0] for text in inputs]


class PredictResponse(RootModel[list[Prediction] | list[list[Prediction]]]):
    """Every label, the most probable first; for a batch a list of these in the order of its texts."""


class ClassifierLabels(BaseModel):
    """The labels by number, and their numbers."""

    id2label: dict[str, str] = Field(examples=[{"0": "negative", "1": "neutral", "2": "positive"}])
    label2id: dict[str, int] = Field(examples=[{"negative": 0, "neutral": 1, "positive": 2}])


class ModelType(BaseModel):
    """What kind of model is served."""

    classifier: ClassifierLabels


class Info(BaseModel):
    """Which model is served, and within which limits."""

    model_id: str = Field(examples=["e5-zh-sentiment"])
    model_sha: str = Field(description="The bundle's fingerprint")
    model_dtype: str = Field(examples=["bfloat16"])
    served_model_name: str = Field(examples=["e5-zh-sentiment/2.1.0"])
    model_type: ModelType
    max_concurrent_requests: int = Field(description="Single texts that may wait")
    max_input_length: int = Field(description="Tokens of the model's window")
    max_batch_tokens: int = Field(description="Padded tokens of one run")
    max_batch_requests: int = Field(description="Texts of one run")
    max_client_batch_size: int = Field(description="Texts of one request")
    auto_truncate: bool = True
    tokenization_workers: int = 1
    version: str = Field(description="Of this service")
    sha: str | None = None
    docker_label: str | None = None


router = APIRouter(tags=["Text Embeddings Inference"])
_lean = APIRouter(route_class=LeanRoute)
ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": ErrorResponse, "description": HTTPStatus(status).phrase}
    for status in (400, 413, 415, 422, 424, 500, 503, 504)
}


@_lean.post("/predict", summary="Classify, as Text Embeddings Inference does", responses=ERRORS)
async def predict(request: Request, body: PredictRequest, services: ServicesDependency) -> PredictResponse:
    """Answer with every label and its score, the most probable first."""
    texts = body.texts
    require_few(len(texts), services.max_texts)
    if not texts:
        raise EmptyText("The batch is empty.")
    manifest, classified = await answer_all(request, services, texts)
    if body.truncate is False and any(each.sentiment.truncated for each in classified):
        raise TextTooLong(f"A text has more than {manifest.max_tokens} tokens, and `truncate` is false.")
    answers = [ranked(each, raw=body.raw_scores) for each in classified]
    return PredictResponse(answers if body.batched else answers[0])


router.include_router(_lean)


@router.get("/info", summary="Which model is served", responses={500: ERRORS[500]})
async def info(request: Request, services: ServicesDependency) -> Info:
    """Answer with the model and the limits of requests."""
    model = services.models.active
    labels, policy = model.manifest.labels, model.batcher.policy
    return Info(
        model_id=model.manifest.name,
        model_sha=model.fingerprint,
        model_dtype=_DTYPES[model.placement.precision],
        served_model_name=model.name,
        model_type=ModelType(
            classifier=ClassifierLabels(
                id2label={str(number): label for number, label in enumerate(labels)},
                label2id={label: number for number, label in enumerate(labels)},
            )
        ),
        max_concurrent_requests=policy.max_waiting_items,
        max_input_length=model.manifest.max_tokens,
        max_batch_tokens=policy.max_tokens,
        max_batch_requests=policy.max_items,
        max_client_batch_size=services.max_texts,
        version=request.app.version,
    )


@router.get(
    "/health",
    summary="Should requests be sent here?",
    response_class=Response,
    responses={503: {"model": ErrorResponse, "description": "Not ready; the body has the reason"}},
)
async def health(request: Request, services: ServicesDependency) -> Response:
    """Answer 200 and nothing more when /health/ready does."""
    readiness = await operations.ready(request, services, Response())
    if readiness.reason is None:
        return Response()
    return JSONResponse(ErrorResponse(error=readiness.reason, error_type="Unhealthy").model_dump(), 503)


def require_few(texts: int, most: int) -> None:
    """Refuse a batch that is too large."""
    if texts > most:
        raise HTTPException(413, f"batch size {texts} > maximum allowed batch size {most}")


def ranked(classified: Classified, *, raw: bool) -> list[Prediction]:
    """Return every label, the most probable first; `raw` scores are logarithms of the probabilities."""
    shares = sorted(classified.sentiment.probabilities.items(), key=lambda item: item[1], reverse=True)
    return [
        Prediction(label=label, score=round(log(max(share, _LEAST)) if raw else share, 6)) for label, share in shares
    ]


def translate(problem: Problem) -> tuple[int, ErrorResponse]:
    """Tell `problem` as Text Embeddings Inference would."""
    status = problem.status
    kind: ErrorType = "Overloaded" if status in _OF_LOAD else "Backend" if status >= 500 else "Validation"
    status, kind = _TOLD.get(name_of(problem), (status, kind))
    return status, ErrorResponse(error=sentence_of(problem), error_type=kind)


DIALECT: Final[Mapping[str, Translate]] = {"predict": translate, "info": translate}
