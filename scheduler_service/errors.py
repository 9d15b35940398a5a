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
    """A value is larger than its limit."""


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


class RunPruned(ServiceError):
    """The run has ended and was removed by retention; its key is not used again."""

    def __init__(self, namespace: str, run_id: str) -> None:
        super().__init__(
            f"run {run_id} in namespace {namespace!r} ended long ago and was removed by retention: a new run needs "
            "another key",
            namespace=namespace,
            run_id=run_id,
        )


class EffectNotFound(ServiceError):
    """No such effect in the namespace."""

    def __init__(self, namespace: str, *, effect_id: str = "", run_id: str = "", key: str = "", count: int = 1) -> None:
        named = f"effect {effect_id}" if effect_id else f"effect {key!r} of run {run_id}"
        more = f" (and {count - 1} more of those that were asked for)" if count > 1 else ""
        asked = {"effect_id": effect_id} if effect_id else {"run_id": run_id, "key": key, "count": count}
        super().__init__(
            f"{named}{more} does not exist in namespace {namespace!r}: check the name and the namespace",
            namespace=namespace,
            **asked,
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
    """The run has ended; a run that was continued says as which one."""

    def __init__(self, run_id: str, state: str, next_run_id: str = "") -> None:
        onward = f"it goes on as run {next_run_id}" if next_run_id else "nothing can change it"
        names = {"next_run_id": next_run_id} if next_run_id else {}
        said = f"has ended as {state}: {onward}"
        if state in ("CLOSING", "CANCELLING"):
            said = f"is {state}: it takes nothing new any more"
        super().__init__(f"run {run_id} {said}", run_id=run_id, state=state, **names)


class RunHalted(ServiceError):
    """The run is halted, or parked by an error."""

    def __init__(self, run_id: str, halt_reason: str) -> None:
        super().__init__(
            f"run {run_id} is halted ({halt_reason or 'no reason was given'}): resume it first, or cancel it",
            run_id=run_id,
            halt_reason=halt_reason or "none",
        )


class RunNotClientDriven(ServiceError):
    """The run has a process, which alone asks for its effects."""

    def __init__(self, run_id: str, process: str) -> None:
        super().__init__(
            f"run {run_id} is driven by process {process!r}, not by a client: create a run with `client` set",
            run_id=run_id,
            process=process,
        )


class ClientSuperseded(ServiceError):
    """Another start of the run's client has taken it over."""

    def __init__(self, run_id: str, client_epoch: int, newest_epoch: int) -> None:
        super().__init__(
            f"client epoch {client_epoch} of run {run_id} is superseded by {newest_epoch}: another client has called "
            "CreateRun for this run since; stop this one",
            run_id=run_id,
            client_epoch=client_epoch,
            newest_epoch=newest_epoch,
        )


class EffectsOpen(ServiceError):
    """Effects that the run's end waits for have not settled."""

    def __init__(self, run_id: str, keys: Sequence[str], count: int) -> None:
        named = ", ".join(keys)
        more = f" and {count - len(keys)} more" if count > len(keys) else ""
        super().__init__(
            f"run {run_id} has {count} open effects that its end waits for ({named}{more}): wait for them, cancel "
            "them, or finish with wait=true",
            run_id=run_id,
            keys=named,
            count=count,
        )


class EffectKeyConflict(ServiceError):
    """A key was requested before, with other work."""

    def __init__(self, run_id: str, conflicts: Sequence[Mapping[str, str]], asked: Mapping[str, str]) -> None:
        first = conflicts[0]
        named = ", ".join(conflict["key"] for conflict in conflicts[:10])
        more = f" and {len(conflicts) - 10} more" if len(conflicts) > 10 else ""
        super().__init__(
            f"run {run_id} has effects with these keys and other work: {named}{more}; use another key, or "
            "on_conflict=USE_RECORDED to take what was recorded",
            run_id=run_id,
            key=first["key"],
            recorded_digest=first["recorded_digest"],
            asked_digest=asked[first["key"]],
            keys=named,
            count=len(conflicts),
        )


class GroupConflict(ServiceError):
    """A concurrency group was declared before, with another limit or strategy."""

    def __init__(self, run_id: str, conflicts: Sequence[Mapping[str, Any]]) -> None:
        first = conflicts[0]
        declared = f"{first['strategy']} up to {first['max_concurrency']}"
        super().__init__(
            f"group {first['group_id']!r} of run {run_id} was declared as {declared} before, and effect "
            f"{first['key']!r} declares it otherwise: use the same limit and strategy, or another group",
            run_id=run_id,
            group_id=first["group_id"],
            declared=declared,
            key=first["key"],
            count=len(conflicts),
        )


class QueueFull(ServiceError):
    """The run has as many open effects as it may have."""

    retry_after_s = 5.0

    def __init__(self, run_id: str, open_effects: int, open_effects_max: int) -> None:
        super().__init__(
            f"run {run_id} has {open_effects} open effects, at most {open_effects_max} are possible: ask again when "
            "some have settled",
            run_id=run_id,
            open_effects=open_effects,
            open_effects_max=open_effects_max,
        )


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


class BlobNotFound(ServiceError):
    """No such blob in the run."""

    def __init__(self, run_id: str, digest: str) -> None:
        super().__init__(
            f"run {run_id} has no blob {digest}: take the digest from a value of this run", run_id=run_id, digest=digest
        )


class BlobOffsetAhead(ServiceError):
    """The offset is beyond the content."""

    def __init__(self, digest: str, offset: int, size: int) -> None:
        super().__init__(
            f"offset {offset} is beyond the {size} bytes of blob {digest}: read from a smaller one",
            digest=digest,
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


class ExecutorNotFound(ServiceError):
    """No such executor has ever connected."""

    def __init__(self, executor_id: str) -> None:
        super().__init__(
            f"executor {executor_id!r} is not known: ListExecutors names those that are", executor_id=executor_id
        )


class ExecutorRestarted(ServiceError):
    """The executor has another incarnation than the one that was named."""

    def __init__(self, executor_id: str, asked: str, incarnation: str) -> None:
        super().__init__(
            f"executor {executor_id!r} has incarnation {incarnation}, not {asked}: it was started again; look again "
            "before you declare it dead",
            executor_id=executor_id,
            asked=asked,
            incarnation=incarnation,
        )


class AttemptSuperseded(ServiceError):
    """The effect has another attempt than the one that was named."""

    def __init__(self, effect_id: str, asked: int, attempt: int) -> None:
        super().__init__(
            f"effect {effect_id} is at attempt {attempt}, not {asked}: look again before you settle it",
            effect_id=effect_id,
            asked=asked,
            attempt=attempt,
        )


class EffectWithoutExecutor(ServiceError):
    """No executor runs effects of this kind."""

    def __init__(self, effect_id: str, kind: str) -> None:
        super().__init__(
            f"effect {effect_id} is of kind {kind}: resolve an external one, cancel the child run of a RUN, "
            "cancel a timer",
            effect_id=effect_id,
            kind=kind,
        )


class HoldNotFound(ServiceError):
    """No such hold is in force."""

    def __init__(self, hold_id: str) -> None:
        super().__init__(
            f"hold {hold_id} is not in force: ListHolds names those that are; an expired one needs no release",
            hold_id=hold_id,
        )


class TooManyHolds(ServiceError):
    """As many holds are in force as there may be."""

    def __init__(self) -> None:
        super().__init__("as many holds are in force as there may be: release some, or set a wider one in their place")


class BudgetNotFound(ServiceError):
    """No such budget."""

    def __init__(self, of: str) -> None:
        super().__init__(
            f"{of} has no budget that can be changed: it was given none when it was asked for, or it has settled; "
            "ListBudgets names those of labels",
            of=of,
        )


class TooManyBudgets(ServiceError):
    """As many labels have a budget as may."""

    def __init__(self) -> None:
        super().__init__("as many labels have a budget as may: clear some")


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

    def __init__(self, executor_id: str, session_no: int, incarnation: str) -> None:
        super().__init__(
            f"session {session_no} of executor {executor_id!r} was superseded by a newer one of incarnation "
            f"{incarnation}: are two executors started with the same id?",
            executor_id=executor_id,
            session_no=session_no,
            incarnation=incarnation,
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
    RunPruned: (grpc.StatusCode.NOT_FOUND, "RUN_PRUNED"),
    EffectNotFound: (grpc.StatusCode.NOT_FOUND, "EFFECT_NOT_FOUND"),
    RunKeyConflict: (grpc.StatusCode.ALREADY_EXISTS, "RUN_KEY_CONFLICT"),
    RequestIdReused: (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"),
    RunClosed: (grpc.StatusCode.FAILED_PRECONDITION, "RUN_CLOSED"),
    RunHalted: (grpc.StatusCode.FAILED_PRECONDITION, "RUN_HALTED"),
    RunNotClientDriven: (grpc.StatusCode.FAILED_PRECONDITION, "RUN_NOT_CLIENT_DRIVEN"),
    ClientSuperseded: (grpc.StatusCode.FAILED_PRECONDITION, "CLIENT_SUPERSEDED"),
    EffectsOpen: (grpc.StatusCode.FAILED_PRECONDITION, "EFFECTS_OPEN"),
    EffectKeyConflict: (grpc.StatusCode.ALREADY_EXISTS, "EFFECT_KEY_CONFLICT"),
    GroupConflict: (grpc.StatusCode.ALREADY_EXISTS, "GROUP_CONFLICT"),
    QueueFull: (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
    NotParked: (grpc.StatusCode.FAILED_PRECONDITION, "NOT_PARKED"),
    HistoryLimit: (grpc.StatusCode.FAILED_PRECONDITION, "HISTORY_LIMIT"),
    EffectSettled: (grpc.StatusCode.FAILED_PRECONDITION, "EFFECT_SETTLED"),
    EffectHasExecutor: (grpc.StatusCode.FAILED_PRECONDITION, "EFFECT_HAS_EXECUTOR"),
    ExecutorNotFound: (grpc.StatusCode.NOT_FOUND, "EXECUTOR_NOT_FOUND"),
    ExecutorRestarted: (grpc.StatusCode.FAILED_PRECONDITION, "EXECUTOR_RESTARTED"),
    AttemptSuperseded: (grpc.StatusCode.FAILED_PRECONDITION, "ATTEMPT_SUPERSEDED"),
    EffectWithoutExecutor: (grpc.StatusCode.FAILED_PRECONDITION, "EFFECT_WITHOUT_EXECUTOR"),
    HoldNotFound: (grpc.StatusCode.NOT_FOUND, "HOLD_NOT_FOUND"),
    BudgetNotFound: (grpc.StatusCode.NOT_FOUND, "BUDGET_NOT_FOUND"),
    TooManyBudgets: (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_BUDGETS"),
    TooManyHolds: (grpc.StatusCode.FAILED_PRECONDITION, "TOO_MANY_HOLDS"),
    ContractUnsupported: (grpc.StatusCode.FAILED_PRECONDITION, "CONTRACT_UNSUPPORTED"),
    CursorAhead: (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_AHEAD"),
    OffsetAhead: (grpc.StatusCode.OUT_OF_RANGE, "OFFSET_AHEAD"),
    BlobOffsetAhead: (grpc.StatusCode.OUT_OF_RANGE, "OFFSET_AHEAD"),
    BlobNotFound: (grpc.StatusCode.NOT_FOUND, "BLOB_NOT_FOUND"),
    TooManyWatchers: (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHERS"),
    SessionSuperseded: (grpc.StatusCode.ABORTED, "SESSION_SUPERSEDED"),
    Draining: (grpc.StatusCode.UNAVAILABLE, "DRAINING"),
    DatabaseUnavailable: (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE"),
    InternalError: (grpc.StatusCode.INTERNAL, "INTERNAL"),
}
