"""Rate limits shared through a Redis that comes and goes, in time that the test owns."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.security.limits import LocalLedger, RateLimit
from app.security.shared import SharedLedger
from tests.virtual_time import VirtualTimeLoop

pytestmark = pytest.mark.anyio

LIMITS = (RateLimit("day", 10),)


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class Fickle:
    """In the place of Redis: admits everything, after `takes_s`, or raises `failure`."""

    def __init__(self) -> None:
        self.takes_s = 0.001
        self.failure: Exception | None = None
        self.asked = 0

    async def connect(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    async def run(self, _: str, keys: Sequence[str], __: Sequence[float]) -> Sequence[int]:
        self.asked += 1
        await asyncio.sleep(self.takes_s)
        if self.failure is not None:
            raise self.failure
        return [0 for _ in (None, *keys)]


def _ledger(redis: Fickle) -> SharedLedger:
    fallback = LocalLedger(asyncio.get_running_loop().time)
    return SharedLedger(redis, fallback, prefix="test:", timeout_s=0.05)


async def _admitted(ledger: SharedLedger, texts: int) -> bool:
    return (await ledger.take("key:shop", LIMITS, texts)).wait_s == 0


@pytest.mark.parametrize("failure", [ConnectionError(), TimeoutError(), ValueError("garbage"), EOFError()])
async def test_without_redis_the_process_limits_by_itself(failure: Exception) -> None:
    redis = Fickle()
    redis.failure = failure
    ledger = _ledger(redis)
    assert [await _admitted(ledger, 6) for _ in range(2)] == [True, False]


async def test_a_redis_that_hangs_holds_nobody_up_longer_than_the_timeout() -> None:
    redis = Fickle()
    redis.takes_s = 1e9
    ledger = _ledger(redis)
    loop = asyncio.get_running_loop()
    longest_s = 0.0
    for _ in range(100):
        began = loop.time()
        await ledger.take("key:shop", LIMITS, 1)
        longest_s = max(longest_s, loop.time() - began)
        await asyncio.sleep(0.01)
    assert 0 < longest_s <= 0.05 + 1e-9
    assert redis.asked <= 2


async def test_while_redis_is_away_one_request_a_second_asks_for_it() -> None:
    redis = Fickle()
    redis.failure = ConnectionError()
    ledger = _ledger(redis)
    await _admitted(ledger, 1)
    for second in range(1, 4):
        await asyncio.sleep(1)
        await asyncio.gather(*(_admitted(ledger, 1) for _ in range(50)))
        assert redis.asked == 1 + second


async def test_an_outage_and_its_end_are_a_line_each() -> None:
    redis = Fickle()
    redis.failure = ConnectionError("redis://:password@host")
    ledger = _ledger(redis)
    with capture_logs() as lines:
        for _ in range(5):
            await asyncio.gather(*(_admitted(ledger, 1) for _ in range(20)))
            await asyncio.sleep(1)
        redis.failure = None
        await asyncio.gather(*(_admitted(ledger, 1) for _ in range(20)))
        await _admitted(ledger, 1)
    assert [line["log_level"] for line in lines] == ["warning", "info"]
    assert "password" not in str(lines)


async def test_redis_decides_again_when_it_is_back() -> None:
    redis = Fickle()
    redis.failure = ConnectionError()
    ledger = _ledger(redis)
    assert await _admitted(ledger, 10)
    assert not await _admitted(ledger, 10)
    redis.failure = None
    await asyncio.sleep(1)
    assert [await _admitted(ledger, 10) for _ in range(3)] == [True] * 3
