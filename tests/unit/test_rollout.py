"""Models that come and go while texts are classified."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import numpy as np
import pytest
from numpy.typing import NDArray

from app.domain.errors import ChangeUnderWay, ModelFailure, ServiceError, StartupError
from app.inference.batcher import BatchPolicy
from app.inference.classifier import Classified
from app.inference.engine import Model
from app.inference.served import ServedModel
from app.rollout import Rollout, TrialPolicy
from tests.served_model import serving_model
from tests.tiny_bundle import TinyModel, write_tiny_bundle

pytestmark = pytest.mark.anyio

_POLICY = BatchPolicy(max_items=8, max_tokens=64, max_waiting_items=64, max_waiting_tokens=512)
_TRIAL = TrialPolicy(min_comparisons=10, max_flip_rate=0.2, max_error_rate=0.2, max_slowdown=1e9)
_TEXTS = [f"{'好' if number % 2 else '差'}{'店' * number}" for number in range(1, 13)]


class _Held(TinyModel):
    """Answers when its gate is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        assert self.gate.wait(30)
        return super().run(input_ids, attention_mask)


class _Contrary(TinyModel):
    """Calls good what is bad."""

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        return -super().run(input_ids, attention_mask)


class _Broken(TinyModel):
    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        return super().run(input_ids, attention_mask) * np.float32("nan")


