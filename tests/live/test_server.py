import asyncio
import json
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.inference.bundle import open_bundle
from app.settings import Settings
from tests.live.served import ROOT, RunningServer, assert_same_answer, columns, connect, made_up_texts

pytestmark = pytest.mark.anyio

_JSON = {"Content-Type": "application/json"}
_SINGLE, _BATCH = "/v1/sentiment", "/v1/sentiment/batch"


async def test_the_server_is_ready_when_it_listens(server: RunningServer) -> None:
    async with connect(server) as client:
        response = await client.get("/health/ready")
    assert response.status_code == 200
    manifest = open_bundle(ROOT / Settings().model.path).manifest
    assert response.json()["model"] == {"name": manifest.name, "version": manifest.version}


async def test_golden_texts_are_answered_as_recorded(server: RunningServer) -> None:
    golden = open_bundle(ROOT / Settings().model.path).golden
    async with connect(server) as client:
        response = await client.post(_BATCH, json={"texts": [row.text for row in golden]})
    for result, row in zip(response.json()["results"], golden, strict=True):
        found = columns(result)
        assert found.keys() == row.probabilities.keys()
        assert max(abs(found[column] - recorded) for column, recorded in row.probabilities.items()) <= 0.02


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_the_serving_process_has_no_training_library_loaded(server: RunningServer) -> None:
    maps = Path(f"/proc/{server.process.pid}/maps").read_text(encoding="utf-8")
    assert "onnxruntime" in maps
    assert "libtorch" not in maps
    assert "/sklearn/" not in maps


def test_serving_imports_no_training_library() -> None:
    program = "import app.cli, app.main, sys; print(*sys.modules)"
    done = subprocess.run(  # noqa: S603 (our own program)
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    loaded = set(done.stdout.split())
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "transformers", "optimum", "sklearn", "onnx"}


async def test_a_text_is_answered_alike_alone_and_among_others(server: RunningServer) -> None:
    texts = made_up_texts(96)
    async with connect(server) as client:
        alone = [(await client.post(_SINGLE, json={"text": text})).json() for text in texts]
        for company in (96, 24, 7):
            shuffled = random.Random(company).sample(range(len(texts)), len(texts))  # noqa: S311 (no secret)
            for start in range(0, len(texts), company):
                chosen = shuffled[start : start + company]
                response = await client.post(_BATCH, json={"texts": [texts[index] for index in chosen]})
                for index, result in zip(chosen, response.json()["results"], strict=True):
                    assert not result["cached"]
                    assert result["truncated"] == alone[index]["truncated"]
                    assert_same_answer(result, alone[index])
    assert {answer["truncated"] for answer in alone} == {False, True}


_INVALID: list[tuple[str, bytes, int, str]] = [
    (_SINGLE, b'{"text": ""}', 422, "empty-text"),
    (_SINGLE, b'{"text": 5}', 422, "invalid-request"),
    (_SINGLE, b'{"texts": ["x"]}', 422, "invalid-request"),
    (_SINGLE, b'{"text": "a\\u0000"}', 422, "invalid-text"),
    (_SINGLE, b'{"text": "\\ud800"}', 422, "invalid-text"),
    (_SINGLE, json.dumps({"text": "长" * 5_001}).encode(), 422, "text-too-long"),
    (_SINGLE, b'{"text": "', 400, "not-json"),
    (_SINGLE, b'{"text": "\xff"}', 400, "not-json"),
    (_SINGLE, b"[" * 100_000, 400, "not-json"),
    (_SINGLE, b"9" * 10_000, 400, "not-json"),
    (_BATCH, json.dumps({"texts": ["好"] * 1_025}).encode(), 422, "invalid-request"),
    (_BATCH, b'{"texts": "x"}', 422, "invalid-request"),
    (_BATCH, b"", 422, "invalid-request"),
    ("/v1/nothing", b"{}", 404, "not-found"),
    ("/metrics", b"{}", 405, "method-not-allowed"),
]


