"""Traces, as a collector gets them from the running service."""

import queue
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.live.served import RunningServer, run_command, running_server
from tests.tiny_bundle import POISON

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """Takes what is sent to it over OTLP."""

    def __init__(self) -> None:
        self.bodies: queue.Queue[bytes] = queue.Queue()
        self.received: list[Span] = []
        self.raw = b""
        self.services: set[str] = set()
        self.paths: set[str] = set()
        bodies, paths = self.bodies, self.paths

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                paths.add(self.path)
                bodies.put(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def spans(self, trace: str, count: int) -> dict[str, Span]:
        """Return the spans of a trace by name, when `count` have come."""
        deadline = time.monotonic() + 60
        while len(found := [span for span in self.received if span.trace_id.hex() == trace]) < count:
            body = self.bodies.get(timeout=max(0.0, deadline - time.monotonic()))
            self.raw += body
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.services |= {
                    each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
                }
                self.received += [span for scope in resource.scope_spans for span in scope.spans]
        return {span.name: span for span in found}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


@pytest.fixture(scope="module")
def traced(
    collector: Collector, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        patch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")  # its own spans and logs would hold what clients write
        settings = {"MODEL__PATH": str(tiny_bundle), "MODEL__PROVIDER": "cpu", "TRACING__ENABLED": "true"}
        with running_server(tmp_path_factory.mktemp("traced"), **settings) as server:
            yield server


def _post(server: RunningServer, trace: str, content: Any, path: str = "/v1/sentiment") -> httpx.Response:
    headers = {"traceparent": f"00-{trace}-{CALLER}-01", "X-Request-ID": f"of-{trace}"}
    return httpx.post(f"{server.address}{path}", json=content, headers=headers, timeout=60)


def _attributes(span: Span) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def test_a_request_is_a_span_within_its_callers_and_its_steps_are_spans_in_it(
    traced: RunningServer, collector: Collector
) -> None:
    assert _post(traced, TRACE, {"text": "很好喜"}).status_code == 200
    spans = collector.spans(TRACE, 5)
    request = spans.pop("POST /v1/sentiment")
    assert (request.kind, request.parent_span_id.hex()) == (Span.SPAN_KIND_SERVER, CALLER)
    assert _attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/v1/sentiment",
        "http.response.status_code": 200,
    }
    assert spans.keys() == {"cache", "tokenise", "queue", "infer"}
    assert {span.parent_span_id for span in spans.values()} == {request.span_id}
    assert _attributes(spans["infer"]) == {"sentiment.batch.rows": 1}
    tolerance_ns = 5_000_000  # the loop's clock is coarse
    order = [spans[name] for name in ("cache", "tokenise", "queue", "infer")]
    for earlier, later in pairwise(order):
        assert earlier.start_time_unix_nano <= earlier.end_time_unix_nano
        assert earlier.end_time_unix_nano <= later.start_time_unix_nano + tolerance_ns
    assert order[0].start_time_unix_nano >= request.start_time_unix_nano - tolerance_ns
    assert order[-1].end_time_unix_nano <= request.end_time_unix_nano + tolerance_ns
    assert collector.services == {"chinese-sentiment"}


def test_a_remembered_answer_has_the_look_into_the_cache_alone(traced: RunningServer, collector: Collector) -> None:
    first, second = "1" * 32, "2" * 32
    for trace in (first, second):
        _post(traced, trace, {"text": "棒棒"})
    assert collector.spans(second, 2).keys() == {"POST /v1/sentiment", "cache"}


def test_a_failure_is_an_error_with_the_problems_name(traced: RunningServer, collector: Collector) -> None:
    trace = "3" * 32
    assert _post(traced, trace, {"text": POISON}).status_code == 500
    request = collector.spans(trace, 5)["POST /v1/sentiment"]
    assert request.status.code == Status.STATUS_CODE_ERROR
    assert _attributes(request)["error.type"] == "model-failure"


def test_a_trace_is_found_from_the_log_and_from_the_metrics(traced: RunningServer, collector: Collector) -> None:
    trace = "4" * 32
    _post(traced, trace, {"text": "快快"})
    collector.spans(trace, 5)
    (line,) = [line for line in traced.log() if line.get("request_id") == f"of-{trace}"]
    assert line["trace_id"] == trace
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    lines = httpx.get(f"{traced.address}/metrics", headers=accept).text.splitlines()
    exemplars = [line for line in lines if f'trace_id="{trace}"' in line.partition(" # ")[2]]
    assert [line.partition("{")[0] for line in exemplars] == ["sentiment_http_request_duration_seconds_bucket"]


def test_a_caller_that_does_not_sample_is_not_traced_and_leaves_no_exemplar(
    traced: RunningServer, collector: Collector
) -> None:
    unsampled, sampled = "5" * 32, "6" * 32
    headers = {"traceparent": f"00-{unsampled}-{CALLER}-00"}
    httpx.post(f"{traced.address}/v1/sentiment", json={"text": "贵贵"}, headers=headers)
    _post(traced, sampled, {"text": "慢慢"})
    collector.spans(sampled, 5)
    assert [span for span in collector.received if span.trace_id.hex() == unsampled] == []
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    assert unsampled not in httpx.get(f"{traced.address}/metrics", headers=accept).text


def test_no_span_holds_what_a_client_wrote_and_health_checks_have_none(
    traced: RunningServer, collector: Collector
) -> None:
    trace, private = "7" * 32, "槐花巷"
    httpx.get(f"{traced.address}/health/ready")
    _post(traced, trace, {"text": private}, f"/v1/{private}?text={private}")
    _post(traced, trace, {"text": private}, f"/v1/sentiment?text={private}")
    collector.spans(trace, 6)
    assert {span.name for span in collector.received} == {
        "POST /v1/sentiment", "POST unmatched", "cache", "tokenise", "queue", "infer",
    }  # fmt: skip
    assert collector.paths == {"/v1/traces"}
    assert private.encode() not in collector.raw
    assert httpx.QueryParams({"q": private})["q"].encode() not in collector.raw
    assert b"%E6%A7%90" not in collector.raw


def test_a_stop_sends_the_last_spans_and_waits_for_no_collector_that_is_gone(tiny_bundle: Path, tmp_path: Path) -> None:
    collector = Collector()
    settings = {"MODEL__PATH": str(tiny_bundle), "MODEL__PROVIDER": "cpu", "TRACING__ENABLED": "true"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
        with running_server(tmp_path, **settings) as server:
            _post(server, TRACE, {"text": "好"})
            thread = threading.Thread(target=collector.server.serve_forever)
            thread.start()
            assert server.stop() == 0
    collector.server.shutdown()
    thread.join()
    assert len(collector.spans(TRACE, 5)) == 5

    collector.server.server_close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        with running_server(tmp_path, **settings) as server:
            _post(server, TRACE, {"text": "好"})
            assert server.stop() == 0
            assert "Traceback" not in server.output()


def test_without_its_libraries_tracing_stops_the_start_with_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry" / "sdk").mkdir(parents=True)
    gone = "raise ModuleNotFoundError('gone', name='opentelemetry.sdk')"
    (tmp_path / "opentelemetry" / "sdk" / "__init__.py").write_text(gone)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        done = run_command("serve", "--port", "0", TRACING__ENABLED="true")
    assert done.returncode == 1
    assert done.stderr == "error: tracing needs opentelemetry.sdk: install the extra [tracing]\n"
