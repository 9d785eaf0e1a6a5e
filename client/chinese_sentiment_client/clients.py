"""The clients."""

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Final, Self

import httpx

from chinese_sentiment_client.batches import AsyncBatches, Batches
from chinese_sentiment_client.errors import UnexpectedAnswer
from chinese_sentiment_client.exchange import AsyncExchange, Exchange, encode
from chinese_sentiment_client.results import Answer, Model, TextError, unexpected
from chinese_sentiment_client.retries import Retries

_ONE: Final = "/v1/sentiment"
_MANY: Final = "/v1/sentiment/batch"
_JSON: Final = {"Content-Type": "application/json"}
_CHUNK: Final = 256  # texts of one request
_CHUNK_BYTES: Final = 1_000_000  # and their bytes; the service takes four million unless set otherwise


class SentimentClient:
    """Asks the service at `address`. May be used by several threads.

    An answer may take `timeout_s` for each request. `batches` are jobs that outlive connections. `http` is for proxies,
    certificates or transports of your own; it stays yours to close.
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
        self._exchange = Exchange(address, api_key, timeout_s, retries, http)
        self.batches = Batches(self._exchange)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._exchange.close()

    def classify(self, text: str) -> Answer:
        """Return what `text` expresses.

        Raises:
            Problem: the service refuses the text, or cannot answer.
            Unreachable: no answer came.
        """
        return _read_one(self._exchange.send("POST", _ONE, _JSON, encode({"text": text})))

    def classify_many(self, texts: Iterable[str], *, chunk: int = _CHUNK) -> Iterator[Answer | TextError]:
        """Yield, in order, what each of `texts` expresses, or why that text has no answer.

        `texts` may be endless: `chunk` at a time are read and sent. What was yielded before an exception stands.

        Raises:
            Problem: the service refuses, or cannot answer.
            Unreachable: no answer came.
        """
        for part in _chunks(texts, chunk):
            response = self._exchange.send("POST", _MANY, _JSON, encode({"texts": part}))
            yield from _read_many(response, len(part))


class AsyncSentimentClient:
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
        self._exchange = AsyncExchange(address, api_key, timeout_s, retries, http)
        self.batches = AsyncBatches(self._exchange)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._exchange.aclose()

    async def classify(self, text: str) -> Answer:
        """Return what `text` expresses.

        Raises:
            Problem: the service refuses the text, or cannot answer.
            Unreachable: no answer came.
        """
        return _read_one(await self._exchange.send("POST", _ONE, _JSON, encode({"text": text})))

    async def classify_many(self, texts: Iterable[str], *, chunk: int = _CHUNK) -> AsyncIterator[Answer | TextError]:
        """Yield, in order, what each of `texts` expresses, or why that text has no answer.

        `texts` may be endless: `chunk` at a time are read and sent. What was yielded before an exception stands.

        Raises:
            Problem: the service refuses, or cannot answer.
            Unreachable: no answer came.
        """
        for part in _chunks(texts, chunk):
            response = await self._exchange.send("POST", _MANY, _JSON, encode({"texts": part}))
            for result in _read_many(response, len(part)):
                yield result


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
        raise unexpected(response.url, error) from None


def _read_many(response: httpx.Response, count: int) -> list[Answer | TextError]:
    try:
        found = response.json()
        model = Model.of(found["model"])
        results = [
            TextError.of(result["error"]) if "error" in result else Answer.of(result, model)
            for result in found["results"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise unexpected(response.url, error) from None
    if len(results) != count:
        raise UnexpectedAnswer(f"{count} texts were sent, {len(results)} results came from {response.url}")
    return results
