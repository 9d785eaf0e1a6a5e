"""Where concrete classes meet: settings in, running services out."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from app.cache.events import CacheEvent
from app.cache.lookups import Lookups
from app.cache.memory import ENTRY_BYTES, MemoryCache
from app.domain.errors import StartupError
from app.domain.intake import TextLimits
from app.domain.labels import Heads
from app.inference.batcher import Batcher, BatchEvent, BatchFinished, BatchPolicy
from app.inference.bundle import Bundle, open_bundle
from app.inference.classifier import Classifier, SentimentCache
from app.inference.engine import Engine, Probabilities
from app.inference.health import ModelHealth
from app.inference.processor import usable_threads
from app.inference.served import ServedModel
from app.inference.session import Gpu, open_model
from app.inference.shedding import Shedder
from app.inference.tokenizer import TokenIds, Tokenizer
from app.jobs.job import JobLimits
from app.rollout import Rollout, TrialPolicy
from app.security.gate import Gate
from app.security.keys import KeyRing
from app.security.limits import Ledger, LocalLedger, parse_rate_limits
from app.security.shared import CONNECTIONS, SharedLedger
from app.services import Jobs, Services, StreamLimits
from app.settings import Cache, Settings
from app.settings import Jobs as JobSettings
from app.telemetry.logging import log_batch_failure, log_breaker
from app.telemetry.prometheus import Metrics
from app.telemetry.siblings import Siblings

if TYPE_CHECKING:
    from app.cache.redis import RedisCache

_log = structlog.get_logger(__name__)


class _Caches:
    """What remembers answers: one memory for all models, and a view of Redis, if there is one, for each."""

    def __init__(self, settings: Cache, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._memory = MemoryCache(max_bytes=settings.max_bytes, ttl_s=settings.ttl_s)
        self._shared = Lookups()
        self._views: list[RedisCache] = []  # of the models that are loaded, the newest last
        levels = {"memory": self._memory.lookups}
        if settings.redis_url.get_secret_value():
            levels["redis"] = self._shared
            metrics.watch_redis(
                breaker=lambda operation: self._views[-1].breakers[operation],
                waiting=lambda: sum(view.waiting for view in self._views),
            )
        metrics.watch_cache(levels=levels, entries=lambda: len(self._memory), entry_bytes=ENTRY_BYTES)

    @asynccontextmanager
    async def open(self, heads: Heads, fingerprint: str) -> AsyncIterator[SentimentCache]:
        """Yield what remembers the answers of the model with this `fingerprint`."""
        url = self._settings.redis_url.get_secret_value()
        if not url:
            yield self._memory
            return
        # The library takes 6 MiB that a service without Redis need not have.
        from app.cache.entry import EntryFormat  # noqa: PLC0415
        from app.cache.redis import CONNECTIONS, RedisCache  # noqa: PLC0415
        from app.cache.redis_client import open_client  # noqa: PLC0415
        from app.cache.tiered import TieredCache  # noqa: PLC0415

        async with RedisCache(
            open_client(url, connections=CONNECTIONS, timeout_s=self._settings.redis_timeout_s),
            EntryFormat(heads),
            prefix=f"{self._settings.redis_namespace}:{fingerprint[:8]}:".encode(),
            ttl_s=self._settings.redis_ttl_s,
            timeout_s=self._settings.redis_timeout_s,
            lookups=self._shared,
            observe=self._observe,
        ) as redis:
            self._views.append(redis)
            try:
                yield TieredCache(self._memory, redis)
            finally:
                self._views.remove(redis)

    def _observe(self, event: CacheEvent) -> None:
        self._metrics.observe_cache(event)
        log_breaker(event)


@asynccontextmanager
async def open_gate(settings: Settings) -> AsyncIterator[Gate | None]:
    """Read the keys and open the ledger of rate limits; None, where whoever comes may ask for all he wants.

    Raises:
        StartupError: the file of keys or the address of Redis is not as it should be.
    """
    security = settings.security
    if not (security.keys_file or security.rate_limits):
        yield None
        return
    async with AsyncExitStack() as stack:
        keys = None
        if security.keys_file:
            keys = KeyRing(Path(security.keys_file))
            await stack.enter_async_context(keys.watched())
        ledger: Ledger = LocalLedger()
        if url := settings.cache.redis_url.get_secret_value():
            from app.cache.redis_client import open_client  # noqa: PLC0415 (6 MiB, as above)

            timeout_s = settings.cache.redis_timeout_s
            client = open_client(url, connections=CONNECTIONS, timeout_s=timeout_s)
            prefix = f"{settings.cache.redis_namespace}:limit:"
            ledger = await stack.enter_async_context(
                SharedLedger(client, fallback=ledger, prefix=prefix, timeout_s=timeout_s)
            )
        elif settings.server.processes > 1:
            _log.warning("each process counts rate limits by itself; SENTIMENT_CACHE__REDIS_URL shares them")
        yield Gate(keys, ledger, parse_rate_limits(security.rate_limits))


@asynccontextmanager
async def _open_jobs(settings: JobSettings, metrics: Metrics) -> AsyncIterator[Jobs | None]:
    """Open the database of jobs, if the settings name one."""
    url = settings.url.get_secret_value()
    if not url:
        yield None
        return
    try:
        from app.jobs.sources import Sources  # noqa: PLC0415 (an extra)
        from app.jobs.store import open_store  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        raise StartupError(f"batch jobs need {error.name}: install the extra [jobs]") from None
    limits = JobLimits(**settings.model_dump(exclude={"url", "sources"}))
    sources = Sources.below(settings.sources)
    async with open_store(url, limits) as store:
        metrics.watch_jobs()
        yield Jobs(store, limits, asyncio.Event(), sources)


@asynccontextmanager
async def open_services(settings: Settings, siblings: Siblings | None = None) -> AsyncIterator[Services]:
    """Load, prove and warm the model; on leaving, finish what was accepted.

    With `siblings` this is one process of several, and a scrape of it has the metrics of all.

    Raises:
        StartupError: the service cannot run as the settings ask.
    """
    metrics = Metrics(siblings)
    caches = _Caches(settings.cache, metrics)

    def observe(event: BatchEvent) -> None:
        metrics.observe_batch(event)
        log_batch_failure(event)
        if isinstance(event, BatchFinished) and event.error is not None:
            models.doubt()

    models = Rollout(
        lambda directory: _open_model(directory, settings, caches, observe),
        settings.model.path,
        policy=TrialPolicy(**settings.rollout.model_dump()),
        observe=metrics.observe_rollout,
        activated=partial(metrics.describe, requested=settings.model.provider),
    )
    async with _open_jobs(settings.jobs, metrics) as jobs, models:
        metrics.watch(lambda: models.active.batcher)
        async with siblings.telling(metrics.registry) if siblings else nullcontext():
            yield Services(
                models=models,
                bundles=settings.model.path.parent.parent,
                metrics=metrics,
                shedder=Shedder(lambda: models.active.batcher),
                max_texts=settings.limits.max_texts,
                timeout_s=settings.limits.timeout_s,
                batch_timeout_s=settings.limits.batch_timeout_s,
                stream=StreamLimits(
                    max_line_bytes=settings.stream.max_line_bytes,
                    window_lines=settings.stream.window_lines,
                    window_bytes=settings.stream.window_bytes,
                    idle_s=settings.stream.idle_s,
                ),
                stream_slots=asyncio.Semaphore(settings.stream.max_streams),
                jobs=jobs,
            )


def gpu_of(settings: Settings, bundle: Bundle) -> Gpu:
    """Return what the settings let this bundle use of a GPU."""
    return Gpu(
        half=bundle.half_file,
        memory_bytes=settings.model.gpu_memory_bytes,
        graphs=settings.model.cuda_graphs,
        engines=settings.model.engine_cache,
        rows=settings.batching.max_items,
        columns=bundle.manifest.max_tokens,
    )


@asynccontextmanager
async def _open_model(
    directory: Path, settings: Settings, caches: _Caches, observe: Callable[[BatchEvent], None]
) -> AsyncIterator[ServedModel]:
    """Load, prove and warm the bundle in `directory`."""
    started = time.perf_counter()
    bundle = await asyncio.to_thread(open_bundle, directory)
    manifest = bundle.manifest
    model = await asyncio.to_thread(
        open_model,
        bundle.model_file,
        provider=settings.model.provider,
        precision=settings.model.precision,
        threads=settings.model.threads or usable_threads(),
        streams=settings.batching.workers or None,
        gpu=gpu_of(settings, bundle),
    )
    tokenizer = Tokenizer(bundle.tokenizer_file, max_tokens=manifest.max_tokens, head_tokens=manifest.head_tokens)
    health = ModelHealth(bundle.golden, tokenizer, manifest.heads.columns)
    policy = BatchPolicy(
        max_items=settings.batching.max_items,
        max_tokens=settings.batching.max_tokens,
        shared_max_tokens=settings.batching.shared_max_tokens,
        max_waiting_items=settings.batching.max_waiting_items,
        max_waiting_tokens=settings.batching.max_waiting_tokens,
        max_wait_s=settings.batching.max_wait_s,
        workers=model.placement.streams,
        bulk_share=settings.batching.bulk_share,
        wait_s=settings.batching.wait_s,
    )

    # One bundle answers a little differently in another arithmetic.
    arithmetic = f"{bundle.fingerprint} {model.placement.provider} {model.placement.precision}"
    answers = hashlib.sha256(arithmetic.encode()).hexdigest()

    def observe_own(event: BatchEvent) -> None:
        health.observe(event)
        observe(event)

    async with Engine(
        model,
        pad_id=manifest.pad_id,
        heads=manifest.heads.sizes,
        longest=manifest.max_tokens,
        workers=model.placement.streams,
    ) as engine:
        await health.prove(engine)
        cost = await asyncio.to_thread(engine.warm_up, max_tokens=policy.max_tokens)
        async with (
            caches.open(manifest.heads, answers) as cache,
            Batcher[TokenIds, Probabilities](
                engine.run, policy, tokens=lambda ids: engine.columns(len(ids)), cost=cost, observe=observe_own
            ) as batcher,
        ):
            _log.info(
                "model ready",
                model=f"{manifest.name}/{manifest.version}",
                provider=model.placement.provider,
                precision=model.placement.precision,
                threads=model.placement.threads,
                batch_overhead_ms=round(cost.fixed_s * 1e3, 2),
                tokens_per_s=round(1 / cost.per_token_s),
                seconds=round(time.perf_counter() - started, 2),
            )
            yield ServedModel(
                directory=directory,
                manifest=manifest,
                fingerprint=bundle.fingerprint,
                placement=model.placement,
                classifier=Classifier(
                    tokenizer=tokenizer,
                    batcher=batcher,
                    cache=cache,
                    heads=manifest.heads,
                    threshold=manifest.calibration.threshold if manifest.calibration else 0.0,
                    limits=TextLimits(settings.limits.max_characters, settings.limits.max_bytes),
                    fingerprint=answers,
                ),
                batcher=batcher,
                cost=cost,
                health=health,
            )
