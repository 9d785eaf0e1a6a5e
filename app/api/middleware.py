"""Around every request: its id, log line, metrics and timing, the limit of its body, an answer to unforeseen errors."""

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Final, Protocol, TypeAlias

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.dialects import Translate, translating
from app.api.problems import internal_problem
from app.inference.timeline import Timeline
from app.services import Services

REQUEST_ID_HEADER: Final = "X-Request-ID"
_REQUEST_ID: Final = REQUEST_ID_HEADER.lower().encode()
# Answers tell of what people wrote: no cache between here and the client keeps them.
SAFETY_HEADERS: Final = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
BODY_OVERDUE: Final = "body_overdue"  # in the scope of a request whose body takes too long, as the connection knows
STREAM_IDLE_S: Final = "stream_idle_s"  # in the scope of a request that may last for ever: how long it may stand still
KEY: Final = "key"  # in the scope of a request with an API key: what is known of it
ANSWER_HEADERS: Final = "answer_headers"  # in the scope: what the answer is to carry, whatever it will be
TIMELINE: Final = "timeline"  # in the scope of a request that the classifier works for
_UNTRACED: Final = ("/metrics", "/health", "/v2/health")  # asked every few seconds
ACCEPTABLE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")

_log = structlog.get_logger("app.requests")


class RequestTrace(Protocol):
    """What the tracer tells of a request's trace, and wants to hear of the request."""

    trace_id: str

    @property
    def exemplar(self) -> dict[str, str] | None:
        """What leads from a metric to this trace, if it is kept."""
        ...

    def end(self, *, method: str, route: str, status: int, problem: str | None, timeline: Timeline | None) -> None:
        """End the request's span."""
        ...


BeginTrace: TypeAlias = Callable[[Mapping[str, str]], RequestTrace]


class RequestContext:
    """Pure ASGI, because it stands in the way of every request.

    A client's request id is kept when it is a plain token, so that it cannot forge log lines, and replaced otherwise.
    A problem at an address whose first part is in `dialects` is told as the protocol there tells it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        log_requests: bool,
        dialects: Mapping[str, Translate],
        begin_trace: BeginTrace | None = None,
    ) -> None:
        self._app = app
        self._log_requests = log_requests
        self._dialects = dialects
        self._begin_trace = begin_trace
        self._prefix = secrets.token_hex(8)  # of this process; one system call a request costs more than all else here
        self._numbers = count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 (ASGI)
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = headers.get(REQUEST_ID_HEADER) or ""
        if not ACCEPTABLE_ID.fullmatch(request_id):
            request_id = f"{self._prefix}{next(self._numbers):016x}"
        scope["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].extend(_own_headers(scope, request_id))
                if scope["app"].state.draining:
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        translate = self._dialects.get(scope["path"].lstrip("/").partition("/")[0])
        answer = send_with_id if translate is None else translating(send_with_id, translate)
        structlog.contextvars.bind_contextvars(request_id=request_id)  # each request has a context of its own
        trace = None
        if self._begin_trace is not None and not scope["path"].startswith(_UNTRACED):
            trace = self._begin_trace(headers)
            structlog.contextvars.bind_contextvars(trace_id=trace.trace_id)
        try:
            await self._app(scope, receive, answer)
        except Exception:
            _log.exception("request failed")
            if status:
                raise  # the answer has begun: only cutting it off tells the client
            await internal_problem(request_id)(scope, receive, answer)
        finally:
            self._report(scope, status, time.perf_counter() - started, trace)

    def _report(self, scope: Scope, status: int, duration_s: float, trace: RequestTrace | None) -> None:
        # The template of the route: raw paths would make endless labels, and may hold what a client typed.
        route = getattr(scope.get("route"), "path", "unmatched")
        services: Services | None = scope.get("state", {}).get("services")
        problem = scope.get("problem")
        if services is not None:
            services.metrics.observe_request(
                scope["method"],
                route,
                status,
                duration_s,
                problem=problem,
                exemplar=None if trace is None else trace.exemplar,
            )
        if self._log_requests:
            caller = {"key": scope[KEY].name} if KEY in scope else {}
            ms = round(duration_s * 1e3, 1)
            _log.info("request", method=scope["method"], route=route, status=status, ms=ms, **caller)
        if trace is not None:
            trace.end(method=scope["method"], route=route, status=status, problem=problem, timeline=scope.get(TIMELINE))


def _own_headers(scope: Scope, request_id: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield what every answer carries."""
    yield _REQUEST_ID, request_id.encode()
    yield from SAFETY_HEADERS
    yield from scope.get(ANSWER_HEADERS, ())
    timeline: Timeline | None = scope.get(TIMELINE)
    if timeline is not None and (timing := timeline.server_timing()):
        yield b"server-timing", timing.encode()


class BodyLimit:
    """Refuses a body over `max_bytes`: by its announced length before any of it is read, else when it gets there.

    Ends a request, too, whose body does not come to its end: overdue, or because the client left. What is sent to one
    of the paths in `unless` has bounds of its own.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, unless: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._unless = unless

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 (ASGI)
        if scope["type"] != "http" or scope["path"] in self._unless:
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        too_long = announced.isdecimal() and int(announced) > self._max_bytes
        received = 0
        complete = False

        async def receive_limited() -> Message:
            nonlocal received, complete
            if too_long:
                raise self._refusal
            message = await receive()
            if complete:
                return message
            if BODY_OVERDUE in scope and message.get("more_body", False):
                raise HTTPException(408, headers={"Connection": "close"})
            if message["type"] == "http.disconnect":
                raise HTTPException(499)
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._refusal
            complete = not message.get("more_body", False)
            return message

        await self._app(scope, receive_limited, send)

    @property
    def _refusal(self) -> HTTPException:
        # Without Connection: close: a reset while the client still sends would keep it from reading why.
        return HTTPException(413, f"The body is longer than the {self._max_bytes} bytes that are accepted.")
