from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

import pytest

from app.cache.memory import MemoryCache
from app.cache.redis import RedisCache
from app.cache.tiered import TieredCache
from app.domain.labels import Heads
from app.domain.sentiment import Sentiment
from app.inference.classifier import SentimentCache
from tests.cache.caches import redis_cache
from tests.redis_server import RedisServer, running_redis

pytestmark = pytest.mark.anyio

# Of float32, as an engine gives them.
_GOOD = Sentiment(
    {"negative": 0.125, "neutral": 0.25, "positive": 0.625}, truncated=False, emotions={"happy": 0.875, "angry": 0.125}
)
_BAD = Sentiment(
    {"negative": 0.75, "neutral": 0.1875, "positive": 0.0625}, truncated=True, emotions={"happy": 0.25, "angry": 0.75}
)
_UNSURE = Sentiment(
    {"negative": 0.5, "neutral": 0.25, "positive": 0.25},
    truncated=False,
    certain=False,
    emotions={"happy": 0.5, "angry": 0.5},
)
_HEADS = Heads(tuple(_GOOD.probabilities), tuple(_GOOD.emotions or ()))


class _WrittenAtOnce(TieredCache):
    """Two levels that look when Redis has what it was given."""

    def __init__(self, memory: MemoryCache, redis: RedisCache) -> None:
        super().__init__(memory, redis)
        self._shared = redis

    async def get_many(self, keys: Sequence[bytes]) -> Mapping[bytes, Sentiment]:
        await self._shared.flush()
        return await super().get_many(keys)


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["memory", "memory and redis", "redis"])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[SentimentCache]:
    memory = MemoryCache(max_bytes=0 if request.param == "redis" else 1_000_000, ttl_s=60)
    if request.param == "memory":
        yield memory
        return
    server: RedisServer = request.getfixturevalue("redis_server")
    server.admin.flushall()
    async with redis_cache(server.url, heads=_HEADS) as redis:
        yield _WrittenAtOnce(memory, redis)


@pytest.fixture
def cache_without_room() -> SentimentCache:
    return MemoryCache(max_bytes=0, ttl_s=60)


def _key(number: int) -> bytes:
    return number.to_bytes(16, "big")


async def test_an_empty_cache_finds_nothing(cache: SentimentCache) -> None:
    assert await cache.get_many([_key(1), _key(2)]) == {}


async def test_asking_for_nothing_finds_nothing(cache: SentimentCache) -> None:
    cache.put_many({})
    assert await cache.get_many([]) == {}


async def test_what_was_put_is_found_unchanged(cache: SentimentCache) -> None:
    cache.put_many({_key(1): _GOOD, _key(2): _BAD})
    assert await cache.get_many([_key(2), _key(1)]) == {_key(1): _GOOD, _key(2): _BAD}


async def test_certainty_and_emotions_are_remembered(cache: SentimentCache) -> None:
    cache.put_many({_key(1): _GOOD, _key(2): _BAD, _key(3): _UNSURE})
    found = await cache.get_many([_key(1), _key(2), _key(3)])
    assert [found[_key(number)].certain for number in (1, 2, 3)] == [True, True, False]
    assert [found[_key(number)].emotions for number in (1, 2, 3)] == [_GOOD.emotions, _BAD.emotions, _UNSURE.emotions]


async def test_only_what_was_asked_for_is_found(cache: SentimentCache) -> None:
    cache.put_many({_key(1): _GOOD, _key(2): _BAD})
    assert await cache.get_many([_key(1), _key(3)]) == {_key(1): _GOOD}


async def test_the_later_answer_wins(cache: SentimentCache) -> None:
    cache.put_many({_key(1): _GOOD})
    cache.put_many({_key(1): _BAD})
    assert await cache.get_many([_key(1)]) == {_key(1): _BAD}


async def test_labels_keep_their_order(cache: SentimentCache) -> None:
    cache.put_many({_key(1): _GOOD})
    found = await cache.get_many([_key(1)])
    assert list(found[_key(1)].probabilities) == ["negative", "neutral", "positive"]
    assert list(found[_key(1)].emotions or ()) == ["happy", "angry"]


async def test_a_key_may_be_asked_for_twice(cache: SentimentCache) -> None:
    cache.put_many({_key(1): _GOOD})
    assert await cache.get_many([_key(1), _key(1)]) == {_key(1): _GOOD}


async def test_more_than_fits_raises_nothing(cache: SentimentCache) -> None:
    cache.put_many({_key(number): _GOOD for number in range(5_000)})
    assert await cache.get_many([_key(4_999)]) == {_key(4_999): _GOOD}


async def test_a_cache_without_room_is_a_miss(cache_without_room: SentimentCache) -> None:
    cache_without_room.put_many({_key(1): _GOOD})
    assert await cache_without_room.get_many([_key(1)]) == {}
