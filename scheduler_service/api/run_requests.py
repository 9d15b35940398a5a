"""Requests about runs, parsed: checked, with defaults filled in. Each raises InvalidRequest with every violation."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from backburner.executor.v1 import executor_service_pb2 as executor_pb
from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api import inputs, limits, pages
from scheduler_service.api.budget_checks import check_budget, stored_budget
from scheduler_service.api.checks import Checks, checked

#: A position in an attempt's output: effect, attempt, stream.
OutputKey = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class RunRef:
    """Names a run by id, or by key."""

    namespace: str
    run_id: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class NewRun:
    """CreateRun."""

    namespace: str
    key: str
    process: str
    input: dict[str, Any]
    labels: dict[str, str]
    request_id: str
    cleanup_timeout_s: float | None
    #: Earlier run whose succeeded effects answer equal requests.
    reuse_from: str = ""
    #: Set for a client-driven run: how long its client may be silent.
    idle_timeout_s: float | None = None
    #: Budget as proto3 JSON; None: no bound.
    budget: dict[str, Any] | None = None

    @property
    def client_driven(self) -> bool:
        """True when a client requests its effects."""
        return self.idle_timeout_s is not None


@dataclass(frozen=True, slots=True)
class Signal:
    """SignalRun. `value` is JSON."""

    run: RunRef
    name: str
    value: Any
    request_id: str


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs a list shows. A page token is bound to it."""

    namespace: str
    states: tuple[str, ...]
    processes: tuple[str, ...]
    labels: dict[str, str]
    created_after: datetime | None
    created_before: datetime | None


@dataclass(frozen=True, slots=True)
class RunList:
    """ListRuns."""

    filter: RunFilter
    page_size: int
    before_run_id: str | None
    full: bool


@dataclass(frozen=True, slots=True)
class RunWatch:
    """WatchRun."""

    run: RunRef
    after_seq: int | None
    progress: bool
    output: bool
    positions: Mapping[OutputKey, int]
    client_epoch: int


_VIEW: Final = pb.View
_STATE_PREFIX: Final = "RUN_STATE_"


def new_run(request: pb.CreateRunRequest) -> NewRun:
    """Parses CreateRun; the input is bound to its process later."""
    with checked() as check:
        client = request.HasField("client")
        if request.key and request.request_id and not client:
            check.refuse("request_id", "must be empty when key is given: the key makes the call idempotent")
        if client and request.process:
            check.refuse("process", "must be empty when client is given: such a run has no process")
        return NewRun(
            namespace=check.namespace(request.namespace),
            key=check.optional_key("key", request.key),
            process="" if client else check.required("process", request.process, limits.NAME_BYTES_MAX),
            input=inputs.input_object(check, request.input, limits.INPUT_BYTES_MAX),
            labels=check.labels("labels", request.labels),
            request_id=check.optional_uuid("request_id", request.request_id),
            cleanup_timeout_s=_cleanup(check, request),
            reuse_from=check.optional_uuid("reuse_from", request.reuse_from),
            idle_timeout_s=_idle(check, request.client) if client else None,
            budget=_budget(check, request),
        )


def _budget(check: Checks, request: pb.CreateRunRequest) -> dict[str, Any] | None:
    if not request.HasField("budget"):
        return None
    check_budget(check, "budget", request.budget)
    return stored_budget(request.budget)


def run_query(request: pb.GetRunRequest) -> tuple[RunRef, bool]:
    """Parses GetRun: the run, and whether all of it is wanted."""
    with checked() as check:
        if bool(request.run_id) == bool(request.key):
            check.refuse("run_id", "give either run_id or key")
        ref = RunRef(
            check.namespace(request.namespace),
            check.optional_uuid("run_id", request.run_id),
            check.optional_key("key", request.key),
        )
        full = view_is_full(check, request.view, default=True)
    return ref, full


def run_list(request: pb.ListRunsRequest) -> RunList:
    """Parses ListRuns."""
    with checked() as check:
        which = RunFilter(
            namespace=check.namespace(request.namespace),
            states=check.enums("states", request.states, journal_pb2.RunState, _STATE_PREFIX),
            processes=check.names("processes", request.processes),
            labels=check.labels("labels", request.labels),
            created_after=optional_time(check, request, "created_after"),
            created_before=optional_time(check, request, "created_before"),
        )
        position = pages.decode_token(check, request.page_token, asdict(which))
        return RunList(
            filter=which,
            page_size=check.page_size(request.page_size),
            before_run_id=position[0] if position else None,
            full=view_is_full(check, request.view, default=False),
        )


