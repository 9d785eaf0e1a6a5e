"""Triton Inference Server with its dynamic batcher, through PyTriton.

https://triton-inference-server.github.io/pytriton/latest/binding_models/; for the library path
https://triton-inference-server.github.io/pytriton/latest/installation/
"""

# mypy: disable-error-code="import-not-found, untyped-decorator"
import os
import sys
import sysconfig

import numpy as np
from numpy.typing import NDArray
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from loadtest.peers.model import Model

model = Model()


@batch
def infer(text: NDArray[np.bytes_]) -> dict[str, NDArray[np.generic]]:
    """Run the batch: a column of texts in UTF-8."""
    answers = model.predict([value.decode() for value in text[:, 0]])
    return {
        "label": np.char.encode([[answer["label"]] for answer in answers]),
        "probabilities": np.array([list(answer["probabilities"].values()) for answer in answers], np.float32),
    }


if __name__ == "__main__":
    # Or Triton's own process would find the library of another Python than this one.
    os.environ["LD_LIBRARY_PATH"] = str(sysconfig.get_config_var("LIBDIR"))
    config = TritonConfig(http_address="127.0.0.1", http_port=int(sys.argv[1]), allow_grpc=False, allow_metrics=False)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="sentiment",
            infer_func=infer,
            inputs=[Tensor(name="text", dtype=bytes, shape=(1,))],
            outputs=[
                Tensor(name="label", dtype=bytes, shape=(1,)),
                Tensor(name="probabilities", dtype=np.float32, shape=(3,)),
            ],
            config=ModelConfig(max_batch_size=32, batcher=DynamicBatcher(max_queue_delay_microseconds=5000)),
        )
        triton.serve()
