import asyncio
import gzip
import json
import re
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgi_lifespan import LifespanManager
from starlette.datastructures import State
from starlette.types import ASGIApp

from app.inference.batcher import BatchPolicy
from app.main import create_app
from tests.http.served import (
    MAX_BODY_BYTES,
    MAX_CHARACTERS,
    MAX_STREAMS,
    STREAM,
    GatedModel,
    app_of_model,
    asgi_client,
    assert_problem,
    client_of,
    small_settings,
    until,
)
from tests.http.wire import Wire, wire_to
from tests.tiny_bundle import POISON

pytestmark = pytest.mark.anyio

Logged = Callable[[], list[dict[str, Any]]]

_PATH = "/v1/sentiment/stream"
_NDJSON = {"Content-Type": "application/x-ndjson"}
_WIDE = BatchPolicy(max_items=8, max_tokens=256, max_waiting_items=1_000, max_waiting_tokens=100_000)
_SETTLE_S = 0.1  # in which an application that goes on would show


def _ndjson(*lines: object) -> bytes:
    return "".join(f"{json.dumps(line)}\n" for line in lines).encode()


async def _stream(client: httpx.AsyncClient, content: bytes, query: str = "", **headers: str) -> httpx.Response:
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.post(f"{_PATH}{query}", content=content, headers={**_NDJSON, "Accept-Encoding": "", **more})


async def _answers(client: httpx.AsyncClient, content: bytes, query: str = "") -> list[dict[str, Any]]:
    response = await _stream(client, content, query)
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def _outcomes(answers: Sequence[dict[str, Any]]) -> list[str]:
    """Return the label of each answer, or the kind of its error."""
    return [
        answer["sentiment"]["label"] if "sentiment" in answer else answer["error"]["type"].rpartition(":")[2]
        for answer in answers
    ]


@asynccontextmanager
async def _app(bundle: Path, **settings: float) -> AsyncIterator[ASGIApp]:
    async with LifespanManager(create_app(small_settings(bundle, **settings)), startup_timeout=60) as manager:
        yield manager.app


@asynccontextmanager
async def _held_up(
    directory: Path, policy: BatchPolicy = _WIDE, *, batch_timeout_s: float = 60
) -> AsyncIterator[tuple[GatedModel, ASGIApp, State]]:
    """Yield an application whose model has answered nothing yet."""
    model = GatedModel()
    async with app_of_model(model, directory, policy, batch_timeout_s=batch_timeout_s) as (app, state):
        yield model, app, state


async def _begin(model: GatedModel, wire: Wire) -> None:
    """Have one line answered, and the model hold up all that follow."""
    model.gate.set()
    wire.send({"id": "first", "text": "好"})
    await wire.until_lines(1)
    model.gate.clear()
    model.entered.clear()


async def _waiting(client: httpx.AsyncClient) -> int:
    found = re.search(r"^sentiment_waiting_texts (\d+)", (await client.get("/metrics")).text, re.MULTILINE)
    assert found
    return int(found[1])


# Lines and answers


async def test_every_line_is_answered_in_order_and_its_members_come_back(client: httpx.AsyncClient) -> None:
    lines = [{"id": "a", "text": "好喜"}, {"text": "差烂", "shop": {"名": 7}}, {"id": None, "text": "几点"}]
    first, second, third = await _answers(client, _ndjson(*lines))
    assert _outcomes([first, second, third]) == ["positive", "negative", "neutral"]
    assert first.keys() == {"id", "line", "sentiment"}
    assert (first["id"], first["line"]) == ("a", 1)
    assert (second["shop"], second["line"]) == ({"名": 7}, 2)
    assert (third["id"], third["line"]) == (None, 3)


async def test_a_line_is_answered_as_a_single_text_is(client: httpx.AsyncClient) -> None:
    (answer,) = await _answers(client, _ndjson({"text": "我喜爱这家店，天天来"}))
    alone = (await client.post("/v1/sentiment", json={"text": "我喜爱这家店，天天来"})).json()
    assert {**answer["sentiment"], "cached": True} == alone


