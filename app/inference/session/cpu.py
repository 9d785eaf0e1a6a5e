"""ONNX Runtime's own provider for processors, which every platform has."""

from app.domain.errors import StartupError
from app.inference.session.opening import create, prove, session_options
from app.inference.session.placement import EXECUTION_PROVIDERS, Placement, Request
from app.inference.session.running import OnnxModel


def open_cpu(request: Request) -> OnnxModel:
    """Load the model on the CPU provider.

    Raises:
        StartupError: the file does not load, or another precision than fp32 is asked for.
    """
    if request.precision in ("bf16", "fp16"):
        raise StartupError(
            f"precision {request.precision} asked for, but ONNX Runtime's own CPU provider has fp32 only"
        )
    session = create(request.file, session_options(request.threads), providers=[EXECUTION_PROVIDERS["cpu"]])
    prove(session, "cpu")
    return OnnxModel(session, Placement("cpu", "fp32", request.threads, request.streams or 1))
