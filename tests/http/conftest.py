import io
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from app.main import create_app
from app.telemetry.logging import configure_logging
from tests.http.served import client_of, json_lines, small_settings


@pytest.fixture(scope="module")
async def client(tiny_bundle: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Speaks to one running application, shared by the tests of a module."""
    async with client_of(create_app(small_settings(tiny_bundle))) as client:
        yield client


@pytest.fixture
async def fresh_client(tiny_bundle: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Speaks to an application of the test's own."""
    async with client_of(create_app(small_settings(tiny_bundle))) as client:
        yield client


@pytest.fixture
def logged() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Return a function that returns what the service has logged."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging(level="info", style="json", stream=stream)
    yield lambda: [line for line in json_lines(stream.getvalue()) if line["logger"].startswith("app.")]
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
