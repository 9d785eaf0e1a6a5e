"""LitServe with its dynamic batching.

https://lightning.ai/docs/litserve/features/batching
"""

# mypy: disable-error-code="import-not-found, misc"
import sys
from typing import Any

import litserve

from loadtest.peers.model import Model


class Sentiment(litserve.LitAPI):
    """Batches are lists of what `decode_request` returns."""

    def setup(self, device: str) -> None:
        """Load the model, in the worker process."""
        del device
        self._model = Model()

    def decode_request(self, request: dict[str, str]) -> str:
        """Return the text."""
        return request["text"]

    def batch(self, inputs: list[str]) -> list[str]:
        """Leave the texts as they are."""
        return inputs

    def predict(self, inputs: list[str]) -> list[dict[str, Any]]:
        """Run the batch."""
        return self._model.predict(inputs)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Leave the answers as they are: they are already one for each text."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Return the answer."""
        return output


if __name__ == "__main__":
    api = Sentiment(max_batch_size=32, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
