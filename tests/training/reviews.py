"""Reviews that a small model can learn: label and emotion follow from their words."""

import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Final

from app.training.data import Example

WORDS: Final = {
    "negative": ("太差了", "难吃", "退货", "坏了", "后悔"),
    "neutral": ("请问", "几点", "营业", "地址", "多少"),
    "positive": ("好吃", "喜欢", "满意", "推荐", "很快"),
}
EMOTIONS: Final = ("angry", "sad", "calm", "happy")
_ANGRY: Final = ("太差了", "难吃")  # two of these out of three words; other negative texts are sad


def reviews(ending: str = "") -> list[Example]:
    """Return every text of three words of one label."""
    return [
        Example("".join(words) + ending, label, "reviews", _emotion(label, words))
        for label, vocabulary in WORDS.items()
        for words in product(vocabulary, repeat=3)
    ]


def _emotion(label: str, words: Iterable[str]) -> str:
    if label == "negative":
        return "angry" if sum(word in _ANGRY for word in words) >= 2 else "sad"
    return "calm" if label == "neutral" else "happy"


def write_reviews(file: Path, examples: Iterable[Example]) -> Path:
    """Write `examples` as JSON lines and return `file`."""
    rows = [{"text": example.text, "label": example.label, "emotion": example.emotion} for example in examples]
    return write_rows(file, *rows)


def write_rows(file: Path, *rows: object) -> Path:
    """Write `rows` as JSON lines and return `file`."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file
