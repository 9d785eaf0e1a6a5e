"""What the service answers. Fields that a newer service adds are ignored."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import httpx

from chinese_sentiment_client.errors import UnexpectedAnswer

_ENDED: Final = frozenset({"completed", "cancelled", "failed"})


@dataclass(frozen=True, slots=True)
class Emotion:
    """What the writer of a text feels."""

    label: str
    probabilities: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Model:
    """Which model answered."""

    name: str
    version: str

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "Model":
        """Return the model in the JSON of an answer."""
        return cls(found["name"], found["version"])


@dataclass(frozen=True, slots=True)
class Answer:
    """What a text expresses."""

    label: str
    confidence: float
    probabilities: Mapping[str, float]
    certain: bool  # else a person may want to read the text
    emotion: Emotion | None
    truncated: bool  # of a text longer than the model's window, head and tail were read
    cached: bool
    model: Model

    @classmethod
    def of(cls, found: Mapping[str, Any], model: Model) -> "Answer":
        """Return the answer in the JSON of one text."""
        emotion = found.get("emotion")
        return cls(
            label=found["label"],
            confidence=found["confidence"],
            probabilities=found["probabilities"],
            certain=found["certain"],
            emotion=Emotion(emotion["label"], emotion["probabilities"]) if emotion else None,
            truncated=found["truncated"],
            cached=found["cached"],
            model=model,
        )


@dataclass(frozen=True, slots=True)
class TextError:
    """Why one text of many has no answer. Not an exception: the others have theirs."""

    type: str
    title: str
    detail: str

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "TextError":
        """Return the error in the JSON of one text."""
        return cls(found["type"], found["title"], found["detail"])


@dataclass(frozen=True, slots=True)
class Job:
    """A batch job."""

    id: str
    state: str  # queued, running, completed, cancelled or failed
    lines: int
    done: int  # of the lines
    errors: int  # of those that are done
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    expires_at: datetime  # it is deleted then, if nothing happens to it before

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in _ENDED

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "Job":
        """Return the job in the JSON of one."""
        return cls(
            id=found["id"],
            state=found["state"],
            lines=found["lines"],
            done=found["done"],
            errors=found["errors"],
            created_at=datetime.fromisoformat(found["created_at"]),
            started_at=_moment(found["started_at"]),
            ended_at=_moment(found["ended_at"]),
            expires_at=datetime.fromisoformat(found["expires_at"]),
        )


def _moment(said: str | None) -> datetime | None:
    return datetime.fromisoformat(said) if said is not None else None


def unexpected(url: httpx.URL | str, error: Exception) -> UnexpectedAnswer:
    """Return what to raise when what answered at `url` cannot be read."""
    return UnexpectedAnswer(f"what {url} answered is not an answer ({type(error).__name__})")
