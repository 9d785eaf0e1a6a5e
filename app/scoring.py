"""Score a file in this process, through the same services that answer requests."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import track

from app.api.problems import item_problem
from app.api.schemas import ItemError, SentimentAnswer
from app.domain.errors import CannotProceed, ServiceError
from app.settings import Settings
from app.wiring import open_services

_WINDOW: Final = 1_024  # texts handed over at a time: enough to find neighbours of equal length


async def score_file(file: Path, output: Path, settings: Settings) -> None:
    """Write one JSON line to `output` for each text of `file`, in order: the answer, or the error.

    Raises:
        CannotProceed: the file is not UTF-8 or lacks a text, or the services cannot start.
    """
    try:
        texts = list(_read(file))
    except UnicodeDecodeError:
        raise CannotProceed(f"{file} is not in UTF-8; convert it, as with iconv -f GB18030 -t UTF-8") from None
    windows = [texts[start : start + _WINDOW] for start in range(0, len(texts), _WINDOW)]
    async with open_services(settings) as services:
        with output.open("w", encoding="utf-8") as lines:
            for window in track(windows, description=file.name, console=Console(stderr=True)):
                for outcome in await services.classifier.classify_many(window, timeout_s=None):
                    answer = (
                        ItemError(error=item_problem(outcome))
                        if isinstance(outcome, ServiceError)
                        else SentimentAnswer.of(outcome)
                    )
                    lines.write(answer.model_dump_json() + "\n")


def _read(file: Path) -> Iterator[object]:
    with file.open(encoding="utf-8-sig", newline="") as lines:  # spreadsheets begin a CSV with a byte order mark
        if file.suffix.lower() == ".csv":
            reader = csv.DictReader(lines)
            if "text" not in (reader.fieldnames or ()):
                raise CannotProceed(f"{file} has no column 'text'")
            try:
                yield from (row["text"] for row in reader)
            except csv.Error as error:
                raise CannotProceed(f"{file}, line {reader.line_num}: {error}") from None
            return
        for number, line in enumerate(lines, start=1):
            try:
                yield json.loads(line)["text"]
            except (ValueError, KeyError, TypeError):
                raise CannotProceed(f"{file}, line {number}: not a JSON object with 'text'") from None