class House:
    """Opens bundles by directory, with a model for each that is not the plain one, and keeps count."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.models: dict[str, Model] = {}
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.events: list[str] = []
        self.rollout = Rollout(self.open, self.bundle("1.0.0"), policy=_TRIAL, observe=self.observe)
        self.told = asyncio.Event()

    def bundle(self, version: str) -> Path:
        return write_tiny_bundle(self.root / version, version=version)

    def observe(self, event: str) -> None:
        self.events.append(event)
        self.told.set()

    @asynccontextmanager
    async def open(self, directory: Path) -> AsyncIterator[ServedModel]:
        model = self.models.get(directory.name, TinyModel())
        async with serving_model(directory, model, _POLICY, lambda _: None) as served:
            await asyncio.sleep(0)
            if directory.name == "refused":
                raise StartupError("not as recorded")
            self.opened.append(directory.name)
            yield served
        self.closed.append(directory.name)

    async def ask(self, text: str) -> tuple[str, str]:
        """Return the version that answered, and the label."""
        with self.rollout.lease(text) as lease:
            outcome: Classified | ServiceError
            try:
                outcome = await lease.model.classifier.classify(text, timeout_s=30)
            except ServiceError as error:
                outcome = error
            lease.answered([text], [outcome])
        label = outcome.sentiment.label if isinstance(outcome, Classified) else "none"
        return lease.model.manifest.version, label

    async def hear_of(self, event: str) -> None:
        with anyio.fail_after(30):
            while event not in self.events:
                self.told.clear()
                await self.told.wait()


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


async def test_after_a_swap_the_new_model_answers_and_the_old_one_is_closed(house: House) -> None:
    async with house.rollout as rollout:
        assert await house.ask("好") == ("1.0.0", "positive")
        house.models["2.0.0"] = _Contrary()
        assert (await rollout.swap(house.bundle("2.0.0"))).name == "tiny/2.0.0"
        assert await house.ask("好") == ("2.0.0", "negative")
        assert house.closed == ["1.0.0"]
        assert house.events == ["swapped"]
    assert house.closed == ["1.0.0", "2.0.0"]


async def test_what_the_old_model_began_it_finishes(house: House) -> None:
    held = house.models["1.0.0"] = _Held()
    async with house.rollout as rollout:
        with rollout.lease("好") as lease:  # has a model, and has not asked it yet
            asked = asyncio.create_task(house.ask("差"))
            await asyncio.sleep(0)
            await rollout.swap(house.bundle("2.0.0"))
            assert await house.ask("好") == ("2.0.0", "positive")
            held.gate.set()
            assert await asked == ("1.0.0", "negative")
            answer = await lease.model.classifier.classify("好", timeout_s=30)
            assert answer.sentiment.label == "positive"
            assert house.closed == []
        await rollout.swap(house.bundle("3.0.0"))
    assert sorted(house.closed) == ["1.0.0", "2.0.0", "3.0.0"]


async def test_a_bundle_that_cannot_be_served_changes_nothing(house: House) -> None:
    async with house.rollout as rollout:
        for directory in (house.bundle("refused"), house.root / "absent"):
            with pytest.raises(StartupError):
                await rollout.swap(directory)
        assert await house.ask("好") == ("1.0.0", "positive")
        assert house.events == ["refused", "refused"]
        await rollout.swap(house.bundle("2.0.0"))
        assert await house.ask("好") == ("2.0.0", "positive")


async def test_the_bundle_that_is_served_already_is_not_loaded_again(house: House) -> None:
    async with house.rollout as rollout:
        await rollout.swap(rollout.active.directory)
        assert house.opened == ["1.0.0"]
        assert house.events == []


async def test_of_two_changes_at_once_the_later_is_refused(house: House) -> None:
    async with house.rollout as rollout:
        first, second = await asyncio.gather(
            rollout.swap(house.bundle("2.0.0")), rollout.swap(house.bundle("3.0.0")), return_exceptions=True
        )
        assert isinstance(first, ServedModel)
        assert isinstance(second, ChangeUnderWay)
        assert (await house.ask("好"))[0] == "2.0.0"


async def test_a_reload_waits_for_the_change_under_way_and_serves_what_stands_there_then(house: House) -> None:
    link = house.root / "current"
    link.symlink_to(house.bundle("1.0.0"))
    rollout = Rollout(house.open, link)
    async with rollout:
        first = asyncio.create_task(rollout.swap(house.bundle("2.0.0")))
        await asyncio.sleep(0)
        link.unlink()
        link.symlink_to(house.bundle("3.0.0"))
        rollout.reload()
        await first
        with anyio.fail_after(30):
            while rollout.active.manifest.version != "3.0.0":  # noqa: ASYNC110 (the log tells, and nobody else)
                await asyncio.sleep(0.01)


async def test_swaps_under_load_lose_no_answer(house: House) -> None:
    async def keep_asking() -> int:
        answered = 0
        while not done.is_set():
            assert (await house.ask(_TEXTS[answered % 12]))[1] == ("positive" if answered % 12 % 2 == 0 else "negative")
            answered += 1
        return answered

    done = asyncio.Event()
    async with house.rollout as rollout:
        callers = [asyncio.create_task(keep_asking()) for _ in range(4)]
        for number in range(2, 12):
            await rollout.swap(house.bundle(f"{number}.0.0"))
            await asyncio.sleep(0.01)
        done.set()
        assert min(await asyncio.gather(*callers)) > 10
    assert sorted(house.closed) == sorted(house.opened)
    assert len(house.opened) == 11


async def test_in_a_shadow_trial_clients_get_the_active_answers_and_both_are_compared(house: House) -> None:
    async with house.rollout as rollout:
        await rollout.try_candidate(house.bundle("2.0.0"), share=1.0, answers=False)
        assert {(await house.ask(text))[0] for text in _TEXTS} == {"1.0.0"}
        assert rollout.trial is not None
        with anyio.fail_after(30):
            while rollout.trial.comparisons < len(_TEXTS):  # noqa: ASYNC110 (nobody is told of a comparison)
                await asyncio.sleep(0.01)
        assert (rollout.trial.same, rollout.trial.flipped, rollout.trial.failed) == (12, 0, 0)


async def test_in_a_canary_trial_the_candidate_answers_its_share_and_always_the_same_texts(house: House) -> None:
    async with house.rollout as rollout:
        await rollout.try_candidate(house.bundle("2.0.0"), share=0.5, answers=True)
        first = [(await house.ask(text))[0] for text in _TEXTS]
        assert set(first) == {"1.0.0", "2.0.0"}
        assert [(await house.ask(text))[0] for text in _TEXTS] == first


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("model", [_Contrary(), _Broken()])
async def test_a_candidate_that_differs_or_fails_too_often_is_rolled_back(
    house: House, model: Model, *, answers: bool
) -> None:
    house.models["2.0.0"] = model
    async with house.rollout as rollout:
        await rollout.try_candidate(house.bundle("2.0.0"), share=1.0, answers=answers)
        for text in _TEXTS:
            await house.ask(text)
        await house.hear_of("rolled_back")
        assert (rollout.candidate, rollout.trial) == (None, None)
        assert await house.ask("好") == ("1.0.0", "positive")


async def test_a_candidate_that_proved_itself_is_activated_without_loading_it_again(house: House) -> None:
    async with house.rollout as rollout:
        await rollout.try_candidate(house.bundle("2.0.0"), share=0.5, answers=True)
        await rollout.swap(house.bundle("2.0.0"))
        assert (rollout.active.manifest.version, rollout.candidate) == ("2.0.0", None)
        assert house.opened == ["1.0.0", "2.0.0"]


async def test_a_model_that_fails_and_does_not_recover_is_loaded_anew(house: House) -> None:
    house.models["1.0.0"] = _Broken()
    async with house.rollout as rollout:
        assert (await house.ask("好"))[1] == "none"
        del house.models["1.0.0"]  # loaded again, it is sound
        rollout.doubt()
        rollout.doubt()
        await house.hear_of("swapped")
        assert await house.ask("好") == ("1.0.0", "positive")
        assert house.opened == ["1.0.0", "1.0.0"]


async def test_a_model_that_recovered_is_kept(house: House) -> None:
    async with house.rollout as rollout:
        rollout.doubt()
        await asyncio.sleep(0.05)
        assert house.opened == ["1.0.0"]
        with pytest.raises(ModelFailure):
            await rollout.active.classifier.classify("毒", timeout_s=30)
