"""Make probabilities readable as rates: one temperature a head, and the confidence from which answers are certain.

Sources: Guo et al. 2017, arXiv:1706.04599 (temperature scaling); Naeini et al. 2015 (expected calibration error).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

BINS: Final = 15
_TEMPERATURES: Final = (0.25, 4.0)


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers of similar confidence."""

    count: int
    confidence: float  # mean
    accuracy: float


def reliability(probabilities: NDArray[np.float64], expected: NDArray[np.int64]) -> list[Bin]:
    """Return the filled ones of `BINS` equal intervals of confidence, for probabilities (N, L) and true indexes (N)."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == expected
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        Bin(int(inside.sum()), float(confidence[inside].mean()), float(right[inside].mean()))
        for inside in (place == index for index in range(BINS))
        if inside.any()
    ]


def calibration_error(probabilities: NDArray[np.float64], expected: NDArray[np.int64]) -> float:
    """Return the expected calibration error: the bins' mean distance of confidence and accuracy, by their counts."""
    bins = reliability(probabilities, expected)
    return sum(each.count * abs(each.confidence - each.accuracy) for each in bins) / len(expected)


def fit_temperature(logits: NDArray[np.float64], expected: NDArray[np.int64]) -> float:
    """Return the temperature by which to divide `logits` (N, L) so that the true labels are likeliest."""

    def negative_log_likelihood(log_temperature: float) -> float:
        logs = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float(logs[np.arange(len(expected)), expected].mean())

    found = minimize_scalar(negative_log_likelihood, bounds=tuple(np.log(_TEMPERATURES)), method="bounded")
    return float(np.exp(found.x))


@dataclass(frozen=True, slots=True)
class Certainty:
    """From a confidence of `threshold` on, answers are right as often as was asked for."""

    threshold: float
    share: float  # of the answers that reach it
    accuracy: float  # of those


def certainty(probabilities: NDArray[np.float64], expected: NDArray[np.int64], accuracy: float) -> Certainty:
    """Return the lowest threshold, in hundredths, whose answers are right in at least `accuracy` of cases.

    Where none is, the threshold is 1.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == expected
    for hundredth in range(100):
        kept = confidence >= hundredth / 100
        if kept.any() and right[kept].mean() >= accuracy:
            return Certainty(hundredth / 100, float(kept.mean()), float(right[kept].mean()))
    return Certainty(1.0, 0.0, 0.0)
