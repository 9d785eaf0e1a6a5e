import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.live.served import ROOT, START_S, RunningServer

# Locust makes sockets cooperative in its whole process: it has one of its own.
_SLOW = {f"LOAD_{kind}_P99_MS": "60000" for kind in ("SINGLE", "BATCH", "OTHER")}  # a processor that others use, too
_KINDS = {
    "single", "batch", "alive", "ready", "metrics", "slow to send", "slow to read",
    "bad: empty text", "bad: no JSON", "bad: unknown field", "bad: no list", "bad: too long", "bad: no JSON type",
    "bad: half an emoji",
}  # fmt: skip


def _load(address: str, *, seconds: int, **limits: str) -> tuple[int, dict[str, list[int]], str]:
    """Return the exit status, what stands in the summary by kind of request, and all of the output."""
    done = subprocess.run(  # noqa: S603 (our own program)
        [sys.executable, "-m", "loadtest.locustfile", "--host", address],
        cwd=ROOT,
        env={**os.environ, **_SLOW, "LOCUST_USERS": "20", "LOCUST_RUN_TIME": str(seconds), **limits},
        capture_output=True,
        encoding="utf-8",
        timeout=START_S,
        check=False,
    )
    summary = done.stdout[done.stdout.rindex("requests   failed  refused") :].splitlines()[1 : len(_KINDS) + 1]
    table = {line[:20].strip(): [int(number) for number in line[20:].split()] for line in summary}
    return done.returncode, table, done.stdout + done.stderr


def test_the_service_gives_every_kind_of_request_the_answer_it_ought_to_get(server: RunningServer) -> None:
    status, table, output = _load(server.address, seconds=20)
    assert status == 0, output
    assert "\nPASSED\n" in output
    assert table.keys() == _KINDS
    for requests, failed, refused, *_ in table.values():
        assert requests > 0
        assert failed == refused == 0


class _Wrong(BaseHTTPRequestHandler):
    """Answers everything with the status and body of its server."""

    protocol_version = "HTTP/1.1"
    status = 200
    body = b"{}"
    extra: tuple[tuple[str, str], ...] = ()

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.status)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(self.body))), *self.extra):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


class _Refusing(_Wrong):
    status = 503
    extra = (("Retry-After", "1"),)


class _Broken(_Wrong):
    status = 500


@contextmanager
def _wrong_server(handler: type[_Wrong]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (_Wrong, "the answer does not have the promised form"),
        (_Broken, "status 500 instead of 200"),
        (_Refusing, "are more than 1.0%"),
    ],
    ids=["200 without content", "500", "always refused"],
)
def test_a_service_that_answers_wrongly_fails(handler: type[_Wrong], reason: str) -> None:
    with _wrong_server(handler) as address:
        status, _, output = _load(address, seconds=5)
    assert status == 1, output
    assert reason in output
    assert "PASSED" not in output
