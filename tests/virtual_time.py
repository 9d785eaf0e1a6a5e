"""An asyncio event loop that owns its clock: where others wait for a timer, it moves the clock to it.

Knows nothing of the product. Threads and sockets live in real time, so nothing that uses them can be tested here.
"""

import asyncio
import selectors

_MOST_TURNS = 200_000


class StuckLoop(AssertionError):
    """Nothing can wake the loop any more, or it turns without end."""


class _JumpingSelector(selectors.DefaultSelector):
    """Owns the clock, because the loop asks it to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._turns += 1
        if self._turns > _MOST_TURNS:
            self._turns = 0  # the loop still has to be closed
            raise StuckLoop(f"still busy after {_MOST_TURNS} turns of the loop and {self.now_s} s")
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise StuckLoop(f"at {self.now_s} s everything waits and no timer is set")
            self.now_s += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Starts at 0 s. Raises `StuckLoop` where a real loop would hang."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now_s
