"""What a person sees when something goes wrong: one line that says what, why, and what to do. Never a traceback."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from scheduler_service.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import grpc
    import grpc.aio


class CliError(Exception):
    """An error to show as it is: what is wrong, and the remedy when one is known."""

    def __init__(self, message: str, remedy: str = "", code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.code = code

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class UsageProblem(CliError):
    """The command was used wrongly, in a way that only became known while it ran."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy, ExitCode.USAGE)


# What the server cannot know: which of *our* commands helps. Its own messages carry the remedy in general words.
_REMEDIES: Mapping[str, str] = {
    "RUN_NOT_FOUND": "`backburner ps` lists the runs",
    "EFFECT_NOT_FOUND": "`backburner ps --effects` lists the open effects, `backburner show RUN` those of a run",
    "EFFECT_HAS_EXECUTOR": "`backburner cancel EFFECT`",
    "EFFECT_KEY_CONFLICT": "give another --key, or ask for what was recorded: `backburner show RUN/KEY`",
    "RUN_PRUNED": "give another --key",
    "NOT_PARKED": "`backburner show RUN` says what it waits for",
    "RUN_CLOSED": "`backburner show RUN` says how it ended",
    "BLOB_NOT_FOUND": "`backburner show RUN` prints the digests of its blobs",
    "RUN_KEY_CONFLICT": "give another --key, or the process and input that the run was created with",
}

_USAGE_CODES = {
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "FAILED_PRECONDITION",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
}


def from_rpc(error: grpc.RpcError, address: str, source: str) -> CliError:
    """The error of a call, as a person needs it; `source` says where the address came from."""
    code = error.code().name if hasattr(error, "code") else "UNKNOWN"
    message = (error.details() if hasattr(error, "details") else None) or code
    reason, violations = _details(error)
    if code == "UNAVAILABLE" and not reason:
        return _unreachable(address, source, message)
    text = _join(message, reason, violations)
    return CliError(text, _REMEDIES.get(reason, ""), _exit_code(code))


def reason_of(error: grpc.RpcError) -> str:
    """Reason of the error's ErrorInfo; empty when it has none."""
    return _details(error)[0]


def _unreachable(address: str, source: str, message: str) -> CliError:
    cause = message.rpartition(": ")[2] or message  # gRPC tells the whole way there; the end of it is the cause
    return CliError(
        f"no scheduler answers at {address} ({source}): {cause}",
        "is `backburner dev` running? Give another address with --address or BACKBURNER_ADDRESS",
        ExitCode.UNREACHABLE,
    )


def _exit_code(code: str) -> ExitCode:
    if code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"):
        return ExitCode.UNREACHABLE
    if code == "DEADLINE_EXCEEDED":
        return ExitCode.TIMED_OUT
    return ExitCode.USAGE if code in _USAGE_CODES else ExitCode.FAILED


def _join(message: str, reason: str, violations: Sequence[tuple[str, str]]) -> str:
    # The server's message names the violations too, cut short; the list is complete and in our words.
    unsaid = [f"{field}: {problem}" for field, problem in violations if f"{field}: {problem}" not in message]
    said = f"{message} ({'; '.join(unsaid)})" if unsaid else message
    return f"{said} [{reason}]" if reason else said


def _details(error: grpc.RpcError) -> tuple[str, list[tuple[str, str]]]:
    """Reason of the ErrorInfo and the field violations, from the google.rpc.Status in the trailers."""
    from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

    reason, violations = "", []
    raw = error.trailing_metadata() if hasattr(error, "trailing_metadata") else None
    trailers = cast("Iterable[tuple[str, str | bytes]]", raw or ())
    packed = next((value for key, value in trailers if key == "grpc-status-details-bin"), None)
    for detail in status_pb2.Status.FromString(packed).details if isinstance(packed, bytes) else ():
        info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(request):
            violations += [(item.field, item.description) for item in request.field_violations]
    return reason, violations
