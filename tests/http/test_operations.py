import re
from base64 import b64encode
from collections import Counter
from hashlib import sha256
from pathlib import Path

import anyio
import httpx
import pytest

from app.cache.memory import ENTRY_BYTES
from app.inference.batcher import BatchPolicy
from app.main import create_app
from tests.http.served import (
    MAX_BODY_BYTES,
    MAX_TEXTS,
    GatedModel,
    client_of,
    client_of_model,
    small_settings,
    until,
)
from tests.tiny_bundle import POISON

pytestmark = pytest.mark.anyio


async def _metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """Return every sample of the service's own metrics by name and labels."""
    lines = (await client.get("/metrics")).text.splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if line.startswith("sentiment_"))
    return {name: float(value) for name, value in samples}


async def test_the_process_says_that_it_is_alive(client: httpx.AsyncClient) -> None:
    response = await client.get("/health/live")
    assert (response.status_code, response.json()) == (200, {"status": "alive"})


async def test_readiness_says_what_would_answer(client: httpx.AsyncClient) -> None:
    response = await client.get("/health/ready")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ready",
        "reason": None,
        "model": {"name": "tiny", "version": "0.0.1"},
        "provider": "cpu",
        "precision": "fp32",
        "threads": 1,
    }


async def test_a_model_that_recovers_is_ready_again(fresh_client: httpx.AsyncClient) -> None:
    assert (await fresh_client.post("/v1/sentiment", json={"text": "毒"})).status_code == 500
    assert (await fresh_client.get("/health/ready")).status_code == 200


async def test_requests_are_counted_by_method_route_and_status(fresh_client: httpx.AsyncClient) -> None:
    for text in ("好", "好", "", "差"):
        await fresh_client.post("/v1/sentiment", json={"text": text})
    await fresh_client.post("/v1/sentiment/batch", json={"texts": ["好", "吗", ""]})
    await fresh_client.get("/v1/sentiment")
    await fresh_client.get("/health/live")
    counts = await _metrics(fresh_client)
    assert {name: value for name, value in counts.items() if name.startswith("sentiment_http_requests_total")} == {
        'sentiment_http_requests_total{method="POST",route="/v1/sentiment",status="200"}': 3,
        'sentiment_http_requests_total{method="POST",route="/v1/sentiment",status="422"}': 1,
        'sentiment_http_requests_total{method="POST",route="/v1/sentiment/batch",status="200"}': 1,
        'sentiment_http_requests_total{method="GET",route="/v1/sentiment",status="405"}': 1,
        'sentiment_http_requests_total{method="GET",route="/health/live",status="200"}': 1,
    }
    assert counts['sentiment_http_request_duration_seconds_count{route="/v1/sentiment"}'] == 5


def _of(counts: dict[str, float], name: str) -> dict[str, float]:
    """Return the samples of one name that are not zero, by what stands in its braces."""
    return {
        key.removeprefix(f"{name}{{").removesuffix("}"): value
        for key, value in counts.items()
        if key.startswith(f"{name}{{") and value
    }


async def test_answers_are_counted_by_label_emotion_and_confidence(fresh_client: httpx.AsyncClient) -> None:
    single = (await fresh_client.post("/v1/sentiment", json={"text": "好喜"})).json()
    texts = ["好喜", "差烂怒", "", 5, "好喜爱棒快" * 4, "天"]
    batch = (await fresh_client.post("/v1/sentiment/batch", json={"texts": texts})).json()["results"]
    counts = await _metrics(fresh_client)
    assert _of(counts, "sentiment_confidence_count") == {
        'label="positive"': 3,
        'label="negative"': 1,
        'label="neutral"': 1,
    }
    positive = [answer["confidence"] for answer in (single, *batch) if answer.get("label") == "positive"]
    assert counts['sentiment_confidence_sum{label="positive"}'] == pytest.approx(sum(positive), abs=2e-4)
    assert counts['sentiment_confidence_bucket{label="positive",le="1.0"}'] == 3
    emotions = Counter(answer["emotion"]["label"] for answer in (single, *batch) if "error" not in answer)
    assert _of(counts, "sentiment_emotions_total") == {f'emotion="{name}"': number for name, number in emotions.items()}
    assert counts["sentiment_uncertain_answers_total"] == 1
    assert counts["sentiment_truncated_texts_total"] == 1
    assert _of(counts, "sentiment_cache_lookups_total") == {'result="hit"': 1, 'result="miss"': 4}


