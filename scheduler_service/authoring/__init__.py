"""What process authors import as `bb`: decorators, effects, errors, the Context's face. Pure: no I/O, no service.

`import backburner as bb` is a lazy face of this package; everything in `__all__` is reachable from there.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scheduler_service.authoring.agents import AgentOptions, agent
from scheduler_service.authoring.budgets import Budget, budget
from scheduler_service.authoring.context import Context, EffectHandle, Log, current
from scheduler_service.authoring.definitions import (
    FunctionDefinition,
    ProcessDefinition,
    function,
    functions,
    process,
    processes,
    run,
)
from scheduler_service.authoring.effects import Effect, approval, external, shell, timer
from scheduler_service.authoring.errors import (
    AllFailed,
    DeterminismError,
    EffectCancelled,
    EffectError,
    EffectFailed,
    EffectTimedOut,
    Fail,
    FanInError,
    GroupConflict,
    KeyReused,
    OptionError,
    QuorumNotReached,
    RunEvicted,
)
from scheduler_service.authoring.options import EffectOptions, Group, Retry, group
from scheduler_service.authoring.results import (
    AgentResult,
    Approval,
    Conflict,
    MergeItem,
    MergeResult,
    Outcome,
    Progress,
    Session,
    ShellResult,
    Usage,
    WorkspaceResult,
)
from scheduler_service.authoring.values import InvalidValue, TooLarge
from scheduler_service.authoring.work import Workspace
from scheduler_service.authoring.workspaces import copy_of, exclusive, merge, worktree

if TYPE_CHECKING:
    from scheduler_service.replay import testing
    from scheduler_service.replay.fanin import all, as_completed, best_effort, first_success, quorum, wait  # noqa: A004

__all__ = [
    "AgentOptions",
    "AgentResult",
    "AllFailed",
    "Approval",
    "Budget",
    "Conflict",
    "Context",
    "DeterminismError",
    "Effect",
    "EffectCancelled",
    "EffectError",
    "EffectFailed",
    "EffectHandle",
    "EffectOptions",
    "EffectTimedOut",
    "Fail",
    "FanInError",
    "FunctionDefinition",
    "Group",
    "GroupConflict",
    "InvalidValue",
    "KeyReused",
    "Log",
    "MergeItem",
    "MergeResult",
    "OptionError",
    "Outcome",
    "ProcessDefinition",
    "Progress",
    "QuorumNotReached",
    "Retry",
    "RunEvicted",
    "Session",
    "ShellResult",
    "TooLarge",
    "Usage",
    "Workspace",
    "WorkspaceResult",
    "agent",
    "all",
    "approval",
    "as_completed",
    "best_effort",
    "budget",
    "copy_of",
    "current",
    "exclusive",
    "external",
    "first_success",
    "function",
    "functions",
    "group",
    "merge",
    "process",
    "processes",
    "quorum",
    "run",
    "shell",
    "testing",
    "timer",
    "wait",
    "worktree",
]

# Loaded on first use: fan-in runs on the deterministic loop, so it lives in `replay`, and executors need neither.
_IN_REPLAY = dict.fromkeys(("all", "as_completed", "best_effort", "first_success", "quorum", "wait"), "fanin")


def __getattr__(name: str) -> Any:
    if name == "testing":
        return import_module("scheduler_service.replay.testing")
    if name in _IN_REPLAY:
        return getattr(import_module("scheduler_service.replay.fanin"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
