"""Rows with their answers, as JSON lines, CSV or Parquet."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TextIO, TypeAlias

from app.domain.errors import CannotProceed
from app.domain.rows import BadRow, Form, Row
from app.scoring.source import Source

Answer: TypeAlias = Mapping[str, Any]  # with a `sentiment` or an `error`, as the service's streams have them

# Half of a surrogate pair, which UTF-8 cannot hold, becomes what JSON writes for it.
ESCAPING: Final = "backslashreplace"
# Of an answer in a table; of its probabilities, JSON lines alone have all.
COLUMNS: Final = {
    "sentiment_label": "str",
    "sentiment_confidence": "float",
    "sentiment_certain": "bool",
    "sentiment_emotion": "str",
    "sentiment_truncated": "bool",
    "sentiment_model": "str",
    "sentiment_error": "str",
}


def read_answer(line: bytes) -> Answer:
    """Return the answer that a line of JSON holds, without what depends on the order of the work."""
    answer: dict[str, Any] = json.loads(line)
    answer.get("sentiment", {}).pop("cached", None)
    return answer


def flat(answer: Answer) -> dict[str, object]:
    """Return the columns of an answer."""
    found = answer.get("sentiment") or {}
    model = found.get("model")
    values = (
        found.get("label"),
        found.get("confidence"),
        found.get("certain"),
        (found.get("emotion") or {}).get("label"),
        found.get("truncated"),
        f"{model['name']}/{model['version']}" if model else None,
        error_kind(answer),
    )
    return dict(zip(COLUMNS, values, strict=True))


def error_kind(answer: Answer) -> str | None:
    """Return the kind of error that stands in the place of an answer, or None."""
    return str(answer["error"]["type"]).rpartition(":")[2] if "error" in answer else None


def row_writer(file: TextIO, form: Form, columns: Callable[[], Iterable[str]]) -> Callable[[Row, Answer], None]:
    """Return what writes a row and its answer as a line of JSON, or of CSV below a header of `columns()`.

    Raises:
        BadRow: (what is returned) a row has a column that the header lacks.
    """
    if form == "jsonl":
        return lambda row, answer: _write_json(file, row, answer)
    table = csv.DictWriter(file, [*(name for name in columns() if name not in COLUMNS), *COLUMNS])
    table.writeheader()

    def write(row: Row, answer: Answer) -> None:
        try:
            table.writerow({name: _cell(value) for name, value in {**row, **flat(answer)}.items()})
        except ValueError as error:
            raise BadRow(f"a later row has columns that the first lacks ({error}); write JSON lines instead") from None

    return write


def assemble(source: Source, answers: Iterable[Answer], output: Path, form: Form) -> None:
    """Write each row of `source` with its answer to `output`, which is not there before it is whole.

    Raises:
        CannotProceed: there are not as many rows as answers.
    """
    unfinished = output.with_name(output.name + ".new")
    try:
        if form == "parquet":
            write_parquet = parquet_writer()
            write_parquet(source, answers, unfinished)
        else:
            with unfinished.open("w", encoding="utf-8", errors=ESCAPING, newline="") as file:
                write = row_writer(file, form, lambda: source.survey().columns)
                for (_, row), answer in zip(source.rows(), answers, strict=True):
                    write(row, answer)
                file.flush()
                os.fsync(file.fileno())
    except ValueError as error:
        raise CannotProceed(f"{source} has not as many rows as when they were answered ({error})") from None
    unfinished.replace(output)


def parquet_writer() -> Callable[[Source, Iterable[Answer], Path], None]:
    """Return what writes Parquet.

    Raises:
        CannotProceed: the package for it is missing.
    """
    try:
        from app.scoring.parquet import write_parquet  # noqa: PLC0415  # large, and few need it
    except ImportError:
        raise CannotProceed("writing Parquet takes the extra [score], or the package pyarrow") from None
    return write_parquet


def _write_json(file: TextIO, row: Row, answer: Answer) -> None:
    members = {name: value for name, value in row.items() if name not in {"sentiment", "error"}} | dict(answer)
    file.write(json.dumps(members, ensure_ascii=False, default=str) + "\n")


def _cell(value: object) -> str:
    """Return `value` as CSV has it: nothing as nothing, and as JSON what CSV has no form for."""
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, bool | list | dict) else str(value)
