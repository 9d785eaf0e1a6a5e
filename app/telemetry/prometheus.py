"""Prometheus metrics of one running service. Counts events; decides nothing."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from app.domain.errors import ServiceError
from app.inference.batcher import BatchEvent, BatchFinished, BatchStarted, Refused
from app.inference.classifier import Classified
from app.inference.served import ServedModel

# Geometric, from what a cache hit takes to the longest deadline.
_LATENCY_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})  # a client may invent others
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one service, in a registry of their own."""

    def __init__(self) -> None:
        # They are a second series beside every counter, that no query of ours needs.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._requests = Counter(
            "sentiment_http_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self._latency = Histogram(
            "sentiment_http_request_duration_seconds",
            "From a request's head to the end of its answer.",
            ["route"],
            buckets=_LATENCY_S,
            registry=registry,
        )
        self._texts = Counter(
            "sentiment_texts", "Texts by outcome: a label, or the kind of error.", ["outcome"], registry=registry
        )
        self._truncated = Counter("sentiment_truncated_texts", "Texts longer than the window.", registry=registry)
        self._cached = Counter(
            "sentiment_cache_lookups", "Valid texts looked up in the cache.", ["result"], registry=registry
        )
        self._queue_wait = Histogram(
            "sentiment_queue_wait_seconds",
            "Wait of the oldest text of a batch.",
            ["lane"],
            buckets=_LATENCY_S,
            registry=registry,
        )
        self._rows = Histogram("sentiment_batch_rows", "Texts in a batch.", ["lane"], buckets=_ROWS, registry=registry)
        self._run = Histogram(
            "sentiment_model_run_seconds", "Run of a batch.", ["lane"], buckets=_LATENCY_S, registry=registry
        )
        self._tokens = Counter("sentiment_tokens", "Tokens that ran, by kind.", ["kind"], registry=registry)
        self._failures = Counter("sentiment_batch_failures", "Batches that the model failed.", registry=registry)
        self._refused = Counter(
            "sentiment_refused_texts", "Texts turned away by a full waiting room.", ["lane"], registry=registry
        )
        self._model = Info("sentiment_model", "The bundle being served, and where it runs.", registry=registry)
        self._rollouts = Counter(
            "sentiment_model_rollouts", "Changes of the model, by what came of them.", ["event"], registry=registry
        )

    def describe(self, model: ServedModel) -> None:
        """Publish which model answers from now on, and how it runs."""
        placement = model.placement
        self._model.info(
            {
                "name": model.manifest.name,
                "version": model.manifest.version,
                "provider": placement.provider,
                "precision": placement.precision,
                "threads": str(placement.threads),
            }
        )

    def observe_rollout(self, event: str) -> None:
        """Count what became of a bundle that was to replace or to challenge the active one."""
        self._rollouts.labels(event).inc()

    def watch(self, *, waiting_items: Callable[[], int], waiting_tokens: Callable[[], int]) -> None:
        """Publish how much work waits, read whenever metrics are scraped."""
        Gauge("sentiment_waiting_texts", "Texts that wait for the model.", registry=self.registry).set_function(
            waiting_items
        )
        Gauge("sentiment_waiting_tokens", "Tokens that wait for the model.", registry=self.registry).set_function(
            waiting_tokens
        )

    def observe_request(self, method: str, route: str, status: int, duration_s: float) -> None:
        """Count an answered request; `route` is a template, never a raw path."""
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._latency.labels(route).observe(duration_s)

    def observe_refusal(self, error: ServiceError, texts: int = 1) -> None:
        """Count texts that one error left without an answer."""
        self._texts.labels(type(error).__name__).inc(texts)

    def observe_outcome(self, outcome: Classified | ServiceError) -> None:
        """Count the answer to one text."""
        if isinstance(outcome, ServiceError):
            self.observe_refusal(outcome)
            return
        self._texts.labels(outcome.sentiment.label).inc()
        self._cached.labels("hit" if outcome.cached else "miss").inc()
        if outcome.sentiment.truncated:
            self._truncated.inc()

    def observe_batch(self, event: BatchEvent) -> None:
        """Count what the batcher reports."""
        match event:
            case BatchStarted():
                self._queue_wait.labels(event.lane.value).observe(event.longest_wait_s)
                self._rows.labels(event.lane.value).observe(event.items)
                self._tokens.labels("useful").inc(event.tokens)
                self._tokens.labels("padding").inc(event.padded_tokens - event.tokens)
            case BatchFinished():
                self._run.labels(event.lane.value).observe(event.run_s)
                if event.error is not None:
                    self._failures.inc()
            case Refused():
                self._refused.labels(event.lane.value).inc(event.items)

    def render(self, accept: str | None) -> tuple[bytes, str]:
        """Return the exposition and its content type, in the format that `accept` prefers."""
        encode, content_type = choose_encoder(accept or "")
        return encode(self.registry), content_type
