"""A trained model and the bundle made of it are one model."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from app.inference.bundle import open_bundle
from app.inference.engine import Engine
from app.inference.session import open_model
from app.inference.tokenizer import Tokenizer
from app.training.export import ExportRefused, export_bundle
from app.training.recipe import Recipe
from tests.training.conftest import Tune, Tuned
from tests.training.reviews import reviews


@pytest.mark.parametrize(("provider", "precision", "tolerance"), [("cpu", "fp32", 1e-3), ("auto", "auto", 2e-2)])
def test_torch_and_onnx_give_the_same_probabilities(
    tuned: Tuned,
    bundle: Path,
    provider: Literal["cpu", "auto"],
    precision: Literal["fp32", "auto"],
    tolerance: float,
) -> None:
    opened = open_bundle(bundle)
    tokenizer = Tokenizer(opened.tokenizer_file, max_tokens=16, head_tokens=8)
    tokens = [text.ids for text in tokenizer.encode(["好", "请问几点", "太差了太差了后悔", "推荐" * 20, "abc"])]
    with torch.inference_mode():
        logits = [tuned.model(input_ids=torch.tensor([ids])).logits[0] for ids in tokens]
    expected = [[*row[:3].softmax(dim=0).tolist(), *row[3:].softmax(dim=0).tolist()] for row in logits]
    served = open_model(opened.model_file, provider=provider, precision=precision, threads=1)
    found = Engine(served, pad_id=1, heads=(3, 4), longest=16).run_now(tokens)
    assert np.abs(np.array(found) - np.array(expected)).max() <= tolerance


def test_a_bundle_says_where_it_comes_from(bundle: Path, recipe: Recipe) -> None:
    manifest = open_bundle(bundle).manifest
    assert (manifest.name, manifest.version, manifest.heads) == (recipe.name, recipe.version, recipe.heads)
    assert manifest.provenance["license"] == "MIT"
    assert {"torch", "onnx", "onnxruntime"} <= manifest.tools.keys()


@pytest.mark.parametrize("method", ["lora", "adalora", "ia3"])
def test_a_model_trained_by_peft_is_exported_as_any_other(
    tune: Tune, recipe: Recipe, tmp_path: Path, method: str
) -> None:
    tuned = tune(reviews()[::6], heads=recipe.heads, peft={"method": method, "rank": 4})
    assert open_bundle(export_bundle(tuned.directory, recipe, tmp_path)).manifest.emotions == recipe.emotions


def test_a_second_export_takes_the_place_of_the_first(tuned: Tuned, recipe: Recipe, tmp_path: Path) -> None:
    first = export_bundle(tuned.directory, recipe, tmp_path)
    (first / "notes.txt").touch()
    assert export_bundle(tuned.directory, recipe, tmp_path) == first
    assert not (first / "notes.txt").exists()
    assert [path.name for path in first.parent.iterdir()] == ["0.0.1"]


def test_a_model_with_other_labels_is_not_exported(tuned: Tuned, recipe: Recipe, tmp_path: Path) -> None:
    model = BertForSequenceClassification.from_pretrained(tuned.directory)
    model.config.id2label = model.config.id2label | {1: "so-so"}
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(ExportRefused, match="so-so"):
        export_bundle(tmp_path / "other", recipe, tmp_path)
    assert not (tmp_path / "tiny").exists()
