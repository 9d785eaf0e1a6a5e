"""BentoML with its adaptive batching.

It learns how long to wait. `max_latency_ms` is no such wait: requests that would take longer than that get a 503, so
it stays at its default.

https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html
"""

# mypy: disable-error-code="import-not-found, untyped-decorator"
from typing import Any

import bentoml

from loadtest.peers.model import Model


@bentoml.service(workers=1)
class Sentiment:
    """A batchable route takes a list: a client's single text is a list of one."""

    def __init__(self) -> None:
        self._model = Model()

    @bentoml.api(batchable=True, max_batch_size=32)
    def predict(self, texts: list[str]) -> list[dict[str, Any]]:
        """Run the batch."""
        return self._model.predict(texts)
