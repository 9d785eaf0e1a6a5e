"""One computation per key, shared by all who ask for it while it runs. Knows nothing of text or models."""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class SingleFlight(Generic[Key, Value]):
    """Callers of `get_many` with a key in flight wait for the first caller's computation.

    A caller that is cancelled leaves the others undisturbed; a computation that nobody waits for is cancelled.
    """

    def __init__(self) -> None:
        self._flights: dict[Key, asyncio.Future[Value]] = {}
        self._waiters: dict[Key, int] = {}

    def __contains__(self, key: Key) -> bool:
        """Whether `key` is being computed."""
        flight = self._flights.get(key)
        return flight is not None and not flight.done()

    async def get_many(
        self,
        keys: Sequence[Key],
        start: Callable[[Sequence[int]], Sequence[asyncio.Future[Value]]],
        join: Callable[[Sequence[asyncio.Future[Value]]], None] = lambda _: None,
    ) -> list[Value | Exception]:
        """Return what each of the distinct `keys` came to: its value, or the exception its computation ended with.

        `start(indexes)` begins the computations of the keys at `indexes`, those not in flight, and returns a future for
        each; what it raises is raised here, with nothing begun. `join(futures)` hears of those that others had begun.
        """
        # A flight that is done stays listed until the loop's next turn; none joins it, for it may have been cancelled.
        missing = [index for index, key in enumerate(keys) if key not in self]
        if missing:
            started = dict(zip((keys[index] for index in missing), start(missing), strict=True))
            for key, future in started.items():
                self._flights[key] = future
                self._waiters[key] = 0
                future.add_done_callback(partial(self._land, key))
        futures = [self._flights[key] for key in keys]
        if len(missing) < len(keys):
            begun = set(missing)
            join([future for index, future in enumerate(futures) if index not in begun])
        for key in keys:
            self._waiters[key] += 1
        try:
            if futures:
                await asyncio.wait(futures)
        finally:
            for key, future in zip(keys, futures, strict=True):
                self._leave(key, future)
        return [self._outcome(future) for future in futures]

    def _leave(self, key: Key, future: asyncio.Future[Value]) -> None:
        # A key that has landed may be in flight anew, with waiters of its own.
        if self._flights.get(key) is future:
            self._waiters[key] -= 1
            if not self._waiters[key]:
                future.cancel()

    def _land(self, key: Key, future: asyncio.Future[Value]) -> None:
        """Let the next caller begin anew; a failure that nobody waited for has been taken note of by the batcher."""
        if self._flights.get(key) is future:
            del self._flights[key], self._waiters[key]
        if not future.cancelled():
            future.exception()

    def _outcome(self, future: asyncio.Future[Value]) -> Value | Exception:
        error = future.exception()
        if error is None:
            return future.result()
        if isinstance(error, Exception):
            return error
        raise error
