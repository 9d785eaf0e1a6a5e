"""Classify one text or many."""

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError

from app.api.dependencies import ServicesDependency, cache_use, timeout_s, while_connected
from app.api.lean import LeanRoute
from app.api.problems import item_problem, problem_docs, problem_name
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

router = APIRouter(prefix="/v1", tags=["sentiment"], route_class=LeanRoute)

_PROBLEMS = problem_docs(400, 413, 415, 422, 500, 503, 504)
_CACHE_CONTROL = {
    "name": "Cache-Control",
    "in": "header",
    "schema": {"type": "string", "examples": ["no-cache"]},
    "description": "`no-cache`: compute the answer, though it may be remembered; `no-store`: and do not remember it",
}
_EXTRA = {"parameters": [_CACHE_CONTROL]}


@router.post("/sentiment", summary="Classify one text", responses=_PROBLEMS, openapi_extra=_EXTRA)
async def classify(request: Request, body: SentimentRequest, services: ServicesDependency) -> SentimentResponse:
    """Answer with the sentiment of one text."""
    with services.models.lease(body.text) as lease:
        try:
            async with while_connected(request):
                classified = await lease.model.classifier.classify(
                    body.text, timeout_s=timeout_s(request, services.timeout_s), cache_use=cache_use(request)
                )
        except ServiceError as error:
            services.metrics.observe_unanswered(problem_name(error))
            lease.answered([body.text], [error])
            raise
        services.metrics.observe_answer(classified)
        lease.answered([body.text], [classified])
        return SentimentResponse.by(ModelName.of(lease.model.manifest), classified)


@router.post("/sentiment/batch", summary="Classify many texts", responses=_PROBLEMS, openapi_extra=_EXTRA)
async def classify_batch(request: Request, body: BatchRequest, services: ServicesDependency) -> BatchResponse:
    """Answer with one result per text, in order; a text that cannot be classified has an error in its place."""
    if len(body.texts) > services.max_texts:
        message = f"{len(body.texts)} texts were sent, at most {services.max_texts} are accepted"
        raise RequestValidationError([{"type": "too_long", "loc": ("body", "texts"), "msg": message}])
    with services.models.lease(body.texts[0] if body.texts else "") as lease:
        try:
            async with while_connected(request):
                outcomes = await lease.model.classifier.classify_many(
                    body.texts,
                    timeout_s=timeout_s(request, services.batch_timeout_s),
                    cache_use=cache_use(request),
                )
        except ServiceError as error:
            services.metrics.observe_unanswered(problem_name(error), len(body.texts))
            raise
        for outcome in outcomes:
            if isinstance(outcome, ServiceError):
                services.metrics.observe_unanswered(problem_name(outcome))
            else:
                services.metrics.observe_answer(outcome)
        lease.answered(body.texts, outcomes)
        return BatchResponse(
            results=[
                ItemError(error=item_problem(outcome))
                if isinstance(outcome, ServiceError)
                else SentimentAnswer.of(outcome)
                for outcome in outcomes
            ],
            model=ModelName.of(lease.model.manifest),
        )
