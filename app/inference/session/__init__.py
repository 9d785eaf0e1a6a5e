"""An ONNX model on an execution provider that was chosen, and proven to be the one that runs.

Nothing else in serving imports onnxruntime. Knows arrays; nothing of text or labels.
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal, TypeAlias

import structlog

from app.domain.errors import StartupError
from app.inference.session.cpu import open_cpu
from app.inference.session.nvidia import open_cuda, open_tensorrt
from app.inference.session.openvino import open_openvino
from app.inference.session.placement import Gpu, Placement, Precision, Provider, Request
from app.inference.session.running import BoundModel, OnnxModel

__all__ = ["BoundModel", "Gpu", "OnnxModel", "Placement", "Precision", "Provider", "open_model"]

_log = structlog.get_logger(__name__)
_Opener: TypeAlias = Callable[[Request], OnnxModel | BoundModel]
_OPENERS: Final[dict[Provider, _Opener]] = {
    "cuda": open_cuda,
    "tensorrt": open_tensorrt,
    "openvino": open_openvino,
    "cpu": open_cpu,
}
_AUTO: Final[tuple[Provider, ...]] = ("cuda", "openvino", "cpu")  # TensorRT compiles for minutes: by name alone


def open_model(
    file: Path,
    *,
    provider: Provider | Literal["auto"] = "auto",
    precision: Precision | Literal["auto"] = "auto",
    threads: int,
    streams: int | None = None,
    gpu: Gpu | None = None,
) -> OnnxModel | BoundModel:
    """Load `file` on `provider`; `streams` runs may then go on at once, with `threads` threads among them.

    Without `streams` it is as many as measured best: two where OpenVINO has two threads or more, else one.

    "auto" takes CUDA if it comes up, else OpenVINO, else ONNX Runtime's own CPU provider; each one passed over is
    logged with its reason. The same word for `precision` takes bf16 on a processor that has it, fp16 on a GPU if `gpu`
    names a file for it or TensorRT makes it, else fp32.

    Raises:
        StartupError: the provider or precision asked for is not to be had; the message says what to install.
    """
    _refuse_both_wheels()
    request = Request(file, precision, threads, streams, gpu or Gpu())
    if provider != "auto":
        return _OPENERS[provider](request)
    reasons = []
    for candidate in _AUTO:
        try:
            return _OPENERS[candidate](request)
        except StartupError as error:
            _log.info("provider passed over", provider=candidate, reason=str(error))
            reasons.append(f"{candidate}: {error}")
    raise StartupError(f"no provider comes up: {'; '.join(reasons)}")


def _refuse_both_wheels() -> None:
    """Refuse an environment with both ONNX Runtime wheels: they share one package folder, the later wins in part."""
    if _is_installed("onnxruntime") and _is_installed("onnxruntime-gpu"):
        raise StartupError(
            "both onnxruntime and onnxruntime-gpu are installed and overwrite each other: "
            "pip uninstall onnxruntime onnxruntime-gpu, then install one of the extras [cpu] and [gpu]"
        )


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True
