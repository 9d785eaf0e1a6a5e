"""Bodies become batch jobs: those that are sent, and what lies where they say.

A stored chunk is a line for each line, its number before it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from starlette.requests import ClientDisconnect

from app.api.admission import caller_of, most_at_once
from app.api.dependencies import cache_use
from app.api.lean import parse
from app.api.lines import LineCutter
from app.api.middleware import KEY, STREAM_IDLE_S
from app.api.ndjson import NDJSON, is_packed, media_type_of, unpacked
from app.api.schemas import BatchSource
from app.domain.errors import JobsUnavailable, JobTooLarge, NotNdjson, ShuttingDown
from app.jobs.job import Job
from app.services import Jobs, Services

CHUNK_LINES: Final = 256
_CHUNK_BYTES: Final = 262_144
_BY_REFERENCE: Final = "application/json"
_MOST_REFERENCE_BYTES: Final = 16_384
_NO_REFERENCE: Final = frozenset({"json_invalid", "missing"})  # kinds of errors that lines of JSON make there


async def upload(request: Request, services: Services, jobs: Jobs, key: str | None) -> Job:
    """Make a job of the body of `request`, or of what it refers to. If not all of that comes, there is no job.

    If one was made under the same `key`, it is that job, and the body is not looked at.

    Raises:
        ServiceError: there is no room, or the body is not what it should be.
    """
    request.scope[STREAM_IDLE_S] = services.stream.idle_s
    caller = caller_of(request.scope)
    if key is not None and (made := await jobs.store.made_by(caller, key)) is not None:
        return made
    # A chunk is charged as a whole, so no rate limit may be below it.
    most = most_at_once(request.scope["state"].get("gate"), request.scope.get(KEY)) or CHUNK_LINES
    cutter = LineCutter(services.stream.max_line_bytes)
    async with _opened(request, services, jobs) as (bodies, packed):
        chunks = _chunks(bodies, cutter, jobs, packed=packed, most=min(most, CHUNK_LINES))
        job = await _keep(jobs, chunks, caller, cache_use(request).value, key)
    jobs.wake.set()
    return job


@asynccontextmanager
async def _opened(
    request: Request, services: Services, jobs: Jobs
) -> AsyncIterator[tuple[AsyncGenerator[bytes, None], bool]]:
    """Yield the lines of a job in pieces, and whether they are gzipped."""
    idle_s = services.stream.idle_s
    if media_type_of(request) == _BY_REFERENCE:
        async with jobs.sources.open(await _source(request, idle_s), idle_s=idle_s) as (pieces, packed):
            yield _until_draining(request, pieces), packed
        return
    packed = is_packed(request)
    announced = request.headers.get("content-length", "")
    if not packed and announced.isdecimal() and int(announced) > jobs.limits.max_bytes:
        raise _too_many_bytes(jobs)
    yield _bodies(request, idle_s), packed


async def _source(request: Request, idle_s: float) -> str:
    content = bytearray()
    async with aclosing(_bodies(request, idle_s)) as bodies:
        async for body in bodies:
            content += body
            if len(content) > _MOST_REFERENCE_BYTES:
                raise HTTPException(413, detail=f"A reference has no more than {_MOST_REFERENCE_BYTES} bytes.")
    try:
        return parse(BatchSource, bytes(content)).source
    except RequestValidationError as error:
        if any(problem["type"] in _NO_REFERENCE for problem in error.errors()):
            raise NotNdjson(
                f'Send lines of JSON as Content-Type: {NDJSON}; as {_BY_REFERENCE} send {{"source": "https://…"}}.'
            ) from None
        raise


async def _until_draining(request: Request, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(pieces):
        async for piece in pieces:
            if request.app.state.draining:
                raise ShuttingDown("the service is shutting down")
            yield piece


async def _keep(
    jobs: Jobs, chunks: AsyncGenerator[tuple[int, bytes], None], caller: str, use: str, key: str | None
) -> Job:
    """Store all of `chunks`, or none."""
    job = await jobs.store.create(caller, use, key)
    try:
        number = 0
        async with aclosing(chunks):
            async for lines, body in chunks:
                await jobs.store.append(job, number, lines, body)
                number += 1
        return await jobs.store.submit(caller, job)
    except BaseException:
        with suppress(JobsUnavailable):
            await asyncio.shield(jobs.store.discard(job))
        raise


async def _bodies(request: Request, idle_s: float) -> AsyncGenerator[bytes, None]:
    async with aclosing(request.stream()) as bodies:
        while True:
            if request.app.state.draining:
                raise ShuttingDown("the service is shutting down")
            try:
                async with asyncio.timeout(idle_s):
                    body = await anext(bodies)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise HTTPException(408, headers={"Connection": "close"}) from None
            except ClientDisconnect:
                raise HTTPException(499) from None
            yield body


@dataclass(slots=True)
class _Chunk:
    """A chunk in the making."""

    most: int
    lines: int = 0
    body: bytearray = field(default_factory=bytearray)

    def add(self, found: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        """Take the lines in, and yield each time that it is full."""
        for number, raw in found:
            self.body += b"%d %b\n" % (number, raw)
            self.lines += 1
            if self.lines >= self.most or len(self.body) >= _CHUNK_BYTES:
                yield self.take()

    def take(self) -> tuple[int, bytes]:
        """Return what there is, and begin anew."""
        taken = self.lines, bytes(self.body[:-1])
        self.lines = 0
        self.body.clear()
        return taken


async def _chunks(
    bodies: AsyncGenerator[bytes, None], cutter: LineCutter, jobs: Jobs, *, packed: bool, most: int
) -> AsyncGenerator[tuple[int, bytes], None]:
    chunk = _Chunk(most)
    size = lines = 0
    async with aclosing(unpacked(bodies, packed=packed)) as pieces:
        async for piece in pieces:
            size += len(piece)
            if size > jobs.limits.max_bytes:
                raise _too_many_bytes(jobs)
            for full in chunk.add(cutter.feed(piece)):
                lines += full[0]
                yield full
            if lines + chunk.lines > jobs.limits.max_lines:
                raise _too_many_lines(jobs)
    for full in chunk.add(cutter.end()):
        lines += full[0]
        yield full
    if lines + chunk.lines > jobs.limits.max_lines:
        raise _too_many_lines(jobs)
    if chunk.lines:
        yield chunk.take()


def _too_many_bytes(jobs: Jobs) -> JobTooLarge:
    return JobTooLarge(f"The body is longer than the {jobs.limits.max_bytes} bytes that a job may have, unpacked.")


def _too_many_lines(jobs: Jobs) -> JobTooLarge:
    return JobTooLarge(f"The body has more than the {jobs.limits.max_lines} lines that a job may have.")
