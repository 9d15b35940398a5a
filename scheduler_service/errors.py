"""What callers of the scheduler service can be refused for: one class a condition, one table to the wire.

Anything below the servicers raises these and nobody catches them on the way: `api/interceptor.py` turns each into a
google.rpc.Status. A message says what is wrong, with which ids, and what to do; every variable of it is metadata too,
so that programs need not read prose.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc

DOMAIN: Final = "backburner"


class ServiceError(Exception):
    """A call is refused. Subclasses stand in `STATUS`; keyword data becomes the ErrorInfo's metadata."""

    #: How long a caller should wait before it tries again. None: waiting does not help.
    retry_after_s: float | None = None

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = {name: str(value) for name, value in metadata.items()}

    def __reduce__(self) -> tuple[Callable[..., "ServiceError"], tuple[Any, ...]]:
        return _restore, (type(self), self.args, self.__dict__)

    @property
    def code(self) -> grpc.StatusCode:
        """The status code on the wire."""
        return STATUS[type(self)][0]

    @property
    def reason(self) -> str:
        """The ErrorInfo reason on the wire."""
        return STATUS[type(self)][1]


def _restore(kind: type[ServiceError], args: tuple[Any, ...], state: Mapping[str, Any]) -> ServiceError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with a request: the path of the field, as in `input.files[2]`, and what is wrong."""

    field: str
    problem: str


class InvalidRequest(ServiceError):
    """Fields are missing, malformed or out of range; all of them are named at once."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        listed = "; ".join(f"{item.field}: {item.problem}" for item in violations[:5])
        more = f"; and {len(violations) - 5} more" if len(violations) > 5 else ""
        super().__init__(f"the request is invalid: {listed}{more}", violations=len(violations))
        self.violations = tuple(violations)


class PayloadTooLarge(InvalidRequest):
    """A value is too large to be stored inline."""


class ProcessNotFound(ServiceError):
    """The process is not registered on this replica."""

    def __init__(self, process: str, known: Sequence[str]) -> None:
        names = ", ".join(known[:10]) or "none"
        super().__init__(
            f"process {process!r} is not registered here (registered: {names}): check the name, or start the "
            "scheduler with --process-module",
            process=process,
        )


class RunNotFound(ServiceError):
    """No such run in the namespace."""

    def __init__(self, namespace: str, run: str) -> None:
        super().__init__(
            f"run {run!r} does not exist in namespace {namespace!r}: check the id and the namespace",
            namespace=namespace,
            run=run,
        )


class EffectNotFound(ServiceError):
    """No such effect in the namespace."""

    def __init__(self, namespace: str, effect: str) -> None:
        super().__init__(
            f"effect {effect!r} does not exist in namespace {namespace!r}: check the name and the namespace",
            namespace=namespace,
            effect=effect,
        )


class RunKeyConflict(ServiceError):
    """The key belongs to a run of another process or input."""

    def __init__(self, namespace: str, key: str, recorded_digest: str, asked_digest: str) -> None:
        super().__init__(
            f"key {key!r} in namespace {namespace!r} belongs to a run of another process or input: use another key, "
            "or ask again with what was recorded",
            namespace=namespace,
            key=key,
            recorded_digest=recorded_digest,
            asked_digest=asked_digest,
        )


class RequestIdReused(ServiceError):
    """The request id was used for another request."""

    def __init__(self, namespace: str, request_id: str) -> None:
        super().__init__(
            f"request_id {request_id} was used for another request in namespace {namespace!r}: make a fresh one for "
            "each request",
            namespace=namespace,
            request_id=request_id,
        )


class RunClosed(ServiceError):
    """The run has ended."""

    def __init__(self, run_id: str, state: str) -> None:
        super().__init__(f"run {run_id} has ended as {state}: nothing can change it", run_id=run_id, state=state)


class NotParked(ServiceError):
    """The run is neither halted nor parked."""

    def __init__(self, run_id: str, state: str) -> None:
        super().__init__(
            f"run {run_id} is {state}: only a halted run, or one parked by an error of its process, can be resumed",
            run_id=run_id,
            state=state,
        )


class HistoryLimit(ServiceError):
    """The run's journal is at its limit."""

    def __init__(self, run_id: str, head_seq: int) -> None:
        super().__init__(
            f"the journal of run {run_id} has {head_seq} events, which is the most: cancel the run, and let its "
            "process use continue_as_new",
            run_id=run_id,
            head_seq=head_seq,
        )


class EffectSettled(ServiceError):
    """The effect has settled otherwise."""

    def __init__(self, effect_id: str, state: str) -> None:
        super().__init__(
            f"effect {effect_id} has settled as {state}: nothing can change it", effect_id=effect_id, state=state
        )


class EffectHasExecutor(ServiceError):
    """Only the executor of the effect settles it."""

    def __init__(self, effect_id: str, kind: str) -> None:
        super().__init__(
            f"effect {effect_id} is of kind {kind}, which an executor settles: cancel it instead",
            effect_id=effect_id,
            kind=kind,
        )


