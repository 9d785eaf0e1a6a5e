"""Group concurrent calls into batches. Knows nothing of text, models, threads, HTTP or metrics.

Policy: a batch is formed only when a worker is free to run it (late binding), around the item that waited longest, out
of items near it in size, such that a token costs least. All time is the loop's.
"""

import asyncio
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from itertools import accumulate, count
from math import inf
from typing import Final, Generic, Self, TypeAlias, TypeVar, cast

from app.domain.errors import ModelFailure, Overloaded, ShuttingDown
from app.inference.cost import CostModel

Item = TypeVar("Item")
Result = TypeVar("Result")

_COMPANY_S: Final = 1.0  # interactive items of the last second say that more will come
_GIVE_UP: Final = 3  # items of a failed batch that fail alone, too: it is the model, not one of them


class Lane(Enum):
    """Who waits: a person in a chat, or a job."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


class RefusalReason(Enum):
    """Which bound of the waiting room turned items away."""

    ITEMS = "items"
    TOKENS = "tokens"
    WAIT = "wait"  # they would start later than their caller waits
    UNREAD = "unread"  # the others turn so many away that it does not pay to read what they ask


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """What a batch may carry and who may wait. Tokens of a batch are padded: longest item x items."""

    max_items: int
    max_tokens: int
    max_waiting_items: int  # in each lane
    max_waiting_tokens: int  # in each lane, unpadded
    max_wait_s: float = inf  # predicted, for interactive items: nobody in a chat waits longer
    workers: int = 1  # batches that run at the same time
    shared_max_tokens: int | None = None  # of a bulk batch, while interactive items come; None: as any other
    bulk_share: float = 0.25  # of the run time, while both lanes wait
    wait_s: float = 0.0  # how long a batch that is not full waits for company


@dataclass(frozen=True, slots=True)
class BatchStarted:
    """A batch was handed to the model."""

    lane: Lane
    items: int
    tokens: int
    padded_tokens: int
    waits_s: tuple[float, ...]  # of each item


@dataclass(frozen=True, slots=True)
class BatchFinished:
    """The model came back, with rows or with `error`."""

    lane: Lane
    items: int
    padded_tokens: int
    run_s: float
    error: ModelFailure | None
    failed: int  # items without an answer, after each had a run of its own


@dataclass(frozen=True, slots=True)
class Refused:
    """Items were turned away because the waiting room was full."""

    lane: Lane
    items: int
    reason: RefusalReason


BatchEvent: TypeAlias = BatchStarted | BatchFinished | Refused


@dataclass(frozen=True, slots=True)
class Ran:
    """An item came back from the model: when it began to wait and to run, and how many ran with it."""

    queued_s: float
    started_s: float
    ended_s: float
    items: int


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    tokens: int
    number: int  # breaks ties between equal sizes, and keeps them in order of arrival
    since: float
    future: asyncio.Future[Result]
    lane: Lane
    ran: Callable[[Ran], None]

    @property
    def order(self) -> tuple[int, int]:
        return (self.tokens, self.number)


@dataclass(slots=True)
class _Queue(Generic[Item, Result]):
    """The waiting items of one lane, findable by age and by size."""

    by_age: OrderedDict[asyncio.Future[Result], _Waiting[Item, Result]] = field(default_factory=OrderedDict)
    by_size: list[_Waiting[Item, Result]] = field(default_factory=list)
    tokens: int = 0
    served_s: float = 0.0  # predicted run time given to this lane while the other waited too

    def add(self, waiting: _Waiting[Item, Result]) -> None:
        self.by_age[waiting.future] = waiting
        insort(self.by_size, waiting, key=_order)
        self.tokens += waiting.tokens

    def remove(self, waiting: _Waiting[Item, Result]) -> None:
        if self.by_age.pop(waiting.future, None) is not None:
            del self.by_size[bisect_left(self.by_size, waiting.order, key=_order)]
            self.tokens -= waiting.tokens

    def oldest(self) -> _Waiting[Item, Result]:
        return next(iter(self.by_age.values()))

    def take(self, first: int, last: int) -> list[_Waiting[Item, Result]]:
        taken = self.by_size[first:last]
        del self.by_size[first:last]
        for waiting in taken:
            del self.by_age[waiting.future]
            self.tokens -= waiting.tokens
        return taken


def _order(waiting: _Waiting[Item, Result]) -> tuple[int, int]:
    return waiting.order


def batch_counts(max_items: int) -> tuple[int, ...]:
    """Return the numbers of items that a batch may have: the powers of two, what lies half-way, and `max_items`.

    A model that compiles for each shape then meets few of them.
    """
    powers = [2**exponent for exponent in range(max_items.bit_length())]
    steps = sorted({*powers, *(power * 3 // 2 for power in powers[1:]), max_items})
    return tuple(count for count in steps if count <= max_items)


def choose_batch(
    sizes: Sequence[int], seed: int, *, counts: Sequence[int], max_tokens: int, overhead_tokens: float
) -> tuple[int, int]:
    """Return the slice of the ascending `sizes` to run together; it holds the index `seed`.

    Of the slices with as many items as one of the ascending `counts` says and at most `max_tokens` padded (the seed
    alone always fits), it is the one with the lowest price for a useful token, if starting a batch costs as much as
    `overhead_tokens`; the largest, where several are as cheap.
    """
    up_to = list(accumulate(sizes, initial=0))
    lowest = inf
    chosen = (seed, seed + 1)
    for items in counts:
        for first in range(max(0, seed - items + 1), min(seed, len(sizes) - items) + 1):
            padded = sizes[first + items - 1] * items
            if padded > max_tokens and items > 1:
                break
            price = (overhead_tokens + padded) / (up_to[first + items] - up_to[first])
            if price <= lowest:
                lowest, chosen = price, (first, first + items)
    return chosen


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
        self._counts = batch_counts(policy.max_items)
        self._tokens = tokens
        self._cost = cost
        self._observe = observe
        self._queues: dict[Lane, _Queue[Item, Result]] = {lane: _Queue() for lane in Lane}
        self._numbers = count()
        self._started: dict[asyncio.Task[None], float] = {}  # the batches now running, and since when
        self._interactive_at = -inf  # when the last interactive item came
        self._idle = asyncio.Event()
        self._idle.set()
        self._left = asyncio.Event()  # items have left the waiting room
        self._doors = {lane: asyncio.Lock() for lane in Lane}
        self._wake: asyncio.Handle | None = None
        # A batch belongs to no single caller: it must not run under the request id of the one whose arrival formed it.
        self._context = copy_context()
        self._closing = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        self._start_batches()  # nothing waits for company any longer
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
    def longest_run_s(self) -> float:
        """For how long the oldest of the batches now running has been running; 0 when none is."""
        return asyncio.get_running_loop().time() - min(self._started.values()) if self._started else 0.0

    def predicted_wait_s(self, lane: Lane) -> float:
        """Return how long what waits in `lane` will keep its part of the workers busy, by the cost model."""
        work_s = {
            each: self._cost.predict_s(queue.tokens, batches=queue.tokens / self._policy.max_tokens)
            for each, queue in self._queues.items()
        }
        share = self._policy.bulk_share if lane is Lane.BULK else 1 - self._policy.bulk_share
        return min(work_s[lane] / share, sum(work_s.values())) / self._policy.workers

    def pace_s(self, lane: Lane) -> float:
        """Return in what time one item of `lane` is answered, by those that wait; 0 when none does."""
        waiting = len(self._queues[lane].by_size)
        return self.predicted_wait_s(lane) / waiting if waiting else 0.0

    @property
    def policy(self) -> BatchPolicy:
        """What a batch may carry and who may wait."""
        return self._policy

    def admit(self, items: int, lane: Lane, *, tokens: int = 0, within_s: float | None = None) -> None:
        """Raise what `enqueue` would for this many items and tokens, before they are made."""
        if self._closing:
            raise ShuttingDown("the service is shutting down")
        reason = self.refuses(items, lane, tokens=tokens, within_s=within_s)
        if reason is not None:
            raise self.turn_away(items, lane, reason)

    def turn_away(self, items: int, lane: Lane, reason: RefusalReason) -> Overloaded:
        """Return the error to raise for items that are refused, and report them."""
        self._report(Refused(lane, items, reason))
        return Overloaded(self.predicted_wait_s(lane))

    def refuses(
        self, items: int, lane: Lane, *, tokens: int = 0, within_s: float | None = None
    ) -> RefusalReason | None:
        """Return which bound of the waiting room has no place for them, or None."""
        policy, queue = self._policy, self._queues[lane]
        # An empty lane takes anything, or a request above its size could never be served.
        if not queue.by_size or not items:
            return None
        if len(queue.by_size) + items > policy.max_waiting_items:
            return RefusalReason.ITEMS
        if queue.tokens + tokens > policy.max_waiting_tokens:
            return RefusalReason.TOKENS
        longest_s = min(inf if within_s is None else within_s, policy.max_wait_s if lane is Lane.INTERACTIVE else inf)
        return RefusalReason.WAIT if self.predicted_wait_s(lane) > longest_s else None

    def enqueue(
        self,
        items: Sequence[Item],
        lane: Lane = Lane.INTERACTIVE,
        *,
        within_s: float | None = None,
        ran: Callable[[Ran], None] = lambda _: None,
    ) -> list[asyncio.Future[Result]]:
        """Accept all `items` or none; return a future for each.

        With `within_s`, items that would start later than that, by what waits before them, are refused at the door.
        `ran` hears of each item that comes back, before its future ends.

        A future ends with its result or with `ModelFailure`. Cancelling it withdraws the item.

        Raises:
            ShuttingDown: the batcher is being closed.
            Overloaded: too many items or tokens would wait in this lane, or they would wait too long.
        """
        sizes = [self._tokens(item) for item in items]
        self.admit(len(items), lane, tokens=sum(sizes), within_s=within_s)
        if not items:
            return []
        queue = self._queues[lane]
        loop = asyncio.get_running_loop()
        if lane is Lane.INTERACTIVE:
            self._interactive_at = loop.time()
        futures = []
        for item, size in zip(items, sizes, strict=True):
            waiting: _Waiting[Item, Result] = _Waiting(
                item, size, next(self._numbers), loop.time(), loop.create_future(), lane, ran
            )
            waiting.future.add_done_callback(partial(self._forget, waiting))
            queue.add(waiting)
            futures.append(waiting.future)
        self._idle.clear()
        self._schedule(0)
        return futures

    async def until_room(self, items: Sequence[Item], lane: Lane) -> None:
        """Return when `items` fit into `lane` and leave half of it to callers that do not wait for room.

        Callers of this get their turns in the order in which they came. One that goes on without waiting anew finds
        the room still there.
        """
        queue, policy = self._queues[lane], self._policy
        tokens = sum(map(self._tokens, items))
        async with self._doors[lane]:
            while queue.by_size and (
                len(queue.by_size) + len(items) > policy.max_waiting_items // 2
                or queue.tokens + tokens > policy.max_waiting_tokens // 2
            ):
                self._left.clear()
                await self._left.wait()

    def hurry(self, futures: Iterable[asyncio.Future[Result]]) -> None:
        """Move what still waits of these to the interactive lane: a person waits for it now."""
        bulk, interactive = self._queues[Lane.BULK], self._queues[Lane.INTERACTIVE]
        for future in futures:
            if (waiting := bulk.by_age.get(future)) is not None:
                bulk.remove(waiting)
                waiting.lane = Lane.INTERACTIVE
                interactive.add(waiting)
        self._left.set()

    def _forget(self, waiting: _Waiting[Item, Result], _: asyncio.Future[Result]) -> None:
        self._queues[waiting.lane].remove(waiting)
        self._left.set()
        self._settle()

    def _settle(self) -> None:
        if not self._started and not self.waiting_items:
            self._idle.set()

    def _schedule(self, delay_s: float) -> None:
        """Form batches after `delay_s`; with 0, after the callbacks already due, so that arrivals of one tick share."""
        if isinstance(self._wake, asyncio.TimerHandle):
            self._wake.cancel()
        elif self._wake is not None:
            return  # due at once already
        loop = asyncio.get_running_loop()
        if delay_s > 0:
            self._wake = loop.call_later(delay_s, self._start_batches, context=self._context)
        else:
            self._wake = loop.call_soon(self._start_batches, context=self._context)

    def _start_batches(self) -> None:
        self._wake = None
        while len(self._started) < self._policy.workers and (lane := self._next_lane()) is not None:
            # A caller that left in this very tick has not been forgotten yet.
            batch = [waiting for waiting in self._take(lane) if not waiting.future.done()]
            if batch:
                loop = asyncio.get_running_loop()
                task = loop.create_task(self._run_batch(lane, batch))
                self._started[task] = loop.time()

    def _next_lane(self) -> Lane | None:
        """Return the lane to serve, or None after arranging to look again when one is due.

        While both lanes are due, the one that is behind its share of the run time is served.
        """
        due = {lane: self._due_in_s(queue) for lane, queue in self._queues.items() if queue.by_size}
        if len(due) < len(self._queues):
            for queue in self._queues.values():
                queue.served_s = 0.0
        ready = [lane for lane, delay_s in due.items() if delay_s <= 0]
        if len(ready) == len(self._queues):
            share = self._policy.bulk_share
            interactive, bulk = self._queues[Lane.INTERACTIVE], self._queues[Lane.BULK]
            return Lane.BULK if bulk.served_s * (1 - share) < interactive.served_s * share else Lane.INTERACTIVE
        if not ready and due:
            self._schedule(min(due.values()))
        return ready[0] if ready else None

    def _due_in_s(self, queue: _Queue[Item, Result]) -> float:
        """Return how long the batch of a non-empty lane should still wait for company."""
        policy = self._policy
        if self._closing or len(queue.by_size) >= policy.max_items or queue.tokens >= policy.max_tokens:
            return 0.0
        return queue.oldest().since + policy.wait_s - asyncio.get_running_loop().time()

    def _take(self, lane: Lane) -> list[_Waiting[Item, Result]]:
        queue = self._queues[lane]
        seed = bisect_left(queue.by_size, queue.oldest().order, key=_order)
        reach = self._policy.max_items
        start = max(0, seed - reach)
        first, last = choose_batch(
            [waiting.tokens for waiting in queue.by_size[start : seed + reach]],
            seed - start,
            counts=self._counts,
            max_tokens=self._max_tokens(lane),
            overhead_tokens=self._cost.overhead_tokens,
        )
        taken = queue.take(start + first, start + last)
        self._left.set()
        queue.served_s += self._cost.predict_s(taken[-1].tokens * len(taken))
        return taken

    def _max_tokens(self, lane: Lane) -> int:
        """Return what a batch of `lane` may carry: a bulk batch less, where the next person would wait for its end."""
        policy = self._policy
        shared = asyncio.get_running_loop().time() - self._interactive_at < _COMPANY_S
        return policy.shared_max_tokens or policy.max_tokens if lane is Lane.BULK and shared else policy.max_tokens

    async def _run_batch(self, lane: Lane, batch: list[_Waiting[Item, Result]]) -> None:
        loop = asyncio.get_running_loop()
        task = cast("asyncio.Task[None]", asyncio.current_task())
        started = loop.time()
        padded = batch[-1].tokens * len(batch)
        self._report(
            BatchStarted(
                lane=lane,
                items=len(batch),
                tokens=sum(waiting.tokens for waiting in batch),
                padded_tokens=padded,
                waits_s=tuple(started - waiting.since for waiting in batch),
            )
        )
        attempt = await self._attempt(batch)
        run_s = loop.time() - started
        error = None
        outcomes: Sequence[Result | ModelFailure]
        if isinstance(attempt, ModelFailure):
            error = attempt
            outcomes = await self._one_by_one(batch, error)
        else:
            outcomes = attempt
            self._cost.observe(padded, run_s)
        # Before the answers: what their callers do with them would keep the worker waiting.
        del self._started[task]
        self._start_batches()
        for waiting, each in zip(batch, outcomes, strict=True):
            waiting.ran(Ran(waiting.since, started, started + run_s, len(batch)))
            # A caller that left has cancelled its future.
            with suppress(asyncio.InvalidStateError):
                if isinstance(each, ModelFailure):
                    waiting.future.set_exception(each)
                else:
                    waiting.future.set_result(each)
        failed = sum(isinstance(each, ModelFailure) for each in outcomes)
        self._report(BatchFinished(lane, len(batch), padded, run_s, error, failed))
        self._settle()

    async def _attempt(self, batch: Sequence[_Waiting[Item, Result]]) -> Sequence[Result] | ModelFailure:
        try:
            results = await self._run([waiting.item for waiting in batch])
        except ModelFailure as error:
            return error
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 (whatever the model raises is its failure)
            return ModelFailure(f"{type(error).__name__}: {error}")
        if len(results) != len(batch):
            return ModelFailure(f"{len(batch)} items in, {len(results)} results out")
        return results

    async def _one_by_one(
        self, batch: Sequence[_Waiting[Item, Result]], error: ModelFailure
    ) -> list[Result | ModelFailure]:
        """Give every item of a failed batch a run of its own, so that one that the model cannot bear fails alone."""
        if len(batch) == 1:
            return [error]
        outcomes: list[Result | ModelFailure] = []
        for waiting in batch:
            broken = len(outcomes) >= _GIVE_UP and all(isinstance(each, ModelFailure) for each in outcomes)
            if broken or waiting.future.done():
                outcomes.append(error)
                continue
            outcome = await self._attempt([waiting])
            outcomes.append(outcome if isinstance(outcome, ModelFailure) else outcome[0])
        return outcomes

    def _report(self, event: BatchEvent) -> None:
        """Tell the observer; what it raises is for the loop's log and touches no caller."""
        try:
            self._observe(event)
        except Exception as error:  # noqa: BLE001 (an observer may be anybody's)
            context = {"message": f"observer failed on {event}", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
