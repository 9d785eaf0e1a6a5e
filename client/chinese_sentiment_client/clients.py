"""The clients. What they share knows no socket; each adds how to send and how to wait."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import count
from typing import Any, Final, Self

import httpx

from chinese_sentiment_client.errors import Problem, SentimentError, UnexpectedAnswer, Unreachable
from chinese_sentiment_client.results import Answer, Model, TextError
from chinese_sentiment_client.retries import Retries

_ONE: Final = "/v1/sentiment"
_MANY: Final = "/v1/sentiment/batch"
_CHUNK: Final = 256  # texts of one request
_CHUNK_BYTES: Final = 1_000_000  # and their bytes; the service takes four million unless set otherwise
_GRACE_S: Final = 2.0  # for the service to tell that the time is up
_BUSY: Final = frozenset({429, 502, 503})
# To classify a text twice does no harm, so a request may be sent again though it may have arrived. An answer that did
# not come in time is not asked for again: the time is up.
_PASSING: Final = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)


class _Client:
    def __init__(self, address: str, api_key: str | None, timeout_s: float, retries: Retries) -> None:
        self._address = address.rstrip("/")
        self._headers = {
            "Content-Type": "application/json",
            "X-Request-Timeout-Ms": str(max(1, round(timeout_s * 1e3))),
        }
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout_s = timeout_s + _GRACE_S
        self._retries = retries

    def _request(self, path: str, body: dict[str, object]) -> dict[str, Any]:
        """Return what httpx is to send."""
        return {
            "url": self._address + path,
            "content": _encode(body),
            "headers": self._headers,
            "timeout": self._timeout_s,
        }

    def _pause_s(self, attempt: int, failure: httpx.Response | httpx.RequestError) -> float:
        """Return how long to wait before the next attempt, or raise what `failure` means."""
        error: SentimentError
        if isinstance(failure, httpx.Response):
            error = problem = Problem.of(failure)
            passing, retry_after_s = problem.status in _BUSY, problem.retry_after_s
        else:
            error = Unreachable(f"{self._address}: {str(failure) or type(failure).__name__}")
            passing, retry_after_s = isinstance(failure, _PASSING), None
        pause_s = self._retries.pause_s(attempt, retry_after_s) if passing else None
        if pause_s is None:
            raise error from (failure if isinstance(failure, Exception) else None)
        return pause_s


class SentimentClient(_Client):
    """Asks the service at `address`. May be used by several threads.

    An answer may take `timeout_s` for each request. `http` is for proxies, certificates or transports of your own; it
    stays yours to close.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: Retries = Retries(),  # noqa: B008 (frozen)
        http: httpx.Client | None = None,
    ) -> None:
        super().__init__(address, api_key, timeout_s, retries)
        self._http = http or httpx.Client()
        self._owns_http = http is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._owns_http:
            self._http.close()

    def classify(self, text: str) -> Answer:
        """Return what `text` expresses.

        Raises:
            Problem: the service refuses the text, or cannot answer.
            Unreachable: no answer came.
        """
        return _read_one(self._post(_ONE, {"text": text}))

    def classify_many(self, texts: Iterable[str], *, chunk: int = _CHUNK) -> Iterator[Answer | TextError]:
        """Yield, in order, what each of `texts` expresses, or why that text has no answer.

        `texts` may be endless: `chunk` at a time are read and sent. What was yielded before an exception stands.

        Raises:
            Problem: the service refuses, or cannot answer.
            Unreachable: no answer came.
        """
        for part in _chunks(texts, chunk):
            yield from _read_many(self._post(_MANY, {"texts": part}), len(part))

    def _post(self, path: str, body: dict[str, object]) -> httpx.Response:
        request = self._request(path, body)
        for attempt in count(1):
            try:
                response = self._http.post(**request)
            except httpx.RequestError as error:
                pause_s = self._pause_s(attempt, error)
            else:
                if response.is_success:
                    return response
                pause_s = self._pause_s(attempt, response)
            time.sleep(pause_s)
        raise AssertionError  # the last attempt returns or raises


class AsyncSentimentClient(_Client):
    """The same for asyncio."""

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: Retries = Retries(),  # noqa: B008 (frozen)
        http: httpx.AsyncClient | None = None,
    ) -> None:
        super().__init__(address, api_key, timeout_s, retries)
        self._http = http or httpx.AsyncClient()
        self._owns_http = http is None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._owns_http:
            await self._http.aclose()

    async def classify(self, text: str) -> Answer:
        """Return what `text` expresses.

        Raises:
            Problem: the service refuses the text, or cannot answer.
            Unreachable: no answer came.
        """
        return _read_one(await self._post(_ONE, {"text": text}))

    async def classify_many(self, texts: Iterable[str], *, chunk: int = _CHUNK) -> AsyncIterator[Answer | TextError]:
        """Yield, in order, what each of `texts` expresses, or why that text has no answer.

        `texts` may be endless: `chunk` at a time are read and sent. What was yielded before an exception stands.

        Raises:
            Problem: the service refuses, or cannot answer.
            Unreachable: no answer came.
        """
        for part in _chunks(texts, chunk):
            for result in _read_many(await self._post(_MANY, {"texts": part}), len(part)):
                yield result

    async def _post(self, path: str, body: dict[str, object]) -> httpx.Response:
        request = self._request(path, body)
        for attempt in count(1):
            try:
                response = await self._http.post(**request)
            except httpx.RequestError as error:
                pause_s = self._pause_s(attempt, error)
            else:
                if response.is_success:
                    return response
                pause_s = self._pause_s(attempt, response)
            await asyncio.sleep(pause_s)
        raise AssertionError  # the last attempt returns or raises


def _encode(body: dict[str, object]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair: the service tells in which text
        return json.dumps(body).encode()


def _chunks(texts: Iterable[str], most: int) -> Iterator[list[str]]:
    """Cut `texts` into lists of at most `most`, and of no more bytes than a body should have."""
    chunk: list[str] = []
    size = 0
    for text in texts:
        added = len(text.encode(errors="surrogatepass"))
        if chunk and (len(chunk) >= most or size + added > _CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(text)
        size += added
    if chunk:
        yield chunk


def _read_one(response: httpx.Response) -> Answer:
    try:
        found = response.json()
        return Answer.of(found, Model.of(found["model"]))
    except (ValueError, KeyError, TypeError) as error:
        raise _unexpected(response, error) from None


def _read_many(response: httpx.Response, count: int) -> list[Answer | TextError]:
    try:
        found = response.json()
        model = Model.of(found["model"])
        results = [
            TextError.of(result["error"]) if "error" in result else Answer.of(result, model)
            for result in found["results"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise _unexpected(response, error) from None
    if len(results) != count:
        raise UnexpectedAnswer(f"{count} texts were sent, {len(results)} results came from {response.url}")
    return results


def _unexpected(response: httpx.Response, error: Exception) -> UnexpectedAnswer:
    return UnexpectedAnswer(f"what {response.url} answered is not an answer ({type(error).__name__})")
