"""Rows with their answers as Parquet. The only importer of Arrow beside the reader of rows."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from app.scoring.output import COLUMNS, Answer, flat
from app.scoring.source import Source

_ROWS: Final = 8_192  # held at a time
_TYPES: Final = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "str": pa.string()}
_ANSWER: Final = pa.schema([(name, _TYPES[kind]) for name, kind in COLUMNS.items()])


def write_parquet(source: Source, answers: Iterable[Answer], path: Path) -> None:
    """Write each row of `source` with its answer; the columns of another Parquet file keep their types.

    Raises:
        ValueError: there are not as many rows as answers.
    """
    if source.form == "parquet":
        schema, batches = _extended(source, iter(answers))
    else:
        schema, batches = _typed(source, answers)
    with pq.ParquetWriter(path, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _extended(source: Source, answers: Iterator[Answer]) -> tuple[Any, Iterator[Any]]:
    file = pq.ParquetFile(source.path)
    kept = [name for name in file.schema_arrow.names if name not in COLUMNS]
    schema = pa.schema([*map(file.schema_arrow.field, kept), *_ANSWER], file.schema_arrow.metadata)

    def batches() -> Iterator[Any]:
        for batch in file.iter_batches(_ROWS):
            chunk = list(islice(answers, batch.num_rows))
            yield pa.record_batch([*map(batch.column, kept), *_columns(chunk)], schema)  # ValueError on unequal lengths
        if next(answers, None) is not None:
            raise ValueError("there are more answers than rows")

    return schema, batches()


def _typed(source: Source, answers: Iterable[Answer]) -> tuple[Any, Iterator[Any]]:
    """Give each column the type that all its values have; where they have several, they are written as JSON."""
    found = {name: kinds - {"NoneType"} for name, kinds in source.survey().columns.items() if name not in COLUMNS}
    chosen = {name: _common(kinds) for name, kinds in found.items()}
    schema = pa.schema([*((name, _TYPES[kind or "str"]) for name, kind in chosen.items()), *_ANSWER])

    def batches() -> Iterator[Any]:
        rows = zip(source.rows(), answers, strict=True)
        while chunk := list(islice(rows, _ROWS)):
            passed = [
                pa.array([_value(row.get(name), kind) for (_, row), _ in chunk], schema.field(name).type)
                for name, kind in chosen.items()
            ]
            yield pa.record_batch([*passed, *_columns([answer for _, answer in chunk])], schema)

    return schema, batches()


def _columns(answers: Sequence[Answer]) -> list[Any]:
    rows = [flat(answer) for answer in answers]
    return [pa.array([row[field.name] for row in rows], field.type) for field in _ANSWER]


def _common(kinds: frozenset[str]) -> str | None:
    """Return the kind of a column's values, or None, if there is none that holds them all."""
    if kinds == {"int", "float"}:
        return "float"
    (kind,) = kinds if len(kinds) == 1 else ("",)
    return kind if kind in _TYPES else None


def _value(value: object, kind: str | None) -> object:
    if value is None or kind in {"bool", "int", "float"}:
        return value
    text = value if isinstance(value, str) and kind else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()
