"""The service as its users start it: a process of its own, reached over the network."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
START_S = 240  # a processor that others use, too
STOP_S = 120


def run_command(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m app`` to its end; `settings` are variables without their prefix."""
    return subprocess.run(  # noqa: S603 (our own program)
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT,
        env=_environment(settings),
        capture_output=True,
        encoding="utf-8",
        timeout=START_S,
        check=False,
    )


def _environment(settings: dict[str, str]) -> dict[str, str]:
    return {**os.environ, **{f"SENTIMENT_{name}": value for name, value in settings.items()}}


@dataclass(frozen=True)
class RunningServer:
    process: subprocess.Popen[bytes]
    address: str
    _output: Path

    def output(self) -> str:
        """Return what the server wrote so far, to standard output and standard error."""
        return self._output.read_text(encoding="utf-8")

    def log(self) -> list[dict[str, Any]]:
        """Return the log so far; every line of it must be a JSON object."""
        lines = [json.loads(line) for line in self.output().splitlines()]
        assert all(isinstance(line, dict) for line in lines)
        return lines

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(STOP_S)

    async def until_refusing(self) -> None:
        """Return when the server takes no new connection."""
        url = httpx.URL(self.address)
        deadline = time.monotonic() + STOP_S
        while time.monotonic() < deadline:
            try:
                _, writer = await asyncio.open_connection(url.host, url.port)
            except ConnectionRefusedError:
                return
            except ConnectionResetError:  # it was waiting to be accepted
                continue
            writer.close()
            await asyncio.sleep(0.01)
        raise TimeoutError("the server goes on accepting")


@contextmanager
def running_server(directory: Path, **settings: str) -> Iterator[RunningServer]:
    """Start a server on a free port and wait until it is ready; `directory` takes its output."""
    output = directory / "output"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve", "--port", "0"],
            cwd=ROOT,
            env=_environment({"LOG__FORMAT": "json", **settings}),
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        yield RunningServer(process, _wait_for_address(process, output), output)
    finally:
        process.kill()
        process.wait()


def _wait_for_address(process: subprocess.Popen[bytes], output: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"running on (http://[\d.]+:\d+)", output.read_text(encoding="utf-8")):
            return found[1]
        time.sleep(0.05)
    raise TimeoutError(f"the server did not start: {output.read_text(encoding='utf-8')}")


def connect(server: RunningServer, *, connections: int = 200) -> httpx.AsyncClient:
    """Return a client of `server` that waits as long as it takes."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.AsyncClient(base_url=server.address, timeout=STOP_S, limits=limits)


class Request:
    """One request on a connection of its own, whose body is sent when the test wants it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        self._reader = reader
        self._writer = writer
        self._body = body

    @classmethod
    async def begin(cls, server: RunningServer, path: str, body: bytes) -> "Request":
        """Send the head, and return when the server is known to be reading the body."""
        url = httpx.URL(server.address)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
        )
        writer.write(head.encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        return cls(reader, writer, body)

    def send_body(self) -> None:
        self._writer.write(self._body)

    async def answer(self) -> tuple[int, bytes]:
        """Return status and body; an answer that is cut off is an error."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        body = await self._reader.readexactly(int(headers[b"content-length"]))
        self._writer.close()
        return int(head.split()[1]), body


def is_answer(status: int, body: bytes) -> bool:
    """Return whether this is an answer or a problem, and whole."""
    content = json.loads(body)
    if status == 503:
        return str(content["type"]).startswith("urn:sentiment:problem:")
    return status == 200 and "label" in (content.get("results") or [content])[-1]


def assert_same_answer(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    """Check that two answers to one text agree as far as bf16 in other company lets them."""
    assert answer["label"] == expected["label"]
    found, wanted = columns(answer), columns(expected)
    assert found.keys() == wanted.keys()
    assert max(abs(found[column] - wanted[column]) for column in wanted) <= 0.01


def columns(answer: dict[str, Any]) -> dict[str, float]:
    """Return every probability of `answer` by the column of the model that gave it."""
    emotions = answer["emotion"]["probabilities"] if answer["emotion"] else {}
    return {**answer["probabilities"], **{f"emotion:{name}": share for name, share in emotions.items()}}


def made_up_texts(count: int) -> Sequence[str]:
    """Return `count` different texts of lengths from a few characters to beyond the window."""
    things = ("饭菜", "物流", "客服", "房间", "屏幕", "这本书", "司机", "空调", "包装", "老师")
    verdicts = ("很好", "太差了", "一般般", "值得推荐", "让人失望", "还没有到", "比想象的好", "坏了两次")
    texts = []
    for number in range(count):
        sentences = 1 + number % 7 if number % 40 else 60
        parts = [
            f"{things[(number + part) % 10]}{verdicts[(number // 10 + part * 3) % 8]}" for part in range(sentences)
        ]
        texts.append("，".join(parts) + f"，第{number}次。")
    return texts
