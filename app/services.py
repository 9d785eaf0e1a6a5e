"""What the routes see of the running service."""

from dataclasses import dataclass
from pathlib import Path

from app.rollout import Rollout
from app.telemetry.prometheus import Metrics


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a route may use; made by `app.wiring.open_services`."""

    models: Rollout
    bundles: Path  # directory of the bundles that an operator may name
    metrics: Metrics
    max_texts: int
    timeout_s: float
    batch_timeout_s: float
