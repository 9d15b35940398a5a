"""Errors as google.rpc.Status: one ErrorInfo always, BadRequest and RetryInfo where they help."""

import logging
import secrets

from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from scheduler_service.errors import DOMAIN, DatabaseUnavailable, InternalError, InvalidRequest, ServiceError
from scheduler_service.journal import JournalUnavailable

_log = logging.getLogger(__name__)

# A status travels in HTTP/2 trailers, of which gRPC peers accept 8 KiB by default: the message once as it is and, with
# the details, once more in base64.
_MESSAGE_BYTES_MAX = 800
_VIOLATIONS_BYTES_MAX = 2000
_TEXT_BYTES_MAX = 300


def service_error(error: Exception, method: str) -> ServiceError:
    """The error as callers may see it; what is none of ours is logged under an incident id, and only that leaves."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, JournalUnavailable):
        _log.warning("database unavailable", extra={"action": "database_unavailable", "method": method})
        return DatabaseUnavailable()
    incident = secrets.token_hex(8)
    _log.error("internal error in %s, incident %s", method, incident, exc_info=error, extra={"incident": incident})
    return InternalError(incident)


def status_of(error: ServiceError) -> status_pb2.Status:
    """The google.rpc.Status of an error."""
    code: int = error.code.value[0]
    status = status_pb2.Status(code=code, message=_clip(error.message, _MESSAGE_BYTES_MAX))
    metadata = {name: _clip(value, _TEXT_BYTES_MAX) for name, value in error.metadata.items()}
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if isinstance(error, InvalidRequest):
        status.details.add().Pack(_bad_request(error))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def _bad_request(error: InvalidRequest) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for item in error.violations:
        field, problem = _clip(item.field, _TEXT_BYTES_MAX), _clip(item.problem, _TEXT_BYTES_MAX)
        if bad.ByteSize() + len(field.encode()) + len(problem.encode()) > _VIOLATIONS_BYTES_MAX:
            break
        bad.field_violations.add(field=field, description=problem)
    return bad


def _clip(text: str, bytes_max: int) -> str:
    # Escaped because a lone surrogate cannot be sent.
    raw = text.encode("utf-8", "backslashreplace")
    return raw.decode() if len(raw) <= bytes_max else raw[: bytes_max - 3].decode(errors="ignore") + "…"
