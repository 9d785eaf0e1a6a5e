"""A real Prometheus that watches a server closely, by our rules."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from tests.live.served import ROOT, RunningServer
from tests.redis_server import free_port

RULES: Final = ROOT / "deploy" / "prometheus"
_PATIENCE_S: Final = 120  # a processor that others use, too


@contextmanager
def running_prometheus(binary: str, directory: Path, watched: RunningServer) -> Iterator[httpx.Client]:
    """Yield a client of its API. It looks every second, and an alert fires when its condition has held for one."""
    for name in ("recording.yml", "alerts.yml"):
        rules = yaml.safe_load((RULES / name).read_text(encoding="utf-8"))
        for group in rules["groups"]:
            group["interval"] = "1s"
            for rule in group["rules"]:
                if "for" in rule:
                    rule["for"] = "1s"
        (directory / name).write_text(yaml.safe_dump(rules), encoding="utf-8")
    target = watched.address.removeprefix("http://")
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["recording.yml", "alerts.yml"],
        "scrape_configs": [{"job_name": "sentiment", "static_configs": [{"targets": [target]}]}],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    command = [binary, "--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={address}"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603
    try:
        with httpx.Client(base_url=f"http://{address}/api/v1", timeout=30) as client:
            until(lambda: _answers(client), (directory / "log").read_text)
            yield client
    finally:
        process.kill()
        process.wait()


def until(condition: Callable[[], bool], state: Callable[[], str]) -> None:
    """Return when `condition` has become true, or fail and tell the `state`."""
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, state()
        time.sleep(0.2)  # it has no event to wait for


def ask(client: httpx.Client, expression: str) -> list[dict[str, Any]]:
    """Return the series that `expression` comes to."""
    response = client.get("/query", params={"query": expression})
    assert response.status_code == 200, response.text
    result: list[dict[str, Any]] = response.json()["data"]["result"]
    return result


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/query", params={"query": "up"}).status_code == 200
    except httpx.TransportError:
        return False
