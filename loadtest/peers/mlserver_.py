"""MLServer with a custom runtime; its adaptive batching is set in mlserver_settings/model-settings.json.

https://docs.seldon.ai/mlserver/user-guide/custom and https://docs.seldon.ai/mlserver/user-guide/adaptive-batching
"""

# mypy: disable-error-code="import-not-found, misc"
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from loadtest.peers.model import Model


class Sentiment(MLModel):
    """Speaks the Open Inference Protocol."""

    async def load(self) -> bool:
        """Load the model, in the worker process."""
        self._model = Model()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run the batch: the texts of several requests in one input."""
        answers = self._model.predict(StringCodec.decode_input(payload.inputs[0]))
        probabilities = np.array([list(answer["probabilities"].values()) for answer in answers])
        return InferenceResponse(
            model_name=self.name,
            outputs=[
                StringCodec.encode_output("label", [answer["label"] for answer in answers]),
                NumpyCodec.encode_output("probabilities", probabilities),
            ],
        )
