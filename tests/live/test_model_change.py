import asyncio
import signal
from pathlib import Path

import pytest

from tests.live.served import RunningServer, connect, running_server
from tests.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.anyio

_WAIT_S = 60.0


async def _hangs_up(server: RunningServer, message: str, *, times: int = 1) -> None:
    """Send SIGHUP and return when the log has said `message` so many times."""
    server.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(_WAIT_S):
        while [line["message"] for line in server.log()].count(message) < times:  # noqa: ASYNC110 (a log has no event)
            await asyncio.sleep(0.05)


async def test_sighup_serves_what_the_link_leads_to_and_costs_no_answer(tmp_path: Path) -> None:
    bundles = [write_tiny_bundle(tmp_path / version, version=version) for version in ("1.0.0", "2.0.0")]
    link = tmp_path / "current"
    link.symlink_to(bundles[0])
    with running_server(tmp_path, MODEL__PATH=str(link), MODEL__PROVIDER="cpu") as server:
        async with connect(server) as client:
            done = asyncio.Event()

            async def keep_asking(caller: int) -> set[str]:
                versions = set()
                number = 0
                while not done.is_set():
                    number += 1
                    text = f"好{'店' * (number % 9)}{'家' * caller}"
                    response = await client.post("/v1/sentiment", json={"text": text})
                    assert response.status_code == 200, response.text
                    assert response.json()["label"] == "positive"
                    versions.add(response.json()["model"]["version"])
                return versions

            callers = [asyncio.create_task(keep_asking(caller)) for caller in range(1, 5)]
            for swap in range(1, 5):
                link.unlink()
                link.symlink_to(bundles[swap % 2])
                await _hangs_up(server, "model reloaded", times=swap)
            done.set()
            assert set.union(*await asyncio.gather(*callers)) == {"1.0.0", "2.0.0"}
        assert server.stop() == 0
    assert [line["message"] for line in server.log()].count("model swapped") == 4


async def test_sighup_for_a_damaged_bundle_keeps_the_old_one_and_says_why(tmp_path: Path) -> None:
    directory = write_tiny_bundle(tmp_path / "tiny")
    with running_server(tmp_path, MODEL__PATH=str(directory), MODEL__PROVIDER="cpu") as server:
        write_tiny_bundle(directory, version="2.0.0")
        with (directory / "model.onnx").open("ab") as model:
            model.write(b"!")
        await _hangs_up(server, "model not reloaded")
        async with connect(server) as client:
            response = await client.post("/v1/sentiment", json={"text": "好"})
        assert response.json()["model"]["version"] == "0.0.1"
        (line,) = [line for line in server.log() if line["message"] == "model not reloaded"]
        assert "model.onnx is damaged" in line["reason"]
