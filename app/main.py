"""The application: ``uvicorn --factory app.main:create_app``, or ``python -m app serve``."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TypedDict

import structlog
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from pydantic.json_schema import models_json_schema

from app.api.lean import Shortcut
from app.api.middleware import BodyLimit, RequestContext
from app.api.problems import PROBLEMS, Problem
from app.api.routes import huggingface, open_inference, operations, sentiment, tei
from app.domain.errors import StartupError
from app.services import Services
from app.settings import Settings, load_settings
from app.telemetry.logging import configure_logging
from app.telemetry.siblings import Siblings
from app.wiring import open_services

_log = structlog.get_logger(__name__)


class _State(TypedDict):
    services: Services


def create_app(settings: Settings | None = None, siblings: Siblings | None = None) -> FastAPI:
    """Return the application; its lifespan opens the services.

    Without `settings`, as a server's factory calls it, it reads the environment and sets up logging. `siblings` are
    the processes beside this one.

    Raises:
        StartupError: `settings` is None and the environment does not make valid settings.
    """
    if settings is None:
        settings = load_settings()
        configure_logging(level=settings.log.level, style=settings.log.format, stream=sys.stdout)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[_State]:
        try:
            async with open_services(settings, siblings) as services:
                yield {"services": services}
        except StartupError as error:
            _log.critical("cannot start", reason=str(error))
            raise

    app = FastAPIOffline(  # /docs without a content delivery network, which closed networks do not reach
        title="Chinese sentiment",
        summary="What people feel, from what they write in Chinese.",
        version=version("chinese-sentiment"),
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,  # an unknown address is an unknown address
    )
    app.state.draining = False
    routers = [sentiment.router, tei.router, huggingface.router, open_inference.router, operations.router]
    app.add_middleware(Shortcut, routes=[route for router in routers for route in router.routes], problems=PROBLEMS)
    app.add_middleware(BodyLimit, max_bytes=settings.server.max_body_bytes)
    dialects = {**tei.DIALECT, **huggingface.DIALECT, **open_inference.DIALECT}
    app.add_middleware(RequestContext, log_requests=settings.log.requests, dialects=dialects)
    for kind, handler in PROBLEMS.items():
        app.add_exception_handler(kind, handler)
    for router in routers:
        app.include_router(router)
    _describe(app)
    return app


def _describe(app: FastAPI) -> None:
    """Put the schemas into the OpenAPI document that routes refer to by name alone."""
    generate = app.openapi
    _, named = models_json_schema(
        [(Problem, "serialization"), (open_inference.InferRequest, "validation")],
        ref_template="#/components/schemas/{model}",
    )

    def openapi() -> dict[str, object]:
        document = generate()
        document["components"]["schemas"].update(named["$defs"])
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
