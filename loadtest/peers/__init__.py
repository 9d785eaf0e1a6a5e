"""The servers that ours is compared with, each set up as its own documentation says, around the same model.

Every one runs alone in a virtual environment of its own, so these files import nothing of `app`.

Infinity 0.0.78 is not among them: its ONNX classifier reads one softmax over all logits, while the model has two heads,
and it hands texts to a pipeline of transformers that runs them one at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

_RUNTIME: Final = (
    "onnxruntime==1.31.1",
    "onnxruntime-ep-openvino==1.8.1; platform_machine == 'x86_64'",
    "tokenizers==0.22.2",
)
_MODEL: Final = ("numpy==2.4.6", *_RUNTIME)


def _plain(text: str) -> object:
    return {"text": text}


def _plain_label(answer: Any) -> str:
    return str(answer["label"])


def _v2(text: str) -> object:
    return {"inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [text]}]}


def _v2_label(answer: Any) -> str:
    (label,) = (output["data"][0] for output in answer["outputs"] if output["name"] == "label")
    return str(label)


@dataclass(frozen=True, slots=True)
class Peer:
    """A server: what to install, how to start it, how to ask it."""

    name: str
    requirements: tuple[str, ...]
    command: tuple[str, ...]  # {python}, {bin}, {port} and {here} (this folder) are filled in
    path: str
    body: Callable[[str], object] = _plain
    label: Callable[[Any], str] = _plain_label  # reads the label from a decoded answer
    ready: str | None = None  # asked before the first text, where the server has such a route


PEERS: Final[dict[str, Peer]] = {
    peer.name: peer
    for peer in (
        Peer(
            "naive",
            (*_MODEL, "fastapi==0.165.0", "httptools==0.9.0", "uvicorn==0.54.0", "uvloop==0.23.0"),
            ("{bin}/uvicorn", "loadtest.peers.naive:app", "--port", "{port}", "--no-access-log"),
            "/predict",
        ),
        Peer(
            "litserve",
            (*_MODEL, "litserve==0.2.19"),
            ("{python}", "-m", "loadtest.peers.litserve_", "{port}"),
            "/predict",
            ready="/health",
        ),
        Peer(
            "bentoml",
            (*_MODEL, "bentoml==1.4.39"),
            ("{bin}/bentoml", "serve", "loadtest.peers.bentoml_:Sentiment", "--host", "127.0.0.1", "--port", "{port}"),
            "/predict",
            body=lambda text: {"texts": [text]},
            label=lambda answer: _plain_label(answer[0]),
            ready="/readyz",
        ),
        Peer(
            "ray",
            (*_MODEL, "ray[serve]==2.60.0"),
            ("{python}", "-m", "loadtest.peers.ray_", "{port}"),
            "/",
            ready="/-/healthz",
        ),
        Peer(
            "mlserver",
            (*_MODEL, "mlserver==1.7.1", "uvloop==0.21.0"),  # its workers do not start with the uvloop of today
            (
                "env",
                "MLSERVER_HTTP_PORT={port}",
                "MLSERVER_GRPC_PORT=0",
                "MLSERVER_METRICS_ENDPOINT=",
                "{bin}/mlserver",
                "start",
                "{here}/mlserver_settings",
            ),
            "/v2/models/sentiment/infer",
            body=_v2,
            label=_v2_label,
            ready="/v2/models/sentiment/ready",
        ),
        Peer(
            "triton",
            ("numpy==1.26.4", *_RUNTIME, "nvidia-pytriton==0.7.0"),  # it takes no numpy 2
            ("{python}", "-m", "loadtest.peers.triton_", "{port}"),
            "/v2/models/sentiment/infer",
            body=_v2,
            label=_v2_label,
            ready="/v2/models/sentiment/ready",
        ),
    )
}
