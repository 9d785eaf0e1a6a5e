"""Which model answers: the active one, which can be replaced while it serves, and a candidate on trial beside it.

Knows when a model comes and goes; nothing of how one is made, of HTTP or of signals.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Final, Self, TypeAlias
from zlib import crc32

import structlog

from app.domain.errors import ChangeUnderWay, ModelFailure, ServiceError, StartupError, Unavailable
from app.inference.bundle import fingerprint_of
from app.inference.classifier import Classified
from app.inference.served import ServedModel

_TYPICAL_TOKENS: Final = 1_024  # the batch whose price tells a slow model
_MOST_TRIALS: Final = 16  # requests scored by the other model at a time; more are let go
_TRIAL_TEXTS: Final = 32  # of one request
_TRIAL_TIMEOUT_S: Final = 10.0
_RETRIES_S: Final = (0.0, 1.0, 5.0, 15.0, 60.0)  # before each attempt to load a failing model anew; the last repeats

Opener: TypeAlias = Callable[[Path], AbstractAsyncContextManager[ServedModel]]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TrialPolicy:
    """What a candidate may do worse than the active model before it is dropped."""

    min_comparisons: int = 200  # texts, before it is judged
    max_flip_rate: float = 0.05
    max_error_rate: float = 0.01
    max_slowdown: float = 1.5


@dataclass(slots=True)
class Trial:
    """A candidate's record: texts that both models scored, by what came of it."""

    share: float  # of the requests
    answers: bool  # True: clients get the candidate's answers (canary); False: the active model's (shadow)
    same: int = 0
    flipped: int = 0
    failed: int = 0  # scored by the active model alone

    @property
    def comparisons(self) -> int:
        """Texts scored for the comparison."""
        return self.same + self.flipped + self.failed

    def verdict(self, policy: TrialPolicy, slowdown: float) -> str | None:
        """Return why the candidate must go, or None."""
        if self.comparisons < policy.min_comparisons:
            return None
        if (rate := self.flipped / self.comparisons) > policy.max_flip_rate:
            return f"{rate:.1%} of its labels differ, at most {policy.max_flip_rate:.1%} may"
        if (rate := self.failed / self.comparisons) > policy.max_error_rate:
            return f"{rate:.1%} of its texts failed, at most {policy.max_error_rate:.1%} may"
        if slowdown > policy.max_slowdown:
            return f"it takes {slowdown:.2f} times as long, at most {policy.max_slowdown:g} are allowed"
        return None


@dataclass(eq=False, slots=True)
class _Slot:
    """A model and those who use it at the moment."""

    model: ServedModel
    closing: AsyncExitStack
    users: int = 0
    retired: bool = False
    unused: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        """One user less; the last of a retired model lets it close."""
        self.users -= 1
        if self.retired and not self.users:
            self.unused.set()


class Lease:
    """The right to use a model for one request: it is not closed meanwhile."""

    __slots__ = ("_other", "_rollout", "_slot", "model")

    def __init__(self, rollout: "Rollout", slot: _Slot, other: _Slot | None) -> None:
        self._rollout = rollout
        self._slot = slot
        self._other = other
        self.model = slot.model

    def __enter__(self) -> Self:
        self._slot.users += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._slot.release()

    def answered(self, texts: Sequence[object], outcomes: Sequence[Classified | ServiceError]) -> None:
        """Have the other model score `texts`, too, while there is one on trial and this request is in its share."""
        if self._other is not None:
            self._rollout.compare(texts, outcomes, self._slot.model, self._other)


