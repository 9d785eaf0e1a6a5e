"""What every model must do, the numpy one of the tests included."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.inference.bundle import MODEL
from app.inference.engine import Engine, Model, Probabilities
from app.inference.processor import has_bf16
from app.inference.session import BoundModel, Placement, Precision, Provider, open_model
from app.inference.tokenizer import TokenIds
from tests.providers import comes_up, cpu_session
from tests.tiny_bundle import HEADS, MAX_TOKENS, PAD_ID, TinyModel

_OpenModel: TypeAlias = Callable[[Path], Model]
_TOLERANCE = {"fp32": 1e-5, "fp16": 0.01, "bf16": 0.01}


def _on(provider: Provider, precision: Precision) -> _OpenModel:
    return lambda bundle: open_model(bundle / MODEL, provider=provider, precision=precision, threads=1)


def _bound(bundle: Path) -> Model:
    placement = Placement("cpu", "fp32", threads=1, streams=1)
    return BoundModel(cpu_session(bundle / MODEL), placement, device="cpu", rows=32)


def _models() -> dict[str, _OpenModel]:
    models: dict[str, _OpenModel] = {
        "numpy fp32": lambda _: TinyModel(),
        "cpu fp32": _on("cpu", "fp32"),
        "bound fp32": _bound,
    }
    if find_spec("onnxruntime_ep_openvino") is not None:
        models["openvino fp32"] = _on("openvino", "fp32")
        if has_bf16():
            models["openvino bf16"] = _on("openvino", "bf16")
    if comes_up("cuda"):
        models["cuda fp32"] = _on("cuda", "fp32")
    if comes_up("tensorrt"):
        models |= {f"tensorrt {precision}": _on("tensorrt", precision) for precision in ("fp32", "fp16", "bf16")}
    return models


@pytest.fixture(scope="module", params=_models())
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def engine(kind: str, tiny_bundle: Path) -> Engine:
    return Engine(_models()[kind](tiny_bundle), pad_id=PAD_ID, heads=HEADS.sizes, longest=64)


@pytest.fixture(scope="module")
def tolerance(kind: str) -> float:
    return _TOLERANCE[kind.split()[1]]


def _differ(some: Sequence[Probabilities], others: Sequence[Probabilities]) -> float:
    return max((float(np.abs(np.subtract(a, b)).max()) for a, b in zip(some, others, strict=True)), default=0)


# The id whose leaning is not a number lies above these.
_tokens = st.lists(st.integers(0, 30), min_size=1, max_size=MAX_TOKENS).map(tuple)


@settings(max_examples=25, deadline=None)
@given(st.lists(_tokens, min_size=1, max_size=6))
def test_a_row_is_the_same_alone_and_in_any_batch(engine: Engine, tolerance: float, batch: list[TokenIds]) -> None:
    together = engine.run_now(batch)
    alone = [engine.run_now([tokens])[0] for tokens in batch]
    assert _differ(together, alone) <= tolerance


@settings(max_examples=25, deadline=None)
@given(st.lists(_tokens, min_size=1, max_size=6))
def test_every_model_answers_as_the_numpy_one(engine: Engine, tolerance: float, batch: list[TokenIds]) -> None:
    reference = Engine(TinyModel(), pad_id=PAD_ID, heads=HEADS.sizes, longest=64)
    assert _differ(engine.run_now(batch), reference.run_now(batch)) <= tolerance


def test_there_is_one_finite_row_per_input(tiny_bundle: Path, kind: str) -> None:
    model = _models()[kind](tiny_bundle)
    for rows, columns in ((1, 1), (1, MAX_TOKENS), (7, 3), (64, MAX_TOKENS)):
        ids = np.full((rows, columns), 4)
        logits = model.run(ids, np.ones_like(ids))
        assert logits.shape == (rows, len(HEADS.columns))
        assert logits.dtype == np.float32
        assert np.isfinite(logits).all()


def test_what_stands_under_the_padding_does_not_matter(tiny_bundle: Path, kind: str) -> None:
    model = _models()[kind](tiny_bundle)
    mask = np.array([[1, 1, 0, 0]])
    padded, littered = (model.run(np.array([[4, 5, *rest]]), mask) for rest in ((PAD_ID, PAD_ID), (9, 14)))
    assert np.array_equal(padded, littered)
