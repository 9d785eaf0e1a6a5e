import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.security.limits import LocalLedger, RateLimit, Verdict, parse_rate_limits
from tests.virtual_time import VirtualTimeLoop

pytestmark = pytest.mark.anyio

MINUTE = RateLimit("minute", 60)
DAY = RateLimit("day", 100)


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class Customer:
    """Takes texts from a ledger whose clock is the loop's."""

    def __init__(self, *limits: RateLimit, ledger: LocalLedger | None = None, name: str = "shop") -> None:
        self.ledger = ledger or LocalLedger(asyncio.get_running_loop().time)
        self._limits = limits
        self._name = name

    async def take(self, texts: int) -> Verdict:
        return await self.ledger.take(self._name, self._limits, texts)

    async def admitted(self, texts: int) -> bool:
        return (await self.take(texts)).wait_s == 0

    async def remaining(self) -> list[int]:
        """Return what is left of each limit, which asking for too much tells."""
        verdict = await self.take(max(limit.texts for limit in self._limits) + 1)
        return [limit.remaining(backlog) for limit, backlog in zip(self._limits, verdict.backlogs_s, strict=True)]


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("", ()),
        ("  ", ()),
        ("5/second", (RateLimit("second", 5),)),
        (" 60/minute ,100/day", (MINUTE, DAY)),
        ("1000000/hour", (RateLimit("hour", 1_000_000),)),
    ],
)
def test_limits_are_read_from_text(text: str, limits: tuple[RateLimit, ...]) -> None:
    assert parse_rate_limits(text) == limits


@pytest.mark.parametrize(
    "text",
    [
        "60",
        "60/",
        "/minute",
        "60/min",
        "60/Minute",
        "0/minute",
        "-1/minute",
        "1.5/minute",
        "６０/minute",
        "1/day,",
        "a/day",
    ],
)
def test_what_is_no_limit_is_refused_with_the_form_of_one(text: str) -> None:
    with pytest.raises(ValueError, match="is no rate limit: write TEXTS/WINDOW"):
        parse_rate_limits(text)


def test_two_limits_for_one_window_are_refused() -> None:
    with pytest.raises(ValueError, match="two rate limits for one window"):
        parse_rate_limits("60/minute, 30/minute")


async def test_as_many_texts_as_the_limit_says_may_come_at_once() -> None:
    shop = Customer(MINUTE)
    assert await shop.admitted(60)
    assert not await shop.admitted(1)


async def test_it_makes_no_difference_in_how_many_requests_they_come() -> None:
    shop = Customer(RateLimit("second", 7), RateLimit("minute", 7))
    assert [await shop.admitted(1) for _ in range(8)] == [True] * 7 + [False]


async def test_texts_are_regained_evenly() -> None:
    shop = Customer(MINUTE)
    await shop.take(60)
    await asyncio.sleep(10)
    assert not await shop.admitted(11)
    assert await shop.admitted(10)
    assert not await shop.admitted(1)


async def test_no_more_is_saved_than_the_limit_says() -> None:
    shop = Customer(MINUTE)
    await shop.take(60)
    await asyncio.sleep(3_600)
    assert not await shop.admitted(61)
    assert await shop.admitted(60)


async def test_who_waits_as_long_as_he_is_told_is_admitted_and_not_before() -> None:
    shop = Customer(MINUTE)
    await shop.take(60)
    wait_s = (await shop.take(12)).wait_s
    assert wait_s == pytest.approx(12)
    await asyncio.sleep(wait_s - 0.01)
    assert not await shop.admitted(12)
    await asyncio.sleep(0.01)
    assert await shop.admitted(12)


async def test_what_is_refused_is_charged_for_no_text() -> None:
    shop = Customer(MINUTE)
    await shop.take(50)
    for _ in range(5):
        assert not await shop.admitted(11)
    assert await shop.remaining() == [10]
    assert await shop.admitted(10)


async def test_what_one_limit_refuses_no_other_is_charged_for() -> None:
    shop = Customer(MINUTE, DAY)
    assert await shop.admitted(60)
    assert not await shop.admitted(50)  # of the minute
    assert await shop.remaining() == [0, 40]
    await asyncio.sleep(60)
    assert not await shop.admitted(45)  # of the day
    assert await shop.remaining() == [60, 40]
    assert await shop.admitted(40)
    assert await shop.remaining() == [20, 0]


async def test_the_longest_wait_of_all_limits_is_told() -> None:
    shop = Customer(MINUTE, DAY)
    await shop.take(60)
    await asyncio.sleep(60)
    await shop.take(40)
    verdict = await shop.take(30)
    assert verdict.wait_s == pytest.approx(30 * 864 - 60, abs=1)


async def test_what_is_left_is_told_with_each_answer() -> None:
    shop = Customer(MINUTE)
    verdict = await shop.take(15)
    assert verdict.wait_s == 0
    assert [MINUTE.remaining(backlog) for backlog in verdict.backlogs_s] == [45]
    assert verdict.backlogs_s[0] == pytest.approx(15)


async def test_one_customer_takes_nothing_from_another() -> None:
    shop = Customer(MINUTE)
    bank = Customer(MINUTE, ledger=shop.ledger, name="bank")
    await shop.take(60)
    assert await bank.admitted(60)


async def test_a_limit_that_was_raised_admits_more_at_once() -> None:
    shop = Customer(MINUTE)
    await shop.take(60)
    raised = Customer(RateLimit("minute", 120), ledger=shop.ledger)
    await asyncio.sleep(30)
    assert await raised.admitted(60)


async def test_those_who_came_last_are_remembered_when_there_are_too_many() -> None:
    ledger = LocalLedger(asyncio.get_running_loop().time)
    for number in range(70_000):
        await ledger.take(f"address:{number}", [DAY], 100)
    assert not await Customer(DAY, ledger=ledger, name="address:69999").admitted(1)
    assert await Customer(DAY, ledger=ledger, name="address:0").admitted(100)


@settings(max_examples=100, deadline=None)
@given(requests=st.lists(st.tuples(st.floats(0, 20), st.integers(1, 60)), max_size=40))
async def test_in_no_stretch_of_time_more_is_admitted_than_the_limit_and_what_is_regained(
    requests: list[tuple[float, int]],
) -> None:
    shop = Customer(MINUTE)
    now, admitted = 0.0, [(0.0, 0)]
    for gap_s, texts in requests:
        await asyncio.sleep(gap_s)
        now += gap_s
        if await shop.admitted(texts):
            admitted.append((now, texts))
    for first, (since, _) in enumerate(admitted):
        total = 0
        for at, texts in admitted[first:]:
            total += texts
            assert total <= 60 + (at - since) + 0.01
