"""The model of a bundle in half precision: a second file in it, which CUDA runs in fp16. Needs no torch."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnxruntime.transformers.optimizer import optimize_model

from app.domain.cleaning import clean
from app.domain.errors import CannotProceed
from app.inference.bundle import HALF, MANIFEST, Bundle, open_bundle, record_file
from app.inference.engine import Engine
from app.inference.health import TOLERANCE
from app.inference.processor import usable_threads
from app.inference.session import open_model
from app.inference.tokenizer import Tokenizer


class FusionFailed(CannotProceed):
    """ONNX Runtime did not recognise the transformer."""


class HalfRefused(CannotProceed):
    """The model does not answer in half precision as it does in full."""


def add_half(directory: Path) -> Path:
    """Write the bundle's model in half precision into its `directory`, name it in the manifest, and return the file.

    It is checked on the golden texts by ONNX Runtime's CPU provider, which rounds to half precision between operators.

    Raises:
        StartupError: there is no usable bundle.
        FusionFailed: the model is no BERT that ONNX Runtime's optimizer knows.
        HalfRefused: an answer is not as recorded.
    """
    bundle = open_bundle(directory)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".half-") as scratch:
        file = Path(scratch) / HALF
        fused = fuse(bundle.model_file, Path(scratch))
        fused.convert_float_to_float16(keep_io_types=True)
        fused.save_model_to_file(str(file))
        if (difference := _difference(bundle, file)) > TOLERANCE:
            raise HalfRefused(f"in half precision a probability is off by {difference:.3f}, {TOLERANCE:g} is allowed")
        file.replace(directory / HALF)
    files = {**bundle.manifest.files, HALF: record_file(directory / HALF)}
    manifest = bundle.manifest.model_copy(update={"files": files})
    (directory / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return directory / HALF


def fuse(source: Path, scratch: Path) -> Any:
    """Return the model in `source` after ONNX Runtime's optimizer for BERT, as an object of that library.

    Raises:
        FusionFailed: it did not find each layer.
    """
    plain = scratch / "plain.onnx"
    write_float32(source, plain)
    layers = sum(node.op_type == "Softmax" for node in onnx.load(plain).graph.node)
    optimized = optimize_model(str(plain), model_type="bert", num_heads=0, hidden_size=0, opt_level=0)
    plain.unlink()
    found = optimized.get_fused_operator_statistics()
    wanted = {"Attention": layers, "BiasGelu": layers, "SkipLayerNormalization": 2 * layers}
    if not layers or any(found.get(name, 0) < count for name, count in wanted.items()):
        raise FusionFailed(f"the optimizer fused {found}, expected at least {wanted}")
    return optimized


def write_float32(source: Path, target: Path) -> None:
    """Fold the casts behind weights stored in half precision: `target` has them in float32."""
    model = onnx.load(source)
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        tensor = stored.get(node.input[0]) if node.op_type == "Cast" else None
        if tensor is not None and tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), node.output[0]))
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    onnx.save(model, target)


def _difference(bundle: Bundle, file: Path) -> float:
    """Return by how much a probability of the golden texts differs at most from the recorded one."""
    manifest = bundle.manifest
    tokenizer = Tokenizer(bundle.tokenizer_file, max_tokens=manifest.max_tokens, head_tokens=manifest.head_tokens)
    tokens = [text.ids for text in tokenizer.encode([clean(row.text) for row in bundle.golden])]
    model = open_model(file, provider="cpu", threads=usable_threads())
    engine = Engine(model, pad_id=manifest.pad_id, heads=manifest.heads.sizes, longest=manifest.max_tokens)
    recorded = [[row.probabilities[column] for column in manifest.heads.columns] for row in bundle.golden]
    return float(np.abs(np.array(engine.run_now(tokens)) - np.array(recorded)).max())
