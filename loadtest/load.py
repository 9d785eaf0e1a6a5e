"""Load on an HTTP server: closed loops by wrk, and open loops, whose requests wait for no answers to others.

wrk costs the server little of the processors that both share.
"""

import asyncio
import json
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.domain.errors import CannotProceed

_SCRIPT: Final = Path(__file__).with_name("load.lua")
_FLOOD_CYCLE_S: Final = 0.65  # from one request of a connection to its next


class NoLoadGenerator(CannotProceed):
    """wrk is not installed."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is posted, to where; `body` None is a GET."""

    path: str
    body: object = None


@dataclass(frozen=True, slots=True)
class Load:
    """What one load came to."""

    per_s: float  # requests answered with 200
    offered_per_s: float  # and with anything else
    p50_ms: float
    p99_ms: float
    mean_ms: float
    errors: int


def find_wrk() -> str:
    """Return where wrk is.

    Raises:
        NoLoadGenerator: it is not installed.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise NoLoadGenerator("wrk makes the load and is not installed: apt install wrk, or brew install wrk")
    return wrk


def closed_loop(port: int, requests: Sequence[Request], *, connections: int, seconds: int) -> Load:
    """Send `requests`, all to one path and again from the start, over connections that each wait for their answer.

    "#NUMBER#" in a body becomes a number, another one each time.

    Raises:
        NoLoadGenerator: wrk is not installed.
    """
    return _wrk(port, requests, connections, seconds)


def flood(port: int, requests: Sequence[Request], *, per_s: float, seconds: int) -> Load:
    """Send as `closed_loop` does, about `per_s` of them: each connection waits half a second before each request.

    That is how many come if most are refused at once, and the others wait for a while.
    """
    return _wrk(port, requests, round(_FLOOD_CYCLE_S * per_s), seconds, pause_ms=500)


def _wrk(port: int, requests: Sequence[Request], connections: int, seconds: int, *, pause_ms: int = 0) -> Load:
    wrk = find_wrk()
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        if requests[0].body is not None:
            file.write("\n".join(_json(request.body) for request in requests))
        file.flush()
        done = subprocess.run(
            [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", "-s", str(_SCRIPT),
             f"http://127.0.0.1:{port}{requests[0].path}", "--", file.name,
             *([str(pause_ms)] if pause_ms else [])],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    return Load(
        per_s=(found["requests"] - found["refused"]) / found["seconds"],
        offered_per_s=found["requests"] / found["seconds"],
        p50_ms=found["p50_ms"],
        p99_ms=found["p99_ms"],
        mean_ms=found["mean_ms"],
        errors=found["errors"],
    )


def open_loop(port: int, requests: Sequence[Request], *, per_s: float, seconds: float, seed: int = 0) -> Load:
    """Send `requests` at random times (Poisson), `per_s` of them on average, whatever becomes of the earlier ones."""
    return asyncio.run(_open_loop(port, requests, per_s, seconds, seed))


async def _open_loop(port: int, requests: Sequence[Request], per_s: float, seconds: float, seed: int) -> Load:
    chance = random.Random(seed)  # noqa: S311 (no secret depends on it)
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    durations: list[float] = []
    errors = 0

    async def send(content: bytes) -> None:
        nonlocal errors
        started = time.perf_counter()
        reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(content)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await _read_body(reader, head)
        except (OSError, asyncio.IncompleteReadError):
            errors += 1
            writer.close()
            return
        durations.append(time.perf_counter() - started)
        errors += head.split(b" ", 2)[1] != b"200"
        idle.append((reader, writer))

    contents = [_http(request) for request in requests]
    started = time.perf_counter()
    due = 0.0
    async with asyncio.TaskGroup() as tasks:
        sent = 0
        while due < seconds:
            await asyncio.sleep(max(0.0, started + due - time.perf_counter()))
            tasks.create_task(send(contents[sent % len(contents)]))
            sent += 1
            due += chance.expovariate(per_s)
    spent_s = time.perf_counter() - started
    for _, writer in idle:
        writer.close()
    durations.sort()
    return Load(
        per_s=(len(durations) - errors) / spent_s,
        offered_per_s=sent / spent_s,
        p50_ms=durations[len(durations) // 2] * 1e3,
        p99_ms=durations[int(len(durations) * 0.99)] * 1e3,
        mean_ms=sum(durations) / len(durations) * 1e3,
        errors=errors,
    )


async def _read_body(reader: asyncio.StreamReader, head: bytes) -> None:
    """Read the body that follows `head`, which is in lower case: of a length, or in chunks."""
    _, announced, length = head.partition(b"content-length:")
    if announced:
        await reader.readexactly(int(length.split(b"\r\n", 1)[0]))
        return
    while (size := int(await reader.readline() or b"0", 16)) > 0:
        await reader.readexactly(size + 2)
    await reader.readline()


def _json(body: object) -> str:
    return json.dumps(body, ensure_ascii=False)


def _http(request: Request) -> bytes:
    content = _json(request.body).encode()
    head = f"POST {request.path} HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
