"""Rate limits shared by all servers through Redis; while it is away, each server limits by itself."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Protocol, Self

import structlog

from app.security.limits import ROUNDING_S, Ledger, RateLimit, Verdict

CONNECTIONS: Final = 8  # and as many requests at Redis at a time
_PAUSE_S: Final = 1.0  # before an absent Redis is asked again, by one request

# `LocalLedger.take` in microseconds of Redis's own clock, which is the same for every server.
_TAKE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local texts, rounding, wait, before, after = ARGV[1], tonumber(ARGV[2]), 0, {}, {}
for i, key in ipairs(KEYS) do
  local allowed, window = ARGV[2 * i + 1], ARGV[2 * i + 2] * 1000000
  before[i] = math.max(tonumber(redis.call('GET', key) or now), now)
  after[i] = before[i] + window * texts / allowed
  wait = math.max(wait, after[i] - now - window)
end
if wait > rounding then
  after = before
else
  wait = 0
  for i, key in ipairs(KEYS) do
    redis.call('SET', key, string.format('%.17g', after[i]), 'PX', math.ceil((after[i] - now) / 1000))
  end
end
local answer = {math.ceil(wait)}
for i in ipairs(KEYS) do answer[i + 1] = after[i] - now end
return answer
"""

_log = structlog.get_logger(__name__)


class Redis(Protocol):
    """What is needed of it; `app.cache.redis_client` has it."""

    async def connect(self) -> None:
        """Find it anew."""

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[float]) -> Sequence[int]:
        """Run a script in one go."""

    async def aclose(self) -> None:
        """Close every connection."""


class SharedLedger:
    """Of all servers that know the same Redis; if it does not answer within `timeout_s`, `fallback` decides.

    `async with` closes the connections.
    """

    def __init__(self, redis: Redis, fallback: Ledger, *, prefix: str, timeout_s: float) -> None:
        self._redis = redis
        self._fallback = fallback
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._places = asyncio.Semaphore(CONNECTIONS)
        self._ask_again_at: float | None = None  # None: Redis is there

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(Exception):
            await self._redis.aclose()

    async def take(self, caller: str, limits: Sequence[RateLimit], texts: int) -> Verdict:
        """Charge `caller` for `texts` if each of the limits allows it."""
        now = asyncio.get_running_loop().time()
        if self._ask_again_at is None or now >= self._ask_again_at:
            try:
                async with asyncio.timeout(self._timeout_s):
                    if self._ask_again_at is not None:
                        self._ask_again_at = now + _PAUSE_S
                        await self._redis.connect()
                    async with self._places:
                        verdict = await self._ask(caller, limits, texts)
            except Exception as error:  # noqa: BLE001 (what the library trips over must stop no request)
                self._go_without(now, error)
            else:
                self._go_on()
                return verdict
        return await self._fallback.take(caller, limits, texts)

    async def _ask(self, caller: str, limits: Sequence[RateLimit], texts: int) -> Verdict:
        # In braces, so that a cluster keeps the limits of a caller in one place.
        keys = [f"{self._prefix}{{{caller}}}:{limit.window}" for limit in limits]
        arguments = [texts, ROUNDING_S * 1e6, *(number for limit in limits for number in (limit.texts, limit.window_s))]
        wait, *backlogs = await self._redis.run(_TAKE, keys, arguments)
        return Verdict(wait / 1e6, [backlog / 1e6 for backlog in backlogs])

    def _go_without(self, now: float, error: Exception) -> None:
        if self._ask_again_at is None:
            _log.warning("rate limits are this process's own while Redis is away", reason=type(error).__name__)
        self._ask_again_at = now + _PAUSE_S

    def _go_on(self) -> None:
        if self._ask_again_at is not None:
            _log.info("rate limits are shared again")
        self._ask_again_at = None
