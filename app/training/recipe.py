"""A recipe: which data and which settings make a bundle. Read from TOML, checked, and recorded in the bundle."""

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.domain.errors import CannotProceed
from app.training.data import Source


class BadRecipe(CannotProceed):
    """A recipe cannot be followed."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Table):
    """Files, looked for beside the recipe and then in the data directory that the command line names."""

    train: tuple[Source, ...]
    dev: tuple[Source, ...]
    test: tuple[Source, ...] = ()
    unlabelled: tuple[str, ...] = ()  # read for the vocabulary only


class Tokens(_Table):
    """The window of the model; longer texts keep head and tail."""

    max_tokens: Annotated[int, Field(ge=8, le=512)] = 256
    head_tokens: Annotated[int, Field(ge=4)] = 128


class FineTuning(_Table):
    """Settings of the optimisation (AdamW, linear warm-up and decay)."""

    epochs: Annotated[float, Field(gt=0)] = 3.0
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    batch_size: Annotated[int, Field(gt=0)] = 64
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.06
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1  # of the classifier; the encoder has none
    seed: int = 0


class Recipe(_Table):
    """Everything that decides what a bundle becomes, beside the base model."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    golden: Annotated[tuple[str, ...], Field(min_length=4)]  # texts whose answers are recorded and proven at each start
    provenance: dict[str, str] = {}  # base model, licences, sources: recorded in the bundle
    data: Data
    tokens: Tokens = Tokens()
    fine_tuning: FineTuning = FineTuning()


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in `path`.

    Raises:
        BadRecipe: it is not TOML, or a field is unknown, missing or out of range.
    """
    try:
        return Recipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise BadRecipe(f"{path}: {error}") from None
