"""`score --url`: the real server behind a proxy that loses connections."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live.served import ROOT, RunningServer, running_server

pytestmark = pytest.mark.anyio

_ROWS = 6_000


@pytest.fixture(scope="module")
def tiny_server(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Iterator[RunningServer]:
    settings = {"MODEL__PATH": str(tiny_bundle), "MODEL__PROVIDER": "cpu"}
    with running_server(tmp_path_factory.mktemp("server"), **settings) as server:
        yield server


class _Proxy:
    """Passes bytes on to `target`, except where a test has it otherwise."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.cuts = 0  # connections still to be cut, each after some answers
        self.refusals: list[bytes] = []  # whole answers to streams, instead of the server's
        self.streams: list[bytes] = []  # the heads of the requests
        self.address = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"POST"):
                self.streams.append(head)
                if self.refusals:
                    writer.write(self.refusals.pop(0))
                    await writer.drain()
                    return
            url = httpx.URL(self.target)
            there, back = await asyncio.open_connection(url.host, url.port)
            back.write(re.sub(rb"(?i)\r\nhost:", b"\r\nConnection: close\r\nHost:", head, count=1))
            cut_after = 20_000 if head.startswith(b"POST") and self.cuts else None
            self.cuts -= cut_after is not None
            _, pending = await asyncio.wait(
                [asyncio.create_task(_pass(reader, back)), asyncio.create_task(_pass(there, writer, cut_after))],
                return_when=asyncio.ALL_COMPLETED if cut_after is None else asyncio.FIRST_COMPLETED,
            )
            for task in pending:
                task.cancel()
            back.transport.abort()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None = None) -> None:
    passed = 0
    with suppress(OSError):
        while content := await reader.read(16_384):
            writer.write(content)
            await writer.drain()
            passed += len(content)
            if most is not None and passed > most:
                writer.transport.abort()
                return
        if most is None:
            writer.write_eof()


@asynccontextmanager
async def _proxy(target: str) -> AsyncIterator[_Proxy]:
    proxy = _Proxy(target)
    async with await asyncio.start_server(proxy.serve, "127.0.0.1", 0) as server:
        proxy.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield proxy


def _write(file: Path, count: int = _ROWS) -> Path:
    rows = ({"id": number, "text": f"{'好差吗'[number % 3]}，第{number}次"} for number in range(count))
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


async def _score(*arguments: str | Path, **environment: str) -> tuple[int | None, str]:
    """Return exit status and standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app", "score", *map(str, arguments), cwd=ROOT, env={**os.environ, **environment},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(200):
        _, said = await process.communicate()
    return process.returncode, said.decode()


def _answers(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _assert_complete(file: Path, count: int = _ROWS) -> None:
    rows = _answers(file)
    assert [row["id"] for row in rows] == list(range(count))
    labels = [row["sentiment"]["label"] for row in rows]
    assert labels == [("positive", "negative", "neutral")[number % 3] for number in range(count)]


async def test_a_running_service_gives_the_answers_that_the_model_here_gives(
    tmp_path: Path, tiny_server: RunningServer, tiny_bundle: Path
) -> None:
    file = _write(tmp_path / "in.jsonl", 1_000)
    there = await _score(file, "--output", tmp_path / "there.csv", "--url", tiny_server.address)
    model = {"SENTIMENT_MODEL__PATH": str(tiny_bundle), "SENTIMENT_MODEL__PROVIDER": "cpu"}
    here = await _score(file, "--output", tmp_path / "here.csv", **model)
    assert (there[0], here[0]) == (0, 0), (there, here)
    assert (tmp_path / "there.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()


async def test_connections_that_break_lose_and_double_nothing(tmp_path: Path, tiny_server: RunningServer) -> None:
    async with _proxy(tiny_server.address) as proxy:
        proxy.cuts = 3
        file = _write(tmp_path / "in.jsonl")
        status, said = await _score(file, "--output", tmp_path / "out.jsonl", "--url", proxy.address)
    assert status == 0, said
    assert len(proxy.streams) == 4
    _assert_complete(tmp_path / "out.jsonl")


async def test_a_service_that_refuses_for_now_is_asked_again(tmp_path: Path, tiny_server: RunningServer) -> None:
    async with _proxy(tiny_server.address) as proxy:
        proxy.refusals = [
            b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\n{}",
            b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n",
        ]
        status, said = await _score(
            _write(tmp_path / "in.jsonl", 500), "--output", tmp_path / "out.jsonl", "--url", proxy.address
        )
    assert status == 0, said
    _assert_complete(tmp_path / "out.jsonl", 500)


async def test_a_service_that_refuses_for_good_is_believed(tmp_path: Path, tiny_server: RunningServer) -> None:
    problem = b'{"detail": "This API key is not known."}'
    async with _proxy(tiny_server.address) as proxy:
        proxy.refusals = [b"HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n\r\n%b" % (len(problem), problem)]
        arguments = ("--output", tmp_path / "out.jsonl", "--url", proxy.address, "--key", "THE_KEY")
        status, said = await _score(_write(tmp_path / "in.jsonl", 5), *arguments, THE_KEY="secret-1")
    assert status == 1
    assert "answered 401: This API key is not known." in said
    assert said.count("\n") == 1
    assert "secret" not in said
    assert re.search(rb"(?i)\r\nauthorization: Bearer secret-1\r\n", proxy.streams[0])


async def test_a_service_that_stops_is_followed_by_another(
    tmp_path: Path, tiny_server: RunningServer, tiny_bundle: Path
) -> None:
    settings = {"MODEL__PATH": str(tiny_bundle), "MODEL__PROVIDER": "cpu"}
    count = 30_000
    file = _write(tmp_path / "in.jsonl", count)
    with running_server(tmp_path, **settings) as stopping:
        async with _proxy(stopping.address) as proxy:
            scoring = asyncio.create_task(
                _score(file, "--output", tmp_path / "out.jsonl", "--url", proxy.address, "--resume")
            )
            while not (tmp_path / "out.jsonl.part.json").exists():  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.01)
            proxy.target = tiny_server.address
            stopping.process.send_signal(signal.SIGTERM)
            status, said = await scoring
        assert await asyncio.to_thread(stopping.process.wait, 60) == 0
    assert status == 0, said
    assert len(proxy.streams) > 1
    _assert_complete(tmp_path / "out.jsonl", count)


async def test_what_is_no_such_service_is_told(tmp_path: Path) -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/html\r\n\r\nhi")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(other, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        status, said = await _score(_write(tmp_path / "in.jsonl", 5), "--url", url)
    assert status == 1
    assert "does not answer as this service does" in said
    assert said.count("\n") == 1
