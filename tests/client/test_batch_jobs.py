"""Batch jobs whose requests do not succeed at once, by both clients alike."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeAlias

import pytest
from chinese_sentiment_client import (
    Answer,
    AsyncSentimentClient,
    Job,
    Problem,
    SentimentClient,
    TextError,
    UnexpectedAnswer,
    Unreachable,
)

from tests.client.scripted import ANSWER, QUICK, RESET, Reply, scripted

_JOB = {
    "id": "0a",
    "state": "queued",
    "lines": 3,
    "done": 0,
    "errors": 0,
    "progress": 0.0,
    "created_at": "2026-11-22T10:00:00.5Z",
    "started_at": None,
    "ended_at": None,
    "expires_at": "2026-11-29T10:00:00.5Z",
}
_ENDED = {**_JOB, "state": "completed", "done": 3, "errors": 1, "ended_at": "2026-11-22T10:00:09Z"}
_EMPTY = {"type": "urn:sentiment:problem:empty-text", "title": "Empty text", "detail": "The text is empty or blank."}
_AWAY = {"type": "urn:sentiment:problem:jobs-unavailable", "title": "Jobs unavailable", "detail": "later"}
_LINES = [{"line": 1, "sentiment": ANSWER}, {"line": 2, "error": _EMPTY}, {"line": 3, "sentiment": ANSWER}]


def _reply(body: object, status: int = 200) -> Reply:
    return Reply(status, json.dumps(body).encode())


def _lines(*lines: object, cut: bool = False) -> Reply:
    return Reply(body="".join(json.dumps(line) + "\n" for line in lines).encode(), cut=cut)


async def _all(found: Any) -> Any:
    """Return what an asynchronous method returns or yields."""
    return [each async for each in found] if hasattr(found, "__aiter__") else await found


def _do(address: str, method: str, *arguments: Any, **options: Any) -> Any:
    with SentimentClient(address, retries=QUICK) as client:
        found = getattr(client.batches, method)(*arguments, **options)
        return list(found) if hasattr(found, "__next__") else found


def _do_async(address: str, method: str, *arguments: Any, **options: Any) -> Any:
    async def ask() -> Any:
        async with AsyncSentimentClient(address, retries=QUICK) as client:
            return await _all(getattr(client.batches, method)(*arguments, **options))

    return asyncio.run(ask())


_Do: TypeAlias = Callable[..., Any]
both = pytest.mark.parametrize("do", [_do, _do_async], ids=["sync", "async"])


@both
@pytest.mark.parametrize("failure", [RESET, _reply({}, 503), _reply({}, 429)])
def test_an_upload_is_sent_again_whole_and_under_the_same_key(do: _Do, failure: Reply) -> None:
    with scripted(failure, failure, _reply(_JOB, 202)) as server:
        job = do(server.address, "create", ["好", "", "\ud83d差"])
    assert job == Job(
        id="0a",
        state="queued",
        lines=3,
        done=0,
        errors=0,
        created_at=datetime(2026, 11, 22, 10, 0, 0, 500_000, UTC),
        started_at=None,
        ended_at=None,
        expires_at=datetime(2026, 11, 29, 10, 0, 0, 500_000, UTC),
    )
    assert [path for path, _, _ in server.asked] == ["POST /v1/batches"] * 3
    assert [body for _, _, body in server.asked] == [[{"text": "好"}, {"text": ""}, {"text": "\ud83d差"}]] * 3
    keys = {headers["Idempotency-Key"] for _, headers, _ in server.asked}
    assert len(keys) == 1


@both
def test_lines_may_be_fetched_by_the_service(do: _Do) -> None:
    with scripted(RESET, _reply(_JOB, 202)) as server:
        assert do(server.address, "create_from", "https://files.example/1.jsonl").lines == 3
    assert [body for _, _, body in server.asked] == [{"source": "https://files.example/1.jsonl"}] * 2
    assert len({headers["Idempotency-Key"] for _, headers, _ in server.asked}) == 1


@both
def test_two_uploads_have_keys_of_their_own(do: _Do) -> None:
    with scripted(_reply(_JOB, 202), _reply(_JOB, 202)) as server:
        for _ in range(2):
            do(server.address, "create", ["好"])
    assert len({headers["Idempotency-Key"] for _, headers, _ in server.asked}) == 2


@both
@pytest.mark.parametrize("status", [404, 409, 413])
def test_what_will_not_pass_is_told_at_once(do: _Do, status: int) -> None:
    with scripted(_reply({}, status)) as server, pytest.raises(Problem) as raised:
        do(server.address, "create", ["好"])
    assert raised.value.status == status


@both
def test_results_go_on_where_they_broke_off(do: _Do) -> None:
    broken = [_lines(_LINES[0], cut=True), _reply({}, 503), _lines(*_LINES[:2], {"error": _AWAY}), RESET]
    with scripted(*broken, _lines(*_LINES)) as server:
        found = do(server.address, "results", "0a")
    assert [path for path, _, _ in server.asked] == ["GET /v1/batches/0a/results"] * 5
    assert [type(result) for result in found] == [Answer, TextError, Answer]
    assert (found[0].label, found[1].title, found[2].model.name) == ("positive", "Empty text", "tiny")


@both
def test_no_result_comes_twice_when_gaps_are_filled_meanwhile(do: _Do) -> None:
    with scripted(_lines(_LINES[1], cut=True), _lines(*_LINES)) as server:
        found = do(server.address, "results", "0a")
    assert [type(result) for result in found] == [TextError, Answer]


@both
def test_results_that_get_no_further_have_an_end(do: _Do) -> None:
    with scripted(*[_lines(_LINES[0], {"error": _AWAY})] * 5) as server:
        with pytest.raises(Problem, match="503 Jobs unavailable: later"):
            do(server.address, "results", "0a")
        assert len(server.asked) == 4
    with scripted(*[RESET] * 4) as server, pytest.raises(Unreachable):
        do(server.address, "results", "0a")


@both
def test_a_job_is_waited_for_until_it_has_ended(do: _Do) -> None:
    running = {**_JOB, "state": "running", "started_at": "2026-11-22T10:00:01Z", "done": 1}
    with scripted(_reply(_JOB), RESET, _reply(running), _reply(_ENDED)) as server:
        job = do(server.address, "wait", "0a", every_s=0.001)
    assert (job.state, job.ended, job.done, job.errors) == ("completed", True, 3, 1)
    with scripted(_reply(running)) as server, pytest.raises(TimeoutError, match="0a is still running: 1 of 3 lines"):
        do(server.address, "wait", "0a", timeout_s=0.0)


@both
def test_lists_go_through_all_pages(do: _Do) -> None:
    older = {**_ENDED, "id": "09"}
    with scripted(_reply({"batches": [_JOB], "next": "0a"}), _reply({"batches": [older], "next": None})) as server:
        assert [job.id for job in do(server.address, "list")] == ["0a", "09"]
    assert [path for path, _, _ in server.asked] == ["GET /v1/batches", "GET /v1/batches?after=0a"]


@both
def test_what_is_deleted_already_is_deleted(do: _Do) -> None:
    with scripted(RESET, _reply({}, 404), _reply({}, 403)) as server:
        do(server.address, "delete", "0a")
        assert [path for path, _, _ in server.asked] == ["DELETE /v1/batches/0a"] * 2
        with pytest.raises(Problem):
            do(server.address, "delete", "0a")


@both
@pytest.mark.parametrize(
    ("method", "arguments"),
    [("create", [["好"]]), ("get", ["0a"]), ("list", []), ("results", ["0a"]), ("cancel", ["0a"])],
)
def test_what_is_no_answer_is_told_so(do: _Do, method: str, arguments: list[Any]) -> None:
    with scripted(_reply({"something": "else"})) as server, pytest.raises(UnexpectedAnswer):
        do(server.address, method, *arguments)
