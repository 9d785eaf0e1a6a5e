"""What routes ask for: the running services, and a JSON body."""

from typing import Annotated, cast

from fastapi import Depends, Header, HTTPException, Request

from app.services import Services


def get_services(request: Request) -> Services:
    """Return the services that the lifespan opened."""
    return cast(Services, request.state.services)


def require_json(content_type: Annotated[str | None, Header(include_in_schema=False)] = None) -> None:
    """Refuse a body that does not call itself JSON."""
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        raise HTTPException(415)


ServicesDependency = Annotated[Services, Depends(get_services)]
