"""Each option of fine-tuning does to the weights what it says."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoTokenizer, BertForSequenceClassification, BertModel

from app.domain.labels import LABELS, Heads
from app.training.data import Example
from app.training.finetune import CALIBRATION
from tests.training.conftest import Tune, Tuned
from tests.training.reviews import EMOTIONS, reviews

_REVIEWS = reviews()
_FEW = _REVIEWS[::6]
# Repeated where much is to be learnt: of several epochs that do equally well the first would be kept.
_MANY = _REVIEWS * 3
_HEADS = Heads(LABELS, EMOTIONS)


def _untrained(base: Path, *, labels: int = 3) -> BertForSequenceClassification:
    """Return the model as fine-tuning with seed 0 starts from it."""
    torch.manual_seed(0)
    model: BertForSequenceClassification = BertForSequenceClassification.from_pretrained(base, num_labels=labels)
    return model


def _moved(tuned: Tuned, base: Path) -> set[str]:
    """Return the names of the weights that are not what training with seed 0 starts from."""
    before = _untrained(base, labels=tuned.model.config.num_labels).state_dict()
    return {name for name, values in tuned.weights.items() if not torch.equal(values, before[name].half().float())}


def _probabilities(tuned: Tuned, text: str) -> list[float]:
    """Return the probabilities of polarity."""
    tokenizer = AutoTokenizer.from_pretrained(tuned.directory)
    with torch.inference_mode():
        logits = tuned.model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits
    found: list[float] = logits[0, :3].softmax(dim=0).tolist()
    return found


def _state(tuned: Tuned) -> dict[str, object]:
    """Return what the trainer knows at the newest checkpoint."""
    found: dict[str, object] = json.loads((tuned.checkpoints[-1] / "trainer_state.json").read_text(encoding="utf-8"))
    return found


def _labelled(text: str, **counts: int) -> list[Example]:
    """Return copies of `text` under these labels."""
    return [Example(text, label, "made") for label, count in counts.items() for _ in range(count)]


def test_both_heads_learn_what_the_words_say(tuned: Tuned) -> None:
    assert tuned.metrics["eval_macro_f1"] > 0.95
    assert tuned.metrics["eval_emotion_macro_f1"] > 0.8
    assert tuned.model.config.id2label == dict(enumerate(_HEADS.columns))


def test_the_temperature_of_each_head_is_part_of_the_classifier(tuned: Tuned) -> None:
    calibration = json.loads((tuned.directory / CALIBRATION).read_text(encoding="utf-8"))
    best = load_file(Path(str(_state(tuned)["best_model_checkpoint"])) / "model.safetensors")
    temperatures = calibration["temperatures"]
    by_column = torch.tensor([temperatures["polarity"]] * 3 + [temperatures["emotion"]] * 4)
    assert temperatures["polarity"] != 1
    assert torch.allclose(tuned.weights["classifier.weight"] * by_column[:, None], best["classifier.weight"], atol=1e-3)
    assert torch.allclose(tuned.weights["classifier.bias"] * by_column, best["classifier.bias"], atol=1e-3)
    assert calibration["certain_accuracy"] >= 0.98
    assert set(calibration["error_before"]) == set(calibration["error_after"]) == {"polarity", "emotion"}


def test_weights_survive_half_precision_storage_unchanged(tuned: Tuned) -> None:
    assert all(torch.equal(values, values.half().float()) for values in tuned.weights.values())


def test_the_seed_decides(tune: Tune) -> None:
    one, same, other = (tune(_FEW, seed=seed).weights["classifier.weight"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("layers", [0, 1])
def test_only_the_top_layers_and_the_heads_are_trained(tune: Tune, base: Path, layers: int) -> None:
    tuned = tune(_FEW, trainable_layers=layers)
    moved = _moved(tuned, base)
    heads = {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    top = {name for name in tuned.weights if layers and name.startswith("bert.encoder.layer.1.")}
    assert moved <= heads | top
    # a bias of all keys shifts every attention score alike: it has no gradient
    assert heads | top <= moved | {"bert.encoder.layer.1.attention.self.key.bias"}


def test_each_layer_has_the_rate_of_the_one_above_times_the_decay(tune: Tune) -> None:
    tuned = tune(_FEW, layer_decay=0.5, learning_rate=1e-3, weight_decay=0.1)
    optimiser = torch.load(tuned.checkpoints[-1] / "optimizer.pt", weights_only=True)
    found = Counter[tuple[float, float]]()
    for group in optimiser["param_groups"]:
        found[group["initial_lr"], group["weight_decay"]] += len(group["params"])
    assert found == {
        (0.25e-3, 0.1): 3,  # embeddings of words, positions and types
        (0.25e-3, 0.0): 2,  # their norm
        (0.5e-3, 0.1): 6,  # four matrices of attention, two of the feed-forward network
        (0.5e-3, 0.0): 10,
        (1e-3, 0.1): 8,  # beside those of the top layer, pooler and classifier
        (1e-3, 0.0): 12,
    }


def test_batches_add_up_to_one_update(tune: Tune) -> None:
    assert len(_FEW) == 63
    assert _state(tune(_FEW, batch_size=16))["global_step"] == 4
    assert _state(tune(_FEW, batch_size=16, gradient_accumulation=2))["global_step"] == 2


def test_training_stops_when_patience_is_at_its_end(tune: Tune) -> None:
    tuned = tune(_FEW, epochs=8, learning_rate=1e-9, patience=2)
    assert _state(tuned)["epoch"] == 3


# FGM and R-Drop


def test_fgm_adds_the_gradient_at_word_embeddings_moved_along_their_own(tune: Tune, base: Path) -> None:
    length = 2.0
    tuned = tune(_FEW, batch_size=len(_FEW), classifier_dropout=0, fgm=length)
    optimiser = torch.load(tuned.checkpoints[-1] / "optimizer.pt", weights_only=True)
    model = _untrained(base)
    words = model.bert.embeddings.word_embeddings.weight
    (found,) = (state["exp_avg"] for state in optimiser["state"].values() if state["exp_avg"].shape == words.shape)
    batch = AutoTokenizer.from_pretrained(base)([each.text for each in _FEW], return_tensors="pt", padding=True)
    labels = torch.tensor([LABELS.index(str(each.label)) for each in _FEW])

    def add_gradient() -> torch.Tensor:
        functional.cross_entropy(model(**batch).logits, labels).backward()
        assert words.grad is not None
        return words.grad.clone()

    alone = add_gradient()
    words.data += length * alone / alone.norm()
    both = add_gradient()
    assert torch.cosine_similarity(found.flatten(), both.flatten(), dim=0) > 0.9999
    assert torch.cosine_similarity(found.flatten(), alone.flatten(), dim=0) < 0.999


def test_fgm_puts_the_word_embeddings_back(tune: Tune, base: Path) -> None:
    tuned = tune(_FEW, fgm=10.0, learning_rate=1e-12)
    before = BertModel.from_pretrained(base).get_input_embeddings().weight
    assert torch.equal(tuned.weights["bert.embeddings.word_embeddings.weight"], before.half().float())


def test_fgm_learns(tune: Tune) -> None:
    assert tune(_MANY, fgm=0.5).metrics["eval_accuracy"] > 0.9


def test_r_drop_makes_two_dropouts_agree(tune: Tune) -> None:
    mixed = _labelled("好吃", positive=30, negative=10)

    def disagreement(weight: float) -> float:
        tuned = tune(mixed * 20, mixed, learning_rate=1e-2, classifier_dropout=0.5, r_drop=weight)
        texts = AutoTokenizer.from_pretrained(tuned.directory)(["好吃"] * 200, return_tensors="pt")
        torch.manual_seed(0)
        with torch.no_grad():
            shares = tuned.model.train()(texts["input_ids"], texts["attention_mask"]).logits.softmax(dim=1)
        assert shares.mean(dim=0).tolist() == pytest.approx([0.25, 0, 0.75], abs=0.05)
        return float(shares[:, 0].std())

    assert disagreement(10.0) < 0.7 * disagreement(0.0)


# Small added weights


@pytest.mark.parametrize("method", ["lora", "adalora", "ia3"])
def test_peft_trains_added_weights_and_leaves_a_plain_model(tune: Tune, base: Path, method: str) -> None:
    peft = {"method": method, "rank": 4, "alpha": 16}
    tuned = tune(_MANY, learning_rate=1e-2, peft=peft)
    assert tuned.metrics["eval_accuracy"] > 0.9
    assert load_file(tuned.directory / "model.safetensors").keys() == _untrained(base).state_dict().keys()
    attention = {"attention.self.query.weight", "attention.self.key.weight", "attention.self.value.weight"}
    added = {
        "lora": {*attention, "attention.output.dense.weight"},
        "adalora": {*attention, "attention.output.dense.weight"},
        "ia3": {*attention, "attention.self.key.bias", "attention.self.value.bias", "output.dense.weight"},
    }
    parts = {name.split(".", 4)[-1] for name in _moved(tuned, base) if ".encoder." in name}
    assert parts
    assert parts <= added[method]
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= _moved(tuned, base)
    assert not [name for name in _moved(tuned, base) if ".embeddings." in name]


def test_adalora_drops_half_of_its_ranks_and_they_stay_dropped_after_an_interruption(tune: Tune) -> None:
    peft = {"method": "adalora", "rank": 4, "alpha": 16}
    tuned = tune(_REVIEWS, epochs=6, learning_rate=1e-2, peft=peft)

    def dropped(checkpoint: Path) -> dict[str, list[bool]]:
        stored = load_file(checkpoint / "adapter_model.safetensors")
        return {name: (values == 0).flatten().tolist() for name, values in stored.items() if "lora_E" in name}

    last = dropped(tuned.checkpoints[-1])
    assert sum(map(sum, last.values())) == pytest.approx(2 * 4 * 4 / 2, abs=1)  # layers, matrices, ranks
    newest = tuned.checkpoints[-1]
    for file in sorted(newest.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    newest.rmdir()
    again = tune(_REVIEWS, into=tuned.directory, epochs=6, learning_rate=1e-2, peft=peft)
    assert again.checkpoints[-1] == newest
    assert dropped(newest) == last
    assert again.metrics["eval_accuracy"] > 0.9


# What is learnt from


def test_balanced_labels_count_alike_however_rare(tune: Tune) -> None:
    skewed = _labelled("好吃", positive=36, negative=4)
    train = [example for _ in range(20) for example in skewed]

    def share_of_negative(*, balanced: bool) -> float:
        tuned = tune(train, skewed, batch_size=40, learning_rate=1e-2, balanced_labels=balanced)
        negative, _, positive = _probabilities(tuned, "好吃")
        return negative / (negative + positive)

    assert share_of_negative(balanced=False) == pytest.approx(0.1, abs=0.05)
    assert share_of_negative(balanced=True) == pytest.approx(0.5, abs=0.1)


def test_smoothed_labels_leave_something_to_the_others(tune: Tune) -> None:
    dev = _labelled("好吃", positive=8, negative=1, neutral=1)
    tuned = tune(_labelled("好吃", positive=1600), dev, learning_rate=1e-2, label_smoothing=0.3, classifier_dropout=0)
    assert _probabilities(tuned, "好吃") == pytest.approx([0.1, 0.1, 0.8], abs=0.05)


@pytest.mark.parametrize("known", ["label", "emotion"])
def test_a_head_stays_as_it_is_where_no_text_is_labelled_for_it(tune: Tune, base: Path, known: str) -> None:
    train = [
        Example(each.text, each.label if known == "label" else None, "", each.emotion if known == "emotion" else None)
        for each in _FEW
    ]
    tuned = tune(train, heads=_HEADS, weight_decay=0, classifier_dropout=0)
    ratio = _untrained(base, labels=7).classifier.weight / tuned.weights["classifier.weight"]
    polarity, emotion = ratio[:3], ratio[3:]
    still, moved = (emotion, polarity) if known == "label" else (polarity, emotion)
    # all that happened to the one is its temperature
    assert torch.allclose(still, still.mean(), rtol=0.01)
    assert not torch.allclose(moved, moved.mean(), rtol=0.1)


def test_the_second_head_weighs_what_it_is_given(tune: Tune, base: Path) -> None:
    tuned = tune(_FEW, heads=_HEADS, weight_decay=0, classifier_dropout=0, emotion_weight=0)
    ratio = _untrained(base, labels=7).classifier.weight[3:] / tuned.weights["classifier.weight"][3:]
    assert torch.allclose(ratio, ratio.mean(), rtol=0.01)


# Teachers: a label of -1 is none, a teacher that has no say answers with what is not a number

_TEACHER = (0.1, 0.2, 0.7)


@pytest.mark.parametrize(
    ("label", "teacher", "weight", "learnt"),
    [
        (None, _TEACHER, 0.25, _TEACHER),
        ("negative", _TEACHER, 0.0, (1.0, 0.0, 0.0)),
        ("negative", _TEACHER, 0.5, (0.55, 0.1, 0.35)),
        ("negative", _TEACHER, 1.0, _TEACHER),
        ("negative", (math.nan,) * 3, 1.0, (1.0, 0.0, 0.0)),
    ],
)
def test_a_text_learns_its_label_and_its_teachers_answer_by_their_weight(
    tune: Tune, label: str | None, teacher: tuple[float, ...], weight: float, learnt: tuple[float, ...]
) -> None:
    train = [Example("几点", label, "made")] * 1600
    # dev texts that agree with what is to be learnt, so that the temperature stays near 1
    counts = {name: round(20 * share) for name, share in zip(LABELS, learnt, strict=True)}
    tuned = tune(
        train,
        _labelled("几点", **counts),
        soft=np.array([teacher] * len(train), np.float32),
        distillation={"teachers": ["teacher.toml"], "weight": weight},
        learning_rate=1e-2,
        classifier_dropout=0,
    )
    assert _probabilities(tuned, "几点") == pytest.approx(learnt, abs=0.03)
