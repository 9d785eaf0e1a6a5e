"""Lines in, answers out, at one client's pace, with a bounded window of work between them. Knows nothing of HTTP.

One loop does it all: while it hands an answer over, nothing new is read, so a client that does not read is not read.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any, TypeAlias

from app.api.lines import Line
from app.domain.errors import BrokenGzip, DeadlineExceeded, ServiceError, ShuttingDown
from app.services import StreamLimits

Chunk: TypeAlias = list[Line]


@dataclass(slots=True)
class _Window:
    """The chunks in work, in the order of their lines."""

    limits: StreamLimits
    ordered: bool
    lines: int = 0
    size: int = 0
    work: list[tuple[asyncio.Task[bytes], int, int]] = field(default_factory=list)

    @property
    def has_room(self) -> bool:
        return self.lines < self.limits.window_lines and self.size < self.limits.window_bytes

    def add(self, task: asyncio.Task[bytes], chunk: Chunk) -> None:
        size = sum(line.size for line in chunk)
        self.work.append((task, len(chunk), size))
        self.lines += len(chunk)
        self.size += size

    def take(self) -> Iterator[bytes]:
        """Yield the answers that may go out; each makes room when the next is asked for."""
        index = 0
        while index < len(self.work):
            task, lines, size = self.work[index]
            if task.done():
                yield task.result()
                del self.work[index]
                self.lines -= lines
                self.size -= size
            elif self.ordered:
                return
            else:
                index += 1


class Exchange:
    """Answers chunks as they come. `answer(chunk, patient)` may refuse the first, which is not patient.

    `departure()` does not end before the client leaves, and raises then; so may reading `chunks`.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[Chunk, None],
        answer: Callable[[Chunk, bool], Coroutine[Any, Any, bytes]],
        departure: Callable[[], Coroutine[Any, Any, Chunk]],
        *,
        limits: StreamLimits,
        ordered: bool,
        draining: asyncio.Event,
        drain_s: float,
    ) -> None:
        """When `draining` is set, nothing more is read, and what is in work has `drain_s` to end."""
        self._chunks = chunks
        self._answer = answer
        self._departure = departure
        self._limits = limits
        self._draining = draining
        self._drain_s = drain_s
        self._window = _Window(limits, ordered)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._happened = asyncio.Event()
        self._reading: asyncio.Task[Chunk] | None = None
        self._more = True  # chunks may come
        self._accepted = False  # the first of them
        self._until = inf  # draining has to be over
        self._failure: ServiceError | None = None

    async def answers(self) -> AsyncGenerator[bytes, None]:
        """Yield the answers as they are known, in the order of the lines if that is asked for.

        Raises:
            ServiceError: the first chunk is refused, or the exchange ends before its last line.
        """
        drained = self._begin(self._draining.wait())
        try:
            while self._more or self._window.work:
                self._read_on()
                await self._something()
                self._take_in()
                if drained.done():
                    self._read_no_more()
                for answer in self._window.take():
                    if not self._accepted:
                        self._accepted = True
                        self._happened.set()  # what was read meanwhile may go to work
                    yield answer
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._chunks.aclose()
        if self._failure is not None:
            raise self._failure

    def _begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._happened.set()
        if not task.cancelled():
            task.exception()  # whoever asks for the result is told, too; there may be nobody left

    async def _something(self) -> None:
        """Wait until something has happened."""
        try:
            async with asyncio.timeout(min(self._limits.idle_s, self._until - asyncio.get_running_loop().time())):
                await self._happened.wait()
        except TimeoutError:
            if self._until < inf:
                raise ShuttingDown("the service is shutting down") from None
            raise DeadlineExceeded(f"no line and no answer for {self._limits.idle_s:g} s") from None
        self._happened.clear()

    def _read_on(self) -> None:
        """Read, if there is room; when all is read, the client may still leave."""
        if self._reading is None and not self._more:
            self._reading = self._begin(self._departure())
        elif self._reading is None and self._window.has_room:
            self._reading = self._begin(self._next())

    async def _next(self) -> Chunk:
        return await anext(self._chunks, [])

    def _take_in(self) -> None:
        """Put what was read to work. The first chunk goes alone: whether it is refused decides the status."""
        if self._reading is None or not self._reading.done():
            return
        try:
            chunk = [] if self._reading.cancelled() else self._reading.result()
        except BrokenGzip as error:
            chunk, self._failure = [], error
        if chunk and self._window.work and not self._accepted:
            return
        self._reading = None
        self._more = bool(chunk)
        if chunk:
            self._window.add(self._begin(self._answer(chunk, self._accepted)), chunk)

    def _read_no_more(self) -> None:
        self._until = min(self._until, asyncio.get_running_loop().time() + self._drain_s)
        if self._more:
            self._failure = ShuttingDown("the service is shutting down")
            if self._reading is not None:
                self._reading.cancel()
            self._more = self._reading is not None
