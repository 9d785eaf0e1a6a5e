"""OpenTelemetry traces: a span for each request, and in it spans for the cache, the wait and the runs of the model.

The one importer of OpenTelemetry, which is the extra [tracing]. Its exporter, sampler and resource are set as
everywhere, by environment variables OTEL_*. No span holds what a client wrote: no text, no path, no query.
"""

import os
import time
from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, format_span_id, format_trace_id
from opentelemetry.trace.propagation import set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.inference.timeline import Timeline


class Tracing:
    """Sends spans in the background."""

    def __init__(self) -> None:
        os.environ.setdefault("OTEL_SERVICE_NAME", "chinese-sentiment")
        self._provider = TracerProvider(shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("app")
        self._propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Send the last spans."""
        self._provider.shutdown()

    def begin(self, headers: Mapping[str, str]) -> "RequestTrace":
        """Begin the span of a request, within the caller's if the header `traceparent` names one."""
        carrier = {name: headers[name] for name in self._propagator.fields if name in headers}
        span = self._tracer.start_span("request", self._propagator.extract(carrier), SpanKind.SERVER)
        return RequestTrace(self._tracer, span)


class RequestTrace:
    """The span of one request."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        context = span.get_span_context()
        self.trace_id = format_trace_id(context.trace_id)
        self._span_id = format_span_id(context.span_id)

    @property
    def exemplar(self) -> dict[str, str] | None:
        """What leads from a metric to this trace, if it is one of those that are kept."""
        return {"trace_id": self.trace_id, "span_id": self._span_id} if self._span.is_recording() else None

    def end(self, *, method: str, route: str, status: int, problem: str | None, timeline: Timeline | None) -> None:
        """End the span and say what came of the request, in the terms of OpenTelemetry's semantic conventions."""
        span = self._span
        if span.is_recording():
            span.update_name(f"{method} {route}")
            span.set_attributes(
                {"http.request.method": method, "http.route": route, "http.response.status_code": status}
            )
            if problem is not None:
                span.set_attribute("error.type", problem)
            if status >= 500:
                span.set_status(Status(StatusCode.ERROR))
            if timeline is not None:
                self._add_steps(timeline)
        span.end()

    def _add_steps(self, timeline: Timeline) -> None:
        """Add a span for each step, which ended before this one does."""
        parent = set_span_in_context(self._span)
        epoch_s = time.time() - time.monotonic()
        for step in timeline.steps():
            attributes = {} if step.items is None else {"sentiment.batch.rows": step.items}
            begun_ns, ended_ns = (int((epoch_s + moment) * 1e9) for moment in (step.begun_s, step.ended_s))
            self._tracer.start_span(step.name, parent, attributes=attributes, start_time=begun_ns).end(ended_ns)
