from collections.abc import Callable

import pytest

from app.cache.memory import MemoryCache
from app.domain.sentiment import Sentiment
from app.inference.classifier import SentimentCache

pytestmark = pytest.mark.anyio

MakeCache = Callable[[], SentimentCache]

_GOOD = Sentiment(
    {"negative": 0.1, "neutral": 0.2, "positive": 0.7}, truncated=False, emotions={"happy": 0.9, "angry": 0.1}
)
_BAD = Sentiment({"negative": 0.8, "neutral": 0.15, "positive": 0.05}, truncated=True)
_UNSURE = Sentiment({"negative": 0.4, "neutral": 0.3, "positive": 0.3}, truncated=False, certain=False)


# A further cache joins here.
@pytest.fixture(params=[pytest.param(lambda: MemoryCache(max_bytes=1_000_000, ttl_s=60), id="memory")])
def cache(request: pytest.FixtureRequest) -> SentimentCache:
    made: SentimentCache = request.param()
    return made


@pytest.fixture(params=[pytest.param(lambda: MemoryCache(max_bytes=0, ttl_s=60), id="memory")])
def cache_without_room(request: pytest.FixtureRequest) -> SentimentCache:
    made: SentimentCache = request.param()
    return made


def _key(number: int) -> bytes:
    return number.to_bytes(16, "big")


async def test_an_empty_cache_finds_nothing(cache: SentimentCache) -> None:
    assert await cache.get_many([_key(1), _key(2)]) == {}


async def test_asking_for_nothing_finds_nothing(cache: SentimentCache) -> None:
    await cache.put_many({})
    assert await cache.get_many([]) == {}


async def test_what_was_put_is_found_unchanged(cache: SentimentCache) -> None:
    await cache.put_many({_key(1): _GOOD, _key(2): _BAD})
    assert await cache.get_many([_key(2), _key(1)]) == {_key(1): _GOOD, _key(2): _BAD}


async def test_certainty_and_emotions_are_remembered(cache: SentimentCache) -> None:
    await cache.put_many({_key(1): _GOOD, _key(2): _BAD, _key(3): _UNSURE})
    found = await cache.get_many([_key(1), _key(2), _key(3)])
    assert [found[_key(number)].certain for number in (1, 2, 3)] == [True, True, False]
    assert [found[_key(number)].emotions for number in (1, 2, 3)] == [{"happy": 0.9, "angry": 0.1}, None, None]


async def test_only_what_was_asked_for_is_found(cache: SentimentCache) -> None:
    await cache.put_many({_key(1): _GOOD, _key(2): _BAD})
    assert await cache.get_many([_key(1), _key(3)]) == {_key(1): _GOOD}


async def test_the_later_answer_wins(cache: SentimentCache) -> None:
    await cache.put_many({_key(1): _GOOD})
    await cache.put_many({_key(1): _BAD})
    assert await cache.get_many([_key(1)]) == {_key(1): _BAD}


async def test_labels_keep_their_order(cache: SentimentCache) -> None:
    await cache.put_many({_key(1): _GOOD})
    found = await cache.get_many([_key(1)])
    assert list(found[_key(1)].probabilities) == ["negative", "neutral", "positive"]
    assert list(found[_key(1)].emotions or ()) == ["happy", "angry"]


async def test_a_key_may_be_asked_for_twice(cache: SentimentCache) -> None:
    await cache.put_many({_key(1): _GOOD})
    assert await cache.get_many([_key(1), _key(1)]) == {_key(1): _GOOD}


async def test_more_than_fits_raises_nothing(cache: SentimentCache) -> None:
    await cache.put_many({_key(number): _GOOD for number in range(5_000)})
    assert await cache.get_many([_key(4_999)]) == {_key(4_999): _GOOD}


async def test_a_cache_without_room_is_a_miss(cache_without_room: SentimentCache) -> None:
    await cache_without_room.put_many({_key(1): _GOOD})
    assert await cache_without_room.get_many([_key(1)]) == {}
