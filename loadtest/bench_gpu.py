"""``make bench-gpu``: the engine by provider, precision and CUDA graphs, each in a process of its own, and the service.

Needs a GPU, unless --provider names none of its providers. Writes build/bench-gpu/.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import accumulate, pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import onnxruntime
import typer
from numpy.typing import NDArray
from rich.console import Console

from app.domain.errors import CannotProceed, ModelFailure
from app.inference.processor import usable_threads
from app.inference.session import Precision, Provider
from app.settings import Settings
from app.training.serving import open_served
from loadtest.corpus import make_texts
from loadtest.engine import BareEngine
from loadtest.load import Load, Request, closed_loop, find_wrk
from loadtest.service import serving

_ALONE: Final = 200
_ROWS: Final = 32
_console = Console(stderr=True)


class NoGpu(CannotProceed):
    """There is nothing to measure on."""


@dataclass(frozen=True, slots=True)
class Case:
    """A way to run the model."""

    provider: Provider
    precision: Precision
    graphs: bool = False

    @property
    def name(self) -> str:
        """What it is called in the tables."""
        return f"{self.provider} {self.precision}{', CUDA graphs' if self.graphs else ''}"

    @property
    def settings(self) -> dict[str, str]:
        """The environment variables that ask for it."""
        return {
            "SENTIMENT_MODEL__PROVIDER": self.provider,
            "SENTIMENT_MODEL__PRECISION": self.precision,
            "SENTIMENT_MODEL__CUDA_GRAPHS": str(self.graphs),
        }


CASES: Final = (
    Case("cuda", "fp32"), Case("cuda", "fp32", graphs=True), Case("cuda", "fp16"), Case("cuda", "fp16", graphs=True),
    Case("tensorrt", "fp32"), Case("tensorrt", "fp16"), Case("tensorrt", "bf16"),
    Case("openvino", "fp32"), Case("openvino", "bf16"), Case("cpu", "fp32"),
)  # fmt: skip
_ON_GPU: Final = ("cuda", "tensorrt")


@dataclass
class Figures:
    """What a case came to."""

    ready_s: float = 0.0  # until the model is loaded; TensorRT compiles it the first time
    texts_per_s: dict[int, float] = field(default_factory=dict)  # of the engine, by rows of a batch
    alone_p50_ms: float = 0.0  # of one text at a time
    gpu_mib: int | None = None  # None: nvidia-smi does not tell
    flips: int = 0  # texts with a label other than on the CPU provider in fp32
    largest_difference: float = 0.0  # of a probability
    loads: dict[int, Load] = field(default_factory=dict)  # of the service, by connections
    error: str | None = None  # why it does not run


@dataclass
class Report:
    """Everything that was measured, and on what."""

    date: str
    machine: str
    versions: dict[str, str]
    texts: int
    cases: dict[str, Figures] = field(default_factory=dict)


def find_gpus() -> list[str]:
    """Return name, memory and driver of each GPU, as nvidia-smi tells them."""
    return _ask_nvidia("name,memory.total,driver_version")


def gpu_memory_mib() -> int | None:
    """Return the memory in use on all GPUs together, by whom ever; None if nvidia-smi does not tell."""
    used = [line.removesuffix(" MiB") for line in _ask_nvidia("memory.used")]
    return sum(map(int, used)) if used and all(each.isdigit() for each in used) else None


def _ask_nvidia(fields: str) -> list[str]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    done = subprocess.run(
        [command, f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return [line.strip() for line in done.stdout.splitlines()] if done.returncode == 0 else []


def count_flips(some: NDArray[np.float64], others: NDArray[np.float64], heads: Sequence[int]) -> int:
    """Return for how many rows the most probable column of any head differs."""
    ends = pairwise(accumulate(heads, initial=0))
    differ = [some[:, a:b].argmax(axis=1) != others[:, a:b].argmax(axis=1) for a, b in ends]
    return int(np.any(differ, axis=0).sum())


class Bench:
    """Measures cases on the same texts."""

    def __init__(
        self, texts: Sequence[str], *, max_items: int, max_tokens: int, connections: Sequence[int], seconds: int
    ) -> None:
        self._texts = texts
        self._rows = sorted({_ROWS, max_items})
        self._connections = connections
        self._seconds = seconds
        self._batching = {
            "SENTIMENT_BATCHING__MAX_ITEMS": str(max_items),
            "SENTIMENT_BATCHING__MAX_TOKENS": str(max_tokens),
        }
        served = open_served(Settings().model.path, provider="cpu", precision="fp32")
        self._heads = served.bundle.manifest.heads.sizes
        self._expected = served.answer(texts, title="reference")

    def measure(self, case: Case) -> Figures:
        """Return what `case` came to, or why it does not run."""
        settings = case.settings | self._batching
        try:
            _console.log(f"{case.name}: engine")
            # In a process of its own: its memory is freed, and a crash is its own.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
                figures, answers = processes.submit(_measure_engine, settings, self._texts, self._rows).result()
            figures.flips = count_flips(answers, self._expected, self._heads)
            figures.largest_difference = round(float(np.abs(answers - self._expected).max()), 5)
        except BrokenProcessPool:
            return Figures(error="its process crashed")
        except (CannotProceed, ModelFailure) as error:
            return Figures(error=" ".join(str(error).split()))
        if self._connections:
            _console.log(f"{case.name}: service")
            try:
                figures.loads = self._measure_service(settings)
            except RuntimeError as error:
                _console.log(str(error))
        return figures

    def _measure_service(self, settings: Mapping[str, str]) -> dict[int, Load]:
        requests = [Request("/v1/sentiment", {"text": text}) for text in self._texts]
        with serving(**settings, SENTIMENT_CACHE__MAX_BYTES="0") as (port, _):
            closed_loop(port, requests, connections=self._connections[0], seconds=self._seconds)
            return {
                count: closed_loop(port, requests, connections=count, seconds=self._seconds)
                for count in self._connections
            }


def _measure_engine(
    settings: Mapping[str, str], texts: Sequence[str], rows: Sequence[int]
) -> tuple[Figures, NDArray[np.float64]]:
    """Return the figures of an engine with these environment variables, and its answers."""
    os.environ.update(settings)
    before_mib = gpu_memory_mib()
    started = time.perf_counter()
    bare = BareEngine(streams=1)
    ready_s = time.perf_counter() - started
    answers = bare.probabilities(texts)
    figures = Figures(ready_s=round(ready_s, 1))
    for count in rows:
        bare.sorted_batches_per_s(texts, rows=count)  # meets the shapes
        figures.texts_per_s[count] = round(bare.sorted_batches_per_s(texts, rows=count), 1)
    bare.alone_p50_ms(texts[:_ALONE])
    figures.alone_p50_ms = round(bare.alone_p50_ms(texts[:_ALONE]), 2)
    after_mib = gpu_memory_mib()
    figures.gpu_mib = None if before_mib is None or after_mib is None else after_mib - before_mib
    return figures, answers


def render(report: Report) -> str:
    """Return the report as Markdown."""
    ran = [figures for figures in report.cases.values() if figures.error is None]
    rows = list(dict.fromkeys(count for figures in ran for count in figures.texts_per_s))
    connections = list(dict.fromkeys(count for figures in ran for count in figures.loads))
    titles = ["case", "ready", *(f"texts/s, {count} rows" for count in rows), "a lone text, p50", "GPU memory"]
    titles += ["labels that flip", "largest difference"]
    titles += [f"service, {count} connections: texts/s (p50, p99)" for count in connections]
    lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    for name, figures in report.cases.items():
        if figures.error is not None:
            lines.append(f"| {name} | does not run: {figures.error} |{' |' * (len(titles) - 2)}")
            continue
        loads = [figures.loads.get(count) for count in connections]
        cells = [
            name,
            f"{figures.ready_s:.1f} s",
            *(f"{figures.texts_per_s[count]:.0f}" for count in rows),
            f"{figures.alone_p50_ms:.2f} ms",
            "–" if figures.gpu_mib is None else f"{figures.gpu_mib} MiB",
            f"{figures.flips} of {report.texts}",
            f"{figures.largest_difference:.4f}",
            *(f"{each.per_s:.0f} ({each.p50_ms:.1f} ms, {each.p99_ms:.1f} ms)" if each else "–" for each in loads),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    lines.append(f"\n{report.date}; {report.machine}; {versions}.")
    return "\n".join(lines)


def main(
    *,
    provider: Annotated[str, typer.Option(help="Providers to measure, with commas.")] = ",".join(_ON_GPU),
    texts: Annotated[int, typer.Option(help="How many texts.")] = 4_096,
    connections: Annotated[str, typer.Option(help="To the service, with commas; empty: no service.")] = "64,256",
    seconds: Annotated[int, typer.Option(help="Length of each load.")] = 5,
    max_items: Annotated[int, typer.Option(help="SENTIMENT_BATCHING__MAX_ITEMS, and rows of the engine.")] = 256,
    max_tokens: Annotated[int, typer.Option(help="SENTIMENT_BATCHING__MAX_TOKENS.")] = 16_384,
    output: Annotated[Path, typer.Option(help="Directory of the figures.")] = Path("build/bench-gpu"),
) -> None:
    """Run the cases and write their figures as JSON and Markdown; the exit status is 1 if none runs."""
    cases = [case for case in CASES if case.provider in provider.split(",")]
    loads = [int(each) for each in connections.split(",") if each]
    try:
        gpus = _check(cases, loads)
        bench = Bench(make_texts(texts), max_items=max_items, max_tokens=max_tokens, connections=loads, seconds=seconds)
    except CannotProceed as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    report = Report(
        date=datetime.now(UTC).date().isoformat(),
        machine=", ".join([*gpus, f"{usable_threads()} processor threads"]),
        versions={"onnxruntime": onnxruntime.__version__, "python": platform.python_version()},
        texts=texts,
    )
    output.mkdir(parents=True, exist_ok=True)
    for case in cases:
        report.cases[case.name] = bench.measure(case)
        (output / "bench.json").write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
        (output / "bench.md").write_text(render(report) + "\n", encoding="utf-8")
    print(render(report))
    if all(figures.error for figures in report.cases.values()):
        raise typer.Exit(1)


def _check(cases: Sequence[Case], connections: Sequence[int]) -> list[str]:
    """Return the GPUs.

    Raises:
        CannotProceed: what the cases or the load need is not there.
    """
    if not cases:
        raise CannotProceed(f"no such provider; there are {', '.join(dict.fromkeys(case.provider for case in CASES))}")
    gpus = find_gpus()
    if not gpus and any(case.provider in _ON_GPU for case in cases):
        raise NoGpu("no GPU is here to measure on: nvidia-smi is not installed or finds none")
    if connections:
        find_wrk()
    return gpus


if __name__ == "__main__":
    typer.run(main)
