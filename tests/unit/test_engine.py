import struct
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from app.domain.errors import ModelFailure
from app.inference.cost import CostModel
from app.inference.engine import Engine
from tests.tiny_bundle import PAD_ID

pytestmark = pytest.mark.anyio

Logits = NDArray[np.float32]


class _Model:
    """Answers by a rule, and remembers the shapes it was given."""

    def __init__(self, rule: Callable[[NDArray[np.int64], NDArray[np.int64]], Logits]) -> None:
        self._rule = rule
        self.shapes: list[tuple[int, ...]] = []

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Logits:
        assert input_ids.dtype == attention_mask.dtype == np.int64
        self.shapes.append(input_ids.shape)
        return self._rule(input_ids, attention_mask)


def _first_id_wins(input_ids: NDArray[np.int64], _: NDArray[np.int64]) -> Logits:
    return np.eye(3, dtype=np.float32)[input_ids[:, 0]] * 5


async def _run(rule: Callable[[NDArray[np.int64], NDArray[np.int64]], Logits]) -> list[tuple[float, ...]]:
    async with Engine(_Model(rule), pad_id=PAD_ID, heads=(3,), longest=64) as engine:
        return await engine.run([(0,), (1,)])


async def test_rows_come_back_in_order() -> None:
    async with Engine(_Model(_first_id_wins), pad_id=PAD_ID, heads=(3,), longest=64) as engine:
        rows = await engine.run([(2, 0), (0,), (1, 1, 1), (0, 2)])
    assert [row.index(max(row)) for row in rows] == [2, 0, 1, 0]
    assert all(sum(row) == pytest.approx(1) for row in rows)


async def test_every_probability_is_a_float32_that_four_bytes_bring_back() -> None:
    logits = np.random.default_rng(7).normal(0, 8, (50, 9)).astype(np.float32)
    async with Engine(_Model(lambda *_: logits), pad_id=PAD_ID, heads=(3, 6), longest=64) as engine:
        rows = await engine.run([(0,)] * 50)
    assert all(struct.unpack("<9f", struct.pack("<9f", *row)) == row for row in rows)
    assert all(sum(row[:3]) == pytest.approx(1) == sum(row[3:]) for row in rows)


async def test_short_rows_are_padded_behind_and_masked() -> None:
    seen = []

    def keep(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> Logits:
        seen.append((input_ids.tolist(), attention_mask.tolist()))
        return np.zeros((len(input_ids), 3), np.float32)

    async with Engine(_Model(keep), pad_id=7, heads=(3,), longest=64) as engine:
        await engine.run([(4, 5, 6), (4,)])
    assert seen == [([[4, 5, 6] + [7] * 5, [4] + [7] * 7], [[1, 1, 1] + [0] * 5, [1] + [0] * 7])]


@pytest.mark.parametrize(("tokens", "columns"), [(1, 8), (8, 8), (9, 16), (33, 36), (36, 36), (40, 40)])
async def test_widths_come_in_steps_up_to_the_longest(tokens: int, columns: int) -> None:
    async with Engine(_Model(_first_id_wins), pad_id=PAD_ID, heads=(3,), longest=36) as engine:
        assert engine.columns(tokens) == columns


async def test_large_logits_do_not_overflow() -> None:
    rows = await _run(lambda ids, _: np.full((len(ids), 3), [1e30, 0, -1e30], np.float32))
    assert rows == [(1, 0, 0), (1, 0, 0)]


async def test_each_head_has_probabilities_of_its_own() -> None:
    logits = [[0, 0, 0, 1e4, 0], [np.log(2), 0, 0, 0, np.log(3)]]
    model = _Model(lambda *_: np.array(logits, np.float32))
    async with Engine(model, pad_id=PAD_ID, heads=(3, 2), longest=64) as engine:
        rows = await engine.run([(0,), (1,)])
    assert rows[0] == pytest.approx((1 / 3, 1 / 3, 1 / 3, 1, 0))
    assert rows[1] == pytest.approx((1 / 2, 1 / 4, 1 / 4, 1 / 4, 3 / 4))


@pytest.mark.parametrize("heads", [(3,), (3, 2), (2, 2), (5,)])
async def test_heads_of_another_width_than_the_models_are_a_model_failure(heads: tuple[int, ...]) -> None:
    model = _Model(lambda ids, _: np.zeros((len(ids), 6), np.float32))
    async with Engine(model, pad_id=PAD_ID, heads=heads, longest=64) as engine:
        with pytest.raises(ModelFailure, match=r"shape \(1, 6\)"):
            await engine.run([(0,)])


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
async def test_a_number_that_is_not_finite_is_a_model_failure(odd: float) -> None:
    with pytest.raises(ModelFailure, match="not finite"):
        await _run(lambda ids, _: np.full((len(ids), 3), [0, 0, odd], np.float32))


@pytest.mark.parametrize("shape", [(1, 3), (3, 3), (2, 2), (2,), (2, 3, 1)])
async def test_another_shape_is_a_model_failure(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelFailure, match="shape"):
        await _run(lambda *_: np.zeros(shape, np.float32))


async def test_what_the_model_raises_is_a_model_failure() -> None:
    def fail(*_: object) -> Logits:
        raise MemoryError("no room")

    with pytest.raises(ModelFailure, match="MemoryError: no room"):
        await _run(fail)


async def test_the_engine_answers_again_after_a_failure() -> None:
    answers = iter([np.full((1, 3), np.nan, np.float32), np.zeros((1, 3), np.float32)])
    async with Engine(_Model(lambda *_: next(answers)), pad_id=PAD_ID, heads=(3,), longest=64) as engine:
        with pytest.raises(ModelFailure):
            await engine.run([(0,)])
        assert await engine.run([(0,)]) == [pytest.approx((1 / 3, 1 / 3, 1 / 3))]


@pytest.fixture
async def warm() -> AsyncIterator[tuple[CostModel, list[tuple[int, ...]]]]:
    model = _Model(lambda ids, _: np.zeros((len(ids), 3), np.float32))
    async with Engine(model, pad_id=PAD_ID, heads=(3,), longest=16) as engine:
        yield engine.warm_up(max_tokens=256), model.shapes


async def test_warming_up_tells_what_a_batch_costs(warm: tuple[CostModel, list[tuple[int, ...]]]) -> None:
    cost, _ = warm
    assert cost.fixed_s >= 0
    assert cost.predict_s(256) > cost.predict_s(8) > 0


async def test_warming_up_runs_the_largest_batch_and_none_larger(
    warm: tuple[CostModel, list[tuple[int, ...]]],
) -> None:
    _, shapes = warm
    assert (16, 16) in shapes
    assert all(rows * columns <= 256 and columns <= 16 for rows, columns in shapes)
