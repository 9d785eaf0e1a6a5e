"""The server keeps to its OpenAPI document, whatever it is sent."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig

from tests.live.served import ROOT, running_server

_CONFIG = SchemathesisConfig.from_dict(
    {
        "generation": {"max-examples": 25, "deterministic": True},
        "parameters": {"path.name": "tiny", "path.version": "0.0.1"},  # else every model is unknown
        # What makes a text readable, and data fit its shape, no schema can say.
        "checks": {"positive_data_acceptance": {"enabled": False}},
        # An item that is no text has its error in its place, in an answer of 200.
        "operations": [
            {"include-path": path, "checks": {"negative_data_rejection": {"enabled": False}}}
            for path in ("/v1/sentiment/batch", "/v1/sentiment/stream", "/v1/batches")
        ],
    }
)
schema = schemathesis.openapi.from_dict(
    json.loads((ROOT / "docs/openapi.json").read_text(encoding="utf-8")), config=_CONFIG
)


# Their schemas are of a line.
@schemathesis.serializer("application/x-ndjson")
def _line(_: schemathesis.SerializationContext, value: Any) -> bytes:
    return json.dumps(value).encode()


@schemathesis.deserializer("application/x-ndjson")
def _only_line(_: schemathesis.DeserializationContext, response: schemathesis.Response) -> Any:
    return json.loads(response.content or b"{}")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("server")
    settings = {
        "MODEL__PATH": str(tiny_bundle),
        "MODEL__PROVIDER": "cpu",
        "JOBS__URL": f"sqlite:///{directory}/jobs.db",
    }
    with running_server(directory, **settings) as server:
        yield server.address


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@schema.parametrize()
@settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_documented(case: schemathesis.Case[Any], address: str, session: requests.Session) -> None:
    case.call_and_validate(base_url=address, session=session)
