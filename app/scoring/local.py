"""Answers from a model in this process, through the same services that answer requests."""

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Final

from app.api.schemas import ModelName, answer_member
from app.services import Services
from app.settings import Settings
from app.wiring import open_services

_IN_WORK: Final = 16  # chunks: the model finds texts of equal length among them, and never runs dry
# By default: nobody waits for one text here, and between large batches the model idles less.
_BATCH_TOKENS: Final = 2_048
_SWITCH_INTERVAL_S: Final = 0.0005  # a model's thread that has its batch waits for the event loop no longer


class LocalScorer:
    """Answers with the model of `services`."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.model = services.models.active.name

    async def answers(self, chunks: AsyncIterator[Sequence[object]]) -> AsyncGenerator[list[bytes], None]:
        """Yield the answers to each chunk of texts, in order."""
        in_work: deque[asyncio.Task[list[bytes]]] = deque()
        reading: asyncio.Task[Sequence[object]] | None = asyncio.create_task(_next(chunks))
        try:
            while reading is not None or in_work:
                has_room = len(in_work) < _IN_WORK
                waits = [*([reading] if reading is not None and has_room else []), *islice(in_work, 1)]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if reading is not None and reading.done() and has_room:
                    if chunk := reading.result():
                        in_work.append(asyncio.create_task(self._answer(chunk)))
                    reading = asyncio.create_task(_next(chunks)) if chunk else None
                while in_work and in_work[0].done():
                    yield in_work.popleft().result()
        finally:
            tasks = [*in_work, *([reading] if reading is not None else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, texts: Sequence[object]) -> list[bytes]:
        with self._services.models.lease(texts[0]) as lease:
            outcomes = await lease.model.classifier.classify_many(texts, timeout_s=None, patient=True)
            model = ModelName.of(lease.model.manifest)
        return [b"{%b}" % answer_member(outcome, model) for outcome in outcomes]


@asynccontextmanager
async def local_scorer(settings: Settings) -> AsyncIterator[LocalScorer]:
    """Open the model that `settings` name.

    Raises:
        StartupError: it cannot be served.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    if "max_tokens" not in settings.batching.model_fields_set:
        settings = settings.replace("batching", {"max_tokens": _BATCH_TOKENS})
    async with open_services(settings) as services:
        yield LocalScorer(services)


async def _next(chunks: AsyncIterator[Sequence[object]]) -> Sequence[object]:
    return await anext(chunks, [])
