"""The metrics of several processes as one: each tells the others its own over a Unix socket, so any can be scraped.

Knows metrics and sockets; nothing of who started the processes.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_ANSWER_S: Final = 2.0  # well within a scrape's own timeout

_Samples: TypeAlias = list[tuple[str, dict[str, str], float]]
_Families: TypeAlias = list[tuple[str, str, str, _Samples]]  # name, help, type


@dataclass(frozen=True, slots=True)
class Siblings:
    """One process among `count`, which are numbered from 0 and have their sockets in `directory`."""

    directory: Path
    number: int
    count: int

    @asynccontextmanager
    async def telling(self, own: Collector) -> AsyncIterator[None]:
        """Tell any sibling that asks what `own` has."""

        async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with closing(writer), suppress(OSError):
                writer.write(json.dumps(_read(own)).encode())
                await writer.drain()

        async with await asyncio.start_unix_server(tell, self.directory / str(self.number)):
            yield

    async def gather(self, own: Collector) -> Collector:
        """Return what all processes have, each sample with the label `process`, and which of them answered."""
        others = [number for number in range(self.count) if number != self.number]
        answers = await asyncio.gather(*map(self._ask, others))
        return _Merged({self.number: _read(own), **dict(zip(others, answers, strict=True))})

    async def _ask(self, number: int) -> _Families | None:
        """Return what a sibling has, or None if it does not answer: it starts, has died or hangs."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(self.directory / str(number))
                with closing(writer):
                    families: _Families = json.loads(await reader.read())
        except (OSError, TimeoutError, ValueError):
            return None
        return families


class _Merged(Collector):
    def __init__(self, by_process: Mapping[int, _Families | None]) -> None:
        self._by_process = sorted(by_process.items())

    def collect(self) -> Iterable[Metric]:
        """Return each family once, with the samples of all processes."""
        up = GaugeMetricFamily("sentiment_process_up", "Whether a process answered this scrape.", labels=["process"])
        merged: dict[str, Metric] = {up.name: up}
        for number, families in self._by_process:
            process = str(number)
            up.add_metric([process], families is not None)
            for name, documentation, kind, samples in families or ():
                metric = merged.setdefault(name, Metric(name, documentation, kind))
                for sample, labels, value in samples:
                    metric.add_sample(sample, {"process": process, **labels}, value)
        return merged.values()


def _read(own: Collector) -> _Families:
    return [
        (metric.name, metric.documentation, metric.type, [(name, labels, value) for name, labels, value, *_ in samples])
        for metric in own.collect()
        if (samples := metric.samples)
    ]
