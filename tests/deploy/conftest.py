import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy.promql import Series, read_scrape
from tests.live.served import RunningServer, running_server
from tests.redis_server import running_redis
from tests.tiny_bundle import POISON


@pytest.fixture(scope="session")
def visited(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Iterator[RunningServer]:
    """A server that has met every kind of request."""
    with running_redis(tmp_path_factory.mktemp("redis")) as redis:
        directory = tmp_path_factory.mktemp("server")
        settings = {
            "MODEL__PATH": str(tiny_bundle),
            "MODEL__PROVIDER": "cpu",
            "CACHE__REDIS_URL": redis.url,
            "JOBS__URL": f"sqlite:///{directory / 'jobs.db'}",
        }
        with running_server(directory, **settings) as server:
            visit(server)
            yield server


def visit(server: RunningServer) -> None:
    """Send every kind of request once."""
    texts = ["很好", "很好", "很差", "嗯，问几点", "", "好" * 50, POISON]
    with httpx.Client(base_url=server.address) as client:
        for text in texts:
            client.post("/v1/sentiment", json={"text": text})
        client.post("/v1/sentiment/batch", json={"texts": texts})
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        client.post("/v1/batches", content=lines, headers={"Content-Type": "application/x-ndjson"}).raise_for_status()
        client.get("/health/ready")
        client.get("/nothing")


@pytest.fixture(scope="session")
def exposed(visited: RunningServer) -> list[Series]:
    """Every series that a real server exposes."""
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    return read_scrape(httpx.get(f"{visited.address}/metrics", headers=accept).text)


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """Return a function that finds a program; without it the test is skipped."""

    def find(name: str) -> str:
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"{name} is not installed (Debian: apt-get install prometheus)")
        return found

    return find
