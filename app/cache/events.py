"""What happens at Redis, as facts for those who count and log."""

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from app.cache.breaker import State


class Operation(Enum):
    """What is asked of Redis."""

    CONNECT = "connect"
    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class CommandFinished:
    """Redis answered for so many entries, or failed in one of a few ways: `error`."""

    operation: Operation
    entries: int
    duration_s: float
    error: str | None


@dataclass(frozen=True, slots=True)
class WritesDropped:
    """Answers will not be written: too many were waiting, or Redis is out of use."""

    entries: int


@dataclass(frozen=True, slots=True)
class BreakerChanged:
    """Redis is used, is not, or is being tried, for this operation."""

    operation: Operation
    before: State
    after: State
    reason: str | None


CacheEvent: TypeAlias = CommandFinished | WritesDropped | BreakerChanged
