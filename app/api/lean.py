"""Routes for the hot path: FastAPI documents them, a few lines here run them.

An endpoint takes `(request, body, services)` and returns a model. FastAPI's own way to it, through routers, exit
stacks, dependencies and two validations, took three fifths of the time of a remembered answer.
"""

import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeAlias, TypeVar, get_type_hints

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

Handler: TypeAlias = Callable[[Request, Exception], Awaitable[Response]]
Body = TypeVar("Body", bound=BaseModel)


class LeanRoute(APIRoute):
    """A route with a JSON body and a JSON answer."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request (FastAPI's way to replace its own)."""
        endpoint = self.endpoint
        model: type[BaseModel] = get_type_hints(endpoint)["body"]

        async def answer(request: Request) -> Response:
            content = await request.body()
            _require_json(request.headers.get("content-type", ""))
            found = await endpoint(request=request, body=parse(model, content), services=request.state.services)
            return Response(found.model_dump_json(), media_type="application/json")

        return answer


class Shortcut:
    """Takes a POST to the very address of a lean route there; all else goes the usual way."""

    def __init__(
        self, app: ASGIApp, *, routes: Iterable[BaseRoute], problems: Mapping[type[Exception], Handler]
    ) -> None:
        self._app = app
        self._routes = {
            route.path: (route, route.get_route_handler()) for route in routes if isinstance(route, LeanRoute)
        }
        self._problems = problems

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 (ASGI)
        found = self._routes.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        scope["route"], answer = found
        request = Request(scope, receive, send)
        try:
            response = await answer(request)
        except tuple(self._problems) as error:
            handle = next(self._problems[kind] for kind in type(error).__mro__ if kind in self._problems)
            response = await handle(request, error)
        await response(scope, receive, send)


def _require_json(content_type: str) -> None:
    """Refuse a body that does not call itself JSON."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        raise HTTPException(415)


def parse(model: type[Body], content: bytes) -> Body:
    """Return the JSON in `content` as `model`, or raise what FastAPI would."""
    if not content:
        raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "Field required"}])
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        if (problems := _problems(error))[0]["type"] != "json_invalid":
            raise _invalid(problems) from None
    # Python's own parser also reads half an emoji, which JavaScript makes when it cuts a text, and names the place of a
    # mistake.
    try:
        return model.model_validate(json.loads(content))
    except ValidationError as error:
        raise _invalid(_problems(error)) from None
    except json.JSONDecodeError as error:
        place = ("body", error.pos)
        raise RequestValidationError([{"type": "json_invalid", "loc": place, "ctx": {"error": error.msg}}]) from None
    except (ValueError, RecursionError):  # not UTF-8, or an endless number
        raise HTTPException(400) from None


def _problems(error: ValidationError) -> list[ErrorDetails]:
    return error.errors(include_url=False, include_input=False)  # the input may be megabytes of numbers


def _invalid(problems: list[ErrorDetails]) -> RequestValidationError:
    return RequestValidationError([{**problem, "loc": ("body", *problem["loc"])} for problem in problems])