async def test_problems_are_counted_by_the_name_that_clients_read(fresh_client: httpx.AsyncClient) -> None:
    await fresh_client.post("/v1/sentiment", json={"text": ""})
    await fresh_client.post("/v1/sentiment", json={"text": POISON})
    await fresh_client.post("/v1/sentiment/batch", json={"texts": ["", 5, POISON]})
    await fresh_client.post("/v1/sentiment", json={})
    await fresh_client.post("/v1/sentiment", content=b" " * (MAX_BODY_BYTES + 1))
    await fresh_client.get("/nothing")
    counts = await _metrics(fresh_client)
    assert _of(counts, "sentiment_http_problems_total") == {
        'route="/v1/sentiment",type="empty-text"': 1,
        'route="/v1/sentiment",type="model-failure"': 1,
        'route="/v1/sentiment",type="invalid-request"': 1,
        'route="/v1/sentiment",type="body-too-large"': 1,
        'route="unmatched",type="not-found"': 1,
    }
    assert _of(counts, "sentiment_unanswered_texts_total") == {
        'type="empty-text"': 2,
        'type="invalid-text"': 1,
        'type="model-failure"': 2,
    }


async def test_batches_are_counted_with_their_rows_tokens_and_waits(fresh_client: httpx.AsyncClient) -> None:
    await fresh_client.post("/v1/sentiment/batch", json={"texts": ["好", "差", "好喜爱棒快好喜爱棒快"]})
    counts = await _metrics(fresh_client)
    assert counts['sentiment_queue_wait_seconds_count{lane="bulk"}'] == 3
    assert counts['sentiment_queue_wait_seconds_count{lane="interactive"}'] == 0
    assert counts['sentiment_batch_rows_sum{lane="bulk"}'] == 3
    useful, padding = (counts[f'sentiment_tokens_total{{kind="{kind}"}}'] for kind in ("useful", "padding"))
    assert useful + padding == counts['sentiment_batch_padded_tokens_sum{lane="bulk"}']
    assert counts['sentiment_model_run_seconds_sum{lane="bulk"}'] > 0
    assert counts["sentiment_model_workers"] == 1


async def test_what_waits_and_for_how_long_can_be_read(fresh_client: httpx.AsyncClient) -> None:
    counts = await _metrics(fresh_client)
    gauges = ("sentiment_waiting_texts", "sentiment_waiting_tokens", "sentiment_longest_run_seconds")
    lanes = [f'sentiment_predicted_wait_seconds{{lane="{lane}"}}' for lane in ("interactive", "bulk")]
    assert [counts[name] for name in (*gauges, *lanes)] == [0, 0, 0, 0, 0]


async def test_what_a_health_check_was_told_can_be_read(tiny_bundle: Path) -> None:
    app = create_app(small_settings(tiny_bundle))
    async with client_of(app) as client:
        told = [(await _metrics(client))["sentiment_ready"]]
        for draining in (True, False):
            app.state.draining = draining
            await client.get("/health/ready")
            told.append((await _metrics(client))["sentiment_ready"])
    assert told == [1, 0, 1]


async def test_the_memory_of_the_process_can_be_read(client: httpx.AsyncClient) -> None:
    lines = (await client.get("/metrics")).text.splitlines()
    (memory,) = [line.split()[1] for line in lines if line.startswith("process_resident_memory_bytes ")]
    assert float(memory) > 1e6


async def test_lookups_are_counted_by_level(fresh_client: httpx.AsyncClient) -> None:
    await fresh_client.post("/v1/sentiment", json={"text": "好喜"})
    await fresh_client.post("/v1/sentiment/batch", json={"texts": ["好喜", "差烂", "差烂"]})
    counts = await _metrics(fresh_client)
    assert counts['sentiment_cache_level_lookups_total{level="memory",result="hit"}'] == 1
    assert counts['sentiment_cache_level_lookups_total{level="memory",result="miss"}'] == 2
    assert counts['sentiment_cache_entries{level="memory"}'] == 2
    assert counts['sentiment_cache_bytes{level="memory"}'] == 2 * ENTRY_BYTES
    assert not any("redis" in name for name in counts)


async def test_a_failed_batch_is_counted(fresh_client: httpx.AsyncClient) -> None:
    assert (await fresh_client.post("/v1/sentiment", json={"text": "毒"})).status_code == 500
    counts = await _metrics(fresh_client)
    assert counts["sentiment_batch_failures_total"] == 1
    assert counts['sentiment_unanswered_texts_total{type="model-failure"}'] == 1


async def test_a_batch_turned_away_counts_each_of_its_texts(tiny_bundle: Path) -> None:
    model = GatedModel()
    policy = BatchPolicy(max_items=1, max_tokens=64, max_waiting_items=1, max_waiting_tokens=500)
    async with client_of_model(model, tiny_bundle, policy) as client, anyio.create_task_group() as tasks:

        async def two_wait() -> bool:
            return (await _metrics(client))["sentiment_waiting_texts"] == 2

        tasks.start_soon(lambda: client.post("/v1/sentiment/batch", json={"texts": ["好", "差", "吗"]}))
        await until(two_wait)
        assert (await client.post("/v1/sentiment/batch", json={"texts": ["棒", "烂"]})).status_code == 503
        counts = await _metrics(client)
        model.gate.set()
    assert _of(counts, "sentiment_refused_texts_total") == {'lane="bulk",reason="items"': 2}
    assert counts['sentiment_unanswered_texts_total{type="overloaded"}'] == 2


