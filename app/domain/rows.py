"""Rows out of a file of texts: JSON lines or CSV, optionally gzipped, in UTF-8 with or without a mark; or Parquet."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO, cast

from app.domain.errors import CannotProceed


class BadRow(CannotProceed):
    """A row of a file cannot be used; the message names file and line."""


def read_rows(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Yield line number and columns of each row of `path`; the name's ending tells the format.

    Raises:
        BadRow: a row is not a JSON object, or no CSV, the file is not in UTF-8, or it is no gzip or Parquet.
    """
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    unpack = gzip.open if path.suffix == ".gz" else open
    with cast(TextIO, unpack(path, "rt", encoding="utf-8-sig", newline="")) as lines:  # newline as csv wants it
        rows = _csv_rows if path.name.lower().removesuffix(".gz").endswith(".csv") else _json_rows
        try:
            yield from rows(path, lines)
        except UnicodeDecodeError:
            raise BadRow(f"{path} is not in UTF-8; convert it, as with iconv -f GB18030 -t UTF-8") from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise BadRow(f"{path} is no whole gzip file: {error}") from None


def _csv_rows(path: Path, lines: TextIO) -> Iterator[tuple[int, Mapping[str, object]]]:
    reader = csv.DictReader(lines)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise BadRow(f"{path}, line {reader.reader.line_num}: {error}") from None


def _json_rows(path: Path, lines: TextIO) -> Iterator[tuple[int, Mapping[str, object]]]:
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadRow(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise BadRow(f"{path}, line {number}: not a JSON object")
        yield number, row


def _parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    try:
        from pyarrow import ArrowException  # noqa: PLC0415  # large, and few need it
        from pyarrow.parquet import ParquetFile  # noqa: PLC0415
    except ImportError:
        raise BadRow(f"{path}: reading Parquet takes the package pyarrow (pip install pyarrow)") from None
    number = 0
    try:
        for batch in ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except ArrowException as error:
        raise BadRow(f"{path}, after row {number}: {error}") from None