class CursorAhead(ServiceError):
    """The position is beyond the journal's head."""

    def __init__(self, run_id: str, after_seq: int, head_seq: int) -> None:
        super().__init__(
            f"after_seq {after_seq} is beyond the head {head_seq} of run {run_id}: use a seq that this run has sent",
            run_id=run_id,
            after_seq=after_seq,
            head_seq=head_seq,
        )


class OffsetAhead(ServiceError):
    """The offset is beyond what was written."""

    def __init__(self, effect_id: str, attempt: int, offset: int, size: int) -> None:
        super().__init__(
            f"offset {offset} is beyond the {size} bytes that attempt {attempt} of effect {effect_id} wrote: read from "
            "a smaller one",
            effect_id=effect_id,
            attempt=attempt,
            offset=offset,
            size=size,
        )


class TooManyWatchers(ServiceError):
    """The limit of watches of this replica is reached."""

    retry_after_s = 5.0

    def __init__(self, watchers_max: int) -> None:
        super().__init__(
            f"this replica serves {watchers_max} watches, which is its limit: try again later, or poll",
            watchers_max=watchers_max,
        )


class ContractUnsupported(ServiceError):
    """The executor calls journal functions of a contract that this schema does not serve."""

    def __init__(self, contract: int, served: str) -> None:
        super().__init__(
            f"contract {contract} is not served here (served: {served}): upgrade the executor or the scheduler",
            contract=contract,
            served=served,
        )


class SessionSuperseded(ServiceError):
    """A newer session of the same executor exists."""

    def __init__(self, executor_id: str, session_no: int) -> None:
        super().__init__(
            f"session {session_no} of executor {executor_id!r} was superseded by a newer one: are two executors "
            "started with the same id?",
            executor_id=executor_id,
            session_no=session_no,
        )


class Draining(ServiceError):
    """This replica goes away."""

    retry_after_s = 1.0

    def __init__(self, scheduler_id: str) -> None:
        super().__init__(
            f"scheduler {scheduler_id} is shutting down: try again, another replica answers", scheduler_id=scheduler_id
        )


class DatabaseUnavailable(ServiceError):
    """Postgres does not answer. Nothing happened that was not acknowledged."""

    retry_after_s = 1.0

    def __init__(self) -> None:
        super().__init__("the database does not answer: try again; repeating the call is safe")


class NotImplementedYet(ServiceError):
    """The API has it, this release does not."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not implemented in this release: see GetServerInfo.features", what=what)


class InternalError(ServiceError):
    """A bug. The log has the traceback under the incident's id."""

    def __init__(self, incident: str) -> None:
        super().__init__(f"internal error, incident {incident}: report it with the server's log", incident=incident)


#: The one place that says what a class is on the wire.
STATUS: Final[Mapping[type[ServiceError], tuple[grpc.StatusCode, str]]] = {
    InvalidRequest: (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    # Not RESOURCE_EXHAUSTED, which clients retry.
    PayloadTooLarge: (grpc.StatusCode.INVALID_ARGUMENT, "PAYLOAD_TOO_LARGE"),
    ProcessNotFound: (grpc.StatusCode.NOT_FOUND, "PROCESS_NOT_FOUND"),
    RunNotFound: (grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND"),
    EffectNotFound: (grpc.StatusCode.NOT_FOUND, "EFFECT_NOT_FOUND"),
    RunKeyConflict: (grpc.StatusCode.ALREADY_EXISTS, "RUN_KEY_CONFLICT"),
    RequestIdReused: (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"),
    RunClosed: (grpc.StatusCode.FAILED_PRECONDITION, "RUN_CLOSED"),
    NotParked: (grpc.StatusCode.FAILED_PRECONDITION, "NOT_PARKED"),
    HistoryLimit: (grpc.StatusCode.FAILED_PRECONDITION, "HISTORY_LIMIT"),
    EffectSettled: (grpc.StatusCode.FAILED_PRECONDITION, "EFFECT_SETTLED"),
    EffectHasExecutor: (grpc.StatusCode.FAILED_PRECONDITION, "EFFECT_HAS_EXECUTOR"),
    ContractUnsupported: (grpc.StatusCode.FAILED_PRECONDITION, "CONTRACT_UNSUPPORTED"),
    CursorAhead: (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_AHEAD"),
    OffsetAhead: (grpc.StatusCode.OUT_OF_RANGE, "OFFSET_AHEAD"),
    TooManyWatchers: (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHERS"),
    SessionSuperseded: (grpc.StatusCode.ABORTED, "SESSION_SUPERSEDED"),
    Draining: (grpc.StatusCode.UNAVAILABLE, "DRAINING"),
    DatabaseUnavailable: (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE"),
    NotImplementedYet: (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED"),
    InternalError: (grpc.StatusCode.INTERNAL, "INTERNAL"),
}
