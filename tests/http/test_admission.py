"""Who is let in, and for how many texts."""

import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from app.main import create_admin_app, create_app
from app.security.keys import add_key
from app.settings import Security
from tests.http.served import MAX_BODY_BYTES, MAX_TEXTS, assert_problem, client_of, small_settings

pytestmark = pytest.mark.anyio

Logged = Callable[[], list[dict[str, Any]]]

_SINGLE, _BATCH = "/v1/sentiment", "/v1/sentiment/batch"
_GOOD = {"text": "好"}


@dataclass(frozen=True)
class Door:
    """An application with a file of keys, and who holds which."""

    bundle: Path
    file: Path

    def new_key(self, name: str, *scopes: str, rate_limits: str | None = None) -> dict[str, str]:
        """Return the headers of a new caller."""
        key = add_key(self.file, name, scopes=scopes or ("classify",), rate_limits=rate_limits)
        return {"Authorization": f"Bearer {key}"}

    def client(self, **security: object) -> AbstractAsyncContextManager[httpx.AsyncClient]:
        found = Security.model_validate({"keys_file": str(self.file), **security})
        return client_of(create_app(small_settings(self.bundle).model_copy(update={"security": found})))


@pytest.fixture
def door(tiny_bundle: Path, tmp_path: Path) -> Door:
    return Door(tiny_bundle, tmp_path / "keys.toml")


async def test_who_shows_a_key_is_answered(door: Door) -> None:
    shop = door.new_key("shop")
    async with door.client() as client:
        assert (await client.post(_SINGLE, json=_GOOD, headers=shop)).json()["label"] == "positive"
        assert (await client.post(_BATCH, json={"texts": ["好"]}, headers=shop)).status_code == 200
        lower = {"Authorization": shop["Authorization"].replace("Bearer", "bearer")}
        assert (await client.post(_SINGLE, json=_GOOD, headers=lower)).status_code == 200


