"""Answers remembered in this process: least recently used leave first, all leave after a time."""

from collections.abc import Mapping, Sequence
from typing import Final

from cachetools import TTLCache

from app.cache.lookups import Lookups
from app.domain.sentiment import Sentiment

# Key, value, dictionaries and bookkeeping of one entry with six emotions, measured with tracemalloc over 100,000
# entries; without emotions it takes 620.
ENTRY_BYTES: Final = 1_050


class MemoryCache:
    """Holds up to `max_bytes` for `ttl_s` seconds each; 0 bytes remembers nothing."""

    deeper: Final = False

    def __init__(self, *, max_bytes: int, ttl_s: float) -> None:
        self._entries: TTLCache[bytes, Sentiment] = TTLCache(max_bytes // ENTRY_BYTES, ttl_s)
        self.lookups = Lookups()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Sentiment]:
        """Return what is remembered of `keys`."""
        entries = self._entries
        found = {key: sentiment for key in keys if (sentiment := entries.get(key)) is not None}
        self.lookups.hits += len(found)
        self.lookups.misses += len(keys) - len(found)
        return found

    def put_many(self, found: Mapping[bytes, Sentiment]) -> None:
        """Remember `found`."""
        if self._entries.maxsize:
            self._entries.update(found)

    def recall(self, key: bytes) -> Sentiment | None:
        """Return what is remembered of `key`. Only a hit counts: who misses it here asks `get_many` next."""
        sentiment = self._entries.get(key)
        self.lookups.hits += sentiment is not None
        return sentiment

    async def get_many(self, keys: Sequence[bytes]) -> Mapping[bytes, Sentiment]:
        """Do as `find`."""
        return self.find(keys)