async def test_a_thousand_requests_at_once_are_each_answered_as_if_alone(server: RunningServer) -> None:
    texts = made_up_texts(400)
    valid = [text for text in texts for _ in range(2)]
    invalid = [_INVALID[number % len(_INVALID)] for number in range(200)]
    async with connect(server) as client:
        alone: dict[str, dict[str, Any]] = {}
        for text in texts:
            alone[text] = (await client.post(_SINGLE, json={"text": text})).json()

        async def check_valid(text: str) -> int:
            response = await client.post(_SINGLE, json={"text": text})
            assert response.status_code == 200, response.text
            assert_same_answer(response.json(), alone[text])
            return response.status_code

        async def check_invalid(path: str, content: bytes, status: int, name: str) -> int:
            response = await client.post(path, content=content, headers=_JSON)
            assert response.status_code == status, response.text
            assert response.headers["Content-Type"] == "application/problem+json"
            problem = response.json()
            assert problem["type"] == f"urn:sentiment:problem:{name}"
            assert problem["request_id"] == response.headers["X-Request-ID"]
            return response.status_code

        checks = [*map(check_valid, valid), *(check_invalid(*case) for case in invalid)]
        random.Random(7).shuffle(checks)  # noqa: S311 (no secret)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(check) for check in checks]
    statuses = [task.result() for task in running]
    assert len(statuses) == 1_000
    assert statuses.count(200) == 800


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
@pytest.mark.parametrize("size", [8 * 1024 * 1024 + 1, 32 * 1024 * 1024])
async def test_a_client_that_sends_too_much_gets_to_read_why(
    server: RunningServer,
    size: int,
    announced: bool,  # noqa: FBT001 (a parameter of the test)
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(0, size, 65_536):
            yield b" " * 65_536

    async with connect(server) as client:
        response = await client.post(_SINGLE, content=b" " * size if announced else chunks(), headers=_JSON)
    assert response.status_code == 413
    assert response.json()["type"] == "urn:sentiment:problem:body-too-large"


async def test_a_client_that_leaves_does_not_disturb_the_others(server: RunningServer) -> None:
    texts = made_up_texts(60)
    async with connect(server) as client:
        expected = (await client.post(_BATCH, json={"texts": texts})).json()["results"]

        async def leave_early(text: str) -> None:
            async with httpx.AsyncClient(base_url=server.address, timeout=0.005) as hasty:
                with pytest.raises(httpx.TimeoutException):
                    await hasty.post(_BATCH, json={"texts": [f"{text}，{number}" for number in range(200)]})

        leaving = [asyncio.create_task(leave_early(text)) for text in texts[:10]]
        answers = await asyncio.gather(*(client.post(_SINGLE, json={"text": text}) for text in texts))
        await asyncio.gather(*leaving)
    for answer, result in zip(answers, expected, strict=True):
        assert_same_answer(answer.json(), result)


async def test_the_log_has_the_ids_of_requests_and_none_of_their_texts(server: RunningServer) -> None:
    private = "槐花巷七号的老周"
    bodies = [
        (_SINGLE, json.dumps({"text": private}, ensure_ascii=False)),
        (_SINGLE, json.dumps({"text": private})),
        (_SINGLE, json.dumps({"text": private * 1_000})),
        (_SINGLE, json.dumps({"text": [private]})),
        (_SINGLE, f'{{"text": "{private}'),
        (_SINGLE, json.dumps({private: private})),
        (_BATCH, json.dumps({"texts": [private, private + "\0", [private]]})),
        (f"/{private}", "{}"),
        (f"{_SINGLE}?text={private}", "{}"),
    ]
    async with connect(server) as client:
        for number, (path, body) in enumerate(bodies):
            headers = {**_JSON, "X-Request-ID": f"silent-{number}"}
            response = await client.post(path, content=body.encode(), headers=headers)
            assert response.headers["X-Request-ID"] == f"silent-{number}"
    requests = {line.get("request_id") for line in server.log() if line["message"] == "request"}
    assert {f"silent-{number}" for number in range(len(bodies))} <= requests
    output = server.output()
    shown = (private[:2], private[-2:], json.dumps(private[:2]).strip('"'), httpx.QueryParams({"q": private[:2]})["q"])
    assert not any(part in output for part in shown)
    assert "%E6%A7%90" not in output


async def test_every_line_of_the_log_says_when_and_how_grave(server: RunningServer) -> None:
    lines = server.log()
    assert {"model ready", "Application startup complete."} <= {line["message"] for line in lines}
    assert all({"message", "level", "timestamp", "logger"} <= line.keys() for line in lines)


async def test_the_texts_of_a_client_that_leaves_are_withdrawn(server: RunningServer) -> None:
    async def waiting() -> float:
        lines = (await client.get("/metrics")).text.splitlines()
        return float(next(line for line in lines if line.startswith("sentiment_waiting_texts ")).split()[1])

    async with connect(server) as client:
        with pytest.raises(httpx.TimeoutException):
            await client.post(_BATCH, json={"texts": [text * 20 for text in made_up_texts(1_000)]}, timeout=0.5)
        async with asyncio.timeout(5):  # to run them all takes several times as long
            while await waiting():  # noqa: ASYNC110 (the server is another process)
                await asyncio.sleep(0.05)
