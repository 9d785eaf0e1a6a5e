"""Prometheus metrics of one running service. Counts events; decides nothing.

A class for each question of somebody on call; `Metrics` is all that others see. The names are an interface:
deploy/prometheus and deploy/grafana ask for them.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from app.cache.breaker import Breaker, State
from app.cache.events import CacheEvent, CommandFinished, Operation, WritesDropped
from app.cache.lookups import Lookups
from app.domain.sentiment import most_probable
from app.inference.batcher import Batcher, BatchEvent, BatchFinished, BatchStarted, Lane, RefusalReason, Refused
from app.inference.classifier import Classified
from app.inference.served import ServedModel
from app.jobs.events import JobEvent, JobsCounted, LinesAnswered
from app.jobs.job import State as JobState
from app.telemetry.siblings import Siblings

# Geometric, from what a cache hit takes to the longest deadline.
_LATENCY_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_REDIS_S: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_CONFIDENCE: Final = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128)
_TOKENS: Final = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})  # clients may invent others

_Metric = TypeVar("_Metric", bound=MetricWrapperBase)


class _Children(dict[tuple[object, ...], _Metric], Generic[_Metric]):
    """The series of a metric by the values of its labels, each looked up in the metric once.

    `labels` turns the values into strings and takes a lock; it cost more than the counting. Values must be few.
    """

    def __init__(self, metric: _Metric) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, values: tuple[object, ...]) -> _Metric:
        child = self[values] = self._metric.labels(*values)
        return child


class _Requests:
    """Whether it answers, how fast, and with which problems."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._count = _Children(
            Counter("sentiment_http_requests", "Requests answered.", ["method", "route", "status"], registry=registry)
        )
        self._duration = _Children(
            Histogram(
                "sentiment_http_request_duration_seconds",
                "From a request's head to the end of its answer.",
                ["route"],
                buckets=_LATENCY_S,
                registry=registry,
            )
        )
        self._problems = _Children(
            Counter(
                "sentiment_http_problems",
                "Requests answered with a problem, by what ends the problem's type.",
                ["route", "type"],
                registry=registry,
            )
        )
        self._ready = Gauge("sentiment_ready", "Whether the last answer of /health/ready was 200.", registry=registry)
        self._ready.set(1)  # the model has been proven before anybody may ask

    def observe(
        self,
        method: str,
        route: str,
        status: int,
        duration_s: float,
        *,
        problem: str | None,
        exemplar: dict[str, str] | None,
    ) -> None:
        self._count[method if method in _METHODS else "other", route, status].inc()
        self._duration[route,].observe(duration_s, exemplar)
        if problem is not None:
            self._problems[route, problem].inc()

    def observe_readiness(self, ready: bool) -> None:  # noqa: FBT001 (it is what is told)
        self._ready.set(ready)


