"""The engine without a server: what any server of this model on this machine could reach at best."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean, median
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.inference.bundle import open_bundle
from app.inference.tokenizer import TokenIds
from app.settings import Settings
from app.training.serving import open_served
from app.wiring import gpu_of

_ROWS: Final = 32
_REPEATS: Final = 15
_LENGTHS: Final = (8, 16, 32, 48, 64, 96, 128, 192, 256)


class BareEngine:
    """The bundle of the settings as the service opens it, with `streams` runs at a time."""

    def __init__(self, *, streams: int) -> None:
        settings = Settings()
        self._served = open_served(
            settings.model.path,
            provider=settings.model.provider,
            precision=settings.model.precision,
            streams=streams,
            gpu=gpu_of(settings, open_bundle(settings.model.path)),
        )
        self._streams = streams
        self._tokenizer = self._served.tokenizer
        self._engine = self._served.engine

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the probabilities (N, columns) of `texts`."""
        return self._served.answer(texts, title="answers")

    def sorted_batches_per_s(self, texts: Sequence[str], *, rows: int = _ROWS) -> float:
        """Return texts/s in batches of `rows` of similar lengths, tokens made beforehand."""
        ids = sorted((text.ids for text in self._tokenizer.encode(texts)), key=len)
        batches = [ids[start : start + rows] for start in range(0, len(ids), rows)]
        with ThreadPoolExecutor(self._streams) as threads:
            started = time.perf_counter()
            list(threads.map(self._engine.run_now, batches))
            return len(ids) / (time.perf_counter() - started)

    def alone_ms(self, texts: Sequence[str]) -> float:
        """Return the mean time of one text at a time: tokens and run."""
        return fmean(self._alone_ms(texts))

    def alone_p50_ms(self, texts: Sequence[str]) -> float:
        """Return the median of the same."""
        return median(self._alone_ms(texts))

    def _alone_ms(self, texts: Sequence[str]) -> list[float]:
        spent = []
        for text in texts:
            started = time.perf_counter()
            self._engine.run_now([text.ids for text in self._tokenizer.encode([text])])
            spent.append((time.perf_counter() - started) * 1e3)
        return spent

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
