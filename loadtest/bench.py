"""``make bench``: the service against the ceiling of its own engine, on this machine, in one run.

Prints a Markdown table and writes build/bench.json.
"""

import asyncio
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psutil
from rich.progress import track

from app.inference.bundle import open_bundle
from app.inference.engine import Engine
from app.inference.processor import usable_threads
from app.inference.session import open_model
from app.inference.tokenizer import Tokenizer
from app.settings import Settings
from loadtest.client import Outcome, get, post, send_all
from loadtest.corpus import make_texts

_TEXTS: Final = 2_000
_RUNS: Final = 3
_BATCH: Final = 256
_RESULT: Final = Path("build/bench.json")


def measure_ceiling(texts: Sequence[str]) -> Callable[[], float]:
    """Return a function that measures texts/s of the engine alone: tokens made beforehand, sorted by length."""
    settings = Settings()
    bundle = open_bundle(settings.model.path)
    manifest = bundle.manifest
    tokenizer = Tokenizer(bundle.tokenizer_file, max_tokens=manifest.max_tokens, head_tokens=manifest.head_tokens)
    model = open_model(
        bundle.model_file,
        provider=settings.model.provider,
        precision=settings.model.precision,
        threads=settings.model.threads or usable_threads(),
    )
    engine = Engine(model, pad_id=manifest.pad_id, heads=manifest.heads.sizes, longest=manifest.max_tokens)
    tokens = sorted((text.ids for text in tokenizer.encode(texts)), key=len)
    batches = [tokens[start : start + 32] for start in range(0, len(tokens), 32)]

    def measure() -> float:
        started = time.perf_counter()
        for batch in batches:
            engine.run_now(batch)
        return len(tokens) / (time.perf_counter() - started)

    measure()
    return measure


@contextmanager
def serving(**environment: str) -> Iterator[tuple[int, psutil.Process]]:
    """Run the service in a process of its own; yield its port and process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "SENTIMENT_LOG__FORMAT": "json", "SENTIMENT_LOG__REQUESTS": "false", **environment},
    )
    if process.stdout is None:
        raise RuntimeError("the server has no standard output")
    for line in process.stdout:
        if found := re.search(r"running on http://127.0.0.1:(\d+)", line):
            break
    else:
        raise RuntimeError("the server did not start")
    try:
        yield int(found[1]), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def _row(name: str, per_text: int, runs: list[tuple[list[Outcome], float]]) -> dict[str, object]:
    durations = sorted(outcome.duration_s for outcomes, _ in runs for outcome in outcomes)
    return {
        "case": name,
        "per_s": statistics.median(len(outcomes) * per_text / seconds for outcomes, seconds in runs),
        "p50_ms": statistics.median(durations) * 1e3,
        "p99_ms": durations[int(len(durations) * 0.99)] * 1e3,
        "errors": sum(outcome.status != 200 for outcomes, _ in runs for outcome in outcomes),
    }


def main() -> None:
    """Measure every case `_RUNS` times in turn, so that a drift of the machine touches all alike."""
    texts = make_texts(_TEXTS)
    singles = [post("/v1/sentiment", {"text": text}) for text in texts]
    batches = [
        post("/v1/sentiment/batch", {"texts": texts[start : start + _BATCH]}) for start in range(0, _TEXTS, _BATCH)
    ]
    cases = {
        "single texts, 1 connection": (singles[:300], 1, 1),
        "single texts, 32 connections": (singles, 32, 1),
        "single texts, 64 connections": (singles, 64, 1),
        f"batches of {_BATCH}, 4 connections": (batches, 4, _BATCH),
    }
    ceiling = measure_ceiling(texts)
    ceilings: list[float] = []
    runs: dict[str, list[tuple[list[Outcome], float]]] = {name: [] for name in cases}
    memory: list[int] = []
    for _ in track(range(_RUNS), description="runs"):
        ceilings.append(ceiling())
        with serving(SENTIMENT_CACHE__MAX_BYTES="0") as (port, process):
            asyncio.run(send_all(port, singles[:64], connections=8))
            for name, (requests, connections, _) in cases.items():
                runs[name].append(asyncio.run(send_all(port, requests, connections=connections)))
            memory.append(process.memory_info().rss)
    rows = [_row(name, cases[name][2], found) for name, found in runs.items()]
    with serving() as (port, _):
        asyncio.run(send_all(port, singles, connections=64))
        for name, requests in {"remembered": singles, "liveness route": [get("/health/live")] * _TEXTS}.items():
            found = [asyncio.run(send_all(port, requests, connections=32)) for _ in range(_RUNS)]
            rows.append(_row(f"{name}, 32 connections", 1, found))
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {usable_threads()} threads, Python {platform.python_version()}",
        "texts": _TEXTS,
        "runs": _RUNS,
        "ceiling_per_s": statistics.median(ceilings),
        "memory_mib": max(memory) / 2**20,
        "cases": rows,
    }
    _RESULT.parent.mkdir(exist_ok=True)
    _RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(render(result))


def render(result: dict[str, object]) -> str:
    """Return the result as a Markdown table."""
    ceiling = result["ceiling_per_s"]
    lines = [
        "| case | texts or requests/s | of the engine alone | p50 | p99 | errors |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| engine alone, sorted batches of 32 | {ceiling:.0f} | 1 | | | |",
    ]
    cases = result["cases"]
    for row in cases if isinstance(cases, list) else []:
        share = row["per_s"] / ceiling
        lines.append(
            f"| {row['case']} | {row['per_s']:.0f} | {share:.2f} | {row['p50_ms']:.1f} ms | {row['p99_ms']:.1f} ms "
            f"| {row['errors']} |"
        )
    lines.append(
        f"\n{result['date']}, {result['machine']}; resident memory after the load {result['memory_mib']:.0f} MiB."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
