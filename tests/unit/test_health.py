from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from app.domain.errors import ModelFailure, StartupError
from app.inference.batcher import Batcher, BatchPolicy
from app.inference.bundle import Bundle, open_bundle
from app.inference.cost import CostModel
from app.inference.engine import Engine, Probabilities
from app.inference.health import ModelHealth
from app.inference.tokenizer import TokenIds, Tokenizer
from tests.tiny_bundle import HEADS, PAD_ID, TinyModel

pytestmark = pytest.mark.anyio

_POLICY = BatchPolicy(max_items=8, max_tokens=64, max_waiting_items=8, max_waiting_tokens=512)
_TEXT: TokenIds = (0, 4, 5, 2)


@dataclass
class _Model(TinyModel):
    """The tiny model, that can be broken and mended."""

    state: Literal["sound", "raising", "wrong", "wrong in batches", "wrong of emotions"] = "sound"
    runs: int = field(default=0)

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        self.runs += 1
        if self.state == "raising":
            raise RuntimeError("out of order")
        logits = super().run(input_ids, attention_mask)
        if self.state == "wrong of emotions":
            return np.concatenate([logits[:, :3], logits[:, :2:-1]], axis=1)
        wrong = self.state == "wrong" or (self.state == "wrong in batches" and len(input_ids) > 1)
        return logits[:, ::-1] if wrong else logits


@dataclass
class _Watched:
    model: _Model
    batcher: Batcher[TokenIds, Probabilities]
    health: ModelHealth

    async def run_batch(self) -> None:
        (future,) = self.batcher.enqueue([_TEXT])
        await future

    async def reason_not_ready(self) -> str | None:
        return await self.health.reason_not_ready(self.batcher)


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


def _health(bundle: Bundle) -> ModelHealth:
    manifest = bundle.manifest
    tokenizer = Tokenizer(bundle.tokenizer_file, max_tokens=manifest.max_tokens, head_tokens=manifest.head_tokens)
    return ModelHealth(bundle.golden, tokenizer, manifest.heads.columns)


@asynccontextmanager
async def _engine(model: TinyModel) -> AsyncIterator[Engine]:
    async with Engine(model, pad_id=PAD_ID, heads=HEADS.sizes, longest=64) as engine:
        yield engine


@pytest.fixture
async def watched(bundle: Bundle) -> AsyncIterator[_Watched]:
    model, health = _Model(), _health(bundle)
    async with (
        _engine(model) as engine,
        Batcher[TokenIds, Probabilities](
            engine.run, _POLICY, tokens=len, cost=CostModel(), observe=health.observe
        ) as batcher,
    ):
        yield _Watched(model, batcher, health)


async def test_a_model_that_answers_as_recorded_is_proven(bundle: Bundle) -> None:
    async with _engine(_Model()) as engine:
        await _health(bundle).prove(engine)


@pytest.mark.parametrize("state", ["wrong", "wrong in batches", "wrong of emotions"])
async def test_a_model_that_answers_otherwise_stops_the_start(
    bundle: Bundle, state: Literal["wrong", "wrong in batches", "wrong of emotions"]
) -> None:
    async with _engine(_Model(state)) as engine:
        with pytest.raises(StartupError, match="does not answer as recorded: golden text 0 is off by"):
            await _health(bundle).prove(engine)


async def test_one_wrong_golden_text_among_right_ones_stops_the_start(bundle: Bundle) -> None:
    last = bundle.golden[-1]
    shifted = {label: share + 0.03 for label, share in last.probabilities.items()}
    golden = (*bundle.golden[:-1], last.model_copy(update={"probabilities": shifted}))
    async with _engine(_Model()) as engine:
        with pytest.raises(StartupError, match=f"golden text {len(golden) - 1} is off by 0.030"):
            await _health(replace(bundle, golden=golden)).prove(engine)


async def test_a_model_that_raises_stops_the_start(bundle: Bundle) -> None:
    async with _engine(_Model("raising")) as engine:
        with pytest.raises(StartupError, match="out of order"):
            await _health(bundle).prove(engine)


async def test_readiness_costs_no_run_while_all_is_well(watched: _Watched) -> None:
    await watched.run_batch()
    assert await watched.reason_not_ready() is None
    assert watched.model.runs == 1


async def test_a_failed_batch_makes_the_model_not_ready(watched: _Watched) -> None:
    watched.model.state = "raising"
    with pytest.raises(ModelFailure):
        await watched.run_batch()
    for _ in range(2):
        assert await watched.reason_not_ready() == "the model fails: RuntimeError: out of order"


async def test_a_golden_text_answered_rightly_makes_the_model_ready_again(watched: _Watched) -> None:
    watched.model.state = "raising"
    with pytest.raises(ModelFailure):
        await watched.run_batch()
    watched.model.state = "sound"
    assert await watched.reason_not_ready() is None
    runs = watched.model.runs
    assert await watched.reason_not_ready() is None
    assert watched.model.runs == runs


async def test_a_model_that_comes_back_with_wrong_answers_stays_not_ready(watched: _Watched) -> None:
    watched.model.state = "raising"
    with pytest.raises(ModelFailure):
        await watched.run_batch()
    watched.model.state = "wrong"
    for _ in range(3):
        reason = await watched.reason_not_ready()
        assert reason is not None
        assert "golden text 0 is off by" in reason


async def test_a_batch_that_ends_well_does_not_stand_for_a_golden_text(watched: _Watched) -> None:
    watched.model.state = "raising"
    with pytest.raises(ModelFailure):
        await watched.run_batch()
    watched.model.state = "wrong"
    await watched.run_batch()
    assert await watched.reason_not_ready() is not None
