import random
import re
from itertools import groupby

from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.cleaning import clean
from app.training.augmentation import augmented, respell
from app.training.data import Example

_PARTS = ["不", "没", "别", "未", "好", "吃", "房间", "服务", ",", "。", "?", "!", "[微笑]", "not", "50", "@用户 "]
_texts = st.lists(st.sampled_from(_PARTS), min_size=1, max_size=20).map(lambda parts: clean("".join(parts)))
_seeds = st.integers(0, 2**32).map(random.Random)
_TEXT = "房间很干净,服务员也热情。早餐的种类不多!"


def _in_order(pattern: str, text: str) -> list[str]:
    """Return what matches, repeats taken together: cleaning cuts long runs."""
    return [found for found, _ in groupby(re.findall(pattern, text))]


@settings(deadline=None)
@given(_texts, _seeds)
def test_no_spelling_loses_moves_or_adds_a_negation(text: str, rng: random.Random) -> None:
    assert _in_order("[不没别未]|not", respell(text, rng)) == _in_order("[不没别未]|not", text)


@settings(deadline=None)
@given(_texts, _seeds)
def test_emoticons_numbers_and_placeholders_stay_whole(text: str, rng: random.Random) -> None:
    assert _in_order(r"\[微笑\]|50|@用户", respell(text, rng)) == _in_order(r"\[微笑\]|50|@用户", text)


@settings(deadline=None)
@given(_seeds)
def test_a_question_gets_no_other_ending(rng: random.Random) -> None:
    assert re.fullmatch("请问几点开门[?]{0,3}", respell("请问几点开门?", rng))


def test_each_kind_of_edit_happens() -> None:
    spellings = {respell(_TEXT, random.Random(seed)) for seed in range(200)}  # noqa: S311  # no secret
    assert {
        "房间很干净服务员也热情早餐的种类不多",
        "房间很干净 服务员也热情 早餐的种类不多",
        _TEXT[:-1],
        _TEXT[:-1] + "...",
        _TEXT.replace("务员", "员务"),
        _TEXT.replace("服务员", "服员"),
    } <= spellings


def test_copies_keep_label_emotion_and_source() -> None:
    original = Example(_TEXT, "positive", "hotel", "happy", "房间")
    (copy,) = augmented([original], 1.0, seed=0)
    assert copy.text != original.text
    assert (copy.label, copy.emotion, copy.source, copy.category) == ("positive", "happy", "hotel", "房间")


def test_about_the_share_is_copied_and_the_same_seed_copies_the_same() -> None:
    examples = [Example(f"{_TEXT}第{number}次来", "positive", "hotel") for number in range(400)]
    copies = augmented(examples, 0.3, seed=1)
    assert 80 < len(copies) < 160
    assert copies == augmented(examples, 0.3, seed=1) != augmented(examples, 0.3, seed=2)
    assert augmented(examples, 0.0, seed=1) == []


def test_a_text_that_comes_out_empty_or_as_it_went_in_is_no_copy() -> None:
    examples = [Example(text, "neutral", "hotel") for text in ("好吗", "...") for _ in range(200)]
    copies = [copy.text for copy in augmented(examples, 1.0, seed=0)]
    assert copies
    assert not {"", "好吗", "..."}.intersection(copies)
