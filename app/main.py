"""The application: ``uvicorn --factory app.main:create_app``, or ``python -m app serve``."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, Final, TypedDict

import structlog
from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline
from pydantic.json_schema import models_json_schema

from app.api.admission import Authentication
from app.api.docs import add_docs
from app.api.jobs import working
from app.api.lean import Shortcut
from app.api.middleware import BeginTrace, BodyLimit, RequestContext
from app.api.problems import PROBLEMS, Problem
from app.api.routes import admin, batches, huggingface, open_inference, operations, sentiment, stream, tei
from app.domain.errors import StartupError
from app.security.gate import Gate
from app.services import Draining, Services
from app.settings import Settings, load_settings
from app.telemetry.logging import configure_logging
from app.telemetry.siblings import Siblings
from app.wiring import open_gate, open_services

_PROTOCOLS: Final = (tei, huggingface, open_inference)
_FOR_ADMINS: Final = (operations.telemetry, admin.router)  # on a port of their own, if the settings say so

_log = structlog.get_logger(__name__)


class _State(TypedDict):
    services: Services
    gate: Gate | None


def create_app(settings: Settings | None = None, siblings: Siblings | None = None) -> FastAPI:
    """Return the application; its lifespan opens the services.

    Without `settings`, as a server's factory calls it, it reads the environment and sets up logging. `siblings` are
    the processes beside this one.

    Raises:
        StartupError: `settings` is None and the environment does not make valid settings, or tracing is to be on and
            its libraries are not there.
    """
    if settings is None:
        settings = load_settings()
        configure_logging(level=settings.log.level, style=settings.log.format, stream=sys.stdout)

    begin_trace, end_tracing = _open_tracing() if settings.tracing.enabled else (None, lambda: None)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[_State]:
        try:
            async with (
                open_gate(settings) as gate,
                open_services(settings, siblings) as services,
                working(services, gate, app.state.draining),
            ):
                yield {"services": services, "gate": gate}
        except StartupError as error:
            _log.critical("cannot start", reason=str(error))
            raise
        finally:
            await asyncio.to_thread(end_tracing)

    routers = [
        sentiment.router,
        stream.router,
        batches.router,
        *(protocol.router for protocol in _PROTOCOLS),
        operations.health,
    ]
    if siblings is not None:
        routers.append(operations.telemetry)  # a model is changed in all processes or in none: by SIGHUP
    elif not settings.server.admin_port:
        routers += _FOR_ADMINS
    app = _assemble(routers, settings, lifespan, begin_trace)
    app.state.draining = Draining()
    return app


def create_admin_app(app: FastAPI, settings: Settings) -> FastAPI:
    """Return the application of the admin port, which shares the state and the services of `app`."""
    other = _assemble([operations.health, *_FOR_ADMINS], settings, lifespan=None)
    other.state = app.state
    return other


def _assemble(
    routers: Sequence[APIRouter],
    settings: Settings,
    lifespan: Callable[[FastAPI], Any] | None,
    begin_trace: BeginTrace | None = None,
) -> FastAPI:
    app = FastAPIOffline(  # /docs without a content delivery network, which closed networks do not reach
        title="Chinese sentiment",
        summary="What people feel, from what they write in Chinese.",
        version=version("chinese-sentiment"),
        lifespan=lifespan,
        docs_url=None,  # below, with a policy of what the page may load
        redoc_url=None,
        redirect_slashes=False,  # an unknown address is an unknown address
        # Its own traces and logs hold paths, queries and invalid input: what people wrote. Ours are in app.telemetry.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.add_middleware(Shortcut, routes=[route for router in routers for route in router.routes], problems=PROBLEMS)
    app.add_middleware(
        BodyLimit, max_bytes=settings.server.max_body_bytes, unless=frozenset({stream.PATH, batches.PATH})
    )
    security = settings.security
    if security.keys_file or security.allow_anonymous:
        app.add_middleware(
            Authentication,
            allow_anonymous=security.allow_anonymous,
            open_metrics=security.open_metrics or not security.keys_file,
        )
    dialects = {path: answer for protocol in _PROTOCOLS for path, answer in protocol.DIALECT.items()}
    app.add_middleware(RequestContext, log_requests=settings.log.requests, dialects=dialects, begin_trace=begin_trace)
    for kind, handler in PROBLEMS.items():
        app.add_exception_handler(kind, handler)
    for router in routers:
        app.include_router(router)
    add_docs(app)
    _describe(app, asks_for_keys=bool(security.keys_file))
    return app


def _open_tracing() -> tuple[BeginTrace, Callable[[], None]]:
    """Return what begins the trace of a request, and what sends the last ones."""
    try:
        from app.telemetry.tracing import Tracing  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        raise StartupError(f"tracing needs {error.name}: install the extra [tracing]") from None
    tracing = Tracing()
    return tracing.begin, tracing.close


def _describe(app: FastAPI, *, asks_for_keys: bool) -> None:
    """Put the schemas into the OpenAPI document that routes refer to by name alone, and how to show a key."""
    generate = app.openapi
    _, named = models_json_schema(
        [(Problem, "serialization"), (open_inference.InferRequest, "validation")],
        ref_template="#/components/schemas/{model}",
    )

    def openapi() -> dict[str, object]:
        document = generate()
        document["components"]["schemas"].update(named["$defs"])
        if asks_for_keys:
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
