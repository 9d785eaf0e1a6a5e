"""``make bench``: the service, its engine without a server, and other servers of the same model, side by side.

Rounds, so that a drift of the machine touches all alike; each server runs alone. Writes build/bench/.
"""

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Final, TypeAlias

import psutil
import typer
from rich.console import Console

from app.inference.processor import has_bf16, usable_threads
from app.settings import Settings
from loadtest.corpus import make_texts
from loadtest.engine import BareEngine
from loadtest.load import Load, Request, closed_loop, open_loop
from loadtest.measured import Measured
from loadtest.peers import PEERS, Peer
from loadtest.peers.run import serving as serving_peer
from loadtest.report import render, write_plots
from loadtest.service import serving, serving_empty

TEXTS: Final = 2_048  # two of the largest batches: one text in flight twice is computed once
CONNECTIONS: Final = (1, 8, 32, 64, 256)
PEER_CONNECTIONS: Final = (1, 32, 64)
BATCHES: Final = (32, 256, 1_024)
BATCH_CONNECTIONS: Final = 2
CAPACITY_SHARES: Final = (0.5, 0.8, 0.95)
SESSIONS: Final = ("documented", "ours")
_REPEATED: Final = 200  # texts that the cached load repeats
_INTERACTIVE_PER_S: Final = 30.0  # beside bulk load
_INTERACTIVE_S: Final = 20.0  # a p99 of less would be that of a few requests
_NO_CACHE: Final = {"SENTIMENT_CACHE__MAX_BYTES": "0"}
_OUTPUT: Final = Path("build/bench")
Processes: TypeAlias = Callable[[], list[psutil.Process]]
_console = Console(stderr=True)


