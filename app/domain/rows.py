"""Rows out of a file of texts: JSON lines or CSV, optionally gzipped, in UTF-8 with or without a mark; or Parquet."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TextIO, TypeAlias, cast

from app.domain.errors import CannotProceed

_PARQUET_ROWS = 8_192  # held at a time
Form: TypeAlias = Literal["jsonl", "csv", "parquet"]
Row: TypeAlias = Mapping[str, object]


class BadRow(CannotProceed):
    """A row of a file cannot be used; the message names file and line."""


def form_of(path: Path) -> Form:
    """Return the format that the ending of a name tells; what is not called otherwise is JSON lines."""
    if path.suffix == ".parquet":
        return "parquet"
    return "csv" if path.name.lower().removesuffix(".gz").endswith(".csv") else "jsonl"


def read_rows(
    path: Path, *, form: Form | None = None, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, Row]]:
    """Yield line number and columns of each row of `path`; by default, the name's ending tells the format.

    Where the format lets it, no more than `columns` are read.

    Raises:
        BadRow: a row is not a JSON object, or no CSV, the file is not in UTF-8, or it is no gzip or Parquet.
    """
    form = form or form_of(path)
    if form == "parquet":
        yield from _parquet_rows(path, columns)
        return
    unpack = gzip.open if path.suffix == ".gz" else open
    with cast(TextIO, unpack(path, "rt", encoding="utf-8-sig", newline="")) as lines:  # newline as csv wants it
        yield from rows_of(lines, form, str(path))


def rows_of(lines: Iterable[str], form: Literal["jsonl", "csv"], name: str) -> Iterator[tuple[int, Row]]:
    """Do as `read_rows` with lines that come from elsewhere, called `name`."""
    rows = _csv_rows if form == "csv" else _json_rows
    try:
        yield from rows(name, lines)
    except UnicodeDecodeError:
        raise BadRow(f"{name} is not in UTF-8; convert it, as with iconv -f GB18030 -t UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadRow(f"{name} is no whole gzip file: {error}") from None


def _csv_rows(path: str, lines: Iterable[str]) -> Iterator[tuple[int, Row]]:
    reader = csv.DictReader(lines)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise BadRow(f"{path}, line {reader.reader.line_num}: {error}") from None


def _json_rows(path: str, lines: Iterable[str]) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadRow(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise BadRow(f"{path}, line {number}: not a JSON object")
        yield number, row


def _parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[tuple[int, Row]]:
    try:
        from pyarrow import ArrowException  # noqa: PLC0415  # large, and few need it
        from pyarrow.parquet import ParquetFile  # noqa: PLC0415
    except ImportError:
        raise BadRow(f"{path}: reading Parquet takes the package pyarrow (pip install pyarrow)") from None
    number = 0
    try:
        for batch in ParquetFile(path).iter_batches(_PARQUET_ROWS, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except ArrowException as error:
        raise BadRow(f"{path}, after row {number}: {error}") from None
