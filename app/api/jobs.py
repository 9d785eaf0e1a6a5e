"""Batch jobs at work: chunks become answers, and these a body."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial

from app.api.admission import admit_later
from app.api.answering import answer_lines
from app.api.lines import read_line
from app.api.ndjson import CHUNK, Packer
from app.api.problems import item_problem
from app.api.schemas import ItemError
from app.api.uploads import CHUNK_LINES
from app.domain.errors import ServiceError
from app.inference.classifier import CacheUse
from app.jobs.job import Job
from app.jobs.runner import JobRunner
from app.security.gate import Gate
from app.services import Draining, Jobs, Services


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
        width=max(1, services.stream.window_lines // CHUNK_LINES),  # so that a job has as much in work as a stream
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


async def results(jobs: Jobs, job: Job, packer: Packer) -> AsyncGenerator[bytes, None]:
    """Yield the body with the answers that there are; trouble on the way is told in a last line."""
    try:
        async with aclosing(jobs.store.answers(job.id)) as answers:
            async for content in answers:
                yield packer.pack(content, more=True)
    except ServiceError as error:
        yield packer.pack(ItemError(error=item_problem(error)).model_dump_json().encode() + b"\n", more=True)
    yield packer.pack(b"", more=False)
