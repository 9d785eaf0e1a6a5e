"""A benchmark as Markdown and as plots."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Final

from matplotlib.figure import Figure

from loadtest.measured import Measured, medians

_NAIVE: Final = "naive"


def render(measured: Measured) -> str:
    """Return the figures as Markdown tables: the ratios first, then what they are made of."""
    lines = ["| measure | ratio |", "| --- | --- |"]
    lines += [f"| {name} | {value:.2f} |" for name, value in ratios(measured)]
    lines += ["", "| load | texts/s | p50 | p99 | errors |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| engine alone, {streams} {'run' if streams == 1 else 'runs'} at a time | {median(per_s):.0f} | | | |"
        for streams, per_s in measured.engine_per_s.items()
    ]
    for name, loads in measured.loads.items():
        load = medians(loads)
        lines.append(f"| {name} | {load.per_s:.0f} | {load.p50_ms:.1f} ms | {load.p99_ms:.1f} ms | {load.errors} |")
    lines += ["", "| server | memory | processors at 64 connections |", "| --- | --- | --- |"]
    for name, memory in measured.memory_mib.items():
        lines.append(f"| {name} | {memory:.0f} MiB | {median(measured.cores[name]):.2f} |")
    lines += [f"\n{name} did not start: {reason.splitlines()[-1]}" for name, reason in measured.failed.items()]
    versions = ", ".join(f"{name} {number}" for name, number in measured.versions.items())
    lines.append(f"\n{measured.date}; {measured.machine}; {versions}; medians of {measured.rounds} rounds.")
    return "\n".join(lines)


def ratios(measured: Measured) -> Iterator[tuple[str, float]]:
    """Yield what the service is measured by, each as a ratio of two figures of the same rounds."""
    found = {name: medians(loads) for name, loads in measured.loads.items()}
    engine = max(median(per_s) for per_s in measured.engine_per_s.values())
    sizes = [name for name in found if name.startswith("service: batches of")]
    for name in [*sizes, "service: 32 connections", "service: 64 connections"]:
        yield f"{name.removeprefix('service: ')}, texts/s ÷ engine alone", found[name].per_s / engine
    lone = found["service: 1 connections"].mean_ms / median(measured.engine_alone_ms)
    yield "a lone request, mean latency ÷ tokenising and running it without a server", lone
    yield (
        "cached, requests/s ÷ an empty FastAPI route",
        found["service: cached"].per_s / found["an empty FastAPI route"].per_s,
    )
    beside, alone = found["service: interactive beside bulk"], found["service: interactive alone"]
    yield "interactive p99 beside bulk load ÷ without", beside.p99_ms / alone.p99_ms
    for session in ("documented", "ours"):
        peers = [name.partition(":")[0] for name in found if name.endswith(f", {session} session: 32 connections")]
        if not peers:
            continue
        for connections in (32, 64):
            load = f"{connections} connections"
            best = max(peers, key=lambda peer: found[f"{peer}: {load}"].per_s)
            yield (
                f"{load}, texts/s ÷ {best} (the best)",
                found[f"service: {load}"].per_s / found[f"{best}: {load}"].per_s,
            )
        best = max(peers, key=lambda peer: found[f"{peer}: 64 connections"].per_s)
        ours, theirs = found[f"service: open loop at 80% of {best}"], found[f"{best}: open loop at 80%"]
        yield f"p99 at 80 % of what {best} can do ÷ its own", ours.p99_ms / theirs.p99_ms
    if (naive := f"{_NAIVE}, documented session: 32 connections") in found:
        yield (
            f"32 connections, texts/s ÷ {_NAIVE}, documented session",
            found["service: 32 connections"].per_s / found[naive].per_s,
        )


def write_plots(measured: Measured, directory: Path) -> None:
    """Write throughput against latency, and the cost of a text against its length."""
    found = {name: medians(loads) for name, loads in measured.loads.items()}
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for server in dict.fromkeys(name.partition(":")[0] for name in found if name.endswith(" connections")):
        loads = [
            load for name, load in found.items() if name.startswith(f"{server}:") and name.endswith(" connections")
        ]
        axes.plot([load.per_s for load in loads], [load.p99_ms for load in loads], marker="o", label=server)
    axes.set(xlabel="texts/s", ylabel="p99 (ms)", yscale="log", title="1 to 256 connections, one text a request")
    axes.legend(fontsize="small")
    figure.savefig(directory / "throughput-latency.png", dpi=120)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for rows, ms_by_tokens in measured.ms_by_tokens.items():
        axes.plot(list(ms_by_tokens), list(ms_by_tokens.values()), marker="o", label=f"batches of {rows}")
    axes.set(xlabel="tokens of a text", ylabel="ms a text", title="Engine alone")
    axes.legend()
    figure.savefig(directory / "cost-by-length.png", dpi=120)
