"""Several server processes at one address, on the tiny model."""

import asyncio
import json
import os
import shutil
import signal
import socket
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.inference.bundle import MANIFEST
from tests.live.served import STOP_S, Request, RunningServer, is_answer, run_command, running_server
from tests.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.anyio

_SINGLE = "/v1/sentiment"
_BODY = {"text": "这家店很好"}


@contextmanager
def _two_processes(directory: Path, bundle: Path) -> Iterator[RunningServer]:
    settings = {"MODEL__PATH": str(bundle), "MODEL__PROVIDER": "cpu", "CACHE__MAX_BYTES": "0"}
    with running_server(directory, SERVER__PROCESSES="2", **settings) as server:
        yield server


@asynccontextmanager
async def _clients(server: RunningServer, count: int) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Yield clients that have a connection each, made one after the other."""
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(count):
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=server.address, timeout=STOP_S))
            await _ask(client)
            clients.append(client)
        yield clients


async def _ask(client: httpx.AsyncClient) -> str:
    """Have a text classified, and return a mark of the process that did it."""
    response = await client.post(_SINGLE, json=_BODY)
    assert response.status_code == 200
    return response.headers["X-Request-ID"][:16]


def _logged(server: RunningServer, part: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.output().splitlines() if part in line]


def _pids(server: RunningServer) -> dict[int, int]:
    """Return the processes that serve, by number."""
    lines = _logged(server, "Started server process")
    return {line["process"]: int(line["message"].partition("[")[2].rstrip("]")) for line in lines}


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(STOP_S):
        while not condition():  # noqa: ASYNC110 (the server is another process)
            await asyncio.sleep(0.02)


async def _scrape(server: RunningServer) -> dict[str, dict[str, float]]:
    """Return the metrics, asked for on a connection of its own: by name and process, summed over other labels."""
    async with httpx.AsyncClient(base_url=server.address, timeout=STOP_S) as client:
        text = (await client.get("/metrics")).text
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("route", _SINGLE) == _SINGLE:
                found[sample.name][sample.labels["process"]] += sample.value
    return found


async def test_connections_are_shared_evenly_and_metrics_add_up_whoever_is_scraped(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    with _two_processes(tmp_path, tiny_bundle) as server:
        async with _clients(server, 8) as clients:
            marks = Counter([await _ask(client) for client in clients])
            await asyncio.gather(*(_ask(client) for client in clients for _ in range(5)))
        scrapes = [await _scrape(server) for _ in range(4)]
        scrapers = {line["process"] for line in _logged(server, '"/metrics"')}
    assert sorted(marks.values()) == [4, 4]
    assert scrapers == {0, 1}
    for found in scrapes:
        assert found["sentiment_process_up"] == {"0": 1, "1": 1}
        assert found["sentiment_http_requests_total"] == {"0": 28, "1": 28}
        assert found["sentiment_confidence_count"] == {"0": 28, "1": 28}
        assert found["sentiment_http_request_duration_seconds_count"] == {"0": 28, "1": 28}
        assert found["sentiment_model_info"] == found["sentiment_process_up"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
async def test_processes_have_threads_and_processors_of_their_own(tmp_path: Path, tiny_bundle: Path) -> None:
    with _two_processes(tmp_path, tiny_bundle) as server:
        shares = [psutil.Process(pid).cpu_affinity() for pid in _pids(server).values()]
        threads = [line["threads"] for line in _logged(server, '"model ready"')]
    assert sorted(shares[0] + shares[1]) == sorted(os.sched_getaffinity(0))
    assert all(count <= len(share) for count, share in zip(threads, shares, strict=True))


async def test_a_killed_process_takes_its_own_connections_with_it_alone_and_is_replaced(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    with _two_processes(tmp_path, tiny_bundle) as server:
        before = _pids(server)
        async with _clients(server, 12) as clients:
            marks = [await _ask(client) for client in clients]
            (killed,) = {line["process"] for line in _logged(server, marks[0])}
            answered: Counter[str] = Counter()
            cut_off: Counter[str] = Counter()
            done = asyncio.Event()

            async def keep_asking(client: httpx.AsyncClient, mark: str) -> None:
                while not done.is_set():
                    try:
                        answered[await _ask(client)] += 1
                    except httpx.TransportError:
                        cut_off[mark] += 1

            async with asyncio.TaskGroup() as asking:
                for client, mark in zip(clients, marks, strict=True):
                    asking.create_task(keep_asking(client, mark))
                await _until(lambda: min(answered[mark] for mark in marks) > 20)
                os.kill(before[killed], signal.SIGKILL)
                async with asyncio.timeout(STOP_S):
                    newcomer = marks[0]
                    while newcomer in marks:  # until a new process, which has the fewest connections, is given the next
                        async with httpx.AsyncClient(base_url=server.address, timeout=STOP_S) as client:
                            newcomer = await _ask(client)
                done.set()
        assert _pids(server)[killed] != before[killed]
        assert cut_off.keys() <= {marks[0]}  # none, if each of its connections had just been answered
        assert cut_off.total() <= 6  # once for each connection
        (ended,) = _logged(server, "a process ended")
        assert (ended["process"], ended["status"], ended["again_in_s"]) == (killed, -signal.SIGKILL, 0)
        assert server.stop() == 0


async def test_a_process_that_is_stopped_alone_loses_no_request_and_is_replaced(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    with _two_processes(tmp_path, tiny_bundle) as server:
        before = _pids(server)
        async with _clients(server, 12) as clients:
            answered: Counter[str] = Counter()
            done = asyncio.Event()

            async def keep_asking(client: httpx.AsyncClient) -> None:
                while not done.is_set():
                    answered[await _ask(client)] += 1

            async with asyncio.TaskGroup() as asking:
                for client in clients:
                    asking.create_task(keep_asking(client))
                await _until(lambda: len(answered) == 2 and min(answered.values()) > 20)
                os.kill(before[0], signal.SIGTERM)
                await _until(lambda: _pids(server)[0] != before[0])
                done.set()
        (ended,) = _logged(server, "a process ended")
        assert (ended["process"], ended["status"]) == (0, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_leaves_no_accepted_request_of_any_process_without_an_answer(
    tmp_path: Path, tiny_bundle: Path, number: signal.Signals
) -> None:
    with _two_processes(tmp_path, tiny_bundle) as server:
        content = json.dumps(_BODY).encode()
        requests = [await Request.begin(server, _SINGLE, content) for _ in range(20)]
        server.process.send_signal(number)
        await server.until_refusing()
        for request in requests:
            request.send_body()
        answers = [await request.answer() for request in requests]
        assert all(is_answer(*answer) for answer in answers), Counter(status for status, _ in answers)
        assert server.process.wait(STOP_S) == 0
        assert len(_logged(server, "Finished server process")) == 2
        assert "Traceback" not in server.output()


async def test_sighup_has_every_process_serve_what_the_link_leads_to(tmp_path: Path) -> None:
    bundles = [write_tiny_bundle(tmp_path / version, version=version) for version in ("1.0.0", "2.0.0")]
    link = tmp_path / "current"
    link.symlink_to(bundles[0])
    with _two_processes(tmp_path, link) as server:
        link.unlink()
        link.symlink_to(bundles[1])
        server.process.send_signal(signal.SIGHUP)
        await _until(lambda: len(_logged(server, "model reloaded")) == 2)
        assert {(line["process"], line["model"]) for line in _logged(server, "model reloaded")} == {
            (0, "tiny/2.0.0"),
            (1, "tiny/2.0.0"),
        }


async def test_a_process_that_hangs_gets_no_newcomers_and_shows_in_the_metrics(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    with _two_processes(tmp_path, tiny_bundle) as server:
        hung = _pids(server)[1]
        os.kill(hung, signal.SIGSTOP)
        answered = 0
        async with asyncio.timeout(STOP_S):
            while answered < 6:  # half of them would go to the one that hangs
                async with httpx.AsyncClient(base_url=server.address, timeout=1) as client:
                    try:
                        await _ask(client)
                        answered += 1
                    except httpx.TimeoutException:
                        answered = 0
        assert (await _scrape(server))["sentiment_process_up"] == {"0": 1, "1": 0}
        os.kill(hung, signal.SIGCONT)
        assert server.stop() == 0


async def test_a_process_that_does_not_start_again_is_tried_again_while_the_other_serves(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    with _two_processes(tmp_path, bundle) as server:
        (bundle / MANIFEST).rename(tmp_path / MANIFEST)
        os.kill(_pids(server)[1], signal.SIGKILL)
        await _until(lambda: len(_logged(server, "a process ended")) == 2)
        async with _clients(server, 4) as clients:
            assert len({await _ask(client) for client in clients}) == 1
        (tmp_path / MANIFEST).rename(bundle / MANIFEST)
        await _until(lambda: len(_logged(server, '"model ready"')) == 3)
        first, second = _logged(server, "a process ended")
        assert second["again_in_s"] > first["again_in_s"] == 0
        assert server.stop() == 0


async def test_without_their_supervisor_the_processes_stop(tmp_path: Path, tiny_bundle: Path) -> None:
    with _two_processes(tmp_path, tiny_bundle) as server:
        processes = [psutil.Process(pid) for pid in _pids(server).values()]
        request = await Request.begin(server, _SINGLE, json.dumps(_BODY).encode())
        server.process.kill()
        await server.until_refusing()
        request.send_body()
        assert is_answer(*await request.answer())
        assert psutil.wait_procs(processes, STOP_S)[1] == []


def _failed_start(bundle: Path, *, port: int = 0) -> str:
    """Return the log of a start that must fail with exit status 1 and no traceback."""
    arguments = ("serve", "--processes", "2", "--port", str(port))
    done = run_command(*arguments, LOG__FORMAT="json", MODEL__PATH=str(bundle), MODEL__PROVIDER="cpu")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


def test_processes_that_cannot_start_stop_the_start(tmp_path: Path) -> None:
    output = _failed_start(tmp_path / "absent")
    assert str(tmp_path / "absent") in output
    assert "a process did not start" in output


def test_a_port_that_is_taken_stops_the_start_of_several_processes(tiny_bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "address already in use" in _failed_start(tiny_bundle, port=taken.getsockname()[1])
