"""A cache on a real Redis that is well."""

import asyncio
import struct
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.cache.entry import EntryFormat
from app.cache.events import CommandFinished, Operation
from app.cache.memory import MemoryCache
from app.cache.redis import CONNECTIONS
from app.cache.tiered import TieredCache
from app.domain.sentiment import Sentiment
from tests.cache.caches import (
    HEADS,
    Happened,
    answer_of,
    answers,
    fill,
    key_of,
    keys_of,
    redis_cache,
    until_disconnected,
)
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio

_answer_strategy = st.builds(
    lambda shares, truncated, certain: Sentiment(HEADS.name(shares)[0], truncated, certain, HEADS.name(shares)[1]),
    st.lists(st.floats(0, 1, width=32), min_size=len(HEADS.columns), max_size=len(HEADS.columns)),
    st.booleans(),
    st.booleans(),
)


@given(st.dictionaries(st.binary(min_size=16, max_size=16), _answer_strategy, min_size=1, max_size=20))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_answers_come_back_as_they_were(redis: RedisServer, found: dict[bytes, Sentiment]) -> None:
    async def there_and_back() -> dict[bytes, Sentiment]:
        async with redis_cache(redis.url) as cache:
            cache.put_many(found)
            await cache.flush()
            return await cache.get_many(list(found))

    assert repr(asyncio.run(there_and_back())) == repr(found)


async def test_one_process_finds_what_another_put(redis: RedisServer) -> None:
    async with redis_cache(redis.url) as one, redis_cache(redis.url) as other:
        await fill(one, 1, 2)
        assert await other.get_many(keys_of(1, 2, 3)) == answers(1, 2)
        assert (other.lookups.hits, other.lookups.misses, other.lookups.unanswered) == (2, 1, 0)


async def test_two_bundles_share_nothing(redis: RedisServer) -> None:
    async with (
        redis_cache(redis.url, prefix=b"s:aaaaaaaa:") as one,
        redis_cache(redis.url, prefix=b"s:bbbbbbbb:") as other,
    ):
        await fill(one, 1)
        assert await other.get_many(keys_of(1)) == {}


async def test_a_text_is_nowhere_in_redis_but_as_a_keyed_hash(redis: RedisServer) -> None:
    async with redis_cache(redis.url) as cache:
        await fill(cache, 1)
    assert redis.stored() == [b"sentiment:01234567:" + key_of(1)]


async def test_a_batch_is_looked_up_with_one_command(redis: RedisServer) -> None:
    async with redis_cache(redis.url) as cache:
        await fill(cache, *range(0, 1_024, 2))
        before = redis.calls("mget")
        assert await cache.get_many(keys_of(*range(1_024))) == answers(*range(0, 1_024, 2))
        assert redis.calls("mget") == before + 1
        assert redis.calls("get") == 0


async def test_texts_that_come_together_are_looked_up_together(redis: RedisServer) -> None:
    async with redis_cache(redis.url) as cache:
        await fill(cache, *range(0, 64, 2))
        before = redis.calls("mget")
        found = await asyncio.gather(*(cache.get_many(keys_of(number)) for number in range(64)))
        assert found == [answers(number) if number % 2 == 0 else {} for number in range(64)]
        assert redis.calls("mget") == before + 1


async def test_answers_are_written_together(redis: RedisServer) -> None:
    happened = Happened()
    async with redis_cache(redis.url, happened) as cache:
        for number in range(512):
            cache.put_many(answers(number))
        await cache.flush()
        written = [event for event in happened.of(CommandFinished) if event.operation is Operation.WRITE]
        assert [event.entries for event in written] == [128] * 4
        assert len(redis.stored()) == redis.calls("set") == 512


async def test_a_burst_opens_no_more_connections_than_allowed(redis: RedisServer) -> None:
    async with redis_cache(redis.url) as cache:

        async def ask(number: int) -> None:
            await asyncio.sleep(number * 0.0002)
            await cache.get_many(keys_of(number))

        await asyncio.gather(*(ask(number) for number in range(500)), fill(cache, *range(500)))
        assert redis.clients() <= CONNECTIONS
    await until_disconnected(redis)


async def test_times_to_live_differ_by_a_tenth_at_most(redis: RedisServer) -> None:
    async with redis_cache(redis.url, ttl_s=1_000) as cache:
        await fill(cache, *range(300))
    left_ms = [redis.admin.pttl(key) for key in redis.stored()]
    assert all(isinstance(ms, int) and 870_000 < ms <= 1_100_000 for ms in left_ms)
    assert min(left_ms) < 930_000  # 300 draws miss this share once in 10^21
    assert max(left_ms) > 1_070_000


async def test_an_answer_is_forgotten_after_its_time(redis: RedisServer) -> None:
    async with redis_cache(redis.url, ttl_s=0.2) as cache:
        await fill(cache, 1)
        async with asyncio.timeout(10):
            while await cache.get_many(keys_of(1)):
                pass


async def test_an_entry_takes_the_memory_that_the_readme_says(redis: RedisServer) -> None:
    async with redis_cache(redis.url) as cache:
        await fill(cache, 1)
    assert redis.admin.memory_usage(redis.stored()[0]) <= 144


async def test_a_hit_in_redis_fills_memory(redis: RedisServer) -> None:
    memory = MemoryCache(max_bytes=1_000_000, ttl_s=60)
    async with redis_cache(redis.url) as shared:
        await fill(shared, 1, 2)
        cache = TieredCache(memory, shared)
        assert await cache.get_many(keys_of(1, 2, 3)) == answers(1, 2)
        before = redis.calls("mget")
        assert await cache.get_many(keys_of(2, 1)) == answers(2, 1)
        assert redis.calls("mget") == before
        assert len(memory) == 2


async def test_redis_is_asked_for_what_memory_lacks_alone(redis: RedisServer) -> None:
    memory = MemoryCache(max_bytes=1_000_000, ttl_s=60)
    async with redis_cache(redis.url) as shared:
        await fill(shared, 2)
        memory.put_many(answers(1))
        assert await TieredCache(memory, shared).get_many(keys_of(1, 2, 3)) == answers(1, 2)
        assert (shared.lookups.hits, shared.lookups.misses) == (1, 1)


async def test_a_hit_in_memory_waits_for_nothing(redis: RedisServer) -> None:
    memory = MemoryCache(max_bytes=1_000_000, ttl_s=60)
    async with redis_cache(redis.url) as shared:
        memory.put_many(answers(1))
        with pytest.raises(StopIteration) as returned:
            TieredCache(memory, shared).get_many(keys_of(1)).send(None)
    assert returned.value.value == answers(1)


async def test_an_entry_in_the_layout_of_another_version_is_a_miss(redis: RedisServer) -> None:
    happened = Happened()
    async with redis_cache(redis.url, happened) as cache:
        await fill(cache, 1)
        (key,) = redis.stored()
        redis.admin.set(key, _of_version_2(key_of(1)))
        assert await cache.get_many(keys_of(1)) == {}
        assert happened.errors(Operation.READ) == []
        await fill(cache, 1)
        assert await cache.get_many(keys_of(1)) == answers(1)


def _of_version_2(key: bytes) -> bytes:
    content = b"\x02" + EntryFormat(HEADS).encode(key, answer_of(1))[1:-4]
    return content + struct.pack("<I", zlib.crc32(content, zlib.crc32(key)))


async def test_the_last_writes_are_done_when_the_cache_is_left(redis: RedisServer) -> None:
    async with redis_cache(redis.url) as cache:
        cache.put_many(answers(*range(300)))
    assert len(redis.stored()) == 300
