"""One request to an application in this process, both halves of it in the test's hands."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp, Message

_WAIT_S = 30


class Wire:
    """Sends what the test says when it says so; takes what the application answers while it is `reading`."""

    def __init__(self) -> None:
        self._sent: asyncio.Queue[Message] = asyncio.Queue()
        self._heard = asyncio.Event()
        self.reading = asyncio.Event()
        self.reading.set()
        self.received = 0  # messages that the application took
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.content = b""
        self.ended = False

    def send(self, *lines: object, end: bool = False) -> None:
        self.send_bytes("".join(f"{json.dumps(line)}\n" for line in lines).encode(), end=end)

    def send_bytes(self, content: bytes, *, end: bool = False) -> None:
        self._sent.put_nowait({"type": "http.request", "body": content, "more_body": not end})

    def leave(self) -> None:
        self._sent.put_nowait({"type": "http.disconnect"})

    def lines(self) -> list[dict[str, Any]]:
        """Return what was answered so far, by whole lines."""
        return [json.loads(line) for line in self.content.splitlines(keepends=True) if line.endswith(b"\n")]

    async def until_lines(self, count: int) -> list[dict[str, Any]]:
        """Return the lines of the answer when there are `count` of them."""
        async with asyncio.timeout(_WAIT_S):
            while len(self.lines()) < count:
                self._heard.clear()
                await self._heard.wait()
        return self.lines()

    async def receive(self) -> Message:
        message = await self._sent.get()
        self.received += 1
        return message

    async def hear(self, message: Message) -> None:
        await self.reading.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
        else:
            self.content += message["body"]
            self.ended = not message.get("more_body", False)
        self._heard.set()


@asynccontextmanager
async def wire_to(
    app: ASGIApp, path: str = "/v1/sentiment/stream", headers: Sequence[tuple[str, str]] = ()
) -> AsyncIterator[tuple[Wire, asyncio.Task[None]]]:
    """Yield the wire of one POST, and the task in which the application answers it."""
    wire = Wire()
    path, _, query = path.partition("?")
    sent = {"Content-Type": "application/x-ndjson", **dict(headers)}
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in sent.items()],
        "client": ("127.0.0.1", 1), "server": ("service", 80),
    }  # fmt: skip

    async def call() -> None:
        await app(scope, wire.receive, wire.hear)

    task = asyncio.create_task(call())
    try:
        yield wire, task
    finally:
        task.cancel()
        await asyncio.wait([task])
