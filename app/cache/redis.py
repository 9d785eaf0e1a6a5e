"""Answers shared by processes, in Redis. Whatever befalls Redis is a miss; nobody waits for it longer than `timeout_s`.

Look-ups go out together: those of one turn of the event loop, and those that meet so many commands under way, share a
command. Writes wait their turn in the background. Neither is tried while its breaker is open.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, Self, TypeVar

from app.cache.breaker import Breaker, State
from app.cache.entry import EntryFormat
from app.cache.events import BreakerChanged, CacheEvent, CommandFinished, Operation, WritesDropped
from app.cache.lookups import Lookups
from app.cache.redis_client import RedisClient, kind_of, reason_of
from app.domain.sentiment import Sentiment

_COMMANDS: Final = 4  # look-ups under way at the same time
CONNECTIONS: Final = _COMMANDS + 1  # one is for writing
_MOST_WAITING: Final = 8_192  # answers to be written
_TOGETHER: Final = 128  # answers to a write: larger ones keep the event loop for milliseconds
_PATIENCE_S: Final = 1.0  # for what nobody waits for: a write, a new connection
_ODD: Final = frozenset({"corrupt", "garbage"})  # kinds of failure after which a connection may be out of step
_JITTER: Final = 0.1  # of the time to live, or what was written together would have to be computed together again

_Answer = TypeVar("_Answer")


@dataclass(slots=True, eq=False)
class _Joined:
    """Keys to look up with the next command."""

    task: asyncio.Task[Mapping[bytes, Sentiment] | None]
    keys: dict[bytes, None] = field(default_factory=dict)


class RedisCache:
    """Remembers answers of one model under `prefix` and their keys for `ttl_s`, more or less by a tenth.

    `async with` tries Redis once, and is entered in any case; leaving gives the last writes a moment.
    """

    def __init__(
        self,
        client: RedisClient,
        entries: EntryFormat,
        *,
        prefix: bytes,
        ttl_s: float,
        timeout_s: float,
        lookups: Lookups | None = None,
        observe: Callable[[CacheEvent], None] = lambda _: None,
        first_probe_s: float = 0.5,
        longest_probe_s: float = 10.0,
    ) -> None:
        self._client = client
        self._entries = entries
        self._prefix = prefix
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self._observe = observe
        self._slots = asyncio.Semaphore(_COMMANDS)
        self._joined: _Joined | None = None
        self._lookups: set[asyncio.Task[Mapping[bytes, Sentiment] | None]] = set()
        self._waiting: dict[bytes, Sentiment] = {}
        self._writer: asyncio.Task[None] | None = None
        # What failed last, for the probes; for the first one a key that nobody has.
        self._unread: Sequence[bytes] = [bytes(16)]
        self._unwritten: Mapping[bytes, Sentiment] = {}
        # Commands belong to no single caller: none must run under the request id of the one who began it.
        self._context = copy_context()
        self.lookups = lookups or Lookups()
        self.breakers = {
            operation: Breaker(
                probe, observe=self._changed(operation), first_s=first_probe_s, longest_s=longest_probe_s
            )
            for operation, probe in ((Operation.READ, self._probe_reading), (Operation.WRITE, self._probe_writing))
        }

    async def __aenter__(self) -> Self:
        await self.breakers[Operation.READ].check()
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await self.flush()
        for breaker in self.breakers.values():
            await breaker.aclose()
        for operation in Operation:
            self._stop(operation)
        with suppress(Exception):
            async with asyncio.timeout(_PATIENCE_S):
                await asyncio.gather(*self._lookups, *filter(None, [self._writer]), return_exceptions=True)
                await self._client.aclose()

    @property
    def waiting(self) -> int:
        """Answers that wait to be written."""
        return len(self._waiting)

    async def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Sentiment]:
        """Return what is remembered of `keys`, or nothing if Redis does not tell in time."""
        answer = None
        if self.breakers[Operation.READ].closed:
            task = self._join(keys)
            await asyncio.wait((task,), timeout=self._timeout_s)
            answer = task.result() if task.done() and not task.cancelled() else None
        if answer is None:
            self.lookups.unanswered += len(keys)
            return {}
        found = {key: answer[key] for key in keys if key in answer}
        self.lookups.hits += len(found)
        self.lookups.misses += len(keys) - len(found)
        return found

    def put_many(self, found: Mapping[bytes, Sentiment]) -> None:
        """Remember `found` soon, if Redis takes it."""
        room = _MOST_WAITING - len(self._waiting) if all(breaker.closed for breaker in self.breakers.values()) else 0
        self._waiting.update(islice(found.items(), room))
        self._drop(max(0, len(found) - room))
        if self._waiting and (self._writer is None or self._writer.done()):
            self._writer = self._spawn(self._write_waiting())

    async def flush(self) -> None:
        """Return when nothing waits to be written."""
        if self._writer is not None:
            await asyncio.wait((self._writer,))

    def _join(self, keys: Sequence[bytes]) -> asyncio.Task[Mapping[bytes, Sentiment] | None]:
        """Add `keys` to the next command, and return what will end with its answer."""
        if self._joined is None:
            self._joined = _Joined(self._spawn(self._look_up()))
            self._lookups.add(self._joined.task)
            self._joined.task.add_done_callback(self._lookups.discard)
        self._joined.keys.update(dict.fromkeys(keys))
        return self._joined.task

    async def _look_up(self) -> Mapping[bytes, Sentiment] | None:
        async with self._slots:  # meanwhile more keys join
            assert self._joined is not None  # noqa: S101 (for the type checker)
            keys, self._joined = list(self._joined.keys), None
            try:
                found = await self._read(keys)
            except _Failed as failure:
                self._unread = keys
                self.breakers[Operation.READ].failed(failure.reason)
                return None
            self.breakers[Operation.READ].succeeded()
            return found

    async def _write_waiting(self) -> None:
        while self._waiting:
            batch = dict(islice(self._waiting.items(), _TOGETHER))
            for key in batch:
                del self._waiting[key]
            try:
                await self._write(batch)
            except _Failed as failure:
                self._unwritten = batch
                self.breakers[Operation.WRITE].failed(failure.reason)
            except asyncio.CancelledError:
                self._drop(len(batch))
                raise
            else:
                self.breakers[Operation.WRITE].succeeded()

    async def _read(self, keys: Sequence[bytes]) -> Mapping[bytes, Sentiment]:
        async def read() -> Mapping[bytes, Sentiment]:
            entries = await self._client.read([self._prefix + key for key in keys])
            decoded = (
                (key, self._entries.decode(key, entry))
                for key, entry in zip(keys, entries, strict=True)
                if entry is not None
            )
            return {key: sentiment for key, sentiment in decoded if sentiment is not None}

        return await self._timed(Operation.READ, len(keys), self._timeout_s, read())

    async def _write(self, found: Mapping[bytes, Sentiment]) -> None:
        encode = self._entries.encode
        entries = {self._prefix + key: (encode(key, sentiment), self._ttl_ms()) for key, sentiment in found.items()}
        await self._timed(Operation.WRITE, len(entries), _PATIENCE_S, self._client.write(entries))

    def _ttl_ms(self) -> int:
        return max(1, round(self._ttl_s * 1_000 * random.uniform(1 - _JITTER, 1 + _JITTER)))  # noqa: S311 (no secret)

    async def _timed(
        self, operation: Operation, entries: int, limit_s: float, command: Coroutine[Any, Any, _Answer]
    ) -> _Answer:
        """Return what `command` comes to.

        Raises:
            _Failed: it raised anything, or took longer than `limit_s`.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(limit_s):
                answer = await command
        except Exception as error:  # noqa: BLE001 (garbage makes the library raise anything)
            kind, reason = kind_of(error), reason_of(error)
            self._observe(CommandFinished(operation, entries, loop.time() - started, kind))
            if kind in _ODD:
                await self._drop_idle()
            raise _Failed(reason) from None
        self._observe(CommandFinished(operation, entries, loop.time() - started, None))
        return answer

    async def _drop_idle(self) -> None:
        """Let idle connections go: one may hold the answer to another question, and would then always be one behind."""
        with suppress(Exception):
            async with asyncio.timeout(_PATIENCE_S):
                await self._client.drop_idle()

    async def _probe_reading(self) -> str | None:
        """Connect with patience, then read what could not be read, as fast as callers expect it."""
        try:
            await self._timed(Operation.CONNECT, 0, _PATIENCE_S, self._client.connect())
            await self._read(self._unread)
        except _Failed as failure:
            return failure.reason
        return None

    async def _probe_writing(self) -> str | None:
        try:
            await self._write(self._unwritten)
        except _Failed as failure:
            return failure.reason
        return None

    def _changed(self, operation: Operation) -> Callable[[State, State, str | None], None]:
        def changed(before: State, after: State, reason: str | None) -> None:
            self._observe(BreakerChanged(operation, before, after, reason))
            if before is State.CLOSED:
                self._stop(operation)

        return changed

    def _stop(self, operation: Operation) -> None:
        """Let nobody wait: end what is under way. What cannot be read now is not written either."""
        running: set[asyncio.Task[Any] | None] = {self._writer}
        if operation is Operation.READ:
            running |= self._lookups
            self._joined = None
        for task in running - {None, asyncio.current_task()}:
            assert task is not None  # noqa: S101 (for the type checker)
            task.cancel()
        self._drop(len(self._waiting))
        self._waiting.clear()

    def _drop(self, entries: int) -> None:
        if entries:
            self._observe(WritesDropped(entries))

    def _spawn(self, work: Coroutine[Any, Any, _Answer]) -> asyncio.Task[_Answer]:
        return asyncio.get_running_loop().create_task(work, context=self._context.copy())


class _Failed(Exception):
    """A command came to nothing."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
