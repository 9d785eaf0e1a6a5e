"""The answer to a text."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sentiment:
    """Probabilities by label, in the order of the model's labels; they sum to 1."""

    probabilities: Mapping[str, float]
    truncated: bool  # the text was longer than the model's window
    certain: bool = True  # the confidence reaches the model's threshold
    emotions: Mapping[str, float] | None = None  # probabilities by emotion, of a model that tells them

    @property
    def label(self) -> str:
        """The most probable label."""
        return most_probable(self.probabilities)

    @property
    def confidence(self) -> float:
        """The probability of `label`."""
        return max(self.probabilities.values())


def most_probable(probabilities: Mapping[str, float]) -> str:
    """Return the name with the highest probability, of equals the first."""
    return max(probabilities, key=probabilities.__getitem__)