@pytest.mark.parametrize(
    "path", [_SINGLE, _BATCH, "/metrics", "/admin", "/admin/x", "/nothing", "/v1/nothing", "/docs/x"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_without_a_key_nothing_but_what_is_open_is_answered(door: Door, path: str, method: str) -> None:
    door.new_key("shop")
    async with door.client() as client:
        response = await client.request(method, path)
    problem = assert_problem(response, 401, "not-authenticated")
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="sentiment"'
    assert "Authorization: Bearer" in problem["detail"]


@pytest.mark.parametrize(
    "authorization", ["Bearer", "Bearer ", "Bearer wrong", "Basic {key}", "{key}", "Bearer {key}x", "Bearer {digest}"]
)
async def test_what_is_no_key_is_refused(door: Door, authorization: str) -> None:
    key = door.new_key("shop")["Authorization"].removeprefix("Bearer ")
    (digest,) = re.findall(r"[0-9a-f]{64}", door.file.read_text())
    async with door.client() as client:
        shown = authorization.format(key=key, digest=digest)
        response = await client.post(_SINGLE, json=_GOOD, headers={"Authorization": shown})
    assert_problem(response, 401, "not-authenticated")
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="sentiment", error="invalid_token"'


@pytest.mark.parametrize(
    "path",
    ["/health/live", "/health/ready", "/health", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"],
)
async def test_health_and_documentation_need_no_key(door: Door, path: str) -> None:
    door.new_key("shop")
    async with door.client() as client:
        assert (await client.get(path)).status_code == 200


async def test_the_documentation_says_how_to_show_a_key(door: Door, client: httpx.AsyncClient) -> None:
    door.new_key("shop")
    async with door.client() as locked:
        document = (await locked.get("/openapi.json")).json()
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    assert document["security"] == [{"key": []}]
    assert "security" not in (await client.get("/openapi.json")).json()


async def test_a_body_is_not_read_before_the_key(door: Door) -> None:
    door.new_key("shop")
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        sent += 1
        yield b" " * MAX_BODY_BYTES

    async with door.client() as client:
        assert_problem(await client.post(_SINGLE, content=chunks()), 401, "not-authenticated")
    assert not sent


async def test_a_key_may_do_what_its_scopes_say(door: Door) -> None:
    callers = {name: door.new_key(name, name) for name in ("classify", "metrics", "admin")}
    async with door.client() as client:
        for name, headers in callers.items():
            for path, needed in ((_SINGLE, "classify"), ("/metrics", "metrics"), ("/admin/x", "admin")):
                response = await client.get(path, headers=headers)
                if name == needed:
                    assert response.status_code in {200, 404, 405}
                    continue
                problem = assert_problem(response, 403, "not-permitted")
                assert f"'{needed}'" in problem["detail"]
                challenge = f'Bearer realm="sentiment", error="insufficient_scope", scope="{needed}"'
                assert response.headers["WWW-Authenticate"] == challenge


async def test_metrics_may_be_open_while_the_rest_is_not(door: Door) -> None:
    door.new_key("shop")
    async with door.client(open_metrics=True) as client:
        assert (await client.get("/metrics")).status_code == 200
        assert_problem(await client.post(_SINGLE, json=_GOOD), 401, "not-authenticated")


async def test_where_keys_are_no_must_a_wrong_one_is_refused_all_the_same(door: Door) -> None:
    shop = door.new_key("shop")
    async with door.client(allow_anonymous=True) as client:
        assert (await client.post(_SINGLE, json=_GOOD)).status_code == 200
        assert (await client.post(_SINGLE, json=_GOOD, headers=shop)).status_code == 200
        wrong = {"Authorization": "Bearer wrong"}
        assert_problem(await client.post(_SINGLE, json=_GOOD, headers=wrong), 401, "not-authenticated")
        assert_problem(await client.get("/metrics"), 401, "not-authenticated")


async def test_without_a_file_of_keys_all_but_admin_is_open(door: Door) -> None:
    async with door.client(keys_file="", allow_anonymous=True) as client:
        for headers in ({}, {"Authorization": "Bearer of-somebody-else"}):
            assert (await client.post(_SINGLE, json=_GOOD, headers=headers)).status_code == 200
            assert (await client.get("/metrics", headers=headers)).status_code == 200
            assert_problem(await client.get("/admin/x", headers=headers), 401, "not-authenticated")


async def test_the_log_and_the_metrics_name_the_key_and_do_not_repeat_it(door: Door, logged: Logged) -> None:
    shop, watch = door.new_key("shop"), door.new_key("watch", "metrics")
    async with door.client() as client:
        await client.post(_BATCH, json={"texts": ["好", "差", ""]}, headers=shop)
        await client.post(_SINGLE, json=_GOOD, headers={"Authorization": "Bearer hunter2"})
        metrics = (await client.get("/metrics", headers=watch)).text
    lines = [line for line in logged() if line["message"] == "request"]
    assert [line.get("key") for line in lines] == ["shop", None, "watch"]
    assert 'sentiment_key_texts_total{key="shop"} 3.0' in metrics
    everything = json.dumps(logged()) + metrics
    assert "hunter2" not in everything
    assert not any(caller["Authorization"].removeprefix("Bearer ")[:20] in everything for caller in (shop, watch))


async def test_texts_are_counted_not_requests(door: Door) -> None:
    shop = door.new_key("shop", rate_limits="10/day")
    async with door.client() as client:
        left = []
        for texts in (["好"] * 6, ["", "\0", 5], []):
            response = await client.post(_BATCH, json={"texts": texts}, headers=shop)
            assert response.status_code == 200
            left.append(re.findall(r"r=(\d+)", response.headers["RateLimit"]))
        assert left == [["4"], ["1"], ["0"]]
        assert_problem(await client.post(_SINGLE, json=_GOOD, headers=shop), 429, "limit-exceeded")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", {"inputs": [["好"], ["差"]]}),
        ("/", {"inputs": ["好", "差"]}),
        (
            "/v2/models/tiny/infer",
            {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["好", "差"]}]},
        ),
    ],
)
async def test_no_protocol_leads_around_keys_and_limits(door: Door, path: str, body: object) -> None:
    shop = door.new_key("shop", rate_limits="3/day")
    async with door.client() as client:
        assert (await client.post(path, json=body)).status_code == 401
        admitted, refused = [await client.post(path, json=body, headers=shop) for _ in range(2)]
    assert (admitted.status_code, refused.status_code) == (200, 429)
    assert '"day";r=1' in admitted.headers["RateLimit"]
    assert "Retry-After" in refused.headers


