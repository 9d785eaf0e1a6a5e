"""A bundle small enough to make in a test, and its model once more in plain numpy.

A text's logits are the mean of its characters' leanings, so that an answer can be foretold by reading the text. The
model has both heads, and characters that lean in one of them alone.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Regex
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing

from app.domain.cleaning import CLEANING_VERSION, clean
from app.domain.labels import LABELS, Heads
from app.inference.bundle import GOLDEN, MANIFEST, MODEL, TOKENIZER, Calibration, Manifest, record_file
from app.inference.tokenizer import Tokenizer

MAX_TOKENS = 16
HEAD_TOKENS = 6
PAD_ID = 1
POISON = "毒"  # the model answers a text that holds it with what is not a number
EMOTIONS = ("angry", "happy", "neutral")
HEADS = Heads(LABELS, EMOTIONS)
THRESHOLD = 0.6

_LEANINGS = {
    "negative": "差坏烂慢贵",
    "neutral": "吗问几点么",
    "positive": "好喜爱棒快",
    "emotion:angry": "气怒骂",
    "emotion:happy": "笑乐哈",
    "emotion:neutral": "嗯哦呢",
}
_OTHERS = "我你的了很饭店家人天，。！？[]"
_VOCABULARY = ("<s>", "<pad>", "</s>", "<unk>", *"".join(_LEANINGS.values()), *_OTHERS, POISON)
_GOLDEN_TEXTS = (
    "好",
    "这家店差",
    "请问几点开门？",
    "很喜爱这家店，饭好",
    "我的天，又贵又慢，饭也烂，人很差，再也不来了",
    "笑，店家也笑",
    "怒",
)


def _weights() -> NDArray[np.float32]:
    """Return the leanings (V, L), V of the vocabulary."""
    shape = (len(_VOCABULARY), len(HEADS.columns))
    weights = np.random.default_rng(20190501).normal(0, 0.3, shape).astype(np.float32)
    for number, column in enumerate(HEADS.columns):
        for character in _LEANINGS[column]:
            weights[_VOCABULARY.index(character), number] += 4
    weights[_VOCABULARY.index(POISON)] = np.nan
    return weights


class TinyModel:
    """What the ONNX model computes."""

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        kept = attention_mask[:, :, None].astype(np.float32)  # (B, T, 1)
        logits: NDArray[np.float32] = (_weights()[input_ids] * kept).sum(axis=1) / kept.sum(axis=1)
        return logits


def tiny_onnx(*, ids: str = "input_ids", columns: int = len(HEADS.columns)) -> bytes:
    """Return the model as ONNX; `ids` names its first input, `columns` is the width of its answer."""
    nodes = [
        helper.make_node("Gather", ["leanings", ids], ["each"]),  # (B, T, L)
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["kept"]),  # (B, T, 1)
        helper.make_node("Mul", ["each", "kept"], ["unpadded"]),
        helper.make_node("ReduceSum", ["unpadded", "middle"], ["sums"], keepdims=0),  # (B, L)
        helper.make_node("ReduceSum", ["kept", "middle"], ["counts"], keepdims=0),  # (B, 1)
        helper.make_node("Div", ["sums", "counts"], ["means"]),
        helper.make_node("MatMul", ["means", "identity"], ["logits"]),
    ]
    constants = {
        "leanings": _weights(),
        "identity": np.eye(len(HEADS.columns), columns, dtype=np.float32),
        "middle": np.array([1]),
        "last": np.array([2]),
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in (ids, "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", columns])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def write_tiny_bundle(directory: Path, *, heads: Heads = HEADS, **changes: Any) -> Path:
    """Write a bundle into `directory` and return it; `changes` replace fields of its manifest."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MODEL).write_bytes(tiny_onnx(columns=len(heads.columns)))
    _tokenizer().save(str(directory / TOKENIZER))
    rows = [
        {"text": text, "probabilities": dict(zip(heads.columns, shares, strict=True))}
        for text, shares in zip(_GOLDEN_TEXTS, _answers(directory, heads), strict=True)
    ]
    (directory / GOLDEN).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return seal(directory, **{"emotions": heads.emotions, **changes})


def seal(directory: Path, **changes: Any) -> Path:
    """Write a manifest for the files as they are now in `directory`, so that their checksums are right."""
    manifest = Manifest(
        name="tiny",
        version="0.0.1",
        labels=LABELS,
        emotions=EMOTIONS,
        calibration=Calibration(
            temperatures={"polarity": 1.0, "emotion": 1.0},
            error_before={"polarity": 0.02, "emotion": 0.03},
            error_after={"polarity": 0.01, "emotion": 0.02},
            threshold=THRESHOLD,
            certain_share=0.9,
            certain_accuracy=0.95,
        ),
        max_tokens=MAX_TOKENS,
        head_tokens=HEAD_TOKENS,
        pad_id=PAD_ID,
        cleaning_version=CLEANING_VERSION,
        files={name: record_file(directory / name) for name in (MODEL, TOKENIZER, GOLDEN)},
        provenance={"license": "MIT"},
        tools={"onnx": onnx.__version__},
    )
    (directory / MANIFEST).write_text(json.dumps(manifest.model_dump(mode="json") | changes), encoding="utf-8")
    return directory


def _tokenizer() -> RustTokenizer:
    """Return a tokenizer that makes a token of each character."""
    ids = {token: number for number, token in enumerate(_VOCABULARY)}
    tokenizer = RustTokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(token, ids[token]) for token in ("<s>", "</s>")]
    )
    return tokenizer


def _answers(directory: Path, heads: Heads) -> list[list[float]]:
    session = onnxruntime.InferenceSession(str(directory / MODEL), providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer(directory / TOKENIZER, max_tokens=MAX_TOKENS, head_tokens=HEAD_TOKENS)
    answers = []
    for tokenized in tokenizer.encode([clean(text) for text in _GOLDEN_TEXTS]):
        ids = np.array([tokenized.ids])
        (logits,) = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        by_head = np.split(np.exp(logits[0]), np.cumsum(heads.sizes)[:-1])
        answers.append([float(share) for head in by_head for share in head / head.sum()])
    return answers