class Rollout:
    """Opens the model at `first` when entered; answers with it until told otherwise; leaves after draining all.

    A model that failed and does not recover is loaded anew.
    """

    def __init__(
        self,
        open_model: Opener,
        first: Path,
        *,
        policy: TrialPolicy | None = None,
        observe: Callable[[str], None] = lambda _: None,
        activated: Callable[[ServedModel], None] = lambda _: None,
    ) -> None:
        """`observe` hears what happens in one word; `activated` hears which model answers from now on."""
        self._open_model = open_model
        self._first = first
        self._policy = policy or TrialPolicy()
        self._observe = observe
        self._activated = activated
        self._active: _Slot
        self._candidate: _Slot | None = None
        self.trial: Trial | None = None
        self._changing = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._trials: set[asyncio.Task[None]] = set()
        self._healing: set[asyncio.Task[None]] = set()
        self._reloads: set[asyncio.Task[None]] = set()
        self._ending = False

    async def __aenter__(self) -> Self:
        self._active = await self._open(self._first)
        self._activated(self.active)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ending = True
        for task in [*self._trials, *self._healing, *self._reloads]:
            task.cancel()
        self._drop_candidate()
        self._retire(self._active)
        while tasks := [*self._closing, *self._trials, *self._healing, *self._reloads]:
            await asyncio.wait(tasks)

    @property
    def active(self) -> ServedModel:
        """The model that answers."""
        return self._active.model

    @property
    def candidate(self) -> ServedModel | None:
        """The model on trial."""
        return self._candidate.model if self._candidate else None

    def lease(self, text: object) -> Lease:
        """Return the use of the model that is to answer a request which begins with `text`; enter it at once.

        A text always falls into the share of a trial, or never.
        """
        if self.trial is None or self._candidate is None:
            return Lease(self, self._active, None)
        if crc32(repr(text).encode()) % 10_000 >= self.trial.share * 10_000:
            return Lease(self, self._active, None)
        if self.trial.answers:
            return Lease(self, self._candidate, self._active)
        return Lease(self, self._active, self._candidate)

    def lease_of(self, name: str, version: str) -> Lease | None:
        """Return the use of that very model, if it is served; no trial takes part."""
        for slot in (self._active, self._candidate):
            if slot is not None and (slot.model.manifest.name, slot.model.manifest.version) == (name, version):
                return Lease(self, slot, None)
        return None

    async def swap(self, directory: Path, *, even_if_same: bool = False, patiently: bool = False) -> ServedModel:
        """Let the bundle in `directory` answer from now on, and the old model finish what it began.

        The bundle is loaded beside the old one, proven and warm before it gets a request; a candidate is not loaded
        again. A bundle that is served already stays as it is, unless `even_if_same`. `patiently` waits for another
        change to end.

        Raises:
            ChangeUnderWay: another change is under way.
            StartupError: the bundle cannot be served; the old one goes on.
        """
        async with self._change(patiently=patiently):
            if not even_if_same and fingerprint_of(directory) == self.active.fingerprint:
                return self.active
            if self._candidate is not None and fingerprint_of(directory) == self._candidate.model.fingerprint:
                slot, self._candidate, self.trial = self._candidate, None, None
            else:
                slot = await self._open(directory)
            old, self._active = self._active, slot
            self._retire(old)
            self._activated(slot.model)
            self._tell("swapped", model=slot.model.name, instead_of=old.model.name)
            return slot.model

    async def try_candidate(self, directory: Path, *, share: float, answers: bool) -> ServedModel:
        """Load the bundle in `directory` beside the active one, and give it `share` of the requests.

        Raises:
            ChangeUnderWay: another change is under way.
            StartupError: the bundle cannot be served.
        """
        async with self._change():
            self._drop_candidate()
            self._candidate = await self._open(directory)
            self.trial = Trial(share, answers)
            self._tell("trial", model=self._candidate.model.name, share=share, answers=answers)
            return self._candidate.model

    def end_trial(self) -> None:
        """Drop the candidate, if there is one."""
        if self._candidate is not None:
            self._tell("trial ended", model=self._candidate.model.name)
        self._drop_candidate()

    def reload(self) -> None:
        """Serve what stands in the first bundle's directory now, which may be a link. Returns at once."""
        if not self._ending:
            self._run(self._reload(), self._reloads)

    async def _reload(self) -> None:
        try:
            model = await self.swap(self._first, patiently=True)
        except (StartupError, ServiceError) as error:
            _log.warning("model not reloaded", reason=str(error))
        else:
            _log.info("model reloaded", model=model.name)

    def doubt(self) -> None:
        """Look after the active model, which failed: load it anew if it does not recover. Returns at once."""
        if not self._healing and not self._ending:
            self._run(self._heal(), self._healing)

    def compare(
        self,
        texts: Sequence[object],
        outcomes: Sequence[Classified | ServiceError],
        answered: ServedModel,
        other: _Slot,
    ) -> None:
        """Score up to 32 of `texts` with the other model, too, and take note of where they differ. Returns at once."""
        trial = self.trial
        if trial is None or len(self._trials) >= _MOST_TRIALS or other.retired:
            return
        scored = [
            (text, outcome.sentiment.label)
            for text, outcome in zip(texts, outcomes, strict=True)
            if isinstance(outcome, Classified)
        ][:_TRIAL_TEXTS]
        if answered is not self.active:
            trial.failed += sum(isinstance(outcome, ModelFailure) for outcome in outcomes)
            self._judge()
        if scored:
            self._run(self._compare(trial, scored, other), self._trials)

    async def _compare(self, trial: Trial, scored: Sequence[tuple[object, str]], other: _Slot) -> None:
        with Lease(self, other, None) as lease:
            try:
                outcomes = await lease.model.classifier.classify_many(
                    [text for text, _ in scored], timeout_s=_TRIAL_TIMEOUT_S
                )
            except Unavailable:
                return  # says nothing about the model
        for (_, label), outcome in zip(scored, outcomes, strict=True):
            if isinstance(outcome, Classified):
                trial.same += outcome.sentiment.label == label
                trial.flipped += outcome.sentiment.label != label
            elif other is self._candidate:
                trial.failed += 1
        self._judge()

    def _judge(self) -> None:
        """Drop the candidate if its record says so."""
        if self.trial is None or self._candidate is None:
            return
        price, usual = (model.cost.predict_s(_TYPICAL_TOKENS) for model in (self._candidate.model, self.active))
        reason = self.trial.verdict(self._policy, price / usual if usual else 1.0)
        if reason is not None:
            self._tell("rolled back", model=self._candidate.model.name, reason=reason)
            self._drop_candidate()

    async def _heal(self) -> None:
        for delay_s in chain(_RETRIES_S, repeat(_RETRIES_S[-1])):
            await asyncio.sleep(delay_s)
            if await self.active.reason_not_ready() is None:
                return
            try:
                await self.swap(self.active.directory, even_if_same=True)
            except (StartupError, ServiceError) as error:
                self._tell("reload failed", reason=str(error))

    @asynccontextmanager
    async def _change(self, *, patiently: bool = False) -> AsyncIterator[None]:
        if self._ending or (self._changing.locked() and not patiently):
            raise ChangeUnderWay(
                "another change of models is under way" if not self._ending else "the service is stopping"
            )
        async with self._changing:
            try:
                yield
            except StartupError as error:
                self._tell("refused", reason=str(error))
                raise

    async def _open(self, directory: Path) -> _Slot:
        async with AsyncExitStack() as stack:
            model = await stack.enter_async_context(self._open_model(directory))
            return _Slot(model, stack.pop_all())
        raise AssertionError  # a stack swallows nothing

    def _drop_candidate(self) -> None:
        slot, self._candidate, self.trial = self._candidate, None, None
        if slot is not None:
            self._retire(slot)

    def _retire(self, slot: _Slot) -> None:
        """Close a model when its last user has left."""
        slot.retired = True
        if not slot.users:
            slot.unused.set()

        async def close() -> None:
            await slot.unused.wait()
            await slot.closing.aclose()

        self._run(close(), self._closing)

    def _run(self, work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _tell(self, event: str, **details: object) -> None:
        _log.info(f"model {event}", **details)
        self._observe(event.replace(" ", "_"))
