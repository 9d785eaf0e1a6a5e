import gzip
import json
import tracemalloc
import zlib
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.lines import PIECE_BYTES, Gunzip, Line, LineReader, plain
from app.domain.errors import BrokenGzip, InvalidLine, LineNotJson, LineTooLong

_MAX = 100


def _read(pieces: Iterable[bytes], max_bytes: int = _MAX) -> list[Line]:
    reader = LineReader(max_bytes)
    return [*(line for piece in pieces for line in reader.feed(piece)), *reader.end()]


def _only(content: str | bytes) -> Line:
    (line,) = _read([content.encode() if isinstance(content, str) else content], max_bytes=100_000)
    return line


def _back(line: Line) -> object:
    """Return what comes back of a line beside its answer."""
    return json.loads(line.head + b"}")


def _cuts(content: bytes, places: Iterable[int]) -> list[bytes]:
    ends = sorted(min(place, len(content)) for place in places)
    return [content[start:end] for start, end in zip([0, *ends], [*ends, len(content)], strict=True)]


# Lines


@given(st.lists(st.integers(0, 400)))
def test_lines_are_the_same_wherever_the_body_is_cut(places: list[int]) -> None:
    content = b'{"text": "\xe5\xa5\xbd"}\r\n\n' + b"x" * 150 + b'\n[]\n{"text": "\xe5\xb7\xae", "id": 7}'
    whole, cut = _read([content]), _read(_cuts(content, places))
    assert [(line.number, line.text, line.head) for line in cut] == [
        (line.number, line.text, line.head) for line in whole
    ]
    assert [type(line.problem) for line in cut] == [type(None), LineTooLong, InvalidLine, type(None)]


def test_lines_are_numbered_as_an_editor_does_and_blank_ones_are_passed_over() -> None:
    lines = _read([b'{"text": "a"}\n\n \t\r\n{"text": "b"}\n\n'])
    assert [(line.number, line.text) for line in lines] == [(1, "a"), (4, "b")]


def test_the_last_line_may_lack_its_end() -> None:
    assert [line.text for line in _read([b'{"text": "a"}\n{"text": "b"}'])] == ["a", "b"]


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert _only('\ufeff{"text": "好"}').text == "好"


def test_a_line_of_the_longest_length_is_read_and_one_longer_by_a_byte_is_not() -> None:
    longest = json.dumps({"text": "a" * (_MAX - len('{"text": ""}'))}).encode()
    first, second, third = _read([longest + b"\n" + longest[:-1] + b' }\n{"text": "b"}\n'])
    assert (len(longest), first.problem, third.text) == (_MAX, None, "b")
    assert isinstance(second.problem, LineTooLong)
    assert _back(second) == {"line": 2}


def test_an_endless_line_takes_no_more_memory_than_a_long_one() -> None:
    reader = LineReader(_MAX)
    piece = b"x" * PIECE_BYTES
    tracemalloc.start()
    for _ in range(1_000):
        assert not list(reader.feed(piece))
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held < 4 * PIECE_BYTES
    (line,) = reader.feed(b"\n")
    assert isinstance(line.problem, LineTooLong)


# What a line says


def test_everything_but_the_text_comes_back_as_it_came() -> None:
    content = '{"id": 12345678901234567890123, "text": "好", "名": ["a", null, {"x": 1.5e-7}], "ok": true}'
    assert _back(_only(content)) == {
        "id": 12345678901234567890123, "名": ["a", None, {"x": 1.5e-7}], "ok": True, "line": 1,
    }  # fmt: skip


def test_members_with_the_names_of_an_answer_make_room_for_it() -> None:
    assert _back(_only('{"text": "好", "line": 9, "sentiment": 1, "error": 2, "label": 3}')) == {"label": 3, "line": 1}


def test_half_an_emoji_comes_back_as_it_came() -> None:
    line = _only('{"id": "\\ud83d", "text": "\\ud83d"}')
    assert (_back(line), line.text) == ({"id": "\ud83d", "line": 1}, "\ud83d")


