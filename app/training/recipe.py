"""A recipe: which data and which settings make a bundle. Read from TOML, checked, and recorded in the bundle."""

import json
import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.domain.errors import CannotProceed
from app.domain.labels import LABELS, Heads
from app.training.data import Source


class BadRecipe(CannotProceed):
    """A recipe cannot be followed."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_Sources: TypeAlias = tuple[Source, ...]


class Data(_Table):
    """Files, looked for beside the recipe and then in the data directory that the command line names."""

    train: Annotated[_Sources, Field(min_length=1)]
    dev: _Sources = ()
    test: Annotated[_Sources, Field(description="Files to evaluate on: what they know is kept out of training")] = ()
    unlabelled: Annotated[_Sources, Field(description="Files for the vocabulary, the adaptation and the teachers")] = ()
    near_duplicates: Annotated[
        float | None,
        Field(gt=0, le=1, description="Drop texts of the same labels that are this similar (Jaccard, by MinHash)"),
    ] = None
    augment: Annotated[
        float, Field(ge=0, le=1, description="Share of the training texts that is shown once more, respelt")
    ] = 0.0
    as_published: Annotated[
        bool, Field(description="Leave repeated texts and leaks in, to compare with figures of others")
    ] = False

    @model_validator(mode="after")
    def _has_dev(self) -> Self:
        if not self.dev and not any(source.dev_share for source in self.train):
            raise ValueError("the best epoch is chosen on dev texts: name dev files, or a dev_share of a training file")
        return self


class Tokens(_Table):
    """The window of the model; longer texts keep head and tail."""

    max_tokens: Annotated[int, Field(ge=8, le=512, description="Longest text that is read whole")] = 256
    head_tokens: Annotated[int, Field(ge=4, description="How much of a longer one is its beginning")] = 128


class Optimisation(_Table):
    """AdamW with linear warm-up and decay."""

    epochs: Annotated[float, Field(gt=0)] = 3.0
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    batch_size: Annotated[int, Field(gt=0)] = 64
    gradient_accumulation: Annotated[int, Field(gt=0, description="Batches to an update")] = 1
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.06
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    hidden_dropout: Annotated[float, Field(ge=0, lt=1, description="Of the encoder; slow on processors")] = 0.0
    precision: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"], Field(description="`auto`: bf16 where the hardware has it")
    ] = "auto"
    seed: int = 0


class Adaptation(Optimisation):
    """Masked-language modelling on all texts of the recipe, labels unseen, before fine-tuning."""

    epochs: Annotated[float, Field(gt=0)] = 1.0
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    batch_size: Annotated[int, Field(gt=0)] = 128
    masked_share: Annotated[float, Field(gt=0, lt=1, description="Of the pieces")] = 0.2
    max_tokens: Annotated[int, Field(ge=8, le=512)] = 128


class Distillation(_Table):
    """Learn from the mean of teachers' probabilities beside the labels (Hinton et al. 2015, arXiv:1503.02531)."""

    teachers: Annotated[
        tuple[str, ...], Field(min_length=1, description="Their recipes, beside this one; they are trained first")
    ]
    weight: Annotated[
        float, Field(ge=0, le=1, description="Of the teachers against the label, for texts that have both")
    ] = 0.5


class Peft(_Table):
    """Train small added weights instead of the encoder's own; they are merged into it before export."""

    method: Annotated[
        Literal["lora", "adalora", "ia3"],
        Field(
            description="Hu et al. 2021, arXiv:2106.09685; Zhang et al. 2023, arXiv:2303.10512; "
            "Liu et al. 2022, arXiv:2205.05638"
        ),
    ] = "lora"
    rank: Annotated[int, Field(gt=0, description="Of the added matrices (not of `ia3`)")] = 16
    alpha: Annotated[int, Field(gt=0, description="Their scale is this over the rank")] = 32

    @model_validator(mode="after")
    def _can_halve_the_rank(self) -> Self:
        if self.method == "adalora" and self.rank < 2:
            raise ValueError("adalora halves the rank: it takes one of 2 or more")
        return self


