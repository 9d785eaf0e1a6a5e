"""Bodies that are lines of JSON, plain or gzipped: read in pieces, and written."""

import asyncio
import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, Self

from fastapi import Request

from app.api.lines import GZIP_FORMAT, Gunzip, plain
from app.domain.errors import NotNdjson

NDJSON: Final = "application/x-ndjson"
CHUNK: Final = 32  # lines that are tokenised together, if they come together
_NAMES: Final = frozenset({NDJSON, "application/ndjson", "application/jsonl", "application/x-jsonlines"})
_GZIP: Final = frozenset({"gzip", "x-gzip"})


def media_type_of(request: Request) -> str:
    """Return what the body is said to be, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_packed(request: Request) -> bool:
    """Return whether the body is gzipped.

    Raises:
        NotNdjson: it is something that cannot be read.
    """
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if media_type_of(request) not in _NAMES or coding not in {*_GZIP, "identity"}:
        raise NotNdjson(f"Send lines of JSON as Content-Type: {NDJSON}, plain or with Content-Encoding: gzip.")
    return coding in _GZIP


async def unpacked(bodies: AsyncGenerator[bytes, None], *, packed: bool) -> AsyncGenerator[bytes, None]:
    """Yield what `bodies` hold in pieces of bounded length.

    Raises:
        BrokenGzip: they are not what they say they are.
    """
    gunzip = Gunzip() if packed else None
    async with aclosing(bodies):
        async for body in bodies:
            for piece in gunzip.feed(body) if gunzip else plain(body):
                yield piece
                await asyncio.sleep(0)  # a thousand pieces without a line may come out of one message
    if gunzip:
        gunzip.end()


class Packer:
    """Packs an answer, if the client takes it so."""

    def __init__(self, *, packs: bool) -> None:
        self._packer = zlib.compressobj(zlib.Z_BEST_SPEED, wbits=GZIP_FORMAT) if packs else None
        self.headers = {"Content-Type": NDJSON, "Vary": "Accept-Encoding"}
        if packs:
            self.headers["Content-Encoding"] = "gzip"

    @classmethod
    def of(cls, request: Request) -> Self:
        """Return what packs the answer to `request`."""
        return cls(packs=_accepts_gzip(request.headers.get("accept-encoding", "")))

    def pack(self, content: bytes, *, more: bool) -> bytes:
        """Return what is to be sent; of what is known nothing is kept back."""
        if self._packer is None:
            return content
        return self._packer.compress(content) + self._packer.flush(zlib.Z_SYNC_FLUSH if more else zlib.Z_FINISH)


def _accepts_gzip(header: str) -> bool:
    """Return whether `Accept-Encoding` names gzip, and not with a weight of 0 (RFC 9110, section 12.5.3)."""
    for each in header.lower().split(","):
        coding, _, weight = each.partition(";")
        if coding.strip() in _GZIP:
            return weight.replace(" ", "").rstrip("0.") != "q="
    return False
