"""What clients see when the service, not the request, is at fault."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from app.cache.memory import MemoryCache
from app.inference.batcher import BatchPolicy
from app.main import create_app
from tests.http.served import GatedModel, assert_problem, client_of, client_of_model, small_settings, until
from tests.tiny_bundle import POISON

pytestmark = pytest.mark.anyio

Logged = Callable[[], list[dict[str, Any]]]

_TIGHT = BatchPolicy(max_items=1, max_tokens=64, max_waiting_items=1, max_waiting_tokens=64)


async def test_a_full_waiting_room_is_a_503_that_says_when_to_try_again(tiny_bundle: Path) -> None:
    model = GatedModel()
    answers: dict[str, httpx.Response] = {}
    async with client_of_model(model, tiny_bundle, _TIGHT) as client:

        async def ask(text: str) -> None:
            answers[text] = await client.post("/v1/sentiment", json={"text": text})

        async def one_waits() -> bool:
            return "sentiment_waiting_texts 1.0" in (await client.get("/metrics")).text

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "好")
            await anyio.to_thread.run_sync(model.entered.wait, 30)
            tasks.start_soon(ask, "差")
            await until(one_waits)
            await ask("吗")
            model.gate.set()
    assert_problem(answers["吗"], 503, "overloaded")
    assert int(answers["吗"].headers["Retry-After"]) >= 1
    assert [answers[text].json()["label"] for text in ("好", "差")] == ["positive", "negative"]


async def test_an_answer_that_takes_too_long_is_a_504(tiny_bundle: Path) -> None:
    async with client_of(create_app(small_settings(tiny_bundle, timeout_s=1e-9, batch_timeout_s=1e-9))) as client:
        assert_problem(await client.post("/v1/sentiment", json={"text": "好"}), 504, "deadline-exceeded")
        assert_problem(await client.post("/v1/sentiment/batch", json={"texts": ["好"]}), 504, "deadline-exceeded")


async def test_a_client_may_ask_for_its_answer_sooner_but_not_later_than_the_settings_allow(tiny_bundle: Path) -> None:
    model = GatedModel()
    async with client_of_model(model, tiny_bundle, _TIGHT) as client:
        for path, body in (("/v1/sentiment", {"text": "好"}), ("/v1/sentiment/batch", {"texts": ["好"]})):
            response = await client.post(path, json=body, headers={"X-Request-Timeout-Ms": "20"})
            assert "0.02 s" in assert_problem(response, 504, "deadline-exceeded")["detail"]
    async with client_of(create_app(small_settings(tiny_bundle, timeout_s=1e-9))) as client:
        response = await client.post("/v1/sentiment", json={"text": "好"}, headers={"X-Request-Timeout-Ms": "60000"})
        assert_problem(response, 504, "deadline-exceeded")


async def test_what_was_computed_for_a_request_that_ended_too_late_is_remembered(tiny_bundle: Path) -> None:
    model = GatedModel()
    model.for_one = True
    async with client_of_model(model, tiny_bundle, _TIGHT, cache=MemoryCache(max_bytes=100_000, ttl_s=60)) as client:

        async def one_waits() -> bool:
            return "sentiment_waiting_texts 1.0" in (await client.get("/metrics")).text

        async def ask_for_two() -> None:
            headers = {"X-Request-Timeout-Ms": "500"}
            response = await client.post("/v1/sentiment/batch", json={"texts": ["好", "差"]}, headers=headers)
            assert_problem(response, 504, "deadline-exceeded")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask_for_two)
            await until(one_waits)
            model.gate.set()
        model.for_one = False
        model.gate.set()
        answers = (await client.post("/v1/sentiment/batch", json={"texts": ["好", "差"]})).json()["results"]
        assert [answer["cached"] for answer in answers] == [True, False]


@pytest.mark.parametrize("said", ["", "soon", "-5", "0", "1.5", "٣", "9" * 400])
async def test_a_timeout_that_is_no_number_of_milliseconds_is_a_400(client: httpx.AsyncClient, said: str) -> None:
    response = await client.post("/v1/sentiment", json={"text": "好"}, headers={b"X-Request-Timeout-Ms": said.encode()})
    assert "X-Request-Timeout-Ms" in assert_problem(response, 400, "invalid-header")["detail"]


async def test_a_text_that_the_model_cannot_bear_costs_its_neighbours_nothing(fresh_client: httpx.AsyncClient) -> None:
    response = await fresh_client.post("/v1/sentiment/batch", json={"texts": ["好", POISON, "差"]})
    good, poison, bad = response.json()["results"]
    assert (good["label"], bad["label"]) == ("positive", "negative")
    assert poison["error"]["type"] == "urn:sentiment:problem:model-failure"


async def test_a_failing_model_is_a_500_that_withholds_the_reason(
    fresh_client: httpx.AsyncClient, logged: Logged
) -> None:
    response = await fresh_client.post("/v1/sentiment", json={"text": f"槐花{POISON}"}, headers={"X-Request-ID": "me"})
    assert_problem(response, 500, "model-failure")
    assert "finite" not in response.text
    (line,) = [line for line in logged() if line["level"] == "error" and line.get("request_id") == "me"]
    assert line["error"] == "ModelFailure"
    assert "finite" in line["reason"]
    assert "槐花" not in str(line)


async def test_the_log_has_the_reason_of_a_failure_inside_a_batch_too(
    fresh_client: httpx.AsyncClient, logged: Logged
) -> None:
    response = await fresh_client.post("/v1/sentiment/batch", json={"texts": [POISON]})
    assert "The log has the reason" in response.json()["results"][0]["error"]["detail"]
    assert any("finite" in str(line) for line in logged())


async def test_the_service_answers_again_after_a_failure(fresh_client: httpx.AsyncClient) -> None:
    for text, status in ((POISON, 500), ("好", 200), (POISON, 500), ("差", 200)):
        assert (await fresh_client.post("/v1/sentiment", json={"text": text})).status_code == status


async def test_an_unforeseen_error_is_a_500_and_its_traceback_holds_no_values(
    tiny_bundle: Path, logged: Logged
) -> None:
    app = create_app(small_settings(tiny_bundle))

    @app.get("/broken")
    async def broken() -> None:
        private = "槐花" * 2
        raise ZeroDivisionError(f"{len(private)} cannot be divided")

    async with client_of(app) as client:
        response = await client.get("/broken", headers={"X-Request-ID": "me"})
        metrics = (await client.get("/metrics")).text
    problem = assert_problem(response, 500, "internal")
    assert problem["request_id"] == "me"
    assert "divided" not in response.text
    assert 'sentiment_http_requests_total{method="GET",route="/broken",status="500"} 1.0' in metrics
    lines = logged()
    (line,) = [line for line in lines if line["level"] == "error"]
    assert line["request_id"] == "me"
    assert line["exception"][0]["exc_type"] == "ZeroDivisionError"
    assert line["exception"][0]["frames"][-1]["name"] == "broken"
    assert "槐花" not in str(lines)