async def test_a_stream_may_be_longer_than_any_other_body_and_its_window(client: httpx.AsyncClient) -> None:
    content = _ndjson(*({"id": number, "text": f"好{number}"} for number in range(3_000)))
    assert len(content) > 4 * MAX_BODY_BYTES
    answers = await _answers(client, content)
    assert [answer["id"] for answer in answers] == list(range(3_000))
    assert set(_outcomes(answers)) == {"positive"}


async def test_nothing_is_answered_with_nothing(client: httpx.AsyncClient) -> None:
    for content in (b"", b"\n\n"):
        assert await _answers(client, content) == []


@pytest.mark.parametrize("query", ["", "?ordered=false"])
async def test_a_bad_line_has_its_error_in_place_and_harms_no_other(client: httpx.AsyncClient, query: str) -> None:
    bad: list[tuple[bytes, str]] = [
        (b'{"text": ""}', "empty-text"),
        (_ndjson({"text": "好" * (MAX_CHARACTERS + 1)}), "text-too-long"),
        (_ndjson({"text": "好", "more": "x" * STREAM.max_line_bytes}), "line-too-long"),
        (b'{"text": 7}', "invalid-text"),
        (b'{"text": "\\ud83d"}', "invalid-text"),
        (b'{"text": "a', "not-json"),
        ("好".encode("gbk"), "not-json"),
        (b"[]", "invalid-line"),
        (b'{"texts": ["a"]}', "invalid-line"),
        (_ndjson({"text": POISON}), "model-failure"),
    ]
    content = b"\n".join(b'{"text": "\xe5\xa5\xbd"}\n' + line.strip() for line, _ in bad)
    answers = sorted(await _answers(client, content, query), key=lambda answer: answer["line"])
    assert [answer["line"] for answer in answers] == list(range(1, 2 * len(bad) + 1))
    assert _outcomes(answers)[::2] == ["positive"] * len(bad)
    assert _outcomes(answers)[1::2] == [name for _, name in bad]
    for answer in answers[1::2]:
        assert answer["error"].keys() == {"type", "title", "detail"}
        assert "好" not in answer["error"]["detail"]


async def test_the_id_of_a_text_without_an_answer_comes_back(client: httpx.AsyncClient) -> None:
    (answer,) = await _answers(client, _ndjson({"id": "order-1", "text": ""}))
    assert (answer["id"], _outcomes([answer])) == ("order-1", ["empty-text"])


async def test_an_answer_comes_before_the_next_line_is_sent(tiny_bundle: Path) -> None:
    async with _app(tiny_bundle) as app, wire_to(app) as (wire, task):
        for number in range(1, 4):
            wire.send({"id": number, "text": "好"})
            assert (await wire.until_lines(number))[-1]["id"] == number
        wire.send_bytes(b"", end=True)
        await task
        assert wire.ended


async def test_out_of_order_an_answer_waits_for_no_other(tiny_bundle: Path) -> None:
    async with _held_up(tiny_bundle) as (model, app, _), wire_to(app, f"{_PATH}?ordered=false") as (wire, task):
        await _begin(model, wire)
        wire.send({"id": "held up", "text": "差"})
        wire.send({"id": "at once", "text": ""}, end=True)
        assert [answer["id"] for answer in await wire.until_lines(2)] == ["first", "at once"]
        model.gate.set()
        await task
        assert wire.lines()[-1]["id"] == "held up"


async def test_in_order_an_answer_waits_for_those_before_it(tiny_bundle: Path) -> None:
    async with _held_up(tiny_bundle) as (model, app, _), wire_to(app) as (wire, task):
        await _begin(model, wire)
        wire.send({"id": "held up", "text": "差"})
        wire.send({"id": "at once", "text": ""}, end=True)
        await asyncio.sleep(_SETTLE_S)
        assert len(wire.lines()) == 1
        model.gate.set()
        await task
        assert [answer["id"] for answer in wire.lines()] == ["first", "held up", "at once"]


