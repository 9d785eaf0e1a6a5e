"""The OpenAPI document in the repository, and what is told when a change would break its clients."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from app.api.compatibility import breaking_changes, may_break
from app.main import create_app
from app.settings import Settings

_FILE = Path(__file__).parents[2] / "docs" / "openapi.json"
_Document: TypeAlias = dict[str, Any]


@pytest.fixture(scope="module")
def document() -> _Document:
    return dict(create_app(Settings()).openapi())


def test_the_document_in_the_repository_is_what_the_service_says(document: _Document) -> None:
    written = json.loads(_FILE.read_text(encoding="utf-8"))
    broken = breaking_changes(written, document)
    assert written == document, f"renew it with python -m app openapi > docs/openapi.json; clients break by: {broken}"


def _operation(document: _Document, path: str = "/v1/sentiment") -> _Document:
    return dict(document["paths"][path])["post"]  # type: ignore[no-any-return]


def _schema(document: _Document, name: str) -> _Document:
    return document["components"]["schemas"][name]  # type: ignore[no-any-return]


def _header(*, required: bool) -> _Document:
    return {"in": "header", "name": "X-Tenant", "required": required, "schema": {"type": "string"}}


_Change: TypeAlias = Callable[[_Document], Any]
_BREAKING: list[tuple[_Change, str]] = [
    (lambda new: new["paths"].pop("/predict"), "POST /predict is gone"),
    (lambda new: new["paths"]["/v1/sentiment"].pop("post"), "POST /v1/sentiment is gone"),
    (
        lambda new: _operation(new).update(parameters=[_header(required=True)]),
        "POST /v1/sentiment needs the header parameter X-Tenant",
    ),
    (lambda new: _operation(new)["responses"].pop("422"), "POST /v1/sentiment no longer tells of 422"),
    (
        lambda new: _operation(new)["responses"]["200"]["content"].pop("application/json"),
        "POST /v1/sentiment, 200 is no longer application/json",
    ),
    (
        lambda new: _schema(new, "SentimentRequest")["properties"].pop("text"),
        "POST /v1/sentiment, request: text is gone",
    ),
    (
        lambda new: _schema(new, "SentimentRequest")["required"].append("language"),
        "POST /v1/sentiment, request: language is needed",
    ),
    (
        lambda new: _schema(new, "SentimentRequest")["properties"]["text"].update(type="integer"),
        "POST /v1/sentiment, request.text: string is no longer taken",
    ),
    (
        lambda new: _schema(new, "SentimentRequest")["properties"]["text"].update(maxLength=10),
        "POST /v1/sentiment, request.text: maxLength is 10",
    ),
    (
        lambda new: _schema(new, "SentimentRequest")["properties"]["text"].update(enum=["好"]),
        "POST /v1/sentiment, request.text: others is no longer taken",
    ),
    (
        lambda new: _schema(new, "PredictRequest").update(additionalProperties=False),
        "POST /predict, request: unknown fields are refused",
    ),
    (
        lambda new: _schema(new, "PredictRequest")["properties"]["inputs"]["anyOf"].pop(0),
        "POST /predict, request.inputs: string is no longer taken",
    ),
    (
        lambda new: _schema(new, "SentimentResponse")["properties"].pop("certain"),
        "POST /v1/sentiment, 200: certain is gone",
    ),
    (
        lambda new: _schema(new, "SentimentResponse")["required"].remove("certain"),
        "POST /v1/sentiment, 200: certain may be missing",
    ),
    (
        lambda new: _schema(new, "SentimentResponse")["properties"]["confidence"].update(type="string"),
        "POST /v1/sentiment, 200.confidence: string is new",
    ),
    (
        lambda new: _schema(new, "SentimentResponse")["properties"]["probabilities"].update(
            additionalProperties={"type": "object"}
        ),
        "POST /v1/sentiment, 200.probabilities[]: object is new",
    ),
    (
        lambda new: _schema(new, "ErrorResponse")["properties"]["error_type"]["enum"].append("Tired"),
        "POST /predict, 422.error_type: Tired is new",
    ),
]


@pytest.mark.parametrize(("change", "told"), _BREAKING, ids=[told for _, told in _BREAKING])
def test_a_change_that_breaks_clients_is_told(document: _Document, change: _Change, told: str) -> None:
    new = deepcopy(document)
    change(new)
    assert told in breaking_changes(document, new)


_HARMLESS: list[_Change] = [
    lambda _: None,
    lambda new: new["paths"].update({"/v3": {}}),
    lambda new: _operation(new).update(parameters=[_header(required=False)]),
    lambda new: _operation(new)["responses"].update({"418": {"description": "A teapot"}}),
    lambda new: _schema(new, "SentimentRequest")["properties"].update(language={"type": "string"}),
    lambda new: _schema(new, "SentimentRequest")["required"].clear(),
    lambda new: _schema(new, "SentimentResponse")["properties"].update(sarcasm={"type": "number"}),
    lambda new: _schema(new, "ClassificationParameters")["properties"]["top_k"]["anyOf"][0].update(minimum=0),
    lambda new: _schema(new, "ErrorResponse")["properties"]["error_type"]["enum"].pop(),
    lambda new: _schema(new, "SentimentResponse").update(description="In other words"),
]


@pytest.mark.parametrize("change", _HARMLESS)
def test_a_change_that_clients_can_live_with_is_not_told(document: _Document, change: _Change) -> None:
    new = deepcopy(document)
    change(new)
    assert breaking_changes(document, new) == []


def test_a_schema_that_holds_itself_is_compared_once() -> None:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Tree"}}}
    tree = {
        "type": "object",
        "properties": {"children": {"type": "array", "items": {"$ref": "#/components/schemas/Tree"}}},
    }
    document = {
        "paths": {"/": {"get": {"responses": {"200": {"content": content}}}}},
        "components": {"schemas": {"Tree": tree}},
    }
    assert breaking_changes(document, deepcopy(document)) == []


@pytest.mark.parametrize(
    ("old", "new", "may"),
    [
        ("0.1.0", "0.1.1", False),
        ("0.1.0", "0.2.0", True),
        ("0.9.0", "1.0.0", True),
        ("1.2.0", "1.3.0", False),
        ("1.2.0", "2.0.0", True),
    ],
)
def test_a_version_says_whether_clients_may_break(old: str, new: str, may: bool) -> None:  # noqa: FBT001 (a parameter)
    assert may_break(old, new) is may
