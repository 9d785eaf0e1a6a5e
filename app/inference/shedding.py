"""Load shedding: what is refused before it is read."""

from collections.abc import Callable
from typing import Any, Final

from app.domain.errors import Overloaded
from app.inference.batcher import Batcher, Lane

# Reading a text and looking it up takes about as much of the processors as a twentieth of an answer by the model.
_WORTH_A_LOOK: Final = 0.05
_MEMORY: Final = 64  # requests
_SAMPLE: Final = 64


class Shedder:
    """Refuses single texts unread while the model takes no more of them and hardly any is remembered.

    Refusing costs a tenth then of what it costs to read first, and what is saved goes into answers. One text in 64 is
    read all the same, to see whether they are remembered again.
    """

    def __init__(self, batcher: Callable[[], Batcher[Any, Any]]) -> None:
        self._batcher = batcher
        self._remembered = 1.0  # the share among the latest texts that were read
        self._turns = 0

    def saw(self, *, remembered: bool) -> None:
        """Take note of a text that was read."""
        self._remembered += (remembered - self._remembered) / _MEMORY

    def refusal(self) -> Overloaded | None:
        """Return why the next text is not read, or None if it is."""
        batcher = self._batcher()
        if self._remembered > _WORTH_A_LOOK or not batcher.refuses(1, Lane.INTERACTIVE):
            return None
        self._turns += 1
        if self._turns % _SAMPLE == 0:
            return None
        try:
            batcher.admit(1, Lane.INTERACTIVE)
        except Overloaded as error:
            return error
        return None
