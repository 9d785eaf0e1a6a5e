"""A model with buffers on its device, on the one device that every machine has: the processor's own memory."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Lock

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from app.inference.batcher import batch_counts
from app.inference.bundle import MODEL
from app.inference.session import BoundModel, OnnxModel, Placement
from tests.providers import cpu_session
from tests.tiny_bundle import PAD_ID, TinyModel

_PLACEMENT = Placement("cpu", "fp32", threads=1, streams=1)
_ROWS = 64


class _Watched:
    """A session that tells of each run, just before it begins."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        tell: Callable[[onnxruntime.IOBinding, onnxruntime.RunOptions], object],
    ) -> None:
        self._session = session
        self._tell = tell

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: onnxruntime.IOBinding, options: onnxruntime.RunOptions) -> None:
        self._tell(binding, options)
        self._session.run_with_iobinding(binding, options)


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> onnxruntime.InferenceSession:
    return cpu_session(tiny_bundle / MODEL)


def _bound(session: onnxruntime.InferenceSession, *, graphs: bool = False) -> BoundModel:
    return BoundModel(session, _PLACEMENT, device="cpu", rows=_ROWS, graphs=graphs)


def _batch(rows: int, columns: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a batch of texts of random lengths."""
    random = np.random.default_rng([rows, columns, seed])
    mask = (np.arange(columns) < random.integers(1, columns + 1, (rows, 1))).astype(np.int64)
    return np.where(mask, random.integers(4, 31, (rows, columns)), PAD_ID), mask


@pytest.mark.parametrize("graphs", [False, True])
def test_it_answers_as_a_plain_run_does_whatever_the_shape(
    session: onnxruntime.InferenceSession, *, graphs: bool
) -> None:
    plain, bound = OnnxModel(session, _PLACEMENT), _bound(session, graphs=graphs)
    for seed in range(2):  # the second time in buffers that hold another batch
        for rows in (*range(1, 20), 31, 32, 33, 63, 64):
            for columns in (1, 8, 40, 256):
                batch = _batch(rows, columns, seed)
                np.testing.assert_array_equal(bound.run(*batch), plain.run(*batch))


@pytest.mark.parametrize("rows", [65, 128, 200])
def test_a_batch_of_more_rows_than_there_is_room_for_is_answered_in_order(
    session: onnxruntime.InferenceSession, rows: int
) -> None:
    batch = _batch(rows, 8)
    np.testing.assert_allclose(_bound(session).run(*batch), TinyModel().run(*batch), rtol=1e-5, atol=1e-6)


def test_answers_stay_when_the_buffers_take_the_next_batch(session: onnxruntime.InferenceSession) -> None:
    bound = _bound(session)
    first = bound.run(*_batch(4, 8, seed=0))
    kept = first.copy()
    bound.run(*_batch(4, 8, seed=1))
    np.testing.assert_array_equal(first, kept)


def test_rows_are_filled_up_to_the_counts_that_batches_have(session: onnxruntime.InferenceSession) -> None:
    shapes: set[tuple[int, int]] = set()

    def note(binding: onnxruntime.IOBinding, _: onnxruntime.RunOptions) -> None:
        rows, columns = binding.get_outputs()[0].shape()
        shapes.add((rows, columns))

    bound = _bound(_Watched(session, note))
    for rows in range(1, 3 * _ROWS):
        bound.run(*_batch(rows, 8))
    assert {rows for rows, _ in shapes} == set(batch_counts(_ROWS))


def test_runs_at_the_same_time_have_buffers_of_their_own(session: onnxruntime.InferenceSession) -> None:
    both_filled = Barrier(2)
    bound = _bound(_Watched(session, lambda *_: both_filled.wait(30)))
    batches = [_batch(4, 8, seed) for seed in range(2)]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(3):  # first in new buffers, then in those that lie idle
            answers = list(threads.map(lambda batch: bound.run(*batch), batches))
            for batch, answer in zip(batches, answers, strict=True):
                np.testing.assert_allclose(answer, TinyModel().run(*batch), rtol=1e-5)


@pytest.mark.parametrize("graphs", [False, True])
def test_many_threads_get_the_answers_to_their_own_batches(
    session: onnxruntime.InferenceSession, *, graphs: bool
) -> None:
    bound = _bound(session, graphs=graphs)
    batches = [_batch(1 + seed % 9, 8 * (1 + seed % 3), seed) for seed in range(300)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda batch: bound.run(*batch), batches))
    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_allclose(answer, TinyModel().run(*batch), rtol=1e-5, atol=1e-6)


def test_each_shape_has_a_graph_of_its_own_and_keeps_it(session: onnxruntime.InferenceSession) -> None:
    graphs: dict[tuple[int, ...], set[str]] = {}

    def note(binding: onnxruntime.IOBinding, options: onnxruntime.RunOptions) -> None:
        values = binding._bound_inputs  # noqa: SLF001  # the library tells it nowhere else
        graphs.setdefault(tuple(values["input_ids"].shape()), set()).add(options.get_run_config_entry("gpu_graph_id"))

    bound = _bound(_Watched(session, note), graphs=True)
    for _ in range(3):
        for rows, columns in ((1, 8), (2, 8), (2, 16), (5, 8), (6, 8)):
            bound.run(*_batch(rows, columns))
    assert len(graphs) == 4  # five rows are filled up to six
    assert sorted(len(ids) for ids in graphs.values()) == [1, 1, 1, 1]
    identifiers = set.union(*graphs.values())
    assert len(identifiers) == 4
    assert not identifiers & {"0", "-1"}  # these are ONNX Runtime's own: the default, and none


def test_graphs_are_replayed_one_at_a_time(session: onnxruntime.InferenceSession) -> None:
    running = Lock()
    overlaps: list[bool] = []

    class Slow(_Watched):
        def run_with_iobinding(self, binding: onnxruntime.IOBinding, options: onnxruntime.RunOptions) -> None:
            overlaps.append(not running.acquire(blocking=False))
            super().run_with_iobinding(binding, options)
            running.release()

    bound = _bound(Slow(session, lambda *_: None), graphs=True)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda seed: bound.run(*_batch(64, 256, seed)), range(24)))
    assert overlaps == [False] * 24


def test_after_a_failed_run_the_next_has_fresh_buffers(session: onnxruntime.InferenceSession) -> None:
    used: list[int] = []

    def fail_first(binding: onnxruntime.IOBinding, _: onnxruntime.RunOptions) -> None:
        used.append(id(binding))
        if len(used) == 1:
            raise RuntimeError("out of memory")

    bound = _bound(_Watched(session, fail_first))
    batch = _batch(4, 8)
    with pytest.raises(RuntimeError, match="out of memory") as failure:
        bound.run(*batch)
    np.testing.assert_allclose(bound.run(*batch), TinyModel().run(*batch), rtol=1e-5)
    bound.run(*batch)
    assert used[0] != used[1] == used[2]
    assert failure.value is not None  # the first binding lives in its traceback: its id is nobody else's
