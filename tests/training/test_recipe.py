import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.training.data import Source, read_examples
from app.training.recipe import BadRecipe, FineTuning, Recipe, read_recipe

_ROOT = Path(__file__).parents[2]
_SHIPPED = sorted((_ROOT / "models").glob("*/*.toml"))
_MINIMAL: dict[str, Any] = {
    "name": "tiny",
    "version": "0.0.1",
    "golden": ["好", "差", "行", "嗯"],
    "data": {"train": [{"file": "a.jsonl", "dev_share": 0.1}]},
}


def test_what_a_recipe_leaves_out_has_a_default() -> None:
    recipe = Recipe.model_validate(_MINIMAL)
    assert recipe.heads.columns == ("negative", "neutral", "positive")
    assert recipe.data.train == (Source("a.jsonl", dev_share=0.1),)
    assert recipe.adaptation is None
    assert recipe.fine_tuning == FineTuning()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": "Tiny Model"}, "name"),
        ({"version": "1.0"}, "version"),
        ({"labels": ["good"]}, "labels"),
        ({"golden": ["好"]}, "golden"),
        ({"licence": "MIT"}, "licence"),
        ({"data": {"train": []}}, "data.train"),
        ({"data": {"train": [{"file": "a.jsonl"}]}}, "name dev files, or a dev_share of a training file"),
        ({"data": {"train": [{"file": "a.jsonl", "dev_share": 1.0}]}}, "dev_share"),
        ({"data": {"train": [{"file": "a.jsonl", "repeat": 0}]}}, "repeat"),
        ({"data": {"train": [{"file": "a.jsonl", "dev_share": 0.1, "lable": "neutral"}]}}, "lable"),
        ({"data": _MINIMAL["data"] | {"near_duplicates": 0}}, "near_duplicates"),
        ({"data": _MINIMAL["data"] | {"augment": 1.5}}, "augment"),
        ({"tokens": {"max_tokens": 1024}}, "max_tokens"),
        ({"adaptation": {"masked_share": 1.0}}, "masked_share"),
        ({"fine_tuning": {"epochs": 0}}, "epochs"),
        ({"fine_tuning": {"precision": "int8"}}, "precision"),
        ({"fine_tuning": {"layer_decay": 1.1}}, "layer_decay"),
        ({"fine_tuning": {"distillation": {"teachers": []}}}, "teachers"),
        ({"start": "other.toml", "adaptation": {}}, "adapt in its recipe"),
        ({"fine_tuning": {"soup": ["other.toml"]}}, "have one start"),
        ({"fine_tuning": {"peft": {"method": "prefix"}}}, "peft.method"),
        ({"fine_tuning": {"peft": {"method": "adalora", "rank": 1}}}, "adalora halves the rank"),
        ({"fine_tuning": {"fgm": 1.0, "peft": {}}}, "fgm moves the word embeddings"),
        ({"fine_tuning": {"fgm": 1.0, "trainable_layers": 2}}, "fgm moves the word embeddings"),
        ({"fine_tuning": {"peft": {}, "trainable_layers": 2}}, "leave trainable_layers out"),
        ({"fine_tuning": {"r_drop": 1.0, "classifier_dropout": 0}}, "r_drop compares two dropouts"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(complaint)):
        Recipe.model_validate(_MINIMAL | change)


@pytest.mark.parametrize(("content", "complaint"), [("name =", "Invalid value"), ('name = "tiny"', "version")])
def test_a_bad_recipe_is_told_with_its_file(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "recipe.toml").write_text(content, encoding="utf-8")
    with pytest.raises(BadRecipe, match=rf"recipe\.toml: [\s\S]*{complaint}"):
        read_recipe(tmp_path / "recipe.toml")


@pytest.mark.parametrize("file", _SHIPPED, ids=lambda file: file.stem)
def test_the_shipped_recipes_can_be_followed(file: Path) -> None:
    recipe = read_recipe(file)
    for source in (source for source in recipe.data.train if source.file.startswith("written/")):
        assert read_examples(file.parent / source.file, source, labels=recipe.labels, emotions=recipe.emotions)
    for teacher in recipe.fine_tuning.distillation.teachers if recipe.fine_tuning.distillation else ():
        assert read_recipe(file.parent / teacher).labels == recipe.labels
    if recipe.start is not None:
        assert read_recipe(file.parent / recipe.start).heads == recipe.heads
    for part in recipe.fine_tuning.soup:
        assert read_recipe(file.parent / part).start == recipe.start
