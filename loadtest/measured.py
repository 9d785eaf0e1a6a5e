"""What a benchmark found."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from loadtest.load import Load


@dataclass
class Measured:
    """Everything of one benchmark; lists have an entry for each round."""

    date: str
    machine: str
    versions: dict[str, str]
    rounds: int
    seconds: int
    engine_per_s: dict[int, list[float]] = field(default_factory=dict)  # by streams
    engine_alone_ms: list[float] = field(default_factory=list)
    ms_by_tokens: dict[int, dict[int, float]] = field(default_factory=dict)  # by rows, by tokens
    loads: dict[str, list[Load]] = field(default_factory=dict)  # by "server: case"
    cores: dict[str, list[float]] = field(default_factory=dict)  # used by a server, by its name
    memory_mib: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # servers that did not start, and why


def medians(loads: Sequence[Load]) -> Load:
    """Return the median of each figure, and all errors."""
    middle = {
        name: statistics.median(getattr(load, name) for load in loads)
        for name in ("per_s", "offered_per_s", "p50_ms", "p99_ms", "mean_ms")
    }
    return Load(errors=sum(load.errors for load in loads), **middle)
