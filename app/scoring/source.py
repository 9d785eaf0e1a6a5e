"""Where texts come from: rows of a file or of standard input. Knows nothing of answers."""

import io
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from app.domain.rows import BadRow, Form, Row, read_rows, rows_of

_LARGEST: Final = 2**63  # beyond, Arrow has no integers


@dataclass(frozen=True, slots=True)
class Survey:
    """What a first reading of all rows found."""

    rows: int
    columns: Mapping[str, frozenset[str]]  # in the order of their appearance, with the kinds of their values


@dataclass(frozen=True, slots=True)
class Source:
    """Rows with a text each; without a `path`, those of standard input."""

    path: Path | None
    form: Form
    text: str  # the column
    id: str | None = None  # the column that names a row, where it has to be named

    @property
    def name(self) -> str:
        """A short name."""
        return self.path.name if self.path is not None else str(self)

    def __str__(self) -> str:
        return str(self.path or "standard input")

    def name_of(self, number: int, row: Row) -> str:
        """Return what people know the row of line `number` by."""
        return f"line {number}" + (f" ({row.get(self.id)})" if self.id else "")

    def rows(self, *, texts_only: bool = False, copy: TextIO | None = None) -> Iterator[tuple[int, Row]]:
        """Yield line number and columns of each row; standard input can be read once, and is written to `copy`.

        Raises:
            BadRow: a row cannot be read, or the first has no such column.
        """
        wanted = [self.text, *([self.id] if self.id else [])] if texts_only else None
        first = True
        for number, row in self._read(wanted, copy):
            if None in row:  # where the csv module puts cells beyond the header's
                raise BadRow(f"{self}, line {number}: more cells than columns")
            if first and self.text not in row:
                columns = ", ".join(map(repr, row))
                raise BadRow(f"{self}, line {number}: no text in column {self.text!r}; the columns are {columns}")
            first = False
            yield number, row

    def survey(self) -> Survey:
        """Read every row, so that a file that cannot be read is known before hours of work.

        Raises:
            BadRow: it cannot.
        """
        if self.form == "parquet":  # which knows the types of its columns
            _, first = next(self.rows(), (0, {}))
            return Survey(sum(1 for _ in self.rows(texts_only=True)), dict.fromkeys(first, frozenset()))
        columns: dict[str, set[str]] = {}
        rows = 0
        for _, row in self.rows():
            rows += 1
            for name, value in row.items():
                columns.setdefault(name, set()).add(_kind(value))
        return Survey(rows, {name: frozenset(kinds) for name, kinds in columns.items()})

    def columns(self, first: Row) -> Iterable[str]:
        """Return the columns of all rows; of standard input, those of the `first`."""
        return first if self.path is None else self.survey().columns

    def _read(self, columns: list[str] | None, copy: TextIO | None) -> Iterator[tuple[int, Row]]:
        if self.path is not None:
            return read_rows(self.path, form=self.form, columns=columns)
        if self.form == "parquet":
            raise BadRow("Parquet cannot be read from standard input; give a file")
        lines = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", newline="")
        return rows_of(lines if copy is None else _copied(lines, copy), self.form, str(self))


def add_to_checksum(checksum: int, text: object) -> int:
    """Return the checksum of the texts that have `checksum`, and of `text` after them."""
    return zlib.crc32(repr(text).encode(), checksum)


def _copied(lines: TextIO, copy: TextIO) -> Iterator[str]:
    for line in lines:
        copy.write(line)
        yield line


def _kind(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and not -_LARGEST <= value < _LARGEST:
        return "large"
    return type(value).__name__
