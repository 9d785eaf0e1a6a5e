"""``make bench-bulk``: many texts by stream, as a batch job and by `score`: rates, memory, and whether they agree."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice, zip_longest
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Any, Final

import httpx
import psutil
import typer

from loadtest.corpus import make_texts
from loadtest.engine import BareEngine
from loadtest.load import Load, Request, open_loop
from loadtest.service import serving

_OUTPUT: Final = Path("build/bulk")
_NO_CACHE: Final = {"SENTIMENT_CACHE__MAX_BYTES": "0"}
_CEILING_TEXTS: Final = 8_192
_KNOWN_TEXTS: Final = 2_000
_INTERACTIVE_PER_S: Final = 30.0
_INTERACTIVE_S: Final = 30.0
_SAMPLE_S: Final = 0.1
_SETTLED_S: Final = 30.0
_LOOK_S: Final = 0.2


def main(
    count: Annotated[int, typer.Option(help="How many texts.")] = 200_000,
    lines: Annotated[
        int, typer.Option(help="How many lines of the stream that is watched for its memory.")
    ] = 1_000_000,
) -> None:
    """Print what was measured; fail if a row is missing."""
    _OUTPUT.mkdir(parents=True, exist_ok=True)
    texts = make_texts(count)
    file = _write(_OUTPUT / "texts.jsonl", texts)
    engine = _EngineAlone(texts)

    with serving(**_NO_CACHE) as (port, processes):
        alone = _interactive(port, texts)
        engine.measure()
        with _peak_mib(processes) as mib:
            spent_s = _stream(port, file, _OUTPUT / "streamed.jsonl")
        _print("stream, by curl -T", count / spent_s, engine, mib)
        beside = _beside_a_stream(port, file, texts)
        print(
            f"single texts, {_INTERACTIVE_PER_S:.0f}/s: p99 {alone.p99_ms:.0f} ms alone, {beside.p99_ms:.0f} ms beside"
        )

    with _jobs() as (port, processes):
        engine.measure()
        with _peak_mib(processes) as mib:
            spent_s = _job(port, file, _OUTPUT / "job.jsonl")
        _print("batch job, upload and download included", count / spent_s, engine, mib)
        beside = _beside_a_job(port, file, texts)
        print(f"single texts beside a batch job: p99 {beside.p99_ms:.0f} ms")

    engine.measure()
    per_s, mib = _score(file, _OUTPUT / "scored.jsonl")
    _print("score, in its process", per_s, engine, mib)
    for other in ("job", "scored"):
        _compare(_OUTPUT / "streamed.jsonl", _OUTPUT / f"{other}.jsonl", count)

    engine.measure()
    per_s, mib = _score(file, _OUTPUT / "scored-by-ray.jsonl", "--engine", "ray")
    _print("score, on Ray, its start counted", per_s, engine, mib)
    _compare(_OUTPUT / "scored.jsonl", _OUTPUT / "scored-by-ray.jsonl", count)

    long = _write(_OUTPUT / "long.jsonl", islice(cycle(texts[:_KNOWN_TEXTS]), lines))
    with serving() as (port, processes):
        _stream(port, file=_write(_OUTPUT / "known.jsonl", texts[:_KNOWN_TEXTS]), answers=Path(os.devnull))
        with _peak_mib(processes) as mib:
            spent_s = _stream(port, long, Path(os.devnull))
    print(f"a stream of {lines:,} lines whose texts are remembered: {lines / spent_s:.0f} texts/s; {_held(mib)}")


class _EngineAlone:
    """What the engine does without a server, measured before and after each way: a machine's pace drifts."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts[:: max(1, len(texts) // _CEILING_TEXTS)]
        self._engine = BareEngine(streams=2)
        self._engine.sorted_batches_per_s(self._texts)  # compiles the shapes
        self._per_s = 0.0

    def measure(self) -> None:
        """Take the pace before a way."""
        self._per_s = self._engine.sorted_batches_per_s(self._texts)

    def share(self, per_s: float) -> tuple[float, float]:
        """Return the mean of the pace before a way and the one now, and which share of it `per_s` is."""
        mean = (self._per_s + self._engine.sorted_batches_per_s(self._texts)) / 2
        return mean, per_s / mean


def _write(file: Path, texts: Iterable[str]) -> Path:
    with file.open("w", encoding="utf-8") as lines:
        for number, text in enumerate(texts):
            lines.write(json.dumps({"id": number, "text": text}, ensure_ascii=False) + "\n")
    return file


def _curl(port: int, file: Path, answers: Path) -> list[str]:
    return [
        "curl", "--silent", "--show-error", "--fail", "--no-buffer", "--request", "POST", "--upload-file", str(file),
        "--header", "Content-Type: application/x-ndjson", "--output", str(answers),
        f"http://127.0.0.1:{port}/v1/sentiment/stream",
    ]  # fmt: skip


def _stream(port: int, file: Path, answers: Path) -> float:
    """Return how long it took."""
    started = time.perf_counter()
    subprocess.run(_curl(port, file, answers), check=True)
    return time.perf_counter() - started


def _interactive(port: int, texts: list[str]) -> Load:
    requests = [Request("/v1/sentiment", {"text": f"{text}。"}) for text in texts[:2_000]]
    return open_loop(port, requests, per_s=_INTERACTIVE_PER_S, seconds=_INTERACTIVE_S)


