"""Models that are loaded and proven. Their `run` may be called from several threads at once."""

from contextlib import nullcontext
from itertools import count
from threading import Lock
from typing import Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from app.inference.batcher import batch_counts
from app.inference.session.placement import Placement

# A replayed graph uses the memory that it was recorded with, which it shares with the graphs of other shapes; and while
# one is recorded, nothing else in the process may allocate on the GPU.
GRAPHS_TURN: Final = Lock()


class OnnxModel:
    """A model on a processor.

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


class BoundModel:
    """A model on a device with memory of its own: inputs and outputs have buffers there, a set for each shape.

    A batch is filled up to a number of rows that batches usually have, so that shapes stay few; one of more than
    `rows` rows is run in parts. With `graphs`, a CUDA graph is recorded for each shape when it is first met.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        placement: Placement,
        *,
        device: str,
        rows: int,
        graphs: bool = False,
    ) -> None:
        self._session = session
        self._device = device
        self._rows = rows
        self._idle: dict[tuple[int, int], list[_Buffers]] = {}
        self._graph_ids = count(1) if graphs else None  # 0 belongs to ONNX Runtime
        self._turn = GRAPHS_TURN if graphs else nullcontext()
        self.placement = placement

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return logits (B, L) for `input_ids` (B, T) and `attention_mask` (B, T)."""
        rows, columns = input_ids.shape
        if rows > self._rows:
            ends = range(self._rows, rows, self._rows)
            parts = zip(np.split(input_ids, ends), np.split(attention_mask, ends), strict=True)
            return np.concatenate([self.run(*part) for part in parts])
        filled = min(next(size for size in batch_counts(2 * rows) if size >= rows), self._rows)
        idle = self._idle.setdefault((filled, columns), [])
        with self._turn:
            try:
                buffers = idle.pop()
            except IndexError:
                buffers = _Buffers(self._session, (filled, columns), self._device, self._graph_ids)
            logits = buffers.run(input_ids, attention_mask)
            idle.append(buffers)  # unless the run failed: who knows what state it left them in
        return logits


class _Buffers:
    """Memory on the device for batches of one shape, one at a time."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        shape: tuple[int, int],
        device: str,
        graph_ids: "count[int] | None",
    ) -> None:
        self._session = session
        self._rows = shape[0]
        self._binding = session.io_binding()
        self._inputs = {
            name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.int64, device)
            for name in ("input_ids", "attention_mask")
        }
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        width = session.get_outputs()[0].shape[1]
        self._logits = onnxruntime.OrtValue.ortvalue_from_shape_and_type((shape[0], width), np.float32, device)
        self._binding.bind_ortvalue_output("logits", self._logits)
        self._options = onnxruntime.RunOptions()
        if graph_ids is not None:
            self._options.add_run_config_entry("gpu_graph_id", str(next(graph_ids)))

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        rows = len(input_ids)
        missing = self._rows - rows
        for name, values in (("input_ids", input_ids), ("attention_mask", attention_mask)):
            # Repeats the last row: what the model makes of it is finite, and dropped.
            self._inputs[name].update_inplace(np.pad(values, ((0, missing), (0, 0)), mode="edge"))
        self._binding.synchronize_inputs()
        self._session.run_with_iobinding(self._binding, self._options)
        self._binding.synchronize_outputs()
        logits: NDArray[np.float32] = self._logits.numpy()[:rows].copy()  # on the CPU it is the buffer itself
        return logits
