"""What effects give: results, sessions, progress, outcomes. Frozen dataclasses read from stored proto3 JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from scheduler_service.authoring.errors import EffectError
from scheduler_service.authoring.values import normalise

T_co = TypeVar("T_co", covariant=True)

#: Fields of a Session that make a HarnessSession; `effect_id` is where it was found.
SESSION_FIELDS: Final = ("harness", "session_id", "executor_id", "workspace")


@dataclass(frozen=True, slots=True)
class Usage:
    """What an attempt consumed. Tokens are counts, `cost_usd` is None when unknown."""

    input_tokens: float = 0
    output_tokens: float = 0
    cached_input_tokens: float = 0
    cost_usd: float | None = None
    turns: int = 0
    model: str = ""


@dataclass(frozen=True, slots=True)
class Session:
    """A harness session that a later effect can continue (`continue_from=`).

    Plain JSON: it may be a field of a run's input or result, an argument of a child run, the value of a signal.
    """

    harness: str = ""
    session_id: str = ""
    executor_id: str = ""
    workspace: str = ""
    effect_id: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an attempt has come. `percent` is 0 to 100 or None: what its child said, else its to-do list.

    `eta_seconds` is what was expected when this was recorded, None when unknown; `eta_estimated` is True when it comes
    from past attempts of the same name and not from the child. The last five are those of agents, 0 where unknown.
    """

    percent: float | None = None
    step: str = ""
    step_index: int = 0
    step_count: int = 0
    eta_seconds: float | None = None
    eta_estimated: bool = False
    data: Mapping[str, Any] | None = None
    tool: str = ""
    turns: int = 0
    turns_max: int = 0
    todos_done: int = 0
    todos: int = 0


@dataclass(frozen=True, slots=True)
class ShellResult:
    """What a shell effect gives. Tails are at most 8 KiB; `output` is what the child reported as its result."""

    exit_code: int | None
    stdout_tail: str = ""
    stderr_tail: str = ""
    output: Any = None
    signal: int | None = None


@dataclass(frozen=True, slots=True)
class WorkspaceResult:
    """What became of an effect's workspace.

    `path` is its directory on the executor, `kept` whether that is still there; `base_commit` and `result_commit` what
    the work began with and what holds it, on `branch` when the effect succeeded (empty: nothing was changed, or no
    git); `patch` is at most 256 KiB, of `patch_bytes` in all; `problem` says why the change or its patch is missing.
    """

    path: str = ""
    kept: bool = False
    base_commit: str = ""
    result_commit: str = ""
    branch: str = ""
    files_changed: int = 0
    insertions: int = 0
    deletions: int = 0
    patch: str = ""
    patch_bytes: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A file in conflict: `kind` as git says it (`contents`, `modify/delete`, ...), first and last lines of `hunks`."""

    path: str
    kind: str = ""
    hunks: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class MergeItem:
    """One of the commits that were to be merged: `status` is `merged`, `conflict` (left out) or `empty`."""

    status: str
    name: str = ""
    commit: str = ""
    conflicts: list[Conflict] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What `bb.merge` gives: the branch, the commit that it began with, the commit that it is at, and each item."""

    branch: str
    base_commit: str
    commit: str
    items: list[MergeItem]

    @property
    def conflicts(self) -> list[MergeItem]:
        """What was left out."""
        return [item for item in self.items if item.status == "conflict"]


@dataclass(frozen=True, slots=True)
class AgentResult:
    """What an agent effect without `output=` gives: the answer's text, what it cost, the session to go on with."""

    text: str
    value: Any = None
    usage: Usage | None = None
    session: Session | None = None
    #: True when the session of `continue_from` was gone and a fresh one was started.
    session_lost: bool = False
    #: What became of its workspace, when it had one.
    workspace: WorkspaceResult | None = None
    #: Harness that did it: another one than asked for after a failover.
    harness: str = ""
    #: What it wanted to do and was not let: tool and request.
    denials: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Approval:
    """The answer to an approval: the choice, who gave it, and what came with it."""

    choice: str
    by: str = ""
    data: Any = None


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T_co]):
    """How one effect of a fan-in ended. `value` is meaningful only when `ok`; else `error` says why."""

    key: str
    ok: bool
    value: T_co
    error: EffectError | None
    effect_id: str


@dataclass(frozen=True, slots=True)
class Settled:
    """A settled effect as recorded, for decoders: the EffectResult as proto3 JSON, who resolved it, whose it is."""

    result: Mapping[str, Any]
    resolved_by: str = ""
    effect_id: str = ""

    @property
    def value(self) -> Any:
        """The structured result, canonical. Raises LookupError when it is a blob that the feeder did not load."""
        payload = self.result.get("value") or {}
        if "blob" in payload:
            raise LookupError(
                f"the result is blob {payload['blob'].get('digest')}, which was not loaded before feeding"
            )
        return normalise(payload.get("value"))

    @property
    def usage(self) -> Usage | None:
        """What was consumed, when anything was reported."""
        return usage_from(self.result.get("usage"))

    @property
    def session(self) -> Session | None:
        """The harness session, when there is one."""
        stored = self.result.get("session")
        return Session(**_known(Session, stored), effect_id=self.effect_id) if stored else None

    @property
    def workspace(self) -> WorkspaceResult | None:
        """What became of the workspace, when there was one."""
        stored = self.result.get("workspace")
        return WorkspaceResult(**_known(WorkspaceResult, normalise(dict(stored)))) if stored else None


def _known(cls: Any, stored: Mapping[str, Any]) -> dict[str, Any]:
    # A newer release may have added fields; histories of it must still be readable.
    return {name: stored[name] for name in cls.__dataclass_fields__ if name in stored and name != "effect_id"}


def usage_from(stored: Mapping[str, Any] | None) -> Usage | None:
    """Usage from its proto3 JSON; None when nothing was reported."""
    return Usage(**_known(Usage, normalise(dict(stored)))) if stored else None


def progress_from(stored: Mapping[str, Any]) -> Progress:
    """Progress from its proto3 JSON; the ETA's Duration string becomes seconds."""
    eta = stored.get("eta")
    return Progress(**_known(Progress, normalise(dict(stored))), eta_seconds=float(eta[:-1]) if eta else None)


def shell_result(settled: Settled) -> ShellResult:
    """Decode a shell effect's result."""
    result = settled.result
    return ShellResult(
        exit_code=result.get("exit_code"),
        stdout_tail=(result.get("stdout") or {}).get("tail", ""),
        stderr_tail=(result.get("stderr") or {}).get("tail", ""),
        output=settled.value,
        signal=result.get("signal"),
    )


def agent_result(settled: Settled) -> AgentResult:
    """Decode an agent's answer. Its text is the value itself, or what it said beside a structured one."""
    value, said = settled.value, settled.result
    text = value.get("text", "") if isinstance(value, dict) else value
    denied = said.get("permission_denials", ())
    return AgentResult(
        said.get("text") or (text if isinstance(text, str) else ""),
        value,
        settled.usage,
        settled.session,
        bool(said.get("session_lost", False)),
        settled.workspace,
        said.get("harness", ""),
        tuple((denial.get("tool", ""), denial.get("request", "")) for denial in denied),
    )


def approval_result(settled: Settled) -> Approval:
    """Decode the answer to an approval."""
    return Approval(settled.result.get("choice", ""), settled.resolved_by, settled.value)
