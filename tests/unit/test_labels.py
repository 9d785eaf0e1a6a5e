import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.labels import Heads

_POLARITY = Heads(("negative", "positive"))
_BOTH = Heads(("negative", "positive"), ("angry", "happy", "neutral"))


def test_columns_tell_emotions_from_labels_of_the_same_name() -> None:
    assert _POLARITY.columns == ("negative", "positive")
    assert Heads(("neutral",), ("neutral",)).columns == ("neutral", "emotion:neutral")


def test_sizes_are_of_the_heads_that_are_there() -> None:
    assert _POLARITY.sizes == (2,)
    assert _BOTH.sizes == (2, 3)


_names = st.lists(st.text(min_size=1).filter(lambda name: not name.startswith("emotion:")), unique=True).map(tuple)


@given(_names, _names)
def test_columns_say_what_the_heads_are(labels: tuple[str, ...], emotions: tuple[str, ...]) -> None:
    heads = Heads(labels, emotions)
    assert Heads.of_columns(heads.columns) == heads
    assert sum(heads.sizes) == len(heads.columns)


def test_an_answer_is_named_by_head() -> None:
    assert _BOTH.name((0.1, 0.9, 0.2, 0.3, 0.5)) == (
        {"negative": 0.1, "positive": 0.9},
        {"angry": 0.2, "happy": 0.3, "neutral": 0.5},
    )


def test_without_the_second_head_there_are_no_emotions() -> None:
    assert _POLARITY.name((0.1, 0.9)) == ({"negative": 0.1, "positive": 0.9}, None)


@pytest.mark.parametrize("width", [1, 2, 4, 6])
def test_an_answer_of_another_width_is_not_named(width: int) -> None:
    with pytest.raises(ValueError, match="zip"):
        _BOTH.name((0.5,) * width)
