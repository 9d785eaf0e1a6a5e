"""What a model tells of a text: its labels of polarity and, where it has a second head, of emotion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

LABELS: Final = ("negative", "neutral", "positive")  # of the product's own models
_EMOTION: Final = "emotion:"


@dataclass(frozen=True, slots=True)
class Heads:
    """The labels of both heads, each in the order of its logits; those of emotion follow those of polarity."""

    labels: tuple[str, ...]
    emotions: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many logits each head has."""
        return (len(self.labels), len(self.emotions)) if self.emotions else (len(self.labels),)

    @property
    def columns(self) -> tuple[str, ...]:
        """A name for each logit; those of emotions are ``emotion:NAME``."""
        return (*self.labels, *(_EMOTION + emotion for emotion in self.emotions))

    @classmethod
    def of_columns(cls, columns: Sequence[str]) -> "Heads":
        """Return the heads whose `columns` these are."""
        return cls(
            tuple(name for name in columns if not name.startswith(_EMOTION)),
            tuple(name.removeprefix(_EMOTION) for name in columns if name.startswith(_EMOTION)),
        )

    def name(self, answer: Sequence[float]) -> tuple[Mapping[str, float], Mapping[str, float] | None]:
        """Return the probabilities of a text by label, and by emotion where there is such a head."""
        polarity = dict(zip(self.labels, answer, strict=False))
        return polarity, dict(zip(self.emotions, answer[len(self.labels) :], strict=True)) if self.emotions else None