async def test_a_request_over_the_limit_says_when_to_come_again(door: Door) -> None:
    shop = door.new_key("shop", rate_limits="10/hour")
    async with door.client() as client:
        admitted = await client.post(_BATCH, json={"texts": ["好"] * 8}, headers=shop)
        refused = await client.post(_BATCH, json={"texts": ["好"] * 4}, headers=shop)
    assert admitted.headers["RateLimit-Policy"] == '"hour";q=10;qu="texts";w=3600'
    assert admitted.headers["RateLimit"] == '"hour";r=2;t=2880'
    assert_problem(refused, 429, "limit-exceeded")
    wait_s = int(refused.headers["Retry-After"])
    assert 700 < wait_s <= 720
    assert refused.headers["RateLimit"] == f'"hour";r=2;t={wait_s}'
    assert refused.headers["RateLimit-Policy"] == admitted.headers["RateLimit-Policy"]


async def test_a_batch_is_admitted_or_refused_as_a_whole(door: Door) -> None:
    shop = door.new_key("shop", rate_limits="10/day, 20/hour")
    async with door.client() as client:
        for texts, status, left in ((8, 200, ["2", "12"]), (3, 429, ["2", "12"]), (2, 200, ["0", "10"])):
            response = await client.post(_BATCH, json={"texts": ["好"] * texts}, headers=shop)
            assert response.status_code == status
            assert re.findall(r"r=(\d+)", response.headers["RateLimit"]) == left


async def test_a_batch_that_no_waiting_would_admit_is_a_413_and_costs_nothing(door: Door) -> None:
    shop = door.new_key("shop", rate_limits="100/day, 5/second")
    async with door.client() as client:
        response = await client.post(_BATCH, json={"texts": ["好"] * 6}, headers=shop)
        problem = assert_problem(response, 413, "batch-over-limit")
        assert "at most 5 at once" in problem["detail"]
        assert "Retry-After" not in response.headers
        after = await client.post(_BATCH, json={"texts": ["好"] * 5}, headers=shop)
        assert '"day";r=95' in after.headers["RateLimit"]


async def test_what_never_reaches_the_model_by_its_form_costs_nothing(door: Door) -> None:
    shop = door.new_key("shop", rate_limits="10/day")
    async with door.client() as client:
        for body in ("{", "{}", json.dumps({"texts": ["好"] * (MAX_TEXTS + 1)})):
            headers = {**shop, "Content-Type": "application/json"}
            assert (await client.post(_BATCH, content=body, headers=headers)).status_code in {400, 422}
        response = await client.post(_SINGLE, json=_GOOD, headers=shop)
    assert '"day";r=9' in response.headers["RateLimit"]


async def test_one_key_takes_nothing_from_another(door: Door) -> None:
    shop, bank = door.new_key("shop"), door.new_key("bank")
    async with door.client(rate_limits="1/day") as client:
        statuses = [(await client.post(_SINGLE, json=_GOOD, headers=key)).status_code for key in (shop, shop, bank)]
    assert statuses == [200, 429, 200]


async def test_a_key_with_limits_of_its_own_does_not_have_those_of_the_settings(door: Door) -> None:
    few, free = door.new_key("few", rate_limits="2/day"), door.new_key("free", rate_limits="")
    async with door.client(rate_limits="1/day") as client:
        counts = [
            [(await client.post(_SINGLE, json=_GOOD, headers=key)).status_code for _ in range(3)] for key in (few, free)
        ]
    assert counts == [[200, 200, 429], [200, 200, 200]]


