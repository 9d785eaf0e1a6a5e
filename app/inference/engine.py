"""The asynchronous front of a model: lays out a batch, runs it in a thread, turns logits into probabilities.

Knows token ids; nothing of text, queues or providers.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from app.domain.errors import ModelFailure, StartupError
from app.inference.cost import CostModel
from app.inference.tokenizer import TokenIds

# In the order of the logits; those of each head sum to 1. Each is a float32, as logits are: whoever remembers an answer
# needs four bytes for a number, and gives back the very same.
Probabilities: TypeAlias = tuple[float, ...]

_COLUMNS = 8  # widths are multiples of this
_WARM_UP_SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of the largest batch


class Model(Protocol):
    """What the engine asks of a model."""

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return logits (B, L) for arrays (B, T)."""
        ...


class Engine:
    """Runs batches of texts of up to `longest` tokens, `workers` batches at once, on a model with `heads` logits each.

    Leave the `async with` only when no batch is running.
    """

    def __init__(self, model: Model, *, pad_id: int, heads: Sequence[int], longest: int, workers: int = 1) -> None:
        self._model = model
        self._pad_id = pad_id
        self._heads = tuple(heads)
        self._ends = tuple(accumulate(heads))
        self._longest = longest
        self._workers = workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="model")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._threads.shutdown()

    def columns(self, tokens: int) -> int:
        """Return the width of the narrowest batch that holds a text of `tokens` tokens.

        There are four widths to each doubling: OpenVINO compiles code for each shape that it meets (7 ms, a third of
        the run) and keeps it. After 900 random batches the process held 977 MiB with every width, 604 MiB with each
        multiple of eight.
        """
        step = max(_COLUMNS, (1 << (tokens - 1).bit_length()) // 8)
        return max(tokens, min(-(-tokens // step) * step, self._longest))

    async def run(self, batch: Sequence[TokenIds]) -> list[Probabilities]:
        """Do as `run_now`, in a thread of the engine's own."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.run_now, batch)

    def warm_up(self, *, max_tokens: int) -> CostModel:
        """Run batches from small to the largest, of `max_tokens` padded tokens; return what they cost.

        Raises:
            StartupError: the model fails on one of them.
        """
        try:
            return self._measure(max_tokens)
        except ModelFailure as error:
            raise StartupError(f"the model fails when it is warmed up: {error}") from error

    def _measure(self, max_tokens: int) -> CostModel:
        # In the engine's own threads: ONNX Runtime keeps CUDA's handles and graphs for each thread.
        def run(batch: Sequence[TokenIds]) -> None:
            self._threads.submit(self.run_now, batch).result()

        measured: list[tuple[int, float]] = []
        for share in _WARM_UP_SHARES:
            tokens = max(8, int(max_tokens * share))
            columns = self.columns(min(self._longest, int(tokens**0.5) * 2))
            batch = [(self._pad_id,) * columns] * max(1, tokens // columns)
            run(batch)  # the first run of a shape compiles
            started = time.perf_counter()
            run(batch)
            measured.append((columns * len(batch), time.perf_counter() - started))
            list(self._threads.map(self.run_now, [batch] * self._workers))
        run([(self._pad_id,) * self._longest] * max(1, max_tokens // self._longest))
        return CostModel.fit(measured)

    def run_now(self, batch: Sequence[TokenIds]) -> list[Probabilities]:
        """Return the probabilities of each row of `batch`, in order.

        Raises:
            ModelFailure: the model raised, or its answer is not one finite row per text.
        """
        columns = self.columns(max(map(len, batch)))
        input_ids = np.full((len(batch), columns), self._pad_id, np.int64)
        attention_mask = np.zeros((len(batch), columns), np.int64)
        for row, ids in enumerate(batch):
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        try:
            logits = self._model.run(input_ids, attention_mask)
        except Exception as error:
            raise ModelFailure(f"{type(error).__name__}: {error}") from error
        if logits.shape != (len(batch), self._ends[-1]):
            raise ModelFailure(f"the model answered with shape {logits.shape}, not {(len(batch), self._ends[-1])}")
        if not np.isfinite(logits).all():
            raise ModelFailure("the model answered with a number that is not finite")
        shares = [_softmax(logits[:, end - size : end]) for size, end in zip(self._heads, self._ends, strict=True)]
        return [tuple(row) for row in np.concatenate(shares, axis=1).astype(np.float32).tolist()]


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
