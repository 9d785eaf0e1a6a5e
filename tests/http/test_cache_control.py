"""What a client says with Cache-Control (RFC 9111)."""

from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio


async def _cached(client: httpx.AsyncClient, path: str, *directives: str) -> bool:
    """Ask for the sentiment of one text, and return whether the answer was remembered."""
    body: dict[str, Any] = {"text": "这家店好"} if path == "/v1/sentiment" else {"texts": ["这家店好"]}
    headers = [("Cache-Control", directive) for directive in directives]
    response = await client.post(path, json=body, headers=headers)
    assert response.status_code == 200
    answer = response.json() if path == "/v1/sentiment" else response.json()["results"][0]
    assert isinstance(answer["cached"], bool)
    return answer["cached"]


@pytest.fixture(params=["/v1/sentiment", "/v1/sentiment/batch"])
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    "directives", [("no-cache",), ("No-Cache",), ("max-age=0, no-cache",), ("max-age=0", " no-cache ")]
)
async def test_no_cache_computes_and_remembers(
    fresh_client: httpx.AsyncClient, path: str, directives: tuple[str, ...]
) -> None:
    assert not await _cached(fresh_client, path, *directives)
    assert await _cached(fresh_client, path)
    assert not await _cached(fresh_client, path, *directives)
    assert await _cached(fresh_client, path)


@pytest.mark.parametrize("directives", [("no-store",), ("NO-STORE",), ("no-cache,no-store",), ("no-cache", "no-store")])
async def test_no_store_neither_remembers_nor_reads(
    fresh_client: httpx.AsyncClient, path: str, directives: tuple[str, ...]
) -> None:
    assert not await _cached(fresh_client, path, *directives)
    assert not await _cached(fresh_client, path)
    assert not await _cached(fresh_client, path, *directives)
    assert await _cached(fresh_client, path)


@pytest.mark.parametrize(
    "directive", ["", "max-age=60", "no-transform", "only-if-cached", "no-cached", ",,;=", "x" * 5_000]
)
async def test_other_directives_change_nothing(fresh_client: httpx.AsyncClient, path: str, directive: str) -> None:
    assert not await _cached(fresh_client, path, directive)
    assert await _cached(fresh_client, path, directive)


async def test_a_remembered_answer_is_the_computed_one_to_the_byte(fresh_client: httpx.AsyncClient) -> None:
    computed, remembered = [await fresh_client.post("/v1/sentiment", json={"text": "这家店好差，笑"}) for _ in range(2)]
    assert '"cached":false' in computed.text
    assert computed.text.replace('"cached":false', '"cached":true') == remembered.text


@pytest.mark.parametrize("path", ["/v1/sentiment", "/v1/sentiment/batch"])
async def test_the_api_description_tells_of_the_header(client: httpx.AsyncClient, path: str) -> None:
    document = (await client.get("/openapi.json")).json()
    (header,) = document["paths"][path]["post"]["parameters"]
    assert (header["name"], header["in"]) == ("Cache-Control", "header")
    assert not header.get("required")
