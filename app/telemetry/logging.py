"""Log lines: JSON or coloured, with the request's id, the server's own lines included."""

import logging
from typing import Final, Literal, TextIO

import orjson
import structlog
from structlog.typing import EventDict, Processor

from app.cache.breaker import State
from app.cache.events import BreakerChanged, CacheEvent
from app.inference.batcher import BatchEvent, BatchFinished

_log = structlog.get_logger(__name__)

# Tracebacks without the values of variables: those may hold what users wrote.
_TRACEBACK: Final = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
_SHARED: Final[list[Processor]] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def configure_logging(*, level: str, style: Literal["auto", "json", "console"], stream: TextIO) -> None:
    """Write this process's log lines, from `level` up, to `stream`."""
    console = style == "console" or (style == "auto" and stream.isatty())
    rendering: list[Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [
            structlog.processors.ExceptionRenderer(_TRACEBACK),
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(serializer=_to_json),
        ]
    )
    structlog.configure(
        processors=[structlog.stdlib.add_logger_name, *_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *_SHARED],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    uvicorn = logging.getLogger("uvicorn.error")
    uvicorn.addFilter(_say_startup_error_once)


def log_batch_failure(event: BatchEvent) -> None:
    """Write why a batch failed; its callers are only told that it did."""
    if isinstance(event, BatchFinished) and event.error is not None:
        _log.error("batch failed", lane=event.lane.value, items=event.items, reason=str(event.error))


def log_breaker(event: CacheEvent) -> None:
    """Write when Redis falls out of use, and when it is back; probes in between are for the metrics alone."""
    if isinstance(event, BreakerChanged):
        if event.before is State.CLOSED:
            _log.warning("redis is out of use", operation=event.operation.value, reason=event.reason)
        elif event.after is State.CLOSED:
            _log.info("redis is in use again", operation=event.operation.value)


def _to_json(event: EventDict, **_: object) -> str:
    return orjson.dumps(event, default=repr).decode()


def _say_startup_error_once(record: logging.LogRecord) -> bool:
    """Let the traceback that Starlette makes of a StartupError go: the application has told the reason."""
    return "StartupError" not in record.getMessage()
