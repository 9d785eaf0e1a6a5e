"""Sessions of ONNX Runtime: made alike for all providers, and proven to run where they were asked to."""

from pathlib import Path

import onnxruntime

from app.domain.errors import StartupError
from app.inference.session.placement import EXECUTION_PROVIDERS, Provider


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Return options for a model whose shapes vary, beside an event loop that needs the processor."""
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


def create(
    file: Path,
    options: onnxruntime.SessionOptions,
    providers: list[str] | list[tuple[str, dict[str, str]]] | None = None,
) -> onnxruntime.InferenceSession:
    """Return a session of `file`.

    Raises:
        StartupError: it does not load.
    """
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime raises plain Exception subclasses of its own
        raise StartupError(f"{file} does not load: {error}") from error


def prove(session: onnxruntime.InferenceSession, provider: Provider) -> None:
    """Check that `provider` truly runs the model: ONNX Runtime may fall back to the CPU without an error.

    Raises:
        StartupError: it does not, or the model's inputs and outputs are not what they must be.
    """
    name = EXECUTION_PROVIDERS[provider]
    assigned = {subgraph.ep_name for subgraph in session.get_provider_graph_assignment_info()}
    if session.get_providers()[0] != name or name not in assigned:
        raise StartupError(
            f"{provider} was asked for, but ONNX Runtime runs the model on {', '.join(sorted(assigned))}: "
            "its libraries are missing or do not fit the driver"
        )
    ends = [sorted(node.name for node in nodes) for nodes in (session.get_inputs(), session.get_outputs())]
    if ends != [["attention_mask", "input_ids"], ["logits"]]:
        raise StartupError(
            "the model takes {} and gives {}; it must take attention_mask and input_ids and give logits".format(
                *(" and ".join(names) for names in ends)
            )
        )
