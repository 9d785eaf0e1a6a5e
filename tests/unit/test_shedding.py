"""What is refused before it is read."""

import asyncio
from typing import Any

import pytest

from app.domain.errors import Overloaded
from app.inference.batcher import Batcher, BatchEvent, BatchPolicy, Lane, RefusalReason, Refused
from app.inference.cost import CostModel
from app.inference.shedding import Shedder
from tests.fakes import FakeModel
from tests.virtual_time import VirtualTimeLoop

pytestmark = pytest.mark.anyio

_POLICY = BatchPolicy(max_items=1, max_tokens=100, max_waiting_items=1, max_waiting_tokens=500)
_COST = CostModel.fit((tokens, 1.0 + 0.01 * tokens) for tokens in (10, 50, 100))
_MANY = 320


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def _batcher(events: list[BatchEvent]) -> Batcher[str, str]:
    return Batcher(FakeModel().run, _POLICY, tokens=len, cost=_COST, observe=events.append)


async def _fill(batcher: Batcher[str, str]) -> list[asyncio.Future[str]]:
    """Let one item run and one wait; there is room for no more."""
    running = batcher.enqueue(["a"])
    await asyncio.sleep(0)
    return [*running, *batcher.enqueue(["b"])]


async def _refusals(batcher: Batcher[str, str], *, remembered_of_100: int) -> int:
    shedder = Shedder(lambda: batcher)
    for number in range(_MANY):
        shedder.saw(remembered=number % 100 < remembered_of_100)
    return sum(shedder.refusal() is not None for _ in range(_MANY))


async def test_all_is_read_while_there_is_room() -> None:
    async with _batcher([]) as batcher:
        batcher.enqueue(["a"])
        await asyncio.sleep(0)
        assert await _refusals(batcher, remembered_of_100=0) == 0


async def test_under_overload_texts_that_nobody_remembers_are_refused_unread_but_for_a_sample() -> None:
    events: list[BatchEvent] = []
    async with _batcher(events) as batcher:
        await _fill(batcher)
        assert await _refusals(batcher, remembered_of_100=0) == _MANY * 63 // 64
    refused = [event for event in events if isinstance(event, Refused)]
    assert len(refused) == _MANY * 63 // 64
    assert set(refused) == {Refused(Lane.INTERACTIVE, 1, RefusalReason.UNREAD)}


async def test_under_overload_all_is_read_while_enough_is_remembered() -> None:
    async with _batcher([]) as batcher:
        await _fill(batcher)
        assert await _refusals(batcher, remembered_of_100=50) == 0


async def test_a_refusal_says_when_to_come_again() -> None:
    async with _batcher([]) as batcher:
        await _fill(batcher)
        shedder = Shedder(lambda: batcher)
        for _ in range(_MANY):
            shedder.saw(remembered=False)
        refusal = shedder.refusal()
        assert isinstance(refusal, Overloaded)
        assert refusal.retry_after_s == pytest.approx(batcher.predicted_wait_s(Lane.INTERACTIVE))


async def test_when_texts_are_remembered_again_they_are_read_again() -> None:
    async with _batcher([]) as batcher:
        await _fill(batcher)
        shedder = Shedder(lambda: batcher)
        for _ in range(_MANY):
            shedder.saw(remembered=False)
        assert shedder.refusal() is not None
        for _ in range(8):
            shedder.saw(remembered=True)
        assert shedder.refusal() is None


async def test_when_there_is_room_again_texts_are_let_in_no_faster_than_the_model_goes() -> None:
    model = FakeModel(takes_s=0.5)
    policy = BatchPolicy(max_items=1, max_tokens=100, max_waiting_items=8, max_waiting_tokens=500)
    async with Batcher(model.run, policy, tokens=len, cost=_COST) as batcher:
        shedder = Shedder(lambda: batcher)
        for _ in range(_MANY):
            shedder.saw(remembered=False)
        batcher.enqueue(["a"])
        await asyncio.sleep(0)
        batcher.enqueue(["b"] * 8)
        assert shedder.refusal() is not None
        await asyncio.sleep(0.6)  # one of them runs now, and makes room
        assert not batcher.refuses(1, Lane.INTERACTIVE)
        assert [shedder.refusal() is None for _ in range(4)] == [True, False, False, False]
        await asyncio.sleep(batcher.pace_s(Lane.INTERACTIVE) / 1.25)
        assert [shedder.refusal() is None for _ in range(4)] == [True, False, False, False]


async def test_a_second_after_the_last_text_too_many_all_is_read() -> None:
    async with _batcher([]) as batcher:
        futures = await _fill(batcher)
        shedder = Shedder(lambda: batcher)
        for _ in range(_MANY):
            shedder.saw(remembered=False)
        assert shedder.refusal() is not None
        await asyncio.gather(*futures)
        assert all(shedder.refusal() is None for _ in range(_MANY))
