"""Classify one text or many."""

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError

from app.api.answering import answer
from app.api.dependencies import ServicesDependency
from app.api.lean import LeanRoute
from app.api.problems import item_problem, problem_docs
from app.api.schemas import (
    BatchRequest,
    BatchResponse,
    ItemError,
    ModelName,
    SentimentAnswer,
    SentimentRequest,
    SentimentResponse,
)
from app.domain.errors import ServiceError
from app.inference.batcher import Lane

router = APIRouter(prefix="/v1", tags=["sentiment"], route_class=LeanRoute)

_PROBLEMS = problem_docs(400, 401, 403, 408, 413, 415, 422, 429, 431, 500, 503, 504)
_HEADER = {
    "name": "Cache-Control",
    "in": "header",
    "schema": {"type": "string", "examples": ["no-cache"]},
    "description": "`no-cache`: compute the answer, though it may be remembered; `no-store`: and do not remember it",
}
CACHE_CONTROL = {"parameters": [_HEADER]}


@router.post("/sentiment", summary="Classify one text", responses=_PROBLEMS, openapi_extra=CACHE_CONTROL)
async def classify(request: Request, body: SentimentRequest, services: ServicesDependency) -> SentimentResponse:
    """Answer with the sentiment of one text."""
    manifest, (outcome,) = await answer(request, services, [body.text], Lane.INTERACTIVE)
    if isinstance(outcome, ServiceError):
        raise outcome
    return SentimentResponse.by(ModelName.of(manifest), outcome)


@router.post("/sentiment/batch", summary="Classify many texts", responses=_PROBLEMS, openapi_extra=CACHE_CONTROL)
async def classify_batch(request: Request, body: BatchRequest, services: ServicesDependency) -> BatchResponse:
    """Answer with one result per text, in order; a text that cannot be classified has an error in its place."""
    if len(body.texts) > services.max_texts:
        message = f"{len(body.texts)} texts were sent, at most {services.max_texts} are accepted"
        raise RequestValidationError([{"type": "too_long", "loc": ("body", "texts"), "msg": message}])
    manifest, outcomes = await answer(request, services, body.texts, Lane.BULK)
    return BatchResponse(
        results=[
            ItemError(error=item_problem(outcome)) if isinstance(outcome, ServiceError) else SentimentAnswer.of(outcome)
            for outcome in outcomes
        ],
        model=ModelName.of(manifest),
    )