class _Answers:
    """What texts come to, and whether the mix of answers drifts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._confidence = _Children(
            Histogram(
                "sentiment_confidence",
                "Confidence of an answer; its count is the number of answers with a label.",
                ["label"],
                buckets=_CONFIDENCE,
                registry=registry,
            )
        )
        self._emotions = _Children(
            Counter("sentiment_emotions", "Answers by their emotion.", ["emotion"], registry=registry)
        )
        self._uncertain = Counter(
            "sentiment_uncertain_answers", "Answers below the model's threshold of confidence.", registry=registry
        )
        self._truncated = Counter(
            "sentiment_truncated_texts", "Answers to texts longer than the model's window.", registry=registry
        )
        self._admitted = _Children(
            Counter(
                "sentiment_key_texts",
                "Texts that the door let in, by the name of their key.",
                ["key"],
                registry=registry,
            )
        )
        self._unanswered = _Children(
            Counter(
                "sentiment_unanswered_texts",
                "Texts without an answer, by what ends the type of their problem.",
                ["type"],
                registry=registry,
            )
        )

    def observe(self, classified: Classified) -> None:
        sentiment = classified.sentiment
        self._confidence[sentiment.label,].observe(sentiment.confidence)
        if sentiment.emotions is not None:
            self._emotions[most_probable(sentiment.emotions),].inc()
        if not sentiment.certain:
            self._uncertain.inc()
        if sentiment.truncated:
            self._truncated.inc()

    def observe_admission(self, key: str, texts: int) -> None:
        self._admitted[key,].inc(texts)

    def observe_unanswered(self, problem: str, texts: int) -> None:
        self._unanswered[problem,].inc(texts)


class _Cache:
    """Whether the cache spares the model work."""

    def __init__(self, registry: CollectorRegistry) -> None:
        lookups = _Children(
            Counter(
                "sentiment_cache_lookups", "Answers by whether they were remembered.", ["result"], registry=registry
            )
        )
        self._hit, self._miss = lookups["hit",], lookups["miss",]
        self._registry = registry

    def observe(self, classified: Classified) -> None:
        (self._hit if classified.cached else self._miss).inc()

    def watch(self, levels: Mapping[str, Lookups], entries: Callable[[], int], entry_bytes: int) -> None:
        self._registry.register(_CacheLookups(levels))
        for name, text, value in (
            ("sentiment_cache_entries", "Answers remembered.", entries),
            ("sentiment_cache_bytes", "Memory counted for them.", lambda: entries() * entry_bytes),
        ):
            Gauge(name, text, ["level"], registry=self._registry).labels("memory").set_function(value)


class _CacheLookups:
    """Reads the counts of each level when it is scraped: counting a remembered answer must cost next to nothing."""

    def __init__(self, levels: Mapping[str, Lookups]) -> None:
        self._levels = levels

    def collect(self) -> Iterable[Metric]:
        """Return the one metric (the method that a registry calls)."""
        family = CounterMetricFamily(
            "sentiment_cache_level_lookups", "Texts looked up, by level of the cache.", labels=["level", "result"]
        )
        for level, lookups in self._levels.items():
            family.add_metric([level, "hit"], lookups.hits)
            family.add_metric([level, "miss"], lookups.misses)
            family.add_metric([level, "unanswered"], lookups.unanswered)
        return [family]


class _Redis:
    """Whether Redis is in use, how fast it is, and what it fails at."""

    def __init__(
        self,
        registry: CollectorRegistry,
        breaker: Callable[[Operation], Breaker],
        waiting: Callable[[], int],
    ) -> None:
        self._seconds = Histogram(
            "sentiment_redis_command_seconds",
            "Commands that Redis answered, or failed to.",
            ["operation"],
            buckets=_REDIS_S,
            registry=registry,
        )
        self._errors = Counter(
            "sentiment_redis_errors", "Commands that failed.", ["operation", "kind"], registry=registry
        )
        self._writes = Counter(
            "sentiment_redis_writes", "Answers to be written to Redis, by outcome.", ["result"], registry=registry
        )
        gauge = Gauge(
            "sentiment_redis_breaker",
            "1 for the state of the breaker, 0 for the others.",
            ["operation", "state"],
            registry=registry,
        )
        for operation in (Operation.READ, Operation.WRITE):
            for state in State:
                gauge.labels(operation.value, state.value).set_function(partial(_is_in, breaker, operation, state))
        Gauge("sentiment_redis_waiting_writes", "Answers that wait to be written.", registry=registry).set_function(
            waiting
        )

    def observe(self, event: CacheEvent) -> None:
        match event:
            case CommandFinished():
                self._seconds.labels(event.operation.value).observe(event.duration_s)
                if event.error is not None:
                    self._errors.labels(event.operation.value, event.error).inc()
                if event.operation is Operation.WRITE:
                    self._writes.labels("failed" if event.error else "written").inc(event.entries)
            case WritesDropped():
                self._writes.labels("dropped").inc(event.entries)


def _is_in(breaker: Callable[[Operation], Breaker], operation: Operation, state: State) -> float:
    return float(breaker(operation).state is state)


class _Batches:
    """Whether the model is busy, how long texts wait for it, and how much of its time goes into padding."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._wait = self._histogram("sentiment_queue_wait_seconds", "Wait of a text for the model.", _LATENCY_S)
        self._run = self._histogram("sentiment_model_run_seconds", "Run of a batch.", _LATENCY_S)
        self._rows = self._histogram("sentiment_batch_rows", "Texts in a batch.", _ROWS)
        self._padded = self._histogram("sentiment_batch_padded_tokens", "Tokens in a batch with padding.", _TOKENS)
        tokens = _Children(
            Counter("sentiment_tokens", "Tokens that the model was given, by kind.", ["kind"], registry=registry)
        )
        self._useful, self._padding = tokens["useful",], tokens["padding",]
        self._failures = Counter("sentiment_batch_failures", "Batches that the model failed.", registry=registry)
        refused = Counter(
            "sentiment_refused_texts",
            "Texts turned away at the door: too many texts or tokens wait, or they would wait too long.",
            ["lane", "reason"],
            registry=registry,
        )
        self._refused = {
            (lane, reason): refused.labels(lane.value, reason.value) for lane in Lane for reason in RefusalReason
        }

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> dict[Lane, Histogram]:
        histogram = Histogram(name, text, ["lane"], buckets=buckets, registry=self._registry)
        return {lane: histogram.labels(lane.value) for lane in Lane}

    def watch(self, batcher: Callable[[], Batcher[Any, Any]]) -> None:
        self._gauge("sentiment_waiting_texts", "Texts that wait for the model.", lambda: batcher().waiting_items)
        self._gauge("sentiment_waiting_tokens", "Tokens that wait for the model.", lambda: batcher().waiting_tokens)
        self._gauge(
            "sentiment_longest_run_seconds",
            "For how long the oldest of the batches now running has been running.",
            lambda: batcher().longest_run_s,
        )
        wait = Gauge(
            "sentiment_predicted_wait_seconds",
            "How long a text that comes now would wait for the model.",
            ["lane"],
            registry=self._registry,
        )
        for lane in Lane:
            wait.labels(lane.value).set_function(partial(_predicted_wait_s, batcher, lane))

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(name, text, registry=self._registry).set_function(value)

    def observe(self, event: BatchEvent) -> None:
        match event:
            case BatchStarted():
                for wait_s in event.waits_s:
                    self._wait[event.lane].observe(wait_s)
                self._rows[event.lane].observe(event.items)
                self._padded[event.lane].observe(event.padded_tokens)
                self._useful.inc(event.tokens)
                self._padding.inc(event.padded_tokens - event.tokens)
            case BatchFinished():
                self._run[event.lane].observe(event.run_s)
                if event.error is not None:
                    self._failures.inc()
            case Refused():
                self._refused[event.lane, event.reason].inc(event.items)


