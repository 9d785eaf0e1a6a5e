"""What a batch job is."""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Where a job stands."""

    UPLOADING = "uploading"  # seen by nobody
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"  # processes that worked on it died again and again


@dataclass(frozen=True, slots=True)
class Job:
    """What is known of a job: all but its lines. Times are seconds since 1970."""

    id: str
    state: State
    lines: int  # that ask for an answer
    done: int  # of them
    errors: int  # of these
    created_at: float
    started_at: float | None
    ended_at: float | None
    expires_at: float


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on a job: nobody else may, while it is renewed."""

    job: str
    caller: str
    cache_use: str
    token: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some lines of a job that are answered together."""

    number: int
    lines: int
    body: bytes
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class JobLimits:
    """What jobs may hold of the service."""

    max_bytes: int  # of one job, unpacked
    max_lines: int  # of one job
    max_open: int  # that have not ended
    max_of_caller: int  # that are kept, ended ones included
    max_stored_bytes: int  # of all jobs, as they are stored
    retention_s: float  # after the last that happened to a job


class ClaimLost(Exception):
    """A job was cancelled, deleted or taken over while it was worked on."""
