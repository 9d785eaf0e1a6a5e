"""``make chaos``: faults under steady load. Counts what was answered rightly, refused properly, lost and wrong.

The service runs in several processes with a Redis of its own; one fault follows the other.
Exits with 1 if an answer was lost or wrong.
"""

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Annotated, Final

import httpx
import psutil
import typer
from rich.console import Console

from app.settings import Settings
from loadtest.corpus import make_texts
from loadtest.load import Request, closed_loop, flood
from loadtest.nastiness import nasty_requests
from loadtest.service import serving

_TEXTS: Final = 600
_ZIPF: Final = 1.1  # how messages repeat
_BATCH_EVERY: Final = 40  # requests
_BATCH: Final = 32
_TIMEOUT_S: Final = 30.0
_REFUSED: Final = (429, 503)
_OVERLOAD: Final = 10
_console = Console(stderr=True)


@dataclass
class Phase:
    """What became of the requests offered during one fault."""

    name: str
    right: int = 0
    refused: int = 0  # 429 or 503 with Retry-After; or nobody listens, where the service is being stopped
    lost: int = 0  # no answer, though asked twice
    wrong: int = 0
    sent_twice: int = 0  # the connection broke before an answer, as when a process is killed
    durations_s: list[float] = field(default_factory=list)
    memory_mib: float = 0.0
    note: str = ""
    stopping: bool = False

    @property
    def offered(self) -> int:
        """Every request of the phase."""
        return self.right + self.refused + self.lost + self.wrong

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of the latency."""
        return quantiles(self.durations_s, n=100)[98] * 1e3 if len(self.durations_s) > 1 else 0.0


class SteadyLoad:
    """Customers who ask at random times, `per_s` on average, whatever becomes of the others."""

    def __init__(self, port: int, *, per_s: float) -> None:
        self._per_s = per_s
        self._chance = random.Random(0)  # noqa: S311 (no secret depends on it)
        self._texts = make_texts(_TEXTS, seed=7)
        self._weights = [1 / rank**_ZIPF for rank in range(1, _TEXTS + 1)]
        self._labels: dict[str, str] = {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
        self._client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=_TIMEOUT_S, limits=limits)
        self.phase = Phase("")

    async def learn(self) -> None:
        """Ask for every text while nothing is wrong: these answers are right."""
        for start in range(0, _TEXTS, 100):
            texts = self._texts[start : start + 100]
            answer = await self._client.post("/v1/sentiment/batch", json={"texts": texts})
            labels = [result["label"] for result in answer.raise_for_status().json()["results"]]
            self._labels.update(zip(texts, labels, strict=True))

    async def run(self, stop: asyncio.Event) -> None:
        """Send requests until `stop` is set, then wait for the last answers."""
        async with asyncio.TaskGroup() as tasks:
            number = 0
            while not stop.is_set():
                number += 1
                count = _BATCH if number % _BATCH_EVERY == 0 else 1
                texts = self._chance.choices(self._texts, self._weights, k=count)
                tasks.create_task(self._ask(texts, self.phase))
                await asyncio.sleep(self._chance.expovariate(self._per_s))
        await self._client.aclose()

    async def _ask(self, texts: Sequence[str], phase: Phase) -> None:
        started = time.perf_counter()
        answer = await self._send(texts, phase)
        phase.durations_s.append(time.perf_counter() - started)
        if answer is None:
            phase.lost += 1
        elif answer.status_code in _REFUSED and "Retry-After" in answer.headers:
            phase.refused += 1
        elif answer.status_code == httpx.codes.OK and self._is_right(texts, answer.json()):
            phase.right += 1
        else:
            phase.wrong += 1
            phase.note = f"{answer.status_code}: {answer.text[:200]}"

    async def _send(self, texts: Sequence[str], phase: Phase) -> httpx.Response | None:
        """Post once, and once more if the connection broke, as a balancer does."""
        path, body = (
            ("/v1/sentiment", {"text": texts[0]}) if len(texts) == 1 else ("/v1/sentiment/batch", {"texts": texts})
        )
        for attempt in range(2):
            try:
                return await self._client.post(path, json=body)
            except httpx.ConnectError:
                if phase.stopping and not attempt:
                    return httpx.Response(503, headers={"Retry-After": "1"})
            except httpx.TransportError:
                phase.sent_twice += attempt == 0
        return None

    def _is_right(self, texts: Sequence[str], answer: Mapping[str, object]) -> bool:
        results = answer.get("results", [answer])
        assert isinstance(results, list)  # noqa: S101 (for the type checker)
        return [result.get("label") for result in results] == [self._labels[text] for text in texts]


class OwnRedis:
    """A Redis of the drill's own, on a free port."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it empty, and return when it answers."""
        server = shutil.which("redis-server")
        if server is None:
            raise SystemExit("redis-server is not installed: apt install redis-server, or brew install redis")
        self._process = subprocess.Popen(
            [server, "--port", str(self.port), "--save", "", "--dir", str(self._directory), "--maxmemory", "64mb"],
            stdout=subprocess.DEVNULL,
        )
        while self.command("PING") != "PONG":
            time.sleep(0.05)

    def send_signal(self, number: signal.Signals) -> None:
        """Kill, stop or continue it."""
        assert self._process is not None  # noqa: S101 (for the type checker)
        self._process.send_signal(number)
        if number is signal.SIGKILL:
            self._process.wait()

    def command(self, *words: str, password: str | None = None) -> str:
        """Return what it answers to a command, or nothing."""
        client = shutil.which("redis-cli") or "redis-cli"
        secret = ["-a", password, "--no-auth-warning"] if password else []
        done = subprocess.run(
            [client, "-p", str(self.port), *secret, *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()


class Drill:
    """The faults, one after the other."""

    def __init__(
        self, redis: OwnRedis, link: Path, bundles: Sequence[Path], *, seconds: float, swaps: int, bodies: int
    ) -> None:
        self._redis = redis
        self._link = link
        self._bundles = bundles
        self._seconds = seconds
        self._swaps = swaps
        self._bodies = bodies
        self.phases: list[Phase] = []

    async def run(self, port: int, processes: Callable[[], list[psutil.Process]]) -> None:
        """Run every phase under steady load, and stop the service under it."""
        self._port = port
        self._processes = processes
        capacity = await asyncio.to_thread(self._capacity)
        load = SteadyLoad(port, per_s=0.25 * capacity)
        await load.learn()
        stop = asyncio.Event()
        running = asyncio.create_task(load.run(stop))
        faults: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("calm", self._nothing),
            ("Redis killed", self._redis_killed),
            ("Redis back, empty", self._redis_back),
            ("Redis hangs", self._redis_hangs),
            ("Redis goes on", self._redis_goes_on),
            ("Redis full", self._redis_full),
            ("Redis asks for a password", self._redis_locked),
            ("a process killed", self._process_killed),
            (f"{self._swaps} model swaps", self._model_swaps),
            (f"{self._bodies:,} nasty requests", self._nasty),
            (f"{_OVERLOAD} times the capacity", lambda: self._overload(capacity)),
            ("calm again", self._nothing),
        ]
        for name, fault in faults:
            _console.log(name)
            load.phase = Phase(name)
            self.phases.append(load.phase)
            await fault()
            load.phase.memory_mib = self._memory_mib()
        load.phase = Phase("stopping", stopping=True)
        self.phases.append(load.phase)
        _console.log("stopping")
        processes()[0].send_signal(signal.SIGTERM)
        await asyncio.sleep(1)
        stop.set()
        await running

    def _capacity(self) -> float:
        """Return the texts/s that the service answers when as many as it likes wait, none of them twice."""
        closed_loop(self._port, _numbered(make_texts(2_000, seed=1)), connections=128, seconds=5)
        return closed_loop(self._port, _numbered(make_texts(2_000, seed=2)), connections=128, seconds=10).per_s

    async def _nothing(self) -> None:
        await asyncio.sleep(self._seconds)

    async def _redis_killed(self) -> None:
        self._redis.send_signal(signal.SIGKILL)
        await asyncio.sleep(self._seconds)

    async def _redis_back(self) -> None:
        await asyncio.to_thread(self._redis.start)
        await asyncio.sleep(self._seconds)

    async def _redis_hangs(self) -> None:
        self._redis.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self._seconds)

    async def _redis_goes_on(self) -> None:
        self._redis.send_signal(signal.SIGCONT)
        await asyncio.sleep(self._seconds)

    async def _redis_full(self) -> None:
        self._redis.command("CONFIG", "SET", "maxmemory", "1")
        await asyncio.sleep(self._seconds)
        self._redis.command("CONFIG", "SET", "maxmemory", "64mb")

    async def _redis_locked(self) -> None:
        self._redis.command("CONFIG", "SET", "requirepass", "chaos")
        self._redis.command("CLIENT", "KILL", "TYPE", "normal", password="chaos")
        await asyncio.sleep(self._seconds)
        self._redis.command("CONFIG", "SET", "requirepass", "", password="chaos")

    async def _process_killed(self) -> None:
        serving = [child for child in self._processes()[1:] if child.net_connections() or child.num_threads() > 4]
        serving[-1].kill()
        await asyncio.sleep(self._seconds)

    async def _model_swaps(self) -> None:
        for number in range(self._swaps):
            bundle = self._bundles[(number + 1) % 2]
            self._link.with_suffix(".new").symlink_to(bundle)
            self._link.with_suffix(".new").rename(self._link)
            self._processes()[0].send_signal(signal.SIGHUP)
            await self._until_served(json.loads((bundle / "bundle.json").read_bytes())["version"])

    async def _until_served(self, version: str) -> None:
        """Return when every process serves it."""
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self._port}", timeout=_TIMEOUT_S) as client:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                lines = (await client.get("/metrics")).text.splitlines()
                models = [line for line in lines if line.startswith("sentiment_model_info{")]
                if all(f'version="{version}"' in line for line in models):
                    return
                await asyncio.sleep(0.1)
        raise SystemExit(f"the service does not come to serve {version}")

    async def _nasty(self) -> None:
        self.phases[-1].note = await nasty_requests(self._port, self._bodies)

    async def _overload(self, capacity: float) -> None:
        texts = _numbered(make_texts(2_000, seed=3))
        steady = self.phases[-1]
        seconds = round(6 * self._seconds)
        found = await asyncio.to_thread(flood, self._port, texts, per_s=_OVERLOAD * capacity, seconds=seconds)
        goodput = found.per_s + steady.right / seconds
        steady.note = (
            f"{found.per_s:.0f} of {found.offered_per_s:.0f} texts/s answered, with the steady load {goodput:.0f}: "
            f"{goodput / capacity:.2f} of the capacity"
        )

    def _memory_mib(self) -> float:
        return sum(process.memory_info().rss for process in self._processes()) / 2**20