async def test_without_a_key_the_address_is_charged(door: Door) -> None:
    settings = small_settings(door.bundle).model_copy(update={"security": Security(rate_limits="2/day")})
    app = create_app(settings)

    async def statuses(address: str) -> list[int]:
        transport = httpx.ASGITransport(running, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return [(await client.post(_SINGLE, json=_GOOD)).status_code for _ in range(3)]

    async with client_of(app) as client:
        running = client._transport.app  # type: ignore[attr-defined]  # noqa: SLF001 (the same, for other addresses)
        assert await statuses("192.0.2.1") == [200, 200, 429]
        assert await statuses("192.0.2.2") == [200, 200, 429]
        assert await statuses("::ffff:192.0.2.2") == [429, 429, 429]
        assert await statuses("2001:db8::1") == [200, 200, 429]
        assert await statuses("2001:db8::2") == [429, 429, 429]  # who has one has 2^64 of them
        assert await statuses("2001:db8:0:1::1") == [200, 200, 429]
        assert await statuses("made up") == [200, 200, 429]


async def test_without_keys_and_limits_no_answer_speaks_of_them(client: httpx.AsyncClient) -> None:
    response = await client.post(_SINGLE, json=_GOOD)
    assert not [name for name in response.headers if "ratelimit" in name]


async def test_with_a_port_of_their_own_the_metrics_leave_the_other(door: Door) -> None:
    settings = small_settings(door.bundle)
    settings = settings.model_copy(update={"server": settings.server.model_copy(update={"admin_port": 9_000})})
    app = create_app(settings)
    admin = create_admin_app(app, settings)

    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        to_admin = scope["type"] == "http" and scope["server"][0] == "admin"
        await (admin if to_admin else app)(scope, receive, send)

    async with client_of(both) as client:
        assert_problem(await client.get("/metrics"), 404, "not-found")
        assert "sentiment_waiting_texts" in (await client.get("http://admin/metrics")).text
        assert (await client.get("http://admin/health/ready")).status_code == 200
        assert_problem(await client.post(f"http://admin{_SINGLE}", json=_GOOD), 404, "not-found")
        app.state.draining = True
        assert (await client.get("http://admin/health/ready")).status_code == 503


# Streams


def _lines(count: int) -> bytes:
    return b"".join(b'{"id": %d, "text": "\xe5\xa5\xbd"}\n' % number for number in range(count))


async def _stream(client: httpx.AsyncClient, count: int, headers: dict[str, str]) -> httpx.Response:
    headers = {**headers, "Content-Type": "application/x-ndjson"}
    return await client.post("/v1/sentiment/stream", content=_lines(count), headers=headers)


async def test_a_stream_takes_a_key(door: Door) -> None:
    shop, scraper = door.new_key("shop"), door.new_key("scraper", "metrics")
    async with door.client() as client:
        assert_problem(await _stream(client, 1, {}), 401, "not-authenticated")
        assert_problem(await _stream(client, 1, scraper), 403, "not-permitted")
        assert (await _stream(client, 1, shop)).status_code == 200


@pytest.mark.parametrize("limit", ["50/second", "10/second"], ids=["above a chunk", "below a chunk"])
async def test_a_stream_goes_on_as_its_rate_limit_lets_it(door: Door, limit: str) -> None:
    shop = door.new_key("shop", rate_limits=limit)
    texts = int(limit.split("/", maxsplit=1)[0]) * 2
    async with door.client() as client:
        begun = time.monotonic()
        response = await _stream(client, texts, shop)
        assert time.monotonic() - begun > 0.8
    answers = [json.loads(line) for line in response.text.splitlines()]
    assert [answer["id"] for answer in answers] == list(range(texts))
    assert all("sentiment" in answer for answer in answers)


async def test_a_stream_whose_rate_limit_is_used_up_for_long_ends_and_says_so(door: Door) -> None:
    shop = door.new_key("shop", rate_limits="40/day")
    async with door.client() as client:
        *answers, last = [json.loads(line) for line in (await _stream(client, 50, shop)).text.splitlines()]
        response = await _stream(client, 20, shop)
    assert [answer["id"] for answer in answers] == list(range(32))
    assert last["error"]["type"] == "urn:sentiment:problem:limit-exceeded"
    assert "line" not in last
    assert_problem(response, 429, "limit-exceeded")
    assert int(response.headers["Retry-After"]) > 60
