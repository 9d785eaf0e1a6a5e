"""Batch jobs: the service keeps the texts and answers them, whatever becomes of connections."""

import asyncio
import gzip
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from tempfile import TemporaryFile
from typing import IO, Any, Final

import httpx

from chinese_sentiment_client.errors import Problem
from chinese_sentiment_client.exchange import AsyncExchange, Exchange, encode
from chinese_sentiment_client.results import Answer, Job, Model, TextError, unexpected

_PATH: Final = "/v1/batches"
_PACKING: Final = 1
_GONE: Final = 404
_AWAY: Final = 503


class Batches:
    """The batch jobs of one caller. Every method may raise `Problem` and `Unreachable`."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def create(self, texts: Iterable[str]) -> Job:
        """Send all of `texts`, and return the job that they are now, which is one though the request be sent twice."""
        with TemporaryFile() as file:
            _write(texts, file)
            return _read_job(self._exchange.send("POST", _PATH, _upload_headers(file), file))

    def create_from(self, source: str) -> Job:
        """Have the service fetch lines of JSON with a `text` each from an address, and return the job."""
        return _read_job(self._exchange.send("POST", _PATH, _reference_headers(), encode({"source": source})))

    def get(self, id: str) -> Job:  # noqa: A002 (the service calls it so)
        """Return how far a job is."""
        return _read_job(self._exchange.send("GET", f"{_PATH}/{id}", {}))

    def list(self) -> Iterator[Job]:
        """Yield all jobs, the newest first."""
        path: str | None = _PATH
        while path is not None:
            jobs, path = _read_page(self._exchange.send("GET", path, {}))
            yield from jobs

    def wait(self, id: str, *, every_s: float = 1.0, timeout_s: float | None = None) -> Job:  # noqa: A002
        """Return a job when it has ended, looking after it `every_s`.

        Raises:
            TimeoutError: it has not within `timeout_s`.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while not (job := self.get(id)).ended:
            _require_time(job, until)
            time.sleep(every_s)
        return job

    def results(self, id: str) -> Iterator[Answer | TextError]:  # noqa: A002
        """Yield what each text expresses, or why it has no answer, in order; before the end of a job there are gaps."""
        return self._exchange.lines(f"{_PATH}/{id}/results", _read_line)

    def cancel(self, id: str) -> Job:  # noqa: A002
        """Stop a job that has not ended, and return it; its answers stay."""
        return _read_job(self._exchange.send("POST", f"{_PATH}/{id}/cancel", {}))

    def delete(self, id: str) -> None:  # noqa: A002
        """Have nothing kept of a job, if there is something."""
        try:
            self._exchange.send("DELETE", f"{_PATH}/{id}", {})
        except Problem as problem:
            if problem.status != _GONE:
                raise


class AsyncBatches:
    """The same for asyncio."""

    def __init__(self, exchange: AsyncExchange) -> None:
        self._exchange = exchange

    async def create(self, texts: Iterable[str]) -> Job:
        """Send all of `texts`, and return the job that they are now, which is one though the request be sent twice."""
        with TemporaryFile() as file:
            await asyncio.to_thread(_write, texts, file)
            return _read_job(await self._exchange.send("POST", _PATH, _upload_headers(file), file))

    async def create_from(self, source: str) -> Job:
        """Have the service fetch lines of JSON with a `text` each from an address, and return the job."""
        return _read_job(await self._exchange.send("POST", _PATH, _reference_headers(), encode({"source": source})))

    async def get(self, id: str) -> Job:  # noqa: A002
        """Return how far a job is."""
        return _read_job(await self._exchange.send("GET", f"{_PATH}/{id}", {}))

    async def list(self) -> AsyncIterator[Job]:
        """Yield all jobs, the newest first."""
        path: str | None = _PATH
        while path is not None:
            jobs, path = _read_page(await self._exchange.send("GET", path, {}))
            for job in jobs:
                yield job

    async def wait(self, id: str, *, every_s: float = 1.0, timeout_s: float | None = None) -> Job:  # noqa: A002
        """Return a job when it has ended, looking after it `every_s`.

        Raises:
            TimeoutError: it has not within `timeout_s`.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while not (job := await self.get(id)).ended:
            _require_time(job, until)
            await asyncio.sleep(every_s)
        return job

    def results(self, id: str) -> AsyncIterator[Answer | TextError]:  # noqa: A002
        """Yield what each text expresses, or why it has no answer, in order; before the end of a job there are gaps."""
        return self._exchange.lines(f"{_PATH}/{id}/results", _read_line)

    async def cancel(self, id: str) -> Job:  # noqa: A002
        """Stop a job that has not ended, and return it; its answers stay."""
        return _read_job(await self._exchange.send("POST", f"{_PATH}/{id}/cancel", {}))

    async def delete(self, id: str) -> None:  # noqa: A002
        """Have nothing kept of a job, if there is something."""
        try:
            await self._exchange.send("DELETE", f"{_PATH}/{id}", {})
        except Problem as problem:
            if problem.status != _GONE:
                raise


def _reference_headers() -> dict[str, str]:
    return {"Content-Type": "application/json", "Idempotency-Key": str(uuid.uuid4())}


def _upload_headers(file: IO[bytes]) -> dict[str, str]:
    return {
        "Content-Length": str(file.tell()),
        "Content-Type": "application/x-ndjson",
        "Content-Encoding": "gzip",
        "Idempotency-Key": str(uuid.uuid4()),
    }


def _write(texts: Iterable[str], file: IO[bytes]) -> None:
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=_PACKING) as packed:
        packed.writelines(encode({"text": text}) + b"\n" for text in texts)


def _read_job(response: httpx.Response) -> Job:
    try:
        return Job.of(response.json())
    except (ValueError, KeyError, TypeError) as error:
        raise unexpected(response.url, error) from None


def _read_page(response: httpx.Response) -> tuple[list[Job], str | None]:
    """Return the jobs of a page, and where the next one is."""
    try:
        found: dict[str, Any] = response.json()
        jobs, after = [Job.of(job) for job in found["batches"]], found["next"]
    except (ValueError, KeyError, TypeError) as error:
        raise unexpected(response.url, error) from None
    return jobs, None if after is None else f"{_PATH}?after={after}"


def _read_line(line: str) -> tuple[int, Answer | TextError]:
    """Return the number of a line and its result."""
    try:
        found: dict[str, Any] = json.loads(line)
        if "error" in found and "line" not in found:  # it concerns all that was to come
            raise Problem(status=_AWAY, **{name: found["error"][name] for name in ("type", "title", "detail")})
        if "error" in found:
            return found["line"], TextError.of(found["error"])
        return found["line"], Answer.of(found["sentiment"], Model.of(found["sentiment"]["model"]))
    except (ValueError, KeyError, TypeError) as error:
        raise unexpected(_PATH, error) from None


def _require_time(job: Job, until: float | None) -> None:
    if until is not None and time.monotonic() >= until:
        raise TimeoutError(f"job {job.id} is still {job.state}: {job.done} of {job.lines} lines")
