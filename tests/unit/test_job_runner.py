"""Whose turn it is, with jobs in a real database."""

import asyncio
from collections.abc import AsyncIterator
from itertools import groupby
from pathlib import Path

import pytest

import app.jobs.runner
from app.jobs.job import Claim, JobLimits, State
from app.jobs.runner import JobRunner
from app.jobs.store import JobStore, open_store

pytestmark = pytest.mark.anyio

_LIMITS = JobLimits(
    max_bytes=1_000_000, max_lines=1_000, max_open=10, max_of_caller=10, max_stored_bytes=1_000_000, retention_s=1_000
)
_CHUNKS = 60
_SLICE_S = 0.1
_ANSWER_S = 0.01
_CALLER = "key:shop"


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[JobStore]:
    monkeypatch.setattr(app.jobs.runner, "_SLICE_S", _SLICE_S)
    async with open_store(f"sqlite:///{tmp_path / 'jobs.db'}", _LIMITS) as store:
        yield store


async def _submit(store: JobStore, name: bytes) -> str:
    job = await store.create(_CALLER, "full")
    for number in range(_CHUNKS):
        await store.append(job, number, 1, name)
    return (await store.submit(_CALLER, job)).id


async def _work(store: JobStore, *jobs: str) -> list[bytes]:
    """Run until `jobs` are completed; return whose chunks were answered, in their order."""
    worked_at = []

    async def answer(body: bytes, _: str) -> tuple[bytes, int]:
        worked_at.append(body)
        await asyncio.sleep(_ANSWER_S)
        return b"answer", 0

    async def charge(_: str, __: int) -> float:
        return 0.0

    runner = JobRunner(store, answer, charge, width=2, wake=asyncio.Event(), observe=lambda _: None)
    stopping = asyncio.Event()
    running = asyncio.create_task(runner.run(stopping))
    async with asyncio.timeout(60):
        for job in jobs:
            while (await store.find(_CALLER, job)).state is not State.COMPLETED:  # noqa: ASYNC110 (a database)
                await asyncio.sleep(_ANSWER_S)
    stopping.set()
    await running
    return worked_at


async def test_jobs_that_wait_take_turns(store: JobStore) -> None:
    worked_at = await _work(store, await _submit(store, b"a"), await _submit(store, b"b"))
    turns = [name for name, _ in groupby(worked_at)]
    assert len(turns) > 4
    assert sorted(worked_at) == [b"a"] * _CHUNKS + [b"b"] * _CHUNKS


async def test_a_job_that_is_alone_is_worked_at_without_a_pause(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = []
    claim = store.claim

    async def counted() -> Claim | None:
        claims.append(await claim())
        return claims[-1]

    monkeypatch.setattr(store, "claim", counted)
    assert len(await _work(store, await _submit(store, b"a"))) == _CHUNKS
    assert len([each for each in claims if each is not None]) == 1
