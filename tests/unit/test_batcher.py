"""The batcher under virtual time: an item is a word, its letters are its tokens."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.errors import ModelFailure, Overloaded, ShuttingDown
from app.inference.batcher import (
    Batcher,
    BatchEvent,
    BatchFinished,
    BatchPolicy,
    BatchStarted,
    Lane,
    Ran,
    RefusalReason,
    Refused,
    batch_counts,
    choose_batch,
)
from app.inference.cost import CostModel
from tests.fakes import FakeModel
from tests.virtual_time import VirtualTimeLoop

pytestmark = pytest.mark.anyio

WordBatcher: TypeAlias = Batcher[str, str]

POLICY = BatchPolicy(max_items=4, max_tokens=100, max_waiting_items=10, max_waiting_tokens=500)


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def known_cost(*, fixed_s: float = 1.0, per_token_s: float = 0.01) -> CostModel:
    return CostModel.fit((tokens, fixed_s + per_token_s * tokens) for tokens in (10, 50, 100))


def batching(
    model: FakeModel,
    *,
    cost: CostModel | None = None,
    observe: Callable[[BatchEvent], None] = lambda _: None,
    **changes: Any,
) -> WordBatcher:
    return Batcher(model.run, replace(POLICY, **changes), tokens=len, cost=cost or known_cost(), observe=observe)


def words(*sizes: int) -> list[str]:
    """Return a word of each size; words of one size differ in their first letters."""
    return [f"{index:x}".ljust(size, ".")[:size] for index, size in enumerate(sizes)]


async def ends(futures: Sequence[asyncio.Future[str]]) -> list[str | BaseException]:
    return await asyncio.gather(*futures, return_exceptions=True)


# Forming batches


async def test_a_lone_item_leaves_at_once() -> None:
    model = FakeModel()
    async with batching(model) as batcher:
        assert await batcher.enqueue(["a"])[0] == "a!"
    assert model.runs == [(0.0, ["a"])]


async def test_items_of_the_same_tick_share_a_batch() -> None:
    model = FakeModel()
    async with batching(model) as batcher:

        async def ask(word: str) -> str:
            return await batcher.enqueue([word])[0]

        assert await asyncio.gather(*map(ask, "abc")) == ["a!", "b!", "c!"]
    assert model.runs == [(0.0, ["a", "b", "c"])]


async def test_items_arriving_while_the_model_is_busy_form_the_next_batch() -> None:
    model = FakeModel()
    async with batching(model) as batcher:
        batcher.enqueue(["a"])
        await asyncio.sleep(0.25)
        batcher.enqueue(["b"])
        await asyncio.sleep(0.5)
        batcher.enqueue(["c"])
    assert model.runs == [(0.0, ["a"]), (1.0, ["b", "c"])]


async def test_each_caller_gets_its_own_answer_whatever_the_order_of_the_batch() -> None:
    async with batching(FakeModel()) as batcher:
        assert await ends(batcher.enqueue(["ccc", "a", "dddd", "bb"])) == ["ccc!", "a!", "dddd!", "bb!"]


async def test_a_batch_holds_at_most_max_items() -> None:
    model = FakeModel()
    async with batching(model, max_items=2) as batcher:
        batcher.enqueue(["a", "b", "c", "d", "e"])
    assert [run.items for run in model.runs] == [["a", "b"], ["c", "d"], ["e"]]


async def test_a_batch_is_the_oldest_item_and_those_nearest_to_it_in_length() -> None:
    model = FakeModel()
    async with batching(model, max_items=3, max_tokens=200) as batcher:
        batcher.enqueue(["busy"])
        await asyncio.sleep(0.5)
        batcher.enqueue(words(50, 10, 49, 11, 48, 12))
    assert [[len(item) for item in run.items] for run in model.runs] == [[4], [48, 49, 50], [10, 11, 12]]


async def test_padding_counts_towards_the_tokens_of_a_batch() -> None:
    model = FakeModel()
    async with batching(model) as batcher:
        batcher.enqueue(words(30, 30, 40))  # 100 tokens, 120 with padding
    assert [[len(item) for item in run.items] for run in model.runs] == [[30, 30], [40]]


async def test_an_item_above_the_tokens_of_a_batch_runs_alone() -> None:
    model = FakeModel()
    async with batching(model) as batcher:
        batcher.enqueue(words(150, 150))
    assert [[len(item) for item in run.items] for run in model.runs] == [[150], [150]]


async def test_lengths_that_would_pad_too_much_wait_for_a_batch_of_their_own() -> None:
    model = FakeModel(takes_s=0.1, token_s=0.01)
    async with batching(model, cost=known_cost(fixed_s=0.1, per_token_s=0.01)) as batcher:  # a batch costs 10 tokens
        batcher.enqueue(words(5, 24, 40))
    assert [[len(item) for item in run.items] for run in model.runs] == [[5, 24], [40]]


async def test_an_unusual_length_does_not_starve_in_a_stream_of_usual_ones() -> None:
    model = FakeModel()
    async with batching(model) as batcher:
        for second in range(20):
            batcher.enqueue(["a", "b", "c", "d"])
            if second == 5:
                rare = batcher.enqueue(words(90))
            await asyncio.sleep(1)
    assert await rare[0]
    (at_s,) = (run.at_s for run in model.runs if run.items == words(90))
    assert at_s == 6.0


def price(sizes: Sequence[int], chosen: tuple[int, int], overhead_tokens: float) -> float:
    batch = sizes[slice(*chosen)]
    return (overhead_tokens + batch[-1] * len(batch)) / sum(batch)


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=30).map(sorted),
    data=st.data(),
    max_items=st.integers(1, 12),
    max_tokens=st.integers(1, 400),
    overhead_tokens=st.floats(0, 100),
)
@settings(deadline=None, max_examples=200)
def test_a_chosen_batch_is_the_cheapest_around_its_seed_within_every_bound(
    sizes: list[int], data: st.DataObject, max_items: int, max_tokens: int, overhead_tokens: float
) -> None:
    seed = data.draw(st.integers(0, len(sizes) - 1))
    counts = batch_counts(max_items)
    first, last = choose_batch(sizes, seed, counts=counts, max_tokens=max_tokens, overhead_tokens=overhead_tokens)
    assert 0 <= first <= seed < last <= len(sizes)
    possible = [
        (start, start + count)
        for count in counts
        for start in range(len(sizes) - count + 1)
        if start <= seed < start + count and (count == 1 or sizes[start + count - 1] * count <= max_tokens)
    ]
    assert (first, last) in possible
    lowest = min(price(sizes, slice_, overhead_tokens) for slice_ in possible)
    assert price(sizes, (first, last), overhead_tokens) == pytest.approx(lowest)


def test_of_batches_as_cheap_the_largest_is_chosen() -> None:
    assert choose_batch([8] * 9, 4, counts=(1, 2, 4), max_tokens=999, overhead_tokens=0) == (4, 8)


def test_the_dearer_it_is_to_start_a_batch_the_more_it_holds() -> None:
    def size(overhead_tokens: float) -> int:
        counts = batch_counts(4)
        first, last = choose_batch([10, 20, 30], 0, counts=counts, max_tokens=99, overhead_tokens=overhead_tokens)
        return last - first

    assert [size(overhead_tokens) for overhead_tokens in (4, 6, 60)] == [1, 2, 3]


def test_the_numbers_of_items_of_a_batch_are_few() -> None:
    assert batch_counts(1) == (1,)
    assert batch_counts(5) == (1, 2, 3, 4, 5)
    assert batch_counts(64) == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


async def test_the_next_batch_starts_before_the_callers_of_the_last_go_on() -> None:
    order: list[str] = []

    async def run(items: Sequence[str]) -> Sequence[str]:
        order.append(f"run {items[0]}")
        await asyncio.sleep(1)
        return items

    async def call(batcher: Batcher[str, str], item: str) -> None:
        (future,) = batcher.enqueue([item])
        order.append(f"answer {await future}")

    async with Batcher(run, replace(POLICY, max_items=1), tokens=len, cost=CostModel()) as batcher:
        await asyncio.gather(call(batcher, "a"), call(batcher, "b"))
    assert order == ["run a", "run b", "answer a", "answer b"]


# Callers that leave


async def test_a_caller_that_left_while_waiting_is_never_run() -> None:
    model = FakeModel()
    async with batching(model) as batcher:
        batcher.enqueue(["busy"])
        await asyncio.sleep(0.5)
        stays, leaves = batcher.enqueue(["stays", "leaves"])
        await asyncio.sleep(0.25)
        leaves.cancel()
        await asyncio.sleep(0)
        assert (batcher.waiting_items, batcher.waiting_tokens) == (1, 5)
        assert await stays == "stays!"
    assert model.runs == [(0.0, ["busy"]), (1.0, ["stays"])]


async def test_a_caller_that_left_while_running_does_not_disturb_its_neighbours() -> None:
    model = FakeModel()
    async with batching(model) as batcher:
        futures = batcher.enqueue(["a", "b", "c"])
        await asyncio.sleep(0.5)
        futures[1].cancel()
        a, b, c = await ends(futures)
        assert (a, c) == ("a!", "c!")
        assert isinstance(b, asyncio.CancelledError)
        assert await batcher.enqueue(["d"])[0] == "d!"
    assert model.runs == [(0.0, ["a", "b", "c"]), (1.0, ["d"])]


async def test_a_caller_that_left_makes_room_for_another() -> None:
    async with batching(FakeModel(), max_waiting_items=1) as batcher:
        batcher.enqueue(["busy"])
        await asyncio.sleep(0.5)
        (leaves,) = batcher.enqueue(["leaves"])
        leaves.cancel()
        await asyncio.sleep(0)
        assert await batcher.enqueue(["comes"])[0] == "comes!"


# Failures


async def test_a_failing_model_fails_its_batch_alone_and_the_next_batch_runs() -> None:
    model = FakeModel(failure=ValueError("out of memory"))
    async with batching(model) as batcher:
        failing = batcher.enqueue(["a", "b"])
        await asyncio.sleep(0.5)
        (later,) = batcher.enqueue(["c"])
        a, b = await ends(failing)
        model.failure = None
        assert await later == "c!"
    assert isinstance(a, ModelFailure)
    assert isinstance(b, ModelFailure)
    assert str(a) == "ValueError: out of memory"


async def test_a_model_failure_reaches_the_caller_as_it_is() -> None:
    failure = ModelFailure("answers are not numbers")
    async with batching(FakeModel(failure=failure)) as batcher:
        assert await ends(batcher.enqueue(["a"])) == [failure]


async def test_a_model_that_loses_a_row_is_a_model_failure() -> None:
    model = FakeModel(drops=1)
    async with batching(model) as batcher:
        outcomes = await ends(batcher.enqueue(["a", "b"]))
        assert [str(outcome) for outcome in outcomes] == ["1 items in, 0 results out"] * 2
        assert all(isinstance(outcome, ModelFailure) for outcome in outcomes)
        model.drops = 0
        assert await batcher.enqueue(["c"])[0] == "c!"


class Squeamish(FakeModel):
    """Fails every run with an item that begins with "!"."""

    async def run(self, items: Sequence[str]) -> list[str]:
        answers = await super().run(items)
        if any(item.startswith("!") for item in items):
            raise ValueError("cannot bear it")
        return answers


async def test_an_item_that_the_model_cannot_bear_fails_alone() -> None:
    events: list[BatchEvent] = []
    async with batching(Squeamish(), observe=events.append) as batcher:
        *sound, poison = await ends(batcher.enqueue(["a", "b", "c", "!"]))
    assert sound == ["a!", "b!", "c!"]
    assert isinstance(poison, ModelFailure)
    (finished,) = (event for event in events if isinstance(event, BatchFinished))
    assert (finished.items, finished.failed) == (4, 1)
    assert str(finished.error) == "ValueError: cannot bear it"


async def test_a_model_that_fails_three_items_alone_is_not_asked_for_the_rest() -> None:
    model = FakeModel(failure=ValueError("out of memory"))
    async with batching(model) as batcher:
        outcomes = await ends(batcher.enqueue(["a", "b", "c", "d"]))
    assert all(isinstance(outcome, ModelFailure) for outcome in outcomes)
    assert [run.items for run in model.runs] == [["a", "b", "c", "d"], ["a"], ["b"], ["c"]]


async def test_a_caller_that_left_a_failed_batch_is_not_run_again() -> None:
    model = Squeamish()
    async with batching(model) as batcher:
        poison, gone, sound = batcher.enqueue(["!", "a", "b"])
        await asyncio.sleep(0.5)
        gone.cancel()
        assert await sound == "b!"
        assert isinstance(poison.exception(), ModelFailure)
    assert [run.items for run in model.runs[1:]] == [["!"], ["b"]]


async def test_a_failed_run_teaches_the_cost_model_nothing() -> None:
    cost = known_cost()
    before = cost.predict_s(100)
    async with batching(FakeModel(takes_s=60.0, failure=ValueError()), cost=cost) as batcher:
        await ends(batcher.enqueue(["a"]))
    assert cost.predict_s(100) == before


async def test_a_run_teaches_the_cost_model_its_padded_tokens_and_its_time() -> None:
    cost, expected = CostModel(), CostModel()
    async with batching(FakeModel(takes_s=2.0), cost=cost) as batcher:
        await ends(batcher.enqueue(words(7, 7)))
    expected.observe(14, 2.0)
    assert (cost.fixed_s, cost.per_token_s) == (expected.fixed_s, expected.per_token_s)


@pytest.mark.parametrize("kind", [BatchStarted, BatchFinished])
async def test_a_failing_observer_costs_no_answer_and_is_heard_of(kind: type[BatchEvent]) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["exception"]))
    fault = RuntimeError("no such metric")

    def observe(event: BatchEvent) -> None:
        if isinstance(event, kind):
            raise fault

    async with batching(FakeModel(), observe=observe) as batcher:
        assert await batcher.enqueue(["a"])[0] == "a!"
        assert await batcher.enqueue(["b"])[0] == "b!"
    assert complaints == [fault, fault]


async def test_a_run_that_is_cancelled_is_a_model_failure() -> None:
    async def run(_: Sequence[str]) -> list[str]:
        cancelled: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        cancelled.cancel()
        return await cancelled

    async with Batcher(run, POLICY, tokens=len, cost=CostModel()) as batcher:
        (outcome,) = await ends(batcher.enqueue(["a"]))
    assert isinstance(outcome, ModelFailure)


async def test_an_item_withdrawn_in_the_tick_of_its_batch_is_not_run() -> None:
    model = FakeModel()
    async with batching(model) as batcher:
        batcher.enqueue(["a"])[0].cancel()
        assert await batcher.enqueue(["b"])[0] == "b!"
    assert [run.items for run in model.runs] == [["b"]]


async def test_nothing_to_enqueue_is_nothing_to_wait_for() -> None:
    async with batching(FakeModel()) as batcher:
        assert batcher.enqueue([]) == []


async def test_a_batch_full_by_items_waits_for_no_company() -> None:
    model = FakeModel()
    async with batching(model, wait_s=0.5, max_items=2) as batcher:
        batcher.enqueue(["a", "b"])
        await asyncio.sleep(0.1)
        assert [run.at_s for run in model.runs] == [0.0]


async def test_a_full_lane_does_not_wait_for_the_company_of_the_other() -> None:
    model = FakeModel()
    async with batching(model, wait_s=0.5, max_items=2) as batcher:
        batcher.enqueue(["i"], Lane.INTERACTIVE)
        batcher.enqueue(["b", "c"], Lane.BULK)
        await asyncio.sleep(0.1)
        assert [run.items for run in model.runs] == [["b", "c"]]


async def test_closing_waits_for_no_company() -> None:
    model = FakeModel()
    async with batching(model, wait_s=0.5) as batcher:
        batcher.enqueue(["a"])
        await asyncio.sleep(0.125)
    assert [run.at_s for run in model.runs] == [0.125]


# Admission


async def test_beyond_the_items_that_may_wait_callers_are_refused_at_once() -> None:
    model = FakeModel()
    async with batching(model) as batcher:
        batcher.enqueue(["busy"])
        await asyncio.sleep(0.5)
        batcher.enqueue(["a"] * 10, Lane.BULK)
        with pytest.raises(Overloaded):
            batcher.enqueue(["b"], Lane.BULK)
    assert "b" not in model.items


async def test_beyond_the_tokens_that_may_wait_callers_are_refused_at_once() -> None:
    async with batching(FakeModel()) as batcher:
        batcher.enqueue(["busy"])
        await asyncio.sleep(0.5)
        batcher.enqueue(words(90, 90, 90, 90, 90))
        with pytest.raises(Overloaded):
            batcher.enqueue(words(51))
        batcher.enqueue(words(50))


@pytest.mark.parametrize(("full", "other"), [(Lane.BULK, Lane.INTERACTIVE), (Lane.INTERACTIVE, Lane.BULK)])
async def test_a_full_lane_turns_nobody_away_from_the_other(full: Lane, other: Lane) -> None:
    async with batching(FakeModel()) as batcher:
        batcher.enqueue(["busy"])
        await asyncio.sleep(0.5)
        batcher.enqueue(words(*[50] * 10), full)
        welcome = [*batcher.enqueue(words(50), other), *batcher.enqueue(words(*[50] * 9), other)]
        for lane in Lane:
            with pytest.raises(Overloaded):
                batcher.enqueue(["late"], lane)
        assert all(isinstance(outcome, str) for outcome in await ends(welcome))


@pytest.mark.parametrize(("workers", "retry_after_s"), [(1, 3.0), (2, 1.5)])
async def test_the_time_to_retry_after_is_what_the_waiting_items_will_take(workers: int, retry_after_s: float) -> None:
    cost = known_cost(fixed_s=0.5, per_token_s=0.01)
    async with batching(FakeModel(), cost=cost, workers=workers, max_waiting_items=4) as batcher:
        for _ in range(workers):
            batcher.enqueue(["busy"])
            await asyncio.sleep(0.25)
        batcher.enqueue(words(50, 50, 50, 50))  # 200 tokens, two batches
        with pytest.raises(Overloaded) as refusal:
            batcher.enqueue(["b"])
    assert refusal.value.retry_after_s == pytest.approx(retry_after_s)


async def test_a_request_is_accepted_whole_or_not_at_all() -> None:
    model = FakeModel()
    async with batching(model) as batcher:
        batcher.enqueue(["busy"])
        await asyncio.sleep(0.5)
        batcher.enqueue(["a"] * 8)
        with pytest.raises(Overloaded):
            batcher.enqueue(["b"] * 3)
        assert (batcher.waiting_items, batcher.waiting_tokens) == (8, 8)
        batcher.enqueue(["c"] * 2)
    assert sorted(model.items) == ["a"] * 8 + ["busy"] + ["c"] * 2


async def test_an_empty_lane_accepts_a_request_above_its_size() -> None:
    async with batching(FakeModel()) as batcher:
        batcher.enqueue(["bulk"] * 9, Lane.BULK)
        assert await ends(batcher.enqueue(["a"] * 30)) == ["a!"] * 30
        assert await ends(batcher.enqueue(words(9_000))) == [words(9_000)[0] + "!"]


async def test_callers_that_wait_for_room_leave_half_of_the_lane_to_those_that_do_not() -> None:
    async with batching(FakeModel()) as batcher:
        batcher.enqueue(["busy"], Lane.BULK)

        async def wait_for_room(word: str) -> None:
            await batcher.until_room([word], Lane.BULK)
            await batcher.enqueue([word], Lane.BULK)[0]

        async with asyncio.TaskGroup() as tasks:
            for word in words(*[40] * 20):
                tasks.create_task(wait_for_room(word))
            await asyncio.sleep(0.5)
            waiting = batcher.waiting_items
            await ends(batcher.enqueue(words(*[40] * 5), Lane.BULK))
    assert waiting == 5  # of ten


@pytest.mark.parametrize("sizes", [[1] * 5, [250]], ids=["items", "tokens"])
async def test_whoever_waits_for_room_goes_in_the_order_of_arrival(sizes: list[int]) -> None:
    order: list[str] = []
    async with batching(FakeModel()) as batcher:

        async def wait_for_room(name: str, items: list[str]) -> None:
            await batcher.until_room(items, Lane.BULK)
            order.append(name)
            await ends(batcher.enqueue(items, Lane.BULK))

        batcher.enqueue(["busy"], Lane.BULK)
        await asyncio.sleep(0.5)
        batcher.enqueue(words(30, 30), Lane.BULK)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(wait_for_room("large", words(*sizes)))
            await asyncio.sleep(0)
            tasks.create_task(wait_for_room("small", ["a"]))
    assert order == ["large", "small"]


async def test_room_made_by_a_caller_that_leaves_is_taken() -> None:
    async with batching(FakeModel(takes_s=100)) as batcher:
        batcher.enqueue(["busy"], Lane.BULK)
        await asyncio.sleep(0.5)
        leaving = batcher.enqueue(["a"] * 5, Lane.BULK)
        room = asyncio.create_task(batcher.until_room(["b"], Lane.BULK))
        await asyncio.sleep(1)
        assert not room.done()
        leaving[0].cancel()
        async with asyncio.timeout(1):
            await room


async def test_who_waits_for_more_room_than_there_is_gets_an_empty_lane() -> None:
    async with batching(FakeModel()) as batcher:
        batcher.enqueue(["busy"], Lane.BULK)
        await asyncio.sleep(0.5)
        batcher.enqueue(["a"], Lane.BULK)
        await batcher.until_room(["b"] * 30, Lane.BULK)
        assert not batcher.waiting_items


async def test_a_caller_that_stops_waiting_for_room_holds_nobody_up() -> None:
    async with batching(FakeModel()) as batcher:
        batcher.enqueue(["busy"], Lane.BULK)
        await asyncio.sleep(0.5)
        batcher.enqueue(["a"] * 5, Lane.BULK)
        first, second = (asyncio.create_task(batcher.until_room(["b"], Lane.BULK)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await second


# Lanes


async def test_bulk_gets_its_share_of_the_model_while_interactive_is_flooded() -> None:
    model = FakeModel()
    async with batching(model, bulk_share=0.25, max_waiting_items=10_000, max_waiting_tokens=10_000) as batcher:
        futures = [*batcher.enqueue(["chat"] * 400), *batcher.enqueue(["bulk"] * 400, Lane.BULK)]
        await asyncio.sleep(80)
        for future in futures:
            future.cancel()
    assert sum(run.items[0] == "bulk" for run in model.runs) in (19, 20, 21)
    assert any(run.items[0] == "bulk" for run in model.runs[:3])


async def test_an_interactive_item_runs_next_however_much_bulk_waits() -> None:
    model = FakeModel()
    async with batching(model, max_waiting_items=10_000, max_waiting_tokens=10_000) as batcher:
        batcher.enqueue(["bulk"] * 200, Lane.BULK)
        await asyncio.sleep(9.5)
        (chat,) = batcher.enqueue(["chat"])
        assert await chat == "chat!"
        assert asyncio.get_running_loop().time() == 11.0
        assert batcher.waiting_items > 100
    assert model.runs[10] == (10.0, ["chat"])


async def test_a_bulk_batch_is_small_while_interactive_items_come_and_large_again_when_they_stop() -> None:
    model = FakeModel(takes_s=0.1)
    async with batching(model, shared_max_tokens=8, max_waiting_items=10_000, max_waiting_tokens=10_000) as batcher:
        batcher.enqueue(["bulk"] * 202, Lane.BULK)
        await asyncio.sleep(0.55)
        batcher.enqueue(["chat"] * 4)
    sizes = [len(run.items) for run in model.runs if run.items[0] == "bulk"]
    assert sizes[:6] == [4] * 6
    assert sizes[6:15] == [2] * 9  # from 0.7 to 1.5 s
    assert set(sizes[15:]) == {4}


async def test_a_bulk_item_that_a_person_asks_for_too_runs_with_the_interactive_ones() -> None:
    model = FakeModel()
    async with batching(model, max_waiting_items=100) as batcher:
        futures = batcher.enqueue(["bulk"] * 20, Lane.BULK)
        await asyncio.sleep(0.5)
        batcher.hurry(futures[-2:])
        await futures[-1]
        assert [future.done() for future in futures] == [True] * 4 + [False] * 14 + [True] * 2
        batcher.hurry(futures)  # those that ran already included
    assert len(model.items) == 20


async def test_a_batch_holds_items_of_one_lane() -> None:
    model = FakeModel()
    async with batching(model) as batcher:
        batcher.enqueue(["a"])
        batcher.enqueue(["b"], Lane.BULK)
    assert [run.items for run in model.runs] == [["a"], ["b"]]


async def test_a_lane_that_was_alone_owes_the_other_nothing() -> None:
    model = FakeModel()
    async with batching(model, bulk_share=0.5, max_waiting_items=100) as batcher:
        batcher.enqueue(["chat"] * 40)
        await asyncio.sleep(5.5)
        batcher.enqueue(["bulk"] * 40, Lane.BULK)
    assert [run.items[0] for run in model.runs[6:12]].count("bulk") == 3


# Waiting for company, and several workers


async def test_a_batch_that_is_not_full_waits_for_company() -> None:
    model = FakeModel()
    async with batching(model, wait_s=0.5) as batcher:
        batcher.enqueue(["a"])
        await asyncio.sleep(0.25)
        batcher.enqueue(["b"])
        await asyncio.sleep(0.75)
        assert model.runs == [(0.5, ["a", "b"])]


async def test_a_batch_that_is_full_of_tokens_does_not_wait_for_company() -> None:
    model = FakeModel()
    async with batching(model, wait_s=0.5) as batcher:
        batcher.enqueue(words(50))
        await asyncio.sleep(0.25)
        batcher.enqueue(words(50))
        await asyncio.sleep(0.5)
    assert model.runs == [(0.25, words(50) * 2)]


async def test_the_wait_for_company_ends_though_more_keep_coming() -> None:
    model = FakeModel()
    async with batching(model, wait_s=0.5, max_items=64) as batcher:
        for word in "abcdefgh":
            batcher.enqueue([word])
            await asyncio.sleep(0.125)
        assert model.runs[0] == (0.5, ["a", "b", "c", "d"])


async def test_as_many_batches_run_at_once_as_there_are_workers() -> None:
    model = FakeModel()
    async with batching(model, workers=2, max_items=1) as batcher:
        batcher.enqueue(["a", "b", "c"])
        await asyncio.sleep(0.5)
        assert [run.items for run in model.runs] == [["a"], ["b"]]
    assert [run.at_s for run in model.runs] == [0.0, 0.0, 1.0]


# Closing


async def test_closing_runs_what_was_accepted_and_refuses_newcomers() -> None:
    model = FakeModel()

    async def come_late(batcher: WordBatcher) -> None:
        await asyncio.sleep(1.5)
        with pytest.raises(ShuttingDown):
            batcher.enqueue(["late"])

    async with batching(model, max_items=1) as batcher:
        futures = batcher.enqueue(["a", "b", "c"])
        late = asyncio.create_task(come_late(batcher))
    assert [future.result() for future in futures] == ["a!", "b!", "c!"]
    assert asyncio.get_running_loop().time() == 3.0
    await late
    assert model.items == ["a", "b", "c"]


async def test_closing_does_not_wait_for_callers_that_left() -> None:
    model = FakeModel()
    async with batching(model) as batcher:
        batcher.enqueue(["busy"])
        await asyncio.sleep(0.5)
        (left,) = batcher.enqueue(["left"])
        left.cancel()
    assert asyncio.get_running_loop().time() == 1.0
    assert model.items == ["busy"]


async def test_closing_does_not_wait_for_company_for_callers_that_left() -> None:
    async with batching(FakeModel(), wait_s=60.0) as batcher:
        (left,) = batcher.enqueue(["left"])
        await asyncio.sleep(0.5)
        left.cancel()
    assert asyncio.get_running_loop().time() == 0.5


async def test_closing_an_idle_batcher_ends_at_once() -> None:
    async with batching(FakeModel()) as batcher:
        await ends(batcher.enqueue(["a"]))
    async with batching(FakeModel()):
        pass
    assert asyncio.get_running_loop().time() == 1.0


# Events


async def test_events_tell_what_ran_and_how_it_ended() -> None:
    events = list[BatchEvent]()
    model = FakeModel()
    async with batching(model, observe=events.append) as batcher:
        batcher.enqueue(["busy"])
        await asyncio.sleep(0.25)
        failing = batcher.enqueue(["aa", "bbb"], Lane.BULK)
        await asyncio.sleep(1)
        model.failure = failure = ModelFailure("gone")
        await ends(failing)
    assert events == [
        BatchStarted(Lane.INTERACTIVE, items=1, tokens=4, padded_tokens=4, waits_s=(0.0,)),
        BatchFinished(Lane.INTERACTIVE, items=1, padded_tokens=4, run_s=1.0, error=None, failed=0),
        BatchStarted(Lane.BULK, items=2, tokens=5, padded_tokens=6, waits_s=(0.75, 0.75)),
        BatchFinished(Lane.BULK, items=2, padded_tokens=6, run_s=1.0, error=failure, failed=2),
    ]


async def test_each_caller_hears_when_its_items_waited_and_ran() -> None:
    heard: dict[str, list[Ran]] = {"one": [], "other": []}
    async with batching(FakeModel()) as batcher:
        batcher.enqueue(["busy"])
        await asyncio.sleep(0.25)
        batcher.enqueue(["a", "b"], ran=heard["one"].append)
        await asyncio.sleep(0.25)
        batcher.enqueue(["c"], ran=heard["other"].append)
    assert heard == {"one": [Ran(0.25, 1.0, 2.0, items=3)] * 2, "other": [Ran(0.5, 1.0, 2.0, items=3)]}


@pytest.mark.parametrize(
    ("items", "within_s", "reason"),
    [
        (["b"] * 10, None, RefusalReason.ITEMS),
        (words(*[90] * 6), None, RefusalReason.TOKENS),
        (["b"], 0.5, RefusalReason.WAIT),
    ],
)
async def test_a_refusal_tells_how_many_it_concerns_and_which_bound_they_met(
    items: list[str], within_s: float | None, reason: RefusalReason
) -> None:
    events = list[BatchEvent]()
    async with batching(FakeModel(), observe=events.append) as batcher:
        batcher.enqueue(["busy"])
        await asyncio.sleep(0.5)
        batcher.enqueue(words(90), Lane.BULK)
        with pytest.raises(Overloaded):
            batcher.enqueue(items, Lane.BULK, within_s=within_s)
    assert [event for event in events if isinstance(event, Refused)] == [Refused(Lane.BULK, len(items), reason)]


# Storms


@dataclass(frozen=True)
class Visit:
    """A caller: when it comes, with what, and when it loses patience."""

    after_s: float
    sizes: list[int]
    lane: Lane
    patience_s: float | None


moments = st.integers(0, 12).map(lambda quarters: quarters / 4)
visits = st.builds(
    Visit,
    after_s=moments,
    sizes=st.lists(st.integers(4, 60), min_size=1, max_size=5),
    lane=st.sampled_from(Lane),
    patience_s=st.none() | moments,
)


class Moody(FakeModel):
    """A model that fails or loses a row in some of its runs."""

    def __init__(self, failing: set[int], losing: set[int]) -> None:
        super().__init__(takes_s=0.5, token_s=0.001)
        self.failing, self.losing = failing, losing

    async def run(self, items: Sequence[str]) -> list[str]:
        number = len(self.runs)
        answers = await super().run(items)
        if number in self.failing:
            raise ValueError("in a bad mood")
        return answers[1:] if number in self.losing else answers


@given(
    storm=st.lists(visits, min_size=1, max_size=25),
    failing=st.sets(st.integers(0, 15), max_size=4),
    losing=st.sets(st.integers(0, 15), max_size=4),
    workers=st.integers(1, 3),
    wait_s=st.sampled_from([0.0, 0.3]),
)
@settings(deadline=None, max_examples=60)
async def test_no_storm_loses_or_doubles_an_item(
    storm: list[Visit], failing: set[int], losing: set[int], workers: int, wait_s: float
) -> None:
    model = Moody(failing, losing)
    accepted: dict[str, asyncio.Future[str]] = {}
    left: set[str] = set()

    async def visit(number: int, visitor: Visit) -> None:
        await asyncio.sleep(visitor.after_s)
        named = [f"{number:02}{index}".ljust(size, ".") for index, size in enumerate(visitor.sizes)]
        try:
            futures = batcher.enqueue(named, visitor.lane)
        except Overloaded:
            return
        accepted.update(zip(named, futures, strict=True))
        await asyncio.wait(futures, timeout=visitor.patience_s)
        left.update(item for item, future in zip(named, futures, strict=True) if future.cancel())

    async with batching(model, workers=workers, wait_s=wait_s) as batcher:
        await asyncio.gather(*(visit(number, visitor) for number, visitor in enumerate(storm)))
    broken = [number in failing | losing for number in range(len(model.runs))]
    runs_of = {
        item: [number for number, run in enumerate(model.runs) if item in run.items] for item in set(model.items)
    }

    assert (batcher.waiting_items, batcher.waiting_tokens) == (0, 0)
    for item, (first, *again) in runs_of.items():
        assert [model.runs[number].items for number in again] in ([], [[item]])
        assert broken[first] or not again
    assert accepted.keys() - left <= runs_of.keys() <= accepted.keys()
    for item, future in accepted.items():
        if item in left:
            assert future.cancelled()
        elif all(broken[number] for number in runs_of[item]):
            assert isinstance(future.exception(), ModelFailure)
        else:
            assert future.result() == f"{item}!"


async def test_items_that_would_start_too_late_are_refused_at_the_door() -> None:
    async with batching(FakeModel()) as batcher:
        batcher.enqueue(["a" * 50])
        await asyncio.sleep(0)
        batcher.enqueue(["b" * 100, "c" * 100])
        wait_s = batcher.predicted_wait_s(Lane.INTERACTIVE)
        assert wait_s > 1
        with pytest.raises(Overloaded) as refusal:
            batcher.enqueue(["d"], within_s=wait_s - 0.1)
        assert refusal.value.retry_after_s == pytest.approx(wait_s)
        assert len(batcher.enqueue(["d"], within_s=wait_s + 0.1)) == 1


async def test_nobody_in_a_chat_is_accepted_to_wait_longer_than_the_policy_says() -> None:
    async with batching(FakeModel(), max_wait_s=1.5, max_waiting_items=100) as batcher:
        batcher.enqueue(["a" * 50])
        await asyncio.sleep(0)
        for lane in Lane:
            batcher.enqueue(["b" * 100, "c" * 100], lane)
        assert batcher.predicted_wait_s(Lane.INTERACTIVE) > 1.5
        with pytest.raises(Overloaded):
            batcher.enqueue(["d"])
        with pytest.raises(Overloaded):
            batcher.admit(1, Lane.INTERACTIVE)
        batcher.admit(0, Lane.INTERACTIVE)  # asks for nothing
        batcher.enqueue(["d"], Lane.BULK)


async def test_the_wait_of_one_lane_counts_the_other_no_more_than_its_share() -> None:
    async with batching(FakeModel(), bulk_share=0.25) as batcher:
        batcher.enqueue(["a"])
        await asyncio.sleep(0)
        batcher.enqueue(["b" * 100] * 4, Lane.BULK)
        assert batcher.predicted_wait_s(Lane.INTERACTIVE) == 0
        batcher.enqueue(["c" * 30])
        alone_s = known_cost().predict_s(30, batches=0.3)
        assert batcher.predicted_wait_s(Lane.INTERACTIVE) == pytest.approx(alone_s / 0.75, rel=0.2)


async def test_a_run_that_does_not_end_shows_in_its_age() -> None:
    async with batching(FakeModel()) as batcher:
        assert batcher.longest_run_s == 0
        batcher.enqueue(["a"])
        await asyncio.sleep(0.5)
        assert batcher.longest_run_s == pytest.approx(0.5)
