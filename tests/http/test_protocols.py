"""What every protocol promises: the answers, limits, deadlines and metrics of /v1, and errors in its own words."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from app.inference.batcher import BatchPolicy
from app.main import create_app
from app.rollout import Rollout
from tests.http.served import (
    MAX_BODY_BYTES,
    MAX_CHARACTERS,
    MAX_TEXTS,
    GatedModel,
    client_of,
    client_of_model,
    small_settings,
    until,
)
from tests.tiny_bundle import POISON

pytestmark = pytest.mark.anyio


def _tensor(texts: list[str]) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}]}


@dataclass(frozen=True)
class _Protocol:
    path: str
    body: Callable[[list[str]], object]
    labels: Callable[[Any], list[str]]
    error_fields: frozenset[str]
    invalid: int = 422
    model_failure: int = 424

    async def ask(self, client: httpx.AsyncClient, *texts: str, **headers: str) -> httpx.Response:
        content = json.dumps(self.body(list(texts)))  # escapes what UTF-8 cannot hold
        return await client.post(self.path, content=content, headers={"Content-Type": "application/json", **headers})

    def error(self, response: httpx.Response, status: int) -> str:
        """Check that `response` is an error as this protocol has it, and return what it says."""
        assert response.status_code == status, response.text
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["X-Request-ID"]
        body = response.json()
        assert body.keys() == self.error_fields
        return str(body["error"])


_PROTOCOLS = [
    pytest.param(
        _Protocol(
            "/predict",
            lambda texts: {"inputs": [[text] for text in texts]},
            lambda answer: [labels[0]["label"] for labels in answer],
            frozenset({"error", "error_type"}),
        ),
        id="tei",
    ),
    pytest.param(
        _Protocol(
            "/",
            lambda texts: {"inputs": texts, "parameters": {}},
            lambda answer: [labels[0]["label"] for labels in answer],
            frozenset({"error", "error_type"}),
        ),
        id="huggingface",
    ),
    pytest.param(
        _Protocol(
            "/v2/models/tiny/infer",
            _tensor,
            lambda answer: answer["outputs"][0]["data"],
            frozenset({"error"}),
            invalid=400,
            model_failure=500,
        ),
        id="open-inference",
    ),
]
each_protocol = pytest.mark.parametrize("protocol", _PROTOCOLS)


@each_protocol
async def test_texts_are_answered_in_order_and_as_by_v1(protocol: _Protocol, client: httpx.AsyncClient) -> None:
    texts = ["差", "我问几点么", "好喜爱", "烂坏", "好喜爱"]
    ours = (await client.post("/v1/sentiment/batch", json={"texts": texts})).json()["results"]
    response = await protocol.ask(client, *texts)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    assert protocol.labels(response.json()) == [result["label"] for result in ours]


@each_protocol
@pytest.mark.parametrize(
    ("text", "said"), [("", "empty"), ("\u200b", "empty"), ("好\0", "control"), ("\ud83d好", "surrogate")]
)
async def test_a_text_that_cannot_be_read_fails_its_request_and_is_named(
    protocol: _Protocol, client: httpx.AsyncClient, text: str, said: str
) -> None:
    alone = await protocol.ask(client, text)
    assert 400 <= alone.status_code < 500
    assert said in protocol.error(alone, alone.status_code)
    among_others = await protocol.ask(client, "好喜", text, "差烂")
    assert protocol.error(among_others, alone.status_code).startswith("Text 1: ")


@each_protocol
async def test_a_text_too_long_and_texts_too_many_are_refused(protocol: _Protocol, client: httpx.AsyncClient) -> None:
    assert (await protocol.ask(client, *["好"] * MAX_TEXTS)).status_code == 200
    for texts, most in ((["好"] * (MAX_TEXTS + 1), MAX_TEXTS), (["a" * (MAX_CHARACTERS + 1)], MAX_CHARACTERS)):
        response = await protocol.ask(client, *texts)
        assert str(most) in protocol.error(response, 413 if protocol.invalid == 422 else 400)


@each_protocol
@pytest.mark.parametrize("body", ["[]", "null", '"好"', "{}", '{"inputs": 5}', '{"inputs": {"text": "好"}}'])
async def test_a_body_of_another_form_is_told_what_is_wrong(
    protocol: _Protocol, client: httpx.AsyncClient, body: str
) -> None:
    response = await client.post(protocol.path, content=body, headers={"Content-Type": "application/json"})
    assert protocol.error(response, protocol.invalid)


@each_protocol
async def test_a_body_that_is_no_json_or_too_large_is_refused(protocol: _Protocol, client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json"}
    protocol.error(await client.post(protocol.path, content="{", headers=headers), 400)
    content = b" " * (MAX_BODY_BYTES + 1)
    assert str(MAX_BODY_BYTES) in protocol.error(
        await client.post(protocol.path, content=content, headers=headers), 413
    )


@each_protocol
async def test_a_wrong_method_is_told_the_right_one(protocol: _Protocol, client: httpx.AsyncClient) -> None:
    response = await client.get(protocol.path)
    assert "POST" in protocol.error(response, 405)
    assert response.headers["Allow"] == "POST"


@each_protocol
async def test_a_failing_model_is_told_without_the_reason(protocol: _Protocol, fresh_client: httpx.AsyncClient) -> None:
    said = protocol.error(await protocol.ask(fresh_client, POISON, "好"), protocol.model_failure)
    assert said == "The model could not answer. The log has the reason."


@each_protocol
async def test_an_unforeseen_error_is_told_in_the_protocol_s_words(
    protocol: _Protocol, fresh_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Rollout, "lease", break_down)
    assert "log" in protocol.error(await protocol.ask(fresh_client, "好"), 500)


@each_protocol
async def test_an_answer_that_takes_too_long_is_a_504(protocol: _Protocol, tiny_bundle: Path) -> None:
    async with client_of(create_app(small_settings(tiny_bundle, timeout_s=1e-9, batch_timeout_s=1e-9))) as client:
        protocol.error(await protocol.ask(client, "好"), 504)
        protocol.error(await protocol.ask(client, "好", "差"), 504)


@each_protocol
async def test_a_client_may_ask_for_its_answer_sooner(protocol: _Protocol, tiny_bundle: Path) -> None:
    policy = BatchPolicy(max_items=1, max_tokens=64, max_waiting_items=1, max_waiting_tokens=64)
    async with client_of_model(GatedModel(), tiny_bundle, policy) as client:
        response = await protocol.ask(client, "好", **{"X-Request-Timeout-Ms": "20"})
    assert "0.02 s" in protocol.error(response, 504)


@each_protocol
async def test_a_full_waiting_room_is_a_503_that_says_when_to_try_again(protocol: _Protocol, tiny_bundle: Path) -> None:
    model = GatedModel()
    policy = BatchPolicy(max_items=1, max_tokens=64, max_waiting_items=1, max_waiting_tokens=64)
    answers: dict[str, httpx.Response] = {}
    async with client_of_model(model, tiny_bundle, policy) as client:

        async def ask(text: str) -> None:
            answers[text] = await protocol.ask(client, text)

        async def one_waits() -> bool:
            return "sentiment_waiting_texts 1.0" in (await client.get("/metrics")).text

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "好")
            await anyio.to_thread.run_sync(model.entered.wait, 30)
            tasks.start_soon(ask, "差")
            await until(one_waits)
            await ask("吗")
            model.gate.set()
    assert "try again" in protocol.error(answers["吗"], 503)
    assert int(answers["吗"].headers["Retry-After"]) >= 1
    assert [protocol.labels(answers[text].json()) for text in ("好", "差")] == [["positive"], ["negative"]]


@each_protocol
async def test_texts_and_requests_are_counted(protocol: _Protocol, fresh_client: httpx.AsyncClient) -> None:
    await protocol.ask(fresh_client, "好喜", "差烂", "差烂")
    await protocol.ask(fresh_client, "")
    lines = (await fresh_client.get("/metrics")).text.splitlines()
    route = protocol.path.replace("tiny", "{name}")
    for expected in (
        f'sentiment_http_requests_total{{method="POST",route="{route}",status="200"}} 1.0',
        f'sentiment_http_requests_total{{method="POST",route="{route}",status="400"}} 1.0',
        f'sentiment_http_problems_total{{route="{route}",type="empty-text"}} 1.0',
        'sentiment_confidence_count{label="positive"} 1.0',
        'sentiment_confidence_count{label="negative"} 2.0',
        'sentiment_unanswered_texts_total{type="empty-text"} 1.0',
    ):
        assert expected in lines


@each_protocol
async def test_a_text_alone_waits_with_the_single_ones_and_many_with_the_jobs(
    protocol: _Protocol, fresh_client: httpx.AsyncClient
) -> None:
    for texts, lane in ((["好喜"], "interactive"), (["差烂", "吗"], "bulk")):
        await protocol.ask(fresh_client, *texts)
        assert f'sentiment_batch_rows_count{{lane="{lane}"}} 1.0' in (await fresh_client.get("/metrics")).text


@each_protocol
async def test_an_error_never_repeats_the_text(protocol: _Protocol, client: httpx.AsyncClient) -> None:
    private = "我住在槐花巷"
    bodies = [protocol.body([private * 100]), protocol.body([private, private + "\0"]), {"inputs": {"a": private}}]
    for body in bodies:
        response = await client.post(protocol.path, json=body)
        assert 400 <= response.status_code < 500
        assert private[:2] not in response.text
