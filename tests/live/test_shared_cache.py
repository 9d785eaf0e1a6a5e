"""Processes that share a Redis, and what a service does without one."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live.served import RunningServer, connect, made_up_texts, run_command, running_server
from tests.redis_server import RedisServer, free_port, running_redis
from tests.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.anyio

_OUT_OF_USE = "redis is out of use"
_IN_USE = "redis is in use again"


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


def _settings(bundle: Path, url: str, **others: str) -> dict[str, str]:
    return {"MODEL__PATH": str(bundle), "MODEL__PROVIDER": "cpu", "CACHE__REDIS_URL": url, **others}


@pytest.fixture(scope="module")
def one(redis: RedisServer, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("one"), **_settings(tiny_bundle, redis.url)) as server:
        yield server


@asynccontextmanager
async def _clients(*servers: RunningServer) -> AsyncIterator[list[httpx.AsyncClient]]:
    clients = [connect(server) for server in servers]
    yield clients
    for client in clients:
        await client.aclose()


async def _until_stored(redis: RedisServer, entries: int) -> None:
    async with asyncio.timeout(30):
        while len(redis.stored()) < entries:  # noqa: ASYNC110 (the servers are other processes)
            await asyncio.sleep(0.01)


def _lines(server: RunningServer, message: str) -> list[dict[str, Any]]:
    return [line for line in server.log() if line["message"] == message]


async def _until_logged(server: RunningServer, message: str, times: int) -> None:
    async with asyncio.timeout(60):
        while len(_lines(server, message)) < times:  # noqa: ASYNC110 (the server is another process)
            await asyncio.sleep(0.02)


async def _metrics(client: httpx.AsyncClient) -> dict[str, float]:
    lines = (await client.get("/metrics")).text.splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if line.startswith("sentiment_"))
    return {name: float(value) for name, value in samples}


async def _ask(client: httpx.AsyncClient, text: str) -> httpx.Response:
    response = await client.post("/v1/sentiment", json={"text": text})
    assert response.status_code == 200
    return response


async def test_processes_share_their_answers_to_the_byte(
    redis: RedisServer, one: RunningServer, tiny_bundle: Path, tmp_path: Path
) -> None:
    redis.admin.flushall()
    texts = ["这家店好差，笑", "很喜爱这家店，饭好" * 30, "🙂", *made_up_texts(40)]
    with running_server(tmp_path, **_settings(tiny_bundle, redis.url)) as two:
        async with _clients(one, two) as (first, second):
            computed = [(await _ask(first, text)).text for text in texts]
            await _until_stored(redis, len(texts))
            expected = [answer.replace('"cached":false', '"cached":true') for answer in computed]
            assert [(await _ask(second, text)).text for text in texts] == expected
            looked_up = redis.calls("mget")
            assert [(await _ask(second, text)).text for text in texts] == expected  # from its memory now
            assert redis.calls("mget") == looked_up
            counts = await _metrics(second)
    assert counts['sentiment_cache_level_lookups_total{level="redis",result="hit"}'] == len(texts)
    assert counts['sentiment_cache_level_lookups_total{level="memory",result="hit"}'] == len(texts)
    assert counts['sentiment_redis_breaker{operation="read",state="closed"}'] == 1


async def test_a_batch_is_looked_up_and_shared_like_single_texts(redis: RedisServer, one: RunningServer) -> None:
    redis.admin.flushall()
    texts = [f"好{number}" for number in range(200)]
    async with _clients(one) as (client,):
        before = redis.calls("mget")
        answers = (await client.post("/v1/sentiment/batch", json={"texts": texts})).json()["results"]
        assert redis.calls("mget") == before + 1
        await _until_stored(redis, len(texts))
    assert not any(answer["cached"] for answer in answers)


@pytest.mark.parametrize("changed", ["bundle", "arithmetic", "namespace"])
async def test_what_would_answer_otherwise_shares_nothing(
    redis: RedisServer, one: RunningServer, tiny_bundle: Path, tmp_path: Path, changed: str
) -> None:
    settings = _settings(tiny_bundle, redis.url)
    if changed == "bundle":
        settings["MODEL__PATH"] = str(write_tiny_bundle(tmp_path / "bundle", version="0.0.2"))
    elif changed == "namespace":
        settings["CACHE__REDIS_NAMESPACE"] = "other"
    elif find_spec("onnxruntime_ep_openvino") is None:
        pytest.skip("there is one provider here")
    else:
        settings["MODEL__PROVIDER"] = "openvino"
    redis.admin.flushall()
    with running_server(tmp_path, **settings) as other:
        async with _clients(one, other) as (first, second):
            await _ask(first, f"好{changed}")
            await _until_stored(redis, 1)
            assert not (await _ask(second, f"好{changed}")).json()["cached"]
            await _until_stored(redis, 2)


async def test_no_store_leaves_no_trace_in_redis(redis: RedisServer, one: RunningServer) -> None:
    redis.admin.flushall()
    async with _clients(one) as (client,):
        await client.post("/v1/sentiment", json={"text": "好秘密"}, headers={"Cache-Control": "no-store"})
        await _ask(client, "好公开")
        await _until_stored(redis, 1)
    assert len(redis.stored()) == 1


async def test_an_outage_is_logged_once_delays_a_few_and_ends_by_itself(tiny_bundle: Path, tmp_path: Path) -> None:
    with (
        running_redis(tmp_path) as redis,
        running_server(tmp_path, **_settings(tiny_bundle, redis.url)) as server,
    ):
        async with _clients(server) as (client,):
            for times, (end, begin) in enumerate(((redis.pause, redis.resume), (redis.kill, redis.start)), start=1):
                end()
                for number in range(100):
                    await _ask(client, f"好{times}，{number}")
                assert len(_lines(server, _OUT_OF_USE)) == times
                counts = await _metrics(client)
                assert counts['sentiment_redis_breaker{operation="read",state="closed"}'] == 0
                begin()
                await _until_logged(server, _IN_USE, times)
            errors = {name: value for name, value in counts.items() if name.startswith("sentiment_redis_errors_total")}
            # Beside the probes three waited for the hung Redis; nobody could wait for the one that was not there.
            assert errors['sentiment_redis_errors_total{kind="timeout",operation="read"}'] <= 4
            assert counts['sentiment_redis_writes_total{result="dropped"}'] >= 150
            await _ask(client, "好又好")
            await _until_stored(redis, 1)
        lines = _lines(server, _OUT_OF_USE) + _lines(server, _IN_USE)
        assert [line["level"] for line in lines] == ["warning"] * 2 + ["info"] * 2
        assert [line["reason"].split(":")[0] for line in lines[:2]] == ["timeout", "connection"]
        assert not any("request_id" in line for line in lines)  # an outage is no request's own


async def test_a_service_starts_without_its_redis_and_tells_no_password(tiny_bundle: Path, tmp_path: Path) -> None:
    url = f"redis://someone:hunter2@127.0.0.1:{free_port()}"
    with running_server(tmp_path, **_settings(tiny_bundle, url)) as server:
        async with _clients(server) as (client,):
            for number in range(20):
                assert not (await _ask(client, f"好{number}")).json()["cached"]
                assert (await _ask(client, f"好{number}")).json()["cached"]
            assert (await client.get("/health/ready")).status_code == 200
            assert "hunter2" not in (await client.get("/metrics")).text
        assert server.stop() == 0
        assert len(_lines(server, _OUT_OF_USE)) == 1
        assert "hunter2" not in server.output()


async def test_a_rejected_password_is_told_nowhere(tiny_bundle: Path, tmp_path: Path) -> None:
    with (
        running_redis(tmp_path, "--requirepass", "right") as redis,
        running_server(tmp_path, **_settings(tiny_bundle, f"redis://:hunter2@{redis.address}")) as server,
    ):
        async with _clients(server) as (client,):
            await _ask(client, "好")
        assert server.stop() == 0
        (line,) = _lines(server, _OUT_OF_USE)
        assert line["reason"] == "auth"
        assert "hunter2" not in server.output()


@pytest.mark.parametrize("url", ["redis://:hunter2@cache:port", "http://:hunter2@cache", "redis://:hun/ter2@cache"])
def test_a_url_that_is_none_stops_the_start_and_is_not_repeated(tiny_bundle: Path, url: str) -> None:
    done = run_command("serve", "--port", "0", LOG__FORMAT="json", **_settings(tiny_bundle, url))
    assert done.returncode != 0
    (reason,) = [line["reason"] for line in map(json.loads, done.stdout.splitlines()) if "reason" in line]
    assert reason.startswith("SENTIMENT_CACHE__REDIS_URL must be redis://")
    assert "ter2" not in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("hung", [False, True], ids=["well", "hung"])
async def test_a_stopping_server_writes_what_it_can_and_stops(
    tiny_bundle: Path,
    tmp_path: Path,
    hung: bool,  # noqa: FBT001 (a parameter of the test)
) -> None:
    texts = [f"好{number}" for number in range(500)]
    with (
        running_redis(tmp_path) as redis,
        running_server(tmp_path, **_settings(tiny_bundle, redis.url)) as server,
    ):
        async with _clients(server) as (client,):
            if hung:
                redis.pause()
            assert (await client.post("/v1/sentiment/batch", json={"texts": texts})).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, 30) == 0
        redis.resume()
        assert "Traceback" not in server.output()
        assert hung or len(redis.stored()) == len(texts)
