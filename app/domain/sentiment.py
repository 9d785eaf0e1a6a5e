"""The answer to a text."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sentiment:
    """Probabilities by label, in the order of the model's labels; they sum to 1."""

    probabilities: Mapping[str, float]
    truncated: bool  # the text was longer than the model's window

    @property
    def label(self) -> str:
        """The most probable label."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def confidence(self) -> float:
        """The probability of `label`."""
        return max(self.probabilities.values())
