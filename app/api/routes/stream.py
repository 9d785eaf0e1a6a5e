"""Classify as many texts as there are, line by line."""

from dataclasses import replace
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from app.api.dependencies import ServicesDependency, timeout_s
from app.api.ndjson import NDJSON
from app.api.problems import problem_docs
from app.api.routes.sentiment import CACHE_CONTROL
from app.api.schemas import StreamAnswer, StreamLine
from app.api.stream import LineStream
from app.domain.errors import ShuttingDown

PATH: Final = "/v1/sentiment/stream"

router = APIRouter(tags=["sentiment"])


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a line; the parts of it are described with the other routes."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {name: value for name, value in schema.items() if name != "$defs"}


BODY: Final[dict[str, Any]] = {
    "required": True,
    "description": "Lines of JSON, plain or with Content-Encoding: gzip",
    "content": {NDJSON: {"schema": _schema(StreamLine)}},
}
ANSWER_LINES: Final = _schema(StreamAnswer)


@router.post(
    PATH,
    summary="Classify a stream of texts",
    response_class=Response,
    responses={
        200: {"description": "One line for each", "content": {NDJSON: {"schema": ANSWER_LINES}}},
        **problem_docs(400, 401, 403, 415, 422, 429, 431, 500, 503, 504),
    },
    openapi_extra={**CACHE_CONTROL, "requestBody": BODY},
)
async def classify_stream(
    request: Request,
    services: ServicesDependency,
    ordered: Annotated[bool, Query(description="Answer in the order of the lines, not as answers are known")] = True,  # noqa: FBT002 (a parameter of the query)
) -> LineStream:
    """Answer each line as soon as it is known: with the sentiment of its text, or the error that concerns it alone.

    The members of a line but `text` come back with its answer. An `error` without `line` concerns the stream and is its
    last line; send what has no answer yet again.
    """
    if request.app.state.draining:
        raise ShuttingDown("the service is shutting down")
    limits = replace(services.stream, idle_s=timeout_s(request, services.stream.idle_s))
    return LineStream(request, services, limits=limits, ordered=ordered)
