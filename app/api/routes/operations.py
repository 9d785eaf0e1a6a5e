"""For those who run the service: health and metrics."""

from typing import Final

from fastapi import APIRouter, Request, Response

from app.api.dependencies import ServicesDependency
from app.api.schemas import Alive, ModelName, Readiness

_STUCK_S: Final = 60.0  # readiness goes off after 10; the longest batch takes a third of a second on two cores

router = APIRouter(tags=["operations"])


@router.get(
    "/health/live",
    summary="Is the process alive?",
    responses={503: {"model": Alive, "description": "The model hangs; only a restart helps"}},
)
async def live(services: ServicesDependency, response: Response) -> Alive:
    """Answer as long as the event loop turns and the model comes back; restart the process when this fails."""
    if (running_s := services.models.active.batcher.longest_run_s) > _STUCK_S:
        response.status_code = 503
        return Alive(status=f"the model has been running one batch for {running_s:.0f} s")
    return Alive(status="alive")


@router.get(
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


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request, services: ServicesDependency) -> Response:
    """Answer with the metrics in Prometheus' or OpenMetrics' text format."""
    content, content_type = services.metrics.render(request.headers.get("accept"))
    return Response(content, headers={"Content-Type": content_type})
