"""A bundle with a second model in half precision: it is what its name says, and answers as the first does."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from app.inference.bundle import GOLDEN, HALF, MANIFEST, MODEL, open_bundle, record_file
from app.inference.engine import Engine
from app.inference.session import BoundModel, Placement, open_model
from app.inference.tokenizer import Tokenizer
from app.training.half import FusionFailed, HalfRefused, add_half
from tests.live.served import run_command
from tests.providers import cpu_session
from tests.tiny_bundle import write_tiny_bundle
from tests.training.reviews import reviews


@pytest.fixture(scope="module")
def both(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("half") / "bundle"
    shutil.copytree(bundle, directory)
    assert add_half(directory) == directory / HALF
    return directory


def test_a_bundle_with_both_models_is_a_bundle(bundle: Path, both: Path) -> None:
    before, after = open_bundle(bundle), open_bundle(both)
    assert before.half_file is None
    assert after.half_file == both / HALF
    assert after.model_file.read_bytes() == before.model_file.read_bytes()
    assert after.fingerprint != before.fingerprint  # its answers are others, and remembered apart
    assert sorted(path.name for path in both.iterdir()) == sorted([*(path.name for path in bundle.iterdir()), HALF])


def test_it_computes_in_half_precision_in_fused_operators(both: Path) -> None:
    graph = onnx.load(both / HALF).graph
    assert {each.data_type for each in graph.initializer if len(each.dims) == 2} == {TensorProto.FLOAT16}
    operators = [node.op_type for node in graph.node]
    assert operators.count("Attention") == 2
    assert "Softmax" not in operators
    assert graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_it_answers_as_the_first_does(both: Path) -> None:
    opened = open_bundle(both)
    manifest = opened.manifest
    tokenizer = Tokenizer(opened.tokenizer_file, max_tokens=manifest.max_tokens, head_tokens=manifest.head_tokens)
    tokens = [text.ids for text in tokenizer.encode([each.text for each in reviews("test")[::9]])]
    models = (
        open_model(opened.model_file, provider="cpu", threads=1),
        BoundModel(cpu_session(both / HALF), Placement("cpu", "fp16", 1, 1), device="cpu", rows=64),
    )
    full, half = (
        np.array(Engine(model, pad_id=manifest.pad_id, heads=manifest.heads.sizes, longest=16).run_now(tokens))
        for model in models
    )
    assert 0 < np.abs(full - half).max() < 0.01


def test_a_model_that_answers_otherwise_is_not_added(bundle: Path, tmp_path: Path) -> None:
    directory = tmp_path / "bundle"
    shutil.copytree(bundle, directory)
    golden = json.loads((directory / GOLDEN).read_text(encoding="utf-8"))
    golden[0]["probabilities"] = dict.fromkeys(golden[0]["probabilities"], 0.5)
    (directory / GOLDEN).write_text(json.dumps(golden), encoding="utf-8")
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][GOLDEN] = record_file(directory / GOLDEN).model_dump()
    (directory / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(HalfRefused, match=r"a probability is off by 0\.\d+, 0\.01 is allowed"):
        add_half(directory)
    assert open_bundle(directory).half_file is None
    assert not (directory / HALF).exists()


def test_a_model_that_is_no_transformer_is_refused(tmp_path: Path) -> None:
    before = sorted(path.name for path in write_tiny_bundle(tmp_path).iterdir())
    with pytest.raises(FusionFailed, match="expected at least"):
        add_half(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    done = run_command("bundle", "half", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("error: the optimizer fused")
    assert (tmp_path / MODEL).exists()
