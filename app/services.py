"""What the routes see of the running service."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from app.inference.shedding import Shedder
from app.jobs.job import JobLimits
from app.rollout import Rollout
from app.telemetry.prometheus import Metrics

if TYPE_CHECKING:
    from app.jobs.sources import Sources
    from app.jobs.store import JobStore

_STUCK_S: Final = 60.0  # readiness goes off after 10; the longest batch takes a third of a second on two cores


class Draining(asyncio.Event):
    """Whether this server is stopping."""

    def __bool__(self) -> bool:
        return self.is_set()


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What one stream may hold of the service."""

    max_line_bytes: int
    window_lines: int  # in work
    window_bytes: int
    idle_s: float


@dataclass(frozen=True, slots=True)
class Jobs:
    """Batch jobs, where the service keeps them."""

    store: "JobStore"
    limits: JobLimits
    wake: asyncio.Event  # set when there is a new one
    sources: "Sources"


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a route may use; made by `app.wiring.open_services`."""

    models: Rollout
    bundles: Path  # directory of the bundles that an operator may name
    metrics: Metrics
    shedder: Shedder
    max_texts: int
    timeout_s: float
    batch_timeout_s: float
    stream: StreamLimits
    stream_slots: asyncio.Semaphore
    jobs: Jobs | None = None

    def reason_to_restart(self) -> str | None:
        """Return why nothing but a restart of this process helps, or None."""
        running_s = self.models.active.batcher.longest_run_s
        return f"the model has been running one batch for {running_s:.0f} s" if running_s > _STUCK_S else None
