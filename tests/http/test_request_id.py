import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio

_PATHS = ["/health/live", "/nowhere"]


async def _id_of_answer(client: httpx.AsyncClient, path: str, sent: bytes) -> str:
    response = await client.get(path, headers=[(b"X-Request-ID", sent)])
    (answered,) = response.headers.get_list("X-Request-ID")
    assert path == "/health/live" or response.json()["request_id"] == answered
    return answered


@pytest.mark.parametrize("path", _PATHS)
@pytest.mark.parametrize("sent", ["a", "order-4711", "7f3c:1.2_3", "x" * 128])
async def test_a_plain_id_is_kept(client: httpx.AsyncClient, path: str, sent: str) -> None:
    assert await _id_of_answer(client, path, sent.encode()) == sent


@pytest.mark.parametrize("path", _PATHS)
@pytest.mark.parametrize(
    "sent", [b"", b" ", b"a b", b"a\nlevel=error", b"a\r\n", b"a\n", b"x" * 129, b"<b>", "好".encode(), b"\xff", b'"']
)
async def test_an_odd_id_is_replaced(client: httpx.AsyncClient, path: str, sent: bytes) -> None:
    assert re.fullmatch("[0-9a-f]{32}", await _id_of_answer(client, path, sent))


async def test_every_request_has_an_id_of_its_own(client: httpx.AsyncClient) -> None:
    ids = {(await client.get("/health/live")).headers["X-Request-ID"] for _ in range(20)}
    assert len(ids) == 20


async def test_the_log_has_one_line_for_each_request_with_its_id(
    client: httpx.AsyncClient, logged: Callable[[], list[dict[str, Any]]]
) -> None:
    await client.post("/v1/sentiment", json={"text": "好"}, headers={"X-Request-ID": "first"})
    await client.get("/nowhere/好", headers={"X-Request-ID": "second"})
    lines = [line for line in logged() if line["message"] == "request"]
    assert [(line["request_id"], line["method"], line["route"], line["status"]) for line in lines] == [
        ("first", "POST", "/v1/sentiment", 200),
        ("second", "GET", "unmatched", 404),
    ]
    assert all(line["ms"] >= 0 for line in lines)
