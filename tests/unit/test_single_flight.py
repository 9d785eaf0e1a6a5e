import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from app.inference.single_flight import SingleFlight
from tests.virtual_time import VirtualTimeLoop

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@dataclass
class Tower:
    """Asks for keys, and lands the computations this starts when the test says so."""

    flights: SingleFlight[str, int] = field(default_factory=SingleFlight)
    started: list[str] = field(default_factory=list)
    futures: list[asyncio.Future[int]] = field(default_factory=list)
    joined: list[asyncio.Future[int]] = field(default_factory=list)

    async def ask(self, *keys: str) -> list[int | Exception]:
        def start(indexes: Sequence[int]) -> list[asyncio.Future[int]]:
            assert indexes, "nothing to start"
            self.started += [keys[index] for index in indexes]
            futures = [asyncio.get_running_loop().create_future() for _ in indexes]
            self.futures += futures
            return futures

        return await self.flights.get_many(keys, start, self.joined.extend)

    async def calls(self, *requests: Sequence[str]) -> list[asyncio.Task[list[int | Exception]]]:
        """Return a waiting caller for each of `requests`."""
        callers = [asyncio.create_task(self.ask(*keys)) for keys in requests]
        await asyncio.sleep(0.1)
        return callers


async def leave(caller: asyncio.Task[list[int | Exception]]) -> None:
    caller.cancel()
    await asyncio.wait([caller])
    assert caller.cancelled()


async def test_concurrent_callers_share_one_computation() -> None:
    tower = Tower()
    callers = await tower.calls("a", "a", "a")
    assert tower.started == ["a"]
    assert tower.joined == tower.futures * 2
    tower.futures[0].set_result(7)
    assert await asyncio.gather(*callers) == [[7], [7], [7]]


async def test_a_caller_starts_only_what_is_not_in_flight_and_gets_all_in_its_order() -> None:
    tower = Tower()
    first, second = await tower.calls("ab", "cbd")
    assert tower.started == ["a", "b", "c", "d"]
    for value, future in enumerate(tower.futures):
        future.set_result(value)
    assert await first == [0, 1]
    assert await second == [2, 1, 3]


async def test_a_cancelled_first_caller_does_not_disturb_its_followers() -> None:
    tower = Tower()
    first, *followers = await tower.calls("a", "a", "a")
    await leave(first)
    tower.futures[0].set_result(7)
    assert await asyncio.gather(*followers) == [[7], [7]]


async def test_a_cancelled_follower_does_not_disturb_the_first_caller() -> None:
    tower = Tower()
    first, follower = await tower.calls("a", "a")
    await leave(follower)
    tower.futures[0].set_result(7)
    assert await first == [7]


async def test_a_computation_that_nobody_waits_for_is_cancelled() -> None:
    tower = Tower()
    first, follower = await tower.calls("a", "ab")
    await leave(first)
    assert not tower.futures[0].cancelled()
    await leave(follower)
    assert [future.cancelled() for future in tower.futures] == [True, True]


async def test_a_caller_that_leaves_takes_along_only_what_nobody_else_waits_for() -> None:
    tower = Tower()
    leaver, stayer = await tower.calls("ab", "b")
    await leave(leaver)
    assert [future.cancelled() for future in tower.futures] == [True, False]
    tower.futures[1].set_result(7)
    assert await stayer == [7]


async def test_an_error_reaches_every_caller_beside_the_values_of_other_keys() -> None:
    tower = Tower()
    error = ValueError("no")
    callers = await tower.calls("ab", "a")
    tower.futures[0].set_exception(error)
    tower.futures[1].set_result(7)
    assert await asyncio.gather(*callers) == [[error, 7], [error]]


async def test_a_key_flies_again_once_it_has_landed() -> None:
    tower = Tower()
    for value in (1, 2):
        (caller,) = await tower.calls("a")
        tower.futures[-1].set_result(value)
        assert await caller == [value]
    assert tower.started == ["a", "a"]


async def test_a_key_flies_again_after_an_error() -> None:
    tower = Tower()
    (caller,) = await tower.calls("a")
    tower.futures[0].set_exception(ValueError("no"))
    await caller
    (caller,) = await tower.calls("a")
    tower.futures[1].set_result(7)
    assert await caller == [7]


async def test_a_key_flies_again_after_all_its_callers_left() -> None:
    tower = Tower()
    (caller,) = await tower.calls("a")
    await leave(caller)
    (caller,) = await tower.calls("a")
    tower.futures[1].set_result(7)
    assert await caller == [7]


async def test_a_slow_caller_of_a_landed_flight_does_not_disturb_the_next_flight() -> None:
    tower = Tower()
    slow, quick = await tower.calls("ab", "a")  # slow goes on to wait for b
    tower.futures[0].set_result(1)
    assert await quick == [1]
    (later,) = await tower.calls("a")
    tower.futures[1].set_result(2)
    assert await slow == [1, 2]
    assert not tower.futures[2].cancelled()
    tower.futures[2].set_result(3)
    assert await later == [3]
    assert tower.started == ["a", "b", "a"]


async def test_a_start_that_raises_leaves_nothing_behind() -> None:
    tower = Tower()

    def refuse(_: Sequence[int]) -> list[asyncio.Future[int]]:
        raise ValueError("full")

    with pytest.raises(ValueError, match="full"):
        await tower.flights.get_many(["a", "b"], refuse)
    (caller,) = await tower.calls("ab")
    assert tower.started == ["a", "b"]
    for future in tower.futures:
        future.set_result(7)
    assert await caller == [7, 7]


async def test_no_keys_start_nothing() -> None:
    tower = Tower()
    assert await tower.ask() == []
    assert tower.started == []


async def test_a_key_that_failed_can_fly_again_though_others_of_its_caller_still_do() -> None:
    flight: SingleFlight[str, str] = SingleFlight()
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[str]] = [loop.create_future(), loop.create_future()]
    caller = asyncio.create_task(flight.get_many(["a", "b"], lambda _: futures))
    await asyncio.sleep(0)
    futures[0].set_exception(RuntimeError("no"))
    await asyncio.sleep(0.1)
    again = loop.create_future()
    again.set_result("yes")
    assert await flight.get_many(["a"], lambda _: [again]) == ["yes"]
    futures[1].set_result("b")
    assert [str(outcome) for outcome in await caller] == ["no", "b"]


async def test_a_caller_in_the_tick_of_a_cancellation_begins_anew() -> None:
    flight: SingleFlight[str, str] = SingleFlight()
    loop = asyncio.get_running_loop()
    abandoned: asyncio.Future[str] = loop.create_future()
    leaver = asyncio.create_task(flight.get_many(["a"], lambda _: [abandoned]))
    await asyncio.sleep(0)

    def start(_: object) -> list[asyncio.Future[str]]:
        assert abandoned.cancelled()
        future: asyncio.Future[str] = loop.create_future()
        loop.call_later(0.1, future.set_result, "yes")
        return [future]

    leaver.cancel()
    newcomer = asyncio.create_task(flight.get_many(["a"], start))
    assert await newcomer == ["yes"]
    assert leaver.cancelled()
