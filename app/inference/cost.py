"""How long a batch will take: time = pace x (fixed + per_token x padded tokens).

The line is measured once, at warm-up; the batches that run move its pace alone. So what starting a batch costs, as a
number of tokens, is a property of the model and its machine, and no spell of odd traffic can bend it.

Pure arithmetic; knows nothing of clocks, queues or models.
"""

from collections.abc import Iterable
from math import fsum
from typing import Final, Self

_FOLLOWING: Final = 0.05  # share of each run in the pace
_ODD: Final = 4.0  # a run this many times slower or faster than predicted counts as this many times


class CostModel:
    """Costs are padded tokens, times are seconds."""

    def __init__(self, fixed_s: float = 0.0, per_token_s: float = 0.0) -> None:
        """Start with a line; the one of zeros predicts nothing and learns nothing."""
        self._fixed_s = fixed_s
        self._per_token_s = per_token_s
        self._pace = 1.0

    @classmethod
    def fit(cls, measured: Iterable[tuple[int, float]]) -> Self:
        """Return a model of batches already measured, as pairs of padded tokens and seconds.

        Errors count by their share of the time, or the large batches would decide what a small one costs.
        """
        # Each row is divided by its time: 1 = fixed x (1 / time) + per token x (tokens / time).
        rows = [(1 / max(run_s, 1e-9), tokens / max(run_s, 1e-9)) for tokens, run_s in measured]
        ones, sizes = (fsum(row[column] for row in rows) for column in (0, 1))
        ones_ones, sizes_sizes = (fsum(row[column] ** 2 for row in rows) for column in (0, 1))
        ones_sizes = fsum(one * size for one, size in rows)
        mean_s = len(rows) / sizes  # of a token, were starting free
        determinant = ones_ones * sizes_sizes - ones_sizes**2
        slope = (ones_ones * sizes - ones_sizes * ones) / determinant if determinant > 0 else 0.0
        # Noise may tilt the line; neither part of it can be negative, and tokens are never free.
        per_token_s = min(max(slope, 0.1 * mean_s), mean_s)
        return cls(max((ones - per_token_s * ones_sizes) / ones_ones, 0.0), per_token_s)

    @property
    def fixed_s(self) -> float:
        """Seconds that starting a batch takes, at the present pace."""
        return self._pace * self._fixed_s

    @property
    def per_token_s(self) -> float:
        """Seconds for each padded token, at the present pace."""
        return self._pace * self._per_token_s

    @property
    def overhead_tokens(self) -> float:
        """What starting a batch costs, expressed in padded tokens."""
        return self._fixed_s / self._per_token_s if self._per_token_s else 0.0

    def predict_s(self, tokens: float, batches: float = 1) -> float:
        """Return the seconds that `tokens` padded tokens in `batches` batches take on one lane."""
        return self.fixed_s * batches + self.per_token_s * tokens

    def observe(self, tokens: int, run_s: float) -> None:
        """Learn from a batch of `tokens` padded tokens that took `run_s`."""
        expected_s = self._fixed_s + self._per_token_s * tokens
        if expected_s:
            ratio = run_s / expected_s
            usual = min(max(ratio, self._pace / _ODD), self._pace * _ODD)
            self._pace += _FOLLOWING * (usual - self._pace)