async def test_an_order_that_is_neither_is_refused(client: httpx.AsyncClient) -> None:
    assert_problem(await _stream(client, b"", "?ordered=perhaps"), 422, "invalid-request")


# Backpressure


async def test_a_client_that_does_not_read_stops_the_reading_of_its_lines(tiny_bundle: Path) -> None:
    async with _app(tiny_bundle) as app, wire_to(app) as (wire, task):
        wire.reading.clear()
        for number in range(500):
            wire.send({"id": number, "text": "好"})
        wire.send_bytes(b"", end=True)
        await asyncio.sleep(_SETTLE_S)
        assert wire.received <= 2
        wire.reading.set()
        await task
        assert [answer["id"] for answer in wire.lines()] == list(range(500))


@pytest.mark.parametrize(
    ("padding", "lines"), [(0, STREAM.window_lines), (360, STREAM.window_bytes // 400)], ids=["lines", "bytes"]
)
async def test_no_more_lines_are_in_work_than_the_window_holds(tiny_bundle: Path, padding: int, lines: int) -> None:
    async with _held_up(tiny_bundle) as (model, app, _), wire_to(app) as (wire, task):
        await _begin(model, wire)
        for number in range(200):
            wire.send({"id": f"{number:03}", "text": "好", "more": "x" * padding})

        async def full() -> bool:
            return wire.received > lines - 2

        await until(full)
        await asyncio.sleep(_SETTLE_S)
        assert abs(wire.received - 1 - lines) <= 1
        model.gate.set()
        wire.send_bytes(b"", end=True)
        await task
        assert len(wire.lines()) == 201


async def test_a_stream_waits_for_room_among_others_and_fails_no_line(tiny_bundle: Path) -> None:
    policy = BatchPolicy(max_items=4, max_tokens=256, max_waiting_items=16, max_waiting_tokens=10_000)
    async with (
        _held_up(tiny_bundle, policy) as (model, app, _),
        asgi_client(app) as client,
        wire_to(app) as (wire, task),
    ):
        await _begin(model, wire)

        async def ask(number: int) -> httpx.Response:
            return await client.post("/v1/sentiment/batch", json={"texts": [f"差{number}{text}" for text in range(8)]})

        async with asyncio.TaskGroup() as tasks:
            busy = tasks.create_task(ask(0))
            await asyncio.to_thread(model.entered.wait, 30)
            waiting = tasks.create_task(ask(1))

            async def full() -> bool:
                return await _waiting(client) >= 12

            await until(full)
            for number in range(100):
                wire.send({"id": number, "text": f"好{number}"})
            wire.send_bytes(b"", end=True)
            await asyncio.sleep(_SETTLE_S)
            assert await _waiting(client) <= 16
            model.gate.set()
        assert [request.result().status_code for request in (busy, waiting)] == [200, 200]
        await task
        assert _outcomes(wire.lines()) == ["positive"] * 101


async def test_streams_leave_room_for_batch_requests(tiny_bundle: Path) -> None:
    policy = BatchPolicy(max_items=4, max_tokens=256, max_waiting_items=16, max_waiting_tokens=10_000)
    async with (
        _held_up(tiny_bundle, policy) as (model, app, _),
        asgi_client(app) as client,
        wire_to(app) as (wire, task),
    ):
        await _begin(model, wire)
        for number in range(60):
            wire.send({"id": number, "text": f"好{number}"})
        wire.send_bytes(b"", end=True)

        async def half_full() -> bool:
            return await _waiting(client) >= 8

        await until(half_full)
        async with asyncio.TaskGroup() as tasks:
            batch = tasks.create_task(client.post("/v1/sentiment/batch", json={"texts": ["差"] * 8}))
            await asyncio.sleep(_SETTLE_S)
            model.gate.set()
        assert batch.result().status_code == 200
        await task
        assert len(wire.lines()) == 61


# Refusals


async def test_a_stream_that_finds_no_room_is_a_503_that_says_when_to_try_again(tiny_bundle: Path) -> None:
    policy = BatchPolicy(max_items=1, max_tokens=256, max_waiting_items=1, max_waiting_tokens=100)
    async with (
        _held_up(tiny_bundle, policy) as (model, app, _),
        asgi_client(app) as client,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(client.post("/v1/sentiment/batch", json={"texts": ["好"]}))
        await asyncio.to_thread(model.entered.wait, 30)
        tasks.create_task(client.post("/v1/sentiment/batch", json={"texts": ["差"]}))

        async def full() -> bool:
            return await _waiting(client) == 1

        await until(full)
        response = await _stream(client, _ndjson({"text": "好喜"}, {"text": "好快"}))
        model.gate.set()
    assert_problem(response, 503, "overloaded")
    assert int(response.headers["Retry-After"]) >= 1


async def test_one_stream_too_many_is_a_503_until_another_ends(tiny_bundle: Path) -> None:
    async with _app(tiny_bundle) as app, asgi_client(app) as client:
        wires = [wire_to(app) for _ in range(MAX_STREAMS)]
        async with wires[0] as (first, ending), wires[1] as (second, _):
            for wire in (first, second):
                wire.send({"text": "好"})
                await wire.until_lines(1)
            response = await _stream(client, _ndjson({"text": "好"}))
            assert_problem(response, 503, "overloaded")
            assert int(response.headers["Retry-After"]) >= 1
            first.send_bytes(b"", end=True)
            await ending
            assert len(await _answers(client, _ndjson({"text": "好"}))) == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/json"},
        {"Content-Type": "text/plain"},
        {"Content-Type": ""},
        {"Content-Encoding": "br"},
        {"Content-Encoding": "gzip, gzip"},
    ],
)
async def test_what_does_not_call_itself_lines_of_json_is_refused(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    response = await client.post(_PATH, content=_ndjson({"text": "好"}), headers={**_NDJSON, **headers})
    assert "application/x-ndjson" in assert_problem(response, 415, "not-ndjson")["detail"]


@pytest.mark.parametrize("name", ["application/ndjson", "Application/X-NDJSON; charset=utf-8", "application/jsonl"])
async def test_other_names_of_the_format_are_known(client: httpx.AsyncClient, name: str) -> None:
    response = await client.post(_PATH, content=_ndjson({"text": "好"}), headers={"Content-Type": name})
    assert response.status_code == 200


async def test_the_address_takes_no_other_method(client: httpx.AsyncClient) -> None:
    assert_problem(await client.put(_PATH, content=b"", headers=_NDJSON), 405, "method-not-allowed")


# Clients that leave, or do nothing


async def test_a_client_that_leaves_withdraws_what_waits(tiny_bundle: Path) -> None:
    async with (
        _held_up(tiny_bundle) as (model, app, _),
        asgi_client(app) as client,
        wire_to(app) as (wire, task),
    ):
        await _begin(model, wire)
        wire.send(*({"text": f"好{number}"} for number in range(40)), end=True)

        async def many_wait() -> bool:
            return await _waiting(client) > 20

        await until(many_wait)
        wire.leave()
        await task
        assert await _waiting(client) == 0
        assert not wire.ended


async def test_a_client_that_leaves_before_its_first_answer_is_a_499_in_the_log(
    tiny_bundle: Path, logged: Logged
) -> None:
    async with _held_up(tiny_bundle) as (model, app, _), wire_to(app) as (wire, task):
        wire.send({"text": "好"}, end=True)
        await asyncio.to_thread(model.entered.wait, 30)
        wire.leave()
        await task
    assert [line["status"] for line in logged() if line["message"] == "request"] == [499]


async def test_a_stream_on_which_nothing_moves_is_ended_with_a_line_that_says_so(tiny_bundle: Path) -> None:
    async with _app(tiny_bundle, stream_idle_s=0.2) as app, wire_to(app) as (wire, task):
        wire.send({"text": "好"})
        wire.send_bytes(b'{"text": "half a line')
        await wire.until_lines(2)
        wire.send_bytes(b"", end=True)
        await task
        assert wire.ended
        assert _outcomes(wire.lines()) == ["positive", "deadline-exceeded"]
        assert "line" not in wire.lines()[1]


async def test_a_stream_that_does_not_begin_is_a_504(tiny_bundle: Path) -> None:
    async with _app(tiny_bundle) as app, wire_to(app, headers=[("X-Request-Timeout-Ms", "100")]) as (wire, task):
        await task
        assert wire.status == 504


async def test_a_slow_stream_goes_on_as_long_as_something_moves(tiny_bundle: Path) -> None:
    async with _app(tiny_bundle, stream_idle_s=1.5) as app, wire_to(app) as (wire, task):
        for number in range(8):
            wire.send({"id": number, "text": "好"})
            await asyncio.sleep(0.25)
        wire.send_bytes(b"", end=True)
        await task
        assert _outcomes(wire.lines()) == ["positive"] * 8


async def test_a_client_that_never_reads_is_cut_off(tiny_bundle: Path, logged: Logged) -> None:
    async with _app(tiny_bundle, stream_idle_s=0.2) as app, wire_to(app) as (wire, task):
        wire.send({"text": "好"})
        await wire.until_lines(1)
        wire.reading.clear()
        wire.send({"text": "好"})
        await task
        assert not wire.ended
    assert "stream cut off" in [line["message"] for line in logged()]


# Stopping


async def test_a_stopping_server_answers_what_it_read_and_says_that_it_stops(tiny_bundle: Path) -> None:
    async with _held_up(tiny_bundle) as (model, app, state), wire_to(app) as (wire, task):
        await _begin(model, wire)
        wire.send({"id": "read", "text": "差"})
        await asyncio.to_thread(model.entered.wait, 30)
        state.draining.set()
        for _ in range(20):  # turns of the loop
            await asyncio.sleep(0)
        wire.send({"id": "not read any more", "text": "差"})
        model.gate.set()
        answers = await wire.until_lines(3)
        assert [answer.get("id") for answer in answers] == ["first", "read", None]
        assert _outcomes(answers)[-1] == "shutting-down"
        assert "line" not in answers[-1]
        assert not wire.ended  # until the client had its say
        wire.send_bytes(b"", end=True)
        await task
        assert wire.ended
        assert len(wire.lines()) == 3


async def test_a_stream_that_was_read_to_its_end_is_answered_whole_by_a_stopping_server(tiny_bundle: Path) -> None:
    async with _held_up(tiny_bundle) as (model, app, state), wire_to(app) as (wire, task):
        await _begin(model, wire)
        wire.send({"text": "差"}, end=True)
        await asyncio.to_thread(model.entered.wait, 30)
        state.draining.set()
        model.gate.set()
        await task
        assert (wire.ended, _outcomes(wire.lines())) == (True, ["positive", "negative"])


async def test_a_stop_does_not_wait_for_a_model_that_hangs(tiny_bundle: Path) -> None:
    async with _held_up(tiny_bundle, batch_timeout_s=0.2) as (model, app, state), wire_to(app) as (wire, task):
        await _begin(model, wire)
        wire.send({"text": "差"}, end=True)
        await asyncio.to_thread(model.entered.wait, 30)
        state.draining.set()
        await task
        assert (wire.ended, _outcomes(wire.lines())) == (True, ["positive", "shutting-down"])


async def test_a_stopping_server_begins_no_stream(tiny_bundle: Path) -> None:
    app = create_app(small_settings(tiny_bundle))
    async with client_of(app) as client:
        app.state.draining.set()
        assert_problem(await _stream(client, _ndjson({"text": "好"})), 503, "shutting-down")


# gzip


async def test_a_packed_body_is_unpacked(client: httpx.AsyncClient) -> None:
    content = _ndjson(*({"id": number, "text": "好"} for number in range(300)))
    halves = gzip.compress(content[:1_000]) + gzip.compress(content[1_000:])
    response = await _stream(client, halves, Content_Encoding="gzip")
    assert [json.loads(line)["id"] for line in response.text.splitlines()] == list(range(300))


async def test_a_body_that_is_not_packed_as_it_says_is_refused(client: httpx.AsyncClient) -> None:
    for content in (b"no gzip", gzip.compress(b"")[:-1]):
        assert_problem(await _stream(client, content, Content_Encoding="gzip"), 400, "broken-gzip")


async def test_a_packed_body_that_breaks_off_is_answered_as_far_as_it_came(client: httpx.AsyncClient) -> None:
    packed = gzip.compress(_ndjson(*({"text": "好"} for _ in range(100))))
    response = await _stream(client, packed[:-4], Content_Encoding="gzip")
    answers = [json.loads(line) for line in response.text.splitlines()]
    assert _outcomes(answers) == ["positive"] * 100 + ["broken-gzip"]
    assert "line" not in answers[-1]


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("deflate, x-gzip", True),
        ("", False),
        ("br", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("identity", False),
    ],
)
async def test_answers_are_packed_for_those_who_accept_it(
    client: httpx.AsyncClient,
    accepted: str,
    packed: bool,  # noqa: FBT001 (a parameter of the test)
) -> None:
    content = _ndjson(*({"text": "好"} for _ in range(100)))
    response = await _stream(client, content, Accept_Encoding=accepted)
    assert response.headers.get("Content-Encoding") == ("gzip" if packed else None)
    assert response.headers["Vary"] == "Accept-Encoding"
    assert len(response.text.splitlines()) == 100


async def test_packed_answers_wait_for_no_more_to_pack(tiny_bundle: Path) -> None:
    async with _app(tiny_bundle) as app, wire_to(app, headers=[("Accept-Encoding", "gzip")]) as (wire, task):
        unpacker = zlib.decompressobj(31)
        wire.send({"id": 7, "text": "好"})
        answer = b""
        async with asyncio.timeout(30):
            while not answer.endswith(b"\n"):
                await asyncio.sleep(0.01)
                packed, wire.content = wire.content, b""
                answer += unpacker.decompress(packed)
        assert json.loads(answer)["id"] == 7
        wire.send_bytes(b"", end=True)
        await task


# What operators see


async def test_each_line_is_counted_by_its_outcome(fresh_client: httpx.AsyncClient) -> None:
    await _answers(fresh_client, b'{"text": "\xe5\xa5\xbd"}\n{"text": ""}\n[]\n' + b"x" * (STREAM.max_line_bytes + 1))
    metrics = (await fresh_client.get("/metrics")).text
    unanswered = dict(re.findall(r'^sentiment_unanswered_texts_total\{type="([a-z-]+)"\} (\S+)', metrics, re.MULTILINE))
    assert unanswered == {"empty-text": "1.0", "invalid-line": "1.0", "line-too-long": "1.0"}
    assert 'sentiment_confidence_count{label="positive"} 1.0' in metrics
    assert f'route="{_PATH}",status="200"' in metrics


async def test_the_log_holds_no_text(fresh_client: httpx.AsyncClient, logged: Logged) -> None:
    await _answers(fresh_client, '{"text": "槐花巷"}\n{"text": "槐花巷\n槐花巷\n{"text": "槐花巷毒"}'.encode())
    assert "槐花" not in json.dumps(logged(), ensure_ascii=False)


async def test_the_api_description_tells_of_lines_and_of_every_problem(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    operation = document["paths"][_PATH]["post"]
    (name, body) = next(iter(operation["requestBody"]["content"].items()))
    assert name == "application/x-ndjson"
    assert body["schema"]["required"] == ["text"]
    statuses = {"200", "400", "401", "403", "415", "422", "429", "431", "500", "503", "504"}
    assert operation["responses"].keys() == statuses
    assert operation["responses"]["200"]["content"].keys() == {"application/x-ndjson"}
    answer = operation["responses"]["200"]["content"]["application/x-ndjson"]["schema"]
    assert {"line", "sentiment", "error"} == answer["properties"].keys()
