import json
from collections.abc import Sequence

import httpx
import pytest

from tests.http.served import MAX_BYTES, MAX_CHARACTERS, MAX_TEXTS, assert_problem, pointers
from tests.tiny_bundle import POISON

pytestmark = pytest.mark.anyio


async def _ask(client: httpx.AsyncClient, texts: Sequence[object]) -> httpx.Response:
    content = json.dumps({"texts": texts})  # escapes what UTF-8 cannot hold
    return await client.post("/v1/sentiment/batch", content=content, headers={"Content-Type": "application/json"})


async def test_answers_stand_in_the_order_of_the_texts(client: httpx.AsyncClient) -> None:
    texts = ["差", "我问几点么", "好喜爱棒快好喜爱棒快好喜爱棒快", "烂坏", "几点"]
    response = await _ask(client, texts)
    assert response.status_code == 200
    body = response.json()
    assert body.keys() == {"results", "model"}
    assert [result["label"] for result in body["results"]] == ["negative", "neutral", "positive", "negative", "neutral"]


async def test_a_text_is_answered_in_a_batch_as_alone(fresh_client: httpx.AsyncClient) -> None:
    texts = ["好人", "差店", "问天", "很好很好很好很好很好很好很好很好"]
    results = (await _ask(fresh_client, texts)).json()["results"]
    for text, result in zip(texts, results, strict=True):
        alone = (await fresh_client.post("/v1/sentiment", json={"text": text})).json()
        del alone["model"]
        assert alone == {**result, "cached": True}


async def test_the_same_text_twice_has_the_same_answer_twice(fresh_client: httpx.AsyncClient) -> None:
    first, other, second = (await _ask(fresh_client, ["贵店", "好店", "贵店"])).json()["results"]
    assert first == second != other


async def test_no_texts_have_no_results(client: httpx.AsyncClient) -> None:
    response = await _ask(client, [])
    assert response.status_code == 200
    assert response.json()["results"] == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "empty-text"),
        (" \n\t　", "empty-text"),
        ("\u200b\ufeff", "empty-text"),
        ("好" * (MAX_CHARACTERS + 1), "text-too-long"),
        ("好" * (MAX_BYTES // 3 + 1), "text-too-long"),
        ("好\0", "invalid-text"),
        ("\ud83d好", "invalid-text"),
        (7, "invalid-text"),
        (None, "invalid-text"),
        (["好"], "invalid-text"),
        ({"text": "好"}, "invalid-text"),
    ],
)
async def test_a_text_without_an_answer_has_its_error_in_place(
    client: httpx.AsyncClient, text: object, name: str
) -> None:
    response = await _ask(client, ["好喜", text, "差烂"])
    assert response.status_code == 200
    before, error, after = response.json()["results"]
    assert (before["label"], after["label"]) == ("positive", "negative")
    assert error.keys() == {"error"}
    assert error["error"].keys() == {"type", "title", "detail"}
    assert error["error"]["type"] == f"urn:sentiment:problem:{name}"


async def test_a_batch_of_nothing_but_errors_is_answered(client: httpx.AsyncClient) -> None:
    results = (await _ask(client, ["", None])).json()["results"]
    assert ["error" in result for result in results] == [True, True]


async def test_a_failing_model_puts_a_withheld_error_in_place(client: httpx.AsyncClient) -> None:
    await _ask(client, ["好饭"])
    response = await _ask(client, ["好饭", POISON])
    assert response.status_code == 200
    remembered, failed = response.json()["results"]
    assert remembered["cached"]
    assert failed["error"] == {
        "type": "urn:sentiment:problem:model-failure",
        "title": "Model failure",
        "detail": "The model could not answer. The log has the reason.",
    }


async def test_as_many_texts_as_allowed_are_answered(client: httpx.AsyncClient) -> None:
    assert len((await _ask(client, ["好"] * MAX_TEXTS)).json()["results"]) == MAX_TEXTS


async def test_one_text_too_many_is_a_problem_of_the_list(client: httpx.AsyncClient) -> None:
    problem = assert_problem(await _ask(client, ["好"] * (MAX_TEXTS + 1)), 422, "invalid-request")
    assert pointers(problem) == ["#/texts"]
    assert f"at most {MAX_TEXTS}" in problem["errors"][0]["detail"]


@pytest.mark.parametrize("texts", ["好", None, 5, {"0": "好"}])
async def test_texts_must_be_a_list(client: httpx.AsyncClient, texts: object) -> None:
    response = await client.post("/v1/sentiment/batch", json={"texts": texts})
    assert pointers(assert_problem(response, 422, "invalid-request")) == ["#/texts"]
