import math
from typing import Any

import httpx
import pytest

from tests.http.served import MAX_TEXTS
from tests.tiny_bundle import MAX_TOKENS

pytestmark = pytest.mark.anyio


async def _predict(client: httpx.AsyncClient, inputs: object, **options: object) -> Any:
    response = await client.post("/predict", json={"inputs": inputs, **options})
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_text_is_answered_with_all_labels_the_most_probable_first(client: httpx.AsyncClient) -> None:
    answer = await _predict(client, "好喜，差")
    assert answer[0]["label"] == "positive"
    assert {prediction["label"] for prediction in answer} == {"negative", "neutral", "positive"}
    scores = [prediction["score"] for prediction in answer]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=1e-5)


async def test_the_scores_are_the_probabilities_of_v1(client: httpx.AsyncClient) -> None:
    ours = (await client.post("/v1/sentiment", json={"text": "饭好，人差"})).json()["probabilities"]
    found = {prediction["label"]: prediction["score"] for prediction in await _predict(client, "饭好，人差")}
    assert found == pytest.approx(ours, abs=1e-4)


async def test_a_list_of_one_text_is_one_input_and_a_list_of_lists_is_a_batch(client: httpx.AsyncClient) -> None:
    single = await _predict(client, "好喜")
    assert await _predict(client, ["好喜"]) == single
    assert await _predict(client, [["好喜"]]) == [single]
    assert await _predict(client, [["好喜"], ["差"]]) == [single, await _predict(client, "差")]


async def test_raw_scores_make_the_scores_by_softmax(client: httpx.AsyncClient) -> None:
    scores, raw = [await _predict(client, "饭好，人差，吗", raw_scores=each) for each in (False, True)]
    assert [each["label"] for each in raw] == [each["label"] for each in scores]
    weights = [math.exp(each["score"]) for each in raw]
    softmax = [weight / sum(weights) for weight in weights]
    assert softmax == pytest.approx([each["score"] for each in scores], abs=1e-5)


@pytest.mark.parametrize("inputs", [["好", "差"], ["好", "差", "吗"], [["好", "差"]], [["好"], ["好", "差"]]])
async def test_pairs_of_texts_are_refused_with_a_hint(client: httpx.AsyncClient, inputs: object) -> None:
    response = await client.post("/predict", json={"inputs": inputs})
    assert response.status_code == 422
    assert response.json()["error_type"] == "Validation"
    assert '[["first"], ["second"]]' in response.json()["error"]


async def test_a_text_longer_than_the_window_is_refused_if_it_may_not_be_cut(client: httpx.AsyncClient) -> None:
    fits, too_long = "好" * (MAX_TOKENS - 2), "好喜" * (MAX_TOKENS // 2)
    for truncate in (None, True):
        await _predict(client, too_long, truncate=truncate)
    await _predict(client, fits, truncate=False)
    response = await client.post("/predict", json={"inputs": [[fits], [too_long]], "truncate": False})
    assert response.status_code == 413
    assert response.json()["error_type"] == "Validation"


@pytest.mark.parametrize(
    ("inputs", "status", "error_type"),
    [
        ([], 400, "Empty"),
        ("", 400, "Empty"),
        ("好\0", 422, "Tokenizer"),
        ("好" * 200, 413, "Validation"),
        ([["好"]] * (MAX_TEXTS + 1), 413, "Validation"),
        ([[]], 422, "Validation"),
        ([["好"], "差"], 422, "Validation"),
        ([[5]], 422, "Validation"),
        ("毒", 424, "Backend"),
    ],
)
async def test_errors_have_the_statuses_and_types_of_the_original(
    fresh_client: httpx.AsyncClient, inputs: object, status: int, error_type: str
) -> None:
    response = await fresh_client.post("/predict", json={"inputs": inputs})
    assert response.status_code == status
    assert response.json()["error_type"] == error_type


@pytest.mark.parametrize("options", [{"raw_scores": "yes"}, {"raw_scores": 1}, {"truncate": "no"}])
async def test_an_option_of_another_type_is_refused(client: httpx.AsyncClient, options: dict[str, object]) -> None:
    response = await client.post("/predict", json={"inputs": "好", **options})
    assert response.status_code == 422
    assert next(iter(options)) in response.json()["error"]


async def test_fields_that_are_not_known_are_ignored(client: httpx.AsyncClient) -> None:
    assert await _predict(client, "好", truncation_direction="left") == await _predict(client, "好")


async def test_a_body_that_does_not_call_itself_json_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/predict", content=b'{"inputs": "x"}', headers={"Content-Type": "text/plain"})
    assert (response.status_code, response.json()["error_type"]) == (415, "Validation")


async def test_info_tells_model_and_limits(client: httpx.AsyncClient) -> None:
    info = (await client.get("/info")).json()
    assert info["model_id"] == "tiny"
    assert info["model_dtype"] == "float32"
    assert info["model_type"] == {
        "classifier": {
            "id2label": {"0": "negative", "1": "neutral", "2": "positive"},
            "label2id": {"negative": 0, "neutral": 1, "positive": 2},
        }
    }
    assert (info["max_input_length"], info["max_client_batch_size"]) == (MAX_TOKENS, MAX_TEXTS)
    assert info["auto_truncate"] is True


async def test_health_has_an_empty_body_when_all_is_well(client: httpx.AsyncClient) -> None:
    response = await client.get("/health")
    assert (response.status_code, response.content) == (200, b"")
