"""What holds for jobs in every database."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from hashlib import shake_256
from pathlib import Path

import pytest

from app.domain.errors import JobsFull, JobsUnavailable, StartupError, TooManyJobs, UnknownJob
from app.jobs.job import Chunk, Claim, ClaimLost, Job, JobLimits, State
from app.jobs.store import LEASE_S, JobStore, open_store
from tests.postgres_server import find_postgres, running_postgres

pytestmark = pytest.mark.anyio

_LIMITS = JobLimits(
    max_bytes=1_000_000, max_lines=1_000, max_open=100, max_of_caller=50, max_stored_bytes=100_000, retention_s=100
)
_MANY = 30


class Clock:
    """Time that passes when a test says so."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Database:
    """A database of a test's own, and as many servers that know it as the test opens."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.url = url
        self.clock = Clock()
        self._stack = stack

    async def open(self, **limits: float) -> JobStore:
        store = open_store(self.url, replace(_LIMITS, **limits), clock=self.clock)  # type: ignore[arg-type]
        return await self._stack.enter_async_context(store)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    if find_postgres() is None:
        pytest.skip("needs PostgreSQL")
    with running_postgres() as server:
        yield server.url


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    async with AsyncExitStack() as stack:
        if request.param == "sqlite":
            yield Database(f"sqlite:///{tmp_path / 'jobs.db'}", stack)
            return
        import asyncpg  # noqa: PLC0415 (for a test with PostgreSQL alone)

        url = request.getfixturevalue("postgres")
        connection = await asyncpg.connect(url)
        await connection.execute("DROP TABLE IF EXISTS sentiment_job_chunks, sentiment_jobs")
        await connection.close()
        yield Database(url, stack)


@pytest.fixture
async def store(database: Database) -> JobStore:
    return await database.open()


async def _submit(store: JobStore, *chunks: int, caller: str = "key:shop") -> Job:
    """Return a job with chunks of so many lines."""
    job = await store.create(caller, "full")
    for number, lines in enumerate(chunks):
        await store.append(job, number, lines, b"lines of chunk %d" % number)
    return await store.submit(caller, job)


async def _claim(store: JobStore) -> Claim:
    claim = await store.claim()
    assert claim is not None
    return claim


async def _chunks(store: JobStore, claim: Claim) -> list[Chunk]:
    return [chunk async for chunk in store.unanswered(claim)]


async def _answers(store: JobStore, job: Job) -> list[bytes]:
    return [answers async for answers in store.answers(job.id)]


async def _work(store: JobStore, claim: Claim, most: int = 1_000) -> None:
    """Answer up to `most` chunks of a job."""
    for chunk in (await _chunks(store, claim))[:most]:
        await store.write(claim, chunk, b"answer to " + chunk.body, errors=1)


async def test_a_job_goes_from_its_lines_to_its_answers(store: JobStore, database: Database) -> None:
    job = await _submit(store, 3, 3, 2)
    assert (job.state, job.lines, job.done, job.started_at) == (State.QUEUED, 8, 0, None)
    assert await _answers(store, job) == []

    claim = await _claim(store)
    assert (claim.job, claim.caller, claim.cache_use) == (job.id, "key:shop", "full")
    chunks = await _chunks(store, claim)
    assert [(chunk.lines, chunk.body) for chunk in chunks][1] == (3, b"lines of chunk 1")
    await store.write(claim, chunks[2], b"third", errors=1)
    await store.write(claim, chunks[0], b"first", errors=0)
    found = await store.find("key:shop", job.id)
    assert (found.state, found.done, found.errors, found.ended_at) == (State.RUNNING, 5, 1, None)
    assert await _answers(store, job) == [b"first", b"third"]

    database.clock.now += 3
    await store.write(claim, chunks[1], b"second", errors=0)
    found = await store.find("key:shop", job.id)
    assert (found.state, found.done, found.errors) == (State.COMPLETED, 8, 1)
    assert (found.created_at, found.started_at, found.ended_at) == (1_000_000, 1_000_000, 1_000_003)
    assert await _answers(store, job) == [b"first", b"second", b"third"]
    assert await store.claim() is None


async def test_more_chunks_than_are_read_at_a_time_come_in_order_and_once(store: JobStore) -> None:
    job = await _submit(store, *([2] * _MANY))
    claim = await _claim(store)
    async for chunk in store.unanswered(claim):  # written while it is read
        await store.write(claim, chunk, b"answer to " + chunk.body, errors=0)
    assert (await store.find("key:shop", job.id)).state is State.COMPLETED
    assert await _answers(store, job) == [b"answer to lines of chunk %d" % number for number in range(_MANY)]


async def test_a_job_without_lines_has_ended(store: JobStore) -> None:
    job = await _submit(store)
    assert (job.state, job.lines, job.ended_at) == (State.COMPLETED, 0, 1_000_000)
    assert await store.claim() is None


async def test_what_is_being_uploaded_is_no_job_yet(store: JobStore) -> None:
    job = await store.create("key:shop", "full")
    await store.append(job, 0, 1, b"a line")
    assert await store.claim() is None
    assert await store.newest("key:shop", before=None, count=10) == []
    with pytest.raises(UnknownJob):
        await store.find("key:shop", job)
    await store.discard(job)
    with pytest.raises(UnknownJob):
        await store.append(job, 1, 1, b"another")
    assert (await store.census())[0][State.UPLOADING] == 0


async def test_of_all_who_ask_at_once_one_gets_the_job(database: Database) -> None:
    stores = [await database.open() for _ in range(4)]
    await _submit(stores[0], 1)
    claims = await asyncio.gather(*(store.claim() for store in stores for _ in range(5)))
    assert sum(claim is not None for claim in claims) == 1


async def test_several_servers_start_on_an_empty_database_at_the_same_time(database: Database) -> None:
    stores = await asyncio.gather(*(database.open() for _ in range(6)))
    jobs = await asyncio.gather(*(_submit(store, 1) for store in stores))
    assert len(await stores[0].newest("key:shop", before=None, count=10)) == len(jobs)


async def test_a_holder_that_renews_keeps_its_claim_and_a_silent_one_loses_it(database: Database) -> None:
    one, other = await database.open(), await database.open()
    job = await _submit(one, 1, 1, 1)
    lost = await _claim(one)
    chunks = await _chunks(one, lost)
    await one.write(lost, chunks[0], b"by one", errors=0)
    database.clock.now += LEASE_S - 1
    await one.renew(lost)
    database.clock.now += LEASE_S - 1
    assert await other.claim() is None
    database.clock.now += 2

    claim = await _claim(other)
    assert [chunk.number for chunk in await _chunks(other, claim)] == [1, 2]  # what is answered stays so
    for late in (one.renew(lost), one.write(lost, chunks[1], b"too late", errors=0)):
        with pytest.raises(ClaimLost):
            await late
    await _work(other, claim)
    await one.release(lost, due_in_s=0)  # does no harm
    assert (await one.find("key:shop", job.id)).done == 3
    assert await _answers(one, job) == [b"by one", b"answer to lines of chunk 1", b"answer to lines of chunk 2"]


async def test_no_chunk_is_written_twice(store: JobStore) -> None:
    job = await _submit(store, 1, 1)
    claim = await _claim(store)
    (chunk, _) = await _chunks(store, claim)
    outcomes = await asyncio.gather(
        *(store.write(claim, chunk, b"answer %d" % number, errors=0) for number in range(5)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes].count(ClaimLost) == 4
    assert (await store.find("key:shop", job.id)).done == 1
    assert len(await _answers(store, job)) == 1


async def test_jobs_take_turns(store: JobStore, database: Database) -> None:
    jobs = []
    for _ in range(3):
        database.clock.now += 1
        jobs.append(await _submit(store, 9))
    turns = []
    for _ in range(5):
        database.clock.now += 1
        claim = await _claim(store)
        turns.append([job.id for job in jobs].index(claim.job))
        await store.release(claim, due_in_s=0)
    assert turns == [0, 1, 2, 0, 1]


async def test_a_job_that_has_to_wait_is_due_again_after_that_time(store: JobStore, database: Database) -> None:
    await _submit(store, 1)
    await store.release(await _claim(store), due_in_s=30)
    assert await store.claim() is None
    database.clock.now += 30
    assert await store.claim() is not None


async def test_a_job_whose_servers_die_again_and_again_is_given_up(store: JobStore, database: Database) -> None:
    job = await _submit(store, 1, 1)
    await _work(store, await _claim(store), most=1)
    for _ in range(5):
        database.clock.now += LEASE_S + 1
        await _claim(store)
    database.clock.now += LEASE_S + 1
    assert await store.claim() is None
    found = await store.find("key:shop", job.id)
    assert (found.state, found.done) == (State.FAILED, 1)
    assert await _answers(store, job) == [b"answer to lines of chunk 0"]


async def test_a_cancelled_job_keeps_its_answers_and_forgets_its_texts(store: JobStore) -> None:
    job = await _submit(store, 1, 1)
    claim = await _claim(store)
    waiting = (await _chunks(store, claim))[1]
    await _work(store, claim, most=1)
    cancelled = await store.cancel("key:shop", job.id)
    assert (cancelled.state, cancelled.done, cancelled.ended_at) == (State.CANCELLED, 1, 1_000_000)
    with pytest.raises(ClaimLost):
        await store.write(claim, waiting, b"too late", errors=0)
    assert await _chunks(store, claim) == []
    assert await _answers(store, job) == [b"answer to lines of chunk 0"]
    assert await store.cancel("key:shop", job.id) == cancelled
    assert await store.claim() is None


async def test_nothing_is_left_of_a_deleted_job(store: JobStore) -> None:
    job = await _submit(store, 1, 1)
    claim = await _claim(store)
    await _work(store, claim, most=1)
    reading = store.answers(job.id)
    await anext(reading)
    await store.delete("key:shop", job.id)
    with pytest.raises(UnknownJob):
        await anext(reading)
    with pytest.raises(ClaimLost):
        await store.renew(claim)
    with pytest.raises(UnknownJob):
        await store.delete("key:shop", job.id)
    assert await _chunks(store, claim) == []
    counts, stored = await store.census()
    assert (set(counts.values()), stored) == ({0}, 0)


async def test_nobody_sees_or_touches_the_job_of_another(store: JobStore) -> None:
    job = await _submit(store, 1)
    for touch in (store.find, store.cancel, store.delete):
        with pytest.raises(UnknownJob):
            await touch("key:bank", job.id)
    assert await store.newest("key:bank", before=None, count=10) == []
    assert (await store.find("key:shop", job.id)).state is State.QUEUED


async def test_a_job_expires_some_time_after_the_last_that_happened_to_it(store: JobStore, database: Database) -> None:
    job = await _submit(store, 1, 1)
    database.clock.now += 90
    claim = await _claim(store)
    await _work(store, claim, most=1)
    database.clock.now += 90
    assert await store.sweep() == 0
    await store.renew(claim)
    await _work(store, claim)
    database.clock.now += 99
    assert await store.sweep() == 0
    database.clock.now += 1
    with pytest.raises(UnknownJob):  # also before anybody sweeps
        await store.find("key:shop", job.id)
    assert await store.sweep() == 1
    assert (await store.census())[1] == 0


async def test_an_upload_that_nobody_goes_on_with_is_given_up(store: JobStore, database: Database) -> None:
    job = await store.create("key:shop", "full")
    database.clock.now += 3_000
    await store.append(job, 0, 1, b"a line")
    database.clock.now += 3_000
    assert await store.sweep() == 0
    database.clock.now += 1_000
    assert await store.sweep() == 1
    with pytest.raises(UnknownJob):
        await store.submit("key:shop", job)


async def test_a_request_that_is_repeated_finds_the_job_it_made(store: JobStore, database: Database) -> None:
    assert await store.made_by("key:shop", "order 7") is None
    job = await store.submit("key:shop", await store.create("key:shop", "full", "order 7"))
    assert await store.made_by("key:shop", "order 7") == job
    assert await store.made_by("key:shop", "order 8") is None
    assert await store.made_by("key:bank", "order 7") is None
    assert (await store.submit("key:bank", await store.create("key:bank", "full", "order 7"))).id != job.id

    database.clock.now += 200  # they have expired, and nobody has swept yet
    assert await store.made_by("key:shop", "order 7") is None
    assert (await store.submit("key:shop", await store.create("key:shop", "full", "order 7"))).id != job.id


async def test_an_upload_that_is_begun_anew_ends_the_one_before(store: JobStore) -> None:
    first = await store.create("key:shop", "full", "order 7")
    await store.append(first, 0, 1, b"a line")
    assert await store.made_by("key:shop", "order 7") is None
    second = await store.create("key:shop", "full", "order 7")
    with pytest.raises(UnknownJob):
        await store.append(first, 1, 1, b"another")
    await store.append(second, 0, 1, b"a line")
    assert (await store.submit("key:shop", second)).lines == 1
    assert len(await store.newest("key:shop", before=None, count=10)) == 1


async def test_of_uploads_under_one_key_no_more_than_one_becomes_a_job(database: Database) -> None:
    stores = [await database.open() for _ in range(4)]

    async def upload(store: JobStore) -> str | None:
        try:
            job = await store.create("key:shop", "full", "order 7")
            await store.append(job, 0, 1, b"a line")
            return (await store.submit("key:shop", job)).id
        except (UnknownJob, JobsUnavailable):  # it was begun anew, or made meanwhile
            return None

    made = [job for job in await asyncio.gather(*map(upload, stores)) if job is not None]
    found = await stores[0].newest("key:shop", before=None, count=10)
    assert [job.id for job in found] == made
    assert len(made) == 1


async def test_lists_go_from_the_newest_to_the_oldest_page_by_page(store: JobStore, database: Database) -> None:
    jobs: list[str] = []
    for _ in range(7):
        database.clock.now += 1
        jobs.insert(0, (await _submit(store, 1)).id)
    first = await store.newest("key:shop", before=None, count=4)
    second = await store.newest("key:shop", before=first[-1].id, count=4)
    assert [job.id for job in first + second] == jobs


async def test_jobs_of_a_caller_are_bounded_ended_ones_included(database: Database) -> None:
    store = await database.open(max_of_caller=2)
    first = await _submit(store)
    await _submit(store, 1)
    with pytest.raises(TooManyJobs):
        await store.create("key:shop", "full")
    await store.create("key:bank", "full")
    await store.delete("key:shop", first.id)
    await store.create("key:shop", "full")


async def test_open_jobs_are_bounded_ended_ones_do_not_count(database: Database) -> None:
    store = await database.open(max_open=2)
    await _submit(store)
    for caller in ("key:shop", "key:bank"):
        await store.create(caller, "full")
    with pytest.raises(JobsFull):
        await store.create("key:third", "full")


async def test_stored_bytes_are_bounded_and_freed(database: Database) -> None:
    store = await database.open(max_stored_bytes=300)
    job = await store.create("key:shop", "full")
    noise = bytes(number * 89 % 251 for number in range(200))
    await store.append(job, 0, 1, noise)
    with pytest.raises(JobsFull):
        await store.append(job, 1, 1, noise[::-1])
    assert (await store.census())[1] < 300
    await store.discard(job)
    await _submit(store, 1)
    claim = await _claim(store)
    await _work(store, claim)
    assert 0 < (await store.census())[1] < 100


async def test_a_deleted_text_is_gone_from_every_file(tmp_path: Path) -> None:
    file = tmp_path / "jobs.db"
    async with open_store(f"sqlite:///{file}", _LIMITS) as store:
        job = await store.create("key:shop", "full")
        secret = shake_256(b"").digest(300)  # too odd to be packed
        await store.append(job, 0, 1, secret)
        await store.submit("key:shop", job)

        def found() -> bool:
            return any(secret[100:200] in each.read_bytes() for each in tmp_path.iterdir())

        assert found()
        await store.delete("key:shop", job)
        assert not found()
    assert file.stat().st_mode & 0o077 == 0
    assert sqlite3.connect(file).execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("mysql://there/jobs", "must begin with sqlite:/// or postgresql://"),
        ("jobs.db", "must begin with"),
        ("sqlite://", "must name a file"),
        ("sqlite:////no/such/place/jobs.db", "No such file"),
        ("postgresql://sentiment:s3cret@127.0.0.1:1/jobs", "cannot be used"),
    ],
)
async def test_a_database_that_cannot_be_used_stops_the_start_and_its_password_is_not_told(
    url: str, reason: str
) -> None:
    with pytest.raises(StartupError, match=reason) as refusal:
        async with open_store(url, _LIMITS):
            pass
    assert "s3cret" not in str(refusal.value)
