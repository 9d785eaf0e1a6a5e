"""Lines of JSON out of the bytes of a body, in bounded memory whatever is sent. Knows nothing of HTTP or models."""

import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from app.domain.errors import BrokenGzip, InvalidLine, LineNotJson, LineTooLong

PIECE_BYTES: Final = 16_384  # what is read at a time; a thousandth of it may have been sent
GZIP_FORMAT: Final = 31  # zlib's number for that format
_OURS: Final = ("text", "line", "sentiment", "error")  # members that do not come back as they were sent


@dataclass(frozen=True, slots=True)
class Line:
    """One text to answer, or what is wrong with its line."""

    number: int  # from 1; blank lines count
    size: int  # bytes
    head: bytes  # the JSON object that begins the answer, up to where the answer itself is to stand
    text: object = None
    problem: InvalidLine | None = None


class LineCutter:
    """Cuts lines of up to `max_bytes`; of a longer one a byte more is kept, which tells. Blank lines are skipped."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept = bytearray()  # of the line whose end has not come
        self._number = 0

    def feed(self, piece: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the lines that end in `piece`, with their numbers; exhaust it before the next."""
        *ends, rest = piece.split(b"\n")
        for end in ends:
            self._keep(end)
            yield from self.end()
        self._keep(rest)

    def end(self) -> Iterator[tuple[int, bytes]]:
        """Yield what is left, if it is a line: the last may lack its end."""
        self._number += 1
        raw = bytes(self._kept)
        self._kept.clear()
        if len(raw) > self._max_bytes or raw.strip():
            yield self._number, raw

    def _keep(self, part: bytes) -> None:
        self._kept += part[: self._max_bytes + 1 - len(self._kept)]


class LineReader:
    """Cuts lines of up to `max_bytes`, and reads them."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._cutter = LineCutter(max_bytes)

    def feed(self, piece: bytes) -> Iterator[Line]:
        """Yield the lines that end in `piece`; exhaust it before the next."""
        for number, raw in self._cutter.feed(piece):
            yield read_line(number, raw, self._max_bytes)

    def end(self) -> Iterator[Line]:
        """Yield what is left, if it is a line."""
        for number, raw in self._cutter.end():
            yield read_line(number, raw, self._max_bytes)


def read_line(number: int, raw: bytes, max_bytes: int) -> Line:
    """Return what a `LineCutter` of `max_bytes` cut."""
    if len(raw) > max_bytes:
        problem = LineTooLong(f"The line is longer than the {max_bytes} bytes that are accepted.")
        return Line(number, len(raw), _head({}, number), problem=problem)
    return _read(raw, number)


class Gunzip:
    """Unpacks gzip (RFC 1952), of one member or many, into pieces of bounded length."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(GZIP_FORMAT)
        self._fed = False

    def feed(self, packed: bytes) -> Iterator[bytes]:
        """Yield what `packed` unpacks to.

        Raises:
            BrokenGzip: it is not gzip.
        """
        full = False
        while packed or (full and not self._member.eof):  # what filled a piece may have left more inside
            self._fed = True
            if self._member.eof:
                self._member = zlib.decompressobj(GZIP_FORMAT)
            try:
                piece = self._member.decompress(packed, PIECE_BYTES)
            except zlib.error:
                raise BrokenGzip("The body is not gzip, as its Content-Encoding says, or it is damaged.") from None
            packed = self._member.unconsumed_tail or self._member.unused_data
            full = len(piece) == PIECE_BYTES
            if piece:
                yield piece

    def end(self) -> None:
        """Take note that nothing follows.

        Raises:
            BrokenGzip: something should.
        """
        if self._fed and not self._member.eof:
            raise BrokenGzip("The body ends in the middle of its gzip data.")


def plain(body: bytes) -> Iterator[bytes]:
    """Yield `body` in pieces."""
    for start in range(0, len(body), PIECE_BYTES):
        yield body[start : start + PIECE_BYTES]


def _read(raw: bytes, number: int) -> Line:
    problem: InvalidLine
    try:
        found = _DECODER.decode(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
        head = _head(found if isinstance(found, dict) else {}, number)
    except UnicodeDecodeError as error:
        problem = LineNotJson(f"The line is not UTF-8 from byte {error.start} on.")
    except json.JSONDecodeError as error:
        problem = LineNotJson(f"The line is not JSON: {error.msg} at character {error.pos}.")
    except (ValueError, RecursionError):
        problem = LineNotJson("The line has a number or a nesting that is not read.")
    else:
        if isinstance(found, dict) and "text" in found:
            return Line(number, len(raw), head, found["text"])
        problem = InvalidLine("The line is not a JSON object with a member `text`.")
        return Line(number, len(raw), head, problem=problem)
    return Line(number, len(raw), _head({}, number), problem=problem)


def _head(members: dict[str, Any], number: int) -> bytes:
    """Return the members that come back, and the line's number."""
    given = {name: value for name, value in members.items() if name not in _OURS} | {"line": number}
    # Half of a surrogate pair, as JavaScript makes when it cuts a text, becomes the escape that JSON has for it.
    return _ENCODER.encode(given)[:-1].encode(errors="backslashreplace")


def _finite(number: str) -> float:
    """Return a number that can be written as JSON again."""
    if math.isinf(found := float(number)):
        raise ValueError("out of range")
    return found


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


# The standard library's: others make a fraction of an integer beyond 64 bits, which may be somebody's id.
_DECODER: Final = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse)
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
