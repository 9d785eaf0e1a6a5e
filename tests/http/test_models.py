"""Models changed over HTTP while the application runs."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from app.main import create_app
from tests.http.served import assert_problem, client_of, small_settings
from tests.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Speaks to an application that serves version 1.0.0 of three bundles; 3.0.0 is damaged."""
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        write_tiny_bundle(tmp_path / "tiny" / version, version=version)
    (tmp_path / "tiny" / "3.0.0" / "model.onnx").write_bytes(b"")
    async with client_of(create_app(small_settings(tmp_path / "tiny" / "1.0.0"))) as client:
        yield client


async def _version(client: httpx.AsyncClient, text: str = "好") -> str:
    response = await client.post("/v1/sentiment", json={"text": text})
    assert response.json()["label"] == "positive"
    version: str = response.json()["model"]["version"]
    return version


async def test_an_activated_bundle_answers_and_what_was_remembered_stays_with_the_old_one(
    client: httpx.AsyncClient,
) -> None:
    assert await _version(client) == "1.0.0"
    response = await client.put("/admin/models/active", json={"bundle": "tiny/2.0.0"})
    assert response.status_code == 200, response.text
    assert response.json()["active"]["version"] == "2.0.0"
    answer = (await client.post("/v1/sentiment", json={"text": "好"})).json()
    assert (answer["model"]["version"], answer["cached"]) == ("2.0.0", False)
    assert (await client.get("/health/ready")).json()["model"]["version"] == "2.0.0"
    metrics = (await client.get("/metrics")).text
    assert 'sentiment_model_rollouts_total{event="swapped"} 1.0' in metrics
    assert 'version="2.0.0"' in metrics
    assert 'version="1.0.0"' not in metrics


@pytest.mark.parametrize(("bundle", "reason"), [("tiny/3.0.0", "damaged"), ("tiny/4.0.0", "not a bundle")])
async def test_a_bundle_that_cannot_be_served_is_refused_and_the_old_one_goes_on(
    client: httpx.AsyncClient, bundle: str, reason: str
) -> None:
    for path, body in (("active", {"bundle": bundle}), ("candidate", {"bundle": bundle, "share": 0.5})):
        response = await client.put(f"/admin/models/{path}", json=body)
        assert reason in assert_problem(response, 422, "bundle-refused")["detail"]
    assert await _version(client) == "1.0.0"


@pytest.mark.parametrize(
    "bundle", ["../tiny/2.0.0", "tiny/..", "tiny", "/tiny/2.0.0", "tiny/2.0.0/..", ".hidden/2", ""]
)
async def test_a_bundle_is_named_and_no_way_out_of_its_directory(client: httpx.AsyncClient, bundle: str) -> None:
    assert_problem(await client.put("/admin/models/active", json={"bundle": bundle}), 422, "invalid-request")


async def test_a_trial_is_told_and_ends_by_activation_or_by_word(client: httpx.AsyncClient) -> None:
    body = {"bundle": "tiny/2.0.0", "share": 1.0, "answers": True}
    started = (await client.put("/admin/models/candidate", json=body)).json()
    assert started["candidate"].items() >= {"version": "2.0.0", "share": 1.0, "answers": True, "same": 0}.items()
    assert await _version(client) == "2.0.0"
    assert (await client.delete("/admin/models/candidate")).json()["candidate"] is None
    assert await _version(client) == "1.0.0"
    await client.put("/admin/models/candidate", json=body)
    status = (await client.put("/admin/models/active", json={"bundle": "tiny/2.0.0"})).json()
    assert (status["active"]["version"], status["candidate"]) == ("2.0.0", None)
    assert (await client.get("/admin/models")).json() == status


@pytest.mark.parametrize("share", [0, -1, 1.5, "much"])
async def test_a_share_is_a_part_of_the_requests(client: httpx.AsyncClient, share: object) -> None:
    response = await client.put("/admin/models/candidate", json={"bundle": "tiny/2.0.0", "share": share})
    assert_problem(response, 422, "invalid-request")
