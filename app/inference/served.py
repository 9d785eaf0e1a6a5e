"""A bundle at work: all that one model needs to answer."""

from dataclasses import dataclass
from pathlib import Path

from app.inference.batcher import Batcher
from app.inference.bundle import Manifest
from app.inference.classifier import Classifier
from app.inference.cost import CostModel
from app.inference.engine import Probabilities
from app.inference.health import ModelHealth
from app.inference.session import Placement
from app.inference.tokenizer import TokenIds


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One loaded, proven and warm bundle. Whoever opens it closes it."""

    directory: Path
    manifest: Manifest
    fingerprint: str
    placement: Placement
    classifier: Classifier
    batcher: Batcher[TokenIds, Probabilities]
    cost: CostModel
    health: ModelHealth

    @property
    def name(self) -> str:
        """Name and version, as operators say it."""
        return f"{self.manifest.name}/{self.manifest.version}"

    async def reason_not_ready(self) -> str | None:
        """Return why the model cannot be trusted now, or None."""
        return await self.health.reason_not_ready(self.batcher)
