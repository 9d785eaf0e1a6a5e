"""A fine-tuned model becomes a bundle: exported to ONNX, stored in half precision, checked against torch, recorded."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from optimum.exporters.onnx import onnx_export_from_model
from optimum.exporters.onnx.model_configs import BertOnnxConfig
from transformers import BertForSequenceClassification

from app.domain.cleaning import CLEANING_VERSION, clean
from app.domain.errors import CannotProceed
from app.domain.labels import Heads
from app.inference.bundle import GOLDEN, MANIFEST, MODEL, TOKENIZER, Calibration, Manifest, record_file
from app.inference.engine import Engine
from app.inference.processor import usable_threads
from app.inference.session import open_model
from app.inference.tokenizer import TokenIds, Tokenizer
from app.training.finetune import CALIBRATION
from app.training.recipe import Recipe

PARITY = 1e-3  # largest difference of a probability between torch and the exported model, both in fp32
_TOOLS = ("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime", "tokenizers")
SMALL = 1024  # initialisers of fewer elements (norms, biases, shapes) stay as they are


class ExportRefused(CannotProceed):
    """The exported model does not answer as the trained one does."""


class _TwoInputs(BertOnnxConfig):  # type: ignore[misc]  # optimum is not typed
    """BERT without `token_type_ids`: a single text has type 0 throughout."""

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {name: axes for name, axes in super().inputs.items() if name != "token_type_ids"}


def export_bundle(model_directory: Path, recipe: Recipe, output: Path) -> Path:
    """Write the bundle `output`/NAME/VERSION and return its directory.

    What stood there is replaced once the new bundle is whole and proven. `model_directory` is what
    `BertForSequenceClassification.from_pretrained` takes, with a `tokenizer.json`.

    Raises:
        ExportRefused: the model's columns are not the recipe's, or ONNX differs from torch by more than `PARITY`.
    """
    model = BertForSequenceClassification.from_pretrained(model_directory, attn_implementation="eager").eval()
    columns = tuple(model.config.id2label[index] for index in range(model.config.num_labels))
    if columns != recipe.heads.columns:
        raise ExportRefused(f"the model answers {columns}, the recipe names {recipe.heads.columns}")
    final = output / recipe.name / recipe.version
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".export-") as scratch:
        directory = Path(scratch) / recipe.version
        directory.mkdir()
        _write_bundle(directory, model, model_directory, recipe)
        shutil.rmtree(final, ignore_errors=True)
        directory.rename(final)
    return final


def _write_bundle(directory: Path, model: BertForSequenceClassification, model_directory: Path, recipe: Recipe) -> None:
    shutil.copyfile(model_directory / "tokenizer.json", directory / TOKENIZER)
    _export_onnx(model, directory / MODEL)
    tokenizer = Tokenizer(
        directory / TOKENIZER, max_tokens=recipe.tokens.max_tokens, head_tokens=recipe.tokens.head_tokens
    )
    tokens = [text.ids for text in tokenizer.encode([clean(text) for text in recipe.golden])]
    pad_id = model.config.pad_token_id or 0
    heads = recipe.heads
    expected = _torch_probabilities(model, tokens, heads)
    difference = float(np.abs(expected - _onnx_probabilities(directory / MODEL, tokens, heads, pad_id)).max())
    if difference > PARITY:
        raise ExportRefused(f"probabilities of torch and ONNX differ by {difference:.5f}, at most {PARITY} is allowed")
    golden = [
        {
            "text": text,
            "probabilities": {label: round(float(p), 6) for label, p in zip(heads.columns, row, strict=True)},
        }
        for text, row in zip(recipe.golden, expected, strict=True)
    ]
    (directory / GOLDEN).write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    manifest = Manifest(
        name=recipe.name,
        version=recipe.version,
        labels=recipe.labels,
        emotions=recipe.emotions,
        calibration=_calibration(model_directory),
        max_tokens=recipe.tokens.max_tokens,
        head_tokens=recipe.tokens.head_tokens,
        pad_id=pad_id,
        cleaning_version=CLEANING_VERSION,
        files={name: record_file(directory / name) for name in (MODEL, TOKENIZER, GOLDEN)},
        provenance={**recipe.provenance, "parity": f"{difference:.1e}"},
        tools={tool: version(tool) for tool in _TOOLS},
    )
    (directory / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _export_onnx(model: BertForSequenceClassification, file: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        onnx_export_from_model(
            model,
            scratch,
            task="text-classification",
            custom_onnx_configs={"model": _TwoInputs(model.config, task="text-classification")},
            do_validation=False,  # done here, on real texts and against a tolerance of ours
        )
        graph = onnx.load(Path(scratch) / "model.onnx")
    _store_in_half(graph.graph)
    onnx.checker.check_model(graph)
    onnx.save(graph, file)


def _store_in_half(graph: Any) -> None:
    """Store large float32 weights as float16 with a Cast behind; ONNX Runtime folds the casts when it loads.

    Halves the file and changes no result where the weights were rounded to half precision after training.
    """
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < SMALL:
            continue
        name = tensor.name
        half = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _calibration(model_directory: Path) -> Calibration | None:
    file = model_directory / CALIBRATION
    return Calibration.model_validate_json(file.read_bytes()) if file.is_file() else None


def _torch_probabilities(
    model: BertForSequenceClassification, texts: Sequence[TokenIds], heads: Heads
) -> NDArray[np.float64]:
    with torch.inference_mode():
        rows = [model(input_ids=torch.tensor([ids])).logits[0].double() for ids in texts]
    return np.array([torch.cat([head.softmax(dim=0) for head in row.split(heads.sizes)]).numpy() for row in rows])


def _onnx_probabilities(file: Path, texts: Sequence[TokenIds], heads: Heads, pad_id: int) -> NDArray[np.float64]:
    model = open_model(file, provider="cpu", precision="fp32", threads=usable_threads())
    return np.array(Engine(model, pad_id=pad_id, heads=heads.sizes, longest=max(map(len, texts))).run_now(texts))
