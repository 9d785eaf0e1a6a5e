"""One connection: uvicorn's, with the bounds that it lacks.

uvicorn waits for ever for a head, a body or a reader, takes a head of any size, tells in plain text what is wrong, and
makes much of a request that is going to be refused. `DrainingServer` looks at each connection twice a second, so that
no request sets a timer.
"""

import secrets
import sys
from asyncio import AbstractEventLoop, BaseTransport
from dataclasses import dataclass
from typing import Any, Final, cast

import httptools
import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from app.api.middleware import ACCEPTABLE_ID, BODY_OVERDUE, REQUEST_ID_HEADER, SAFETY_HEADERS, STREAM_IDLE_S
from app.api.problems import ProblemResponse, connection_problem, service_problem
from app.api.routes import sentiment
from app.domain.errors import Overloaded
from app.services import Services

_MOST_HEADERS: Final = 100
_MOST_HEAD_BYTES: Final = 32_768
_FRAMING: Final = 6  # bytes of a chunk that carries one

_NOT_HTTP: Final = 400
_HEAD_TOO_LARGE: Final = 431
_TOO_MANY_CONNECTIONS: Final = 503

_SINGLE: Final = sentiment.router.url_path_for("classify")
_SINGLE_URL: Final = _SINGLE.encode()

