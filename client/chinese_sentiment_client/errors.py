"""What can go wrong."""

from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import httpx


class SentimentError(Exception):
    """Base of all that this package raises."""


class Unreachable(SentimentError):
    """No answer came: the service is away, the connection broke off, or the time was up."""


class UnexpectedAnswer(SentimentError):
    """What answered is not the sentiment service, or one that this package does not know."""


class Problem(SentimentError):
    """The service, or a proxy before it, refused the request: a problem detail (RFC 9457)."""

    def __init__(
        self,
        *,
        status: int,
        type: str,  # noqa: A002 (RFC 9457 calls it so)
        title: str,
        detail: str,
        errors: Sequence[dict[str, str]] = (),
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{status} {title}: {detail}" if detail else f"{status} {title}")
        self.status = status
        self.type = type
        self.title = title
        self.detail = detail
        self.errors = errors  # each with `pointer`, into the body, and `detail`
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    @property
    def name(self) -> str:
        """What ends the type, as in the service's README."""
        return self.type.rpartition(":")[2]

    @classmethod
    def of(cls, response: httpx.Response) -> "Problem":
        """Return the problem in a response that is no success."""
        found = _json_object(response)
        try:
            title = HTTPStatus(response.status_code).phrase
        except ValueError:
            title = "Unknown status"
        return cls(
            status=response.status_code,
            type=str(found.get("type", "about:blank")),
            title=str(found.get("title", title)),
            detail=str(found.get("detail", "")),
            errors=found.get("errors", ()),
            request_id=response.headers.get("X-Request-ID"),
            retry_after_s=_retry_after_s(response.headers.get("Retry-After")),
        )


def _json_object(response: httpx.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:
        return {}  # a proxy's page
    return found if isinstance(found, dict) else {}


def _retry_after_s(said: str | None) -> float | None:
    """Return the seconds of a Retry-After, which may be a date (RFC 9110, section 10.2.3)."""
    if said is None:
        return None
    if said.isascii() and said.isdecimal():
        return float(said)
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # no date, or one without a time zone
        return None
