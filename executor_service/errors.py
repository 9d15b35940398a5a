"""What callers of the executor service can be refused for, and what can keep it from starting.

Anything below the servicer raises a ServiceError and nobody catches it on the way: `api.py` turns it into a
google.rpc.Status. A failing child is never an exception: it is an Outcome (`outcome.py`).
"""

from collections.abc import Mapping
from typing import Final

import grpc

DOMAIN: Final = "backburner"


class StartError(Exception):
    """The executor cannot start as configured; the message says what to change."""


class ServiceError(Exception):
    """A call is refused. Subclasses stand in `STATUS`; keyword data becomes the ErrorInfo's metadata."""

    #: How long a caller should wait before it tries again. None: waiting does not help.
    retry_after_s: float | None = None

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = {name: str(value) for name, value in metadata.items()}


class InvalidRequest(ServiceError):
    """The request cannot be parsed, or a field of it is out of range."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"the request is invalid: {field}: {problem}", field=field)


class AttemptNotFound(ServiceError):
    """This executor does not hold the attempt."""

    def __init__(self, effect_id: str, attempt: int) -> None:
        named = f"attempt {attempt} of effect {effect_id!r}" if attempt else f"an attempt of effect {effect_id!r}"
        super().__init__(
            f"this executor does not hold {named}: ask the journal for how it ended",
            effect_id=effect_id,
            attempt=attempt,
        )


class CursorAhead(ServiceError):
    """The cursor is beyond the attempt's log."""

    def __init__(self, effect_id: str, after_cursor: int, newest: int) -> None:
        super().__init__(
            f"after_cursor {after_cursor} is beyond {newest}, the newest of effect {effect_id}: use a cursor that "
            "this attempt has sent",
            effect_id=effect_id,
            after_cursor=after_cursor,
            newest=newest,
        )


class TooManyWatchers(ServiceError):
    """The limit of subscribers is reached."""

    retry_after_s = 5.0

    def __init__(self, watchers_max: int) -> None:
        super().__init__(
            f"this executor serves {watchers_max} progress streams, which is its limit: try again later, or watch "
            "through the scheduler",
            watchers_max=watchers_max,
        )


class InternalError(ServiceError):
    """A bug. The log has the traceback under the incident's id."""

    def __init__(self, incident: str) -> None:
        super().__init__(f"internal error, incident {incident}: report it with the executor's log", incident=incident)


#: The one place that says what a class is on the wire.
STATUS: Final[Mapping[type[ServiceError], tuple[grpc.StatusCode, str]]] = {
    InvalidRequest: (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    AttemptNotFound: (grpc.StatusCode.NOT_FOUND, "ATTEMPT_NOT_FOUND"),
    CursorAhead: (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_AHEAD"),
    TooManyWatchers: (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHERS"),
    InternalError: (grpc.StatusCode.INTERNAL, "INTERNAL"),
}
