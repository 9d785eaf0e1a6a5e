"""Score a file in this process, through the same services that answer requests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import track

from app.api.problems import item_problem
from app.api.schemas import ItemError, SentimentAnswer
from app.domain.errors import ServiceError
from app.domain.rows import BadRow, read_rows
from app.settings import Settings
from app.wiring import open_services

_WINDOW: Final = 1_024  # texts handed over at a time: enough to find neighbours of equal length


async def score_file(file: Path, output: Path, settings: Settings) -> None:
    """Write one JSON line to `output` for each text of `file`, in order: the answer, or the error.

    Raises:
        BadRow: the file is not UTF-8, or a row has no column `text`.
        StartupError: the services cannot start.
    """
    texts = list(_read(file))
    windows = [texts[start : start + _WINDOW] for start in range(0, len(texts), _WINDOW)]
    async with open_services(settings) as services:
        with output.open("w", encoding="utf-8") as lines:
            for window in track(windows, description=file.name, console=Console(stderr=True)):
                for outcome in await services.models.active.classifier.classify_many(window, timeout_s=None):
                    answer = (
                        ItemError(error=item_problem(outcome))
                        if isinstance(outcome, ServiceError)
                        else SentimentAnswer.of(outcome)
                    )
                    lines.write(answer.model_dump_json() + "\n")


def _read(file: Path) -> Iterator[object]:
    for number, row in read_rows(file):
        if "text" not in row:
            raise BadRow(f"{file}, line {number}: no text in column 'text'")
        yield row["text"]
