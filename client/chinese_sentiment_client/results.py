"""What the service answers. Fields that a newer service adds are ignored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
