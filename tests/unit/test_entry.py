import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cache.entry import CorruptEntry, EntryFormat
from app.domain.labels import LABELS, Heads
from app.domain.sentiment import Sentiment

_EMOTIONS = ("angry", "fear", "happy", "sad", "surprise", "neutral")
_HEADS = (Heads(LABELS), Heads(LABELS, _EMOTIONS), Heads(("bad", "good")))
_KEY = bytes(range(16))

_shares = st.floats(0, 1, width=32)


@st.composite
def _answers(draw: st.DrawFn) -> tuple[Heads, Sentiment]:
    heads = draw(st.sampled_from(_HEADS))
    polarity, emotions = heads.name([draw(_shares) for _ in heads.columns])
    return heads, Sentiment(polarity, draw(st.booleans()), draw(st.booleans()), emotions)


@given(_answers(), st.binary(min_size=16, max_size=16))
def test_an_answer_comes_back_as_it_was(answer: tuple[Heads, Sentiment], key: bytes) -> None:
    heads, sentiment = answer
    entries = EntryFormat(heads)
    found = entries.decode(key, entries.encode(key, sentiment))
    assert found == sentiment
    assert list(found.probabilities) == list(sentiment.probabilities)
    assert repr(found) == repr(sentiment)  # -0.0 is not 0.0, either


def _good() -> Sentiment:
    polarity, emotions = _HEADS[1].name([float(np.float32(random.random())) for _ in _HEADS[1].columns])  # noqa: S311
    return Sentiment(polarity, truncated=False, emotions=emotions)


def test_nine_probabilities_take_42_bytes() -> None:
    assert len(EntryFormat(_HEADS[1]).encode(_KEY, _good())) == 42


def test_an_answer_for_another_key_is_told_apart() -> None:
    entries = EntryFormat(_HEADS[1])
    entry = entries.encode(_KEY, _good())
    with pytest.raises(CorruptEntry):
        entries.decode(_KEY[::-1], entry)


@given(st.integers(0, 42 * 8 - 1))
def test_a_flipped_bit_is_noticed(bit: int) -> None:
    entries = EntryFormat(_HEADS[1])
    entry = bytearray(entries.encode(_KEY, _good()))
    entry[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptEntry):
        entries.decode(_KEY, bytes(entry))


@given(st.binary(max_size=60))
def test_what_is_no_entry_is_noticed(content: bytes) -> None:
    with pytest.raises(CorruptEntry):
        EntryFormat(_HEADS[1]).decode(_KEY, content)


def test_an_entry_of_another_layout_is_a_miss() -> None:
    assert EntryFormat(_HEADS[1]).decode(_KEY, EntryFormat(_HEADS[2]).encode(_KEY, _two_labels())) is None


def _two_labels() -> Sentiment:
    return Sentiment({"bad": 0.25, "good": 0.75}, truncated=True)
