"""Batch jobs whose lines are fetched from an address, from a real HTTP server."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from aiohttp import web

from app.domain.errors import StartupError
from app.jobs.sources import Sources
from app.main import create_app
from app.settings import Jobs
from tests.http.served import assert_problem, client_of, small_settings, until

pytestmark = pytest.mark.anyio

_PATH: Final = "/v1/batches"
_MAX_BYTES: Final = 50_000
_SIGNATURE: Final = "signature=aHVzaA"
_LINES: Final = "".join(json.dumps({"id": number, "text": f"好{number}"}) + "\n" for number in range(300)).encode()


_FILES: Final[dict[str, dict[str, Any]]] = {
    "plain.jsonl": {"body": _LINES},
    "packed.jsonl.gz": {"body": gzip.compress(_LINES)},
    "coded.jsonl": {"body": gzip.compress(_LINES), "headers": {"Content-Encoding": "gzip"}},
    "brotli.jsonl": {"body": b"?", "headers": {"Content-Encoding": "br"}},
    "torn.jsonl.gz": {"body": gzip.compress(_LINES)[:-20]},
    "large.jsonl": {"body": b" " * (_MAX_BYTES + 1)},
    "elsewhere.jsonl": {"status": 302, "headers": {"Location": "/secret/plain.jsonl"}},
    "failing.jsonl": {"status": 500},
}


async def _file(request: web.Request) -> web.StreamResponse:
    return web.Response(**_FILES.get(request.match_info["name"], {"status": 404}))


async def _broken_file(request: web.Request) -> web.StreamResponse:
    """Send the beginning of a file, and then nothing."""
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(_LINES[:1_000])
    if request.path.endswith("silent.jsonl"):
        await asyncio.sleep(30)
    assert request.transport is not None
    request.transport.close()
    return response


@pytest.fixture(scope="module")
async def files() -> AsyncIterator[str]:
    """Yield the address of a server that keeps files below /open/ and /secret/."""
    application = web.Application()
    application.router.add_get("/open/{name:cut.jsonl|silent.jsonl}", _broken_file)
    application.router.add_get("/{directory}/{name}", _file)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@asynccontextmanager
async def _client(bundle: Path, directory: Path, sources: str) -> AsyncIterator[httpx.AsyncClient]:
    jobs = Jobs.model_validate(
        {"url": f"sqlite:///{directory / 'jobs.db'}", "max_bytes": _MAX_BYTES, "sources": sources, "max_of_caller": 4}
    )
    settings = small_settings(bundle, stream_idle_s=0.5).model_copy(update={"jobs": jobs})
    async with client_of(create_app(settings)) as client:
        yield client


@pytest.fixture(scope="module")
async def client(
    tiny_bundle: Path, files: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[httpx.AsyncClient]:
    allowed = f"https://elsewhere.example/ {files}/open/"
    async with _client(tiny_bundle, tmp_path_factory.mktemp("jobs"), allowed) as client:
        yield client


async def _answers(client: httpx.AsyncClient, response: httpx.Response) -> str:
    """Return the answers of the job that was made, and delete it."""
    assert response.status_code == 202, response.text
    path = response.headers["Location"]

    async def ended() -> bool:
        return (await client.get(path)).json()["ended_at"] is not None

    await until(ended)
    answers = (await client.get(f"{path}/results")).text.replace('"cached":true', '"cached":false')
    await client.delete(path)
    return answers


@pytest.mark.parametrize("name", ["plain.jsonl", "packed.jsonl.gz", "coded.jsonl", f"plain.jsonl?{_SIGNATURE}"])
async def test_lines_that_are_fetched_are_answered_like_lines_that_are_sent(
    client: httpx.AsyncClient, files: str, name: str, logged: Callable[[], list[dict[str, Any]]]
) -> None:
    sent = await client.post(_PATH, content=_LINES, headers={"Content-Type": "application/x-ndjson"})
    fetched = await client.post(_PATH, json={"source": f"{files}/open/{name}"})
    assert fetched.json()["lines"] == 300
    assert await _answers(client, fetched) == await _answers(client, sent)
    assert "signature" not in str(logged())


@pytest.mark.parametrize(
    "source",
    [
        "{files}/secret/plain.jsonl",
        "{files}/open",
        "{files}/open/../secret/plain.jsonl",
        "{files}/open/%2e%2e/secret/plain.jsonl",
        "{files}/open/..%2fsecret/plain.jsonl",
        "{files}/open/..\\secret/plain.jsonl",
        "{files}.evil.example/open/plain.jsonl",
        "{files}@evil.example/open/plain.jsonl",
        "http://127.0.0.1:1/open/plain.jsonl",
        "https://127.0.0.1/open/plain.jsonl",
        "http://user:password@elsewhere.example/plain.jsonl",
        "file:///etc/passwd",
        "/open/plain.jsonl",
        "http://[",
        "",
    ],
)
async def test_nothing_is_fetched_from_where_it_is_not_allowed(
    client: httpx.AsyncClient, files: str, source: str
) -> None:
    response = await client.post(_PATH, json={"source": source.format(files=files)})
    detail = assert_problem(response, 422, "source-refused")["detail"]
    assert "SENTIMENT_JOBS__SOURCES" in detail
    assert "secret" not in detail


@pytest.mark.parametrize(
    ("name", "problem", "detail"),
    [
        ("missing.jsonl", (422, "source-refused"), "404"),
        ("elsewhere.jsonl", (502, "source-unreadable"), "302"),
        ("failing.jsonl", (502, "source-unreadable"), "500"),
        ("brotli.jsonl", (502, "source-unreadable"), "gzip"),
        ("cut.jsonl", (502, "source-unreadable"), "to its end"),
        ("silent.jsonl", (502, "source-unreadable"), "to its end"),
        ("torn.jsonl.gz", (400, "broken-gzip"), ""),
        ("large.jsonl", (413, "job-too-large"), ""),
    ],
)
async def test_what_cannot_be_fetched_whole_is_told_and_leaves_no_job(
    client: httpx.AsyncClient, files: str, name: str, problem: tuple[int, str], detail: str
) -> None:
    response = await client.post(_PATH, json={"source": f"{files}/open/{name}?{_SIGNATURE}"})
    found = assert_problem(response, *problem)["detail"]
    assert detail in found
    assert "signature" not in found
    assert (await client.get(_PATH)).json()["batches"] == []


async def test_a_server_that_is_away_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    async with _client(tiny_bundle, tmp_path, "http://127.0.0.1:1/") as client:
        response = await client.post(_PATH, json={"source": "http://127.0.0.1:1/plain.jsonl"})
        assert_problem(response, 502, "source-unreadable")


async def test_by_default_nothing_is_fetched(tiny_bundle: Path, tmp_path: Path, files: str) -> None:
    async with _client(tiny_bundle, tmp_path, "") as client:
        response = await client.post(_PATH, json={"source": f"{files}/open/plain.jsonl"})
        assert_problem(response, 422, "source-refused")


@pytest.mark.parametrize(
    ("content", "status", "name"),
    [
        (b"{", 415, "not-ndjson"),
        (_LINES, 415, "not-ndjson"),
        (b'{"id": 1, "text": "x"}', 415, "not-ndjson"),
        (b'{"source": 7}', 422, "invalid-request"),
        (b'{"source": "http://a/", "text": "x"}', 422, "invalid-request"),
        (json.dumps({"source": "x" * 4_097}).encode(), 422, "invalid-request"),
        (b" " * 16_385, 413, "body-too-large"),
    ],
)
async def test_a_reference_that_is_none_is_refused(
    client: httpx.AsyncClient, content: bytes, status: int, name: str
) -> None:
    response = await client.post(_PATH, content=content, headers={"Content-Type": "application/json"})
    assert_problem(response, status, name)


@pytest.mark.parametrize(
    "address",
    ["ftp://files.example/", "https://files.example/open", "https://u:p@files.example/", "files/", "https:///"],
)
def test_addresses_that_allow_nothing_sensible_stop_the_start(address: str) -> None:
    with pytest.raises(StartupError, match="SENTIMENT_JOBS__SOURCES"):
        Sources.below(f"https://good.example/ {address}")
