"""Ray Serve with its dynamic request batching: one replica behind one proxy.

https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html
"""

# mypy: disable-error-code="import-not-found, untyped-decorator, attr-defined"
import sys
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from loadtest.peers.model import Model


@serve.deployment(num_replicas=1, max_ongoing_requests=256)
class Sentiment:
    """More requests than two batches may be under way, or the batches would not fill."""

    def __init__(self) -> None:
        self._model = Model()

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.005)
    async def predict(self, texts: list[str]) -> list[dict[str, Any]]:
        """Run the batch."""
        return self._model.predict(texts)

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Return the answer to one text."""
        answer: dict[str, Any] = await self.predict((await request.json())["text"])
        return answer


if __name__ == "__main__":
    ray.init(include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Sentiment.bind(), blocking=True)
