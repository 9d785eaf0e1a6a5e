"""Batch jobs on the real server: killed, stopped, shared by processes, in SQLite and in PostgreSQL."""

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.live.served import STOP_S, RunningServer, connect, running_server
from tests.postgres_server import find_postgres, running_postgres

pytestmark = pytest.mark.anyio

_PATH = "/v1/batches"
_NDJSON = {"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"}
_MANY = 15_000


@contextmanager
def _server(directory: Path, bundle: Path, url: str, **more: str) -> Iterator[RunningServer]:
    settings = {"MODEL__PATH": str(bundle), "MODEL__PROVIDER": "cpu", "JOBS__URL": url, **more}
    directory.mkdir(exist_ok=True)
    with running_server(directory, **settings) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database that outlives its servers."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'jobs.db'}"
    elif find_postgres() is None:
        pytest.skip("needs PostgreSQL")
    else:
        with running_postgres() as postgres:
            yield postgres.url


def _lines(count: int, name: str = "") -> bytes:
    lines = ({"id": number, "text": "好差吗"[number % 3] + f"{name}，第{number}次"} for number in range(count))
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


async def _begin(client: httpx.AsyncClient, content: bytes) -> str:
    response = await client.post(_PATH, content=content, headers=_NDJSON)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


async def _until(client: httpx.AsyncClient, job: str, done: int) -> dict[str, Any]:
    """Return the job when so many of its lines are done."""
    async with asyncio.timeout(STOP_S):
        while (found := (await client.get(f"{_PATH}/{job}")).json())["done"] < done:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)
    return dict(found)


async def _assert_answered_as_by_a_stream(client: httpx.AsyncClient, job: str, content: bytes) -> None:
    found = (await client.get(f"{_PATH}/{job}")).json()
    assert (found["state"], found["done"], found["errors"]) == ("completed", found["lines"], 0)
    answers = (await client.get(f"{_PATH}/{job}/results")).text
    # A client that sends all before it reads has no more than a window to do so with.
    few = content.splitlines(keepends=True)[:500]
    streamed = (await client.post("/v1/sentiment/stream", content=b"".join(few), headers=_NDJSON)).text
    assert answers.startswith(streamed)
    labels = [
        (answer["id"], answer["line"], answer["sentiment"]["label"]) for answer in map(json.loads, answers.splitlines())
    ]
    assert labels == [
        (number, number + 1, ("positive", "negative", "neutral")[number % 3]) for number in range(found["lines"])
    ]


@pytest.mark.parametrize(
    ("url", "end"),
    [("sqlite", signal.SIGKILL), ("sqlite", signal.SIGTERM), ("postgresql", signal.SIGKILL)],
    indirect=["url"],
)
async def test_a_job_goes_on_after_a_kill_or_a_stop_and_no_line_is_lost_or_doubled(
    tmp_path: Path, tiny_bundle: Path, url: str, end: signal.Signals
) -> None:
    content = _lines(_MANY)
    with _server(tmp_path / "first", tiny_bundle, url) as server:
        async with connect(server) as client:
            job = await _begin(client, content)
            await _until(client, job, 1_000)
        status = server.stop(end)
        assert status == (0 if end is signal.SIGTERM else -end)
        assert "Traceback" not in server.output()
    with _server(tmp_path / "second", tiny_bundle, url) as server:
        async with connect(server) as client:
            before = (await client.get(f"{_PATH}/{job}")).json()["done"]
            assert 1_000 <= before < _MANY
            await _until(client, job, _MANY)
            await _assert_answered_as_by_a_stream(client, job, content)
            written = (await client.get("/metrics")).text
        assert "Traceback" not in server.output()
    # What the first had written, the second did not write again.
    assert f'sentiment_job_lines_total{{result="answer"}} {float(_MANY - before)}' in written


