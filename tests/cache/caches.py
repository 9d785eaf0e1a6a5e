"""Caches on a Redis, what happens at them, and answers to put into them."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np

from app.cache.breaker import State
from app.cache.entry import EntryFormat
from app.cache.events import BreakerChanged, CacheEvent, CommandFinished, Operation, WritesDropped
from app.cache.redis import CONNECTIONS, RedisCache
from app.cache.redis_client import open_client
from app.domain.labels import LABELS, Heads
from app.domain.sentiment import Sentiment
from tests.redis_server import RedisServer

HEADS: Final = Heads(LABELS, ("angry", "fear", "happy", "sad", "surprise", "neutral"))

_Event = TypeVar("_Event", BreakerChanged, CommandFinished, WritesDropped)


def key_of(number: int) -> bytes:
    return hashlib.blake2b(number.to_bytes(8), digest_size=16).digest()


def answer_of(number: int) -> Sentiment:
    """Return an answer unlike those of other numbers, of float32 as an engine gives them."""
    shares = np.random.default_rng(number).random(len(HEADS.columns), np.float32).tolist()
    polarity, emotions = HEADS.name(shares)
    return Sentiment(polarity, bool(number % 2), bool(number % 3), emotions)


def answers(*numbers: int) -> dict[bytes, Sentiment]:
    return {key_of(number): answer_of(number) for number in numbers}


@dataclass
class Happened:
    """The events of a cache so far."""

    events: list[CacheEvent] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def observe(self, event: CacheEvent) -> None:
        self.events.append(event)
        self._changed.set()

    def of(self, kind: type[_Event]) -> list[_Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def errors(self, operation: Operation) -> list[str]:
        return [
            event.error
            for event in self.of(CommandFinished)
            if event.operation is operation and event.error is not None
        ]

    def commands(self, operation: Operation) -> int:
        return len([event for event in self.of(CommandFinished) if event.operation is operation])

    def states(self, operation: Operation) -> list[State]:
        return [event.after for event in self.of(BreakerChanged) if event.operation is operation]

    def dropped(self) -> int:
        return sum(event.entries for event in self.of(WritesDropped))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when events have made `condition` true."""
        async with asyncio.timeout(30):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_state(self, operation: Operation, state: State) -> None:
        await self.until(lambda: self.states(operation)[-1:] == [state])


@asynccontextmanager
async def redis_cache(
    url: str,
    happened: Happened | None = None,
    *,
    timeout_s: float = 5.0,
    prefix: bytes = b"sentiment:01234567:",
    heads: Heads = HEADS,
    **changes: Any,
) -> AsyncIterator[RedisCache]:
    """Yield a cache on the Redis at `url` that is patient with a busy machine, and probes often."""
    cache = RedisCache(
        open_client(url, connections=CONNECTIONS, timeout_s=timeout_s),
        EntryFormat(heads),
        prefix=prefix,
        timeout_s=timeout_s,
        observe=(happened or Happened()).observe,
        **{"ttl_s": 600, "first_probe_s": 0.05, "longest_probe_s": 0.2, **changes},
    )
    async with cache:
        yield cache


async def fill(cache: RedisCache, *numbers: int) -> None:
    """Write the answers of `numbers`, and wait until they are written."""
    cache.put_many(answers(*numbers))
    await cache.flush()


async def until_disconnected(server: RedisServer) -> None:
    """Return when `server` has heard that nobody is connected any more."""
    async with asyncio.timeout(10):
        while server.clients():  # noqa: ASYNC110 (the server is another process)
            await asyncio.sleep(0.01)


def keys_of(*numbers: int) -> list[bytes]:
    return [key_of(number) for number in numbers]
