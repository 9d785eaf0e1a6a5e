import re

import httpx
import pytest

pytestmark = pytest.mark.anyio


def _timing(response: httpx.Response) -> dict[str, float]:
    """Return the parts of Server-Timing, which browsers show, in milliseconds."""
    header = response.headers.get("Server-Timing", "")
    parts = [re.fullmatch(r"(\w+);dur=(\d+\.\d\d)", part) for part in header.split(", ") if part]
    return {part[1]: float(part[2]) for part in parts if part is not None} if all(parts) else {"wrong": 0.0}


async def test_an_answer_tells_where_its_time_went(fresh_client: httpx.AsyncClient) -> None:
    response = await fresh_client.post("/v1/sentiment", json={"text": "好喜"})
    timing = _timing(response)
    assert list(timing) == ["cache", "tokenise", "queue", "infer"]
    assert timing["infer"] > 0


async def test_a_remembered_answer_took_a_look_into_the_cache_alone(fresh_client: httpx.AsyncClient) -> None:
    for _ in range(2):
        response = await fresh_client.post("/v1/sentiment", json={"text": "好喜"})
    assert list(_timing(response)) == ["cache"]


async def test_a_batch_tells_it_for_all_its_texts(fresh_client: httpx.AsyncClient) -> None:
    response = await fresh_client.post("/v1/sentiment/batch", json={"texts": ["好喜", "差", "", "吗"]})
    assert list(_timing(response)) == ["cache", "tokenise", "queue", "infer"]


async def test_a_failure_tells_how_far_it_got(fresh_client: httpx.AsyncClient) -> None:
    response = await fresh_client.post("/v1/sentiment", json={"text": "毒"})
    assert response.status_code == 500
    assert list(_timing(response)) == ["cache", "tokenise", "queue", "infer"]


async def test_what_never_reached_the_classifier_has_no_timing(fresh_client: httpx.AsyncClient) -> None:
    for response in (
        await fresh_client.post("/v1/sentiment", json={}),
        await fresh_client.get("/health/ready"),
        await fresh_client.get("/nothing"),
    ):
        assert "Server-Timing" not in response.headers