async def test_two_servers_of_several_processes_share_the_jobs_and_no_line_is_doubled(
    tmp_path: Path, tiny_bundle: Path, url: str
) -> None:
    content = [_lines(4_000, str(number)) for number in range(5)]
    with (
        _server(tmp_path / "one", tiny_bundle, url, SERVER__PROCESSES="2") as one,
        _server(tmp_path / "other", tiny_bundle, url) as other,
    ):
        async with connect(one) as client, connect(other) as second:
            jobs = await asyncio.gather(*(_begin(client, each) for each in content))
            for job, each in zip(jobs, content, strict=True):
                await _until(second, job, 4_000)
                await _assert_answered_as_by_a_stream(second, job, each)
            lines = [
                float(line.rpartition(" ")[2])
                for served in (client, second)
                for line in (await served.get("/metrics")).text.splitlines()
                if line.startswith("sentiment_job_lines_total{")
            ]
        assert sum(lines) == 5 * 4_000
        for server in (one, other):
            assert server.stop() == 0
            assert "Traceback" not in server.output()


async def test_a_cancelled_job_stops_and_single_texts_are_answered_beside_it(tmp_path: Path, tiny_bundle: Path) -> None:
    with _server(tmp_path / "server", tiny_bundle, f"sqlite:///{tmp_path / 'jobs.db'}") as server:
        async with connect(server) as client:
            before = psutil.Process(server.process.pid).memory_info().rss
            job = await _begin(client, _lines(200_000))
            found = await _until(client, job, 1_000)
            assert found["state"] == "running"
            for number in range(20):
                response = await client.post("/v1/sentiment", json={"text": f"好，第{number}次"})
                assert response.json()["label"] == "positive"
            cancelled = (await client.post(f"{_PATH}/{job}/cancel")).json()
            assert cancelled["state"] == "cancelled"
            assert 1_000 <= cancelled["done"] < 200_000
            answers = (await client.get(f"{_PATH}/{job}/results")).text.splitlines()
            assert len({json.loads(answer)["line"] for answer in answers}) == len(answers) == cancelled["done"]
            next_job = await _begin(client, _lines(10))
            assert (await _until(client, next_job, 10))["state"] == "completed"
            assert (await client.get(f"{_PATH}/{job}")).json() == cancelled
            assert (psutil.Process(server.process.pid).memory_info().rss - before) / 2**20 < 40
        assert "Traceback" not in server.output()


async def test_what_nothing_happens_to_expires(tmp_path: Path, tiny_bundle: Path) -> None:
    database = f"sqlite:///{tmp_path / 'jobs.db'}"
    with _server(tmp_path / "server", tiny_bundle, database, JOBS__RETENTION_S="2") as server:
        async with connect(server) as client:
            job = await _begin(client, _lines(10))
            async with asyncio.timeout(STOP_S):
                while (await client.get(f"{_PATH}/{job}")).status_code == 200:  # noqa: ASYNC110 (another process)
                    await asyncio.sleep(0.1)
                while "batch jobs expired" not in server.output():  # noqa: ASYNC110 (another process)
                    await asyncio.sleep(0.1)
    assert "第1次".encode() not in (tmp_path / "jobs.db").read_bytes()


async def test_jobs_wait_while_the_database_is_away_and_go_on_when_it_is_back(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    if find_postgres() is None:
        pytest.skip("needs PostgreSQL")
    content = _lines(_MANY)
    with (
        running_postgres() as postgres,
        _server(tmp_path / "server", tiny_bundle, postgres.url) as server,
    ):
        async with connect(server) as client:
            job = await _begin(client, content)
            await _until(client, job, 1_000)
            postgres.stop()
            try:
                response = await client.get(f"{_PATH}/{job}")
                assert (response.status_code, response.json()["title"]) == (503, "Jobs unavailable")
                assert (await client.post("/v1/sentiment", json={"text": "好"})).status_code == 200
                async with asyncio.timeout(STOP_S):
                    while "batch jobs wait" not in server.output():  # noqa: ASYNC110 (another process)
                        await asyncio.sleep(0.05)
            finally:
                postgres.start()
            await _until(client, job, _MANY)
            await _assert_answered_as_by_a_stream(client, job, content)
        assert "batch jobs go on" in server.output()
        assert "Traceback" not in server.output()
