"""Errors that process code sees.

Raised by handles, fan-in primitives and the context (`replay`), caught by process authors. Which of them end a run as
FAILED when they leave the process is said in one place: `RUN_FAILURES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from scheduler_service.authoring.bounds import FAIL_DATA, bounded

if TYPE_CHECKING:
    from scheduler_service.authoring.results import Outcome, Session, Usage, WorkspaceResult


#: Why effects and attempts do not succeed: the names of EffectReason, without their prefix.
REASONS: Final = (
    "EXITED_NONZERO", "KILLED_BY_SIGNAL", "SPAWN_FAILED", "RAISED", "INVALID_WORK", "INVALID_RESULT", "HARNESS_ERROR",
    "TIMEOUT_SCHEDULE_TO_START", "TIMEOUT_START_TO_CLOSE", "TIMEOUT_SILENCE", "TIMEOUT_TOTAL", "EXECUTOR_LOST",
    "REJECTED", "DRAINED", "CANCELLED_BY_USER", "CANCELLED_BY_PROCESS", "RACE_LOST", "RUN_ENDED", "RUN_CANCELLED",
    "AWAIT_CANCELLED", "BUDGET", "REJECTED_BY_RESOLVER", "CHILD_RUN_FAILED", "RATE_LIMITED", "OVERLOADED",
    "SESSION_LOST", "AUTHENTICATION", "QUOTA_EXHAUSTED", "CONTEXT_OVERFLOW", "REFUSED", "BAD_REQUEST", "TOOL_FAILED",
    "MAX_TURNS", "HARNESS_CRASHED", "WORKSPACE_BUSY",
)  # fmt: skip


class EffectError(Exception):
    """An effect did not succeed. An ordinary exception: `except bb.EffectError` handles failure, timeout and cancel.

    Attributes: `key` and `effect_id` name the effect; `reason` is the name of an EffectReason without its prefix
    (`EXITED_NONZERO`); `attempts` is the number of the last attempt (0: none started); `exit_code` and `signal` are
    None when there was none; `stderr_tail` is at most 8 KiB; `partial` is the structured result given before,
    `workspace` what became of an agent's.
    """

    kind = "EFFECT_FAILED"

    def __init__(
        self,
        message: str,
        *,
        key: str,
        effect_id: str = "",
        reason: str = "",
        attempts: int = 0,
        exit_code: int | None = None,
        signal: int | None = None,
        stderr_tail: str = "",
        partial: Any = None,
        usage: Usage | None = None,
        session: Session | None = None,
        workspace: WorkspaceResult | None = None,
    ) -> None:
        super().__init__(f"effect {key}: {reason or self.kind}: {message}" if message else f"effect {key}: {reason}")
        self.message = message
        self.key = key
        self.effect_id = effect_id
        self.reason = reason
        self.attempts = attempts
        self.exit_code = exit_code
        self.signal = signal
        self.stderr_tail = stderr_tail
        self.partial = partial
        self.usage = usage
        self.session = session
        self.workspace = workspace


class EffectFailed(EffectError):
    """The effect's last attempt failed, or it could not be started."""


class EffectTimedOut(EffectError):
    """One of the effect's own timeouts was reached; `timeout_kind` says which: SCHEDULE_TO_START, START_TO_CLOSE,
    SILENCE, TOTAL, or WAIT for a fan-in primitive that stopped waiting."""

    kind = "EFFECT_TIMED_OUT"

    @property
    def timeout_kind(self) -> str:
        """The timeout, from the reason: `TIMEOUT_SILENCE` gives `SILENCE`."""
        return self.reason.removeprefix("TIMEOUT_")


class EffectCancelled(EffectError):
    """The effect was cancelled by somebody; never raised because *this task* was (that is `CancelledError`).

    `by` is the actor that asked for the cancel, or the reason's name when nobody was recorded.
    """

    kind = "EFFECT_CANCELLED"

    def __init__(self, message: str, *, by: str = "", **details: Any) -> None:
        super().__init__(message, **details)
        self.by = by or self.reason


class Fail(Exception):
    """Raise it to end the run as FAILED with a message and JSON data, at most 64 KiB of it. Any other exception parks
    the run; that of data which cannot be kept is raised at the line: InvalidValue, TooLarge."""

    def __init__(self, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.data = data
        bounded(data, "data of bb.Fail", FAIL_DATA)


class FanInError(Exception):
    """A fan-in primitive cannot give what was asked. `outcomes` holds what is known, in input order."""

    def __init__(self, message: str, outcomes: Sequence[Outcome[Any]]) -> None:
        super().__init__(message)
        self.outcomes = list(outcomes)


class QuorumNotReached(FanInError):
    """So many effects failed or were not accepted that `k` can no longer be reached."""


class AllFailed(FanInError):
    """No effect of `first_success` succeeded."""


class KeyReused(ValueError):
    """An effect key was given twice in one run."""


class OptionError(ValueError):
    """An effect was asked for with an option, a key or a size that cannot be; raised at the line that asks."""


class GroupConflict(OptionError):
    """A concurrency group was declared otherwise before in this run: with another limit or strategy."""


class DeterminismError(BaseException):
    """Process code did what replay cannot repeat: I/O, threads, wall clocks, randomness.

    Not an Exception: code that caught it and went on would take another way in steps that are not watched, and on
    replay. `call` is what was called, `instead` the right call, `location` is `file:line` of the process line.
    """

    def __init__(self, call: str, instead: str, location: str) -> None:
        super().__init__(f"{location}: {call} is not deterministic in a process; use {instead}")
        self.call = call
        self.instead = instead
        self.location = location


class RunEvicted(BaseException):
    """The run was dropped from memory. Not an Exception: `except Exception` must not keep it."""


# What ends a run as FAILED (api: D4). Everything else that leaves a process parks the run.
RUN_FAILURES: Final = (EffectError, FanInError, TimeoutError, Fail)


def is_run_failure(error: BaseException) -> bool:
    """True when `error` ends the run as FAILED: one of RUN_FAILURES, or a group made only of them."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_run_failure(inner) for inner in error.exceptions)
    return isinstance(error, RUN_FAILURES)


def failure_kind(error: BaseException) -> str:
    """The `RunError.kind` of an error that ends a run as FAILED."""
    if isinstance(error, EffectError):
        return error.kind
    kinds: Mapping[type[BaseException], str] = {
        QuorumNotReached: "QUORUM_NOT_REACHED",
        AllFailed: "ALL_FAILED",
        TimeoutError: "TIMEOUT",
        Fail: "FAIL",
        BaseExceptionGroup: "GROUP",
    }
    return next((kind for cls, kind in kinds.items() if isinstance(error, cls)), "EXCEPTION")
