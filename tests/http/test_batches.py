"""Batch jobs, from the upload to the answers."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgi_lifespan import LifespanManager
from starlette.types import ASGIApp

from app.api.admission import admit_later
from app.main import create_app
from app.security.gate import Gate
from app.security.keys import KeyRing, add_key
from app.security.limits import LocalLedger
from app.settings import Jobs, Security
from app.telemetry.prometheus import Metrics
from tests.http.served import MAX_CHARACTERS, STREAM, asgi_client, assert_problem, client_of, small_settings, until
from tests.http.wire import wire_to
from tests.tiny_bundle import POISON

pytestmark = pytest.mark.anyio

Logged = Callable[[], list[dict[str, Any]]]

_PATH = "/v1/batches"
_NDJSON = {"Content-Type": "application/x-ndjson", "Accept-Encoding": ""}
_MAX_BYTES, _MAX_LINES = 200_000, 1_000
_BAD = (
    '{"text": ""}',
    json.dumps({"text": "好" * (MAX_CHARACTERS + 1)}),
    json.dumps({"text": "好", "more": "x" * STREAM.max_line_bytes}),
    '{"text": 7}',
    '{"text": "\\ud83d", "id": 1267650600228229401496703205376}',
    '{"text": "a',
    "[]",
    "",
    '\r{"text": "好"}\r',
    json.dumps({"text": POISON}),
    "\x00",
    '{"line": 5, "text": "差", "error": "mine"}',
)


def _app(bundle: Path, directory: Path, security: Security | None = None, **jobs: float) -> ASGIApp:
    settings = Jobs.model_validate(
        {"url": f"sqlite:///{directory / 'jobs.db'}", "max_bytes": _MAX_BYTES, "max_lines": _MAX_LINES, **jobs}
    )
    update = {"jobs": settings, "security": security or Security()}
    return create_app(small_settings(bundle).model_copy(update=update))


@pytest.fixture(scope="module")
async def app(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ASGIApp]:
    app = _app(tiny_bundle, tmp_path_factory.mktemp("jobs"), max_of_caller=1_000)
    async with LifespanManager(app, startup_timeout=60) as manager:
        yield manager.app


@pytest.fixture
async def client(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    async with asgi_client(app) as client:
        yield client


def _lines(count: int) -> bytes:
    return "".join(json.dumps({"id": number, "text": f"好{number}"}) + "\n" for number in range(count)).encode()


async def _begin(client: httpx.AsyncClient, content: bytes, **headers: str) -> dict[str, Any]:
    response = await client.post(_PATH, content=content, headers={**_NDJSON, **headers})
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    assert response.headers["Location"] == f"{_PATH}/{job['id']}"
    return job


async def _ended(client: httpx.AsyncClient, job: dict[str, Any], **headers: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def over() -> bool:
        found.update((await client.get(f"{_PATH}/{job['id']}", headers=headers)).json())
        return found["ended_at"] is not None

    await until(over)
    return found


async def _results(client: httpx.AsyncClient, job: dict[str, Any], **headers: str) -> str:
    response = await client.get(f"{_PATH}/{job['id']}/results", headers={"Accept-Encoding": "", **headers})
    assert (response.status_code, response.headers["Content-Type"]) == (200, "application/x-ndjson")
    return response.text


async def _no_jobs(client: httpx.AsyncClient, **headers: str) -> bool:
    return bool((await client.get(_PATH, headers=headers)).json() == {"batches": [], "next": None})


@asynccontextmanager
async def _empty_client(bundle: Path, directory: Path, **jobs: float) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(_app(bundle, directory, None, **jobs)) as client:
        yield client


async def test_a_job_answers_as_a_stream_does_row_by_row(client: httpx.AsyncClient) -> None:
    good = [json.dumps({"id": number, "text": f"好{number}", "shop": {"名": number}}) for number in range(400)]
    lines = [line for number, one in enumerate(good) for line in (one, _BAD[number % len(_BAD)])]
    content = "\ufeff" + "\n".join(lines)
    uncached = {"Cache-Control": "no-store"}
    job = await _begin(client, content.encode(), **uncached)
    ended = await _ended(client, job)
    answers = await _results(client, job)
    headers = {**_NDJSON, **uncached}
    assert answers == (await client.post("/v1/sentiment/stream", content=content.encode(), headers=headers)).text
    errors = answers.count('"error":{')
    assert (ended["state"], ended["lines"], ended["done"]) == ("completed", len(answers.splitlines()), ended["lines"])
    assert (ended["errors"], ended["progress"]) == (errors, 1.0)
    assert 0 < errors < ended["lines"]
    assert ended["created_at"] <= ended["started_at"] <= ended["ended_at"] < ended["expires_at"]


async def test_both_directions_may_be_packed(client: httpx.AsyncClient) -> None:
    job = await _begin(client, gzip.compress(_lines(600)), **{"Content-Encoding": "gzip"})
    await _ended(client, job)
    packed = await client.get(f"{_PATH}/{job['id']}/results", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.text == await _results(client, job)
    assert [json.loads(line)["id"] for line in packed.text.splitlines()] == list(range(600))


@pytest.mark.parametrize("content", [b"", b"\n \n\n"])
async def test_a_job_of_nothing_has_nothing_to_answer(client: httpx.AsyncClient, content: bytes) -> None:
    job = await _begin(client, content)
    assert (job["state"], job["lines"], job["progress"]) == ("completed", 0, 1.0)
    assert await _results(client, job) == ""


async def test_jobs_are_listed_page_by_page_the_newest_first(tiny_bundle: Path, tmp_path: Path) -> None:
    async with _empty_client(tiny_bundle, tmp_path) as client:
        made: list[str] = []
        for _ in range(5):
            made.insert(0, (await _begin(client, b""))["id"])
            await asyncio.sleep(0.002)  # ids tell milliseconds apart
        found, after = [], ""
        while True:
            page = (await client.get(f"{_PATH}?limit=2{after}")).json()
            found += [job["id"] for job in page["batches"]]
            if page["next"] is None:
                break
            after = f"&after={page['next']}"
        assert found == made
        for wrong in ("limit=0", "limit=101", "limit=x", "after=%00"):
            assert_problem(await client.get(f"{_PATH}?{wrong}"), 422, "invalid-request")


async def test_a_deleted_job_is_gone(client: httpx.AsyncClient) -> None:
    job = await _begin(client, _lines(10))
    assert (await client.delete(f"{_PATH}/{job['id']}")).status_code == 204
    for method, path in (("GET", ""), ("GET", "/results"), ("POST", "/cancel"), ("DELETE", "")):
        assert_problem(await client.request(method, f"{_PATH}/{job['id']}{path}"), 404, "unknown-job")


async def test_without_a_database_every_route_says_what_turns_jobs_on(tiny_bundle: Path) -> None:
    async with client_of(create_app(small_settings(tiny_bundle))) as client:
        for method, path in (
            ("POST", ""),
            ("GET", ""),
            ("GET", "/x"),
            ("GET", "/x/results"),
            ("POST", "/x/cancel"),
            ("DELETE", "/x"),
        ):
            response = await client.request(method, f"{_PATH}{path}", headers=_NDJSON)
            assert "SENTIMENT_JOBS__URL" in assert_problem(response, 404, "jobs-off")["detail"]


# Refusals


@pytest.mark.parametrize(
    ("content", "headers", "status", "name"),
    [
        (_lines(_MAX_LINES + 1), {}, 413, "job-too-large"),
        (b" " * (_MAX_BYTES + 1), {}, 413, "job-too-large"),
        (gzip.compress(b"\n" * (_MAX_BYTES + 1)), {"Content-Encoding": "gzip"}, 413, "job-too-large"),
        (_lines(1), {"Content-Encoding": "gzip"}, 400, "broken-gzip"),
        (gzip.compress(_lines(900))[:-20], {"Content-Encoding": "gzip"}, 400, "broken-gzip"),
        (_lines(1), {"Content-Type": "application/json"}, 415, "not-ndjson"),
    ],
)
async def test_what_is_refused_leaves_no_job(  # noqa: PLR0917 (its cases)
    tiny_bundle: Path, tmp_path: Path, content: bytes, headers: dict[str, str], status: int, name: str
) -> None:
    async with _empty_client(tiny_bundle, tmp_path, max_open=1) as client:
        for _ in range(2):  # one that was left would be in the way
            response = await client.post(_PATH, content=content, headers={**_NDJSON, **headers})
            assert_problem(response, status, name)
        assert await _no_jobs(client)


async def test_a_body_that_announces_too_much_is_not_read(client: httpx.AsyncClient) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("it was read")
        yield b""

    headers = {**_NDJSON, "Content-Length": str(_MAX_BYTES + 1)}
    assert_problem(await client.post(_PATH, content=never(), headers=headers), 413, "job-too-large")


async def test_a_client_that_leaves_before_the_end_leaves_no_job(tiny_bundle: Path, tmp_path: Path) -> None:
    async with LifespanManager(_app(tiny_bundle, tmp_path, max_open=1), startup_timeout=60) as manager:
        async with wire_to(manager.app, _PATH) as (wire, task):
            wire.send_bytes(_lines(600))
            wire.leave()
            await task
            assert wire.status == 499
        async with asgi_client(manager.app) as client:
            assert await _no_jobs(client)
            await _begin(client, _lines(1))


async def test_a_request_that_is_repeated_is_answered_with_the_job_it_made(tiny_bundle: Path, tmp_path: Path) -> None:
    async with _keys(tiny_bundle, tmp_path) as (client, callers):
        shop, bank = callers["shop"], callers["bank"]
        job = await _begin(client, _lines(3), **shop, **{"Idempotency-Key": "order-7"})
        await _ended(client, job, **shop)
        again = await _begin(client, b"\xff", **shop, **{"Idempotency-Key": "order-7"})
        assert (again["id"], again["state"], again["done"]) == (job["id"], "completed", 3)
        for headers in ({**shop, "Idempotency-Key": "order-8"}, {**bank, "Idempotency-Key": "order-7"}, shop):
            assert (await _begin(client, _lines(3), **headers))["id"] != job["id"]

        await client.delete(f"{_PATH}/{job['id']}", headers=shop)
        assert (await _begin(client, _lines(2), **shop, **{"Idempotency-Key": "order-7"}))["lines"] == 2


async def test_an_upload_that_failed_may_be_sent_again_under_its_key(client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "order-9"}
    response = await client.post(_PATH, content=_lines(_MAX_LINES + 1), headers={**_NDJSON, **key})
    assert_problem(response, 413, "job-too-large")
    assert (await _begin(client, _lines(2), **key))["lines"] == 2


@pytest.mark.parametrize("key", ["", "a key", "k" * 129, "sch\u00fcssel"])
async def test_a_key_that_is_none_is_refused(client: httpx.AsyncClient, key: str) -> None:
    headers = httpx.Headers({**_NDJSON, "Idempotency-Key": key}, encoding="latin-1")
    response = await client.post(_PATH, content=_lines(1), headers=headers)
    assert_problem(response, 422, "invalid-request")


async def test_jobs_of_a_caller_and_of_all_are_bounded(tiny_bundle: Path, tmp_path: Path) -> None:
    async with _empty_client(tiny_bundle, tmp_path, max_of_caller=2) as client:
        first = await _begin(client, b"")
        await _begin(client, b"")
        assert_problem(await client.post(_PATH, content=b"", headers=_NDJSON), 409, "too-many-jobs")
        await client.delete(f"{_PATH}/{first['id']}")
        await _begin(client, b"")
    async with _empty_client(tiny_bundle, tmp_path, max_stored_bytes=1) as client:
        response = await client.post(_PATH, content=_lines(1), headers=_NDJSON)
        assert_problem(response, 503, "jobs-full")
        assert int(response.headers["Retry-After"]) >= 1


# Callers


@asynccontextmanager
async def _keys(
    bundle: Path, directory: Path, **limits: str
) -> AsyncIterator[tuple[httpx.AsyncClient, dict[str, dict[str, str]]]]:
    """Yield a client, and the headers of callers by name."""
    file = directory / "keys.toml"
    callers = {
        name: {"Authorization": f"Bearer {add_key(file, name, scopes=('classify',), rate_limits=limits.get(name))}"}
        for name in ("shop", "bank")
    }
    async with client_of(_app(bundle, directory, Security(keys_file=str(file)))) as client:
        yield client, callers


async def test_a_job_belongs_to_its_key(tiny_bundle: Path, tmp_path: Path) -> None:
    async with _keys(tiny_bundle, tmp_path) as (client, callers):
        shop, bank = callers["shop"], callers["bank"]
        job = await _begin(client, _lines(3), **shop)
        await _ended(client, job, **shop)
        for method, path in (("GET", ""), ("GET", "/results"), ("POST", "/cancel"), ("DELETE", "")):
            response = await client.request(method, f"{_PATH}/{job['id']}{path}", headers=bank)
            assert_problem(response, 404, "unknown-job")
            assert_problem(await client.request(method, f"{_PATH}/{job['id']}{path}"), 401, "not-authenticated")
        assert await _no_jobs(client, **bank)
        assert len((await _results(client, job, **shop)).splitlines()) == 3


async def test_a_job_goes_at_the_pace_of_its_keys_rate_limit_and_holds_up_no_other(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    async with _keys(tiny_bundle, tmp_path, shop="30/day") as (client, callers):
        slow = await _begin(client, _lines(70), **callers["shop"])
        fast = await _begin(client, _lines(500), **callers["bank"])
        assert (await _ended(client, fast, **callers["bank"]))["done"] == 500

        async def stuck() -> bool:
            found = (await client.get(f"{_PATH}/{slow['id']}", headers=callers["shop"])).json()
            return bool(found["done"] == 30)

        await until(stuck)
        response = await client.post("/v1/sentiment", json={"text": "好"}, headers=callers["shop"])
        assert_problem(response, 429, "limit-exceeded")  # the job has used it up


async def test_a_withdrawn_keys_job_waits_until_the_key_is_back(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    add_key(file, "shop", scopes=("classify",), rate_limits="10/hour")
    keys = KeyRing(file)
    gate, metrics = Gate(keys, LocalLedger(), ()), Metrics()
    known = file.read_text()
    assert await admit_later(gate, metrics, "key:shop", 4) == 0
    file.write_text(known.replace("[shop]", "[other]"))
    keys.refresh()
    assert await admit_later(gate, metrics, "key:shop", 4) == 60
    file.write_text(known)
    keys.refresh()
    assert await admit_later(gate, metrics, "key:shop", 4) == 0
    assert await admit_later(gate, metrics, "key:shop", 4) == pytest.approx(720, abs=1)  # 2 of 10 are left
    assert await admit_later(gate, metrics, "address:::1/64", 4) == 0


# What is told


async def test_no_text_is_logged_and_metrics_tell_of_jobs(tiny_bundle: Path, tmp_path: Path, logged: Logged) -> None:
    async with _empty_client(tiny_bundle, tmp_path) as client:
        job = await _begin(client, '{"text": "秘密的话", "id": "secret-id"}\n{"text": ""}\n'.encode())
        await _ended(client, job)
        await client.post(f"{_PATH}/{job['id']}/cancel")
        text = (await client.get("/metrics")).text
    assert 'sentiment_job_lines_total{result="answer"} 1.0' in text
    assert 'sentiment_job_lines_total{result="error"} 1.0' in text
    assert 'sentiment_jobs{state="running"}' in text
    written = json.dumps(logged(), ensure_ascii=False)
    assert "秘密" not in written
    assert "secret-id" not in written
    assert {line["route"] for line in logged() if line["message"] == "request"} >= {
        _PATH,
        f"{_PATH}/{{id}}",
        f"{_PATH}/{{id}}/cancel",
    }