@pytest.mark.parametrize("text", [7, None, ["好"], {"a": 1}])
def test_what_is_no_text_is_for_the_classifier_to_refuse(text: object) -> None:
    line = _only(json.dumps({"text": text}))
    assert (line.text, line.problem) == (text, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "好"', "delimiter at character 12"),
        ("好", "at character 0"),
        (b'{"text": "\xb7\xfe"}', "not UTF-8 from byte 10 on"),
        ('{"text": "好", "id": NaN}', "a number"),
        ('{"text": "好", "id": -Infinity}', "a number"),
        ('{"text": "好", "id": 1e999}', "a number"),
        ('{"text": "好", "id": ' + "9" * 5_000 + "}", "a number"),
        ('{"text": "好", "id": ' + "[" * 20_000 + "]" * 20_000 + "}", "a nesting"),
        ('{"text": "好"} {"text": "差"}', "at character 14"),
    ],
)
def test_a_line_that_is_no_json_is_told_without_a_word_of_it(content: str | bytes, said: str) -> None:
    line = _only(content)
    assert isinstance(line.problem, LineNotJson)
    assert said in str(line.problem)
    assert "好" not in str(line.problem)
    assert _back(line) == {"line": 1}


@pytest.mark.parametrize("depth", range(150, 1_000, 7))
def test_nesting_of_any_depth_is_read_or_refused(depth: int) -> None:
    line = _only('{"text": "好", "id": ' + "[" * depth + "]" * depth + "}")
    assert line.text == "好" or isinstance(line.problem, LineNotJson)


@pytest.mark.parametrize("content", ["[]", '"好"', "5", "null", "{}", '{"texts": ["好"]}'])
def test_a_line_without_a_text_is_told(content: str) -> None:
    problem = _only(content).problem
    assert type(problem) is InvalidLine
    assert "`text`" in str(problem)


def test_what_came_with_a_missing_text_comes_back() -> None:
    assert _back(_only('{"id": 7}')) == {"id": 7, "line": 1}


# gzip


def _unpack(parts: Iterable[bytes]) -> list[bytes]:
    gunzip = Gunzip()
    pieces = [piece for part in parts for piece in gunzip.feed(part)]
    gunzip.end()
    return pieces


@given(st.lists(st.integers(0, 200)), st.lists(st.binary(max_size=50), min_size=1))
def test_gzip_is_unpacked_wherever_it_is_cut_and_of_however_many_members(
    places: list[int], members: list[bytes]
) -> None:
    packed = b"".join(map(gzip.compress, members))
    assert b"".join(_unpack(_cuts(packed, places))) == b"".join(members)


@pytest.mark.parametrize("size", [PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
def test_whatever_it_unpacks_to_comes_in_pieces(size: int) -> None:
    content = bytes(index % 251 for index in range(size))
    for packed in (gzip.compress(content), gzip.compress(content, 0)):
        pieces = _unpack([packed])
        assert b"".join(pieces) == content
        assert max(map(len, pieces)) <= PIECE_BYTES


def test_a_bomb_is_unpacked_in_bounded_memory() -> None:
    packer = zlib.compressobj(wbits=31)
    bomb = b"".join(packer.compress(bytes(1_000_000)) for _ in range(100)) + packer.flush()
    reader, gunzip = LineReader(_MAX), Gunzip()
    tracemalloc.start()
    for piece in gunzip.feed(bomb):
        assert not list(reader.feed(piece))
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held < 500_000  # what is not unpacked yet is copied, a tenth of a megabyte


@pytest.mark.parametrize(
    "packed", [b"no gzip", gzip.compress(b"a") + b"rest", gzip.compress(b"a" * 99)[:-9] + bytes(9)]
)
def test_what_is_no_gzip_is_told(packed: bytes) -> None:
    with pytest.raises(BrokenGzip, match="not gzip"):
        _unpack([packed])


def test_gzip_that_ends_too_early_is_told() -> None:
    with pytest.raises(BrokenGzip, match="in the middle"):
        _unpack([gzip.compress(b"a" * 99)[:-1]])


def test_nothing_unpacks_to_nothing() -> None:
    assert _unpack([]) == []


def test_a_plain_body_comes_in_pieces_too() -> None:
    assert list(map(len, plain(bytes(PIECE_BYTES + 1)))) == [PIECE_BYTES, 1]
