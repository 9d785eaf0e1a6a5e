"""Adaptation to a domain, for real: pieces are masked and filled in."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import BertModel

from app.training.adaptation import adapt
from app.training.recipe import Adaptation
from tests.training.conftest import Tune
from tests.training.reviews import reviews

_TEXTS = [each.text for each in reviews()]
_SETTINGS = Adaptation(epochs=13, learning_rate=3e-3, batch_size=32, max_tokens=16, precision="fp32")


def _logged(directory: Path) -> list[float]:
    """Return the losses that the trainer logged every 50 steps."""
    newest = max((directory / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    history = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def adapted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The adapted encoder's directory, and the last loss."""
    output = tmp_path_factory.mktemp("adapted")
    return output, adapt(base, output, _TEXTS, settings=_SETTINGS, resume=False)


def test_masked_pieces_are_filled_in_better_and_better(base: Path, adapted: tuple[Path, float]) -> None:
    directory, last = adapted
    pieces = json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    assert len(_logged(directory)) == 3
    assert last == _logged(directory)[-1] < _logged(directory)[0] - 0.3
    assert last < math.log(pieces) - 1


def test_the_adapted_encoder_is_fine_tuned_as_any_other(tune: Tune, base: Path, adapted: tuple[Path, float]) -> None:
    directory, _ = adapted
    words, before = (BertModel.from_pretrained(place).get_input_embeddings().weight for place in (directory, base))
    assert words.shape == before.shape
    assert not torch.equal(words, before)
    tuned = tune(reviews() * 2, base=directory, trainable_layers=0)
    assert tuned.metrics["eval_accuracy"] > 0.9
    assert torch.equal(tuned.weights["bert.embeddings.word_embeddings.weight"], words.half().float())


def test_a_batch_in_which_nothing_is_masked_does_no_harm(base: Path, tmp_path: Path) -> None:
    settings = _SETTINGS.model_copy(update={"epochs": 1, "batch_size": 1, "masked_share": 0.05})
    adapt(base, tmp_path, ["好"] * 20, settings=settings, resume=False)
    assert all(values.isfinite().all() for values in BertModel.from_pretrained(tmp_path).state_dict().values())


def test_an_interrupted_adaptation_goes_on(base: Path, tmp_path: Path) -> None:
    adapt(base, tmp_path, _TEXTS, settings=_SETTINGS.model_copy(update={"epochs": 5}), resume=False)
    until_then = _logged(tmp_path)
    adapt(base, tmp_path, _TEXTS, settings=_SETTINGS.model_copy(update={"epochs": 9}), resume=True)
    assert _logged(tmp_path)[:1] == until_then
    assert len(_logged(tmp_path)) == 2
