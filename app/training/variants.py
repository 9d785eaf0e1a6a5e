"""Other forms of a bundle's model, measured against it: what each gains in size and speed and costs in answers.

A bundle stores weights in float16 and leaves fusion and arithmetic to the execution provider. The variants are the
alternatives: float32, ONNX Runtime's transformer fusion, and 8-bit integers for the weights or for activations too.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from pydantic import BaseModel

from app.domain.errors import ModelFailure, StartupError
from app.domain.rows import BadRow
from app.inference.bundle import MANIFEST, MODEL, Bundle, open_bundle, record_file
from app.inference.session import Precision, Provider
from app.inference.tokenizer import TokenIds, Tokenizer
from app.training.data import Example
from app.training.export import SMALL
from app.training.half import FusionFailed, fuse, write_float32
from app.training.serving import open_served

_CALIBRATION_BATCH: Final = 16
_CALIBRATION_TEXTS: Final = 256
_ALONE: Final = 300
_PLACEMENTS: Final[tuple[tuple[Provider, Precision], ...]] = (
    ("openvino", "bf16"), ("openvino", "fp32"), ("cpu", "fp32"), ("cuda", "fp32"),
)  # fmt: skip


class VariantFigures(BaseModel):
    """One variant on one provider."""

    variant: str
    provider: str
    precision: str
    megabytes: float
    accuracy: float
    flips: int  # labels other than the bundle's own in full precision
    alone_flips: int  # labels of a text alone other than in a batch
    texts_per_s: float  # in sorted batches
    error: str | None = None  # why it does not run there


def measure_variants(directory: Path, examples: Sequence[Example], scratch: Path) -> list[VariantFigures]:
    """Write every variant of the bundle in `directory` to `scratch` and measure it on each provider of this machine.

    Raises:
        BadRow: `examples` has no text.
        StartupError: the bundle is not usable.
    """
    if not examples:
        raise BadRow("no text with a label to measure on")
    bundle = open_bundle(directory)
    manifest = bundle.manifest
    tokenizer = Tokenizer(bundle.tokenizer_file, max_tokens=manifest.max_tokens, head_tokens=manifest.head_tokens)
    ids = [text.ids for text in tokenizer.encode([example.text for example in examples])]
    expected = np.array([manifest.labels.index(example.label or "") for example in examples])
    reference = _answer(directory, "cpu", "fp32", ids).given
    figures = []
    for name, write in _VARIANTS.items():
        try:
            variant = _copy(bundle, scratch / name, lambda source, target: write(source, target, ids, manifest.pad_id))  # noqa: B023  # called at once
        except FusionFailed as error:
            figures.append(_unusable(name, "any", "any", 0, str(error)))
            continue
        size = round((variant / MODEL).stat().st_size / 1e6, 1)
        for provider, precision in _PLACEMENTS:
            try:
                found = _in_a_process_of_its_own(variant, provider, precision, ids)
            except (StartupError, ModelFailure, BrokenProcessPool) as error:
                if provider != "cuda":
                    reason = "its process crashed" if isinstance(error, BrokenProcessPool) else str(error)
                    figures.append(_unusable(name, provider, precision, size, " ".join(reason.split())))
                continue
            figures.append(
                VariantFigures(
                    variant=name, provider=provider, precision=precision, megabytes=size,
                    accuracy=round(float((found.given == expected).mean()), 5),
                    flips=int((found.given != reference).sum()),
                    alone_flips=int((found.alone != found.given[: len(found.alone)]).sum()),
                    texts_per_s=round(len(ids) / found.spent_s, 1),
                )
            )  # fmt: skip
    return figures


@dataclass(frozen=True)
class _Answers:
    """Indexes of labels: of all texts in batches, and of the first ones alone."""

    given: NDArray[np.int64]
    alone: NDArray[np.int64]
    spent_s: float  # on the batches


def _in_a_process_of_its_own(
    directory: Path, provider: Provider, precision: Precision, ids: Sequence[TokenIds]
) -> _Answers:
    """Do as `_answer`: a provider may not only refuse a variant, it may crash."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        return processes.submit(_answer, directory, provider, precision, ids).result()


def _answer(directory: Path, provider: Provider, precision: Precision, ids: Sequence[TokenIds]) -> _Answers:
    served = open_served(directory, provider=provider, precision=precision)
    polarities = len(served.bundle.manifest.labels)
    served.answer_tokens(ids[:_ALONE], title="warm-up")
    started = time.perf_counter()
    answers = served.answer_tokens(ids, title=f"{directory.name} {provider} {precision}")
    spent_s = time.perf_counter() - started
    alone = np.array([served.engine.run_now([text])[0] for text in ids[:_ALONE]])
    return _Answers(_labels(answers, polarities), _labels(alone, polarities), spent_s)


