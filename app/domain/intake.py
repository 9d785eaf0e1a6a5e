"""What counts as a text: `accept()` checks a client's text and returns it cleaned."""

import re
import unicodedata
from dataclasses import dataclass

from app.domain.cleaning import clean
from app.domain.errors import EmptyText, InvalidText, TextTooLong

# C0 and C1 controls and DEL, but not tab, line breaks, form feed and NEL, which ordinary text carries.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_WIDEST_FOLD = 18  # characters that one may become (U+FDFA)


@dataclass(frozen=True, slots=True)
class TextLimits:
    """The longest text accepted, before cleaning."""

    max_characters: int
    max_bytes: int  # in UTF-8


def accept(text: str, limits: TextLimits) -> str:
    """Return `text` cleaned.

    Raises:
        TextTooLong: over one of `limits`.
        InvalidText: NUL, control characters, or lone surrogates (half of a UTF-16 pair).
        EmptyText: empty, blank, or invisible throughout.
    """
    if len(text) > limits.max_characters:
        raise TextTooLong(f"The text has {len(text)} characters; at most {limits.max_characters} are accepted.")
    if found := _SURROGATE.search(text):
        raise InvalidText(f"The text has a lone surrogate (U+{ord(found[0]):04X}) at character {found.start()}.")
    if found := _CONTROL.search(text):
        raise InvalidText(f"The text has a control character (U+{ord(found[0]):04X}) at character {found.start()}.")
    # Counted only where it can matter: a character has at most four bytes.
    if len(text) * 4 > limits.max_bytes and (size := len(text.encode())) > limits.max_bytes:
        raise TextTooLong(f"The text has {size} bytes in UTF-8; at most {limits.max_bytes} are accepted.")
    # What is read must keep to the limit, too.
    if len(text) * _WIDEST_FOLD > limits.max_characters:
        length = len(unicodedata.normalize("NFKC", text))
        if length > limits.max_characters:
            raise TextTooLong(
                f"The text has {length} characters when folded (Unicode NFKC); at most {limits.max_characters} are "
                "accepted."
            )
    cleaned = clean(text)
    if not cleaned:
        raise EmptyText("The text is empty or blank.")
    return cleaned