def run_wait(request: pb.WaitRunRequest) -> tuple[RunRef, float]:
    """Parses WaitRun: the run, and how long to wait at most."""
    with checked() as check:
        ref = RunRef(check.namespace(request.namespace), check.uuid("run_id", request.run_id))
        max_wait = check.max_wait(request.max_wait if request.HasField("max_wait") else None)
    return ref, max_wait


def run_watch(request: pb.WatchRunRequest) -> RunWatch:
    """Parses WatchRun."""
    with checked() as check:
        for index, value in enumerate(request.include):
            check.enum(f"include[{index}]", value, pb.WatchRunRequest.Include, required=True)
        return RunWatch(
            run=RunRef(check.namespace(request.namespace), check.uuid("run_id", request.run_id)),
            after_seq=check.not_negative("after_seq", request.after_seq) if request.HasField("after_seq") else None,
            progress=pb.WatchRunRequest.INCLUDE_PROGRESS in request.include,
            output=pb.WatchRunRequest.INCLUDE_OUTPUT in request.include,
            positions=output_positions(check, request.output_positions),
            client_epoch=check.not_negative("client_epoch", request.client_epoch),
        )


def journal_page(request: pb.ReadJournalRequest) -> tuple[RunRef, int, int]:
    """Parses ReadJournal: the run, the position and the most rows."""
    with checked() as check:
        ref = RunRef(check.namespace(request.namespace), check.uuid("run_id", request.run_id))
        after_seq = check.not_negative("after_seq", request.after_seq)
        page_size = check.page_size(request.page_size)
    return ref, after_seq, page_size


def run_reason(request: pb.CancelRunRequest | pb.HaltRunRequest | pb.ResumeRunRequest) -> tuple[RunRef, str]:
    """Parses CancelRun, HaltRun and ResumeRun: the run and the reason."""
    with checked() as check:
        ref = RunRef(check.namespace(request.namespace), check.uuid("run_id", request.run_id))
        reason = check.text("reason", request.reason, limits.REASON_BYTES_MAX)
    return ref, reason


def signal(request: pb.SignalRunRequest) -> Signal:
    """Parses SignalRun."""
    with checked() as check:
        return Signal(
            run=RunRef(check.namespace(request.namespace), check.uuid("run_id", request.run_id)),
            name=check.key("name", request.name),
            value=inputs.json_value(check, request.value, "value", limits.SIGNAL_BYTES_MAX),
            request_id=check.uuid("request_id", request.request_id),
        )


def view_is_full(check: Checks, view: int, *, default: bool) -> bool:
    """Whether input, spec and result are wanted."""
    check.enum("view", view, _VIEW)
    return default if view == pb.VIEW_UNSPECIFIED else view == pb.VIEW_FULL


def output_positions(check: Checks, positions: Any) -> dict[OutputKey, int]:
    """Parses positions in outputs."""
    check.at_most("output_positions", positions, limits.OUTPUT_POSITIONS_MAX)
    parsed: dict[OutputKey, int] = {}
    for index, item in enumerate(positions[: limits.OUTPUT_POSITIONS_MAX]):
        path = f"output_positions[{index}]"
        effect_id = check.uuid(f"{path}.effect_id", item.effect_id)
        attempt = check.not_negative(f"{path}.attempt", item.attempt)
        stream = check.enum(f"{path}.stream", item.stream, executor_pb.OutputStream, required=True)
        if stream == executor_pb.OUTPUT_STREAM_TRANSCRIPT:
            check.refuse(f"{path}.stream", "a watch has no transcripts: read them by StreamOutput")
        parsed[effect_id, attempt, stream] = check.not_negative(f"{path}.offset", item.offset)
    return parsed


def optional_time(check: Checks, request: pb.ListRunsRequest | pb.ListEffectsRequest, field: str) -> datetime | None:
    """A point in time, or none."""
    return check.time(field, getattr(request, field)) if request.HasField(field) else None  # type: ignore[arg-type]


def _cleanup(check: Checks, request: pb.CreateRunRequest) -> float | None:
    if not request.HasField("cleanup_timeout"):
        return None
    return check.seconds("cleanup_timeout", request.cleanup_timeout, limits.CLEANUP_SECONDS_MAX)


def _idle(check: Checks, client: pb.ClientDriven) -> float:
    if not client.HasField("idle_timeout"):
        return limits.IDLE_SECONDS_DEFAULT
    return check.seconds(
        "client.idle_timeout", client.idle_timeout, limits.IDLE_SECONDS_MAX, seconds_min=limits.IDLE_SECONDS_MIN
    )
