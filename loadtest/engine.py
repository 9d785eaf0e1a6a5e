"""The engine without a server: what any server of this model on this machine could reach at best."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean, median
from typing import Final

from app.inference.tokenizer import TokenIds
from app.settings import Settings
from app.training.serving import open_served

_ROWS: Final = 32
_REPEATS: Final = 15
_LENGTHS: Final = (8, 16, 32, 48, 64, 96, 128, 192, 256)


class BareEngine:
    """The default bundle as the service opens it, with `streams` runs at a time."""

    def __init__(self, *, streams: int) -> None:
        settings = Settings().model
        served = open_served(settings.path, provider=settings.provider, precision=settings.precision, streams=streams)
        self._streams = streams
        self._tokenizer = served.tokenizer
        self._engine = served.engine

    def sorted_batches_per_s(self, texts: Sequence[str]) -> float:
        """Return texts/s in batches of 32 of similar lengths, tokens made beforehand."""
        ids = sorted((text.ids for text in self._tokenizer.encode(texts)), key=len)
        batches = [ids[start : start + _ROWS] for start in range(0, len(ids), _ROWS)]
        with ThreadPoolExecutor(self._streams) as threads:
            started = time.perf_counter()
            list(threads.map(self._engine.run_now, batches))
            return len(ids) / (time.perf_counter() - started)

    def alone_ms(self, texts: Sequence[str]) -> float:
        """Return the mean time of one text at a time: tokens and run."""
        spent = []
        for text in texts:
            started = time.perf_counter()
            self._engine.run_now([text.ids for text in self._tokenizer.encode([text])])
            spent.append(time.perf_counter() - started)
        return fmean(spent) * 1e3

    def ms_by_tokens(self, rows: int) -> dict[int, float]:
        """Return the time of a text in batches of `rows`, by its tokens."""
        found = {}
        for tokens in _LENGTHS:
            batch: list[TokenIds] = [(5,) * tokens] * rows
            runs = []
            for _ in range(_REPEATS):
                started = time.perf_counter()
                self._engine.run_now(batch)
                runs.append(time.perf_counter() - started)
            found[tokens] = median(runs) / rows * 1e3
        return found
