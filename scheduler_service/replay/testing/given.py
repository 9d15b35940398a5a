"""What a fake gives, as the data of the row that settles its effect, in the words of the executors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from scheduler_service.authoring.errors import EffectCancelled, EffectError, EffectTimedOut
from scheduler_service.authoring.results import (
    SESSION_FIELDS,
    AgentResult,
    Approval,
    Progress,
    Session,
    ShellResult,
    Usage,
    WorkspaceResult,
)
from scheduler_service.authoring.values import InvalidValue, encode
from scheduler_service.replay.testing.fakes import Asked, FakeMisused


@dataclass(frozen=True, slots=True)
class Given:
    """How an attempt ended: `outcome` is SUCCEEDED, FAILED, TIMED_OUT or CANCELLED; the rest is proto3 JSON."""

    outcome: str
    result: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] = field(default_factory=dict)
    resolved_by: str = ""

    @property
    def reason(self) -> str:
        """Why it did not succeed, without the prefix of the enum."""
        return str(self.error.get("reason", "")).removeprefix("EFFECT_REASON_")


def failure(reason: str, message: str, outcome: str = "FAILED", **rest: Any) -> Given:
    """An attempt that did not succeed; `rest` may hold the `result` that it gave before."""
    error = {"reason": f"EFFECT_REASON_{reason}", **({"message": message} if message else {})}
    return Given(outcome, error=error, **rest)


def value_given(asked: Asked, value: Any) -> Given:
    """The end of an attempt whose fake gave `value`. Raises FakeMisused when such an effect cannot give that."""
    try:
        if asked.kind == "shell":
            return _shell(asked, value)
        if asked.kind == "approval":
            return _approval(asked, value)
        return Given("SUCCEEDED", _agent(value) if asked.kind == "agent" else _payload(value))
    except InvalidValue as error:
        raise FakeMisused(f"the fake of {asked} gave what cannot be stored: {error}") from None


def _payload(value: Any) -> dict[str, Any]:
    return {} if value is None else {"value": {"value": encode(value, "result")}}


def _shell(asked: Asked, value: Any) -> Given:
    ended = _shell_result(asked, value)
    result: dict[str, Any] = {**_payload(ended.output)}
    if ended.signal is None:
        result["exit_code"] = ended.exit_code or 0
    else:
        result["signal"] = ended.signal
    for name, tail in (("stdout", ended.stdout_tail), ("stderr", ended.stderr_tail)):
        if tail:
            result[name] = {"tail": tail, "total_bytes": len(tail.encode())}
    if ended.signal is not None:
        return failure("KILLED_BY_SIGNAL", f"killed by signal {ended.signal}", result=result)
    if ended.exit_code and asked.work.get("check"):
        return failure("EXITED_NONZERO", f"exit code {ended.exit_code}", result=result)
    return Given("SUCCEEDED", result)


def _shell_result(asked: Asked, value: Any) -> ShellResult:
    if isinstance(value, ShellResult):
        return value
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return ShellResult(value or 0)
    if isinstance(value, str):
        return ShellResult(0, value)
    raise FakeMisused(f"the fake of {asked} gave {value!r}: give an exit code, text for stdout, or a bb.ShellResult")


def _approval(asked: Asked, value: Any) -> Given:
    answer = value if isinstance(value, Approval) else Approval(value)
    choices = asked.work["choices"]
    if answer.choice not in choices:
        raise FakeMisused(f"the fake of {asked} gave {value!r}: give one of {', '.join(map(repr, choices))}")
    return Given("SUCCEEDED", {"choice": answer.choice, **_payload(answer.data)}, resolved_by=answer.by or "test")


def _agent(value: Any) -> dict[str, Any]:
    if not isinstance(value, AgentResult):
        return _payload(value)
    said = value.text if value.value is None else value.value
    lost = {"session_lost": True} if value.session_lost else {}
    return {**_payload(said), **_usage(value.usage), **_session(value.session), **_workspace(value.workspace), **lost}


def _usage(usage: Usage | None) -> dict[str, Any]:
    return {} if usage is None else {"usage": {name: item for name, item in asdict(usage).items() if item}}


def _session(session: Session | None) -> dict[str, Any]:
    stored = {name: item for name in SESSION_FIELDS if (item := getattr(session, name, ""))}
    return {"session": stored} if stored else {}


def _workspace(workspace: WorkspaceResult | None) -> dict[str, Any]:
    return {"workspace": {name: item for name, item in asdict(workspace).items() if item}} if workspace else {}


def raised_given(asked: Asked, error: Exception) -> Given:
    """The end of an attempt whose fake raised."""
    if not isinstance(error, EffectError):
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        given = failure("RAISED", f"{kind.__name__}: {error}")
        return Given("FAILED", error={**given.error, "exception_type": name})
    partial = {
        **_payload(error.partial),
        **{name: value for name in ("exit_code", "signal") if (value := getattr(error, name)) is not None},
        **({"stderr": {"tail": error.stderr_tail}} if error.stderr_tail else {}),
        **_usage(error.usage),
        **_session(error.session),
        **_workspace(error.workspace),
    }
    for cls, outcome, reason in _ENDS:
        if isinstance(error, cls):
            return failure(error.reason or reason, error.message, outcome, result=partial)
    return failure(error.reason or _FAILED_REASONS.get(asked.kind, "RAISED"), error.message, result=partial)


_ENDS: Final = (
    (EffectTimedOut, "TIMED_OUT", "TIMEOUT_START_TO_CLOSE"),
    (EffectCancelled, "CANCELLED", "CANCELLED_BY_USER"),
)
_FAILED_REASONS: Final = {
    "shell": "EXITED_NONZERO",
    "agent": "HARNESS_ERROR",
    "approval": "REJECTED_BY_RESOLVER",
    "external": "REJECTED_BY_RESOLVER",
    "run": "CHILD_RUN_FAILED",
}


def progress_given(asked: Asked, value: Any) -> dict[str, Any]:
    """The data of EFFECT_PROGRESS for what a generator yielded: a bb.Progress, a percent, or a step's name."""
    if isinstance(value, str):
        value = Progress(step=value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        value = Progress(percent=float(value))
    if not isinstance(value, Progress):
        raise FakeMisused(f"the fake of {asked} yielded {value!r}: yield a bb.Progress, a percent or a step's name")
    stored = {name: item for name, item in asdict(value).items() if item not in (None, "", 0) and name != "eta_seconds"}
    if value.percent == 0:
        stored["percent"] = 0
    if value.eta_seconds is not None:
        stored["eta"] = f"{value.eta_seconds:.3f}s"
    return {"progress": encode(stored, "progress")}
