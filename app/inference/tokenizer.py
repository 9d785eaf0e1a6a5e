"""Texts to token ids with the Rust library `tokenizers`. Knows neither torch, transformers nor the model."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from tokenizers import Encoding
from tokenizers import Tokenizer as RustTokenizer

from app.domain.errors import StartupError

TokenIds: TypeAlias = tuple[int, ...]  # unpadded, special tokens included


class TokenizedText(NamedTuple):
    """The ids of a text, and whether its middle was left out."""

    ids: TokenIds
    truncated: bool


class Tokenizer:
    """Encode texts into at most `max_tokens` tokens each.

    A longer text keeps its first `head_tokens` tokens and its last `max_tokens - head_tokens`: a review opens with its
    verdict or closes with it, and the middle is what it can spare (Sun et al. 2019, arXiv:1905.05583, section 5.3.1).
    """

    def __init__(self, file: Path, *, max_tokens: int, head_tokens: int) -> None:
        if not 0 < head_tokens < max_tokens:
            raise ValueError(f"head_tokens must lie between 1 and {max_tokens - 1}, not {head_tokens}")
        try:
            self._tokenizer = RustTokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more precise
            raise StartupError(f"{file} is not a tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._head = head_tokens
        self._max = max_tokens

    def encode(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Return one entry per text, in order. Releases the interpreter lock while it works."""
        return [self._cut(encoding) for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def _cut(self, encoding: Encoding) -> TokenizedText:
        ids = encoding.ids
        if len(ids) <= self._max:
            return TokenizedText(tuple(ids), truncated=False)
        tail = self._max - self._head
        return TokenizedText((*ids[: self._head], *ids[-tail:]), truncated=True)
