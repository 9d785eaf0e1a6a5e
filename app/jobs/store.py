"""Jobs in a database, SQLite or PostgreSQL. Knows neither HTTP nor what a line means. The only importer of SQLAlchemy.

A chunk holds lines until it is answered, and then their answers. The answers to a chunk are written together with what
they add to the job's counts, by the holder of the job's claim alone and only once: whoever is killed, whenever, no line
is lost or doubled.
"""

import asyncio
import os
import secrets
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    and_,
    case,
    delete,
    event,
    func,
    insert,
    literal,
    make_url,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.sql.elements import ColumnElement

from app.domain.errors import JobsFull, JobsUnavailable, StartupError, TooManyJobs, UnknownJob
from app.jobs.job import Chunk, Claim, ClaimLost, Job, JobLimits, State

LEASE_S: Final = 10.0  # a holder that is silent for as long has lost its claim
_UPLOAD_S: Final = 3_600.0  # one that gets no further for as long is given up
_MOST_ATTEMPTS: Final = 5  # claims in a row whose holders died without an answer
_PAGE: Final = 4  # chunks read at a time
_CONNECTIONS: Final = 5
_BUSY_S: Final = 30.0
_DRIVERS: Final = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
_LOCK: Final = 0x5E97_13E7  # of PostgreSQL, for those who create the tables at the same time
_PACKING: Final = 1

