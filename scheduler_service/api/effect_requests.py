"""Requests about effects, parsed: checked, with defaults filled in. Each raises InvalidRequest with every violation."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from backburner.executor.v1 import executor_service_pb2 as executor_pb
from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api import inputs, limits, pages
from scheduler_service.api.checks import Checks, checked
from scheduler_service.api.run_requests import OutputKey, RunRef, optional_time, output_positions, view_is_full

#: The streams of a child, in the order in which they are read. A transcript is read only by who asks for it.
STREAMS: Final = (executor_pb.OUTPUT_STREAM_STDOUT, executor_pb.OUTPUT_STREAM_STDERR)


@dataclass(frozen=True, slots=True)
class EffectRef:
    """Names an effect by id, or by run and key."""

    namespace: str
    effect_id: str = ""
    run_id: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class EffectQuery:
    """GetEffect."""

    effect: EffectRef
    full: bool
    client_epoch: int


@dataclass(frozen=True, slots=True)
class EffectFilter:
    """Which effects a list shows. A page token is bound to it."""

    namespace: str
    run_id: str
    states: tuple[str, ...]
    kinds: tuple[str, ...]
    harnesses: tuple[str, ...]
    labels: dict[str, str]
    open_only: bool
    requested_after: datetime | None
    requested_before: datetime | None


@dataclass(frozen=True, slots=True)
class EffectList:
    """ListEffects. The position is the request time and the id of the last effect of the page before."""

    filter: EffectFilter
    page_size: int
    before: tuple[str, str] | None
    full: bool


@dataclass(frozen=True, slots=True)
class EffectsWait:
    """WaitEffects."""

    run: RunRef
    keys: tuple[str, ...]
    any_of_them: bool
    max_wait_s: float
    client_epoch: int


@dataclass(frozen=True, slots=True)
class EffectWatch:
    """WatchEffect."""

    effect: EffectRef
    after_seq: int | None
    output: bool
    positions: Mapping[OutputKey, int]
    client_epoch: int


@dataclass(frozen=True, slots=True)
class Resolution:
    """ResolveEffect. `state` is SUCCEEDED or FAILED; result and error are as the journal stores them."""

    effect: EffectRef
    actor: str
    state: str
    result: dict[str, Any] | None
    error: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class OutputQuery:
    """StreamOutput. Attempt 0 is the newest."""

    effect: EffectRef
    attempt: int
    streams: tuple[int, ...]
    offset: int
    follow: bool


def effect_query(request: pb.GetEffectRequest) -> EffectQuery:
    """Parses GetEffect."""
    with checked() as check:
        return EffectQuery(
            effect=_effect_ref(check, request.effect, request.namespace),
            full=view_is_full(check, request.view, default=True),
            client_epoch=check.not_negative("client_epoch", request.client_epoch),
        )


def effect_list(request: pb.ListEffectsRequest) -> EffectList:
    """Parses ListEffects."""
    with checked() as check:
        which = EffectFilter(
            namespace=check.namespace(request.namespace),
            run_id=check.optional_uuid("run_id", request.run_id),
            states=check.enums("states", request.states, journal_pb2.EffectState, "EFFECT_STATE_"),
            kinds=check.enums("kinds", request.kinds, journal_pb2.EffectKind, "EFFECT_KIND_"),
            harnesses=check.names("harnesses", request.harnesses),
            labels=check.labels("labels", request.labels),
            open_only=request.open_only,
            requested_after=optional_time(check, request, "requested_after"),
            requested_before=optional_time(check, request, "requested_before"),
        )
        position = pages.decode_token(check, request.page_token, asdict(which))
        return EffectList(
            filter=which,
            page_size=check.page_size(request.page_size),
            before=(position[0], position[1]) if position else None,
            full=view_is_full(check, request.view, default=False),
        )


def effects_wait(request: pb.WaitEffectsRequest) -> EffectsWait:
    """Parses WaitEffects."""
    with checked() as check:
        check.at_most("keys", request.keys, limits.WAIT_KEYS_MAX)
        if not request.keys:
            check.refuse("keys", "is required")
        for index, key in enumerate(request.keys[: limits.WAIT_KEYS_MAX]):
            check.required(f"keys[{index}]", key, limits.KEY_BYTES_MAX)
        check.enum("mode", request.mode, pb.WaitEffectsRequest.Mode)
        return EffectsWait(
            run=RunRef(check.namespace(request.namespace), check.uuid("run_id", request.run_id)),
            keys=tuple(request.keys),
            any_of_them=request.mode == pb.WaitEffectsRequest.MODE_ANY,
            max_wait_s=check.max_wait(request.max_wait if request.HasField("max_wait") else None),
            client_epoch=check.not_negative("client_epoch", request.client_epoch),
        )


def effect_watch(request: pb.WatchEffectRequest) -> EffectWatch:
    """Parses WatchEffect."""
    with checked() as check:
        return EffectWatch(
            effect=_effect_ref(check, request.effect, request.namespace),
            after_seq=check.not_negative("after_seq", request.after_seq) if request.HasField("after_seq") else None,
            output=request.include_output,
            positions=output_positions(check, request.output_positions),
            client_epoch=check.not_negative("client_epoch", request.client_epoch),
        )


def effect_cancel(request: pb.CancelEffectRequest) -> tuple[EffectRef, str]:
    """Parses CancelEffect: the effect and the reason."""
    with checked() as check:
        ref = _effect_ref(check, request.effect, request.namespace)
        reason = check.text("reason", request.reason, limits.REASON_BYTES_MAX)
    return ref, reason


def resolution(request: pb.ResolveEffectRequest) -> Resolution:
    """Parses ResolveEffect."""
    with checked() as check:
        outcome = request.WhichOneof("outcome")
        if outcome is None:
            check.refuse("outcome", "is required: succeeded or failed")
        return Resolution(
            effect=_effect_ref(check, request.effect, request.namespace),
            actor=check.text("actor", request.actor, limits.ACTOR_BYTES_MAX) or "client",
            state="SUCCEEDED" if outcome == "succeeded" else "FAILED",
            result=_result(check, request.succeeded) if outcome == "succeeded" else None,
            error=_error(check, request.failed) if outcome == "failed" else None,
        )


def output_query(request: pb.StreamOutputRequest) -> OutputQuery:
    """Parses StreamOutput."""
    with checked() as check:
        stream = check.enum("stream", request.stream, executor_pb.OutputStream)
        if request.offset and not stream:
            check.refuse("stream", "is required with an offset: offsets are positions in one stream")
        return OutputQuery(
            effect=_effect_ref(check, request.effect, request.namespace),
            attempt=check.not_negative("attempt", request.attempt),
            streams=(stream,) if stream else STREAMS,
            offset=check.not_negative("offset", request.offset),
            follow=request.follow,
        )


def _effect_ref(check: Checks, name: pb.EffectName, namespace: str) -> EffectRef:
    by_id, by_key = bool(name.effect_id), bool(name.run_id or name.key)
    if by_id == by_key:
        check.refuse("effect", "give either effect_id, or run_id and key")
    elif by_id:
        return EffectRef(check.namespace(namespace), check.uuid("effect.effect_id", name.effect_id))
    run_id = check.uuid("effect.run_id", name.run_id) if by_key and not by_id else ""
    # Keys of process code may hold what clients' keys may not: `lint/my file.py`.
    key = check.required("effect.key", name.key, limits.KEY_BYTES_MAX) if by_key and not by_id else ""
    return EffectRef(check.namespace(namespace), run_id=run_id, key=key)


def _result(check: Checks, success: pb.ExternalSuccess) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if success.choice:
        result["choice"] = check.text("succeeded.choice", success.choice, limits.NAME_BYTES_MAX)
    if success.HasField("value"):
        value = inputs.json_value(check, success.value, "succeeded.value", limits.VALUE_BYTES_MAX)
        result["value"] = {"value": value}
    return result


def _error(check: Checks, failure: pb.ExternalFailure) -> dict[str, Any]:
    message = check.text("failed.message", failure.message, limits.REASON_BYTES_MAX)
    return {"reason": "EFFECT_REASON_REJECTED_BY_RESOLVER", "message": message}
