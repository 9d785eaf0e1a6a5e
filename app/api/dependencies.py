"""What routes ask for: the running services, and a client that is still there."""

import asyncio
from types import TracebackType
from typing import Annotated, Final, cast

from fastapi import Depends, HTTPException, Request

from app.domain.errors import InvalidHeader
from app.inference.classifier import CacheUse
from app.services import Services

TIMEOUT_HEADER: Final = "X-Request-Timeout-Ms"
_MOST_DIGITS: Final = 9
_CLIENT_CLOSED_REQUEST: Final = 499  # nginx's number; HTTP has none


# A coroutine, though it waits for nothing: FastAPI runs a plain function in a thread, which costs every request
# switches between threads while the model keeps the processors busy.
async def get_services(request: Request) -> Services:
    """Return the services that the lifespan opened."""
    return cast(Services, request.state.services)


ServicesDependency = Annotated[Services, Depends(get_services)]


def timeout_s(request: Request, longest_s: float) -> float:
    """Return how long this client waits for its answer: what it says in the header, at most `longest_s`.

    Raises:
        InvalidHeader: the header is not a number of milliseconds.
    """
    said = request.headers.get(TIMEOUT_HEADER)
    if said is None:
        return longest_s
    if not (said.isascii() and said.isdecimal() and len(said) <= _MOST_DIGITS and int(said)):
        raise InvalidHeader(f"{TIMEOUT_HEADER} must be a number of milliseconds, 1 or more.")
    return min(int(said) / 1e3, longest_s)


def cache_use(request: Request) -> CacheUse:
    """Return what the client's `Cache-Control` (RFC 9111, section 5.2.1) lets the cache do."""
    values = request.headers.getlist("cache-control")
    if not values:
        return CacheUse.FULL
    directives = {directive.strip().lower() for value in values for directive in value.split(",")}
    if "no-store" in directives:
        return CacheUse.NONE
    return CacheUse.RENEW if "no-cache" in directives else CacheUse.FULL


class while_connected:  # noqa: N801 (reads like the context managers of contextlib)
    """Cancel what runs inside when the client leaves, so that nobody's answer costs nobody's time.

    Then leaving raises an HTTPException of 499, which no one reads, for the log and the metrics. The client is watched
    from the first time that the inside waits: a remembered answer does not pay for it.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._left = False
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (for the type checker)
        self._task = task
        self._start = asyncio.get_running_loop().call_soon(self._begin)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._start.cancel()
        if self._watch is not None:
            self._watch.cancel()
        if self._left and not self._task.uncancel() and kind is asyncio.CancelledError:
            raise HTTPException(_CLIENT_CLOSED_REQUEST)

    def _begin(self) -> None:
        self._watch = asyncio.ensure_future(self._until_departure())

    async def _until_departure(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self._task.cancel()
