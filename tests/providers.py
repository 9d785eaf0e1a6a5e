"""Which providers run a model on this machine: to be built in is not enough."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime

from app.domain.errors import StartupError
from app.inference.bundle import MODEL
from app.inference.session import Provider, open_model
from app.inference.session.opening import create, prove, session_options
from app.inference.session.placement import EXECUTION_PROVIDERS
from tests.tiny_bundle import tiny_onnx


def is_built_in(provider: Provider) -> bool:
    """Return whether the ONNX Runtime that is installed has `provider`."""
    return EXECUTION_PROVIDERS[provider] in onnxruntime.get_available_providers()


@cache
def comes_up(provider: Provider) -> bool:
    """Return whether `provider` runs the tiny model here."""
    with TemporaryDirectory() as directory:
        file = Path(directory) / MODEL
        file.write_bytes(tiny_onnx())
        try:
            open_model(file, provider=provider, threads=1)
        except StartupError:
            return False
        return True


def cpu_session(file: Path) -> onnxruntime.InferenceSession:
    """Return a session of `file` on the CPU provider."""
    session = create(file, session_options(1), providers=[EXECUTION_PROVIDERS["cpu"]])
    prove(session, "cpu")
    return session
