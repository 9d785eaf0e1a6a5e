"""The command: rows in, answers out, with a journal on the way and a summary at the end."""

import asyncio
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, aclosing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from app.domain.errors import CannotProceed
from app.domain.rows import Form, Row
from app.scoring.journal import Journal
from app.scoring.output import ESCAPING, Answer, assemble, parquet_writer, read_answer, row_writer
from app.scoring.source import Source, add_to_checksum
from app.scoring.summary import Tally

CHUNK: Final = 256  # texts handed over at a time


class Scorer(Protocol):
    """Whatever gives answers."""

    @property
    def model(self) -> str:
        """Which model does."""
        ...

    def answers(self, chunks: AsyncIterator[Sequence[object]]) -> AsyncGenerator[list[bytes], None]:
        """Yield the answers to all texts, in order, each as a JSON object."""
        ...


@dataclass(frozen=True, slots=True)
class Output:
    """Where answers go; without a `path`, to standard output."""

    path: Path | None
    form: Form


async def score(
    source: Source, output: Output, open_scorer: AbstractAsyncContextManager[Scorer], *, resume: bool
) -> None:
    """Answer every row of `source`; tell on standard error how it goes, and what came of it.

    Raises:
        CannotProceed: the rows cannot be read, the answers cannot be had or written, or there is nothing to resume.
    """
    if output.path is None and (resume or output.form == "parquet"):
        raise CannotProceed("standard output can neither be resumed nor take Parquet; name a file with --output")
    if output.path is not None:
        require_writable(output.path, output.form)
    console = Console(stderr=True)
    total = (await asyncio.to_thread(source.survey)).rows if source.path is not None else None
    async with open_scorer as scorer:
        with Pace(console, source.name, total) as pace:
            if output.path is None:
                tally = await _to_standard_output(source, output.form, scorer, pace)
            else:
                tally = await _to_file(source, output.path, output.form, scorer, pace, resume=resume)
    console.print(f"{tally.rows:,} rows, {pace.rows:,} of them now: {pace.per_s:,.0f}/s")
    tally.show(console)


def require_writable(path: Path, form: Form, *, here: bool = True) -> None:
    """Make sure before the work that answers can be written to `path`, whose directory is known if it is `here`.

    Raises:
        CannotProceed: they cannot.
    """
    if path.suffix == ".gz":
        raise CannotProceed(f"{path}: answers are written unpacked; choose another name")
    if here and not path.parent.is_dir():
        raise CannotProceed(f"there is no directory {path.parent}")
    if form == "parquet":
        parquet_writer()


class Pace:
    """Shows on a terminal how far it is and how long it will take."""

    def __init__(self, console: Console, name: str, total: int | None) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        self._progress = Progress("{task.description}", *columns, console=console, disable=not console.is_terminal)
        self._name, self._total = name, total
        self._begun_at = self._seen_at = time.monotonic()
        self.rows = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, rows: int) -> None:
        """Begin to measure, where `rows` are there already."""
        self._task = self._progress.add_task(self._name, total=self._total, completed=rows)
        self._begun_at = time.monotonic()

    def add(self, rows: int) -> None:
        """Take note of `rows` more."""
        self._progress.advance(self._task, rows)
        self.rows += rows
        self._seen_at = time.monotonic()

    @property
    def per_s(self) -> float:
        """Rows a second."""
        spent_s = self._seen_at - self._begun_at
        return self.rows / spent_s if spent_s else 0.0


@dataclass(frozen=True, slots=True)
class _Asked:
    """A row whose answer has not come."""

    row: Row
    name: str
    checksum: int  # of all texts up to this one


class _Rows:
    """Hands texts over in chunks, and remembers the rows until their answers come."""

    def __init__(self, source: Source, rows: Iterator[tuple[int, Row]]) -> None:
        self._source = source
        self._rows = rows
        self._asked: deque[_Asked] = deque()
        self._checksum = 0

    async def skip(self, count: int, checksum: int) -> None:
        """Pass over rows that have their answers.

        Raises:
            CannotProceed: they are other ones.
        """
        for done in range(0, count, CHUNK):
            await asyncio.to_thread(self._take, min(CHUNK, count - done))
            self._asked.clear()
        if self._checksum != checksum:
            raise CannotProceed(f"{self._source} does not begin with the {count} rows that are answered")

    async def chunks(self) -> AsyncIterator[list[object]]:
        """Yield the texts of what follows."""
        while texts := await asyncio.to_thread(self._take, CHUNK):
            yield texts

    def answered(self) -> _Asked:
        """Return the row to which the next answer belongs."""
        return self._asked.popleft()

    def _take(self, count: int) -> list[object]:
        texts = []
        for number, row in islice(self._rows, count):
            text = row.get(self._source.text)
            self._checksum = add_to_checksum(self._checksum, text)
            self._asked.append(_Asked(row, self._source.name_of(number, row), self._checksum))
            texts.append(text)
        return texts


async def _to_file(source: Source, path: Path, form: Form, scorer: Scorer, pace: Pace, *, resume: bool) -> Tally:
    """Write to a journal, and to `path` when it is complete."""
    run = {"input": str(source), "column": source.text, "model": scorer.model}
    journal = Journal(path, run, resume=resume)
    with ExitStack() as stack:
        stack.callback(journal.close)
        if source.path is not None:
            kept, rows = source, source.rows(texts_only=True)
        else:  # what can be read once is needed twice
            kept = replace(source, path=path.with_name(path.name + ".part.input"))
            assert kept.path is not None  # noqa: S101 (for the type checker)
            copy = stack.enter_context(kept.path.open("w", encoding="utf-8", newline=""))
            rows = source.rows(copy=copy)
        asked = _Rows(source, rows)
        await asked.skip(journal.rows, journal.checksum)
        pace.begin(journal.rows)
        async with aclosing(scorer.answers(asked.chunks())) as chunks:
            async for answers in chunks:
                for answer in answers:
                    row = asked.answered()
                    journal.tally.add(read_answer(answer), row.name)
                    journal.add(answer, row.checksum)
                journal.save()
                pace.add(len(answers))
    await asyncio.to_thread(assemble, kept, journal.answers(), path, form)
    journal.delete()
    if kept is not source and kept.path is not None:
        kept.path.unlink()
    return journal.tally


async def _to_standard_output(source: Source, form: Form, scorer: Scorer, pace: Pace) -> Tally:
    tally = Tally()
    write: Callable[[Row, Answer], None] | None = None
    asked = _Rows(source, source.rows())
    pace.begin(0)
    with _standard_output() as file:
        async with aclosing(scorer.answers(asked.chunks())) as chunks:
            async for answers in chunks:
                for each in answers:
                    answer, row = read_answer(each), asked.answered()
                    write = write or row_writer(file, form, partial(source.columns, row.row))
                    write(row.row, answer)
                    tally.add(answer, row.name)
                file.flush()
                pace.add(len(answers))
    return tally


def _standard_output() -> TextIO:
    return open(sys.stdout.fileno(), "w", encoding="utf-8", errors=ESCAPING, newline="", closefd=False)


class _Rate(ProgressColumn):
    """Rows a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")
