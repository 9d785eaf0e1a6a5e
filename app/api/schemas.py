"""The JSON of requests and answers."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from app.api.problems import ItemProblem, item_problem
from app.domain.errors import ServiceError
from app.domain.sentiment import most_probable
from app.inference.bundle import Manifest
from app.inference.classifier import Classified
from app.jobs.job import Job

_MOST_FIELDS: Final = 8  # far above what a request has; each unknown one is reported


def saying(message: str) -> WrapValidator:
    """Return what makes one error of all that a union says of a value, one for each of its members."""

    def validate(value: object, validate_union: ValidatorFunctionWrapHandler) -> object:
        try:
            return validate_union(value)
        except ValidationError:
            raise PydanticCustomError("union", "{message}", {"message": message}) from None

    return WrapValidator(validate)


class _Request(BaseModel):
    """A body with known fields only."""

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, body: object) -> object:
        if isinstance(body, dict) and len(body) > _MOST_FIELDS:
            raise ValueError(f"{len(body)} fields were sent")
        return body


class SentimentRequest(_Request):
    """One text."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"text": "物流很快，包装也好，就是颜色跟图片不太一样"}]},
    )

    text: Annotated[str, Field(description="A message, review or title in Chinese; its length is limited by settings")]


# Items are checked one by one in the route, so that a bad one has an error of its own.
_AnyText = Annotated[Any, WithJsonSchema({"type": "string"})]


class BatchRequest(_Request):
    """Many texts."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"texts": ["太好吃了，下次还来", "请问周末几点开门？", "等了两个小时，饭都凉了"]}]
        },
    )

    texts: Annotated[list[_AnyText], Field(description="Texts; how many is limited by settings (1,024 by default)")]


class ModelName(BaseModel):
    """Which model answered."""

    name: str = Field(examples=["e5-zh-sentiment"])
    version: str = Field(examples=["2.1.0"])

    @classmethod
    def of(cls, manifest: Manifest) -> "ModelName":
        """Return the name of the model in a bundle."""
        return cls(name=manifest.name, version=manifest.version)


class Emotion(BaseModel):
    """What the writer of a text feels."""

    label: str = Field(description="The most probable emotion", examples=["happy"])
    probabilities: dict[str, float] = Field(
        description="Of every emotion; but for rounding they sum to 1",
        examples=[{"angry": 0.0031, "happy": 0.9803, "neutral": 0.0166}],
    )


class SentimentAnswer(BaseModel):
    """What a text expresses."""

    label: str = Field(description="The most probable label", examples=["positive"])
    confidence: float = Field(description="The probability of the label", examples=[0.9812])
    probabilities: dict[str, float] = Field(
        description="Of every label; but for rounding they sum to 1",
        examples=[{"negative": 0.0121, "neutral": 0.0067, "positive": 0.9812}],
    )
    certain: bool = Field(
        description="The confidence reaches the model's threshold; a person may want to read the others"
    )
    emotion: Emotion | None = Field(
        default=None, description="What the writer feels; only of models that have learnt to tell"
    )
    truncated: bool = Field(description="The text was longer than the model's window: head and tail were read")
    cached: bool = Field(description="The answer was remembered, not computed")

    @classmethod
    def of(cls, classified: Classified) -> "SentimentAnswer":
        """Return the answer as clients see it, rounded to four decimals."""
        return cls(**_fields(classified))


class SentimentResponse(SentimentAnswer):
    """What a text expresses, and which model says so."""

    model: ModelName

    @classmethod
    def by(cls, model: ModelName, classified: Classified) -> "SentimentResponse":
        """Return the answer of `model`."""
        return cls(**_fields(classified), model=model)


class ItemError(BaseModel):
    """The place of a text that has no answer."""

    error: ItemProblem


class BatchResponse(BaseModel):
    """One result for each text, in order."""

    results: list[SentimentAnswer | ItemError]
    model: ModelName


class StreamLine(BaseModel):
    """A line of a stream."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [{"id": 7, "text": "物流很快，包装也好"}]})

    text: Annotated[str, Field(description="A message, review or title in Chinese; every other member comes back")]


class StreamAnswer(BaseModel):
    """The answer to a line, beside the members that came with it; it has `sentiment` or `error`."""

    model_config = ConfigDict(extra="allow")

    line: int | None = Field(
        default=None, description="Which line of the request it answers, from 1; absent: it concerns the stream"
    )
    sentiment: SentimentResponse | None = None
    error: ItemProblem | None = None


class BatchSource(_Request):
    """Where the lines of a batch job are."""

    model_config = ConfigDict(extra="forbid")

    source: str = Field(max_length=4_096, examples=["https://reviews.s3.amazonaws.com/new/2026-11-22.jsonl.gz"])


class BatchJob(BaseModel):
    """A batch job, without its lines."""

    id: str = Field(examples=["019c1d6b2f4a5b1e0c7d3a9f8e2b4c60"])
    state: Literal["queued", "running", "completed", "cancelled", "failed"] = Field(
        description="failed: servers that worked on it died again and again"
    )
    lines: int = Field(description="Lines that ask for an answer", examples=[20_000])
    done: int = Field(description="Lines that have their answer, or an error of their own", examples=[5_120])
    errors: int = Field(description="Of these, the ones with an error", examples=[3])
    progress: float = Field(description="From 0 to 1", examples=[0.256])
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    expires_at: datetime = Field(description="When it is deleted, if nothing happens to it before")

    @classmethod
    def of(cls, job: Job) -> "BatchJob":
        """Return the job as its caller sees it."""
        return cls.model_validate(
            {**asdict(job), "state": job.state.value, "progress": round(job.done / job.lines, 4) if job.lines else 1.0}
        )


class BatchJobs(BaseModel):
    """Batch jobs of one caller, the newest first."""

    batches: list[BatchJob]
    next: str | None = Field(description="Send it as `after` for older ones; null: there are none")


class Alive(BaseModel):
    """The process runs and its event loop turns."""

    status: str = Field(examples=["alive"])


class Readiness(BaseModel):
    """Whether requests should be sent here, and what would answer them."""

    status: str = Field(examples=["ready"])
    reason: str | None = Field(default=None, description="Why not, if not")
    model: ModelName
    provider: str = Field(examples=["openvino"])
    precision: str = Field(examples=["bf16"])
    threads: int = Field(examples=[2])


def answer_member(outcome: Classified | ServiceError, model: ModelName) -> bytes:
    """Return the member of a JSON object that holds the answer to one text among many, or why there is none."""
    if isinstance(outcome, ServiceError):
        return b'"error":' + item_problem(outcome).model_dump_json().encode()
    return b'"sentiment":' + SentimentResponse.by(model, outcome).model_dump_json().encode()


def _fields(classified: Classified) -> dict[str, Any]:
    sentiment = classified.sentiment
    return {
        "label": sentiment.label,
        "confidence": round(sentiment.confidence, 4),
        "probabilities": _rounded(sentiment.probabilities),
        "certain": sentiment.certain,
        "emotion": _emotion(sentiment.emotions),
        "truncated": sentiment.truncated,
        "cached": classified.cached,
    }


def _emotion(probabilities: Mapping[str, float] | None) -> Emotion | None:
    if probabilities is None:
        return None
    return Emotion(label=most_probable(probabilities), probabilities=_rounded(probabilities))


def _rounded(probabilities: Mapping[str, float]) -> dict[str, float]:
    return {name: round(share, 4) for name, share in probabilities.items()}
