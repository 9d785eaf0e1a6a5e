"""No body whatever is answered with a 500."""

import json
from typing import Any, TypeAlias

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.http.served import assert_problem

pytestmark = pytest.mark.anyio

_Json: TypeAlias = Any

# Lone surrogates included: JSON can escape them, UTF-8 cannot hold them.
_texts = st.text(st.characters(codec=None, categories=None), max_size=60).filter(lambda text: "毒" not in text)
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | _texts


def _containers(children: st.SearchStrategy[_Json]) -> st.SearchStrategy[_Json]:
    return st.lists(children, max_size=5) | st.dictionaries(_texts | st.sampled_from(["text", "texts"]), children)


_values = st.recursive(_scalars, _containers, max_leaves=12)
_bodies = (
    _values
    | st.fixed_dictionaries({"text": _texts | _values})
    | st.fixed_dictionaries({"texts": st.lists(_texts | _values, max_size=10) | _values})
)
_any_examples = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


async def _post(client: httpx.AsyncClient, path: str, body: _Json) -> httpx.Response:
    content = json.dumps(body).encode()
    return await client.post(path, content=content, headers={"Content-Type": "application/json"})


def _assert_refused(response: httpx.Response) -> None:
    assert 400 <= response.status_code < 500, response.text
    assert_problem(response, response.status_code, response.json()["type"].rpartition(":")[2])


@_any_examples
@given(body=_bodies)
async def test_any_json_has_an_answer_for_one_text_or_a_problem(client: httpx.AsyncClient, body: _Json) -> None:
    response = await _post(client, "/v1/sentiment", body)
    if response.status_code == 200:
        assert response.json()["label"] in {"negative", "neutral", "positive"}
    else:
        _assert_refused(response)


@_any_examples
@given(body=_bodies)
async def test_any_json_has_answers_for_many_texts_or_a_problem(client: httpx.AsyncClient, body: _Json) -> None:
    response = await _post(client, "/v1/sentiment/batch", body)
    if response.status_code == 200:
        results = response.json()["results"]
        assert len(results) == len(body["texts"])
        assert all(("label" in result) != ("error" in result) for result in results)
    else:
        _assert_refused(response)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=80))
async def test_any_bytes_have_an_answer_or_a_problem(client: httpx.AsyncClient, content: bytes) -> None:
    response = await client.post("/v1/sentiment", content=content, headers={"Content-Type": "application/json"})
    if response.status_code != 200:
        _assert_refused(response)
