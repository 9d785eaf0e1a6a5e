import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from app.cache.breaker import Breaker, State
from tests.virtual_time import VirtualTimeLoop

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Callable[[], asyncio.AbstractEventLoop]]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@dataclass
class _Guarded:
    """Something that is well or not, and notes when it was probed and what the breaker told."""

    wrong: str | None = None
    takes_s: float = 0.0
    raises: bool = False
    probed_at_s: list[float] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    told: list[tuple[State, State, str | None]] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def probe(self) -> str | None:
        self.probed_at_s.append(asyncio.get_running_loop().time())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.takes_s)
        self.at_once -= 1
        if self.raises:
            raise ZeroDivisionError
        return self.wrong

    def breaker(self, **changes: Any) -> Breaker:
        def observe(before: State, after: State, reason: str | None) -> None:
            self.told.append((before, after, reason))
            self.closed.set() if after is State.CLOSED else self.closed.clear()

        return Breaker(self.probe, observe=observe, **{"failures": 3, "first_s": 1.0, "longest_s": 8.0, **changes})


def _fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.failed("down")


async def test_it_opens_after_failures_in_a_row() -> None:
    breaker = _Guarded().breaker()
    _fail(breaker, 2)
    assert breaker.closed
    breaker.failed("down")
    assert breaker.state is State.OPEN
    await breaker.aclose()


async def test_a_success_in_between_starts_the_row_anew() -> None:
    breaker = _Guarded().breaker()
    for _ in range(5):
        _fail(breaker, 2)
        breaker.succeeded()
    assert breaker.closed


async def test_probes_come_ever_more_rarely_down_to_a_bound() -> None:
    guarded = _Guarded(wrong="down")
    breaker = guarded.breaker()
    _fail(breaker, 3)
    await asyncio.sleep(32)
    assert guarded.probed_at_s == [1, 3, 7, 15, 23, 31]
    await breaker.aclose()


async def test_a_probe_that_succeeds_closes_it() -> None:
    guarded = _Guarded(wrong="down")
    breaker = guarded.breaker()
    _fail(breaker, 3)
    await asyncio.sleep(2)
    guarded.wrong = None
    await asyncio.sleep(1.5)
    assert breaker.closed
    await asyncio.sleep(100)
    assert guarded.probed_at_s == [1, 3]


async def test_while_a_probe_is_under_way_it_is_half_open_and_no_other_begins() -> None:
    guarded = _Guarded(wrong="down", takes_s=5)
    breaker = guarded.breaker()
    _fail(breaker, 3)
    await asyncio.sleep(2)
    assert breaker.state is State.HALF_OPEN
    _fail(breaker, 10)
    await asyncio.sleep(100)
    assert guarded.most_at_once == 1
    assert guarded.probed_at_s[:4] == [1, 8, 17, 30]  # each a delay after the end of the one before
    await breaker.aclose()


async def test_it_tells_each_change_once_and_why() -> None:
    guarded = _Guarded(wrong="still down")
    breaker = guarded.breaker()
    _fail(breaker, 9)
    await asyncio.sleep(2)
    guarded.wrong = None
    await asyncio.sleep(2)
    assert guarded.told == [
        (State.CLOSED, State.OPEN, "down"),
        (State.OPEN, State.HALF_OPEN, None),
        (State.HALF_OPEN, State.OPEN, "still down"),
        (State.OPEN, State.HALF_OPEN, None),
        (State.HALF_OPEN, State.CLOSED, None),
    ]


async def test_after_closing_it_takes_as_many_failures_as_before() -> None:
    guarded = _Guarded()
    breaker = guarded.breaker()
    _fail(breaker, 3)
    await asyncio.sleep(1.5)
    _fail(breaker, 2)
    assert breaker.closed
    breaker.failed("down again")
    assert not breaker.closed
    await breaker.aclose()


async def test_what_fails_again_soon_is_not_probed_more_often() -> None:
    guarded = _Guarded()
    breaker = guarded.breaker()
    for _ in range(5):
        _fail(breaker, 3)
        await guarded.closed.wait()
    assert guarded.probed_at_s == [1, 3, 7, 15, 23]


async def test_after_a_good_while_probes_begin_anew() -> None:
    guarded = _Guarded()
    breaker = guarded.breaker()
    _fail(breaker, 3)
    await asyncio.sleep(100)
    _fail(breaker, 3)
    await asyncio.sleep(100)
    assert guarded.probed_at_s == [1, 101]


async def test_a_check_at_the_start_opens_it_at_once() -> None:
    guarded = _Guarded(wrong="down")
    breaker = guarded.breaker()
    await breaker.check()
    assert breaker.state is State.OPEN
    assert guarded.told == [(State.CLOSED, State.OPEN, "down")]
    await breaker.aclose()


async def test_a_check_that_finds_nothing_wrong_changes_nothing() -> None:
    guarded = _Guarded()
    breaker = guarded.breaker()
    await breaker.check()
    assert breaker.closed
    assert guarded.told == []


async def test_a_probe_that_raises_has_failed_and_the_next_one_follows() -> None:
    guarded = _Guarded(raises=True)
    breaker = guarded.breaker()
    _fail(breaker, 3)
    await asyncio.sleep(4)
    assert guarded.told[2] == (State.HALF_OPEN, State.OPEN, "ZeroDivisionError")
    guarded.raises = False
    await asyncio.sleep(4)
    assert breaker.closed


async def test_closed_for_good_it_probes_no_more() -> None:
    guarded = _Guarded(wrong="down")
    breaker = guarded.breaker()
    _fail(breaker, 3)
    await asyncio.sleep(2)
    await breaker.aclose()
    await asyncio.sleep(100)
    assert guarded.probed_at_s == [1]
