import random
import time
import tracemalloc

import pytest

from app.cache.memory import ENTRY_BYTES, MemoryCache
from app.domain.labels import LABELS, Heads
from app.domain.sentiment import Sentiment

pytestmark = pytest.mark.anyio

GOOD = Sentiment({"negative": 0.1, "positive": 0.9}, truncated=False, emotions={"angry": 0.2, "happy": 0.8})
BAD = Sentiment({"negative": 0.8, "positive": 0.2}, truncated=True, certain=False)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def room_for(entries: int, *, ttl_s: float = 3_600) -> MemoryCache:
    return MemoryCache(max_bytes=entries * ENTRY_BYTES, ttl_s=ttl_s)


async def test_what_was_put_is_found_and_nothing_else() -> None:
    cache = room_for(9)
    cache.put_many({b"good": GOOD, b"bad": BAD})
    assert await cache.get_many([b"bad", b"none", b"good"]) == {b"good": GOOD, b"bad": BAD}


async def test_the_latest_answer_counts() -> None:
    cache = room_for(9)
    cache.put_many({b"key": GOOD})
    cache.put_many({b"key": BAD})
    assert await cache.get_many([b"key"]) == {b"key": BAD}


async def test_answers_are_forgotten_after_their_time() -> None:
    short, long = room_for(9, ttl_s=0.01), room_for(9)
    for cache in (short, long):
        cache.put_many({b"key": GOOD})
    time.sleep(0.02)  # noqa: ASYNC251 (the cache's clock is the machine's)
    assert await short.get_many([b"key"]) == {}
    assert await long.get_many([b"key"]) == {b"key": GOOD}


async def test_reading_an_answer_does_not_prolong_it() -> None:
    cache = room_for(9, ttl_s=0.03)
    cache.put_many({b"key": GOOD})
    until = time.monotonic() + 0.04
    while time.monotonic() < until:
        await cache.get_many([b"key"])
        time.sleep(0.01)  # noqa: ASYNC251 (the cache's clock is the machine's)
    assert await cache.get_many([b"key"]) == {}


async def test_a_full_cache_forgets_what_was_used_least_recently() -> None:
    cache = room_for(2)
    cache.put_many({b"old": GOOD, b"new": GOOD})
    await cache.get_many([b"old"])
    cache.put_many({b"newest": BAD})
    assert len(cache) == 2
    assert set(await cache.get_many([b"old", b"new", b"newest"])) == {b"old", b"newest"}


async def test_more_answers_than_there_is_room_for_do_no_harm() -> None:
    cache = room_for(3)
    cache.put_many({bytes([number]): GOOD for number in range(100)})
    assert len(cache) == 3


@pytest.mark.parametrize("max_bytes", [0, ENTRY_BYTES - 1])
async def test_a_cache_without_room_remembers_nothing(max_bytes: int) -> None:
    cache = MemoryCache(max_bytes=max_bytes, ttl_s=3_600)
    cache.put_many({b"key": GOOD})
    assert await cache.get_many([b"key"]) == {}
    assert len(cache) == 0


async def test_an_entry_takes_no_more_memory_than_it_is_counted_as() -> None:
    heads = Heads(LABELS, ("angry", "fear", "happy", "sad", "surprise", "neutral"))
    cache = room_for(20_000)
    tracemalloc.start()
    for number in range(20_000):
        polarity, emotions = heads.name([random.random() for _ in heads.columns])  # noqa: S311 (no secret)
        cache.put_many({number.to_bytes(16): Sentiment(polarity, truncated=False, emotions=emotions)})
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(cache) == 20_000
    assert taken <= 20_000 * ENTRY_BYTES
