"""What can go wrong, in the service's own words. `app.api.problems` alone translates it to HTTP."""


class ServiceError(Exception):
    """Base of every error that a caller of the service may meet."""


class InvalidText(ServiceError):
    """The text can never be classified as it is. The message is for the client and holds none of the text."""


class EmptyText(InvalidText):
    """Nothing is left to read after cleaning."""


class TextTooLong(InvalidText):
    """More characters or bytes than the service accepts."""


class InvalidHeader(ServiceError):
    """A header of the request cannot be read. The message is for the client."""


class UnknownModel(ServiceError):
    """No such model is served. The message is for the client."""


class InvalidLine(ServiceError):
    """A line of a stream asks for nothing that can be answered. The message is for the client and holds none of it."""


class LineNotJson(InvalidLine):
    """It is not JSON."""


class LineTooLong(InvalidLine):
    """It has more bytes than the service reads."""


class NotNdjson(ServiceError):
    """A stream calls itself something else than lines of JSON, plain or gzipped."""


class BrokenGzip(ServiceError):
    """A stream calls itself gzip and is none, or ends in the middle of it."""


class JobsOff(ServiceError):
    """The service keeps no batch jobs."""


class UnknownJob(ServiceError):
    """The caller has no such job. The message is for the client."""


class TooManyJobs(ServiceError):
    """The caller has as many jobs as are kept for one. The message is for the client."""


class SourceRefused(ServiceError):
    """Nothing is fetched from where a job says its lines are. The message is for the client."""


class SourceUnreadable(ServiceError):
    """A job's lines could not be fetched. The message is for the client."""


class JobTooLarge(ServiceError):
    """A job has more lines or bytes than the service takes. The message is for the client."""


class JobsFull(ServiceError):
    """There is no room for another job. The message is for the client."""


class Unavailable(ServiceError):
    """The text is fine; the service cannot answer it now."""


class Overloaded(Unavailable):
    """The waiting room is full."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"too much work is waiting, try again in {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


class DeadlineExceeded(Unavailable):
    """The answer did not come within the time allowed."""


class ShuttingDown(Unavailable):
    """The service finishes what it accepted and takes nothing new."""


class JobsUnavailable(Unavailable):
    """The database of jobs does not answer."""


class NotAuthenticated(ServiceError):
    """No key came with the request, or none that is known."""

    def __init__(self, message: str, *, presented: bool) -> None:
        super().__init__(message)
        self.presented = presented


class NotPermitted(ServiceError):
    """The key is known, and may not do this."""

    def __init__(self, scope: str) -> None:
        super().__init__(f"This key lacks the scope {scope!r}.")
        self.scope = scope


class LimitExceeded(ServiceError):
    """The caller has used up what its rate limits allow for now."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BatchOverLimit(ServiceError):
    """More texts than a rate limit of the caller allows at once, so that waiting would not help."""


class ModelFailure(ServiceError):
    """The model raised, or answered with something that is no answer."""


class BundleRefused(ServiceError):
    """A bundle that was to be served cannot be; what was served before goes on. The message is for the operator."""


class ChangeUnderWay(ServiceError):
    """Another change of models is under way."""


class CannotProceed(Exception):
    """A command cannot do its work; the message says what to change or install. Never meets a caller of the service."""


class StartupError(CannotProceed):
    """The service cannot start."""