def _numbered(texts: Sequence[str]) -> list[Request]:
    """Return a request for each of `texts`, which the load generator makes different each time."""
    return [Request("/v1/sentiment", {"text": f"{text}#NUMBER#"}) for text in texts]


@contextmanager
def _two_bundles(served: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Yield a link to the first of two copies of the served bundle, that differ in their version alone."""
    with tempfile.TemporaryDirectory() as directory:
        copies = []
        for version in ("1", "2"):
            copy = Path(directory) / version
            shutil.copytree(served, copy, copy_function=os.link)
            manifest = json.loads((copy / "bundle.json").read_bytes()) | {"version": version}
            (copy / "bundle.json").unlink()
            (copy / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
            copies.append(copy)
        link = Path(directory) / "current"
        link.symlink_to(copies[0])
        yield link, copies


def _table(phases: Sequence[Phase]) -> str:
    lines = [
        "| phase | offered | right | refused | lost | wrong | sent twice | p99 | memory | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {each.name} | {each.offered} | {each.right} | {each.refused} | {each.lost} | {each.wrong} "
        f"| {each.sent_twice} | {each.p99_ms:.0f} ms | {each.memory_mib:.0f} MiB | {each.note} |"
        for each in phases
    ]
    return "\n".join(lines)


def main(
    seconds: Annotated[float, typer.Option(help="Length of a phase; the overload lasts six of them.")] = 10,
    processes: Annotated[int, typer.Option(help="Processes of the service.")] = 2,
    swaps: Annotated[int, typer.Option(help="How often the model is swapped.")] = 50,
    bodies: Annotated[int, typer.Option(help="How many nasty requests are sent.")] = 10_000,
) -> None:
    """Run the drill and print its table; exit with 1 if an answer was lost or wrong."""
    with tempfile.TemporaryDirectory() as scratch, _two_bundles(Settings().model.path) as (link, bundles):
        redis = OwnRedis(Path(scratch))
        redis.start()
        drill = Drill(redis, link, bundles, seconds=seconds, swaps=swaps, bodies=bodies)
        try:
            with serving(
                SENTIMENT_CACHE__REDIS_URL=f"redis://127.0.0.1:{redis.port}/0",
                SENTIMENT_MODEL__PATH=str(link),
                SENTIMENT_SERVER__PROCESSES=str(processes),
            ) as (port, alive):
                asyncio.run(drill.run(port, alive))
        finally:
            redis.send_signal(signal.SIGKILL)
    print(_table(drill.phases))
    if any(phase.lost or phase.wrong for phase in drill.phases):
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