class Bench:
    """The steps of a round."""

    def __init__(self, measured: Measured, *, peers: Sequence[Peer]) -> None:
        self._measured = measured
        self._peers = peers
        self._seconds = measured.seconds
        self._texts = make_texts(TEXTS)
        self._singles = [Request("/v1/sentiment", {"text": text}) for text in self._texts]

    def engine(self) -> None:
        """Measure the ceilings."""
        for streams in (1, 2):
            bare = BareEngine(streams=streams)
            bare.sorted_batches_per_s(self._texts)  # compiles the shapes
            self._measured.engine_per_s.setdefault(streams, []).append(bare.sorted_batches_per_s(self._texts))
            if streams == 1:
                bare.alone_ms(self._texts[:200])
                self._measured.engine_alone_ms.append(bare.alone_ms(self._texts[:600]))
                if not self._measured.ms_by_tokens:
                    self._measured.ms_by_tokens = {rows: bare.ms_by_tokens(rows) for rows in (1, 16)}

    def service(self) -> None:
        """Measure ours: closed and open loops, batches, bulk load beside interactive."""
        with serving(**_NO_CACHE) as (port, processes):
            closed_loop(port, self._singles, connections=32, seconds=self._seconds)
            for connections in CONNECTIONS:
                self._closed("service", port, self._singles, connections, processes)
            capacity = self._measured.loads["service: 64 connections"][-1].per_s
            for share in CAPACITY_SHARES:
                self._open(f"service: open loop at {share:.0%}", port, self._singles, share * capacity)
            for size in BATCHES:
                batches = [
                    Request("/v1/sentiment/batch", {"texts": self._texts[start : start + size]})
                    for start in range(0, TEXTS - size + 1, size)
                ]
                load = closed_loop(port, batches, connections=BATCH_CONNECTIONS, seconds=2 * self._seconds)
                self._note(f"service: batches of {size}", load, texts=size)
            self._beside_bulk(port)
            self._measured.memory_mib["service"] = _memory_mib(processes())
        with serving() as (port, _):
            repeated = self._singles[:_REPEATED]
            closed_loop(port, repeated, connections=8, seconds=self._seconds)
            self._note("service: cached", closed_loop(port, repeated, connections=32, seconds=self._seconds))
        with serving_empty() as port:
            self._note(
                "an empty FastAPI route",
                closed_loop(port, [Request("/", {})], connections=32, seconds=self._seconds),
            )

    def peer(self, peer: Peer, session: str) -> None:
        """Measure another server, at the same loads, and ours at four fifths of what it can do."""
        name = f"{peer.name}, {session} session"
        requests = [Request(peer.path, peer.body(text)) for text in self._texts]
        with serving_peer(peer, bundle=Settings().model.path, session=session) as (port, processes):
            closed_loop(port, requests, connections=8, seconds=self._seconds)
            for connections in PEER_CONNECTIONS:
                self._closed(name, port, requests, connections, processes)
            rate = 0.8 * self._measured.loads[f"{name}: 64 connections"][-1].per_s
            if not rate:
                raise RuntimeError(f"no answer within {self._seconds} s at 64 connections: measure for longer")
            self._open(f"{name}: open loop at 80%", port, requests, rate)
            self._measured.memory_mib[name] = _memory_mib(processes())
        with serving(**_NO_CACHE) as (port, _):
            closed_loop(port, self._singles, connections=8, seconds=1)
            self._open(f"service: open loop at 80% of {name}", port, self._singles, rate)

    def round(self, number: int) -> None:
        """Measure everything once."""
        _console.log(f"round {number}: engine")
        self.engine()
        _console.log(f"round {number}: service")
        self.service()
        for peer in self._peers:
            for session in SESSIONS:
                name = f"{peer.name}, {session} session"
                if name in self._measured.failed:
                    continue
                _console.log(f"round {number}: {name}")
                try:
                    self.peer(peer, session)
                except RuntimeError as error:
                    self._measured.failed[name] = str(error)

    def _closed(
        self, server: str, port: int, requests: Sequence[Request], connections: int, processes: Processes
    ) -> None:
        before = _cpu_s(processes())
        load = closed_loop(port, requests, connections=connections, seconds=self._seconds)
        self._note(f"{server}: {connections} connections", load)
        if connections == PEER_CONNECTIONS[-1]:
            self._measured.cores.setdefault(server, []).append((_cpu_s(processes()) - before) / self._seconds)

    def _open(self, name: str, port: int, requests: Sequence[Request], per_s: float, *, seconds: float = 0) -> None:
        seconds = max(seconds, 2 * self._seconds, 200 / per_s)
        self._note(name, open_loop(port, requests, per_s=per_s, seconds=seconds))

    def _beside_bulk(self, port: int) -> None:
        """Measure interactive requests without and with a job that sends batch after batch."""
        self._open("service: interactive alone", port, self._singles, _INTERACTIVE_PER_S, seconds=_INTERACTIVE_S)
        stop = Event()
        bulk = [Request("/v1/sentiment/batch", {"texts": make_texts(256, seed=1)})]  # none that the others ask for

        def send_batches() -> None:
            while not stop.is_set():
                closed_loop(port, bulk, connections=1, seconds=1)

        thread = Thread(target=send_batches)
        thread.start()
        try:
            name = "service: interactive beside bulk"
            self._open(name, port, self._singles, _INTERACTIVE_PER_S, seconds=_INTERACTIVE_S)
        finally:
            stop.set()
            thread.join()

    def _note(self, name: str, load: Load, *, texts: int = 1) -> None:
        values = asdict(load) | {"per_s": load.per_s * texts}
        self._measured.loads.setdefault(name, []).append(Load(**values))


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    """Return the processor time of all `processes`."""
    times = [each.cpu_times() for each in processes]
    return sum(each.user + each.system for each in times)


def _memory_mib(processes: Sequence[psutil.Process]) -> float:
    """Return what `processes` alone hold of the memory, in MiB."""
    return sum(each.memory_full_info().uss for each in processes) / 2**20


def main(
    rounds: Annotated[int, typer.Option(help="How often everything is measured; medians are reported.")] = 3,
    seconds: Annotated[int, typer.Option(help="Length of each load.")] = 5,
    peers: Annotated[str, typer.Option(help="Names of other servers, with commas; empty: none.")] = ",".join(PEERS),
) -> None:
    """Run the benchmark and write its figures as JSON, Markdown and plots."""
    measured = Measured(
        date=datetime.now(UTC).date().isoformat(),
        machine=(
            f"{usable_threads()} threads, {'with' if has_bf16() else 'without'} bf16, "
            f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
        ),
        versions={name: version(name) for name in ("fastapi", "onnxruntime", "uvicorn")}
        | {"python": platform.python_version()},
        rounds=rounds,
        seconds=seconds,
    )
    bench = Bench(measured, peers=[PEERS[name] for name in peers.split(",") if name])
    _OUTPUT.mkdir(parents=True, exist_ok=True)
    for number in range(1, rounds + 1):
        bench.round(number)
        (_OUTPUT / "bench.json").write_text(json.dumps(asdict(measured), indent=1) + "\n", encoding="utf-8")
    table = render(measured)
    (_OUTPUT / "bench.md").write_text(table + "\n", encoding="utf-8")
    write_plots(measured, _OUTPUT)
    print(table)


if __name__ == "__main__":
    typer.run(main)
