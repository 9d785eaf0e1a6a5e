"""Works on jobs, one at a time and each for a while, so that a long one holds up no other.

Knows whose turn it is; nothing of what a line means, of HTTP or of databases.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import structlog

from app.domain.errors import JobsUnavailable, ServiceError
from app.jobs.events import JobEvent, JobsCounted, LinesAnswered
from app.jobs.job import Chunk, Claim, ClaimLost

if TYPE_CHECKING:
    from app.jobs.store import JobStore

_SLICE_S: Final = 10.0  # for which a job is worked on before it is another's turn, if another waits
_BEAT_S: Final = 3.0  # a third of a lease
_LOOK_S: Final = 1.0  # how often to look for jobs that came elsewhere, or are due again
_SWEEP_S: Final = 10.0
_RETRY_S: Final = 5.0  # after a failure that may pass

Answer: TypeAlias = Callable[[bytes, str], Coroutine[Any, Any, tuple[bytes, int]]]
Charge: TypeAlias = Callable[[str, int], Awaitable[float]]

_log = structlog.get_logger(__name__)


class JobRunner:
    """Answers the jobs in `store`, up to `width` chunks at a time.

    `answer(lines, cache_use)` returns the answers and how many of them are errors. `charge(caller, lines)` returns 0,
    or in how many seconds to ask again.
    """

    def __init__(
        self,
        store: "JobStore",
        answer: Answer,
        charge: Charge,
        *,
        width: int,
        wake: asyncio.Event,
        observe: Callable[[JobEvent], None],
    ) -> None:
        """`wake` is set when there is something to do."""
        self._store = store
        self._answer = answer
        self._charge = charge
        self._width = width
        self._wake = wake
        self._observe = observe
        self._away = False  # the database

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until `stopping` is set; what is in work then is ended."""
        async with asyncio.TaskGroup() as tasks:
            sweeping = tasks.create_task(self._sweep())
            stop = tasks.create_task(stopping.wait())
            stop.add_done_callback(lambda _: self._wake.set())
            while not stopping.is_set():
                self._wake.clear()
                if not await self._guarded(self._work(stopping)):
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_S):
                            await self._wake.wait()
            sweeping.cancel()

    async def _sweep(self) -> None:
        while True:
            await self._guarded(self._count())
            await asyncio.sleep(_SWEEP_S)

    async def _count(self) -> bool:
        if deleted := await self._store.sweep():
            _log.info("batch jobs expired", jobs=deleted)
        self._observe(JobsCounted(*await self._store.census()))
        return True

    async def _guarded(self, work: Coroutine[Any, Any, bool]) -> bool:
        """Return what `work` does; nothing that goes wrong there ends the runner."""
        try:
            done = await work
        except JobsUnavailable as error:
            if not self._away:
                _log.warning("batch jobs wait", reason=str(error))
            self._away = True
            return False
        except Exception:  # noqa: BLE001 (a mistake of ours with one job is no reason to stop all work)
            _log.exception("batch jobs failed")
            return False
        if self._away:
            _log.info("batch jobs go on")
        self._away = False
        return done

    async def _work(self, stopping: asyncio.Event) -> bool:
        """Work on the job whose turn it is, for a while; return whether there was one."""
        claim = await self._store.claim()
        if claim is None:
            return False
        due_in_s, lost = 0.0, False
        try:
            async with asyncio.TaskGroup() as tasks:
                beating = tasks.create_task(self._beat(claim))
                due_in_s = await self._through(claim, stopping)
                beating.cancel()
        except* ClaimLost:
            lost = True
        except* ServiceError as errors:
            due_in_s = _RETRY_S
            _log.warning("a batch job waits", job=claim.job, reason=_first(errors))
        if not lost:
            await self._store.release(claim, due_in_s=due_in_s)
        return True

    async def _beat(self, claim: Claim) -> None:
        while True:
            await asyncio.sleep(_BEAT_S)
            await self._store.renew(claim)

    async def _through(self, claim: Claim, stopping: asyncio.Event) -> float:
        """Answer chunk after chunk; return in how many seconds the job is due again."""
        time = asyncio.get_running_loop().time
        until = time() + _SLICE_S
        room = asyncio.Semaphore(self._width)
        async with asyncio.TaskGroup() as tasks, aclosing(self._store.unanswered(claim)) as chunks:
            async for chunk in chunks:
                await room.acquire()
                if stopping.is_set():
                    break
                if time() > until:
                    if await self._store.any_due():
                        break
                    until = time() + _SLICE_S
                if wait_s := await self._charge(claim.caller, chunk.lines):
                    return wait_s
                tasks.create_task(self._answer_chunk(claim, chunk, room))
        return 0.0

    async def _answer_chunk(self, claim: Claim, chunk: Chunk, room: asyncio.Semaphore) -> None:
        answers, errors = await self._answer(chunk.body, claim.cache_use)
        await self._store.write(claim, chunk, answers, errors)
        self._observe(LinesAnswered(chunk.lines, errors))
        room.release()


def _first(errors: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return type(error).__name__
