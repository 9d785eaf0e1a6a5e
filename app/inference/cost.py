"""How long a batch will take: time = fixed + per_token x padded tokens, learnt from the batches that ran.

Pure arithmetic; knows nothing of clocks, queues or models.
"""

from collections.abc import Iterable
from typing import Self


class CostModel:
    """Least squares over recent batches, the older weighing less.

    Costs are padded tokens, times are seconds.
    """

    def __init__(self, *, forgetting: float = 0.98) -> None:
        """Start knowing nothing: predictions are 0 until the first batch."""
        self._forgetting = forgetting
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self.fixed_s = 0.0
        self.per_token_s = 0.0

    @classmethod
    def fit(cls, measured: Iterable[tuple[int, float]]) -> Self:
        """Return a model of batches already measured, as pairs of padded tokens and seconds."""
        cost = cls()
        for tokens, run_s in measured:
            cost.observe(tokens, run_s)
        return cost

    def predict_s(self, tokens: float, batches: float = 1) -> float:
        """Return the seconds that `tokens` padded tokens in `batches` batches take on one lane."""
        return self.fixed_s * batches + self.per_token_s * tokens

    @property
    def overhead_tokens(self) -> float:
        """What starting a batch costs, expressed in padded tokens."""
        return self.fixed_s / self.per_token_s if self.per_token_s else 0.0

    def observe(self, tokens: int, run_s: float) -> None:
        """Learn from a batch of `tokens` padded tokens that took `run_s`."""
        keep = self._forgetting
        self._weight = self._weight * keep + 1
        self._x = self._x * keep + tokens
        self._y = self._y * keep + run_s
        self._xx = self._xx * keep + tokens * tokens
        self._xy = self._xy * keep + tokens * run_s
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        variance = self._xx / self._weight - mean_x * mean_x
        # Where all recent batches have one size the slope is unknown: keep it, and let the intercept follow.
        if variance > 0.01 * mean_x * mean_x:
            self.per_token_s = (self._xy / self._weight - mean_x * mean_y) / variance
        # Noise may tilt the line; neither part of it can be negative.
        self.per_token_s = min(max(self.per_token_s, 0.1 * mean_y / mean_x), mean_y / mean_x)
        self.fixed_s = mean_y - self.per_token_s * mean_x