_REQUEST_ID: Final = REQUEST_ID_HEADER.lower().encode()

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a connection may ask of the server."""

    receive_timeout_s: float  # for a head, for a body, and for an answer to be read
    max_connections: int | None


class _Refused(Exception):
    """Keeps the parser from going on."""


class BoundedConnection(HttpToolsProtocol):
    """Closes slow connections, refuses large heads, and refuses itself if there are too many."""

    def __init__(
        self,
        bounds: Bounds,
        *,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._bounds = bounds
        self._waiting_since: float | None = self.loop.time()  # for what the client is to send; None: for nothing
        self._fed = 0  # bytes of this request, of its body, and whether that has begun
        self._body = 0
        self._in_body = False
        self._shed = False  # this request was answered before its body
        self._unread_since: float | None = None  # since when the client has read too little of its answers
        self._refusal = _NOT_HTTP
        self._received = self._unread = b""  # what the parser was fed, and what a new one is to read

    def connection_made(self, transport: BaseTransport) -> None:
        """Begin, or refuse to."""
        super().connection_made(transport)  # type: ignore[arg-type]  # asyncio gives a protocol what it asked for
        if self._bounds.max_connections is not None and len(self.connections) > self._bounds.max_connections:
            self._refuse(_TOO_MANY_CONNECTIONS, {"Retry-After": "1"})

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and no more than a request may need beside its body."""
        if self._waiting_since is None:
            self._waiting_since = self.loop.time()
        self._fed += len(data)
        self._unread = data
        while self._unread and not self.transport.is_closing():
            self._received, self._unread = self._unread, b""
            super().data_received(self._received)
        # Else one header, or trailers after the last chunk, might have no end.
        if self._waiting_since is not None and self._fed - self._body > _MOST_HEAD_BYTES + _FRAMING * self._body:
            self._refuse(_HEAD_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """Go on to the body, if the head is not too large."""
        if len(self.headers) > _MOST_HEADERS or (
            self._fed > _MOST_HEAD_BYTES and self._head_bytes() > _MOST_HEAD_BYTES
        ):
            self._refusal = _HEAD_TOO_LARGE
            raise _Refused
        if self._declines_upgrade():
            return
        if self.url == _SINGLE_URL and (overloaded := self._why_not_read()) is not None:
            self._shed = True
            self._answer_unread(overloaded)
            return
        self._waiting_since = self.loop.time()
        super().on_headers_complete()  # which refuses an address that is none
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        """Count what is no head."""
        self._body += len(body)
        if not self._shed:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for nothing."""
        if self._declines_upgrade():
            return
        self._waiting_since = None
        self._fed = self._body = 0
        self._in_body = False
        if self._shed:
            self._shed = False
            self.on_response_complete()
        else:
            super().on_message_complete()

    def _declines_upgrade(self) -> bool:
        # The parser takes CONNECT for an upgrade, too.
        offered = self.parser.should_upgrade() and any(name == b"upgrade" for name, _ in self.headers)
        return offered and not self._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        """Have the request read anew without the offer to upgrade, which a server may ignore (RFC 9110, 7.8).

        The parser takes what follows the head for another protocol's, and Java's client offers HTTP/2 with each body.
        """
        if not self._declines_upgrade():
            return
        (offset,) = cast("httptools.HttpParserUpgrade", sys.exception()).args
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self._unread = b"\r\n".join([*lines, b"", self._received[offset:]])
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's

    def resume_writing(self) -> None:
        """Take note that the client reads."""
        super().resume_writing()
        self._unread_since = None

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 (uvicorn's words)
        """Answer what the parser takes for no HTTP, or what was refused in the middle of it."""
        self._refuse(self._refusal)

    def close_if_slow(self, now: float) -> None:
        """Close, if the client takes too long to send what it began, or to read its answer."""
        idle_s = cast("float | None", self.cycle.scope.get(STREAM_IDLE_S) if self._answering else None)
        timeout_s = idle_s or self._bounds.receive_timeout_s
        if idle_s and self._in_body:
            self._waiting_since = now  # the application knows whether it moves
        if self._waiting_since is not None and now - self._waiting_since > timeout_s:
            self._stop_waiting(now)
        if not self.transport.get_write_buffer_size():
            self._unread_since = None
        elif self._unread_since is None:
            self._unread_since = now
        elif now - self._unread_since > timeout_s:
            _log.info("closed a connection", reason="the answer was not read")
            self.transport.abort()

    def _stop_waiting(self, now: float) -> None:
        if not self._in_body and self._answering:
            self._waiting_since = now  # it is our turn, whatever the client has begun to send meanwhile
            return
        if self._in_body and not self.cycle.response_started and BODY_OVERDUE not in self.cycle.scope:
            # The application answers, and has as long to do so as the client had.
            self._waiting_since = now
            self.cycle.scope[BODY_OVERDUE] = True  # type: ignore[typeddict-unknown-key]  # a key of our own
            self.cycle.message_event.set()
            return
        if self._fed:
            _log.info("closed a connection", reason="the request was not sent")
        self._waiting_since = None
        self.transport.close()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _why_not_read(self) -> Overloaded | None:
        """Return why the request that has begun is refused unread. Some need care that only the usual way takes."""
        if (
            self._answering
            or self.pipeline
            or self.expect_100_continue
            or not self.parser.should_keep_alive()
            or self.parser.get_method() != b"POST"
            or cast("FastAPI", self.config.app).state.draining
        ):
            return None
        return self._services.shedder.refusal()

    def _answer_unread(self, error: Overloaded) -> None:
        named = next((value.decode("latin-1") for name, value in self.headers if name == _REQUEST_ID), "")
        request_id = named if ACCEPTABLE_ID.fullmatch(named) else secrets.token_hex(16)
        response = service_problem(error, request_id)
        response.headers[REQUEST_ID_HEADER] = request_id
        self._services.metrics.observe_unanswered(response.name, 1)
        self._write(response, "POST", _SINGLE)

    def _refuse(self, status: int, headers: dict[str, str] | None = None) -> None:
        """Tell the client why, and close."""
        if self.transport.is_closing():
            return
        self._waiting_since = None
        if self._shed or self.pipeline or (self.cycle.response_started if self._in_body else self._answering):
            self.transport.close()  # two answers would be read as one
            return
        if self._in_body:  # the application is waiting for the rest
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        request_id = secrets.token_hex(16)
        response = connection_problem(
            status, request_id, {REQUEST_ID_HEADER: request_id, "Connection": "close", **(headers or {})}
        )
        self._write(response, "other", "unmatched")
        self.transport.close()

    def _write(self, response: ProblemResponse, method: str, route: str) -> None:
        status = response.status_code
        self._services.metrics.observe_request(method, route, status, 0, problem=response.name)
        lines = [*self.server_state.default_headers, *response.raw_headers, *SAFETY_HEADERS]
        head = b"".join(b"%b: %b\r\n" % line for line in lines)
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[status], head, bytes(response.body)))

    @property
    def _services(self) -> Services:
        services: Services = self.app_state["services"]
        return services
