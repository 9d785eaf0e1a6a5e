"""Our own client against the server."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from chinese_sentiment_client import Answer, AsyncSentimentClient, Problem, SentimentClient, TextError, Unreachable

from tests.live.served import RunningServer, made_up_texts

pytestmark = pytest.mark.anyio


@pytest.fixture
def client(server: RunningServer) -> Iterator[SentimentClient]:
    with SentimentClient(server.address, timeout_s=120) as client:
        yield client


@pytest.fixture
async def async_client(server: RunningServer) -> AsyncIterator[AsyncSentimentClient]:
    async with AsyncSentimentClient(server.address, timeout_s=120) as client:
        yield client


def test_an_answer_has_all_that_the_service_tells(client: SentimentClient, server: RunningServer) -> None:
    text = "太好吃了，下次还来"
    answer = client.classify(text)
    body = httpx.post(f"{server.address}/v1/sentiment", json={"text": text}, timeout=60).json()
    assert answer.label == body["label"] == "positive"
    assert answer.confidence == answer.probabilities["positive"] == pytest.approx(body["confidence"], abs=0.01)
    assert answer.emotion is not None
    assert answer.emotion.label == body["emotion"]["label"]
    assert (answer.model.name, answer.model.version) == (body["model"]["name"], body["model"]["version"])
    assert (answer.certain, answer.truncated, answer.cached) == (body["certain"], False, False)


async def test_many_texts_are_answered_in_order_by_both_clients(
    client: SentimentClient, async_client: AsyncSentimentClient
) -> None:
    texts = [*made_up_texts(70), "", "\ud83d好", "坏" * 400_000]
    found = list(client.classify_many(texts, chunk=32))
    assert [isinstance(result, Answer) for result in found] == [True] * 70 + [False] * 3
    assert [result.type.rpartition(":")[2] for result in found if isinstance(result, TextError)] == [
        "empty-text",
        "invalid-text",
        "text-too-long",
    ]
    again = [result async for result in async_client.classify_many(texts, chunk=50)]
    assert [getattr(result, "label", None) for result in again] == [getattr(result, "label", None) for result in found]


def test_texts_are_read_no_faster_than_they_are_answered(client: SentimentClient) -> None:
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield f"第{read}次都很好"

    results = client.classify_many(texts(), chunk=4)
    assert all(isinstance(next(results), Answer) for _ in range(5))
    assert read == 9  # two chunks, and one text that showed the second to be full


async def test_a_refused_text_is_a_problem_with_its_detail(
    client: SentimentClient, async_client: AsyncSentimentClient
) -> None:
    with pytest.raises(Problem) as raised:
        client.classify(" ")
    problem = raised.value
    assert (problem.status, problem.name, problem.title) == (422, "empty-text", "Empty text")
    assert problem.errors == [{"pointer": "#/text", "detail": problem.detail}]
    assert problem.request_id
    with pytest.raises(Problem, match="422 Empty text: The text is empty or blank"):
        await async_client.classify(" ")


def test_a_deadline_reaches_the_service(server: RunningServer) -> None:
    with SentimentClient(server.address, timeout_s=0.001) as client, pytest.raises(Problem) as raised:
        client.classify("这一次的答案来不及了")
    assert (raised.value.status, raised.value.name) == (504, "deadline-exceeded")


def test_no_service_is_an_error_of_its_own() -> None:
    with SentimentClient("http://127.0.0.1:1") as client, pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
        client.classify("好")
