"""Requests and their answers, tried again where that may help. What both ways share knows no socket."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from itertools import count
from typing import IO, Any, Final, TypeAlias, TypeVar

import httpx

from chinese_sentiment_client.errors import Problem, SentimentError, Unreachable
from chinese_sentiment_client.retries import Retries

_GRACE_S: Final = 2.0  # for the service to tell that the time is up
_PIECE: Final = 65_536  # bytes
_BUSY: Final = frozenset({429, 502, 503})
# Every request may be sent again though it may have arrived: to classify a text twice does no harm, and the others say
# by what they are known. An answer that did not come in time is not asked for again: the time is up.
_PASSING: Final = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)

_Failure: TypeAlias = httpx.Response | httpx.RequestError | Problem
_Read = TypeVar("_Read")


class _Exchange:
    def __init__(self, address: str, api_key: str | None, timeout_s: float, retries: Retries) -> None:
        self._address = address.rstrip("/")
        self._headers = {"X-Request-Timeout-Ms": str(max(1, round(timeout_s * 1e3)))}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout_s = timeout_s + _GRACE_S
        self._retries = retries

    def _request(self, method: str, path: str, headers: Mapping[str, str], **more: Any) -> dict[str, Any]:
        """Return what httpx is to send."""
        return {
            "method": method,
            "url": self._address + path,
            "headers": {**self._headers, **headers},
            "timeout": self._timeout_s,
            **more,
        }

    def _pause_s(self, attempt: int, failure: _Failure) -> float:
        """Return how long to wait before the next attempt, or raise what `failure` means."""
        error: SentimentError
        if isinstance(failure, httpx.RequestError):
            error = Unreachable(f"{self._address}: {str(failure) or type(failure).__name__}")
            passing, retry_after_s = isinstance(failure, _PASSING), None
        else:
            error = problem = failure if isinstance(failure, Problem) else Problem.of(failure)
            passing, retry_after_s = problem.status in _BUSY, problem.retry_after_s
        pause_s = self._retries.pause_s(attempt, retry_after_s) if passing else None
        if pause_s is None:
            raise error from (failure if isinstance(failure, httpx.RequestError) else None)
        return pause_s


class Exchange(_Exchange):
    """Asks the service at `address`."""

    def __init__(
        self, address: str, api_key: str | None, timeout_s: float, retries: Retries, http: httpx.Client | None
    ) -> None:
        super().__init__(address, api_key, timeout_s, retries)
        self._http = http or httpx.Client()
        self._owns_http = http is None

    def close(self) -> None:
        """Close the connections."""
        if self._owns_http:
            self._http.close()

    def send(
        self, method: str, path: str, headers: Mapping[str, str], content: bytes | IO[bytes] | None = None
    ) -> httpx.Response:
        """Return the response to a request, which is a success.

        Raises:
            Problem: the service refuses, or cannot answer.
            Unreachable: no answer came.
        """
        request = self._request(method, path, headers)
        for attempt in count(1):
            body = content if content is None or isinstance(content, bytes) else _pieces(content)
            try:
                response = self._http.request(**request, content=body)
            except httpx.RequestError as error:
                pause_s = self._pause_s(attempt, error)
            else:
                if response.is_success:
                    return response
                pause_s = self._pause_s(attempt, response)
            time.sleep(pause_s)
        raise AssertionError  # the last attempt returns or raises

    def lines(self, path: str, read: Callable[[str], tuple[int, _Read]]) -> Iterator[_Read]:
        """Yield what `read` makes of each line of an answer; its number says where to go on if the answer breaks off.

        Raises:
            Problem: the service refuses, or cannot answer.
            Unreachable: no answer came.
        """
        request = self._request("GET", path, {})
        done = 0
        attempt = 1
        while True:
            failure: _Failure
            try:
                with self._http.stream(**request) as response:
                    if response.is_success:
                        for line in response.iter_lines():
                            number, result = read(line)
                            if number > done:
                                yield result
                                done, attempt = number, 1
                        return
                    response.read()
                    failure = response
            except (httpx.RequestError, Problem) as error:
                failure = error
            time.sleep(self._pause_s(attempt, failure))
            attempt += 1


class AsyncExchange(_Exchange):
    """The same for asyncio."""

    def __init__(
        self, address: str, api_key: str | None, timeout_s: float, retries: Retries, http: httpx.AsyncClient | None
    ) -> None:
        super().__init__(address, api_key, timeout_s, retries)
        self._http = http or httpx.AsyncClient()
        self._owns_http = http is None

    async def aclose(self) -> None:
        """Close the connections."""
        if self._owns_http:
            await self._http.aclose()

    async def send(
        self, method: str, path: str, headers: Mapping[str, str], content: bytes | IO[bytes] | None = None
    ) -> httpx.Response:
        """Return the response to a request, which is a success.

        Raises:
            Problem: the service refuses, or cannot answer.
            Unreachable: no answer came.
        """
        request = self._request(method, path, headers)
        for attempt in count(1):
            body = content if content is None or isinstance(content, bytes) else _async_pieces(content)
            try:
                response = await self._http.request(**request, content=body)
            except httpx.RequestError as error:
                pause_s = self._pause_s(attempt, error)
            else:
                if response.is_success:
                    return response
                pause_s = self._pause_s(attempt, response)
            await asyncio.sleep(pause_s)
        raise AssertionError  # the last attempt returns or raises

    async def lines(self, path: str, read: Callable[[str], tuple[int, _Read]]) -> AsyncIterator[_Read]:
        """Yield what `read` makes of each line of an answer; its number says where to go on if the answer breaks off.

        Raises:
            Problem: the service refuses, or cannot answer.
            Unreachable: no answer came.
        """
        request = self._request("GET", path, {})
        done = 0
        attempt = 1
        while True:
            failure: _Failure
            try:
                async with self._http.stream(**request) as response:
                    if response.is_success:
                        async for line in response.aiter_lines():
                            number, result = read(line)
                            if number > done:
                                yield result
                                done, attempt = number, 1
                        return
                    await response.aread()
                    failure = response
            except (httpx.RequestError, Problem) as error:
                failure = error
            await asyncio.sleep(self._pause_s(attempt, failure))
            attempt += 1


def encode(body: dict[str, object]) -> bytes:
    """Return `body` as JSON."""
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair: the service tells in which text
        return json.dumps(body).encode()


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(_PIECE):
        yield piece


async def _async_pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    for piece in _pieces(file):
        yield piece
