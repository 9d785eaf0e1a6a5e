import math
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio


async def _classify(client: httpx.AsyncClient, inputs: object, **parameters: object) -> Any:
    response = await client.post("/", json={"inputs": inputs, "parameters": parameters})
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_text_is_answered_with_a_list_of_one_list_of_labels(client: httpx.AsyncClient) -> None:
    (labels,) = await _classify(client, "好喜")
    assert labels[0]["label"] == "positive"
    assert len(labels) == 3
    assert (await client.post("/", json={"inputs": "好喜"})).json() == [labels]


async def test_many_texts_have_a_list_each(client: httpx.AsyncClient) -> None:
    assert await _classify(client, ["好", "差"]) == [*await _classify(client, "好"), *await _classify(client, "差")]
    assert await _classify(client, []) == []


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (2, 2), (3, 3), (10, 3), (None, 3)])
async def test_top_k_is_how_many_labels_are_told(client: httpx.AsyncClient, top_k: int | None, count: int) -> None:
    (labels,) = await _classify(client, "好喜", top_k=top_k)
    assert labels == (await _classify(client, "好喜"))[0][:count]


async def test_without_a_function_the_scores_are_logarithms(client: httpx.AsyncClient) -> None:
    (scores,), (logarithms,) = [
        await _classify(client, "好差", function_to_apply=function) for function in ("softmax", "none")
    ]
    assert [math.exp(each["score"]) for each in logarithms] == pytest.approx(
        [each["score"] for each in scores], abs=1e-5
    )


@pytest.mark.parametrize(
    "parameters", [{"function_to_apply": "sigmoid"}, {"top_k": 0}, {"top_k": "3"}, {"top_k": 1.5}, 5]
)
async def test_a_parameter_that_cannot_be_honoured_is_refused(client: httpx.AsyncClient, parameters: object) -> None:
    response = await client.post("/", json={"inputs": "好", "parameters": parameters})
    assert response.status_code == 422
    assert "parameters" in response.json()["error"]
