"""Answers from a running service, through its stream; a connection that breaks is made anew."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from http import HTTPStatus
from itertools import islice
from typing import Final

import aiohttp

from app.domain.errors import CannotProceed

_PENDING: Final = 8_192  # texts without an answer; more than the service's window, so that it never runs dry
_LINES: Final = 256  # that are sent at a time
_ATTEMPTS: Final = 10  # in a row without an answer
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 30.0
_TIMEOUT: Final = aiohttp.ClientTimeout(sock_connect=10, sock_read=300)
_TEMPORARY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class _Interrupted(Exception):
    """One connection gives no more answers; another may."""

    def __init__(self, reason: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class RemoteScorer:
    """Answers with the service at `url`. It knows lines by their number, so none is lost or counted twice."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url.rstrip("/")
        self._session = session
        self._pending: deque[tuple[int, object]] = deque()
        self._all_read = False
        self._news = asyncio.Event()  # there is something to send, or nothing will follow
        self._room = asyncio.Event()
        self.model = ""

    async def introduce(self) -> None:
        """Ask which model answers.

        Raises:
            CannotProceed: nobody does.
        """
        try:
            async with self._session.get(f"{self._url}/health/ready") as response:
                found = (await response.json())["model"]
                self.model = f"{found['name']}/{found['version']}"
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
            raise CannotProceed(f"{self._url} does not answer as this service does: {_told(error)}") from None

    async def answers(self, chunks: AsyncIterator[Sequence[object]]) -> AsyncGenerator[list[bytes], None]:
        """Yield the answers to all texts, in order.

        Raises:
            CannotProceed: the service refuses, or does not come back.
        """
        reading = asyncio.create_task(self._read(chunks))
        attempts = 0
        try:
            while await self._has_work():
                try:
                    async with aclosing(self._converse()) as conversation:
                        async for answer in conversation:
                            attempts = 0
                            yield [answer]
                except (_Interrupted, aiohttp.ClientError, TimeoutError) as error:
                    attempts += 1
                    if attempts == _ATTEMPTS:
                        raise CannotProceed(f"{self._url}: {_told(error)}; --resume goes on from here") from None
                    wait_s = min(_FIRST_WAIT_S * 2 ** (attempts - 1), _LONGEST_WAIT_S)
                    await asyncio.sleep(max(wait_s, getattr(error, "retry_after_s", 0.0)))
            await reading  # raises what kept it from reading on
        finally:
            reading.cancel()

    async def _read(self, chunks: AsyncIterator[Sequence[object]]) -> None:
        number = 0
        try:
            async for chunk in chunks:
                self._pending.extend(enumerate(chunk, start=number))
                number += len(chunk)
                self._news.set()
                while len(self._pending) >= _PENDING:
                    self._room.clear()
                    await self._room.wait()
        finally:
            self._all_read = True
            self._news.set()

    async def _has_work(self) -> bool:
        while not self._pending and not self._all_read:
            self._news.clear()
            await self._news.wait()
        return bool(self._pending)

    async def _converse(self) -> AsyncGenerator[bytes, None]:
        """Send what has no answer, and yield the answers of one connection."""
        async with self._session.post(
            f"{self._url}/v1/sentiment/stream", data=self._lines(), headers={"Content-Type": "application/x-ndjson"}
        ) as response:
            if response.status != HTTPStatus.OK:
                raise await _refusal(response)
            async for line in response.content:
                yield self._take(line)
        if self._pending:
            raise _Interrupted("the answer ended before its last line")

    async def _lines(self) -> AsyncIterator[bytes]:
        following = self._pending[0][0]
        while True:
            answered = self._pending[0][0] if self._pending else following
            lines = list(islice(self._pending, following - answered, following - answered + _LINES))
            following += len(lines)
            if lines:
                yield b"".join(json.dumps({"id": number, "text": text}).encode() + b"\n" for number, text in lines)
            elif self._all_read:
                return
            else:
                self._news.clear()
                await self._news.wait()

    def _take(self, line: bytes) -> bytes:
        try:
            answer = json.loads(line)
            if "line" not in answer:
                raise _Interrupted(answer["error"]["title"])
            if answer["id"] != self._pending[0][0]:
                raise CannotProceed(f"{self._url} does not answer in order")
        except (ValueError, LookupError, TypeError):
            raise CannotProceed(f"{self._url} does not answer as this service does") from None
        self._pending.popleft()
        self._room.set()
        found = {name: answer[name] for name in ("sentiment", "error") if name in answer}
        return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()


@asynccontextmanager
async def remote_scorer(url: str, key: str | None) -> AsyncIterator[RemoteScorer]:
    """Open a session with the service at `url`, by an API key if it asks for one.

    Raises:
        CannotProceed: there is no such service.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(timeout=_TIMEOUT, headers=headers) as session:
        scorer = RemoteScorer(url, session)
        await scorer.introduce()
        yield scorer


async def _refusal(response: aiohttp.ClientResponse) -> Exception:
    try:
        detail = str(json.loads(await response.text())["detail"])
    except (ValueError, KeyError, TypeError):
        detail = response.reason or ""
    reason = f"answered {response.status}: {detail}"
    if response.status not in _TEMPORARY:
        return CannotProceed(f"{response.url} {reason}")
    after = response.headers.get("Retry-After", "")
    return _Interrupted(reason, retry_after_s=float(after) if after.isdecimal() else 0.0)


def _told(error: Exception) -> str:
    return str(error) or type(error).__name__
