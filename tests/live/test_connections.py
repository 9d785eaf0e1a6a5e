"""What a client may do to a connection, and for how long."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

from tests.live.served import RunningServer, running_server

_TIMEOUT_S = 1.0
_PATIENCE_S = 20.0  # far above what the server needs, for a processor that others use, too
_LARGE = "/static-offline-docs/swagger-ui-bundle.js"
_BODY = '{"text": "好"}'.encode()


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Iterator[RunningServer]:
    """A server that waits for a client no longer than a second."""
    with running_server(
        tmp_path_factory.mktemp("bounded"),
        MODEL__PATH=str(tiny_bundle),
        MODEL__PROVIDER="cpu",
        SERVER__RECEIVE_TIMEOUT_S=str(_TIMEOUT_S),
    ) as server:
        yield server


class Connect(Protocol):
    def __call__(self, server: RunningServer, *, receive_buffer: int | None = None) -> socket.socket: ...


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Return what opens a connection, which the end of the test closes."""
    with ExitStack() as connections:

        def open_connection(server: RunningServer, *, receive_buffer: int | None = None) -> socket.socket:
            connection = connections.enter_context(socket.socket())
            if receive_buffer is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            connection.settimeout(_PATIENCE_S)
            url = httpx.URL(server.address)
            connection.connect((url.host, url.port))
            return connection

        yield open_connection


