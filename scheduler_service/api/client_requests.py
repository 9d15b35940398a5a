"""Requests of client-driven runs, parsed. Each raises InvalidRequest with every violation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api import inputs, limits
from scheduler_service.api.checks import Checks, checked
from scheduler_service.api.effect_specs import check_size, check_spec, stored_spec
from scheduler_service.api.run_requests import RunRef
from scheduler_service.authoring.values import InvalidValue
from scheduler_service.journal.payloads import stored

_ON_CONFLICT: Final = pb.EffectRequest.OnConflict


@dataclass(frozen=True, slots=True)
class AskedEffect:
    """One effect of a request: its key, and its spec as it is stored."""

    key: str
    spec: dict[str, Any]
    use_recorded: bool


@dataclass(frozen=True, slots=True)
class EffectsAsked:
    """RequestEffects."""

    run: RunRef
    client_epoch: int
    effects: Sequence[AskedEffect]


@dataclass(frozen=True, slots=True)
class Finish:
    """FinishRun. `state` is COMPLETED or FAILED; `data` holds result or error as the journal stores them."""

    run: RunRef
    client_epoch: int
    state: str
    data: dict[str, Any]
    wait: bool
    #: The JSON text of a result that is too large for a row.
    blob_text: str | None


def effects_asked(request: pb.RequestEffectsRequest) -> EffectsAsked:
    """Parses RequestEffects."""
    with checked() as check:
        run, epoch = _run_and_epoch(check, request)
        check.at_most("effects", request.effects, limits.REQUEST_EFFECTS_MAX)
        if not request.effects:
            check.refuse("effects", "is required")
        if (size := request.ByteSize()) > limits.REQUEST_BYTES_MAX:
            check.refuse("effects", f"are {size} bytes, more than {limits.REQUEST_BYTES_MAX}", too_large=True)
        else:
            _check_effects(check, request.effects[: limits.REQUEST_EFFECTS_MAX])
    with checked() as check:
        asked = [_asked(check, f"effects[{index}]", effect) for index, effect in enumerate(request.effects)]
    return EffectsAsked(run, epoch, asked)


def finish(request: pb.FinishRunRequest) -> Finish:
    """Parses FinishRun."""
    with checked() as check:
        run, epoch = _run_and_epoch(check, request)
        outcome = request.WhichOneof("outcome")
        data: dict[str, Any] = {}
        blob_text: str | None = None
        if outcome is None:
            check.refuse("outcome", "is required: succeeded or failed")
        elif outcome == "succeeded":
            value = inputs.json_value(check, request.succeeded, "succeeded", limits.VALUE_BYTES_MAX)
            payload, blob_text = stored({"value": value})
            data = {"result": payload}
        else:
            data = {"error": _error(check, request.failed)}
        return Finish(run, epoch, "FAILED" if outcome == "failed" else "COMPLETED", data, request.wait, blob_text)


def _run_and_epoch(check: Checks, request: pb.RequestEffectsRequest | pb.FinishRunRequest) -> tuple[RunRef, int]:
    run = RunRef(check.namespace(request.namespace), check.uuid("run_id", request.run_id))
    if request.client_epoch < 1:
        check.refuse("client_epoch", "is required: CreateRun answers with it")
    return run, request.client_epoch


def _check_effects(check: Checks, effects: Sequence[pb.EffectRequest]) -> None:
    first: dict[str, int] = {}
    groups: dict[str, journal_pb2.Group] = {}
    for index, effect in enumerate(effects):
        path = f"effects[{index}]"
        key = check.key(f"{path}.key", effect.key)
        if first.setdefault(key, index) != index:
            check.refuse(f"{path}.key", f"is the key of effects[{first[key]}] too")
        check.enum(f"{path}.on_conflict", effect.on_conflict, _ON_CONFLICT)
        _check_group(check, f"{path}.spec.group", effect.spec.group, groups)
        if not effect.HasField("spec"):
            check.refuse(f"{path}.spec", "is required")
        else:
            check_spec(check, f"{path}.spec", effect.spec)


def _check_group(check: Checks, path: str, group: journal_pb2.Group, known: dict[str, journal_pb2.Group]) -> None:
    if group.id and known.setdefault(group.id, group) != group:
        check.refuse(path, f"declares group {group.id!r} otherwise than an effect before it in this request")


def _asked(check: Checks, path: str, effect: pb.EffectRequest) -> AskedEffect:
    try:
        stored = stored_spec(effect.spec)
    except InvalidValue as error:  # whatever the checks above do not know of
        check.refuse(f"{path}.{error.path}", error.problem)
        stored = {}
    check_size(check, f"{path}.spec", stored)
    return AskedEffect(effect.key, stored, effect.on_conflict == pb.EffectRequest.ON_CONFLICT_USE_RECORDED)


def _error(check: Checks, failed: journal_pb2.RunError) -> dict[str, Any]:
    """A RunError as proto3 JSON."""
    error = {
        name: check.text(f"failed.{name}", getattr(failed, name), bytes_max)
        for name, bytes_max in (
            ("kind", limits.NAME_BYTES_MAX),
            ("message", limits.ERROR_BYTES_MAX),
            ("exception_type", limits.NAME_BYTES_MAX),
            ("traceback", limits.ERROR_BYTES_MAX),
            ("effect_key", limits.KEY_BYTES_MAX),
        )
    }
    stored: dict[str, Any] = {name: text for name, text in error.items() if text}
    if failed.HasField("data"):
        stored["data"] = inputs.json_value(check, failed.data, "failed.data", limits.ERROR_DATA_BYTES_MAX)
    return {"kind": "FAIL"} | stored
