"""OpenVINO on processors, as a plug-in of ONNX Runtime."""

import json
from functools import cache
from importlib.util import find_spec

import onnxruntime

from app.domain.errors import StartupError
from app.inference.processor import has_bf16
from app.inference.session.opening import create, prove, session_options
from app.inference.session.placement import EXECUTION_PROVIDERS, Placement, Precision, Request
from app.inference.session.running import OnnxModel


def open_openvino(request: Request) -> OnnxModel:
    """Load the model on OpenVINO, once for runs side by side and once for a run that is alone.

    Raises:
        StartupError: OpenVINO is not installed or does not come up, or the precision is not to be had.
    """
    if find_spec("onnxruntime_ep_openvino") is None:
        raise StartupError("the OpenVINO provider is not installed: install the extra [cpu] on x86-64")
    if request.precision == "fp16":
        raise StartupError("precision fp16 is for GPUs; on OpenVINO use bf16 or fp32")
    if request.precision == "bf16" and not has_bf16():
        raise StartupError("precision bf16 asked for, but this processor has neither AMX nor AVX-512 bf16: use fp32")
    precision: Precision = "bf16" if request.precision != "fp32" and has_bf16() else "fp32"
    streams = request.streams or min(2, request.threads)
    session = _create(request, precision, streams)
    prove(session, "openvino")
    # A run in a stream of its own has the threads of that stream and no more: a lone text would take twice as long.
    alone = _create(request, precision, 1) if streams > 1 else None
    return OnnxModel(session, Placement("openvino", precision, request.threads, streams), alone=alone)


def _create(request: Request, precision: Precision, streams: int) -> onnxruntime.InferenceSession:
    options = session_options(request.threads)
    # A node that OpenVINO cannot take must stop the start, not run slowly elsewhere.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    config = {
        "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else precision,
        "INFERENCE_NUM_THREADS": str(request.threads),
        "NUM_STREAMS": str(streams),
    }
    try:
        options.add_provider_for_devices(_devices(), {"load_config": json.dumps({"CPU": config})})
        return create(request.file, options)
    except StartupError:
        raise
    except Exception as error:  # onnxruntime's errors derive from Exception directly
        raise StartupError(f"the OpenVINO provider does not come up: {error}") from error


@cache
def _devices() -> list[onnxruntime.OrtEpDevice]:
    """Register the plug-in, which a process may do once, and return its processor devices."""
    import onnxruntime_ep_openvino  # noqa: PLC0415 (not to be had on every platform)

    onnxruntime.register_execution_provider_library("openvino", onnxruntime_ep_openvino.get_library_path())
    return [
        device
        for device in onnxruntime.get_ep_devices()
        if device.ep_name == EXECUTION_PROVIDERS["openvino"]
        and device.device.type == onnxruntime.OrtHardwareDeviceType.CPU
    ]
