"""For those who run the service: health and metrics."""

from fastapi import APIRouter, Request, Response

from app.api.dependencies import ServicesDependency
from app.api.schemas import Alive, ModelName, Readiness

health = APIRouter(tags=["operations"])
telemetry = APIRouter(tags=["operations"])


@health.get(
    "/health/live",
    summary="Is the process alive?",
    responses={503: {"model": Alive, "description": "The model hangs; only a restart helps"}},
)
async def live(services: ServicesDependency, response: Response) -> Alive:
    """Answer as long as the event loop turns and the model comes back; restart the process when this fails."""
    reason = services.reason_to_restart()
    if reason is not None:
        response.status_code = 503
    return Alive(status=reason or "alive")


@health.get(
    "/health/ready",
    summary="Should requests be sent here?",
    responses={503: {"model": Readiness, "description": "Not ready; the body has the reason"}},
)
async def ready(request: Request, services: ServicesDependency, response: Response) -> Readiness:
    """Answer 200 when the model is known to answer rightly: proven at the start, and again after any failure."""
    model = services.models.active
    reason = "this server is stopping" if request.app.state.draining else await model.reason_not_ready()
    services.metrics.observe_readiness(ready=reason is None)
    if reason is not None:
        response.status_code = 503
    return Readiness(
        status="ready" if reason is None else "not ready",
        reason=reason,
        model=ModelName.of(model.manifest),
        provider=model.placement.provider,
        precision=model.placement.precision,
        threads=model.placement.threads,
    )


@telemetry.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request, services: ServicesDependency) -> Response:
    """Answer with the metrics in Prometheus' or OpenMetrics' text format."""
    content, content_type = await services.metrics.render(request.headers.get("accept"))
    return Response(content, headers={"Content-Type": content_type})
