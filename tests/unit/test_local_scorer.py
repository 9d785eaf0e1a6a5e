"""Scoring with a model in this process, which the test holds up."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path

import pytest

from app.inference.batcher import BatchPolicy
from app.inference.shedding import Shedder
from app.rollout import Rollout
from app.scoring.local import LocalScorer, local_scorer
from app.services import Services
from app.settings import Settings, load_settings
from app.telemetry.prometheus import Metrics
from app.wiring import open_services
from tests.http.served import STREAM, GatedModel
from tests.served_model import serving_model

pytestmark = pytest.mark.anyio

_POLICY = BatchPolicy(max_items=64, max_tokens=1_024, max_waiting_items=512, max_waiting_tokens=10_000)


@asynccontextmanager
async def _scorer(model: GatedModel, directory: Path) -> AsyncIterator[tuple[LocalScorer, Services]]:
    async with Rollout(lambda path: serving_model(path, model, _POLICY), directory) as models:
        services = Services(
            models=models,
            bundles=directory.parent,
            metrics=Metrics(),
            shedder=Shedder(lambda: models.active.batcher),
            max_texts=8,
            timeout_s=60,
            batch_timeout_s=60,
            stream=STREAM,
            stream_slots=asyncio.Semaphore(1),
        )
        try:
            yield LocalScorer(services), services
        finally:
            model.gate.set()


async def test_answers_come_in_order_and_texts_are_taken_as_there_is_room(tiny_bundle: Path) -> None:
    model = GatedModel()
    taken = 0

    async def chunks() -> AsyncIterator[list[object]]:
        nonlocal taken
        for start in range(0, 6_400, 64):
            taken += 1
            yield [f"{'好差'[number % 2]}，第{number}次" for number in range(start, start + 63)] + [None]

    async with _scorer(model, tiny_bundle) as (scorer, services), aclosing(scorer.answers(chunks())) as answers:
        first = asyncio.ensure_future(anext(answers))
        await asyncio.to_thread(model.entered.wait, 30)
        async with asyncio.timeout(30):
            while taken < 17:  # sixteen in work, one at hand  # noqa: ASYNC110 (the test takes)
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert taken == 17
        assert services.models.active.batcher.waiting_items <= _POLICY.max_waiting_items // 2
        model.gate.set()
        found = [json.loads(answer) for each in [await first, *[each async for each in answers]] for answer in each]
    assert taken == 100
    outcomes = [answer["sentiment"]["label"] if "sentiment" in answer else "error" for answer in found]
    expected = ["positive" if number % 2 == 0 else "negative" for number in range(6_400)]
    expected[63::64] = ["error"] * 100
    assert outcomes == expected


async def test_leaving_withdraws_what_waits(tiny_bundle: Path) -> None:
    model = GatedModel()

    async def chunks() -> AsyncIterator[list[object]]:
        for start in range(0, 640, 64):
            yield [f"好，第{number}次" for number in range(start, start + 64)]

    async with _scorer(model, tiny_bundle) as (scorer, services):
        async with aclosing(scorer.answers(chunks())) as answers:
            first = asyncio.ensure_future(anext(answers))
            await asyncio.to_thread(model.entered.wait, 30)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
        assert services.models.active.batcher.waiting_items == 0


@pytest.mark.parametrize(("variable", "max_tokens"), [(None, 2_048), ("1024", 1_024)])
async def test_runs_are_larger_than_a_services_unless_it_is_set(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, max_tokens: int
) -> None:
    opened = []

    def watched(settings: Settings) -> AbstractAsyncContextManager[Services]:
        opened.append(settings.batching.max_tokens)
        return open_services(settings)

    monkeypatch.setattr("app.scoring.local.open_services", watched)
    monkeypatch.setenv("SENTIMENT_MODEL__PATH", str(tiny_bundle))
    monkeypatch.setenv("SENTIMENT_MODEL__PROVIDER", "cpu")
    if variable is not None:
        monkeypatch.setenv("SENTIMENT_BATCHING__MAX_TOKENS", variable)
    async with local_scorer(load_settings()) as scorer:
        assert scorer.model == "tiny/0.0.1"
    assert opened == [max_tokens]
