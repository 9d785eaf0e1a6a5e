"""The door: a key is asked for before a body is read, and texts are charged before they are classified."""

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address
from math import ceil
from typing import Final

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.middleware import ANSWER_HEADERS, KEY
from app.api.problems import PROBLEMS, problem_name
from app.domain.errors import BatchOverLimit, LimitExceeded, NotAuthenticated, NotPermitted, ServiceError
from app.security.gate import Gate
from app.security.keys import Key
from app.security.keys import Scope as KeyScope
from app.security.limits import RateLimit, Verdict
from app.services import Services
from app.telemetry.prometheus import Metrics

_OPEN: Final = ("/docs", "/openapi.json", "/health", "/v2/health/live", "/v2/health/ready")
_OPEN_BELOW: Final = ("/health/", "/static-offline-docs/")
_METRICS: Final = "/metrics"
_ADMIN: Final = "/admin"
_KEY: Final = "key:"
_WITHDRAWN_S: Final = 60.0  # between two looks whether a key is known again


class Authentication:
    """Lets a request through that shows a key with the scope its address asks for.

    What is not known to be open is closed. The key travels in `Authorization: Bearer`, and nowhere else.
    """

    def __init__(self, app: ASGIApp, *, allow_anonymous: bool, open_metrics: bool) -> None:
        self._app = app
        self._allow_anonymous = allow_anonymous
        self._open = (*_OPEN, _METRICS) if open_metrics else _OPEN

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 (ASGI)
        if scope["type"] == "http" and scope["path"] not in self._open and not scope["path"].startswith(_OPEN_BELOW):
            try:
                self._check(scope)
            except ServiceError as error:
                response = await PROBLEMS[ServiceError](Request(scope), error)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        needed = _scope_for(scope["path"])
        gate: Gate | None = scope["state"]["gate"]
        keys = gate.keys if gate is not None else None
        presented = _presented(scope)
        if presented is None or keys is None:
            if self._allow_anonymous and needed == "classify":
                return
            raise NotAuthenticated("Send an API key as Authorization: Bearer KEY.", presented=False)
        key = keys.find(presented)
        if key is None:
            raise NotAuthenticated("This API key is not known.", presented=True)
        if needed not in key.scopes:
            raise NotPermitted(needed)
        scope[KEY] = key


async def admit(request: Request, gate: Gate, texts: int, *, patience_s: float = 0.0) -> None:
    """Charge the caller for `texts`, all or none; the answer will say what is left.

    Raises:
        LimitExceeded: they do not fit now, nor within `patience_s`.
        BatchOverLimit: they never will.
    """
    key: Key | None = request.scope.get(KEY)
    limits = gate.limits_of(key)
    services: Services = request.scope["state"]["services"]
    if limits:
        try:
            await _charge(request, gate, limits, texts, patience_s=patience_s)
        except ServiceError as error:
            services.metrics.observe_unanswered(problem_name(error), texts)
            raise
    services.metrics.observe_admission(key.name if key is not None else None, texts)


def caller_of(scope: Scope) -> str:
    """Return whom to charge for a request, and whose its jobs are: its key, or else its address."""
    key: Key | None = scope.get(KEY)
    return f"{_KEY}{key.name}" if key is not None else f"address:{_address(scope)}"


def most_at_once(gate: Gate | None, key: Key | None) -> int | None:
    """Return how many texts the rate limits ever admit at once, if there are any."""
    limits = gate.limits_of(key) if gate is not None else ()
    return min((limit.texts for limit in limits), default=None)


async def admit_later(gate: Gate | None, metrics: Metrics, caller: str, texts: int) -> float:
    """Charge a caller who is not there for `texts`; return 0, or else after how many seconds to try again."""
    key = None
    if gate is not None:
        if gate.keys is not None and caller.startswith(_KEY):
            key = gate.keys.named(caller.removeprefix(_KEY))
            if key is None:
                return _WITHDRAWN_S
        most = most_at_once(gate, key)
        if most is not None:
            verdict = await gate.ledger.take(caller, gate.limits_of(key), min(texts, most))
            if verdict.wait_s:
                return verdict.wait_s
    metrics.observe_admission(key.name if key is not None else None, texts)
    return 0.0


async def _charge(request: Request, gate: Gate, limits: Sequence[RateLimit], texts: int, *, patience_s: float) -> None:
    least = min(limits, key=lambda limit: limit.texts)
    if texts > least.texts:
        raise BatchOverLimit(
            f"{texts} texts were sent; your rate limit admits at most {least.texts} at once. Send smaller batches."
        )
    caller = caller_of(request.scope)
    verdict = await gate.ledger.take(caller, limits, max(1, texts))
    while 0 < verdict.wait_s <= patience_s:
        await asyncio.sleep(verdict.wait_s)
        patience_s -= verdict.wait_s
        verdict = await gate.ledger.take(caller, limits, max(1, texts))
    request.scope[ANSWER_HEADERS] = _rate_limit_headers(limits, verdict)
    if verdict.wait_s:
        raise LimitExceeded(
            f"{texts} texts are more than your rate limit admits now; nothing was charged for them.",
            retry_after_s=verdict.wait_s,
        )


def _scope_for(path: str) -> KeyScope:
    if path == _METRICS:
        return "metrics"
    return "admin" if path == _ADMIN or path.startswith(f"{_ADMIN}/") else "classify"


def _presented(scope: Scope) -> bytes | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            return key.strip() if scheme.lower() == b"bearer" else b""
    return None


def _address(scope: Scope) -> str:
    """Return whom to charge for a request without a key: who has one address of IPv6 has 2^64 of them."""
    client = scope.get("client")
    try:
        address = ip_address(client[0] if client else "")
    except ValueError:  # a socket of Unix, or what a proxy made up
        return "unknown"
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or IPv6Network((address, 64), strict=False))
    return str(address)


def _rate_limit_headers(limits: Sequence[RateLimit], verdict: Verdict) -> list[tuple[bytes, bytes]]:
    """Return the fields of draft-ietf-httpapi-ratelimit-headers-11."""
    left = ", ".join(
        f'"{limit.window}";r={limit.remaining(backlog_s)};t={ceil(min(backlog_s, verdict.wait_s or backlog_s))}'
        for limit, backlog_s in zip(limits, verdict.backlogs_s, strict=True)
    )
    return [(b"ratelimit-policy", _policy(tuple(limits))), (b"ratelimit", left.encode())]


@lru_cache
def _policy(limits: tuple[RateLimit, ...]) -> bytes:
    return ", ".join(f'"{limit.window}";q={limit.texts};qu="texts";w={limit.window_s}' for limit in limits).encode()
