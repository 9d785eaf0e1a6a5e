"""The way of a text: checked, cleaned, looked up, tokenised, batched, remembered.

Knows the order of the steps; nothing of HTTP, Redis or ONNX.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Protocol, TypeVar

from app.domain.errors import DeadlineExceeded, InvalidText, ModelFailure, ServiceError
from app.domain.intake import TextLimits, accept
from app.domain.labels import Heads
from app.domain.sentiment import Sentiment
from app.inference.batcher import Batcher, Lane
from app.inference.engine import Probabilities
from app.inference.single_flight import SingleFlight
from app.inference.timeline import Timeline
from app.inference.tokenizer import TokenIds, TokenizedText, Tokenizer

# Cleaning or tokenising more than this (about 1 ms of work) leaves the event loop for a thread.
_CHARACTERS_ON_THE_LOOP = 2_000

_Text = TypeVar("_Text")
_Done = TypeVar("_Done")


class CacheUse(Enum):
    """What a caller lets the cache do with its texts."""

    FULL = "full"
    RENEW = "renew"  # answers are computed, and then remembered
    NONE = "none"


class SentimentCache(Protocol):
    """Remembers answers. No method ever raises: an outage is a miss. Only `get_many` may wait."""

    @property
    def deeper(self) -> bool:
        """Whether `get_many` may know what `recall` does not."""
        ...

    def recall(self, key: bytes) -> Sentiment | None:
        """Return what is remembered of `key` at hand."""
        ...

    async def get_many(self, keys: Sequence[bytes]) -> Mapping[bytes, Sentiment]:
        """Return what is remembered of `keys`."""
        ...

    def put_many(self, found: Mapping[bytes, Sentiment]) -> None:
        """Remember `found`."""
        ...


@dataclass(frozen=True, slots=True)
class Classified:
    """The answer to one text, and whether it was remembered rather than computed."""

    sentiment: Sentiment
    cached: bool


class Classifier:
    """Classifies texts with one model. Identical texts in flight are computed once.

    Answers are certain from a confidence of `threshold` on.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        batcher: Batcher[TokenIds, Probabilities],
        cache: SentimentCache,
        heads: Heads,
        threshold: float,
        limits: TextLimits,
        fingerprint: str,
    ) -> None:
        self._tokenizer = tokenizer
        self._batcher = batcher
        self._cache = cache
        self._heads = heads
        self._threshold = threshold
        self._limits = limits
        self._key = bytes.fromhex(fingerprint)
        self._flights: SingleFlight[bytes, Probabilities] = SingleFlight()

    async def classify(self, text: str, *, timeout_s: float, cache_use: CacheUse = CacheUse.FULL) -> Classified:
        """Return the answer to `text`.

        Raises:
            ServiceError: the text is invalid, or the service cannot answer.
        """
        (outcome,) = await self.classify_many([text], timeout_s=timeout_s, lane=Lane.INTERACTIVE, cache_use=cache_use)
        if isinstance(outcome, ServiceError):
            raise outcome
        return outcome

    def recall(self, text: object, lane: Lane, *, within_s: float, timeline: Timeline) -> Classified | None:
        """Return the answer to `text` if it is remembered at hand: the short way past all that waits.

        Raises:
            Unavailable: it is not, and `text` would be refused. Under overload this has to cost little.
        """
        if not isinstance(text, str) or len(text) > _CHARACTERS_ON_THE_LOOP:
            return None
        try:
            cleaned = accept(text, self._limits)
        except InvalidText:
            return None  # the long way tells why
        begun_s = time.monotonic()
        key = self._digest(cleaned)
        sentiment = self._cache.recall(key)
        if sentiment is None:
            if not self._cache.deeper:
                self._batcher.admit(key not in self._flights, lane, within_s=within_s)
            return None
        timeline.cache = begun_s, time.monotonic()
        return Classified(sentiment, cached=True)

    async def classify_many(
        self,
        texts: Sequence[object],
        *,
        timeout_s: float | None,
        lane: Lane = Lane.BULK,
        cache_use: CacheUse = CacheUse.FULL,
        timeline: Timeline | None = None,
        patient: bool = False,
    ) -> list[Classified | ServiceError]:
        """Return, in order, an answer for each of `texts` or the error that concerns it alone.

        `timeout_s` None waits for as long as it takes; `timeline` takes note of where the time goes. With `patient`,
        texts wait for room instead of being refused.

        Raises:
            Unavailable: `texts` were refused, or not all answered in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                cleaned = await _off_loop_if_long(texts, self._accept_all)
                keys = {self._digest(text): text for text in cleaned if isinstance(text, str)}
                found = await self._find(keys, lane, timeout_s, cache_use, timeline or Timeline(), patient=patient)
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {timeout_s:g} s") from None
        return [found[self._digest(text)] if isinstance(text, str) else text for text in cleaned]

    def _accept_all(self, texts: Sequence[object]) -> list[str | InvalidText]:
        return [self._accept(text) for text in texts]

    def _accept(self, text: object) -> str | InvalidText:
        if not isinstance(text, str):
            return InvalidText("The text is not a string.")
        try:
            return accept(text, self._limits)
        except InvalidText as error:
            return error

    def _digest(self, text: str) -> bytes:
        """Return the key of `text` under this very bundle (128 bits)."""
        return hashlib.blake2b(text.encode(), key=self._key, digest_size=16).digest()

    async def _find(
        self,
        texts: Mapping[bytes, str],
        lane: Lane,
        within_s: float | None,
        cache_use: CacheUse,
        timeline: Timeline,
        *,
        patient: bool,
    ) -> dict[bytes, Classified | ServiceError]:
        remembered: Mapping[bytes, Sentiment] = {}
        if cache_use is CacheUse.FULL:
            begun_s = time.monotonic()
            remembered = await self._cache.get_many(list(texts))
            timeline.cache = begun_s, time.monotonic()
        found: dict[bytes, Classified | ServiceError] = {
            key: Classified(sentiment, cached=True) for key, sentiment in remembered.items()
        }
        missing = [key for key in texts if key not in remembered]
        if not missing:
            return found
        # Refusing must cost little, or an overload feeds on itself: before the tokens are made.
        if not patient:
            self._batcher.admit(sum(key not in self._flights for key in missing), lane, within_s=within_s)
        begun_s = time.monotonic()
        tokenized = await _off_loop_if_long([texts[key] for key in missing], self._tokenizer.encode)
        timeline.tokenise = begun_s, time.monotonic()
        if patient:
            await self._batcher.until_room([text.ids for text in tokenized], lane)
        computed: dict[bytes, Sentiment] = {}

        def start(indexes: Sequence[int]) -> list[asyncio.Future[Probabilities]]:
            futures = self._batcher.enqueue(
                [tokenized[index].ids for index in indexes], lane, within_s=within_s, ran=timeline.add
            )
            for index, future in zip(indexes, futures, strict=True):
                future.add_done_callback(partial(self._note, computed, missing[index], tokenized[index]))
            return futures

        try:
            outcomes = await self._flights.get_many(
                missing, start, self._batcher.hurry if lane is Lane.INTERACTIVE else lambda _: None
            )
        finally:
            # Also what came in time for a request that did not end in time.
            if cache_use is not CacheUse.NONE:
                self._cache.put_many(computed)
        for key, text, outcome in zip(missing, tokenized, outcomes, strict=True):
            if isinstance(outcome, tuple):
                found[key] = Classified(computed.get(key) or self._sentiment(text, outcome), cached=False)
            else:
                found[key] = outcome if isinstance(outcome, ServiceError) else ModelFailure(str(outcome))
        return found

    def _note(
        self, computed: dict[bytes, Sentiment], key: bytes, text: TokenizedText, future: asyncio.Future[Probabilities]
    ) -> None:
        if not future.cancelled() and future.exception() is None:
            computed[key] = self._sentiment(text, future.result())

    def _sentiment(self, text: TokenizedText, probabilities: Probabilities) -> Sentiment:
        polarity, emotions = self._heads.name(probabilities)
        return Sentiment(polarity, text.truncated, max(polarity.values()) >= self._threshold, emotions)


async def _off_loop_if_long(texts: Sequence[_Text], work: Callable[[Sequence[_Text]], list[_Done]]) -> list[_Done]:
    """Return `work(texts)`, done in a thread where it would hold the event loop for long."""
    if sum(len(text) for text in texts if isinstance(text, str)) <= _CHARACTERS_ON_THE_LOOP:
        return work(texts)
    return await asyncio.to_thread(work, texts)
