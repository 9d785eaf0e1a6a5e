"""Recipe to served bundle, for real: a small BERT is trained, exported, evaluated and served."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from app.domain.labels import LABELS
from app.inference.bundle import open_bundle
from app.inference.engine import Engine
from app.inference.session import open_model
from app.inference.tokenizer import Tokenizer
from app.training.evaluate import evaluate_bundle
from app.training.export import ExportRefused, export_bundle
from app.training.pipeline import train_recipe
from app.training.recipe import Recipe


@pytest.fixture(scope="module")
def recipe_file(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe as a user writes it."""
    file = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    file.write_text(
        f"""
        name = "{recipe.name}"
        version = "{recipe.version}"
        golden = {json.dumps(recipe.golden, ensure_ascii=False)}
        [data]
        train = [{{ file = "train.jsonl" }}]
        dev = [{{ file = "dev.jsonl" }}]
        [tokens]
        max_tokens = {recipe.tokens.max_tokens}
        head_tokens = {recipe.tokens.head_tokens}
        [fine_tuning]
        epochs = {recipe.fine_tuning.epochs}
        learning_rate = {recipe.fine_tuning.learning_rate}
        batch_size = {recipe.fine_tuning.batch_size}
        """,
        encoding="utf-8",
    )
    return file


@pytest.fixture(scope="module")
def trained(base: Path, data: Path, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fine-tuned model's directory."""
    output = tmp_path_factory.mktemp("run")
    train_recipe(recipe_file, data, output, base=base, resume=False)
    return output


@pytest.fixture(scope="module")
def bundle(trained: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported bundle's directory."""
    return export_bundle(trained, recipe, tmp_path_factory.mktemp("models"))


def test_fine_tuning_learns_what_the_words_say(bundle: Path, data: Path) -> None:
    figures = evaluate_bundle(bundle, [data / "test.jsonl"])
    assert figures.files["test"].accuracy > 0.9
    assert figures.alone_flips == 0


def test_training_goes_on_from_its_newest_checkpoint(
    trained: Path, base: Path, data: Path, recipe_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "interrupted"
    shutil.copytree(trained, output)
    (output / "model.safetensors").unlink()
    *_, older, newest = sorted((output / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    shutil.rmtree(newest)
    train_recipe(recipe_file, data, output, base=base, resume=True)
    assert newest.is_dir()
    assert older.is_dir()
    whole, resumed = (BertForSequenceClassification.from_pretrained(place).state_dict() for place in (trained, output))
    assert all(torch.allclose(whole[name], resumed[name], atol=1e-3) for name in whole)


def test_weights_survive_half_precision_storage_unchanged(trained: Path) -> None:
    model = BertForSequenceClassification.from_pretrained(trained)
    assert all(torch.equal(parameter, parameter.half().float()) for parameter in model.parameters())


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("auto", 1e-2)])
def test_torch_and_onnx_give_the_same_probabilities(
    trained: Path, bundle: Path, precision: str, tolerance: float
) -> None:
    opened = open_bundle(bundle)
    tokenizer = Tokenizer(opened.tokenizer_file, max_tokens=16, head_tokens=8)
    tokens = [text.ids for text in tokenizer.encode(["好", "请问几点", "太差了太差了后悔", "推荐" * 20, "abc"])]
    model = BertForSequenceClassification.from_pretrained(trained, attn_implementation="eager").eval()
    with torch.inference_mode():
        expected = [model(input_ids=torch.tensor([ids])).logits[0].softmax(dim=0).tolist() for ids in tokens]
    provider = "cpu" if precision == "fp32" else "auto"
    served = open_model(opened.model_file, provider=provider, precision=precision, threads=1)  # type: ignore[arg-type]
    found = Engine(served, pad_id=1, labels=3, longest=16).run_now(tokens)
    assert np.abs(np.array(found) - np.array(expected)).max() <= tolerance


def test_a_bundle_says_where_it_comes_from(bundle: Path, recipe: Recipe) -> None:
    manifest = open_bundle(bundle).manifest
    assert (manifest.name, manifest.version, manifest.labels) == (recipe.name, recipe.version, LABELS)
    assert {"torch", "onnx", "onnxruntime"} <= manifest.tools.keys()


def test_a_model_with_other_labels_is_not_exported(trained: Path, recipe: Recipe, tmp_path: Path) -> None:
    model = BertForSequenceClassification.from_pretrained(trained)
    model.config.id2label = {0: "bad", 1: "so-so", 2: "good"}
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(ExportRefused, match="so-so"):
        export_bundle(tmp_path / "other", recipe, tmp_path)
