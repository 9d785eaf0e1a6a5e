"""``python -m loadtest.capacity``: how many replicas and how much Redis a load takes, from what was measured.

The figures of one replica come from docs/benchmark.md unless they are given. Knows no service; computes alone.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer

from app.cache.memory import ENTRY_BYTES
from app.settings import Cache

BENCHMARK: Final = Path(__file__).parents[1] / "docs" / "benchmark.md"
PAGE: Final = BENCHMARK.with_name("capacity.md")
_SINGLE: Final = "service: 64 connections"
_BATCHES: Final = "service: batches of 256"
_REMEMBERED: Final = "service: cached"

_RATES: Final = (1_000, 10_000, 100_000)  # messages a second
_HITS: Final = (0.0, 0.3, 0.6, 0.9)
_JOBS: Final = (1_000_000, 10_000_000, 100_000_000)  # texts of a night
_NIGHT_S: Final = 8 * 3_600
_REDIS_BYTES: Final = 225  # of an entry, at most, by `python -m loadtest.redis_memory`
_REDIS_GB: Final = (1, 10)
_CACHE: Final = Cache()


@dataclass(frozen=True)
class Replica:
    """What one replica does in a second when it does nothing else, and the share of that to plan with."""

    texts_per_s: float  # one text a request
    batch_texts_per_s: float
    remembered_per_s: float  # answers from the cache
    utilisation: float = 0.7

    def for_messages(self, per_s: float, hit_rate: float) -> int:
        """Return how many replicas answer `per_s` single texts, of which `hit_rate` are remembered."""
        busy = (1 - hit_rate) / self.texts_per_s + hit_rate / self.remembered_per_s
        return math.ceil(per_s * busy / self.utilisation)

    def for_job(self, texts: int, seconds: float) -> int:
        """Return how many replicas score `texts` in `seconds`."""
        return math.ceil(texts / seconds / self.batch_texts_per_s / self.utilisation)


@dataclass(frozen=True)
class Traffic:
    """Messages of which a share repeats, the n-th most frequent n ** -exponent as often as the first."""

    per_s: float
    repeating: float = 0.5
    messages: int = 100_000
    exponent: float = 1.0

    def hit_rate(self, *, ttl_s: float, room: float) -> tuple[float, float]:
        """Return the share that is found remembered, and how many answers are then held, of `room` at most.

        Each answer stays for `ttl_s`, or until what came after it has used up the room, if that is sooner; how long
        that takes follows from the room (Che's approximation; Martina, Garetto, Leonardi 2013, arXiv:1307.6702).
        """
        shares = np.arange(1, self.messages + 1, dtype=np.float64) ** -self.exponent
        rates = self.per_s * self.repeating * shares / shares.sum()

        def held(stays_s: float) -> float:
            expected = rates * stays_s
            return float((expected / (1 + expected)).sum()) + self.per_s * (1 - self.repeating) * stays_s

        shortest_s, stays_s = 0.0, ttl_s
        while held(stays_s) > room * 1.001:
            middle_s = (shortest_s + stays_s) / 2
            shortest_s, stays_s = (middle_s, stays_s) if held(middle_s) < room else (shortest_s, middle_s)
        expected = rates * stays_s
        return float((rates * expected / (1 + expected)).sum()) / self.per_s, min(room, held(stays_s))


def answering_alone(replica: Replica, per_s: float) -> tuple[float, int]:
    """Return the share that replicas find in their own memories, without a Redis, and how many it then takes."""
    replicas = replica.for_messages(per_s, 0)
    while True:  # fewer replicas each see more of the traffic, and remember no less of it
        traffic = Traffic(per_s / replicas)
        hits, _ = traffic.hit_rate(ttl_s=_CACHE.ttl_s, room=_CACHE.max_bytes // ENTRY_BYTES)
        fewer = replica.for_messages(per_s, hits)
        if fewer >= replicas:
            return hits, replicas
        replicas = fewer


def read_replica(page: str) -> Replica:
    """Return what the benchmark's page says of the service."""

    def per_s(load: str) -> float:
        (found,) = re.findall(rf"^\| {re.escape(load)} \| (\d+) \|", page, re.MULTILINE)
        return float(found)

    return Replica(per_s(_SINGLE), per_s(_BATCHES), per_s(_REMEMBERED))


def render(replica: Replica) -> str:
    """Return the tables of docs/capacity.md."""
    measured = (
        f"{replica.texts_per_s:,.0f} single texts/s, {replica.batch_texts_per_s:,.0f} texts/s in batches, "
        f"{replica.remembered_per_s:,.0f} remembered answers/s"
    )
    lines = [
        f"One replica: {measured}; planned with {replica.utilisation:.0%} of that.",
        "",
        "| single texts a second | " + " | ".join(f"{hits:.0%} remembered" for hits in _HITS) + " |",
        "| --- |" + " --- |" * len(_HITS),
    ]
    for rate in _RATES:
        row = " | ".join(f"{replica.for_messages(rate, share):,}" for share in _HITS)
        lines.append(f"| {rate:,} | {row} |")
    lines += ["", "| texts of a job, in eight hours | replicas |", "| --- | --- |"]
    lines += [f"| {texts:,} | {replica.for_job(texts, _NIGHT_S):,} |" for texts in _JOBS]
    lines += [
        "",
        "| single texts a second, half of which repeat | remembered in | answers held | remembered | replicas |",
        "| --- | --- | --- | --- | --- |",
    ]
    for rate in _RATES:
        hits, replicas = answering_alone(replica, rate)
        room = f"{_CACHE.max_bytes // ENTRY_BYTES:,} each"
        lines.append(f"| {rate:,} | each replica's memory | {room} | {hits:.0%} | {replicas:,} |")
        for gigabytes in _REDIS_GB:
            hits, held = Traffic(rate).hit_rate(ttl_s=_CACHE.redis_ttl_s, room=gigabytes * 1e9 / _REDIS_BYTES)
            replicas = replica.for_messages(rate, hits)
            lines.append(
                f"| {rate:,} | a Redis of {gigabytes} GB | {held / 1e6:.1f} million | {hits:.0%} | {replicas:,} |"
            )
    return "\n".join(lines)


def main(
    texts_per_s: Annotated[float | None, typer.Option(help="Single texts of one replica.")] = None,
    batch_texts_per_s: Annotated[float | None, typer.Option(help="Texts of one replica in batches.")] = None,
    remembered_per_s: Annotated[float | None, typer.Option(help="Remembered answers of one replica.")] = None,
    utilisation: Annotated[float, typer.Option(help="The share of that to plan with.", min=0.01, max=1)] = 0.7,
    *,
    write: Annotated[bool, typer.Option("--write", help="Put the tables into docs/capacity.md.")] = False,
) -> None:
    """Print how many replicas a load takes; what is not given is what docs/benchmark.md says."""
    measured = read_replica(BENCHMARK.read_text(encoding="utf-8"))
    tables = render(
        Replica(
            texts_per_s or measured.texts_per_s,
            batch_texts_per_s or measured.batch_texts_per_s,
            remembered_per_s or measured.remembered_per_s,
            utilisation,
        )
    )
    if write:
        page = PAGE.read_text(encoding="utf-8")
        page = re.sub(r"(?<=<!-- capacity -->\n).*(?=\n<!-- /capacity -->)", lambda _: tables, page, flags=re.DOTALL)
        PAGE.write_text(page, encoding="utf-8")
    print(tables)


if __name__ == "__main__":
    typer.run(main)