def _head(*lines: str, path: str = "/v1/sentiment", method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: service", *lines, "", ""]).encode()


_ALIVE = _head(method="GET", path="/health/live")
_JSON = "Content-Type: application/json"


def _ask(connection: socket.socket, request: bytes, ending: bytes) -> None:
    """Send `request`, and read its answer, which ends so."""
    connection.sendall(request)
    received = b""
    while not received.endswith(ending):
        part = connection.recv(1 << 16)
        assert part, received
        received += part
    assert received.startswith(b"HTTP/1.1 200")


def _until_closed(connection: socket.socket, send: Callable[[], None] = lambda: None) -> bytes:
    """Call `send` again and again, and return what came until the server closed."""
    received = b""
    deadline = time.monotonic() + _PATIENCE_S
    connection.settimeout(0.1)
    while time.monotonic() < deadline:
        try:
            send()
            part = connection.recv(1 << 20)
        except TimeoutError:
            continue
        except OSError:  # reset, because we went on sending
            return received
        if not part:
            return received
        received += part
    raise TimeoutError("the server did not close the connection")


def _problem(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    problem: dict[str, Any] = json.loads(body)
    assert int(head.split()[1]) == problem["status"]
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"connection"] == b"close"
    assert headers[b"x-request-id"].decode() == problem["request_id"]
    assert headers[b"cache-control"] == b"no-store"
    assert b"server" not in headers
    return problem


def _answers(server: RunningServer) -> bool:
    return httpx.get(f"{server.address}/health/live").status_code == 200


def test_a_connection_that_never_sends_a_byte_is_closed(bounded: RunningServer, connect: Connect) -> None:
    assert _until_closed(connect(bounded)) == b""


def test_half_a_head_is_waited_for_no_longer_than_the_setting_says(bounded: RunningServer, connect: Connect) -> None:
    connection = connect(bounded)
    connection.sendall(b"POST /v1/sentiment HTTP/1.1\r\nHost: serv")
    assert _until_closed(connection) == b""
    assert "the request was not sent" in bounded.output()


def test_a_head_that_trickles_is_no_reason_to_wait_longer(bounded: RunningServer, connect: Connect) -> None:
    connection = connect(bounded)
    connection.sendall(b"GET /health/live HTTP/1.1\r\nX-Slow: ")
    started = time.monotonic()
    assert _until_closed(connection, lambda: connection.sendall(b"a")) == b""
    assert time.monotonic() - started > _TIMEOUT_S / 2


def test_blank_lines_between_requests_do_not_keep_a_connection(bounded: RunningServer, connect: Connect) -> None:
    connection = connect(bounded)
    _ask(connection, _ALIVE, b"}")
    assert _until_closed(connection, lambda: connection.sendall(b"\r\n")) == b""


@pytest.mark.parametrize("trickles", [False, True])
@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_a_body_that_does_not_come_is_a_408(
    bounded: RunningServer,
    connect: Connect,
    framing: str,
    trickles: bool,  # noqa: FBT001 (a parameter of the test)
) -> None:
    connection = connect(bounded)
    connection.sendall(_head(_JSON, framing))
    bit = b"a" if "Length" in framing else b"1\r\na\r\n"
    answer = _until_closed(connection, (lambda: connection.sendall(bit)) if trickles else lambda: None)
    assert _problem(answer)["type"] == "urn:sentiment:problem:body-too-slow"
    (line,) = [line for line in bounded.log() if line.get("request_id") == _problem(answer)["request_id"]]
    assert (line["route"], line["status"]) == ("/v1/sentiment", 408)


def test_a_refused_client_that_keeps_sending_slowly_is_closed(bounded: RunningServer, connect: Connect) -> None:
    connection = connect(bounded)
    connection.sendall(_head(_JSON, "Content-Length: 100000000"))
    answer = _until_closed(connection, lambda: connection.sendall(b"a"))
    assert b"body-too-large" in answer
    assert answer.count(b"HTTP/1.1 ") == 1


def test_an_idle_connection_between_requests_is_kept(bounded: RunningServer, connect: Connect) -> None:
    connection = connect(bounded)
    for _ in range(2):
        _ask(connection, _head(_JSON, f"Content-Length: {len(_BODY)}") + _BODY, b"}}")
        time.sleep(2 * _TIMEOUT_S)
    _ask(connection, _ALIVE, b"}")


def test_a_client_that_does_not_read_its_answers_is_cut_off(bounded: RunningServer, connect: Connect) -> None:
    connection = connect(bounded, receive_buffer=4_096)
    connection.sendall(_head(method="GET", path=_LARGE) * 20)
    deadline = time.monotonic() + _PATIENCE_S
    while "the answer was not read" not in bounded.output():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert _answers(bounded)


def test_a_client_that_reads_slowly_but_reads_gets_all_of_its_answers(bounded: RunningServer, connect: Connect) -> None:
    size = len(httpx.get(f"{bounded.address}{_LARGE}").content)
    connection = connect(bounded, receive_buffer=65_536)
    count = 8
    connection.sendall(_head(method="GET", path=_LARGE) * count)
    received, started = 0, time.monotonic()
    while received < count * size:
        part = connection.recv(1 << 20)
        assert part
        received += len(part)
        if time.monotonic() - started < 3 * _TIMEOUT_S:
            time.sleep(0.02)
    assert time.monotonic() - started > 2 * _TIMEOUT_S


_TOO_LARGE = {
    "one long header": _head("X-Long: " + "a" * 40_000, method="GET", path="/health/live"),
    "a long header without an end": b"GET /health/live HTTP/1.1\r\nX-Long: " + b"a" * 40_000,
    "a long address": b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n",
    "many headers": _head(*(f"X-{number}: a" for number in range(200)), method="GET", path="/health/live"),
    "a head of many headers and a body": _head(_JSON, *["X-Long: " + "a" * 400] * 90, "Content-Length: 13") + _BODY,
}


@pytest.mark.parametrize("head", _TOO_LARGE.values(), ids=_TOO_LARGE)
def test_too_large_a_head_is_a_431(bounded: RunningServer, connect: Connect, head: bytes) -> None:
    connection = connect(bounded)
    connection.sendall(head)
    assert _problem(_until_closed(connection))["type"] == "urn:sentiment:problem:head-too-large"


def test_trailers_without_an_end_are_not_read(bounded: RunningServer, connect: Connect) -> None:
    connection = connect(bounded)
    connection.sendall(_head(_JSON, "Transfer-Encoding: chunked") + b"d\r\n" + _BODY[:13] + b"\r\n0\r\nX-Trailer: ")
    started = time.monotonic()
    _until_closed(connection, lambda: connection.sendall(b"a" * 10_000))
    assert time.monotonic() - started < _PATIENCE_S / 2
    assert _answers(bounded)


def test_what_is_allowed_of_a_head_is_read(bounded: RunningServer) -> None:
    headers = {f"X-{number}": "a" * 300 for number in range(90)}
    assert httpx.get(f"{bounded.address}/health/live", headers=headers).status_code == 200


def test_a_large_body_in_small_chunks_is_no_head(bounded: RunningServer) -> None:
    body = json.dumps({"texts": ["好"] * 1_000 + ["好" * 4_000]}).encode()
    chunks = (body[start : start + 1] for start in range(len(body)))
    response = httpx.post(
        f"{bounded.address}/v1/sentiment/batch",
        content=chunks,
        headers={"Content-Type": "application/json"},
        timeout=_PATIENCE_S,
    )
    assert response.status_code == 200


@pytest.mark.parametrize(
    "sent", [b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/9\r\n\r\n"]
)
def test_what_is_no_http_is_told_so(bounded: RunningServer, connect: Connect, sent: bytes) -> None:
    connection = connect(bounded)
    connection.sendall(sent)
    assert _problem(_until_closed(connection))["type"] == "urn:sentiment:problem:not-http"


def test_a_client_that_leaves_within_its_body_leaves_no_traceback(bounded: RunningServer, connect: Connect) -> None:
    connection = connect(bounded)
    connection.sendall(_head(_JSON, "Content-Length: 100", "X-Request-ID: gone") + b"{")
    connection.close()
    deadline = time.monotonic() + _PATIENCE_S
    while not (lines := [line for line in bounded.log() if line.get("request_id") == "gone"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert [(line["message"], line["status"]) for line in lines] == [("request", 499)]


def test_a_request_to_upgrade_is_answered_over_http(bounded: RunningServer) -> None:
    response = httpx.get(f"{bounded.address}/health/live", headers={"Connection": "Upgrade", "Upgrade": "websocket"})
    assert response.json() == {"status": "alive"}


_OFFER = (
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAA",
)
_WITH_LENGTH = _head(*_OFFER, _JSON, f"Content-Length: {len(_BODY)}") + _BODY
_IN_CHUNKS = _head(*_OFFER, _JSON, "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(_BODY), _BODY)


@pytest.mark.parametrize("offer", [_WITH_LENGTH, _IN_CHUNKS], ids=["length", "chunks"])
@pytest.mark.parametrize("piece", [60, 10_000])
def test_an_offer_of_http_2_with_a_body_is_answered_over_http_1(
    bounded: RunningServer, connect: Connect, offer: bytes, piece: int
) -> None:
    """As Java's client makes it; the connection stays, and takes the next one."""
    connection = connect(bounded)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sent = offer * 2 + _ALIVE
    for start in range(0, len(sent), piece):
        connection.sendall(sent[start : start + piece])
    answers = b""
    while not answers.endswith(b'{"status":"alive"}'):
        received = connection.recv(65_536)
        assert received, answers
        answers += received
    assert answers.count(b"HTTP/1.1 200 ") == 3
    assert answers.count(b'"confidence":') == 2


@pytest.mark.parametrize("lines", [(), _OFFER], ids=["plain", "with an offer"])
def test_a_request_for_a_tunnel_is_refused(bounded: RunningServer, connect: Connect, lines: tuple[str, ...]) -> None:
    connection = connect(bounded)
    connection.sendall(_head(*lines, path="service:80", method="CONNECT"))
    assert connection.recv(65_536).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"texts": [' + b"[" * 100_000 + b"]" * 100_000 + b"]}",
        b'{"text": ' + b"9" * 1_000_000 + b"}",
        b'{"text": 0.' + b"9" * 1_000_000 + b"}",
        b'{"text": 1e' + b"9" * 1_000_000 + b"}",
    ],
    ids=["lists", "objects", "a text", "texts", "an integer", "a fraction", "an exponent"],
)
def test_json_without_measure_is_refused_and_does_not_hold_up_the_server(bounded: RunningServer, body: bytes) -> None:
    response = httpx.post(
        f"{bounded.address}/v1/sentiment", content=body, headers={"Content-Type": "application/json"}, timeout=5
    )
    assert response.status_code in {400, 422}
    assert response.json()["type"].rpartition(":")[2] in {"not-json", "invalid-request"}


def test_a_connection_too_many_is_refused_and_the_others_stay(
    tmp_path: Path, connect: Connect, tiny_bundle: Path
) -> None:
    settings = {"MODEL__PATH": str(tiny_bundle), "MODEL__PROVIDER": "cpu", "SERVER__MAX_CONNECTIONS": "3"}
    with running_server(tmp_path, **settings) as server:
        kept = [connect(server) for _ in range(3)]
        for connection in kept:
            _ask(connection, _ALIVE, b"}")
        answer = _until_closed(connect(server))
        assert _problem(answer)["type"] == "urn:sentiment:problem:too-many-connections"
        assert b"retry-after: 1" in answer
        kept.pop().close()
        deadline = time.monotonic() + _PATIENCE_S
        with httpx.Client(base_url=server.address) as client:
            while (metrics := client.get("/metrics")).status_code == 503:  # until the server has seen it close
                assert time.monotonic() < deadline
        assert 'sentiment_http_requests_total{method="other",route="unmatched",status="503"}' in metrics.text
        for connection in kept:
            _ask(connection, _ALIVE, b"}")


def test_a_client_that_sends_on_while_it_waits_still_gets_its_answer(
    tmp_path: Path, connect: Connect, tiny_bundle: Path
) -> None:
    settings = {"SERVER__RECEIVE_TIMEOUT_S": "0.1", "SERVER__KEEP_ALIVE_S": "1", "BATCHING__WAIT_S": "1"}
    with running_server(tmp_path, MODEL__PATH=str(tiny_bundle), MODEL__PROVIDER="cpu", **settings) as server:
        connection = connect(server)
        connection.sendall(_head(_JSON, f"Content-Length: {len(_BODY)}") + _BODY)
        assert _until_closed(connection, lambda: connection.sendall(b"\r\n")).endswith(b"}}")


_STREAM = _head("Content-Type: application/x-ndjson", "Transfer-Encoding: chunked", path="/v1/sentiment/stream")


def _chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


def test_a_stream_may_last_longer_than_any_other_body_if_it_moves(bounded: RunningServer, connect: Connect) -> None:
    connection = connect(bounded)
    connection.sendall(_STREAM)
    began = time.monotonic()
    received = b""
    while time.monotonic() - began < 3 * _TIMEOUT_S:
        connection.sendall(_chunk(_BODY + b"\n"))
        received += connection.recv(1 << 16)
        time.sleep(_TIMEOUT_S / 5)
    connection.sendall(_chunk(b""))
    while not received.endswith(b"0\r\n\r\n"):
        part = connection.recv(1 << 16)
        assert part, received
        received += part
    assert received.count(b'"sentiment"') > 5
    assert b'"error"' not in received


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Iterator[RunningServer]:
    """A server that lets a stream stand still for a second, and waits longer for all else."""
    settings = {"MODEL__PATH": str(tiny_bundle), "MODEL__PROVIDER": "cpu", "STREAM__IDLE_S": "1"}
    with running_server(tmp_path_factory.mktemp("impatient"), **settings) as server:
        yield server


def test_a_stream_that_stands_still_is_ended(impatient: RunningServer, connect: Connect) -> None:
    connection = connect(impatient)
    connection.sendall(_STREAM + _chunk(_BODY + b"\n"))
    received = b""
    while not received.endswith(b"0\r\n\r\n"):
        part = connection.recv(1 << 16)
        assert part, received
        received += part
    assert b"urn:sentiment:problem:deadline-exceeded" in received


def test_a_stream_whose_answers_are_not_read_is_closed(impatient: RunningServer, connect: Connect) -> None:
    connection = connect(impatient, receive_buffer=4_096)
    line = json.dumps({"text": "好", "more": "x" * 60_000}).encode() + b"\n"
    connection.sendall(_STREAM)

    def send_without_end() -> None:
        while True:
            connection.sendall(_chunk(line))

    with pytest.raises(OSError, match=r"reset|Broken pipe"):
        send_without_end()
    assert _answers(impatient)
