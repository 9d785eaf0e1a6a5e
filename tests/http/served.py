"""The application in this process: clients of it, and what each of its problems must look like."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
from asgi_lifespan import LifespanManager
from numpy.typing import NDArray
from starlette.datastructures import State
from starlette.types import ASGIApp, Receive, Scope, Send

from app.domain.intake import TextLimits
from app.inference.batcher import BatchPolicy
from app.inference.classifier import SentimentCache
from app.inference.shedding import Shedder
from app.main import create_app
from app.rollout import Rollout
from app.services import Services, StreamLimits
from app.settings import Limits, Model, Server, Settings, Stream
from app.telemetry.prometheus import Metrics
from tests.served_model import serving_model
from tests.tiny_bundle import TinyModel

MAX_BODY_BYTES = 20_000
MAX_CHARACTERS = 50
MAX_BYTES = 120
MAX_TEXTS = 8
STREAM = StreamLimits(max_line_bytes=500, window_lines=64, window_bytes=4_000, idle_s=10)
MAX_STREAMS = 2
_LIMITS = TextLimits(MAX_CHARACTERS, MAX_BYTES)


def small_settings(
    bundle: Path, *, timeout_s: float = 10, batch_timeout_s: float = 10, stream_idle_s: float = 10
) -> Settings:
    """Return settings with limits that a test can reach."""
    return Settings(
        server=Server(max_body_bytes=MAX_BODY_BYTES),
        limits=Limits(
            max_characters=MAX_CHARACTERS,
            max_bytes=MAX_BYTES,
            max_texts=MAX_TEXTS,
            timeout_s=timeout_s,
            batch_timeout_s=batch_timeout_s,
        ),
        stream=Stream(
            max_streams=MAX_STREAMS,
            max_line_bytes=STREAM.max_line_bytes,
            window_lines=STREAM.window_lines,
            window_bytes=STREAM.window_bytes,
            idle_s=stream_idle_s,
        ),
        model=Model(path=bundle, provider="cpu", threads=1),
    )


@asynccontextmanager
async def client_of(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    """Start `app` and yield a client of it."""
    async with LifespanManager(app, startup_timeout=60) as manager, asgi_client(manager.app) as client:
        yield client


def asgi_client(app: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")


class GatedModel(TinyModel):
    """The tiny model behind a gate: it answers when the gate is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.for_one = False  # let one run through, and close again

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        self.entered.set()
        if not self.gate.wait(timeout=60):
            raise TimeoutError("nobody opened the gate")
        if self.for_one:
            self.gate.clear()
        return super().run(input_ids, attention_mask)


@asynccontextmanager
async def app_of_model(
    model: GatedModel,
    directory: Path,
    policy: BatchPolicy,
    *,
    cache: SentimentCache | None = None,
    batch_timeout_s: float = 60,
) -> AsyncIterator[tuple[ASGIApp, State]]:
    """Yield the application with `model` in the place of the one in the bundle at `directory`, and its state."""
    metrics = Metrics()

    async with Rollout(
        lambda path: serving_model(path, model, policy, metrics.observe_batch, limits=_LIMITS, cache=cache), directory
    ) as models:
        metrics.watch(lambda: models.active.batcher)
        try:
            yield _app_of_models(models, metrics, batch_timeout_s=batch_timeout_s)
        finally:
            model.gate.set()


@asynccontextmanager
async def client_of_model(
    model: GatedModel, directory: Path, policy: BatchPolicy, *, cache: SentimentCache | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of the application that `app_of_model` yields."""
    async with app_of_model(model, directory, policy, cache=cache) as (app, _), asgi_client(app) as client:
        yield client


def _app_of_models(models: Rollout, metrics: Metrics, *, batch_timeout_s: float = 60) -> tuple[ASGIApp, State]:
    services = Services(
        models=models,
        bundles=models.active.directory.parent,
        metrics=metrics,
        shedder=Shedder(lambda: models.active.batcher),
        max_texts=MAX_TEXTS,
        timeout_s=60,
        batch_timeout_s=batch_timeout_s,
        stream=STREAM,
        stream_slots=asyncio.Semaphore(MAX_STREAMS),
    )
    app = create_app(small_settings(models.active.directory))

    async def app_with_services(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": {"services": services}}, receive, send)

    return app_with_services, app.state


@asynccontextmanager
async def client_of_models(models: Rollout, metrics: Metrics) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of the application that `models` answer for."""
    app, _ = _app_of_models(models, metrics)
    async with asgi_client(app) as client:
        yield client


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return when `condition` has become true."""
    with anyio.fail_after(30):
        while not await condition():  # noqa: ASYNC110 (asks over HTTP, where there are no events)
            await anyio.sleep(0.005)


def assert_problem(response: httpx.Response, status: int, name: str) -> dict[str, Any]:
    """Check that `response` is the problem `name` (RFC 9457) with all that the service promises, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem.keys() - {"errors"} == {"type", "title", "status", "detail", "request_id"}
    assert problem["type"] == f"urn:sentiment:problem:{name}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == response.headers["X-Request-ID"]
    for error in problem.get("errors", ()):
        assert error.keys() == {"pointer", "detail"}
        assert error["pointer"].startswith("#")
    return problem


def pointers(problem: dict[str, Any]) -> list[str]:
    """Return where a problem says that the body is wrong."""
    return [error["pointer"] for error in problem["errors"]]


def json_lines(output: str) -> list[dict[str, Any]]:
    """Return the log lines in `output`; every line must be a JSON object."""
    lines = [json.loads(line) for line in output.splitlines()]
    assert all(isinstance(line, dict) for line in lines)
    return lines
