"""A server that is asked for more than it can do."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import httpx
import pytest

from tests.live.served import RunningServer, running_server

_PATIENCE_S = 60.0  # far above what the server needs, for a processor that others use, too
_LINES = b"POST /v1/sentiment HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\nX-Request-ID: mine\r\n"
_HEAD, _BODY = _LINES + b"Content-Length: 8\r\n\r\n", b"not JSON"
_CHUNKED_HEAD, _CHUNKED_BODY = _LINES + b"Transfer-Encoding: chunked\r\n\r\n", b"8\r\nnot JSON\r\n0\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Iterator[RunningServer]:
    """A server where one text may wait, which it does for a second."""
    settings = {"BATCHING__WAIT_S": "1", "BATCHING__MAX_WAITING_ITEMS": "1"}
    directory = tmp_path_factory.mktemp("server")
    with running_server(directory, MODEL__PATH=str(tiny_bundle), MODEL__PROVIDER="cpu", **settings) as server:
        yield server


@pytest.fixture
def connection(server: RunningServer) -> Iterator[socket.socket]:
    url = httpx.URL(server.address)
    with socket.create_connection((url.host, url.port)) as connection:
        yield connection


@contextmanager
def _always_full(server: RunningServer) -> Iterator[None]:
    """Keep the only place where a text may wait taken."""
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


def _until_unread(server: RunningServer, connection: socket.socket, head: bytes, body: bytes) -> str:
    """Send new texts and, between them, this request, until it is refused before its body is sent."""
    connection.settimeout(0.2)
    with httpx.Client(base_url=server.address, timeout=_PATIENCE_S) as client:
        deadline = time.monotonic() + _PATIENCE_S
        number = 0
        while time.monotonic() < deadline:
            number += 1
            client.post("/v1/sentiment", json={"text": f"急 {number}"})
            if number % 16 == 0:
                connection.sendall(head)
                try:
                    return _receive(connection)
                except TimeoutError:  # it is read
                    connection.settimeout(_PATIENCE_S)
                    connection.sendall(body)
                    assert _receive(connection).startswith("HTTP/1.1 400 ")
                    connection.settimeout(0.2)
    raise TimeoutError("all is read")


def test_under_overload_texts_are_refused_before_they_are_read(
    server: RunningServer, connection: socket.socket
) -> None:
    with _always_full(server):
        head, _, body = _until_unread(server, connection, _HEAD, _BODY).partition("\r\n\r\n")
    connection.settimeout(_PATIENCE_S)
    connection.sendall(_BODY)
    # The connection goes on after the body that nobody read.
    connection.sendall(_HEAD + _BODY)
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


def test_what_is_no_http_in_the_body_that_is_not_read_gets_no_second_answer(
    server: RunningServer, connection: socket.socket
) -> None:
    with _always_full(server):
        assert _until_unread(server, connection, _CHUNKED_HEAD, _CHUNKED_BODY).startswith("HTTP/1.1 503 ")
    connection.settimeout(_PATIENCE_S)
    connection.sendall(b"no length of a chunk\r\n")
    assert connection.recv(1 << 16) == b""
