import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.inference.cost import CostModel


def line(*sizes: int, fixed_s: float, per_token_s: float) -> list[tuple[int, float]]:
    return [(size, fixed_s + per_token_s * size) for size in sizes]


def test_a_model_that_saw_nothing_predicts_nothing() -> None:
    cost = CostModel()
    cost.observe(100, 1.0)
    assert cost.predict_s(100) == 0
    assert cost.overhead_tokens == 0


def test_the_line_behind_the_measurements_is_recovered() -> None:
    cost = CostModel.fit(line(8, 64, 256, 512, fixed_s=0.004, per_token_s=0.0001))
    assert cost.fixed_s == pytest.approx(0.004)
    assert cost.per_token_s == pytest.approx(0.0001)
    assert cost.overhead_tokens == pytest.approx(40)


def test_a_prediction_counts_the_batches() -> None:
    cost = CostModel.fit(line(8, 64, 512, fixed_s=0.004, per_token_s=0.0001))
    assert cost.predict_s(1_000, batches=3) == pytest.approx(3 * 0.004 + 1_000 * 0.0001)


def test_a_large_batch_that_was_slow_does_not_decide_what_a_small_one_costs() -> None:
    usual = line(8, 16, 32, 64, 128, 256, fixed_s=0.003, per_token_s=0.00003)
    cost = CostModel.fit([*usual, (1_024, 0.06)])
    assert cost.predict_s(8) == pytest.approx(0.00324, rel=0.1)


def test_a_model_that_slows_down_is_followed() -> None:
    cost = CostModel.fit(line(*range(10, 500, 10), fixed_s=0.01, per_token_s=0.001))
    for tokens, run_s in line(*range(10, 500, 10), fixed_s=0.02, per_token_s=0.002) * 8:
        cost.observe(tokens, run_s)
    assert cost.fixed_s == pytest.approx(0.02, rel=0.02)
    assert cost.per_token_s == pytest.approx(0.002, rel=0.02)


def test_what_starting_a_batch_costs_in_tokens_stands_whatever_runs() -> None:
    cost = CostModel.fit(line(10, 100, 500, fixed_s=0.01, per_token_s=0.001))
    for _ in range(1_000):
        cost.observe(100, 0.5)
    assert cost.overhead_tokens == pytest.approx(10)
    assert cost.predict_s(100) == pytest.approx(0.5)


def test_one_slow_run_hardly_counts() -> None:
    cost = CostModel.fit(line(*range(10, 500, 10), fixed_s=0.01, per_token_s=0.001))
    cost.observe(500, 60.0)
    assert cost.predict_s(500) == pytest.approx(0.51, rel=0.2)


def test_noise_averages_out() -> None:
    steady = line(*range(10, 500, 10), fixed_s=0.01, per_token_s=0.001)
    cost = CostModel.fit((tokens, run_s * noise) for noise in (0.8, 1.2) * 4 for tokens, run_s in steady[::7])
    assert cost.predict_s(400) == pytest.approx(0.41, rel=0.1)


def test_batches_of_a_single_size_are_predicted_and_never_for_free() -> None:
    cost = CostModel.fit([(100, 0.5)] * 50)
    assert cost.predict_s(100) == pytest.approx(0.5)
    assert 0.5 < cost.predict_s(200) <= 1.0
    assert cost.fixed_s >= 0


def test_times_that_fall_with_the_size_do_not_make_tokens_cheaper_than_nothing() -> None:
    cost = CostModel.fit([(10, 1.0), (100, 0.5), (500, 0.1)])
    assert cost.per_token_s > 0
    assert cost.fixed_s >= 0


@given(st.lists(st.tuples(st.integers(1, 100_000), st.floats(0, 1_000)), min_size=1, max_size=40))
@settings(deadline=None)
def test_neither_part_of_a_cost_is_ever_negative(measured: list[tuple[int, float]]) -> None:
    cost = CostModel.fit(measured)
    for tokens, run_s in measured:
        cost.observe(tokens, run_s)
    assert cost.per_token_s >= 0
    assert cost.fixed_s >= 0
    assert math.isfinite(cost.overhead_tokens)
    assert math.isfinite(cost.predict_s(100))
