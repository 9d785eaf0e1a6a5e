"""An ONNX model on an execution provider that was chosen, and proven to be the one that runs.

The only importer of onnxruntime. Knows arrays; nothing of text, batching policy or labels.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Final, Literal, TypeAlias

import numpy as np
import onnxruntime
import structlog
from numpy.typing import NDArray

from app.domain.errors import StartupError
from app.inference.processor import has_bf16

Provider: TypeAlias = Literal["cuda", "openvino", "cpu"]
Precision: TypeAlias = Literal["bf16", "fp32"]

_EXECUTION_PROVIDERS: Final[dict[Provider, str]] = {
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how a model runs."""

    provider: Provider
    precision: Precision
    threads: int
    streams: int  # runs that may go on at the same time, sharing the threads


class OnnxModel:
    """A loaded model. `run` may be called from several threads at once.

    A run that has the model to itself goes to the session `alone`, if there is one, which gives it all threads.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        placement: Placement,
        *,
        alone: onnxruntime.InferenceSession | None = None,
    ) -> None:
        self._session = session
        self._alone = alone or session
        self._running = 0
        self._counting = Lock()
        self.placement = placement

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return logits (B, L) for `input_ids` (B, T) and `attention_mask` (B, T)."""
        with self._counting:
            session = self._session if self._running else self._alone
            self._running += 1
        try:
            (logits,) = session.run(["logits"], {"input_ids": input_ids, "attention_mask": attention_mask})
        finally:
            with self._counting:
                self._running -= 1
        result: NDArray[np.float32] = logits
        return result


def open_model(
    file: Path,
    *,
    provider: Provider | Literal["auto"] = "auto",
    precision: Precision | Literal["auto"] = "auto",
    threads: int,
    streams: int | None = None,
) -> OnnxModel:
    """Load `file` on `provider`; `streams` runs may then go on at once, with `threads` threads among them.

    Without `streams` it is as many as measured best: two where OpenVINO has two threads or more, else one.

    "auto" takes CUDA if it comes up, else OpenVINO, else ONNX Runtime's own CPU provider; each one passed over is
    logged with its reason. The same word for `precision` takes bf16 where provider and processor have it.

    Raises:
        StartupError: the provider or precision asked for is not to be had; the message says what to install.
    """
    _refuse_both_wheels()
    if provider != "auto":
        return _OPENERS[provider](file, precision, threads, streams)
    reasons = []
    for candidate, opener in _OPENERS.items():
        try:
            return opener(file, precision, threads, streams)
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


def _open_cuda(file: Path, precision: Precision | Literal["auto"], threads: int, streams: int | None) -> OnnxModel:
    if _EXECUTION_PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        raise StartupError("this ONNX Runtime has no CUDA provider: install the extra [gpu] instead of [cpu]")
    if precision == "bf16":
        raise StartupError("precision bf16 is for the OpenVINO provider; on CUDA use fp32")
    onnxruntime.preload_dlls()
    options = _session_options(threads)
    settings = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
    session = _create(file, options, providers=[(_EXECUTION_PROVIDERS["cuda"], settings)])
    return _proven(session, Placement("cuda", "fp32", threads, streams or 1))


def _open_openvino(file: Path, precision: Precision | Literal["auto"], threads: int, streams: int | None) -> OnnxModel:
    if find_spec("onnxruntime_ep_openvino") is None:
        raise StartupError("the OpenVINO provider is not installed: install the extra [cpu] on x86-64")
    if precision == "bf16" and not has_bf16():
        raise StartupError("precision bf16 asked for, but this processor has neither AMX nor AVX-512 bf16: use fp32")
    chosen: Precision = "bf16" if precision != "fp32" and has_bf16() else "fp32"
    streams = streams or min(2, threads)
    session = _create_openvino(file, chosen, threads, streams)
    # A run in a stream of its own has the threads of that stream and no more: a lone text would take twice as long.
    alone = _create_openvino(file, chosen, threads, 1) if streams > 1 else None
    return _proven(session, Placement("openvino", chosen, threads, streams), alone=alone)


def _create_openvino(file: Path, precision: Precision, threads: int, streams: int) -> onnxruntime.InferenceSession:
    options = _session_options(threads)
    # A node that OpenVINO cannot take must stop the start, not run slowly elsewhere.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    config = {
        "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else precision,
        "INFERENCE_NUM_THREADS": str(threads),
        "NUM_STREAMS": str(streams),
    }
    try:
        options.add_provider_for_devices(_openvino_devices(), {"load_config": json.dumps({"CPU": config})})
        return _create(file, options)
    except StartupError:
        raise
    except Exception as error:  # onnxruntime's errors derive from Exception directly
        raise StartupError(f"the OpenVINO provider does not come up: {error}") from error


@cache
def _openvino_devices() -> list[onnxruntime.OrtEpDevice]:
    """Register the plug-in, which a process may do once, and return its processor devices."""
    import onnxruntime_ep_openvino  # noqa: PLC0415 (not to be had on every platform)

    onnxruntime.register_execution_provider_library("openvino", onnxruntime_ep_openvino.get_library_path())
    return [
        device
        for device in onnxruntime.get_ep_devices()
        if device.ep_name == _EXECUTION_PROVIDERS["openvino"]
        and device.device.type == onnxruntime.OrtHardwareDeviceType.CPU
    ]


def _open_cpu(file: Path, precision: Precision | Literal["auto"], threads: int, streams: int | None) -> OnnxModel:
    if precision == "bf16":
        raise StartupError("precision bf16 asked for, but ONNX Runtime's own CPU provider has fp32 only")
    session = _create(file, _session_options(threads), providers=[_EXECUTION_PROVIDERS["cpu"]])
    return _proven(session, Placement("cpu", "fp32", threads, streams or 1))


_Opener: TypeAlias = Callable[[Path, Precision | Literal["auto"], int, int | None], OnnxModel]
# In the order in which "auto" tries them.
_OPENERS: Final[dict[Provider, _Opener]] = {"cuda": _open_cuda, "openvino": _open_openvino, "cpu": _open_cpu}


def _session_options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Shapes vary from run to run: a planned memory pattern would be kept for each of them.
    options.enable_mem_pattern = False
    # A waiting thread that spins takes the processor from the event loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _create(
    file: Path,
    options: onnxruntime.SessionOptions,
    providers: list[str] | list[tuple[str, dict[str, str]]] | None = None,
) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime raises plain Exception subclasses of its own
        raise StartupError(f"{file} does not load: {error}") from error


def _proven(
    session: onnxruntime.InferenceSession, placement: Placement, *, alone: onnxruntime.InferenceSession | None = None
) -> OnnxModel:
    """Return the model if its provider truly runs it: ONNX Runtime may fall back to the CPU without an error."""
    name = _EXECUTION_PROVIDERS[placement.provider]
    assigned = {subgraph.ep_name for subgraph in session.get_provider_graph_assignment_info()}
    if session.get_providers()[0] != name or name not in assigned:
        raise StartupError(
            f"{placement.provider} was asked for, but ONNX Runtime runs the model on {', '.join(sorted(assigned))}: "
            "its libraries are missing or do not fit the driver"
        )
    ends = [sorted(node.name for node in nodes) for nodes in (session.get_inputs(), session.get_outputs())]
    if ends != [["attention_mask", "input_ids"], ["logits"]]:
        raise StartupError(
            "the model takes {} and gives {}; it must take attention_mask and input_ids and give logits".format(
                *(" and ".join(names) for names in ends)
            )
        )
    return OnnxModel(session, placement, alone=alone)
