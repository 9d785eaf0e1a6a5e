"""An answer in a few bytes, and back without loss. Knows nothing of Redis.

Layout, little-endian: version (1 byte), flags (1), the probability of each column of the model (float32), CRC-32 of the
key and of all before (4). Nine columns make 42 bytes; up to 44, Redis keeps a value in one piece with its head.
"""

import struct
import zlib
from typing import Final

from app.domain.labels import Heads
from app.domain.sentiment import Sentiment

_VERSION: Final = 1
_TRUNCATED: Final = 1
_CERTAIN: Final = 2
_CHECKSUM: Final = struct.Struct("<I")


class CorruptEntry(Exception):
    """The bytes are damaged, or were remembered under another key."""


class EntryFormat:
    """Writes and reads answers of a model with `heads`; none is rounded, for an `Engine` gives float32."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._content = struct.Struct(f"<BB{len(heads.columns)}f")

    def encode(self, key: bytes, sentiment: Sentiment) -> bytes:
        """Return the bytes to remember under `key`."""
        flags = _TRUNCATED * sentiment.truncated | _CERTAIN * sentiment.certain
        emotions = sentiment.emotions or {}
        content = self._content.pack(_VERSION, flags, *sentiment.probabilities.values(), *emotions.values())
        return content + _CHECKSUM.pack(_checksum(key, content))

    def decode(self, key: bytes, entry: bytes) -> Sentiment | None:
        """Return what `encode` was given, or None if another version of this program wrote `entry`.

        Raises:
            CorruptEntry: it is not what was remembered under `key`.
        """
        content, checksum = entry[: -_CHECKSUM.size], entry[-_CHECKSUM.size :]
        if len(checksum) < _CHECKSUM.size or _CHECKSUM.unpack(checksum)[0] != _checksum(key, content):
            raise CorruptEntry
        if content[:1] != bytes([_VERSION]) or len(content) != self._content.size:
            return None
        _, flags, *shares = self._content.unpack(content)
        polarity, emotions = self._heads.name(shares)
        return Sentiment(polarity, bool(flags & _TRUNCATED), bool(flags & _CERTAIN), emotions)


def _checksum(key: bytes, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(key))
