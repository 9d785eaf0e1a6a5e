from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.inference.bundle import TOKENIZER
from app.inference.tokenizer import Tokenizer
from tests.tiny_bundle import HEAD_TOKENS, MAX_TOKENS

_ROOM = MAX_TOKENS - 2  # a character is a token, and <s> and </s> are two


@pytest.fixture(scope="module")
def tokenizer(tiny_bundle: Path) -> Tokenizer:
    return Tokenizer(tiny_bundle / TOKENIZER, max_tokens=MAX_TOKENS, head_tokens=HEAD_TOKENS)


@pytest.fixture(scope="module")
def endless(tiny_bundle: Path) -> Tokenizer:
    """Cuts nothing that these tests use."""
    return Tokenizer(tiny_bundle / TOKENIZER, max_tokens=1_000, head_tokens=1)


def test_a_text_that_just_fits_is_whole(tokenizer: Tokenizer, endless: Tokenizer) -> None:
    (fits,) = tokenizer.encode(["好差" * (_ROOM // 2)])
    assert len(fits.ids) == MAX_TOKENS
    assert not fits.truncated
    assert [fits] == endless.encode(["好差" * (_ROOM // 2)])


def test_one_token_more_is_cut_to_the_window(tokenizer: Tokenizer) -> None:
    (cut,) = tokenizer.encode(["好差" * (_ROOM // 2) + "吗"])
    assert len(cut.ids) == MAX_TOKENS
    assert cut.truncated


def test_of_a_long_text_head_and_tail_are_kept(tokenizer: Tokenizer, endless: Tokenizer) -> None:
    text = "好喜爱" + "。" * 50 + "差坏烂"
    (whole,) = endless.encode([text])
    (cut,) = tokenizer.encode([text])
    assert cut.ids[:HEAD_TOKENS] == whole.ids[:HEAD_TOKENS]
    assert cut.ids[HEAD_TOKENS:] == whole.ids[-(MAX_TOKENS - HEAD_TOKENS) :]
    assert (cut.ids[0], cut.ids[-1]) == (0, 2)  # <s> and </s>


@given(st.lists(st.text("好差吗。x", max_size=40), max_size=6))
def test_every_text_is_encoded_as_if_it_were_alone(tokenizer: Tokenizer, endless: Tokenizer, texts: list[str]) -> None:
    encoded = tokenizer.encode(texts)
    assert encoded == [tokenizer.encode([text])[0] for text in texts]
    for text, (ids, truncated) in zip(texts, encoded, strict=True):
        assert len(ids) == min(MAX_TOKENS, len(text) + 2)
        assert truncated == (len(text) > _ROOM)
        assert truncated or ids == endless.encode([text])[0].ids


@pytest.mark.parametrize("head_tokens", [0, -1, MAX_TOKENS, MAX_TOKENS + 1])
def test_head_and_tail_must_both_have_room(tiny_bundle: Path, head_tokens: int) -> None:
    with pytest.raises(ValueError, match="head_tokens"):
        Tokenizer(tiny_bundle / TOKENIZER, max_tokens=MAX_TOKENS, head_tokens=head_tokens)
