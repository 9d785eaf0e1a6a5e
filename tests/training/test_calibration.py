from dataclasses import astuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax

from app.training.calibration import BINS, Certainty, calibration_error, certainty, fit_temperature, reliability


def _confident(*confidences: float) -> NDArray[np.float64]:
    """Return answers for the first of two labels, with these confidences."""
    return np.array([[confidence, 1 - confidence] for confidence in confidences])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_is_found_by_which_logits_were_sharpened(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 3))
    drawn = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    assert fit_temperature(logits * temperature, drawn) == pytest.approx(temperature, rel=0.05)


def test_a_temperature_stays_within_bounds_where_every_answer_is_right() -> None:
    assert fit_temperature(np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([0, 1])) == pytest.approx(0.25, rel=0.01)


def test_bins_hold_answers_of_similar_confidence() -> None:
    # 0.60 and 0.65 lie in the tenth fifteenth, 0.9 in the fourteenth, 1.0 in the last
    found = reliability(_confident(0.60, 0.65, 0.9, 1.0), np.array([0, 1, 0, 0]))
    assert BINS == 15
    assert [astuple(each) for each in found] == [(2, pytest.approx(0.625), 0.5), (1, pytest.approx(0.9), 1), (1, 1, 1)]


def test_the_calibration_error_is_the_mean_distance_weighted_by_the_counts_of_the_bins() -> None:
    error = calibration_error(_confident(0.60, 0.65, 0.9, 1.0), np.array([0, 1, 0, 0]))
    assert error == pytest.approx((2 * (0.625 - 0.5) + 1 * (1 - 0.9) + 0) / 4)


def test_certain_are_the_answers_from_the_lowest_threshold_on_that_are_right_often_enough() -> None:
    answers = _confident(0.55, 0.705, 0.705, 0.85, 0.95)
    expected = np.array([1, 0, 1, 0, 0])
    assert astuple(certainty(answers, expected, 0.6)) == pytest.approx((0.0, 1.0, 0.6))
    assert astuple(certainty(answers, expected, 0.7)) == pytest.approx((0.56, 0.8, 0.75))
    assert astuple(certainty(answers, expected, 0.9)) == pytest.approx((0.71, 0.4, 1.0))


def test_nothing_is_certain_where_no_threshold_is_right_often_enough() -> None:
    assert certainty(_confident(0.6, 0.9), np.array([0, 1]), 0.9) == Certainty(1.0, 0.0, 0.0)
