"""Classify one text or many."""

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError

from app.api.dependencies import ServicesDependency, require_json, while_connected
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
from app.services import Services

router = APIRouter(prefix="/v1", tags=["sentiment"], dependencies=[Depends(require_json)])

_PROBLEMS = problem_docs(400, 413, 415, 422, 500, 503, 504)


@router.post("/sentiment", summary="Classify one text", responses=_PROBLEMS)
async def classify(request: Request, body: SentimentRequest, services: ServicesDependency) -> SentimentResponse:
    """Answer with the sentiment of one text."""
    try:
        classified = await while_connected(
            request, services.classifier.classify(body.text, timeout_s=services.timeout_s)
        )
    except ServiceError as error:
        services.metrics.observe_refusal(error)
        raise
    services.metrics.observe_outcome(classified)
    return SentimentResponse.by(_model(services), classified)


@router.post("/sentiment/batch", summary="Classify many texts", responses=_PROBLEMS)
async def classify_batch(request: Request, body: BatchRequest, services: ServicesDependency) -> BatchResponse:
    """Answer with one result per text, in order; a text that cannot be classified has an error in its place."""
    if len(body.texts) > services.max_texts:
        message = f"{len(body.texts)} texts were sent, at most {services.max_texts} are accepted"
        raise RequestValidationError([{"type": "too_long", "loc": ("body", "texts"), "msg": message}])
    try:
        outcomes = await while_connected(
            request, services.classifier.classify_many(body.texts, timeout_s=services.batch_timeout_s)
        )
    except ServiceError as error:
        services.metrics.observe_refusal(error, len(body.texts))
        raise
    for outcome in outcomes:
        services.metrics.observe_outcome(outcome)
    return BatchResponse(
        results=[
            ItemError(error=item_problem(outcome)) if isinstance(outcome, ServiceError) else SentimentAnswer.of(outcome)
            for outcome in outcomes
        ],
        model=_model(services),
    )


def _model(services: Services) -> ModelName:
    return ModelName(name=services.manifest.name, version=services.manifest.version)
