"""NVIDIA's GPUs: ONNX Runtime's CUDA and TensorRT providers, on the first device that CUDA_VISIBLE_DEVICES leaves.

Nothing here has been run on a GPU yet; options and messages are those of ONNX Runtime 1.31.1.
"""

import ctypes
import hashlib
import io
import re
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import onnxruntime
import structlog

from app.domain.errors import StartupError
from app.inference.session.opening import create, prove, session_options
from app.inference.session.placement import EXECUTION_PROVIDERS, Gpu, Placement, Precision, Provider, Request
from app.inference.session.running import GRAPHS_TURN, BoundModel

_log = structlog.get_logger(__name__)
# What ONNX Runtime loads besides the libraries that come with the extra [gpu], and what brings it.
_LIBRARIES: Final[dict[Provider, dict[str, str]]] = {
    "cuda": {"libcuda.so.1": "the NVIDIA driver; a container needs --gpus all"},
    "tensorrt": {
        "libcuda.so.1": "the NVIDIA driver; a container needs --gpus all",
        "libnvinfer.so.10": "TensorRT 10 for CUDA 13",
    },
}


def open_cuda(request: Request) -> BoundModel:
    """Load the model on CUDA: in fp16 if there is a file for it and nothing else is asked for, or in fp32.

    Raises:
        StartupError: CUDA does not come up, or the precision is not to be had.
    """
    if request.precision == "bf16":
        raise StartupError("precision bf16 is for OpenVINO and TensorRT; on CUDA use fp16 or fp32")
    if request.precision == "fp16" and request.gpu.half is None:
        raise StartupError(
            "precision fp16 asked for, but the bundle has no model for it: python -m app bundle half DIRECTORY adds one"
        )
    _refuse_other_wheel("cuda")
    half = None if request.precision == "fp32" else request.gpu.half
    placement = Placement("cuda", "fp32" if half is None else "fp16", request.threads, request.streams or 1)
    providers = [(EXECUTION_PROVIDERS["cuda"], cuda_options(request.gpu))]
    return _open(half or request.file, placement, providers, request.gpu)


def open_tensorrt(request: Request) -> BoundModel:
    """Load the model on TensorRT, which compiles it when it meets it first; CUDA runs what it does not take.

    Raises:
        StartupError: TensorRT does not come up, or CUDA graphs are asked for.
    """
    if request.gpu.graphs:
        raise StartupError("CUDA graphs are for CUDA: ONNX Runtime replays TensorRT's first one whatever the shape is")
    _refuse_other_wheel("tensorrt")
    engines = engine_directory(request)
    try:
        engines.mkdir(parents=True, exist_ok=True)
        if not any(engines.iterdir()):
            _log.info("TensorRT has no engine for this model yet, and compiling takes minutes", engines=str(engines))
    except OSError as error:
        raise StartupError(f"TensorRT cannot keep its engines in {engines}: {error.strerror}") from error
    precision: Precision = "fp16" if request.precision == "auto" else request.precision
    providers = [
        (EXECUTION_PROVIDERS["tensorrt"], tensorrt_options(precision, request.gpu, engines)),
        (EXECUTION_PROVIDERS["cuda"], cuda_options(request.gpu)),
    ]
    placement = Placement("tensorrt", precision, request.threads, request.streams or 1)
    return _open(request.file, placement, providers, request.gpu)


def engine_directory(request: Request) -> Path:
    """Return where the engines of this very model for these shapes stand.

    TensorRT's provider finds an engine by the names in a model, which are the same after another training.
    """
    model = hashlib.sha256(request.file.read_bytes()).hexdigest()[:16]
    return request.gpu.engines / f"{model}-{request.gpu.rows}x{request.gpu.columns}"


def cuda_options(gpu: Gpu) -> dict[str, str]:
    """Return the options of the CUDA provider. Those of cuDNN are for convolutions, which BERT has none of."""
    options = {
        "arena_extend_strategy": "kSameAsRequested",  # else the arena doubles each time that it grows
        "use_tf32": "0",  # fp32 means fp32
    }
    if gpu.memory_bytes:
        options["gpu_mem_limit"] = str(gpu.memory_bytes)
    if gpu.graphs:
        options["enable_cuda_graph"] = "1"
    return options


def tensorrt_options(precision: Precision, gpu: Gpu, engines: Path) -> dict[str, str]:
    """Return the options of the TensorRT provider: one engine for all shapes, which is kept in `engines`.

    It is tuned for a full batch of short texts. ONNX Runtime builds several profiles, but never leaves the first.
    """
    options = {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(engines),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(gpu.engines),
        "trt_profile_min_shapes": _shapes(1, 1),
        "trt_profile_opt_shapes": _shapes(-(-gpu.rows // 2), -(-gpu.columns // 8)),
        "trt_profile_max_shapes": _shapes(gpu.rows, gpu.columns),
    }
    if precision != "fp32":
        options[f"trt_{precision}_enable"] = "True"
    if gpu.memory_bytes:
        options["trt_max_workspace_size"] = str(gpu.memory_bytes)
    return options


def _shapes(rows: int, columns: int) -> str:
    return ",".join(f"{name}:{rows}x{columns}" for name in ("input_ids", "attention_mask"))


def _refuse_other_wheel(provider: Provider) -> None:
    if EXECUTION_PROVIDERS[provider] not in onnxruntime.get_available_providers():
        raise StartupError(f"this ONNX Runtime has no provider {provider}: install the extra [gpu] instead of [cpu]")


def _open(file: Path, placement: Placement, providers: list[tuple[str, dict[str, str]]], gpu: Gpu) -> BoundModel:
    failed = _load_libraries()
    if placement.provider == "tensorrt" and find_spec("tensorrt_libs") is not None:
        import_module("tensorrt_libs")  # loads the libraries that it brings, which stand on no path
    try:
        with GRAPHS_TURN if gpu.graphs else nullcontext():  # another model may be serving
            session = create(file, session_options(placement.threads), providers)
        prove(session, placement.provider)
    except StartupError as error:
        reason = explain(str(error), [*missing_libraries(placement.provider), *failed])
        raise StartupError(f"{placement.provider} does not come up: {reason}") from error
    return BoundModel(session, placement, device="cuda", rows=gpu.rows, graphs=gpu.graphs)


@cache
def _load_libraries() -> tuple[str, ...]:
    """Load what the extra [gpu] brings, once in a process; return what ONNX Runtime says of what cannot be loaded."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        onnxruntime.preload_dlls()
    return tuple(line for line in printed.getvalue().splitlines() if line.startswith("Failed to load"))


def missing_libraries(provider: Provider) -> list[str]:
    """Return what `provider` needs and this machine does not have."""
    missing = []
    for library, origin in _LIBRARIES[provider].items():
        try:
            ctypes.CDLL(library)
        except OSError:
            missing.append(f"{library} is missing ({origin})")
    return missing


def explain(error: str, missing: Sequence[str]) -> str:
    """Return what is missing, or what CUDA says, or else all that ONNX Runtime says."""
    failure = re.search(r"CUDA failure \d+: [^;]+", error)
    return "; ".join(missing) or (failure[0].strip() if failure else error)
