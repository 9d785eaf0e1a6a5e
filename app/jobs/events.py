"""What happens to batch jobs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from app.jobs.job import State


@dataclass(frozen=True, slots=True)
class LinesAnswered:
    """Lines of a job have their answers in the database."""

    lines: int
    errors: int  # of them


@dataclass(frozen=True, slots=True)
class JobsCounted:
    """What the database holds."""

    jobs: Mapping[State, int]
    stored_bytes: int


JobEvent: TypeAlias = LinesAnswered | JobsCounted
