"""Rate limits in texts: what they are, and who has used how much of them.

Each is a leaky bucket (GCRA): so many texts may come at once, and are regained evenly over its window. All the limits
of a caller are asked and charged together, for all the texts of a request or for none.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor
from typing import Annotated, Final, Protocol, TypeAlias

from cachetools import LRUCache
from pydantic import AfterValidator

_WINDOWS_S: Final = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}
ROUNDING_S: Final = 1e-4  # many small charges may add up to this much more than one of their sum
_MOST_BUCKETS: Final = 65_536  # in memory; a caller whose bucket is dropped begins with a full one


@dataclass(frozen=True, slots=True)
class RateLimit:
    """So many texts in so much time."""

    window: str
    texts: int

    @property
    def window_s(self) -> int:
        """Return the length of the window."""
        return _WINDOWS_S[self.window]

    def remaining(self, backlog_s: float) -> int:
        """Return how many texts may come at once, if it takes `backlog_s` until all of them may."""
        return max(0, floor((self.window_s - backlog_s + ROUNDING_S) * self.texts / self.window_s))


def parse_rate_limits(text: str) -> tuple[RateLimit, ...]:
    """Return the limits that a text like `6000/minute, 1000000/day` names; an empty one names none.

    Raises:
        ValueError: it is not of that form, or has two limits for one window.
    """
    limits = [_parse(part.strip()) for part in text.split(",")] if text.strip() else []
    if len({limit.window for limit in limits}) < len(limits):
        raise ValueError(f"{text!r} has two rate limits for one window")
    return tuple(limits)


def _parse(part: str) -> RateLimit:
    texts, _, window = part.partition("/")
    if window not in _WINDOWS_S or not (texts.isascii() and texts.isdecimal()) or not int(texts):
        raise ValueError(f"{part!r} is no rate limit: write TEXTS/WINDOW, the window one of {', '.join(_WINDOWS_S)}")
    return RateLimit(window, int(texts))


def _checked(text: str) -> str:
    parse_rate_limits(text)
    return text


RateLimits: TypeAlias = Annotated[str, AfterValidator(_checked)]  # as text, in settings and in the file of keys


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a request: admitted and charged, or neither."""

    wait_s: float  # until it would be admitted; 0 if it is
    backlogs_s: Sequence[float]  # for each limit, until all of it may be used again


class Ledger(Protocol):
    """Knows who has used how much."""

    async def take(self, caller: str, limits: Sequence[RateLimit], texts: int) -> Verdict:
        """Charge `caller` for `texts` if each of the limits allows it. Never raises and never waits long."""


class LocalLedger:
    """Of this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full_at: LRUCache[tuple[str, str], float] = LRUCache(_MOST_BUCKETS)

    async def take(self, caller: str, limits: Sequence[RateLimit], texts: int) -> Verdict:
        """Charge `caller` for `texts` if each of the limits allows it."""
        now = self._clock()
        before = [max(self._full_at.get((caller, limit.window), now), now) for limit in limits]
        after = [full + limit.window_s * texts / limit.texts for full, limit in zip(before, limits, strict=True)]
        wait_s = max(full - now - limit.window_s for full, limit in zip(after, limits, strict=True))
        if wait_s > ROUNDING_S:
            return Verdict(wait_s, [full - now for full in before])
        self._full_at.update(zip(((caller, limit.window) for limit in limits), after, strict=True))
        return Verdict(0, [full - now for full in after])
