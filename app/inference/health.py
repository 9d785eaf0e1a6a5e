"""Whether the model answers, and answers as it should: proven at the start, doubted after a failure.

Knows the golden texts of a bundle; nothing of HTTP.
"""

import asyncio
from collections.abc import Sequence

from app.domain.cleaning import clean
from app.domain.errors import ModelFailure, StartupError, Unavailable
from app.inference.batcher import Batcher, BatchEvent, BatchFinished
from app.inference.bundle import GoldenText
from app.inference.engine import Engine, Probabilities
from app.inference.tokenizer import TokenIds, Tokenizer

TOLERANCE = 0.01  # of a probability; bf16 against the recorded full precision
_PROBE_S = 2.0
_HUNG_S = 10.0  # the largest batch takes a third of a second on two plain cores


class ModelHealth:
    """Watches the batches; after a failed one, only a golden text rightly answered restores trust."""

    def __init__(self, golden: Sequence[GoldenText], tokenizer: Tokenizer, columns: Sequence[str]) -> None:
        self._golden = tuple(golden)
        self._tokens = [text.ids for text in tokenizer.encode([clean(row.text) for row in golden])]
        self._columns = tuple(columns)
        self._doubted = False

    async def prove(self, engine: Engine) -> None:
        """Check every golden text, one by one and all in one batch.

        Raises:
            StartupError: an answer is not as recorded.
        """
        try:
            together = await engine.run(self._tokens)
            alone = [(await engine.run([tokens]))[0] for tokens in self._tokens]
        except ModelFailure as error:
            raise StartupError(f"the model fails on the golden texts: {error}") from error
        for answers in (alone, together):
            for index, answer in enumerate(answers):
                if reason := self._difference(index, answer):
                    raise StartupError(f"the model does not answer as recorded: {reason}")

    def observe(self, event: BatchEvent) -> None:
        """Take note of how a batch ended."""
        if isinstance(event, BatchFinished) and event.error is not None:
            self._doubted = True

    async def reason_not_ready(self, batcher: Batcher[TokenIds, Probabilities]) -> str | None:
        """Return why the model cannot be trusted now, or None. Costs a run of the model only after a failure."""
        if (running_s := batcher.longest_run_s) > _HUNG_S:
            return f"the model has been running one batch for {running_s:.0f} s"
        if not self._doubted:
            return None
        try:
            async with asyncio.timeout(_PROBE_S):
                (future,) = batcher.enqueue(self._tokens[:1])
                reason = self._difference(0, await future)
        except TimeoutError:
            return f"the model did not answer within {_PROBE_S:g} s"
        except ModelFailure as error:
            return f"the model fails: {error}"
        except Unavailable as error:
            return str(error)
        self._doubted = reason is not None
        return reason

    def _difference(self, index: int, answer: Probabilities) -> str | None:
        expected = self._golden[index].probabilities
        worst = max(abs(expected[column] - found) for column, found in zip(self._columns, answer, strict=True))
        if worst <= TOLERANCE:
            return None
        return f"golden text {index} is off by {worst:.3f}, at most {TOLERANCE:g} is allowed"
