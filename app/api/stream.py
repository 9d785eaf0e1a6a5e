"""The answer to a stream: both halves of one connection."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from itertools import islice
from typing import Final

import structlog
from fastapi import HTTPException, Request
from fastapi.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.api.admission import admit
from app.api.answering import answer_lines
from app.api.dependencies import cache_use
from app.api.exchange import Chunk, Exchange
from app.api.lines import LineReader
from app.api.middleware import STREAM_IDLE_S
from app.api.ndjson import CHUNK, Packer, is_packed, unpacked
from app.api.problems import item_problem
from app.api.schemas import ItemError
from app.domain.errors import BatchOverLimit, Overloaded, ServiceError
from app.services import Services, StreamLimits

_RETRY_AFTER_S: Final = 5.0
_HEAR_OUT_S: Final = 10.0

_log = structlog.get_logger(__name__)


class _ClientLeft(Exception):
    """Nobody waits for the answer."""


class LineStream(Response):
    """Answers each line of a request's body with a line, as soon as it is known."""

    def __init__(self, request: Request, services: Services, *, limits: StreamLimits, ordered: bool) -> None:
        """Read the head of the request.

        Raises:
            NotNdjson: the body does not call itself lines of JSON, plain or gzipped.
        """
        self._services = services
        self._limits = limits
        self._ordered = ordered
        self._draining = request.app.state.draining
        self._request = request
        self._cache_use = cache_use(request)
        self._door = asyncio.Lock()  # lines are charged in their order
        self._packed = is_packed(request)
        self._heard_all = False
        self._begun = False
        self.status_code = 200
        self.background = None
        # nginx would collect answers before it hands them on.
        self._packer = Packer.of(request)
        self.init_headers({**self._packer.headers, "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. What keeps the first lines from being taken is raised; later trouble is told in a last line."""
        scope[STREAM_IDLE_S] = self._limits.idle_s
        self._receive, self._send = receive, send
        slots = self._services.stream_slots
        if slots.locked():
            raise Overloaded(_RETRY_AFTER_S)
        async with slots:
            try:
                await self._talk()
            except _ClientLeft:
                if not self._begun:
                    raise HTTPException(499) from None
            except TimeoutError:  # without its end the answer is cut off
                _log.warning("stream cut off", reason=f"nobody read its answers for {self._limits.idle_s:g} s")

    async def _talk(self) -> None:
        exchange = Exchange(
            self._chunks(),
            self._answer,
            self._departure,
            limits=self._limits,
            ordered=self._ordered,
            draining=self._draining,
            drain_s=self._services.batch_timeout_s,
        )
        try:
            async with aclosing(exchange.answers()) as answers:
                async for answer in answers:
                    await self._say(answer)
        except ServiceError as error:
            if not self._begun:
                raise
            await self._say(ItemError(error=item_problem(error)).model_dump_json().encode() + b"\n")
            if self._draining:
                await self._hear_out()
        await self._say(b"", more=False)

    async def _hear(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise _ClientLeft
        self._heard_all = not message.get("more_body", False)
        return message

    async def _say(self, content: bytes, *, more: bool = True) -> None:
        content = self._packer.pack(content, more=more)
        async with asyncio.timeout(self._limits.idle_s):
            if not self._begun:
                self._begun = True
                await self._send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send({"type": "http.response.body", "body": content, "more_body": more})

    async def _hear_out(self) -> None:
        """Let the client end: if the connection is closed while it sends, it loses the answers that it has not read."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_HEAR_OUT_S):
                while not self._heard_all:
                    await self._hear()

    async def _departure(self) -> Chunk:
        while True:
            await self._hear()

    async def _chunks(self) -> AsyncGenerator[Chunk, None]:
        """Yield the lines of the body as they come, a few at a time.

        Raises:
            BrokenGzip: the body is not what it says it is.
        """
        reader = LineReader(self._limits.max_line_bytes)
        async with aclosing(unpacked(self._bodies(), packed=self._packed)) as pieces:
            async for piece in pieces:
                lines = reader.feed(piece)
                while chunk := list(islice(lines, CHUNK)):
                    yield chunk
        if chunk := list(reader.end()):
            yield chunk

    async def _bodies(self) -> AsyncGenerator[bytes, None]:
        while not self._heard_all:
            yield (await self._hear()).get("body", b"")

    async def _answer(self, chunk: Chunk, patient: bool) -> bytes:  # noqa: FBT001 (called by position alone)
        """Return the lines that answer `chunk`; if not `patient`, they are refused where there is no room for them.

        Raises:
            Overloaded: they are.
            LimitExceeded: the caller's rate limit does not admit them soon.
        """
        try:
            await self._charge(len(chunk), patient=patient)
        except BatchOverLimit:
            half = len(chunk) // 2
            return await self._answer(chunk[:half], patient) + await self._answer(chunk[half:], patient=True)
        answers, _ = await answer_lines(self._services, chunk, self._cache_use, patient=patient)
        return answers

    async def _charge(self, lines: int, *, patient: bool) -> None:
        gate = self._request.scope["state"].get("gate")
        if gate is not None:
            async with self._door:
                await admit(self._request, gate, lines, patience_s=self._limits.idle_s / 2 if patient else 0.0)
