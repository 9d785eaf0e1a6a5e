"""Requests that do not succeed at once, by both clients alike."""

import asyncio
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, TypeAlias

import pytest
from chinese_sentiment_client import (
    Answer,
    AsyncSentimentClient,
    Problem,
    Retries,
    SentimentClient,
    TextError,
    UnexpectedAnswer,
    Unreachable,
)

from tests.client.scripted import ANSWER, QUICK, RESET, Reply, scripted

_OK = Reply()


def _busy(status: int = 503, headers: dict[str, str] | None = None) -> Reply:
    problem = {"type": "urn:sentiment:problem:overloaded", "title": "Overloaded", "detail": "later", "status": status}
    return Reply(status, json.dumps(problem).encode(), headers or {})


_Results: TypeAlias = list[Answer | TextError]


def _ask(address: str, texts: Sequence[str], **options: Any) -> _Results:
    with SentimentClient(address, **options) as client:
        return [client.classify(texts[0])] if len(texts) == 1 else list(client.classify_many(texts))


def _ask_async(address: str, texts: Sequence[str], **options: Any) -> _Results:
    async def ask() -> _Results:
        async with AsyncSentimentClient(address, **options) as client:
            if len(texts) == 1:
                return [await client.classify(texts[0])]
            return [result async for result in client.classify_many(texts)]

    return asyncio.run(ask())


_Ask: TypeAlias = Callable[..., _Results]
both = pytest.mark.parametrize("ask", [_ask, _ask_async], ids=["sync", "async"])


@both
@pytest.mark.parametrize("failure", [_busy(), _busy(429), _busy(502), Reply(503, b"<html>"), RESET])
def test_what_may_pass_is_tried_again(ask: _Ask, failure: Reply) -> None:
    with scripted(failure, failure, _OK) as server:
        (answer,) = ask(server.address, ["好"], retries=QUICK)
    assert isinstance(answer, Answer)
    assert [body for _, _, body in server.asked] == [{"text": "好"}] * 3


@both
@pytest.mark.parametrize("status", [400, 401, 403, 413, 415, 422, 500, 504])
def test_what_will_not_pass_is_told_at_once(ask: _Ask, status: int) -> None:
    with scripted(_busy(status), _OK) as server, pytest.raises(Problem) as raised:
        ask(server.address, ["好"], retries=QUICK)
    assert raised.value.status == status
    assert len(server.asked) == 1


@both
def test_attempts_have_an_end(ask: _Ask) -> None:
    with scripted(*[_busy(headers={"X-Request-ID": "7"})] * 5) as server, pytest.raises(Problem) as raised:
        ask(server.address, ["好"], retries=Retries(attempts=3, first_pause_s=0.001))
    assert len(server.asked) == 3
    problem = raised.value
    assert (problem.name, problem.title, problem.detail) == ("overloaded", "Overloaded", "later")
    assert problem.request_id == "7"
    with scripted(*[RESET] * 5) as server, pytest.raises(Unreachable):
        ask(server.address, ["好"], retries=Retries(attempts=3, first_pause_s=0.001))
    assert len(server.asked) == 3


@both
def test_a_service_that_is_away_is_told_with_its_address(ask: _Ask) -> None:
    with scripted() as server:
        pass
    with pytest.raises(Unreachable, match=server.address):
        ask(server.address, ["好"], retries=QUICK)


@both
def test_a_wait_longer_than_allowed_is_not_waited(ask: _Ask) -> None:
    for said in ("600", format_datetime(datetime.now(UTC) + timedelta(seconds=600), usegmt=True)):
        with scripted(_busy(headers={"Retry-After": said}), _OK) as server, pytest.raises(Problem) as raised:
            ask(server.address, ["好"])
        assert raised.value.retry_after_s == pytest.approx(600, abs=60)
        assert len(server.asked) == 1


@both
def test_a_wait_that_cannot_be_read_is_none(ask: _Ask) -> None:
    with scripted(_busy(headers={"Retry-After": "soon"}), _OK) as server:
        assert ask(server.address, ["好"], retries=QUICK)


@both
def test_a_proxys_page_is_a_problem_too(ask: _Ask) -> None:
    with scripted(Reply(404, b"<html>nothing here</html>")) as server, pytest.raises(Problem, match="404 Not Found"):
        ask(server.address, ["好"])


@both
@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"label": "positive"}', b"null"])
def test_what_is_no_answer_is_told_so(ask: _Ask, body: bytes) -> None:
    for texts in (["好"], ["好", "差"]):
        with scripted(Reply(body=body)) as server, pytest.raises(UnexpectedAnswer, match=server.address):
            ask(server.address, texts)


@both
def test_a_result_too_few_is_no_answer(ask: _Ask) -> None:
    body = json.dumps({"results": [ANSWER], "model": ANSWER["model"]}).encode()
    with scripted(Reply(body=body)) as server, pytest.raises(UnexpectedAnswer, match="2 texts were sent, 1 results"):
        ask(server.address, ["好", "差"])


@both
def test_fields_of_a_newer_service_are_ignored(ask: _Ask) -> None:
    newer = {**ANSWER, "sarcasm": 0.1, "emotion": None}
    with scripted(Reply(body=json.dumps(newer).encode())) as server:
        (answer,) = ask(server.address, ["好"])
    assert isinstance(answer, Answer)
    assert answer.emotion is None


@both
def test_a_request_carries_the_key_and_the_deadline(ask: _Ask) -> None:
    with scripted(_OK) as server:
        ask(f"{server.address}/", ["好"], api_key="secret", timeout_s=1.5)
    path, headers, _ = server.asked[0]
    assert path == "POST /v1/sentiment"
    assert headers["Authorization"] == "Bearer secret"
    assert headers["X-Request-Timeout-Ms"] == "1500"


def test_pauses_double_are_cut_at_random_and_keep_to_what_the_service_says() -> None:
    retries = Retries(attempts=10, first_pause_s=1.0, longest_pause_s=5.0)
    for attempt, longest_s in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (9, 5.0)):
        pauses_s = [retries.pause_s(attempt, None) or 0.0 for _ in range(200)]
        assert 0.0 <= min(pauses_s) < longest_s / 4
        assert longest_s * 3 / 4 < max(pauses_s) <= longest_s
        assert 3.0 <= (retries.pause_s(attempt, 3.0) or 0.0) <= 3.0 + longest_s
    assert retries.pause_s(10, None) is None
    assert retries.pause_s(1, 5.1) is None
