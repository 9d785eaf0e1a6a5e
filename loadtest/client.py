"""A light HTTP client: keeps connections open and costs the server little of the processor that both share.

It reads what this service writes (HTTP/1.1 with Content-Length) and no more.
"""

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answered request."""

    status: int
    duration_s: float


def post(path: str, body: object) -> bytes:
    """Return a request that posts `body` as JSON."""
    content = json.dumps(body, ensure_ascii=False).encode()
    return f"POST {path} HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\n".encode() + (
        f"Content-Length: {len(content)}\r\n\r\n".encode() + content
    )


def get(path: str) -> bytes:
    """Return a request for `path`."""
    return f"GET {path} HTTP/1.1\r\nHost: b\r\n\r\n".encode()


async def send_all(port: int, requests: Sequence[bytes], *, connections: int) -> tuple[list[Outcome], float]:
    """Send `requests` over `connections`, each sending its next when it has its answer; return outcomes and seconds."""
    waiting = iter(requests)
    started = time.perf_counter()
    outcomes = await asyncio.gather(*(_converse(port, waiting) for _ in range(connections)))
    return [outcome for conversation in outcomes for outcome in conversation], time.perf_counter() - started


async def _converse(port: int, requests: Iterator[bytes]) -> list[Outcome]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    outcomes = []
    for request in requests:
        started = time.perf_counter()
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        _, _, length = head.partition(b"content-length:")
        await reader.readexactly(int(length.split(b"\r\n", 1)[0]))
        outcomes.append(Outcome(int(head.split(b" ", 2)[1]), time.perf_counter() - started))
    writer.close()
    return outcomes
