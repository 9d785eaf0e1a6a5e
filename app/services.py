"""What the routes see of the running service."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from app.inference.bundle import Manifest
from app.inference.classifier import Classifier
from app.inference.session import Placement
from app.telemetry.prometheus import Metrics


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a route may use; made by `app.wiring.open_services`."""

    classifier: Classifier
    metrics: Metrics
    manifest: Manifest
    placement: Placement
    reason_not_ready: Callable[[], Awaitable[str | None]]
    max_texts: int
    timeout_s: float
    batch_timeout_s: float
