"""Problems in the words of other protocols: whatever went wrong at their addresses, wherever it was noticed.

Knows how a problem travels; nothing of why there is one.
"""

from collections.abc import Callable
from typing import Final, TypeAlias

from pydantic import BaseModel
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

from app.api.problems import MEDIA_TYPE, Problem

Translate: TypeAlias = Callable[[Problem], tuple[int, BaseModel]]  # to a status and a body

_MOST_TOLD: Final = 3  # wrong parts of a request


def translating(send: Send, translate: Translate) -> Send:
    """Return `send` for the answer to one request: a problem leaves as `translate` tells it, all else as it is."""
    head: Message | None = None

    async def send_translated(message: Message) -> None:
        nonlocal head
        if message["type"] == "http.response.start" and MutableHeaders(scope=message).get("content-type") == MEDIA_TYPE:
            head = message  # until the body tells what it is the head of
        elif head is None:
            await send(message)
        else:
            status, told = translate(Problem.model_validate_json(message["body"]))
            body = told.model_dump_json().encode()
            headers = MutableHeaders(scope=head)
            headers["Content-Type"] = "application/json"
            headers["Content-Length"] = str(len(body))
            await send({**head, "status": status})
            await send({**message, "body": body})

    return send_translated


def name_of(problem: Problem) -> str:
    """Return the last part of a problem's type."""
    return problem.type.rpartition(":")[2]


def sentence_of(problem: Problem) -> str:
    """Return what a problem says, for a protocol that has one string for it."""
    if name_of(problem) != "invalid-request" or not problem.errors:
        return problem.detail
    return "; ".join(f"{error.pointer.removeprefix('#/')}: {error.detail}" for error in problem.errors[:_MOST_TOLD])
