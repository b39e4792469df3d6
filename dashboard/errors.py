"""What a request may end with, besides evervec's own errors."""

from evervec.errors import (
    ConfigurationError,
    DatabaseError,
    EvervecError,
    ItemNotFoundError,
    ModelUnavailableError,
    ServiceUnreachableError,
    SourceNotFoundError,
)


class RequestError(EvervecError):
    """The request cannot be answered."""

    status = 400


class StrangerError(RequestError):
    """A token is asked for."""

    status = 401


class ForbiddenError(RequestError):
    """That is not allowed."""

    status = 403


class TooLargeError(RequestError):
    """The request is larger than 4 MB: send fewer texts at a time."""

    status = 413


class MediaTypeError(RequestError):
    """Send JSON: Content-Type: application/json."""

    status = 415


class BusyError(RequestError):
    """Too many requests compute already: try again in a moment."""

    status = 429


def status_of(error: EvervecError) -> int:
    """The HTTP status of an error."""
    match error:
        case RequestError():
            return error.status
        case SourceNotFoundError() | ItemNotFoundError():
            return 404
        case ServiceUnreachableError() | ModelUnavailableError():
            return 503
        case ConfigurationError() | DatabaseError():
            return 400
    return 500
