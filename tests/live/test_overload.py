"""A server that is asked for more than it can do."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import httpx

from tests.live.served import RunningServer, running_server

_PATIENCE_S = 60.0  # far above what the server needs, for a processor that others use, too
_HEAD = b"POST /v1/sentiment HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\nContent-Length: 8\r\n"


@contextmanager
def _always_full(server: RunningServer) -> Iterator[None]:
    """Keep the only place where a text may wait taken: it waits for company, a second."""
    stop = Event()

    def ask() -> None:
        with httpx.Client(base_url=server.address, timeout=_PATIENCE_S) as client:
            number = 0
            while not stop.is_set():
                number += 1
                client.post("/v1/sentiment", json={"text": f"等 {number}"})

    asking = Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        stop.set()
        asking.join()


def _receive(connection: socket.socket) -> str:
    """Return one whole answer."""
    received = connection.recv(1 << 16).decode()
    while not received.endswith("}"):
        received += connection.recv(1 << 16).decode()
    return received


def _until_unread(server: RunningServer, connection: socket.socket) -> str:
    """Send new texts and, between them, what is no JSON, until that is refused before its body is even there."""
    with httpx.Client(base_url=server.address, timeout=_PATIENCE_S) as client:
        deadline = time.monotonic() + _PATIENCE_S
        number = 0
        while time.monotonic() < deadline:
            number += 1
            client.post("/v1/sentiment", json={"text": f"急 {number}"})
            if number % 16 == 0:
                connection.settimeout(0.2)
                connection.sendall(_HEAD + b"X-Request-ID: mine\r\n\r\n")
                try:
                    answer = _receive(connection)
                except TimeoutError:  # it is read
                    connection.settimeout(_PATIENCE_S)
                    connection.sendall(b"not JSON")
                    assert _receive(connection).startswith("HTTP/1.1 400 ")
                    continue
                connection.sendall(b"not JSON")
                return answer
    raise TimeoutError("all is read")


def test_under_overload_texts_are_refused_before_they_are_read(tmp_path: Path, tiny_bundle: Path) -> None:
    with running_server(
        tmp_path,
        MODEL__PATH=str(tiny_bundle),
        MODEL__PROVIDER="cpu",
        BATCHING__WAIT_S="1",
        BATCHING__MAX_WAITING_ITEMS="1",
    ) as server:
        url = httpx.URL(server.address)
        with socket.create_connection((url.host, url.port)) as connection:
            with _always_full(server):
                head, _, body = _until_unread(server, connection).partition("\r\n\r\n")
            connection.settimeout(_PATIENCE_S)
            # The connection goes on after the body that nobody read.
            connection.sendall(_HEAD + b"\r\nnot JSON")
            assert _receive(connection).startswith("HTTP/1.1 400 ")
        metrics = httpx.get(f"{server.address}/metrics").text
    assert head.startswith("HTTP/1.1 503 Service Unavailable\r\n")
    headers = httpx.Headers(dict(line.split(": ", 1) for line in head.splitlines()[1:]))
    assert headers["Content-Type"] == "application/problem+json"
    assert headers["X-Request-ID"] == "mine"
    assert headers["Cache-Control"] == "no-store"
    assert int(headers["Retry-After"]) >= 1
    assert '"type":"urn:sentiment:problem:overloaded"' in body
    assert '"request_id":"mine"' in body
    # It is counted like any other.
    refused = re.search(r'sentiment_unanswered_texts_total\{type="overloaded"\} (\S+)', metrics)
    assert refused is not None
    answered = re.search(r'sentiment_http_problems_total\{.*type="overloaded"\} (\S+)', metrics)
    assert answered is not None, [line for line in metrics.splitlines() if "problem" in line]
    assert float(refused[1]) == float(answered[1])