class FineTuning(Optimisation):
    """Supervised training of encoder and heads."""

    classifier_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    layer_decay: Annotated[
        float, Field(gt=0, le=1, description="Each layer learns at this times the rate of the one above it")
    ] = 1.0
    trainable_layers: Annotated[
        int | None, Field(ge=0, description="Top layers to train; 0: the heads alone; absent: all, and the embeddings")
    ] = None
    peft: Peft | None = None
    balanced_labels: Annotated[bool, Field(description="Weigh each label of polarity by the inverse of its share")] = (
        False
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    emotion_weight: Annotated[float, Field(ge=0, description="Of the second head's loss")] = 1.0
    distillation: Distillation | None = None
    fgm: Annotated[
        float, Field(ge=0, description="Length of an adversarial step (Miyato et al. 2017, arXiv:1605.07725)")
    ] = 0.0
    r_drop: Annotated[
        float,
        Field(ge=0, description="Weight of the consistency of two dropouts (Liang et al. 2021, arXiv:2106.14448)"),
    ] = 0.0
    soup: Annotated[
        tuple[str, ...],
        Field(
            description="Recipes beside this one, with the same start: their models' weights are averaged with this "
            "one's (Wortsman et al. 2022, arXiv:2203.05482)"
        ),
    ] = ()
    patience: Annotated[
        int | None, Field(gt=0, description="Epochs without a better dev macro-F1 before training stops")
    ] = None

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.fgm and (self.peft or self.trainable_layers is not None):
            raise ValueError("fgm moves the word embeddings, which peft and trainable_layers freeze")
        if self.peft and self.trainable_layers is not None:
            raise ValueError("peft freezes the encoder itself: leave trainable_layers out")
        if self.r_drop and not (self.hidden_dropout or self.classifier_dropout):
            raise ValueError("r_drop compares two dropouts: set hidden_dropout or classifier_dropout")
        return self


class Recipe(_Table):
    """Everything that decides what a bundle becomes, beside the base model."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    labels: Annotated[tuple[str, ...], Field(min_length=2, description="Of polarity")] = LABELS
    emotions: Annotated[
        tuple[str, ...], Field(description="Labels of a second head, from the column `emotion`; none: no such head")
    ] = ()
    golden: Annotated[
        tuple[str, ...], Field(min_length=4, description="Texts whose answers are recorded and proven at each start")
    ]
    provenance: Annotated[
        dict[str, str], Field(description="Base model, licences, sources: recorded in the bundle")
    ] = {}
    start: Annotated[
        str | None,
        Field(
            description="A recipe beside this one, for the same labels: it is trained first, and this one goes on from "
            "its model instead of a base model (Phang et al. 2018, arXiv:1811.01088)"
        ),
    ] = None
    data: Data
    tokens: Tokens = Tokens()
    adaptation: Adaptation | None = None
    fine_tuning: FineTuning = FineTuning()

    @model_validator(mode="after")
    def _fits_its_start(self) -> Self:
        if self.start and self.adaptation:
            raise ValueError("start names a model that is fine-tuned already: adapt in its recipe")
        if self.fine_tuning.soup and not self.start:
            raise ValueError("soup averages models that have one start: name it")
        return self

    @property
    def heads(self) -> Heads:
        """The labels of both heads."""
        return Heads(self.labels, self.emotions)


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in `path`.

    Raises:
        BadRecipe: it is not TOML, or a field is unknown, missing or out of range.
    """
    try:
        return Recipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise BadRecipe(f"{path}: {error}") from None


_TABLES: Final = {
    "Recipe": "",
    "Source": "[data] train, dev, test, unlabelled",
    "Data": "[data]",
    "Tokens": "[tokens]",
    "Adaptation": "[adaptation]",
    "FineTuning": "[fine_tuning]",
    "Distillation": "[fine_tuning.distillation]",
    "Peft": "[fine_tuning.peft]",
}


def render_options() -> str:
    """Return every option of a recipe with its default, as a Markdown table."""
    schema = Recipe.model_json_schema()
    lines = ["| table | option | default | what it does |", "| --- | --- | --- | --- |"]
    for name, table in _TABLES.items():
        for option, field in (schema if name == "Recipe" else schema["$defs"][name])["properties"].items():
            if "$ref" in str(field) and "description" not in field:
                continue  # a table of its own
            default = f"`{json.dumps(field['default'])}`" if field.get("default") is not None else ""
            lines.append(f"| `{table}` | `{option}` | {default} | {field.get('description', '')} |")
    return "\n".join(lines).replace("| `` |", "| |")
