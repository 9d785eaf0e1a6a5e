"""What holds for every ledger of rate limits, whether of one process or shared through Redis."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from app.cache.redis_client import open_client
from app.security.limits import Ledger, LocalLedger, RateLimit, Verdict
from app.security.shared import CONNECTIONS, SharedLedger
from tests.redis_server import RedisServer, running_redis

pytestmark = pytest.mark.anyio

SECOND = RateLimit("second", 50)
HOUR = RateLimit("hour", 60)
DAY = RateLimit("day", 100)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


class _NeverAsked:
    async def take(self, *_: object) -> Verdict:
        raise AssertionError("Redis did not answer")


def _shared(redis: RedisServer) -> SharedLedger:
    redis.admin.flushall()
    client = open_client(redis.url, connections=CONNECTIONS, timeout_s=30)
    return SharedLedger(client, fallback=_NeverAsked(), prefix="test:limit:", timeout_s=30)


@pytest.fixture(params=["local", "shared"])
async def ledger(request: pytest.FixtureRequest, redis: RedisServer) -> AsyncIterator[Ledger]:
    if request.param == "local":
        yield LocalLedger()
        return
    async with _shared(redis) as ledger:
        yield ledger


async def _admitted(ledger: Ledger, texts: int, *limits: RateLimit, caller: str = "key:shop") -> bool:
    return (await ledger.take(caller, limits, texts)).wait_s == 0


async def test_as_many_texts_as_the_limit_says_are_admitted(ledger: Ledger) -> None:
    assert [await _admitted(ledger, texts, HOUR) for texts in (1, 59, 1)] == [True, True, False]


async def test_small_requests_add_up_to_the_limit(ledger: Ledger) -> None:
    limit = RateLimit("day", 70)
    assert [await _admitted(ledger, 1, limit) for _ in range(71)] == [True] * 70 + [False]


async def test_what_is_refused_is_charged_nowhere(ledger: Ledger) -> None:
    assert await _admitted(ledger, 50, HOUR, DAY)
    assert not await _admitted(ledger, 20, HOUR, DAY)  # of the hour
    assert not await _admitted(ledger, 51, RateLimit("hour", 1_000), DAY)  # of the day
    verdict = await ledger.take("key:shop", (HOUR, DAY), 10)
    assert verdict.wait_s == 0
    assert [HOUR.remaining(verdict.backlogs_s[0]), DAY.remaining(verdict.backlogs_s[1])] == [0, 40]


async def test_a_refusal_says_how_long_to_wait_and_what_is_left(ledger: Ledger) -> None:
    await ledger.take("key:shop", (HOUR,), 50)
    verdict = await ledger.take("key:shop", (HOUR,), 25)
    assert verdict.wait_s == pytest.approx(15 * 60, abs=10)
    assert verdict.backlogs_s[0] == pytest.approx(50 * 60, abs=10)
    assert HOUR.remaining(verdict.backlogs_s[0]) == 10


async def test_who_waits_is_admitted(ledger: Ledger) -> None:
    assert await _admitted(ledger, 50, SECOND)
    wait_s = (await ledger.take("key:shop", (SECOND,), 10)).wait_s
    assert 0 < wait_s <= 0.2
    await asyncio.sleep(wait_s)
    assert await _admitted(ledger, 10, SECOND)


async def test_callers_are_charged_one_by_one(ledger: Ledger) -> None:
    assert await _admitted(ledger, 60, HOUR)
    assert await _admitted(ledger, 60, HOUR, caller="address:::1/64")
    assert await _admitted(ledger, 60, HOUR, caller="key:{shop}:hour")
    assert not await _admitted(ledger, 1, HOUR)


async def test_of_all_who_come_at_once_no_more_are_admitted_than_the_limit_says(ledger: Ledger) -> None:
    verdicts = await asyncio.gather(*(_admitted(ledger, 7, DAY) for _ in range(40)))
    assert verdicts.count(True) == 14


async def test_what_is_forgotten_by_redis_had_been_regained(redis: RedisServer) -> None:
    async with _shared(redis) as ledger:
        await ledger.take("key:shop", (SECOND, DAY), 25)
        kept_ms = sorted(int(str(redis.admin.pttl(key))) for key in redis.admin.scan_iter())
    assert kept_ms == [pytest.approx(500, abs=200), pytest.approx(86_400_000 / 4, abs=10_000)]