def _beside_a_stream(port: int, file: Path, texts: list[str]) -> Load:
    with subprocess.Popen(_curl(port, file, Path(os.devnull))) as process:
        try:
            time.sleep(1)
            return _interactive(port, texts)
        finally:
            if process.poll() is not None:
                print("the stream ended before the single texts did: take more texts", file=sys.stderr)
            process.kill()


@contextmanager
def _jobs() -> Iterator[tuple[int, Callable[[], list[psutil.Process]]]]:
    """Serve with an empty database of jobs."""
    for old in _OUTPUT.glob("jobs.db*"):
        old.unlink()
    settings = {"SENTIMENT_JOBS__URL": f"sqlite:///{_OUTPUT / 'jobs.db'}", "SENTIMENT_JOBS__MAX_BYTES": str(2**34)}
    with serving(**_NO_CACHE, **settings) as found:
        yield found


def _upload(client: httpx.Client, file: Path) -> str:
    with file.open("rb") as lines:
        response = client.post("/v1/batches", content=lines, headers={"Content-Type": "application/x-ndjson"})
    response.raise_for_status()
    return str(response.json()["id"])


def _client(port: int) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600)


def _job(port: int, file: Path, answers: Path) -> float:
    """Return how long it took, from the upload to the last answer."""
    started = time.perf_counter()
    with _client(port) as client:
        job = _upload(client, file)
        while (state := client.get(f"/v1/batches/{job}").json()["state"]) != "completed":
            if state not in {"queued", "running"}:
                raise SystemExit(f"the batch job is {state}")
            time.sleep(_LOOK_S)
        with client.stream("GET", f"/v1/batches/{job}/results") as response, answers.open("wb") as output:
            output.writelines(response.iter_bytes())
    return time.perf_counter() - started


def _beside_a_job(port: int, file: Path, texts: list[str]) -> Load:
    with _client(port) as client:
        job = _upload(client, file)
        load = _interactive(port, texts)
        if client.get(f"/v1/batches/{job}").json()["state"] != "running":
            print("the batch job ended before the single texts did: take more texts", file=sys.stderr)
        client.delete(f"/v1/batches/{job}").raise_for_status()
    return load


def _score(file: Path, answers: Path, *arguments: str) -> tuple[float, dict[str, float]]:
    command = [sys.executable, "-m", "app", "score", str(file), "--output", str(answers), *arguments]
    with (
        subprocess.Popen(command, env={**os.environ, **_NO_CACHE}, stderr=subprocess.PIPE, text=True) as process,
        _peak_mib(lambda: _family(process.pid)) as mib,
    ):
        _, said = process.communicate()
    found = re.search(r": ([\d,]+)/s$", said, re.MULTILINE)
    if process.returncode or found is None:
        raise SystemExit(said)
    return float(found[1].replace(",", "")), mib


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


@contextmanager
def _peak_mib(processes: Callable[[], list[psutil.Process]]) -> Iterator[dict[str, float]]:
    """Yield what will hold the resident memory of all `processes`: after a while, and at most."""
    mib: dict[str, float] = {}
    stop = Event()

    def watch() -> None:
        started = time.monotonic()
        while not stop.wait(_SAMPLE_S):
            try:
                held = sum(process.memory_info().rss for process in processes()) / 2**20
            except psutil.NoSuchProcess:  # it has ended meanwhile
                continue
            if time.monotonic() - started > _SETTLED_S:
                mib.setdefault(f"after {_SETTLED_S:.0f} s", held)
            mib["peak"] = max(held, mib.get("peak", 0.0))

    thread = Thread(target=watch)
    thread.start()
    try:
        yield mib
    finally:
        stop.set()
        thread.join()


def _print(name: str, per_s: float, engine: _EngineAlone, mib: dict[str, float]) -> None:
    alone, share = engine.share(per_s)
    print(f"{name}: {per_s:.0f} texts/s, {share:.3f} of the engine alone ({alone:.0f}); {_held(mib)}", flush=True)


def _held(mib: dict[str, float]) -> str:
    return "MiB: " + ", ".join(f"{when} {value:.0f}" for when, value in mib.items())


def _compare(streamed: Path, scored: Path, count: int) -> None:
    rows = other_labels = 0
    furthest = 0.0
    with streamed.open(encoding="utf-8") as some, scored.open(encoding="utf-8") as others:
        for number, (one, other) in enumerate(zip_longest(map(json.loads, some), map(json.loads, others))):
            if one is None or other is None or not one["id"] == other["id"] == number:
                raise SystemExit(f"row {number} is missing, or out of place")
            rows += 1
            other_labels += one["sentiment"]["label"] != other["sentiment"]["label"]
            furthest = max(furthest, _distance(one["sentiment"], other["sentiment"]))
    if rows != count:
        raise SystemExit(f"{count - rows} rows are missing")
    print(
        f"{rows} rows of {scored.stem} and {streamed.stem} compared: {other_labels} have another label, "
        f"no probability differs by more than {furthest:.4f}"
    )


def _distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    shares: dict[str, float] = one["probabilities"]
    return max(abs(share - float(other["probabilities"][name])) for name, share in shares.items())


if __name__ == "__main__":
    typer.run(main)
