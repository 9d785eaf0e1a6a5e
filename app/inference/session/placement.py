"""Where and how a model runs: what may be asked, and what came of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

Provider: TypeAlias = Literal["cuda", "tensorrt", "openvino", "cpu"]
Precision: TypeAlias = Literal["bf16", "fp16", "fp32"]

EXECUTION_PROVIDERS: Final[dict[Provider, str]] = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how a model runs."""

    provider: Provider
    precision: Precision
    threads: int
    streams: int  # runs that may go on at the same time, sharing the threads


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a model may use of a GPU; providers on processors do not look at it."""

    half: Path | None = None  # the model converted to float16, for CUDA
    memory_bytes: int = 0  # limit of what ONNX Runtime allocates; 0: none
    graphs: bool = False  # record a CUDA graph for each shape, and replay it
    engines: Path = Path("build/tensorrt")  # where TensorRT keeps what it compiled
    rows: int = 64  # the most in one run; larger batches are run in parts
    columns: int = 256  # the most in one run


@dataclass(frozen=True, slots=True)
class Request:
    """A model file, and how it ought to run."""

    file: Path
    precision: Precision | Literal["auto"]
    threads: int
    streams: int | None  # None: as many as suit the provider
    gpu: Gpu