async def test_what_clients_make_up_creates_no_series(fresh_client: httpx.AsyncClient) -> None:
    async def odd_requests(mark: str) -> None:
        await fresh_client.get(f"/{mark}")
        await fresh_client.get(f"/v1/sentiment/{mark}")
        await fresh_client.post(f"/v1/sentiment?{mark}", json={"text": f"好好好好{mark}"})
        await fresh_client.post("/v1/sentiment", json={mark: mark}, headers={"X-Request-ID": mark, "User-Agent": mark})

    await _metrics(fresh_client)
    await odd_requests("first")
    before = (await _metrics(fresh_client)).keys()
    for mark in ("second", "third"):
        await odd_requests(mark)
    assert (await _metrics(fresh_client)).keys() == before


async def test_an_invented_method_creates_no_series(fresh_client: httpx.AsyncClient) -> None:
    for method in ("BREW", "WHEN", "PROPFIND"):
        assert (await fresh_client.request(method, "/v1/sentiment")).status_code == 405
    names = (await _metrics(fresh_client)).keys()
    assert len([name for name in names if 'status="405"' in name]) == 1


async def test_metrics_are_in_the_format_that_was_asked_for(client: httpx.AsyncClient) -> None:
    plain = await client.get("/metrics")
    assert plain.headers["Content-Type"].startswith("text/plain")
    openmetrics = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert openmetrics.headers["Content-Type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


async def test_metrics_name_the_model(client: httpx.AsyncClient) -> None:
    (info,) = [name for name in await _metrics(client) if name.startswith("sentiment_model_info")]
    labels = dict(re.findall(r'(\w+)="([^"]*)"', info))
    assert labels == {
        "name": "tiny",
        "version": "0.0.1",
        "provider": "cpu",
        "requested": "cpu",
        "precision": "fp32",
        "threads": "1",
    }


async def test_the_api_description_has_chinese_examples(client: httpx.AsyncClient) -> None:
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    (single,) = schemas["SentimentRequest"]["examples"]
    (batch,) = schemas["BatchRequest"]["examples"]
    assert all(re.search(r"[\u4e00-\u9fff]", text) for text in (single["text"], *batch["texts"]))
    assert len(batch["texts"]) <= MAX_TEXTS
    assert (await client.post("/v1/sentiment", json=single)).status_code == 200
    results = (await client.post("/v1/sentiment/batch", json=batch)).json()["results"]
    assert not any("error" in result for result in results)


@pytest.mark.parametrize("path", ["/v1/sentiment", "/v1/sentiment/batch"])
async def test_the_api_description_has_every_problem(client: httpx.AsyncClient, path: str) -> None:
    document = (await client.get("/openapi.json")).json()
    responses = document["paths"][path]["post"]["responses"]
    assert responses.keys() == {"200"} | set("400 401 403 408 413 415 422 429 431 500 503 504".split())
    for status in responses.keys() - {"200"}:
        (media_type,) = responses[status]["content"]
        assert media_type == "application/problem+json"
        assert responses[status]["content"][media_type]["schema"] == {"$ref": "#/components/schemas/Problem"}
    problem = document["components"]["schemas"]["Problem"]
    assert {"type", "title", "status", "detail", "errors", "request_id"} == problem["properties"].keys()


async def test_every_reference_in_the_api_description_leads_somewhere(client: httpx.AsyncClient) -> None:
    response = await client.get("/openapi.json")
    names = set(re.findall(r'"#/components/schemas/(\w+)"', response.text))
    assert names <= response.json()["components"]["schemas"].keys()
    assert "InvalidPart" in names


async def test_the_api_description_can_be_read_in_a_browser(client: httpx.AsyncClient) -> None:
    response = await client.get("/docs")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/html")
    assert "/openapi.json" in response.text


@pytest.mark.parametrize("path", ["/health/live", "/metrics", "/docs", "/openapi.json", "/v1/sentiment", "/nothing"])
async def test_every_answer_tells_browsers_and_caches_to_be_careful(client: httpx.AsyncClient, path: str) -> None:
    for response in (await client.get(path), await client.post(path, json={"text": "好"})):
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"] == "no-store"
        assert "Server" not in response.headers


async def test_the_documentation_needs_nothing_from_elsewhere_and_runs_nothing_of_others(
    client: httpx.AsyncClient,
) -> None:
    response = await client.get("/docs")
    policy = dict(part.split(maxsplit=1) for part in response.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert "http" not in response.headers["Content-Security-Policy"]
    assert "unsafe" not in policy["script-src"]
    (script,) = re.findall(r"<script>(.*?)</script>", response.text, re.DOTALL)
    assert f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" in policy["script-src"]
    loaded = re.findall(r"""(?:src|href)=["']([^"']+)""", response.text)
    assert len(loaded) == 3
    for file in loaded:
        assert file.startswith("/")
        assert (await client.get(file)).status_code == 200
    assert not re.search(r"""\son\w+=|javascript:|style=""", response.text)