def _predicted_wait_s(batcher: Callable[[], Batcher[Any, Any]], lane: Lane) -> float:
    return batcher().predicted_wait_s(lane)


class _Jobs:
    """How many batch jobs there are, and how their work goes on."""

    def __init__(self, registry: CollectorRegistry) -> None:
        jobs = Gauge(
            "sentiment_jobs",
            "Batch jobs in the database by their state; every process that shares it says the same.",
            ["state"],
            registry=registry,
        )
        self._jobs = {state: jobs.labels(state.value) for state in JobState}
        self._stored = Gauge(
            "sentiment_job_stored_bytes", "What they take there; every process says the same.", registry=registry
        )
        lines = Counter(
            "sentiment_job_lines",
            "Lines of batch jobs, by what this process wrote for them.",
            ["result"],
            registry=registry,
        )
        self._answers, self._errors = lines.labels("answer"), lines.labels("error")

    def observe(self, event: JobEvent) -> None:
        match event:
            case LinesAnswered():
                self._answers.inc(event.lines - event.errors)
                self._errors.inc(event.errors)
            case JobsCounted():
                for state, gauge in self._jobs.items():
                    gauge.set(event.jobs[state])
                self._stored.set(event.stored_bytes)


class _Models:
    """Which model answers, and what became of those that were to replace it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._info = Info("sentiment_model", "The bundle being served, and where it runs.", registry=registry)
        self._workers = Gauge("sentiment_model_workers", "Batches that may run at the same time.", registry=registry)
        self._rollouts = Counter(
            "sentiment_model_rollouts", "Changes of the model, by what came of them.", ["event"], registry=registry
        )

    def describe(self, model: ServedModel, requested: str) -> None:
        placement = model.placement
        self._info.info(
            {
                "name": model.manifest.name,
                "version": model.manifest.version,
                "provider": placement.provider,
                "requested": requested,
                "precision": placement.precision,
                "threads": str(placement.threads),
            }
        )
        self._workers.set(placement.streams)

    def observe(self, event: str) -> None:
        self._rollouts.labels(event).inc()


class Metrics:
    """The metrics of one service, in a registry of their own; a scrape has those of its `siblings`, too."""

    def __init__(self, siblings: Siblings | None = None) -> None:
        self._siblings = siblings
        # They are a second series beside every counter, that no query of ours needs.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._requests = _Requests(registry)
        self._answers = _Answers(registry)
        self._cache = _Cache(registry)
        self._batches = _Batches(registry)
        self._models = _Models(registry)
        self._redis: _Redis | None = None
        self._jobs: _Jobs | None = None

    def describe(self, model: ServedModel, *, requested: str) -> None:
        """Publish which model answers from now on, and how it runs; `requested` is the provider of the settings."""
        self._models.describe(model, requested)

    def observe_rollout(self, event: str) -> None:
        """Count what became of a bundle that was to replace or to challenge the active one."""
        self._models.observe(event)

    def watch(self, batcher: Callable[[], Batcher[Any, Any]]) -> None:
        """Publish how much work waits for the batcher of the active model, read whenever metrics are scraped."""
        self._batches.watch(batcher)

    def watch_cache(self, *, levels: Mapping[str, Lookups], entries: Callable[[], int], entry_bytes: int) -> None:
        """Publish what the levels of the cache could tell, and what the one in memory holds."""
        self._cache.watch(levels, entries, entry_bytes)

    def watch_redis(self, *, breaker: Callable[[Operation], Breaker], waiting: Callable[[], int]) -> None:
        """Publish whether Redis is in use, and how much is still to be written."""
        self._redis = _Redis(self.registry, breaker, waiting)

    def observe_cache(self, event: CacheEvent) -> None:
        """Count what happens at Redis."""
        if self._redis is not None:
            self._redis.observe(event)

    def watch_jobs(self) -> None:
        """Publish how many batch jobs there are, and what becomes of them."""
        self._jobs = _Jobs(self.registry)

    def observe_job(self, event: JobEvent) -> None:
        """Count what happens to batch jobs."""
        if self._jobs is not None:
            self._jobs.observe(event)

    def observe_request(
        self,
        method: str,
        route: str,
        status: int,
        duration_s: float,
        *,
        problem: str | None = None,
        exemplar: dict[str, str] | None = None,
    ) -> None:
        """Count an answered request; `route` is a template, never a raw path, `problem` the end of a problem's type.

        `exemplar` leads to its trace.
        """
        self._requests.observe(method, route, status, duration_s, problem=problem, exemplar=exemplar)

    def observe_readiness(self, *, ready: bool) -> None:
        """Note what a health check was told."""
        self._requests.observe_readiness(ready)

    def observe_admission(self, key: str | None, texts: int) -> None:
        """Count texts that the door let in; `key` is a name out of the file of keys."""
        self._answers.observe_admission(key or "", texts)

    def observe_answer(self, classified: Classified) -> None:
        """Count the answer to one text."""
        self._answers.observe(classified)
        self._cache.observe(classified)

    def observe_unanswered(self, problem: str, texts: int = 1) -> None:
        """Count texts that one problem left without an answer; `problem` is the end of its type."""
        self._answers.observe_unanswered(problem, texts)

    def observe_batch(self, event: BatchEvent) -> None:
        """Count what the batcher reports."""
        self._batches.observe(event)

    async def render(self, accept: str | None) -> tuple[bytes, str]:
        """Return the exposition and its content type, in the format that `accept` prefers."""
        encode, content_type = choose_encoder(accept or "")
        if self._siblings is None:
            return encode(self.registry), content_type
        # In a thread: it takes as many times as long as there are processes.
        return await asyncio.to_thread(encode, await self._siblings.gather(self.registry)), content_type
