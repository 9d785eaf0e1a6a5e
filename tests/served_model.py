"""A bundle at work in this process, with a model that a test can hold up or break."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from app.cache.memory import MemoryCache
from app.domain.intake import TextLimits
from app.inference.batcher import Batcher, BatchEvent, BatchPolicy
from app.inference.bundle import open_bundle
from app.inference.classifier import Classifier, SentimentCache
from app.inference.cost import CostModel
from app.inference.engine import Engine, Model, Probabilities
from app.inference.health import ModelHealth
from app.inference.served import ServedModel
from app.inference.session import Placement
from app.inference.tokenizer import TokenIds, Tokenizer
from tests.tiny_bundle import THRESHOLD


@asynccontextmanager
async def serving_model(
    directory: Path,
    model: Model,
    policy: BatchPolicy,
    observe: Callable[[BatchEvent], None] = lambda _: None,
    *,
    cache: SentimentCache | None = None,
    limits: TextLimits = TextLimits(max_characters=50, max_bytes=120),  # noqa: B008 (frozen)
) -> AsyncIterator[ServedModel]:
    """Yield the bundle in `directory` at work, neither proven nor warm, with `model` in the place of its own."""
    bundle = open_bundle(directory)
    manifest = bundle.manifest
    tokenizer = Tokenizer(bundle.tokenizer_file, max_tokens=manifest.max_tokens, head_tokens=manifest.head_tokens)
    health = ModelHealth(bundle.golden, tokenizer, manifest.heads.columns)
    cost = CostModel()

    def observe_all(event: BatchEvent) -> None:
        health.observe(event)
        observe(event)

    async with (
        Engine(model, pad_id=manifest.pad_id, heads=manifest.heads.sizes, longest=64) as engine,
        Batcher[TokenIds, Probabilities](engine.run, policy, tokens=len, cost=cost, observe=observe_all) as batcher,
    ):
        yield ServedModel(
            directory=directory,
            manifest=manifest,
            fingerprint=bundle.fingerprint,
            placement=Placement("cpu", "fp32", 1, 1),
            classifier=Classifier(
                tokenizer=tokenizer,
                batcher=batcher,
                cache=MemoryCache(max_bytes=0, ttl_s=1) if cache is None else cache,
                heads=manifest.heads,
                threshold=THRESHOLD,
                limits=limits,
                fingerprint=bundle.fingerprint,
            ),
            batcher=batcher,
            cost=cost,
            health=health,
        )
