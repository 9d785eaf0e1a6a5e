"""A real fault makes a real Prometheus raise the alarm, and its end calls it off."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import httpx

from tests.deploy.prometheus_server import running_prometheus, until
from tests.live.served import running_server
from tests.redis_server import running_redis


def test_the_outage_of_redis_raises_an_alarm_that_ends_with_it(
    tmp_path: Path, tiny_bundle: Path, program: Callable[[str], str]
) -> None:
    (watching := tmp_path / "prometheus").mkdir()
    (caching := tmp_path / "redis").mkdir()
    settings = {"MODEL__PATH": str(tiny_bundle), "MODEL__PROVIDER": "cpu"}
    with (
        running_redis(caching) as redis,
        running_server(tmp_path, **settings, CACHE__REDIS_URL=redis.url) as server,
        running_prometheus(program("prometheus"), watching, server) as prometheus,
    ):
        numbers = count()

        def alarms() -> dict[str, str]:
            httpx.post(f"{server.address}/v1/sentiment", json={"text": f"好，第{next(numbers)}次"}).raise_for_status()
            alerts = prometheus.get("/alerts").json()["data"]["alerts"]
            return {alert["labels"]["alertname"]: alert["state"] for alert in alerts}

        until(lambda: not alarms(), lambda: str(alarms()))
        redis.pause()
        until(lambda: alarms().get("SentimentCacheDown") == "firing", lambda: str(alarms()))
        redis.resume()
        until(lambda: "SentimentCacheDown" not in alarms(), lambda: str(alarms()))
