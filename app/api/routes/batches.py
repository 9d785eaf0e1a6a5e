"""Batch jobs: for callers who cannot hold a connection while many texts are classified."""

from typing import Annotated, Any, Final, cast

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from app.api.admission import caller_of
from app.api.dependencies import ServicesDependency
from app.api.jobs import results
from app.api.middleware import STREAM_IDLE_S
from app.api.ndjson import NDJSON, Packer
from app.api.problems import problem_docs
from app.api.routes.sentiment import CACHE_CONTROL
from app.api.routes.stream import ANSWER_LINES, BODY
from app.api.schemas import BatchJob, BatchJobs, BatchSource
from app.api.uploads import upload
from app.domain.errors import JobsOff
from app.services import Jobs

PATH: Final = "/v1/batches"
_ID: Final = "^[0-9a-f]{1,64}$"
_BODY: Final[dict[str, Any]] = {
    **BODY,
    "description": f"{BODY['description']}; or where they are, if the service may fetch them from there",
    "content": {**BODY["content"], "application/json": {"schema": BatchSource.model_json_schema()}},
}

router = APIRouter(prefix=PATH, tags=["batch jobs"])

_PROBLEMS: Final = problem_docs(401, 403, 404, 422, 431, 500, 503)


async def _get_jobs(services: ServicesDependency) -> Jobs:
    if services.jobs is None:
        raise JobsOff
    return services.jobs


async def _get_caller(request: Request) -> str:
    return caller_of(request.scope)


_JobsDependency = Annotated[Jobs, Depends(_get_jobs)]
_Caller = Annotated[str, Depends(_get_caller)]
_Id = Annotated[str, Path(description="The job's id", pattern=_ID)]


@router.post(
    "",
    summary="Begin a batch job",
    status_code=202,
    responses={
        202: {
            "description": "All lines are kept, and wait for their answers",
            "headers": {"Location": {"description": "Where the job is", "schema": {"type": "string"}}},
        },
        **problem_docs(400, 401, 403, 404, 408, 409, 413, 415, 422, 431, 500, 502, 503),
    },
    openapi_extra={**CACHE_CONTROL, "requestBody": _BODY},
)
async def begin(
    request: Request,
    services: ServicesDependency,
    jobs: _JobsDependency,
    response: Response,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="A name of the caller's own for this job. A request that repeats it is answered with the job "
            "that there is, so one whose answer was lost can be sent again.",
            pattern="^[!-~]{1,128}$",
        ),
    ] = None,
) -> BatchJob:
    """Keep lines of JSON, as streams take them, and answer them as bulk work, also after a restart.

    The job belongs to the key that it was made with, or else to the address.
    """
    job = await upload(request, services, jobs, idempotency_key)
    response.headers["Location"] = f"{PATH}/{job.id}"
    return BatchJob.of(job)


@router.get("", summary="List batch jobs", responses=_PROBLEMS)
async def newest(
    jobs: _JobsDependency,
    caller: _Caller,
    limit: Annotated[int, Query(ge=1, le=100, description="The most jobs in one answer")] = 20,
    after: Annotated[str | None, Query(pattern=_ID, description="`next` of the answer before")] = None,
) -> BatchJobs:
    """Answer with the caller's jobs, the newest first."""
    found = await jobs.store.newest(caller, before=after, count=limit + 1)
    more = len(found) > limit
    return BatchJobs(batches=[BatchJob.of(job) for job in found[:limit]], next=found[limit - 1].id if more else None)


@router.get("/{id}", summary="How far is a batch job?", responses=_PROBLEMS)
async def status(jobs: _JobsDependency, caller: _Caller, id: _Id) -> BatchJob:  # noqa: A002 (the name in the address)
    """Answer with the state of a job."""
    return BatchJob.of(await jobs.store.find(caller, id))


@router.get(
    "/{id}/results",
    summary="Answers of a batch job",
    response_class=Response,
    responses={
        200: {"description": "One line for each that has its answer", "content": {NDJSON: {"schema": ANSWER_LINES}}},
        **_PROBLEMS,
    },
)
async def answers(
    request: Request,
    services: ServicesDependency,
    jobs: _JobsDependency,
    caller: _Caller,
    id: _Id,  # noqa: A002 (the name in the address)
) -> StreamingResponse:
    """Answer with the lines of a stream's answer, in the order of the job's lines: all of them, once it has ended.

    Before, lines that have no answer yet are missing.
    """
    job = await jobs.store.find(caller, id)
    packer = Packer.of(request)
    cast("dict[str, object]", request.scope)[STREAM_IDLE_S] = services.stream.idle_s
    return StreamingResponse(results(jobs, job, packer), headers=packer.headers)


@router.post("/{id}/cancel", summary="Stop a batch job", responses=_PROBLEMS)
async def cancel(jobs: _JobsDependency, caller: _Caller, id: _Id) -> BatchJob:  # noqa: A002 (the name in the address)
    """Stop a job that has not ended: its answers stay, texts without one are deleted. Else nothing changes."""
    return BatchJob.of(await jobs.store.cancel(caller, id))


@router.delete("/{id}", summary="Delete a batch job", status_code=204, responses=_PROBLEMS)
async def remove(jobs: _JobsDependency, caller: _Caller, id: _Id) -> None:  # noqa: A002 (the name in the address)
    """Stop a job, and delete all that is kept of it."""
    await jobs.store.delete(caller, id)
