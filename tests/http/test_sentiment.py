import httpx
import pytest

pytestmark = pytest.mark.anyio


async def _ask(client: httpx.AsyncClient, text: str) -> httpx.Response:
    return await client.post("/v1/sentiment", json={"text": text})


@pytest.mark.parametrize(("text", "label"), [("好喜爱", "positive"), ("差坏烂", "negative"), ("问几点", "neutral")])
async def test_a_text_is_answered_with_what_it_expresses(client: httpx.AsyncClient, text: str, label: str) -> None:
    response = await _ask(client, text)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    answer = response.json()
    assert answer.keys() == {"label", "confidence", "probabilities", "truncated", "cached", "model"}
    assert answer["label"] == label
    assert answer["model"] == {"name": "tiny", "version": "0.0.1"}


async def test_probabilities_are_of_every_label_and_sum_to_one(client: httpx.AsyncClient) -> None:
    answer = (await _ask(client, "饭好，人差")).json()
    assert list(answer["probabilities"]) == ["negative", "neutral", "positive"]
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=2e-4)
    assert answer["confidence"] == max(answer["probabilities"].values()) == answer["probabilities"][answer["label"]]


async def test_the_second_time_an_answer_is_remembered(client: httpx.AsyncClient) -> None:
    first, second = [(await _ask(client, "这家店好")).json() for _ in range(2)]
    assert (first.pop("cached"), second.pop("cached")) == (False, True)
    assert first == second


async def test_spellings_that_clean_to_the_same_text_share_an_answer(client: httpx.AsyncClient) -> None:
    await _ask(client, "这家饭店快！")
    assert (await _ask(client, "  这家饭店快！！！<br>".replace("！！！", "!"))).json()["cached"]


@pytest.mark.parametrize(("length", "truncated"), [(14, False), (15, True)])
async def test_an_answer_says_when_the_middle_was_left_out(
    client: httpx.AsyncClient,
    length: int,
    truncated: bool,  # noqa: FBT001 (a parameter of the test)
) -> None:
    answer = (await _ask(client, ("好喜" * length)[:length])).json()
    assert answer["truncated"] is truncated


async def test_a_text_in_another_script_is_answered_too(client: httpx.AsyncClient) -> None:
    assert (await _ask(client, "très bon 👍")).status_code == 200


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/a+json"])
async def test_json_may_be_called_by_any_of_its_names(client: httpx.AsyncClient, content_type: str) -> None:
    response = await client.post("/v1/sentiment", content='{"text": "好"}', headers={"Content-Type": content_type})
    assert response.status_code == 200
