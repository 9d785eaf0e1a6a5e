"""What may stand between a cache and Redis, or in the place of Redis."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class HoldingProxy:
    """Passes everything on, but keeps answers back while it is told to."""

    target: int
    port: int = 0
    connections: int = 0  # ever opened
    open: int = 0
    _flowing: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def hold(self) -> None:
        self._flowing.clear()

    def release(self) -> None:
        self._flowing.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self.target)
        answering = asyncio.create_task(self._answer(target_reader, writer))
        with suppress(OSError):
            while data := await reader.read(65_536):
                target_writer.write(data)
        self.open -= 1
        answering.cancel()
        target_writer.close()
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._flowing.wait()
            writer.write(data)


@asynccontextmanager
async def holding_proxy(target: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[HoldingProxy]:
    proxy = HoldingProxy(target)
    proxy.release()
    async with _listening(proxy.serve, tls) as port:
        proxy.port = port
        yield proxy


@dataclass
class FakeServer:
    """Answers whatever it is sent with what a function makes of it; None hangs up."""

    reply: Callable[[bytes], bytes | None]
    port: int = 0
    connections: int = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(OSError):
            while data := await reader.read(65_536):
                answer = self.reply(data)
                if answer is None:
                    break
                writer.write(answer)
        writer.close()


@asynccontextmanager
async def fake_server(reply: Callable[[bytes], bytes | None]) -> AsyncIterator[FakeServer]:
    server = FakeServer(reply)
    async with _listening(server.serve) as port:
        server.port = port
        yield server


@asynccontextmanager
async def _listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(asyncio.CancelledError):
            await serve(reader, writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
