"""Batch jobs over HTTP: a body becomes chunks of a job, chunks become answers, and these a body.

A stored chunk is a line for each line, its number before it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from app.api.admission import admit_later, caller_of, most_at_once
from app.api.answering import answer_lines
from app.api.dependencies import cache_use
from app.api.lines import LineCutter, read_line
from app.api.middleware import KEY, STREAM_IDLE_S
from app.api.ndjson import CHUNK, Packer, is_packed, unpacked
from app.api.problems import item_problem
from app.api.schemas import ItemError
from app.domain.errors import JobsUnavailable, JobTooLarge, ServiceError, ShuttingDown
from app.inference.classifier import CacheUse
from app.jobs.job import Job
from app.jobs.runner import JobRunner
from app.security.gate import Gate
from app.services import Draining, Jobs, Services

_CHUNK_LINES: Final = 256
_CHUNK_BYTES: Final = 262_144


@asynccontextmanager
async def working(services: Services, gate: Gate | None, draining: Draining) -> AsyncIterator[None]:
    """Work on batch jobs, if the service keeps any; on leaving, end what is in work."""
    jobs = services.jobs
    if jobs is None:
        yield
        return
    runner = JobRunner(
        jobs.store,
        partial(_answer, services),
        partial(admit_later, gate, services.metrics),
        width=max(1, services.stream.window_lines // _CHUNK_LINES),  # so that a job has as much in work as a stream
        wake=jobs.wake,
        observe=services.metrics.observe_job,
    )
    running = asyncio.create_task(runner.run(draining))
    try:
        yield
    finally:
        draining.set()
        await asyncio.wait([running], timeout=services.batch_timeout_s)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _answer(services: Services, body: bytes, use: str) -> tuple[bytes, int]:
    """Return the lines that answer a stored chunk, and how many of them tell an error."""
    lines = body.split(b"\n")
    parts = [lines[start : start + CHUNK] for start in range(0, len(lines), CHUNK)]
    async with asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(_answer_few(services, part, CacheUse(use))) for part in parts]
    results = [task.result() for task in answers]
    return b"".join(content for content, _ in results), sum(errors for _, errors in results)


async def _answer_few(services: Services, stored: Sequence[bytes], use: CacheUse) -> tuple[bytes, int]:
    cut = (line.partition(b" ") for line in stored)
    lines = [read_line(int(number), raw, services.stream.max_line_bytes) for number, _, raw in cut]
    return await answer_lines(services, lines, use, patient=True)


async def upload(request: Request, services: Services, jobs: Jobs) -> Job:
    """Make a job of the body of `request`. If not all of it comes, there is no job.

    Raises:
        ServiceError: there is no room, or the body is not what it should be.
    """
    packed = is_packed(request)
    announced = request.headers.get("content-length", "")
    if not packed and announced.isdecimal() and int(announced) > jobs.limits.max_bytes:
        raise _too_many_bytes(jobs)
    request.scope[STREAM_IDLE_S] = services.stream.idle_s
    caller = caller_of(request.scope)
    # A chunk is charged as a whole, so no rate limit may be below it.
    most = most_at_once(request.scope["state"].get("gate"), request.scope.get(KEY)) or _CHUNK_LINES
    job = await jobs.store.create(caller, cache_use(request).value)
    try:
        bodies = _bodies(request, services.stream.idle_s)
        cutter = LineCutter(services.stream.max_line_bytes)
        number = 0
        async with aclosing(_chunks(bodies, cutter, jobs, packed=packed, most=min(most, _CHUNK_LINES))) as chunks:
            async for lines, body in chunks:
                await jobs.store.append(job, number, lines, body)
                number += 1
        submitted = await jobs.store.submit(caller, job)
    except BaseException:
        with suppress(JobsUnavailable):
            await asyncio.shield(jobs.store.discard(job))
        raise
    jobs.wake.set()
    return submitted


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


async def results(jobs: Jobs, job: Job, packer: Packer) -> AsyncGenerator[bytes, None]:
    """Yield the body with the answers that there are; trouble on the way is told in a last line."""
    try:
        async with aclosing(jobs.store.answers(job.id)) as answers:
            async for content in answers:
                yield packer.pack(content, more=True)
    except ServiceError as error:
        yield packer.pack(ItemError(error=item_problem(error)).model_dump_json().encode() + b"\n", more=True)
    yield packer.pack(b"", more=False)