_metadata = MetaData()
_jobs = Table(
    "sentiment_jobs",
    _metadata,
    Column("id", String(64), primary_key=True),  # sorts by time
    Column("caller", String(128), nullable=False),
    Column("request_key", String(128)),  # by which the caller knows the request that made it
    Column("cache_use", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("lines", Integer, nullable=False, default=0),
    Column("done", Integer, nullable=False, default=0),
    Column("errors", Integer, nullable=False, default=0),
    Column("stored_bytes", BigInteger, nullable=False, default=0),
    Column("created_at", Float(53), nullable=False),
    Column("started_at", Float(53)),
    Column("ended_at", Float(53)),
    Column("expires_at", Float(53), nullable=False),
    Column("due_at", Float(53), nullable=False),  # whose turn it is: the job that has waited for longest
    Column("token", String(32)),  # of the claim
    Column("leased_until", Float(53), nullable=False, default=0.0),
    Column("attempts", Integer, nullable=False, default=0),
)
_chunks = Table(
    "sentiment_job_chunks",
    _metadata,
    Column("job", String(64), ForeignKey("sentiment_jobs.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("lines", Integer, nullable=False),
    Column("answered", Boolean, nullable=False, default=False),
    Column("body", LargeBinary, nullable=False),  # packed
)
_INDEXES: Final = (
    Index("sentiment_jobs_of_caller", _jobs.c.caller, _jobs.c.id),
    Index("sentiment_jobs_of_request", _jobs.c.caller, _jobs.c.request_key, unique=True),
    Index("sentiment_jobs_due", _jobs.c.state, _jobs.c.due_at),
)
_SEEN: Final = [getattr(_jobs.c, name) for name in Job.__slots__]
_OPEN: Final = (State.UPLOADING, State.QUEUED, State.RUNNING)
_WAITING: Final = (State.QUEUED, State.RUNNING)


class JobStore:
    """The jobs of all servers that know the same database; made by `open_store`. Any method may raise JobsUnavailable.

    Times are the servers' own: where clocks differ by more than a lease, work may be done twice, and is written once.
    """

    def __init__(self, engine: AsyncEngine, limits: JobLimits, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._limits = limits
        self._clock = clock

    # For those who have jobs

    async def made_by(self, caller: str, request_key: str) -> Job | None:
        """Return the job that a request of `caller` made under `request_key`, if there is one."""
        query = select(*_SEEN).where(_jobs.c.request_key == request_key, self._visible(caller))
        async with self._transaction() as connection:
            row = (await connection.execute(query)).one_or_none()
        return _job(row) if row is not None else None

    async def create(self, caller: str, cache_use: str, request_key: str | None = None) -> str:
        """Return the id of a new job, whose chunks are to be appended.

        An upload under the same `request_key` that has not ended is given up: its caller has begun anew.

        Raises:
            TooManyJobs: the caller has as many as it may have.
            JobsFull: there are as many as may be open, or stored.
        """
        now, limits = self._clock(), self._limits
        job = f"{round(now * 1e3):012x}{secrets.token_hex(10)}"
        values = {
            "id": job,
            "caller": caller,
            "request_key": request_key,
            "cache_use": cache_use,
            "state": State.UPLOADING,
            "created_at": now,
            "expires_at": now + _UPLOAD_S,
            "due_at": now,
        }
        counts = select(
            func.count().filter(_jobs.c.caller == caller),
            func.count().filter(_jobs.c.state.in_(_OPEN)),
            func.coalesce(func.sum(_jobs.c.stored_bytes), 0),
        ).where(_jobs.c.expires_at > now)
        gone = or_(_jobs.c.state == State.UPLOADING, _jobs.c.expires_at <= now)
        async with self._transaction() as connection:
            if request_key is not None:
                await self._delete(connection, and_(_jobs.c.caller == caller, _jobs.c.request_key == request_key, gone))
            await connection.execute(insert(_jobs).values(values))  # first: in SQLite it keeps others from doing so
            of_caller, opened, stored = (await connection.execute(counts)).one()
            if of_caller > limits.max_of_caller:
                raise TooManyJobs(
                    f"You have {limits.max_of_caller} jobs, as many as are kept for one caller: delete one."
                )
            if opened > limits.max_open or stored >= limits.max_stored_bytes:
                raise JobsFull("There are as many jobs as this service keeps.")
        return job

    async def append(self, job: str, number: int, lines: int, body: bytes) -> None:
        """Add a chunk to a job that is being uploaded.

        Raises:
            JobsFull: it does not fit in.
            UnknownJob: it was given up meanwhile.
        """
        packed = await asyncio.to_thread(zlib.compress, body, _PACKING)
        stored = select(func.coalesce(func.sum(_jobs.c.stored_bytes), 0))
        async with self._transaction() as connection:
            added = {
                "lines": _jobs.c.lines + lines,
                "stored_bytes": _jobs.c.stored_bytes + len(packed),
                "expires_at": self._clock() + _UPLOAD_S,
            }
            await self._change(connection, job, [State.UPLOADING], added)
            await connection.execute(insert(_chunks).values(job=job, number=number, lines=lines, body=packed))
            if (await connection.execute(stored)).scalar_one() > self._limits.max_stored_bytes:
                raise JobsFull("The jobs that are kept take as many bytes as this service stores.")

    async def submit(self, caller: str, job: str) -> Job:
        """End the upload: the job waits for its turn."""
        now = self._clock()
        nothing = _jobs.c.lines == 0
        async with self._transaction() as connection:
            values = {
                "state": case((nothing, State.COMPLETED), else_=State.QUEUED),
                "ended_at": case((nothing, now)),
                "due_at": now,
                "expires_at": now + self._limits.retention_s,
            }
            await self._change(connection, job, [State.UPLOADING], values)
        return await self.find(caller, job)

    async def discard(self, job: str) -> None:
        """Delete a job whose upload has failed."""
        async with self._transaction() as connection:
            await self._delete(connection, and_(_jobs.c.id == job, _jobs.c.state == State.UPLOADING))

    async def find(self, caller: str, job: str) -> Job:
        """Return a job of `caller`.

        Raises:
            UnknownJob: there is none of this id.
        """
        async with self._transaction() as connection:
            query = select(*_SEEN).where(_jobs.c.id == job, self._visible(caller))
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise UnknownJob("You have no job of this id; it may have expired.")
        return _job(row)

    async def newest(self, caller: str, *, before: str | None, count: int) -> list[Job]:
        """Return the `count` newest jobs of `caller`, or the newest that are older than `before`."""
        query = select(*_SEEN).where(self._visible(caller)).order_by(_jobs.c.id.desc()).limit(count)
        if before is not None:
            query = query.where(_jobs.c.id < before)
        async with self._transaction() as connection:
            return [_job(row) for row in await connection.execute(query)]

    async def cancel(self, caller: str, job: str) -> Job:
        """Stop a job, if it has not ended, and return it: its answers stay, texts without one go.

        Raises:
            UnknownJob: there is none of this id.
        """
        async with self._transaction() as connection:
            changed = await connection.execute(
                update(_jobs)
                .where(_jobs.c.id == job, self._visible(caller), _jobs.c.state.in_(_WAITING))
                .values(self._ended(State.CANCELLED))
            )
            if changed.rowcount:
                await self._forget_unanswered(connection, job)
        return await self.find(caller, job)

    async def delete(self, caller: str, job: str) -> None:
        """Delete a job with all its lines and answers.

        Raises:
            UnknownJob: there is none of this id.
        """
        async with self._transaction() as connection:
            if not await self._delete(connection, and_(_jobs.c.id == job, self._visible(caller))):
                raise UnknownJob("You have no job of this id; it may have expired.")
        await self._truncate_log()

    async def answers(self, job: str) -> AsyncGenerator[bytes, None]:
        """Yield the answers that there are, in the order of the lines.

        Raises:
            UnknownJob: the job was deleted meanwhile.
        """
        async for chunk in self._read(job, answered=True):
            yield chunk.body
        async with self._transaction() as connection:
            if (await connection.execute(select(_jobs.c.id).where(_jobs.c.id == job))).one_or_none() is None:
                raise UnknownJob("The job was deleted while its answers were read.")

    # For those who work

    async def claim(self) -> Claim | None:
        """Return the right to work on the job that has waited for longest, if there is one."""
        while True:
            now = self._clock()
            free = self._free(now)
            columns = (_jobs.c.id, _jobs.c.caller, _jobs.c.cache_use, _jobs.c.attempts)
            async with self._transaction() as connection:
                query = select(*columns).where(free).order_by(_jobs.c.due_at).limit(1)
                found = (await connection.execute(query)).one_or_none()
            if found is None:
                return None
            claim = Claim(found.id, found.caller, found.cache_use, secrets.token_hex(16))
            taken = {
                "state": State.RUNNING,
                "token": claim.token,
                "leased_until": now + LEASE_S,
                "attempts": _jobs.c.attempts + 1,
                "started_at": func.coalesce(_jobs.c.started_at, now),
            }
            given_up = found.attempts >= _MOST_ATTEMPTS
            async with self._transaction() as connection:
                values = self._ended(State.FAILED) if given_up else taken
                changed = await connection.execute(update(_jobs).where(_jobs.c.id == claim.job, free).values(values))
                if changed.rowcount and given_up:
                    await self._forget_unanswered(connection, claim.job)
            if changed.rowcount and not given_up:
                return claim

    async def any_due(self) -> bool:
        """Return whether a job waits that nobody works on."""
        query = select(_jobs.c.id).where(self._free(self._clock())).limit(1)
        async with self._transaction() as connection:
            return (await connection.execute(query)).first() is not None

    async def renew(self, claim: Claim) -> None:
        """Keep the claim for another while.

        Raises:
            ClaimLost: it is too late.
        """
        async with self._transaction() as connection:
            await self._change_claimed(connection, claim, {"leased_until": self._clock() + LEASE_S})

    def unanswered(self, claim: Claim) -> AsyncGenerator[Chunk, None]:
        """Yield the chunks that wait for their answers, in order."""
        return self._read(claim.job, answered=False)

    async def write(self, claim: Claim, chunk: Chunk, answers: bytes, errors: int) -> None:
        """Put answers, of which `errors` are errors, in the place of their lines; the last ones end the job.

        Raises:
            ClaimLost: somebody else may be at it.
        """
        packed = await asyncio.to_thread(zlib.compress, answers, _PACKING)
        now = self._clock()
        last = _jobs.c.done + chunk.lines == _jobs.c.lines
        values = {
            "done": _jobs.c.done + chunk.lines,
            "errors": _jobs.c.errors + errors,
            "stored_bytes": _jobs.c.stored_bytes + len(packed) - chunk.stored_bytes,
            "attempts": 0,
            "expires_at": now + self._limits.retention_s,
            "state": case((last, State.COMPLETED), else_=State.RUNNING),
            "ended_at": case((last, now)),
        }
        async with self._transaction() as connection:
            await self._change_claimed(connection, claim, values)
            written = await connection.execute(
                update(_chunks)
                .where(_chunks.c.job == claim.job, _chunks.c.number == chunk.number, ~_chunks.c.answered)
                .values(body=packed, answered=True)
            )
            if written.rowcount != 1:
                raise ClaimLost("the chunk has its answers")

    async def release(self, claim: Claim, *, due_in_s: float) -> None:
        """Give the claim up; nobody takes it for as long."""
        values = {"token": None, "attempts": 0, "due_at": self._clock() + due_in_s}
        async with self._transaction() as connection:
            await connection.execute(update(_jobs).where(_jobs.c.token == claim.token).values(values))

    async def sweep(self) -> int:
        """Delete what has expired, and return how many jobs that were."""
        async with self._transaction() as connection:
            deleted = await self._delete(connection, _jobs.c.expires_at <= self._clock())
        if deleted:
            await self._truncate_log()
        return deleted

    async def census(self) -> tuple[Mapping[State, int], int]:
        """Return how many jobs there are by state, and how many bytes they take."""
        query = select(_jobs.c.state, func.count(), func.sum(_jobs.c.stored_bytes)).group_by(_jobs.c.state)
        async with self._transaction() as connection:
            rows = (await connection.execute(query)).all()
        found = {State(state): count for state, count, _ in rows}
        return {state: found.get(state, 0) for state in State}, sum(size for *_, size in rows)

    # Common ways

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._engine.begin() as connection:
                yield connection
        except (SQLAlchemyError, OSError) as error:  # asyncpg's own way to say that nobody is there
            raise JobsUnavailable(f"the database of jobs: {type(error).__name__}") from error

    @staticmethod
    def _free(now: float) -> ColumnElement[bool]:
        return and_(
            _jobs.c.state.in_(_WAITING),
            _jobs.c.due_at <= now,
            _jobs.c.expires_at > now,
            or_(_jobs.c.token.is_(None), _jobs.c.leased_until < now),
        )

    def _visible(self, caller: str) -> ColumnElement[bool]:
        return and_(_jobs.c.caller == caller, _jobs.c.state != State.UPLOADING, _jobs.c.expires_at > self._clock())

    def _ended(self, state: State) -> dict[str, Any]:
        now = self._clock()
        return {"state": state, "ended_at": now, "expires_at": now + self._limits.retention_s, "token": None}

    @staticmethod
    async def _change(connection: AsyncConnection, job: str, states: list[State], values: Mapping[str, Any]) -> None:
        changed = await connection.execute(
            update(_jobs).where(_jobs.c.id == job, _jobs.c.state.in_(states)).values(values)
        )
        if changed.rowcount != 1:
            raise UnknownJob("The upload was given up.")

    @staticmethod
    async def _change_claimed(connection: AsyncConnection, claim: Claim, values: Mapping[str, Any]) -> None:
        held = and_(_jobs.c.id == claim.job, _jobs.c.token == claim.token, _jobs.c.state == State.RUNNING)
        if (await connection.execute(update(_jobs).where(held).values(values))).rowcount != 1:
            raise ClaimLost("the job was cancelled, deleted or taken over")

    @staticmethod
    async def _forget_unanswered(connection: AsyncConnection, job: str) -> None:
        gone = and_(_chunks.c.job == job, ~_chunks.c.answered)
        await connection.execute(delete(_chunks).where(gone))
        left = select(func.coalesce(func.sum(func.length(_chunks.c.body)), 0)).where(_chunks.c.job == job)
        await connection.execute(update(_jobs).where(_jobs.c.id == job).values(stored_bytes=left.scalar_subquery()))

    @staticmethod
    async def _delete(connection: AsyncConnection, condition: ColumnElement[bool]) -> int:
        # A change first, so that nobody who works on it writes a chunk in between.
        await connection.execute(update(_jobs).where(condition).values(token=None))
        gone = select(_jobs.c.id).where(condition)
        await connection.execute(delete(_chunks).where(_chunks.c.job.in_(gone)))
        return (await connection.execute(delete(_jobs).where(condition))).rowcount

    async def _read(self, job: str, *, answered: bool) -> AsyncGenerator[Chunk, None]:
        last = -1
        while True:
            query = (
                select(_chunks.c.number, _chunks.c.lines, _chunks.c.body)
                .where(_chunks.c.job == job, _chunks.c.answered == literal(answered), _chunks.c.number > last)
                .order_by(_chunks.c.number)
                .limit(_PAGE)
            )
            async with self._transaction() as connection:
                rows = (await connection.execute(query)).all()
            for last, lines, packed in rows:
                yield Chunk(last, lines, await asyncio.to_thread(zlib.decompress, packed), len(packed))
            if len(rows) < _PAGE:
                return

    async def _truncate_log(self) -> None:
        """Leave nothing of what was deleted in SQLite's log, if nobody reads at the moment."""
        if self._engine.dialect.name == "sqlite":
            async with self._transaction() as connection:
                await connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))


@asynccontextmanager
async def open_store(url: str, limits: JobLimits, *, clock: Callable[[], float] = time.time) -> AsyncIterator[JobStore]:
    """Yield the store in the database at `url`, whose tables are made if they are missing.

    Raises:
        StartupError: the address names no database, or it does not answer.
    """
    engine = _engine(url)
    try:
        async with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                await connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
            for table in _metadata.sorted_tables:
                await connection.execute(CreateTable(table, if_not_exists=True))
            for index in _INDEXES:
                await connection.execute(CreateIndex(index, if_not_exists=True))
    except (SQLAlchemyError, OSError) as error:
        await engine.dispose()
        reason = getattr(error, "orig", None) or error
        raise StartupError(f"the database of jobs cannot be used: {type(reason).__name__}: {reason}") from None
    try:
        yield JobStore(engine, limits, clock)
    finally:
        await engine.dispose()


def _engine(url: str) -> AsyncEngine:
    try:
        address = make_url(url)
        driver = _DRIVERS[address.drivername]
    except (ArgumentError, KeyError):
        raise StartupError("SENTIMENT_JOBS__URL must begin with sqlite:/// or postgresql://") from None
    options: dict[str, Any] = {"hide_parameters": True, "pool_size": _CONNECTIONS, "max_overflow": 0}
    if driver.startswith("postgresql"):
        options["pool_pre_ping"] = True  # a connection that was cut off is not used
    else:
        if not address.database or address.database == ":memory:":
            raise StartupError("SENTIMENT_JOBS__URL must name a file: sqlite:////var/lib/sentiment/jobs.db")
        options["connect_args"] = {"timeout": _BUSY_S}
        try:
            os.close(os.open(Path(address.database), os.O_RDWR | os.O_CREAT, 0o600))  # SQLite's other files follow it
        except OSError as error:
            raise StartupError(f"the database of jobs cannot be opened: {error.strerror}") from None
    try:
        engine = create_async_engine(address.set(drivername=driver), **options)
    except ModuleNotFoundError as error:
        extra = "postgres" if driver.startswith("postgresql") else "jobs"
        raise StartupError(f"batch jobs there need {error.name}: install the extra [{extra}]") from None
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", _set_up_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")  # who reads and who writes do not wait for each other
    cursor.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten
    cursor.close()


def _job(row: Any) -> Job:
    return Job(**{**row._mapping, "state": State(row.state)})  # noqa: SLF001 (SQLAlchemy's documented name)
