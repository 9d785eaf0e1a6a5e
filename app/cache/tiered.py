"""Two levels: this process's memory before a Redis that others share."""

from collections.abc import Mapping, Sequence
from typing import Final

from app.cache.memory import MemoryCache
from app.cache.redis import RedisCache
from app.domain.sentiment import Sentiment


class TieredCache:
    """Looks in memory, then in Redis; what Redis knows is remembered in memory, too."""

    deeper: Final = True

    def __init__(self, memory: MemoryCache, redis: RedisCache) -> None:
        self._memory = memory
        self._redis = redis

    def recall(self, key: bytes) -> Sentiment | None:
        """Return what memory has of `key`."""
        return self._memory.recall(key)

    async def get_many(self, keys: Sequence[bytes]) -> Mapping[bytes, Sentiment]:
        """Return what is remembered of `keys`. Waits for nothing if memory has them all."""
        found = self._memory.find(keys)
        if len(found) == len(keys):
            return found
        shared = await self._redis.get_many([key for key in keys if key not in found])
        self._memory.put_many(shared)
        return found | shared

    def put_many(self, found: Mapping[bytes, Sentiment]) -> None:
        """Remember `found` in memory now, and in Redis soon."""
        self._memory.put_many(found)
        self._redis.put_many(found)
