"""One spelling for one message: `clean()` prepares text alike for training and for serving.

Knows nothing of tokens, models or requests. A change in what `clean()` returns must raise `CLEANING_VERSION`: bundles
record it, and a bundle trained under another version is not served.
"""

import html
import re
import unicodedata
from typing import Final

from app.domain.emoticons import NAMES, WECHAT_ENGLISH_NAMES, WECHAT_SLASH_CODES

CLEANING_VERSION: Final = 2

LINK: Final = "[链接]"
EMAIL: Final = "[邮箱]"
MENTION: Final = "@用户"

_LONGEST_RUN: Final = 3

# Real tag names only: reviewers also write <书名> and <3.
_HTML_TAG = re.compile(
    r"</?(?:a|b|big|blockquote|br|center|div|em|font|h[1-6]|hr|i|img|li|ol|p|pre|s|small|span|strong|sub|sup|table|tbody"
    r"|td|th|tr|u|ul)(?:\s[^<>]{0,300})?/?>",
    re.IGNORECASE,
)
_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,5}")
_URL = re.compile(r"(?:https?://|www\.)[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+", re.IGNORECASE)
# Only a name that a blank or a colon ends is taken: 「@客服你们太差了」 must keep its complaint.
_MENTION = re.compile(r"(?<![A-Za-z0-9.@])@[\w-]{1,16}(?=[\s:])")
_SLASH_CODE = re.compile("|".join(re.escape(code) for code in sorted(WECHAT_SLASH_CODES, key=len, reverse=True)))
_BRACKETED = re.compile(r"\[([A-Za-z!-]{2,12})\]|《([^《》]{1,8})》")
_REPEATED_EMOTICON = re.compile(rf"(\[[^\[\]\s]{{1,8}}\])\1{{{_LONGEST_RUN},}}")
_REPEATED_CHARACTER = re.compile(rf"([^\d\s])\1{{{_LONGEST_RUN},}}")
# html.unescape() raises on numbers too long for Python; no code point has as many digits.
_ENDLESS_REFERENCE = re.compile(r"&#[xX]?[0-9A-Fa-f]{9,};?")
_BLANKS = re.compile(r"\s+")
# 「太 难 吃 了」: three and more Han characters, each on its own.
_SPACED_OUT = re.compile(r"(?<!\w)(?:[\u3400-\u9fff] ){2,}[\u3400-\u9fff](?!\w)")
# Invisible, or without meaning to a model: controls, format characters (zero-width, bidirectional marks, BOM),
# surrogates, private use and unassigned code points, and what else Unicode calls default-ignorable (fillers,
# variation selectors).
_DROPPED_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_IGNORABLE: Final = frozenset(
    {0x034F, 0x115F, 0x1160, 0x3164, 0xFFA0, *range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
)


def clean(text: str) -> str:
    """Return `text` in the one spelling the model was trained on; it may be empty.

    In order: invisible characters dropped, links and e-mail addresses replaced by placeholders, compatibility forms
    folded (Unicode NFKC, UAX #15), HTML entities and tags resolved, WeChat's slash codes brought to ``[name]``,
    @mentions replaced, blanks collapsed, single Han characters set apart by blanks joined, other emoticon codes
    brought to ``[name]``, runs of one character or emoticon cut to three (digits are left alone: 10000 is not 1000).
    """
    text = text.translate(_INVISIBLE)
    # Before folding: a full-width comma ends a link, the plain one it becomes would not.
    if "/" in text or "." in text:
        text = _EMAIL.sub(EMAIL, _URL.sub(LINK, text))
    text = unicodedata.normalize("NFKC", text)
    if "&" in text:
        text = unicodedata.normalize("NFKC", html.unescape(_ENDLESS_REFERENCE.sub("", text)).translate(_INVISIBLE))
    if "<" in text:
        text = _HTML_TAG.sub(" ", text)
    if "/:" in text:
        text = _SLASH_CODE.sub(_name_slash_code, text)
    if "@" in text:
        text = _MENTION.sub(MENTION, text)
    text = _BLANKS.sub(" ", text).strip()
    if " " in text:
        text = _SPACED_OUT.sub(lambda match: match[0].replace(" ", ""), text)
    if "[" in text or "《" in text:
        text = _REPEATED_EMOTICON.sub(r"\1" * _LONGEST_RUN, _BRACKETED.sub(_name_emoticon, text))
    return _REPEATED_CHARACTER.sub(r"\1" * _LONGEST_RUN, text)


def _name_slash_code(match: re.Match[str]) -> str:
    return f"[{WECHAT_SLASH_CODES[match[0]]}]"


def _name_emoticon(match: re.Match[str]) -> str:
    english, quoted = match.groups()
    if english is not None:
        return f"[{WECHAT_ENGLISH_NAMES.get(english, english)}]"
    return f"[{quoted}]" if quoted in NAMES else match[0]


class _Invisible(dict[int, int | None]):
    """Table for `str.translate` that classifies a code point when it is met; it remembers the first plane only."""

    def __missing__(self, code_point: int) -> int | None:
        character = chr(code_point)
        invisible = unicodedata.category(character) in _DROPPED_CATEGORIES or code_point in _IGNORABLE
        kept = None if invisible and not character.isspace() else code_point
        if code_point < 0x10000:
            self[code_point] = kept
        return kept


_INVISIBLE: Final = _Invisible()
