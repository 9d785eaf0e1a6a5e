"""The answers so far, on disk, such that a kill at any moment neither loses nor doubles one.

``OUTPUT.part`` has a line for each answer, in the order of the rows; ``OUTPUT.part.json`` says how much of it counts.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from app.domain.errors import CannotProceed
from app.scoring.output import Answer, read_answer
from app.scoring.summary import Tally

_SAVE_EVERY_S: Final = 1.0


class Journal:
    """Answers are kept from `save` on; what a killed run wrote after its last is cut off."""

    def __init__(self, output: Path, run: Mapping[str, str], *, resume: bool) -> None:
        """Begin, or with `resume` go on if there is something to go on from. `run` is what both must have in common.

        Raises:
            CannotProceed: what is there belongs to another run, or `resume` was not said.
        """
        self._part = output.with_name(output.name + ".part")
        self._state = output.with_name(output.name + ".part.json")
        self._run = dict(run)
        self.rows = 0
        self.checksum = 0  # of the texts answered
        self.tally = Tally()
        size = 0
        if self._state.exists():
            if not resume:
                raise CannotProceed(f"{self._part} is of a run that did not end: go on with --resume, or delete it")
            size = self._restore()
        self._file = self._part.open("r+b" if size else "wb")
        self._file.truncate(size)
        self._file.seek(size)
        self._saved_at = time.monotonic()

    def add(self, answer: bytes, checksum: int) -> None:
        """Take the answer to the next row; `checksum` is of all texts up to it."""
        self._file.write(answer + b"\n")
        self.rows += 1
        self.checksum = checksum

    def save(self, *, now: bool = False) -> None:
        """Make what was taken count; by default, if the last time is a second ago."""
        if not now and time.monotonic() - self._saved_at < _SAVE_EVERY_S:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        state = {
            "run": self._run,
            "rows": self.rows,
            "bytes": self._file.tell(),
            "checksum": self.checksum,
            "tally": self.tally.content(),
        }
        unfinished = self._state.with_name(self._state.name + ".new")
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._state)
        self._saved_at = time.monotonic()

    def answers(self) -> Iterator[Answer]:
        """Yield every answer, once it is closed."""
        if not self.rows:
            return
        with self._part.open("rb") as file:
            yield from map(read_answer, file)

    def close(self) -> None:
        """Leave the files to a run that goes on, if there is something to go on from."""
        if self.rows:
            self.save(now=True)
        self._file.close()
        if not self.rows:
            self._part.unlink()

    def delete(self) -> None:
        """Leave nothing behind: the output is whole."""
        self._state.unlink(missing_ok=True)
        self._part.unlink(missing_ok=True)

    def _restore(self) -> int:
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            run, size, self.rows, self.checksum = (state[name] for name in ("run", "bytes", "rows", "checksum"))
            self.tally = Tally.of(state["tally"])
            whole = self._part.stat().st_size >= size
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CannotProceed(f"{self._state} cannot be read ({error}); delete it to begin anew") from None
        require_same_run(run, self._run, str(self._part))
        if not whole:
            raise CannotProceed(f"{self._part} has lost answers; delete {self._state} to begin anew")
        return int(size)


def require_same_run(found: Mapping[str, str], run: Mapping[str, str], path: str) -> None:
    """Make sure that the run that left `path` is this one.

    Raises:
        CannotProceed: it is not.
    """
    if found != run:
        others = ", ".join(f"{name} {value!r}" for name, value in found.items() if run.get(name) != value)
        raise CannotProceed(f"{path} is of another run ({others}); delete it to begin anew")
