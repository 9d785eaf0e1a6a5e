from pathlib import Path

import pytest

from app.training.baselines import (
    NGRAMS,
    SNOWNLP,
    accuracy_of_ngrams,
    accuracy_of_snownlp,
    add_baselines,
    train_ngrams,
)
from app.training.data import Example
from app.training.evaluate import evaluate_bundle
from tests.training.reviews import reviews, write_reviews

_TRAIN = reviews()


def _example(text: str, label: str | None) -> Example:
    return Example(text, label, "made")


def test_n_grams_learn_what_the_words_say() -> None:
    model = train_ngrams([*_TRAIN, _example("好吃", None)])
    assert accuracy_of_ngrams(model, [*reviews("test")[::5], _example("好吃", None)]) == 1
    assert accuracy_of_ngrams(model, [_example("好吃", "negative"), _example("好吃", "neutral")]) == 0


def test_n_grams_do_not_answer_neutral_where_no_text_is() -> None:
    model = train_ngrams(_TRAIN)
    asked = "请问几点营业好吃"
    assert model.predict([asked]) == ["neutral"]
    assert accuracy_of_ngrams(model, [_example(asked, "positive")]) == 1


def test_snownlp_is_asked_about_positive_and_negative_texts() -> None:
    texts = [_example("这家店很好吃，非常喜欢", "positive"), _example("质量太差了，要求退货", "negative")]
    assert accuracy_of_snownlp([*texts, _example("请问几点营业", "neutral")]) == 1
    assert accuracy_of_snownlp([texts[0], _example(texts[1].text, "positive")]) == 0.5
    assert accuracy_of_snownlp([_example("请问几点营业", "neutral")]) == 0


def test_an_evaluation_is_given_the_baselines_that_its_files_allow(bundle: Path, tmp_path: Path) -> None:
    write_reviews(tmp_path / "train.jsonl", _TRAIN)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        """
        name = "tiny"
        version = "0.0.1"
        emotions = ["angry", "sad", "calm", "happy"]
        golden = ["好", "差", "行", "嗯"]
        [data]
        train = [{ file = "train.jsonl", dev_share = 0.1 }]
        """,
        encoding="utf-8",
    )
    test = reviews("test")[::5]
    files = [
        write_reviews(tmp_path / "all.jsonl", test),
        write_reviews(tmp_path / "polar.jsonl", [each for each in test if each.label != "neutral"]),
    ]
    figures = add_baselines(evaluate_bundle(bundle, files), files, recipe_file=recipe, data=tmp_path).files
    assert figures["all"].baselines == {NGRAMS: 1.0}
    assert figures["polar"].baselines.keys() == {NGRAMS, SNOWNLP}
    assert figures["polar"].baselines[SNOWNLP] == pytest.approx(0.8, abs=0.2)
