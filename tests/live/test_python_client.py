"""Our own client against the server."""

import re
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from chinese_sentiment_client import (
    Answer,
    AsyncSentimentClient,
    Problem,
    SentimentClient,
    TextError,
    Unreachable,
)

from tests.live.served import ROOT, RunningServer, made_up_texts, running_server

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


@pytest.fixture(scope="module")
def jobs_server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("jobs")
    with running_server(
        directory, MODEL__PATH=str(tiny_bundle), MODEL__PROVIDER="cpu", JOBS__URL=f"sqlite:///{directory / 'jobs.db'}"
    ) as server:
        yield server


def _shown(results: list[Answer | TextError]) -> list[str]:
    return [result.label if isinstance(result, Answer) else result.title for result in results]


def test_a_batch_job_from_the_texts_to_the_answers(jobs_server: RunningServer) -> None:
    with SentimentClient(jobs_server.address) as client:
        texts = [*made_up_texts(700), "", "\ud83d好"]
        job = client.batches.create(texts)
        assert (job.lines, job.ended) == (702, False)
        job = client.batches.wait(job.id, every_s=0.05)
        assert (job.state, job.done, job.errors) == ("completed", 702, 2)
        shown = _shown(list(client.batches.results(job.id)))
        assert shown == _shown(list(client.classify_many(texts)))
        assert job in client.batches.list()

        client.batches.delete(job.id)
        client.batches.delete(job.id)
        with pytest.raises(Problem) as raised:
            client.batches.get(job.id)
        assert raised.value.name == "unknown-job"


async def test_a_batch_job_of_an_asynchronous_caller(jobs_server: RunningServer) -> None:
    async with AsyncSentimentClient(jobs_server.address) as client:
        jobs = [await client.batches.create(made_up_texts(count)) for count in range(30)]
        listed = [job.id async for job in client.batches.list()]  # more than a page
        assert listed[:30] == [job.id for job in reversed(jobs)]
        ended = [await client.batches.wait(job.id, every_s=0.05) for job in jobs]
        assert [job.done for job in ended] == list(range(30))
        assert len([answer async for answer in client.batches.results(jobs[29].id)]) == 29
        assert (await client.batches.cancel(jobs[29].id)).state == "completed"  # too late
        await client.batches.delete(jobs[29].id)


def test_a_client_that_waits_for_a_job_outlives_the_server(tiny_bundle: Path, tmp_path: Path) -> None:
    settings = {
        "MODEL__PATH": str(tiny_bundle),
        "MODEL__PROVIDER": "cpu",
        "JOBS__URL": f"sqlite:///{tmp_path / 'jobs.db'}",
    }
    texts = made_up_texts(6_000)
    (tmp_path / "first").mkdir()
    with running_server(tmp_path / "first", **settings) as server, SentimentClient(server.address) as client:
        job = client.batches.create(texts)
        server.stop(signal.SIGKILL)
        with pytest.raises(Unreachable):
            client.batches.get(job.id)
    (tmp_path / "second").mkdir()
    with running_server(tmp_path / "second", **settings) as server, SentimentClient(server.address) as client:
        assert client.batches.wait(job.id, every_s=0.1).done == len(texts)
        assert sum(isinstance(result, Answer) for result in client.batches.results(job.id)) == len(texts)


def test_what_the_page_on_batch_jobs_shows_is_what_happens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = ROOT.joinpath("docs", "bulk.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    with running_server(tmp_path, JOBS__URL=f"sqlite:///{tmp_path / 'jobs.db'}") as server:
        names = {"SentimentClient": SentimentClient, "Answer": Answer}
        exec(program.replace("http://127.0.0.1:8000", server.address), names)  # noqa: S102 (our own page)
    assert capsys.readouterr().out.split() == ["positive", "neutral"]


def test_a_service_without_jobs_says_what_turns_them_on(client: SentimentClient) -> None:
    with pytest.raises(Problem, match="SENTIMENT_JOBS__URL") as raised:
        client.batches.create(["好"])
    assert raised.value.status == 404
