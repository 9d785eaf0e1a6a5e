"""Errors as RFC 9457 problem details: the one place where the service's errors become HTTP."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from math import ceil
from typing import Any, Final
from urllib.parse import quote

import structlog
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from app.domain.errors import (
    BatchOverLimit,
    BrokenGzip,
    BundleRefused,
    ChangeUnderWay,
    DeadlineExceeded,
    EmptyText,
    InvalidHeader,
    InvalidLine,
    InvalidText,
    JobsFull,
    JobsOff,
    JobsUnavailable,
    JobTooLarge,
    LimitExceeded,
    LineNotJson,
    LineTooLong,
    ModelFailure,
    NotAuthenticated,
    NotNdjson,
    NotPermitted,
    Overloaded,
    ServiceError,
    ShuttingDown,
    SourceRefused,
    SourceUnreadable,
    TextTooLong,
    TooManyJobs,
    UnknownJob,
    UnknownModel,
)

MEDIA_TYPE: Final = "application/problem+json"
_TYPE: Final = "urn:sentiment:problem:"
_FRAGMENT: Final = "!$&'()*+,;=:@?"  # what RFC 3986 lets stand in a URI's fragment, beside letters and digits
_NOT_JSON: Final = "not-json"
_INVALID_REQUEST: Final = "invalid-request"
_CHALLENGE: Final = 'Bearer realm="sentiment"'

_log = structlog.get_logger(__name__)


class InvalidPart(BaseModel):
    """A part of the request that is wrong."""

    pointer: str = Field(description="JSON pointer (RFC 6901) into the body, as a URI fragment", examples=["#/text"])
    detail: str = Field(examples=["Field required"])


class ItemProblem(BaseModel):
    """Why one text of a batch has no answer."""

    type: str = Field(description="Names the kind of error for programs", examples=[f"{_TYPE}empty-text"])
    title: str = Field(examples=["Empty text"])
    detail: str = Field(examples=["The text is empty or blank."])


class Problem(ItemProblem):
    """Why a request failed (RFC 9457)."""

    status: int = Field(examples=[422])
    errors: list[InvalidPart] | None = Field(default=None, description="Every part of the body that is wrong")
    request_id: str | None = Field(default=None, description="As in the header X-Request-ID and in the log")


@dataclass(frozen=True, slots=True)
class _Kind:
    status: int
    name: str
    title: str
    detail: str | None = None  # said instead of the error's own message, which is for the log


# The nearest class in an error's ancestry counts.
_KINDS: Final[dict[type[ServiceError], _Kind]] = {
    EmptyText: _Kind(422, "empty-text", "Empty text"),
    TextTooLong: _Kind(422, "text-too-long", "Text too long"),
    InvalidText: _Kind(422, "invalid-text", "Invalid text"),
    InvalidHeader: _Kind(400, "invalid-header", "Invalid header"),
    InvalidLine: _Kind(422, "invalid-line", "Invalid line"),
    LineNotJson: _Kind(400, _NOT_JSON, "Not JSON"),
    LineTooLong: _Kind(413, "line-too-long", "Line too long"),
    NotNdjson: _Kind(415, "not-ndjson", "Unsupported media type"),
    BrokenGzip: _Kind(400, "broken-gzip", "Broken gzip"),
    BundleRefused: _Kind(422, "bundle-refused", "Bundle refused"),
    ChangeUnderWay: _Kind(409, "change-under-way", "Change under way"),
    UnknownModel: _Kind(404, "unknown-model", "Unknown model"),
    NotAuthenticated: _Kind(401, "not-authenticated", "Not authenticated"),
    NotPermitted: _Kind(403, "not-permitted", "Not permitted"),
    LimitExceeded: _Kind(429, "limit-exceeded", "Rate limit exceeded"),
    BatchOverLimit: _Kind(413, "batch-over-limit", "Batch over the rate limit"),
    JobsOff: _Kind(
        404, "jobs-off", "No batch jobs here", "This service keeps no jobs; SENTIMENT_JOBS__URL has it do so."
    ),
    UnknownJob: _Kind(404, "unknown-job", "Unknown job"),
    TooManyJobs: _Kind(409, "too-many-jobs", "Too many jobs"),
    JobTooLarge: _Kind(413, "job-too-large", "Job too large"),
    SourceRefused: _Kind(422, "source-refused", "Source refused"),
    SourceUnreadable: _Kind(502, "source-unreadable", "Source unreadable"),
    JobsFull: _Kind(503, "jobs-full", "No room for jobs"),
    JobsUnavailable: _Kind(503, "jobs-unavailable", "Jobs unavailable", "The database of jobs does not answer."),
    Overloaded: _Kind(503, "overloaded", "Overloaded"),
    ShuttingDown: _Kind(503, "shutting-down", "Shutting down", "This server is stopping; try another, or again soon."),
    DeadlineExceeded: _Kind(504, "deadline-exceeded", "Deadline exceeded"),
    ModelFailure: _Kind(500, "model-failure", "Model failure", "The model could not answer. The log has the reason."),
    ServiceError: _Kind(500, "internal", "Internal error", "Something went wrong here. The log has the reason."),
}

# What Starlette and FastAPI raise themselves, by status.
_HTTP_KINDS: Final[dict[int, _Kind]] = {
    kind.status: kind
    for kind in (
        _Kind(400, _NOT_JSON, "Not JSON", "The body is not JSON."),
        _Kind(404, "not-found", "Not found", "Nothing is served at this address; /docs lists what is."),
        _Kind(405, "method-not-allowed", "Method not allowed"),
        _Kind(408, "body-too-slow", "Request timeout", "The body did not arrive in time."),
        _Kind(413, "body-too-large", "Body too large"),
        _Kind(415, "not-json-type", "Unsupported media type", "Send the body as Content-Type: application/json."),
        _Kind(499, "client-closed-request", "Client closed request", "The client left before it was answered."),
    )
}

# What a client is told that does not get as far as the application, by status.
_CONNECTION_KINDS: Final[dict[int, _Kind]] = {
    kind.status: kind
    for kind in (
        _Kind(400, "not-http", "Not HTTP", "What was sent is not HTTP."),
        _Kind(431, "head-too-large", "Head too large", "The request has too many headers, or too long ones."),
        _Kind(503, "too-many-connections", "Too many connections", "This server has as many connections as it takes."),
    )
}


def _kind(error: ServiceError) -> _Kind:
    return next(_KINDS[ancestor] for ancestor in type(error).__mro__ if ancestor in _KINDS)


def problem_types() -> list[tuple[int, str]]:
    """Return status and name of every problem that the service answers with."""
    validation = [(400, _NOT_JSON), (422, _INVALID_REQUEST)]
    kinds = (*_KINDS.values(), *_HTTP_KINDS.values(), *_CONNECTION_KINDS.values())
    return [*validation, *((kind.status, kind.name) for kind in kinds)]


def problem_name(error: ServiceError) -> str:
    """Return what ends the type of the problem that `error` becomes."""
    return _kind(error).name


def item_problem(error: ServiceError) -> ItemProblem:
    """Return `error` as the place-holder of one item in a batch."""
    kind = _kind(error)
    return ItemProblem(type=_TYPE + kind.name, title=kind.title, detail=kind.detail or str(error))


class ProblemResponse(Response):
    """Leaves the problem's `name` in the request's scope, for the metrics."""

    def __init__(self, name: str, content: str, status: int, headers: Mapping[str, str] | None) -> None:
        super().__init__(content, status, headers, media_type=MEDIA_TYPE)
        self.name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 (ASGI)
        scope["problem"] = self.name
        await super().__call__(scope, receive, send)


def problem_response(
    status: int,
    *,
    name: str,
    title: str,
    detail: str,
    request_id: str | None,
    errors: Sequence[InvalidPart] = (),
    headers: Mapping[str, str] | None = None,
) -> ProblemResponse:
    """Return a response in the form of RFC 9457; `name` ends its type."""
    problem = Problem(
        type=_TYPE + name,
        title=title,
        status=status,
        detail=detail,
        errors=list(errors) or None,
        request_id=request_id,
    )
    return ProblemResponse(name, problem.model_dump_json(exclude_none=True), status, headers)


def internal_problem(request_id: str | None) -> Response:
    """Return the answer to an error that nobody foresaw."""
    return _problem(_KINDS[ServiceError], request_id)


def connection_problem(status: int, request_id: str, headers: Mapping[str, str]) -> ProblemResponse:
    """Return the answer to a connection that is about to be closed."""
    return _problem(_CONNECTION_KINDS[status], request_id, headers)


def _problem(kind: _Kind, request_id: str | None, headers: Mapping[str, str] | None = None) -> ProblemResponse:
    return problem_response(
        kind.status, name=kind.name, title=kind.title, detail=kind.detail or "", request_id=request_id, headers=headers
    )


def service_problem(error: ServiceError, request_id: str | None) -> ProblemResponse:
    """Return the answer to a request that ended with `error`."""
    kind = _kind(error)
    if kind.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("request failed", error=type(error).__name__, reason=str(error))
    detail = kind.detail or str(error)
    errors = [InvalidPart(pointer="#/text", detail=detail)] if isinstance(error, InvalidText) else []
    return problem_response(
        kind.status,
        name=kind.name,
        title=kind.title,
        detail=detail,
        request_id=request_id,
        errors=errors,
        headers=_headers(error),
    )


async def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)  # noqa: S101 (for the type checker)
    return service_problem(error, _request_id(request))


def _headers(error: ServiceError) -> dict[str, str]:
    match error:
        case Overloaded() | LimitExceeded():
            return {"Retry-After": str(max(1, ceil(error.retry_after_s)))}
        case JobsFull() | JobsUnavailable():
            return {"Retry-After": "60" if isinstance(error, JobsFull) else "5"}
        case ShuttingDown():
            return {"Retry-After": "1", "Connection": "close"}
        case NotAuthenticated():
            return {"WWW-Authenticate": _CHALLENGE + (', error="invalid_token"' if error.presented else "")}
        case NotPermitted():
            return {"WWW-Authenticate": f'{_CHALLENGE}, error="insufficient_scope", scope="{error.scope}"'}
        case _:
            return {}


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 (for the type checker)
    problems = error.errors()
    if problems and problems[0]["type"] == "json_invalid":
        reason, position = problems[0]["ctx"]["error"], problems[0]["loc"][-1]
        return problem_response(
            400,
            name=_NOT_JSON,
            title="Not JSON",
            detail=f"The body is not JSON: {reason} at character {position}.",
            request_id=_request_id(request),
        )
    return problem_response(
        422,
        name=_INVALID_REQUEST,
        title="Invalid request",
        detail="The body does not have the form that this address expects.",
        request_id=_request_id(request),
        errors=[InvalidPart(pointer=_pointer(problem["loc"]), detail=problem["msg"]) for problem in problems],
    )


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 (for the type checker)
    headers = dict(error.headers or {})
    kind = _HTTP_KINDS.get(error.status_code) or _Kind(error.status_code, "http-error", error.detail)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and "Allow" in headers:
        headers["Allow"] = _methods(request) or headers["Allow"]
        detail = f"This address takes {headers['Allow']}."
    else:
        detail = kind.detail or error.detail
    return problem_response(
        kind.status, name=kind.name, title=kind.title, detail=detail, request_id=_request_id(request), headers=headers
    )


def _methods(request: Request) -> str | None:
    """Return what an address takes, by the API's document: Starlette knows the first of its routes alone."""
    path = getattr(request.scope.get("route"), "path", request.url.path)
    operations = request.app.openapi()["paths"].get(path)
    return None if operations is None else ", ".join(sorted(method.upper() for method in operations))


def _pointer(location: Sequence[str | int]) -> str:
    """Return the place of a validation error as a JSON pointer in a URI fragment (RFC 6901, section 6)."""
    parts = [str(part).replace("~", "~0").replace("/", "~1") for part in location[1:]]
    return "#" + "".join(f"/{quote(part, safe=_FRAGMENT)}" for part in parts)


def _request_id(request: Request) -> str | None:
    request_id: str | None = request.scope.get("request_id")
    return request_id


# What answers each kind of error.
PROBLEMS: Final[Mapping[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]] = {
    ServiceError: _on_service_error,
    RequestValidationError: _on_invalid_request,
    HTTPException: _on_http_error,
}


def problem_docs(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of the problems that a route may answer with."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }
