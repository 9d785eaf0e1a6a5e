"""From text to answer with the tiny model, without a server."""

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.cache.memory import MemoryCache
from app.domain.intake import TextLimits
from app.domain.labels import LABELS, Heads
from app.inference.batcher import Batcher, BatchPolicy
from app.inference.bundle import open_bundle
from app.inference.classifier import Classified, Classifier
from app.inference.cost import CostModel
from app.inference.engine import Engine, Probabilities
from app.inference.session import open_model
from app.inference.tokenizer import TokenIds, Tokenizer
from tests.tiny_bundle import EMOTIONS, THRESHOLD, write_tiny_bundle

pytestmark = pytest.mark.anyio

_POLICY = BatchPolicy(max_items=8, max_tokens=64, max_waiting_items=8, max_waiting_tokens=512)
_MIXED = "好差"


@asynccontextmanager
async def _classifier(directory: Path, threshold: float = THRESHOLD) -> AsyncIterator[Classifier]:
    bundle = open_bundle(directory)
    manifest = bundle.manifest
    model = open_model(bundle.model_file, provider="cpu", precision="fp32", threads=1)
    async with (
        Engine(model, pad_id=manifest.pad_id, heads=manifest.heads.sizes, longest=manifest.max_tokens) as engine,
        Batcher[TokenIds, Probabilities](
            engine.run, _POLICY, tokens=len, cost=CostModel(), observe=lambda _: None
        ) as batcher,
    ):
        yield Classifier(
            tokenizer=Tokenizer(
                bundle.tokenizer_file, max_tokens=manifest.max_tokens, head_tokens=manifest.head_tokens
            ),
            batcher=batcher,
            cache=MemoryCache(max_bytes=100_000, ttl_s=60),
            heads=manifest.heads,
            threshold=threshold,
            limits=TextLimits(50, 200),
            fingerprint=bundle.fingerprint,
        )


async def _classify(directory: Path, text: str, threshold: float = THRESHOLD) -> Classified:
    async with _classifier(directory, threshold) as classifier:
        return await classifier.classify(text, timeout_s=30)


@pytest.mark.parametrize(
    ("threshold_of", "certain"),
    [
        (lambda confidence: confidence, True),
        (lambda confidence: math.nextafter(confidence, 0), True),
        (lambda confidence: math.nextafter(confidence, 1), False),
        (lambda _: 0.0, True),
        (lambda _: 1.0, False),
    ],
    ids=["at", "just above", "just below", "none", "all"],
)
async def test_an_answer_is_certain_from_the_threshold_on(
    tiny_bundle: Path,
    threshold_of: Callable[[float], float],
    certain: bool,  # noqa: FBT001 (a parameter of the test)
) -> None:
    confidence = (await _classify(tiny_bundle, _MIXED)).sentiment.confidence
    assert (await _classify(tiny_bundle, _MIXED, threshold_of(confidence))).sentiment.certain is certain


async def test_certainty_is_of_the_label_and_not_of_the_emotion(tiny_bundle: Path) -> None:
    sentiment = (await _classify(tiny_bundle, "怒怒怒")).sentiment
    assert max((sentiment.emotions or {}).values()) > THRESHOLD > sentiment.confidence
    assert not sentiment.certain


async def test_each_head_answers_for_itself(tiny_bundle: Path) -> None:
    for text, label, emotion in (("好怒怒", "positive", "angry"), ("差笑笑", "negative", "happy")):
        sentiment = (await _classify(tiny_bundle, text)).sentiment
        assert sentiment.label == label
        assert sentiment.emotions is not None
        assert (tuple(sentiment.probabilities), tuple(sentiment.emotions)) == (LABELS, EMOTIONS)
        assert max(sentiment.emotions, key=sentiment.emotions.__getitem__) == emotion
        assert sum(sentiment.probabilities.values()) == pytest.approx(1)
        assert sum(sentiment.emotions.values()) == pytest.approx(1)


async def test_a_model_without_the_second_head_tells_no_emotions(tmp_path: Path) -> None:
    sentiment = (await _classify(write_tiny_bundle(tmp_path, heads=Heads(LABELS)), "好怒怒")).sentiment
    assert sentiment.label == "positive"
    assert sentiment.emotions is None


@pytest.mark.parametrize("text", ["好好好笑", _MIXED])
async def test_a_remembered_answer_is_the_computed_one(tiny_bundle: Path, text: str) -> None:
    async with _classifier(tiny_bundle) as classifier:
        computed = await classifier.classify(text, timeout_s=30)
        remembered = await classifier.classify(text, timeout_s=30)
    assert (computed.cached, remembered.cached) == (False, True)
    assert remembered.sentiment == computed.sentiment
    assert remembered.sentiment.emotions
    assert remembered.sentiment.certain is (text != _MIXED)


async def test_a_text_set_apart_by_blanks_is_the_same_text(tiny_bundle: Path) -> None:
    async with _classifier(tiny_bundle) as classifier:
        await classifier.classify("这家店差", timeout_s=30)
        assert (await classifier.classify("这 家 店 差", timeout_s=30)).cached
