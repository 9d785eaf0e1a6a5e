"""A circuit breaker: after a few failures in a row it opens, and probes in the background find out when to close it.

Knows nothing of what it guards. All time is the loop's.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import Enum
from math import inf


class State(Enum):
    """Whether what is guarded may be used."""

    CLOSED = "closed"  # it may
    OPEN = "open"  # it may not
    HALF_OPEN = "half-open"  # it may not, and a probe is under way


class Breaker:
    """Opens after `failures` failures in a row.

    From then on `probe` is called, one call at a time, first after `first_s` and then ever more rarely, down to once in
    `longest_s`, until it returns None; otherwise it returns what is wrong. What fails again within `longest_s` of that
    is probed no more often than before. `observe` is told of each change: the state before and after, and the reason.
    """

    def __init__(
        self,
        probe: Callable[[], Awaitable[str | None]],
        *,
        observe: Callable[[State, State, str | None], None] = lambda *_: None,
        failures: int = 3,
        first_s: float = 0.5,
        longest_s: float = 10.0,
    ) -> None:
        self._probe = probe
        self._observe = observe
        self._most_failures = failures
        self._first_s = first_s
        self._longest_s = longest_s
        self._failures = 0
        self._delay_s = first_s
        self._closed_at = -inf
        self._probing: asyncio.Task[None] | None = None
        self.state = State.CLOSED

    @property
    def closed(self) -> bool:
        """Whether what is guarded may be used."""
        return self.state is State.CLOSED

    async def check(self) -> None:
        """Probe once, and open if it fails: for the start, when nothing is known yet."""
        reason = await self._ask()
        if reason is not None:
            self._open(reason)

    def succeeded(self) -> None:
        """Take note of a success."""
        self._failures = 0

    def failed(self, reason: str) -> None:
        """Take note of a failure; what began before it opened, and fails later, changes nothing."""
        self._failures += 1
        if self.closed and self._failures >= self._most_failures:
            self._open(reason)

    async def aclose(self) -> None:
        """Probe no more."""
        if self._probing is not None:
            self._probing.cancel()
            with suppress(asyncio.CancelledError):
                await self._probing

    def _open(self, reason: str) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() - self._closed_at > self._longest_s:
            self._delay_s = self._first_s
        self._change(State.OPEN, reason)
        self._probing = loop.create_task(self._probe_until_well())

    async def _probe_until_well(self) -> None:
        while not self.closed:
            await asyncio.sleep(self._delay_s)
            self._delay_s = min(2 * self._delay_s, self._longest_s)
            self._change(State.HALF_OPEN, None)
            reason = await self._ask()
            if reason is None:
                self._failures = 0
                self._closed_at = asyncio.get_running_loop().time()
            self._change(State.CLOSED if reason is None else State.OPEN, reason)

    async def _ask(self) -> str | None:
        try:
            return await self._probe()
        except Exception as error:  # noqa: BLE001 (a probe that fails oddly has failed, and the next one must follow)
            return type(error).__name__

    def _change(self, state: State, reason: str | None) -> None:
        before, self.state = self.state, state
        self._observe(before, state, reason)
