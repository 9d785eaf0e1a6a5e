"""The application: ``uvicorn --factory app.main:create_app``, or ``python -m app serve``."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TypedDict

import structlog
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from app.api.lean import Shortcut
from app.api.middleware import BodyLimit, RequestContext
from app.api.problems import PROBLEMS, Problem
from app.api.routes import operations, sentiment
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
    app.add_middleware(Shortcut, routes=sentiment.router.routes, problems=PROBLEMS)
    app.add_middleware(BodyLimit, max_bytes=settings.server.max_body_bytes)
    app.add_middleware(RequestContext, log_requests=settings.log.requests)
    for kind, handler in PROBLEMS.items():
        app.add_exception_handler(kind, handler)
    app.include_router(sentiment.router)
    app.include_router(operations.router)
    _describe_problems(app)
    return app


def _describe_problems(app: FastAPI) -> None:
    """Put the schema of a problem into the OpenAPI document, where the routes refer to it."""
    generate = app.openapi

    def openapi() -> dict[str, object]:
        document = generate()
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = document["components"]["schemas"]
        schemas.update(schema.pop("$defs", {}))
        schemas["Problem"] = schema
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
