"""Group concurrent calls into batches. Knows nothing of text, models, threads, HTTP or metrics.

Policy: a batch is formed only when a worker is free to run it (late binding), around the item that waited longest, out
of the items nearest to it in size, until padding would cost more than another batch. All time is the loop's.
"""

import asyncio
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from itertools import count
from typing import Generic, Self, TypeAlias, TypeVar

from app.domain.errors import ModelFailure, Overloaded, ShuttingDown
from app.inference.cost import CostModel

Item = TypeVar("Item")
Result = TypeVar("Result")


class Lane(Enum):
    """Who waits: a person in a chat, or a job."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """What a batch may carry and who may wait. Tokens of a batch are padded: longest item x items."""

    max_items: int
    max_tokens: int
    max_waiting_items: int
    max_waiting_tokens: int
    workers: int = 1  # batches that run at the same time
    bulk_share: float = 0.25  # of the run time, while both lanes wait
    wait_s: float = 0.0  # how long a batch that is not full waits for company


@dataclass(frozen=True, slots=True)
class BatchStarted:
    """A batch was handed to the model."""

    lane: Lane
    items: int
    tokens: int
    padded_tokens: int
    longest_wait_s: float


@dataclass(frozen=True, slots=True)
class BatchFinished:
    """The model came back, with rows or with `error`."""

    lane: Lane
    items: int
    padded_tokens: int
    run_s: float
    error: ModelFailure | None


@dataclass(frozen=True, slots=True)
class Refused:
    """Items were turned away because the waiting room was full."""

    lane: Lane
    items: int


BatchEvent: TypeAlias = BatchStarted | BatchFinished | Refused


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    tokens: int
    number: int  # breaks ties between equal sizes, and keeps them in order of arrival
    since: float
    future: asyncio.Future[Result]

    @property
    def order(self) -> tuple[int, int]:
        return (self.tokens, self.number)


@dataclass(slots=True)
class _Queue(Generic[Item, Result]):
    """The waiting items of one lane, findable by age and by size."""

    by_age: deque[_Waiting[Item, Result]] = field(default_factory=deque)  # may hold items that left meanwhile
    by_size: list[_Waiting[Item, Result]] = field(default_factory=list)
    tokens: int = 0
    served_s: float = 0.0  # predicted run time given to this lane while the other waited too

    def add(self, waiting: _Waiting[Item, Result]) -> None:
        self.by_age.append(waiting)
        insort(self.by_size, waiting, key=_order)
        self.tokens += waiting.tokens

    def index(self, waiting: _Waiting[Item, Result]) -> int | None:
        at = bisect_left(self.by_size, waiting.order, key=_order)
        return at if at < len(self.by_size) and self.by_size[at] is waiting else None

    def remove(self, waiting: _Waiting[Item, Result]) -> None:
        at = self.index(waiting)
        if at is not None:
            del self.by_size[at]
            self.tokens -= waiting.tokens

    def oldest(self) -> int:
        """Return the index in `by_size` of the item that waited longest; there must be one."""
        while (at := self.index(self.by_age[0])) is None:
            self.by_age.popleft()
        return at

    def take(self, first: int, last: int) -> list[_Waiting[Item, Result]]:
        taken = self.by_size[first:last]
        del self.by_size[first:last]
        self.tokens -= sum(waiting.tokens for waiting in taken)
        return taken


def _order(waiting: _Waiting[Item, Result]) -> tuple[int, int]:
    return waiting.order


def choose_batch(
    sizes: Sequence[int], seed: int, *, max_items: int, max_tokens: int, overhead_tokens: float
) -> tuple[int, int]:
    """Return the slice of the ascending `sizes` to run together; it holds the index `seed`.

    Grows towards the nearer neighbour up to `max_items` and `max_tokens` padded (the seed itself always fits), while
    padding stays within twice `overhead_tokens`, the price of one more batch: cutting evenly spread sizes in two halves
    their padding, so beyond that two batches are cheaper than one.
    """
    first, last = seed, seed + 1
    useful = longest = sizes[seed]
    while last - first < max_items:
        below = sizes[seed] - sizes[first - 1] if first > 0 else None
        above = sizes[last] - sizes[seed] if last < len(sizes) else None
        if below is None and above is None:
            break
        take_above = below is None or (above is not None and above <= below)
        size = sizes[last] if take_above else sizes[first - 1]
        padded = max(longest, size) * (last - first + 1)
        if padded > max_tokens or padded - useful - size > 2 * overhead_tokens:
            break
        first, last = (first, last + 1) if take_above else (first - 1, last)
        useful, longest = useful + size, max(longest, size)
    return first, last


class Batcher(Generic[Item, Result]):
    """Run items through `run` in batches. `async with` starts it; leaving refuses new items and drains the rest.

    There is no task that forms batches and could die unseen: arrivals and finished runs do it.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        policy: BatchPolicy,
        *,
        tokens: Callable[[Item], int],
        cost: CostModel,
        observe: Callable[[BatchEvent], None] = lambda _: None,
    ) -> None:
        self._run = run
        self._policy = policy
        self._tokens = tokens
        self._cost = cost
        self._observe = observe
        self._queues: dict[Lane, _Queue[Item, Result]] = {lane: _Queue() for lane in Lane}
        self._numbers = count()
        self._runs: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._wake: asyncio.Handle | None = None
        self._closing = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        await self._idle.wait()

    @property
    def waiting_items(self) -> int:
        """Items accepted and not yet handed to the model."""
        return sum(len(queue.by_size) for queue in self._queues.values())

    @property
    def waiting_tokens(self) -> int:
        """Tokens of the waiting items, unpadded."""
        return sum(queue.tokens for queue in self._queues.values())

    @property
    def predicted_wait_s(self) -> float:
        """How long the waiting items will keep the workers busy, by the cost model."""
        tokens = self.waiting_tokens
        return self._cost.predict_s(tokens, batches=tokens / self._policy.max_tokens) / self._policy.workers

    def enqueue(self, items: Sequence[Item], lane: Lane = Lane.INTERACTIVE) -> list[asyncio.Future[Result]]:
        """Accept all `items` or none; return a future for each.

        A future ends with its result or with `ModelFailure`. Cancelling it withdraws the item.

        Raises:
            ShuttingDown: the batcher is being closed.
            Overloaded: too many items or tokens would wait.
        """
        if self._closing:
            raise ShuttingDown("the service is shutting down")
        sizes = [self._tokens(item) for item in items]
        # An empty waiting room takes anything, or a request above its size could never be served.
        if self.waiting_items and (
            self.waiting_items + len(items) > self._policy.max_waiting_items
            or self.waiting_tokens + sum(sizes) > self._policy.max_waiting_tokens
        ):
            self._observe(Refused(lane, len(items)))
            raise Overloaded(self.predicted_wait_s)
        loop = asyncio.get_running_loop()
        queue = self._queues[lane]
        futures = []
        for item, size in zip(items, sizes, strict=True):
            waiting: _Waiting[Item, Result] = _Waiting(
                item, size, next(self._numbers), loop.time(), loop.create_future()
            )
            waiting.future.add_done_callback(partial(self._forget, queue, waiting))
            queue.add(waiting)
            futures.append(waiting.future)
        self._idle.clear()
        self._schedule(0)
        return futures

    def _forget(self, queue: _Queue[Item, Result], waiting: _Waiting[Item, Result], _: asyncio.Future[Result]) -> None:
        queue.remove(waiting)
        self._settle()

    def _settle(self) -> None:
        if not self._runs and not self.waiting_items:
            self._idle.set()

    def _schedule(self, delay_s: float) -> None:
        """Form batches after `delay_s`; with 0, after the callbacks already due, so that arrivals of one tick share."""
        if self._wake is not None:
            self._wake.cancel()
        loop = asyncio.get_running_loop()
        self._wake = (
            loop.call_later(delay_s, self._start_batches) if delay_s > 0 else loop.call_soon(self._start_batches)
        )

    def _start_batches(self) -> None:
        self._wake = None
        loop = asyncio.get_running_loop()
        while len(self._runs) < self._policy.workers and (lane := self._next_lane()) is not None:
            queue = self._queues[lane]
            seed = queue.oldest()
            remaining_s = queue.by_size[seed].since + self._policy.wait_s - loop.time()
            if remaining_s > 0 and queue.tokens < self._policy.max_tokens and not self._closing:
                self._schedule(remaining_s)
                return
            task = loop.create_task(self._run_batch(lane, self._take(queue, seed)))
            self._runs.add(task)
            task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._runs.discard(task)
        self._start_batches()
        self._settle()

    def _next_lane(self) -> Lane | None:
        """Return the lane to serve: while both wait, the one that is behind its share of the run time."""
        interactive, bulk = self._queues[Lane.INTERACTIVE], self._queues[Lane.BULK]
        if not (interactive.by_size and bulk.by_size):
            interactive.served_s = bulk.served_s = 0.0
            return Lane.INTERACTIVE if interactive.by_size else Lane.BULK if bulk.by_size else None
        share = self._policy.bulk_share
        return Lane.BULK if bulk.served_s * (1 - share) < interactive.served_s * share else Lane.INTERACTIVE

    def _take(self, queue: _Queue[Item, Result], seed: int) -> list[_Waiting[Item, Result]]:
        reach = self._policy.max_items
        start = max(0, seed - reach)
        first, last = choose_batch(
            [waiting.tokens for waiting in queue.by_size[start : seed + reach]],
            seed - start,
            max_items=self._policy.max_items,
            max_tokens=self._policy.max_tokens,
            overhead_tokens=self._cost.overhead_tokens,
        )
        return queue.take(start + first, start + last)

    async def _run_batch(self, lane: Lane, batch: list[_Waiting[Item, Result]]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        padded = batch[-1].tokens * len(batch)
        self._queues[lane].served_s += self._cost.predict_s(padded)
        failure = None
        try:
            self._observe(
                BatchStarted(
                    lane=lane,
                    items=len(batch),
                    tokens=sum(waiting.tokens for waiting in batch),
                    padded_tokens=padded,
                    longest_wait_s=started - min(waiting.since for waiting in batch),
                )
            )
            results = await self._run([waiting.item for waiting in batch])
            if len(results) != len(batch):
                raise ModelFailure(f"{len(batch)} items in, {len(results)} results out")  # noqa: TRY301 (handled alike)
        except Exception as error:  # noqa: BLE001 (whatever the model raises is its failure)
            failure = error if isinstance(error, ModelFailure) else ModelFailure(f"{type(error).__name__}: {error}")
        run_s = loop.time() - started
        for index, waiting in enumerate(batch):
            # A caller that left has cancelled its future.
            with suppress(asyncio.InvalidStateError):
                if failure is None:
                    waiting.future.set_result(results[index])
                else:
                    waiting.future.set_exception(failure)
        if failure is None:
            self._cost.observe(padded, run_s)
        self._observe(BatchFinished(lane, len(batch), padded, run_s, failure))
