"""Streams to the real server, by curl and by hand."""

import asyncio
import gzip
import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import aiohttp
import httpx
import psutil
import pytest

from tests.live.served import RunningServer, running_server

pytestmark = pytest.mark.anyio

_PATH = "/v1/sentiment/stream"
_TYPE = "Content-Type: application/x-ndjson"
_MANY = 50_000


@pytest.fixture(scope="module")
def tiny_server(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Iterator[RunningServer]:
    """Serves the tiny bundle and remembers no answer; shared, so a test leaves it running."""
    settings = {"MODEL__PATH": str(tiny_bundle), "MODEL__PROVIDER": "cpu", "CACHE__MAX_BYTES": "0"}
    with running_server(tmp_path_factory.mktemp("server"), **settings) as server:
        yield server


def _line(number: int, **more: str) -> bytes:
    text = "好差吗"[number % 3] * (1 + number % 9) + f"，第{number}次"
    return json.dumps({"id": number, "text": text, "shop": "东门", **more}, ensure_ascii=False).encode() + b"\n"


def _write(file: Path, count: int) -> Path:
    with file.open("wb") as lines:
        lines.writelines(map(_line, range(count)))
    return file


def _curl(server: RunningServer, *arguments: str, query: str = "") -> list[dict[str, Any]]:
    command = ["curl", "-sSN", "-X", "POST", "-H", _TYPE, *arguments, f"{server.address}{_PATH}{query}"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=240)  # noqa: S603 (our own command)
    return [json.loads(line) for line in done.stdout.splitlines()]


def _assert_answered(answers: Sequence[dict[str, Any]], count: int) -> None:
    assert len(answers) == count
    assert all(
        answer["id"] == number
        and answer["line"] == number + 1
        and answer["shop"] == "东门"
        and answer["sentiment"]["label"] == ("positive", "negative", "neutral")[number % 3]
        for number, answer in enumerate(answers)
    )


def _resident_mib(server: RunningServer) -> float:
    resident: int = psutil.Process(server.process.pid).memory_info().rss
    return resident / 2**20


async def _until_over(server: RunningServer, request_id: str) -> None:
    """Return when the server has done with a request."""
    async with asyncio.timeout(60):
        while not any(  # noqa: ASYNC110 (another process)
            line["message"] == "request" and line["request_id"] == request_id for line in server.log()
        ):
            await asyncio.sleep(0.1)


class _Client:
    """Speaks HTTP/1.1 in chunks over a socket with small buffers."""

    def __init__(self, server: RunningServer, request_id: str = "by-hand") -> None:
        url = httpx.URL(server.address)
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        self.socket.settimeout(120)
        self.socket.connect((url.host, url.port))
        head = ("Host: service", _TYPE, f"X-Request-ID: {request_id}", "Transfer-Encoding: chunked")
        self.socket.sendall("\r\n".join([f"POST {_PATH} HTTP/1.1", *head, "\r\n"]).encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *lines: bytes) -> None:
        self.socket.sendall(b"".join(b"%x\r\n%b\r\n" % (len(line), line) for line in lines))

    def end(self) -> None:
        self.socket.sendall(b"0\r\n\r\n")

    def answers(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the answer until it ends as it should."""
        with self.socket.makefile("rb") as file:
            while file.readline() != b"\r\n":
                pass
            rest = b""
            while size := int(file.readline(), 16):
                *lines, rest = (rest + file.read(size + 2)[:-2]).split(b"\n")
                yield from map(json.loads, lines)
            assert rest == b""


def test_fifty_thousand_lines_are_answered_in_bounded_memory(tmp_path: Path, tiny_server: RunningServer) -> None:
    _curl(tiny_server, "-T", str(_write(tmp_path / "few.jsonl", 5_000)))
    before = _resident_mib(tiny_server)
    answers = _curl(tiny_server, "-T", str(_write(tmp_path / "many.jsonl", _MANY)))
    _assert_answered(answers, _MANY)
    assert _resident_mib(tiny_server) - before < 30  # they and their answers are 20 times the window


def test_both_directions_may_be_packed(tmp_path: Path, tiny_server: RunningServer) -> None:
    file = _write(tmp_path / "lines.jsonl", 3_000)
    packed = tmp_path / "lines.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    answers = _curl(tiny_server, "-T", str(packed), "-H", "Content-Encoding: gzip", "--compressed")
    _assert_answered(answers, 3_000)


def test_out_of_order_every_line_is_answered_too(tmp_path: Path, tiny_server: RunningServer) -> None:
    answers = _curl(tiny_server, "-T", str(_write(tmp_path / "lines.jsonl", 5_000)), query="?ordered=false")
    _assert_answered(sorted(answers, key=lambda answer: int(answer["id"])), 5_000)


async def test_a_client_that_does_not_read_is_not_read_and_then_loses_nothing(tiny_server: RunningServer) -> None:
    count, padding, sent = 15_000, "x" * 2_000, 0
    with _Client(tiny_server) as client:

        def send_all() -> None:
            nonlocal sent
            for number in range(count):
                client.send(_line(number, padding=padding))
                sent = number
            client.end()

        sending = asyncio.create_task(asyncio.to_thread(send_all))
        before = -1
        while before < sent:
            before = sent
            await asyncio.sleep(1)
        assert sent < count * 0.8  # what the window and the buffers on the way hold
        answers = await asyncio.to_thread(list, client.answers())
        await sending
    assert [answer["id"] for answer in answers] == list(range(count))


async def test_a_client_may_send_and_read_in_turns(tiny_server: RunningServer) -> None:
    with _Client(tiny_server) as client:
        answers = client.answers()
        for number in range(50):
            client.send(_line(number))
            assert next(answers)["id"] == number
        client.end()
        assert list(answers) == []


async def test_a_client_that_is_killed_leaves_nothing_behind(tmp_path: Path, tiny_server: RunningServer) -> None:
    file = _write(tmp_path / "lines.jsonl", 200_000)
    with (tmp_path / "answers").open("wb") as output:
        request = ["-X", "POST", "-H", _TYPE, "-H", "X-Request-ID: killed", "-T", str(file)]
        command = ["curl", "-sN", *request, f"{tiny_server.address}{_PATH}"]
        process = subprocess.Popen(command, stdout=output)  # noqa: ASYNC220, S603 (our own command)
        while (tmp_path / "answers").stat().st_size < 1_000_000:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.02)
        process.kill()
        process.wait()
    await _until_over(tiny_server, "killed")
    assert len(_curl(tiny_server, "-T", str(_write(tmp_path / "few.jsonl", 10)))) == 10


async def test_a_client_that_closes_its_half_in_the_middle_has_left(tiny_server: RunningServer) -> None:
    with _Client(tiny_server, "half-closed") as client:
        client.send(*map(_line, range(2_000)))
        client.socket.shutdown(socket.SHUT_WR)
        with pytest.raises((ValueError, ConnectionError)):  # the answer breaks off
            list(client.answers())
    await _until_over(tiny_server, "half-closed")
    assert "Traceback" not in tiny_server.output()


async def test_single_texts_are_answered_beside_a_stream(tmp_path: Path, tiny_server: RunningServer) -> None:
    file = _write(tmp_path / "lines.jsonl", 20_000)
    streaming = asyncio.create_task(asyncio.to_thread(_curl, tiny_server, "-T", str(file)))
    async with httpx.AsyncClient(base_url=tiny_server.address, timeout=60) as client:
        answered = 0
        while not streaming.done():
            response = await client.post("/v1/sentiment", json={"text": f"好，第{answered}次"})
            assert response.json()["label"] == "positive"
            answered += 1
    assert answered > 10
    _assert_answered(await streaming, 20_000)


async def test_a_bomb_is_refused_line_by_line_in_bounded_memory(tiny_server: RunningServer) -> None:
    bomb = gzip.compress(bytes(200_000_000) + b'\n{"text": "\xe5\xa5\xbd"}\n', 6)
    before = _resident_mib(tiny_server)
    headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
    async with httpx.AsyncClient(base_url=tiny_server.address, timeout=120) as client:
        lines = (await client.post(_PATH, content=bomb, headers=headers)).text.splitlines()
    too_long, fine = map(json.loads, lines)
    assert too_long["error"]["type"] == "urn:sentiment:problem:line-too-long"
    assert fine["sentiment"]["label"] == "positive"
    assert _resident_mib(tiny_server) - before < 30


async def test_a_stopping_server_ends_a_stream_with_a_line_and_the_rest_can_be_sent_again(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    settings = {"MODEL__PATH": str(tiny_bundle), "MODEL__PROVIDER": "cpu"}
    answered: list[int] = []
    stopped = False
    with running_server(tmp_path, **settings) as server:

        async def lines() -> Any:
            for number in range(_MANY * 10):
                if stopped:
                    return
                yield _line(number)

        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"{server.address}{_PATH}", data=lines(), headers={"Content-Type": "application/x-ndjson"}
            ) as response,
        ):
            async for content in response.content:
                answer = json.loads(content)
                if "line" not in answer:
                    assert answer["error"]["type"] == "urn:sentiment:problem:shutting-down"
                    stopped = True
                    continue
                answered.append(answer["id"])
                if len(answered) == 5_000:
                    server.process.send_signal(signal.SIGTERM)
        assert stopped
        began = time.monotonic()
        assert server.process.wait(60) == 0
        assert time.monotonic() - began < 20
        assert "Traceback" not in server.output()
    assert answered == list(range(len(answered)))
    assert len(answered) >= 5_000
