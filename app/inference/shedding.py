"""Load shedding: what is refused before it is read."""

import asyncio
from collections.abc import Callable
from math import inf
from typing import Any, Final

from app.domain.errors import Overloaded
from app.inference.batcher import Batcher, Lane, RefusalReason

# One core of two remembers 5,979 answers a second, both compute 468 (docs/benchmark.md): a look costs a 25th of one.
_WORTH_A_LOOK: Final = 0.05
_MEMORY: Final = 64  # requests
_SAMPLE: Final = 64
_LATELY_S: Final = 1.0
_AHEAD: Final = 1.25  # times what the model can do is let in, so that it never waits for texts


class Shedder:
    """Refuses single texts unread while the model takes no more of them and hardly any is remembered.

    What reading would cost goes into answers. When room appears, texts are let in at the model's pace: they reach the
    waiting room only after they were read, and many would be let in for each place. One text in 64 is read all the
    same, to see whether they are remembered again.
    """

    def __init__(self, batcher: Callable[[], Batcher[Any, Any]]) -> None:
        self._batcher = batcher
        self._remembered = 1.0  # the share among the latest texts that were read
        self._turns = 0
        self._full_at = -inf  # when the waiting room was full
        self._next_at = -inf  # when to let in the next

    def saw(self, *, remembered: bool) -> None:
        """Take note of a text that was read."""
        self._remembered += (remembered - self._remembered) / _MEMORY

    def refusal(self) -> Overloaded | None:
        """Return why the next text is not read, or None if it is."""
        if self._remembered > _WORTH_A_LOOK:
            return None
        batcher = self._batcher()
        now = asyncio.get_running_loop().time()
        if batcher.refuses(1, Lane.INTERACTIVE):
            self._full_at = now
        elif now - self._full_at > _LATELY_S:
            return None
        elif now >= self._next_at:
            self._next_at = now + batcher.pace_s(Lane.INTERACTIVE) / _AHEAD
            return None
        self._turns += 1
        if self._turns % _SAMPLE == 0:
            return None
        return batcher.turn_away(1, Lane.INTERACTIVE, RefusalReason.UNREAD)
