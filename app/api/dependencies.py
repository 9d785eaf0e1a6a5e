"""What routes ask for: the running services, a JSON body, and a client that is still there.

All are coroutines, though some wait for nothing: FastAPI runs a plain function in a thread, which costs every request
switches between threads while the model keeps the processors busy.
"""

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Final, TypeVar, cast

from fastapi import Depends, Header, HTTPException, Request

from app.services import Services

_CLIENT_CLOSED_REQUEST: Final = 499  # nginx's number; HTTP has none

_Answer = TypeVar("_Answer")


async def get_services(request: Request) -> Services:
    """Return the services that the lifespan opened."""
    return cast(Services, request.state.services)


async def require_json(content_type: Annotated[str | None, Header(include_in_schema=False)] = None) -> None:
    """Refuse a body that does not call itself JSON."""
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        raise HTTPException(415)


async def while_connected(request: Request, work: Coroutine[None, None, _Answer]) -> _Answer:
    """Return what `work` returns; cancel it when the client leaves, so that nobody's answer costs nobody's time.

    Raises:
        HTTPException: 499, which no one reads, for the log and the metrics.
    """
    task = asyncio.ensure_future(work)
    departure = asyncio.ensure_future(_departure(request))
    try:
        await asyncio.wait((task, departure), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise HTTPException(_CLIENT_CLOSED_REQUEST)
    finally:
        departure.cancel()
        task.cancel()


async def _departure(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


ServicesDependency = Annotated[Services, Depends(get_services)]
