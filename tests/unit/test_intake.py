import pytest

from app.domain.errors import EmptyText, InvalidText, TextTooLong
from app.domain.intake import TextLimits, accept

LIMITS = TextLimits(max_characters=10, max_bytes=24)


def test_a_text_is_accepted_cleaned() -> None:
    assert accept(" 好吃！\n", LIMITS) == "好吃!"


@pytest.mark.parametrize("text", ["x" * 10, "好" * 8, "😀" * 6, "好" * 7 + "xyz"])
def test_a_text_at_a_limit_is_accepted(text: str) -> None:
    assert accept(text, LIMITS)


def test_one_character_above_the_limit_is_refused() -> None:
    with pytest.raises(TextTooLong, match="11 characters; at most 10"):
        accept("x" * 11, LIMITS)


@pytest.mark.parametrize(("text", "size"), [("好" * 8 + "x", 25), ("😀" * 6 + "x", 25), ("好" * 10, 30)])
def test_one_byte_above_the_limit_is_refused(text: str, size: int) -> None:
    with pytest.raises(TextTooLong, match=f"{size} bytes in UTF-8; at most 24"):
        accept(text, LIMITS)


def test_the_limits_are_those_of_the_text_as_it_came() -> None:
    with pytest.raises(TextTooLong):
        accept("哈" * 9, LIMITS)
    with pytest.raises(TextTooLong):
        accept(" " * 11, LIMITS)


@pytest.mark.parametrize("character", ["\x00", "\x01", "\x08", "\x0b", "\x1b", "\x1f", "\x7f", "\x80", "\x9f"])
def test_a_control_character_is_refused_and_told_with_its_place(character: str) -> None:
    with pytest.raises(InvalidText, match=rf"U\+{ord(character):04X}\) at character 2"):
        accept(f"好吃{character}吗", LIMITS)


@pytest.mark.parametrize("blank", ["\t", "\n", "\r\n", "\x0c", "\x85", "\u2028"])
def test_tabs_and_line_breaks_are_welcome(blank: str) -> None:
    assert accept(f"好吃{blank}吗", LIMITS) == "好吃 吗"


@pytest.mark.parametrize("half", [0xD800, 0xD83D, 0xDE00, 0xDFFF])
def test_a_lone_surrogate_is_refused_and_told_with_its_place(half: int) -> None:
    with pytest.raises(InvalidText, match=rf"lone surrogate \(U\+{half:04X}\) at character 1"):
        accept(f"好{chr(half)}", LIMITS)


@pytest.mark.parametrize("text", ["", " ", "\u3000\n", "\u200b\u200d", "\ufeff", "\ufe0f", "<br>", "&nbsp;"])
def test_a_text_without_content_is_refused(text: str) -> None:
    with pytest.raises(EmptyText):
        accept(text, LIMITS)


@pytest.mark.parametrize("fault", ["\x00", "\x9f", "\ud800", "好" * 10, "好" * 7])
def test_a_refusal_never_repeats_the_text(fault: str) -> None:
    with pytest.raises(InvalidText) as refusal:
        accept(f"秘密{fault}", LIMITS)
    assert not set(str(refusal.value)) & set("秘密" + fault)


def test_characters_that_stand_for_many_count_as_many() -> None:
    limits = TextLimits(max_characters=100, max_bytes=10_000)
    assert accept("\ufdfa" * 5, limits)
    with pytest.raises(TextTooLong):
        accept("\ufdfa" * 6, limits)
