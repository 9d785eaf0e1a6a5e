"""A bundle as the service runs it, for whole files of texts: to evaluate it, calibrate it, or learn from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from app.inference.bundle import Bundle, open_bundle
from app.inference.engine import Engine
from app.inference.processor import usable_threads
from app.inference.session import Gpu, Placement, Precision, Provider, open_model
from app.inference.tokenizer import TokenIds, Tokenizer

_BATCH_TOKENS = 2_048


@dataclass(frozen=True, slots=True)
class Served:
    """An opened bundle with its tokenizer and engine."""

    bundle: Bundle
    tokenizer: Tokenizer
    engine: Engine
    placement: Placement

    def answer(self, texts: Sequence[str], *, title: str) -> NDArray[np.float64]:
        """Return the probabilities (N, columns) of cleaned `texts`."""
        return self.answer_tokens([text.ids for text in self.tokenizer.encode(texts)], title=title)

    def answer_tokens(self, ids: Sequence[TokenIds], *, title: str) -> NDArray[np.float64]:
        """Return the probabilities (N, columns) in the order of `ids`, computed in batches of similar lengths."""
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        batches: list[list[int]] = [[]]
        for index in order:
            if batches[-1] and len(ids[index]) * (len(batches[-1]) + 1) > _BATCH_TOKENS:
                batches.append([])
            batches[-1].append(index)
        answers: dict[int, tuple[float, ...]] = {}
        for batch in track(batches, description=title, console=Console(stderr=True)):
            answers.update(zip(batch, self.engine.run_now([ids[index] for index in batch]), strict=True))
        return np.array([answers[index] for index in range(len(ids))])


def open_served(
    directory: Path,
    *,
    provider: Provider | Literal["auto"] = "auto",
    precision: Precision | Literal["auto"] = "auto",
    max_tokens: int | None = None,
    head_tokens: int | None = None,
    streams: int = 1,
    gpu: Gpu | None = None,
) -> Served:
    """Return the bundle in `directory`, opened as the service would, in another window if one is named.

    `streams` runs may go on at once.

    Raises:
        StartupError: the bundle or the provider is not usable.
    """
    bundle = open_bundle(directory)
    manifest = bundle.manifest
    window = max_tokens or manifest.max_tokens
    model = open_model(
        bundle.model_file,
        provider=provider,
        precision=precision,
        threads=usable_threads(),
        streams=streams,
        gpu=gpu or Gpu(half=bundle.half_file, columns=window),
    )
    return Served(
        bundle,
        Tokenizer(bundle.tokenizer_file, max_tokens=window, head_tokens=head_tokens or manifest.head_tokens),
        Engine(model, pad_id=manifest.pad_id, heads=manifest.heads.sizes, longest=window),
        model.placement,
    )
