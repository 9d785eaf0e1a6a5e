from pathlib import Path

import httpx
import pytest

from app.domain.labels import LABELS, Heads
from app.main import create_app
from tests.http.served import client_of, small_settings
from tests.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.anyio


async def _ask(client: httpx.AsyncClient, text: str) -> httpx.Response:
    return await client.post("/v1/sentiment", json={"text": text})


@pytest.mark.parametrize(("text", "label"), [("好喜爱", "positive"), ("差坏烂", "negative"), ("问几点", "neutral")])
async def test_a_text_is_answered_with_what_it_expresses(client: httpx.AsyncClient, text: str, label: str) -> None:
    response = await _ask(client, text)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    answer = response.json()
    assert answer.keys() == {
        "label",
        "confidence",
        "probabilities",
        "certain",
        "emotion",
        "truncated",
        "cached",
        "model",
    }
    assert answer["label"] == label
    assert answer["model"] == {"name": "tiny", "version": "0.0.1"}


async def test_probabilities_are_of_every_label_and_sum_to_one(client: httpx.AsyncClient) -> None:
    answer = (await _ask(client, "饭好，人差")).json()
    assert list(answer["probabilities"]) == ["negative", "neutral", "positive"]
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=2e-4)
    assert answer["confidence"] == max(answer["probabilities"].values()) == answer["probabilities"][answer["label"]]


@pytest.mark.parametrize(("text", "emotion"), [("好怒怒怒", "angry"), ("差笑笑笑", "happy"), ("好嗯嗯嗯", "neutral")])
async def test_an_answer_says_what_the_writer_feels(client: httpx.AsyncClient, text: str, emotion: str) -> None:
    answer = (await _ask(client, text)).json()["emotion"]
    assert answer.keys() == {"label", "probabilities"}
    assert answer["label"] == emotion
    assert list(answer["probabilities"]) == ["angry", "happy", "neutral"]
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=2e-4)
    assert max(answer["probabilities"].values()) == answer["probabilities"][emotion]


async def test_the_emotion_of_a_model_that_tells_none_is_null(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path, heads=Heads(LABELS))
    async with client_of(create_app(small_settings(bundle))) as client:
        answer = (await _ask(client, "好怒怒")).json()
        batch = (await client.post("/v1/sentiment/batch", json={"texts": ["好怒怒"]})).json()
    assert answer["emotion"] is None
    assert batch["results"][0]["emotion"] is None


@pytest.mark.parametrize(("text", "certain"), [("好喜爱", True), ("好差", False)])
async def test_an_answer_says_whether_it_is_certain(
    client: httpx.AsyncClient,
    text: str,
    certain: bool,  # noqa: FBT001 (a parameter of the test)
) -> None:
    assert (await _ask(client, text)).json()["certain"] is certain


async def test_every_answer_of_a_model_that_was_not_calibrated_is_certain(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path, calibration=None)
    async with client_of(create_app(small_settings(bundle))) as client:
        assert (await _ask(client, "好差")).json()["certain"] is True


async def test_the_second_time_an_answer_is_remembered(client: httpx.AsyncClient) -> None:
    first, second = [(await _ask(client, "这家店好差，笑")).json() for _ in range(2)]
    assert (first.pop("cached"), second.pop("cached")) == (False, True)
    assert first == second
    assert first["emotion"] is not None
    assert not first["certain"]


async def test_spellings_that_clean_to_the_same_text_share_an_answer(client: httpx.AsyncClient) -> None:
    await _ask(client, "这家饭店快！")
    assert (await _ask(client, "  这家饭店快！！！<br>".replace("！！！", "!"))).json()["cached"]
    assert (await _ask(client, "这 家 饭 店 快！")).json()["cached"]


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