def render_variants(figures: Sequence[VariantFigures]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| variant | provider | MB | accuracy | flips | alone against batched | texts/s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in figures:
        place = f"{row.provider} {row.precision}"
        lines.append(
            f"| {row.variant} | {place} | {row.megabytes} | does not run: {row.error} | | | |" if row.error else
            f"| {row.variant} | {place} | {row.megabytes} | {row.accuracy:.2%} | {row.flips} | {row.alone_flips} "
            f"| {row.texts_per_s:.0f} |"
        )  # fmt: skip
    return "\n".join(lines)


def _unusable(name: str, provider: str, precision: str, size: float, error: str) -> VariantFigures:
    return VariantFigures(
        variant=name, provider=provider, precision=precision, megabytes=size, accuracy=0, flips=0, alone_flips=0,
        texts_per_s=0, error=error,
    )  # fmt: skip


def _labels(answers: NDArray[np.float64], polarities: int) -> NDArray[np.int64]:
    indexes: NDArray[np.int64] = answers[:, :polarities].argmax(axis=1)
    return indexes


def _copy(bundle: Bundle, directory: Path, write: Callable[[Path, Path], None]) -> Path:
    """Write a bundle like `bundle` to `directory`, with the model that `write` makes of its own."""
    shutil.copytree(bundle.directory, directory)
    (directory / MODEL).unlink()
    write(bundle.model_file, directory / MODEL)
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][MODEL] = record_file(directory / MODEL).model_dump()
    (directory / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return directory


def _as_stored(source: Path, target: Path, _: Sequence[TokenIds], __: int) -> None:
    shutil.copyfile(source, target)


def _float32(source: Path, target: Path, _: Sequence[TokenIds], __: int) -> None:
    write_float32(source, target)


def _fused(source: Path, target: Path, _: Sequence[TokenIds], __: int) -> None:
    """Fuse with ONNX Runtime's optimizer for BERT; refuse a graph in which it does not find each layer."""
    fuse(source, target.parent).save_model_to_file(str(target))


def _weights_in_8_bits(source: Path, target: Path, _: Sequence[TokenIds], __: int) -> None:
    """Store each matrix as 8-bit integers with a scale a column; they become floats again when the model is loaded."""
    write_float32(source, target)
    model = onnx.load(target)
    nodes = []
    for tensor in list(model.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2 or np.prod(tensor.dims) < SMALL:
            continue
        name, weights = tensor.name, numpy_helper.to_array(tensor)
        axis = 0 if weights.shape[0] > 8 * weights.shape[1] else 1  # embeddings by row, layers by column
        scale = (np.abs(weights).max(axis=1 - axis) / 127).astype(np.float32)
        scale[scale == 0] = 1
        shaped = scale[:, None] if axis == 0 else scale[None, :]
        tensor.CopyFrom(numpy_helper.from_array(np.round(weights / shaped).astype(np.int8), f"{name}.int8"))
        model.graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}.int8", f"{name}.scale"], [name], axis=axis))
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    onnx.checker.check_model(model)
    onnx.save(model, target)


def _static_8_bits(source: Path, target: Path, ids: Sequence[TokenIds], pad_id: int) -> None:
    """Quantise matrix products, weights by column and activations by scales fixed on some of the texts."""
    plain = target.with_suffix(".fp32.onnx")
    write_float32(source, plain)
    quantize_static(
        str(plain),
        str(target),
        _Calibration(ids[:: max(1, len(ids) // _CALIBRATION_TEXTS)], pad_id),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    plain.unlink()


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not typed
    """Batches of texts of similar lengths."""

    def __init__(self, ids: Sequence[TokenIds], pad_id: int) -> None:
        self._batches = self._make(sorted(ids, key=len), pad_id)

    def get_next(self) -> dict[str, Any] | None:
        """Return the inputs of the next batch, or None after the last."""
        return next(self._batches, None)

    @staticmethod
    def _make(ids: Sequence[TokenIds], pad_id: int) -> Iterator[dict[str, Any]]:
        for start in range(0, len(ids), _CALIBRATION_BATCH):
            batch = ids[start : start + _CALIBRATION_BATCH]
            columns = max(map(len, batch))
            yield {
                "input_ids": np.array([[*text, *[pad_id] * (columns - len(text))] for text in batch]),
                "attention_mask": np.array([[1] * len(text) + [0] * (columns - len(text)) for text in batch]),
            }


_VARIANTS: Final[Mapping[str, Callable[[Path, Path, Sequence[TokenIds], int], None]]] = {
    "float16 weights": _as_stored,
    "float32": _float32,
    "float32, fused": _fused,
    "8-bit weights": _weights_in_8_bits,
    "static 8-bit": _static_8_bits,
}
