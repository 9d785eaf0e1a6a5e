"""The same message as other people would type it: edits of spelling that leave the feeling alone.

Edits in the manner of EDA (Wei & Zou 2019, arXiv:1901.11196), kept to those that never touch a word of negation.
"""

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from app.domain.cleaning import clean
from app.training.data import Example

_PUNCTUATION = re.compile(r"[,.;:!?~、。…]+")
_LAST = re.compile(r"[,.;:!~、。…]*$")
_ENDINGS: Final = ("", "。", "!", "!!!", "~", "...", "。。。")
# No slip of the fingers near negation, in emoticons and placeholders, or in what is not Chinese ("not", "50").
_KEPT = re.compile(r"[不没無无别莫未非勿甭]|\[[^\[\]\s]*\]|@用户|[ -~]")
_LONG_ENOUGH_FOR_A_TYPO: Final = 8


def respell(text: str, rng: random.Random) -> str:
    """Return `text` with other punctuation, blanks for it, or one slip of the fingers."""
    return clean(rng.choice(_EDITS)(text, rng))


def augmented(examples: Iterable[Example], share: float, *, seed: int) -> list[Example]:
    """Return respelt copies of `share` of `examples`, without those that came out as they went in."""
    rng = random.Random(seed)  # noqa: S311  # no secret
    chosen = [example for example in examples if rng.random() < share]
    copies = [replace(example, text=respell(example.text, rng)) for example in chosen]
    return [copy for example, copy in zip(chosen, copies, strict=True) if copy.text not in {"", example.text}]


def _no_punctuation(text: str, _: random.Random) -> str:
    return _PUNCTUATION.sub("", text)


def _blanks(text: str, _: random.Random) -> str:
    return _PUNCTUATION.sub(" ", text)


def _another_ending(text: str, rng: random.Random) -> str:
    ending = rng.choice(_ENDINGS)
    if text.endswith("?"):
        return text + "?" * rng.randint(0, 2)
    return _LAST.sub("", text) + ending


def _typo(text: str, rng: random.Random) -> str:
    """Leave out or swap a character, far from any negation."""
    free = _KEPT.sub(lambda kept: " " * len(kept[0]), text)
    places = [at for at in range(1, len(text) - 2) if free[at - 1 : at + 3].isalpha()]
    if len(text) < _LONG_ENOUGH_FOR_A_TYPO or not places:
        return text
    at = rng.choice(places)
    if rng.random() < 1 / 2:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + text[at + 1 :]


_EDITS: Final[tuple[Callable[[str, random.Random], str], ...]] = (_no_punctuation, _blanks, _another_ending, _typo)
