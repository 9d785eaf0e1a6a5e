"""Bodies of jobs that are fetched from an address, below those that the operator names and nowhere else.

An address may hold a signature that lets whoever has it read: none is logged or told.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Self

import aiohttp
from yarl import URL

from app.domain.errors import SourceRefused, SourceUnreadable, StartupError

_PIECE: Final = 65_536  # bytes
_OK: Final = 200
_REFUSALS: Final = range(400, 500)
_GZIP: Final = frozenset({"gzip", "x-gzip"})


class Sources:
    """What may be fetched."""

    def __init__(self, allowed: list[URL]) -> None:
        self._allowed = allowed

    @classmethod
    def below(cls, addresses: str) -> Self:
        """Return what lies below any of `addresses`, which are separated by spaces.

        Raises:
            StartupError: one of them is no such address.
        """
        allowed = []
        for address in addresses.split():
            url = _parse(address)
            if url is None or url.raw_query_string or not url.raw_path.endswith("/"):
                raise StartupError(
                    "SENTIMENT_JOBS__SOURCES must have addresses that begin with https:// or http:// and end with /"
                )
            allowed.append(url)
        return cls(allowed)

    @asynccontextmanager
    async def open(self, address: str, *, idle_s: float) -> AsyncIterator[tuple[AsyncGenerator[bytes, None], bool]]:
        """Yield what is at `address`, in pieces, and whether it is gzipped.

        Redirections are not followed: they might lead anywhere.

        Raises:
            SourceRefused: it is not allowed, or refused there.
            SourceUnreadable: it could not be fetched, or not to its end; nothing came for `idle_s`.
        """
        url = _parse(address)
        if url is None or not any(_is_below(url, allowed) for allowed in self._allowed):
            raise SourceRefused("This service fetches nothing from there; SENTIMENT_JOBS__SOURCES says from where.")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=idle_s, sock_read=idle_s)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
                session.get(url, allow_redirects=False, headers={"Accept-Encoding": "gzip"}) as response,
            ):
                if response.status != _OK:
                    refused = response.status in _REFUSALS
                    raise (SourceRefused if refused else SourceUnreadable)(f"It answered with {response.status}.")
                coding = response.headers.get("Content-Encoding", "identity").strip().lower()
                if coding not in {*_GZIP, "identity"}:
                    raise SourceUnreadable("It came in a content coding other than gzip.")
                yield _pieces(response), coding in _GZIP or url.path.endswith(".gz")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise SourceUnreadable(f"It could not be read to its end ({type(error).__name__}).") from None


async def _pieces(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    async for piece in response.content.iter_chunked(_PIECE):
        yield piece


def _parse(address: str) -> URL | None:
    """Return an address that means the same to everybody, or None."""
    try:
        url = URL(address)
    except ValueError:
        return None
    plain = url.scheme in {"https", "http"} and url.host and url.raw_user is None and url.raw_password is None
    return url if plain and ".." not in url.path.replace("\\", "/").split("/") else None


def _is_below(url: URL, allowed: URL) -> bool:
    return url.origin() == allowed.origin() and url.raw_path.startswith(allowed.raw_path)
