"""How an attempt ended, and the item that says so to the journal function `attempts_settle_v1`. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

import orjson

from executor_service.assignment import Assignment
from executor_service.masking import Masks

Kind = Literal["succeeded", "failed", "timed_out", "cancelled"]

TEXT_BYTES_MAX: Final = 8 * 1024
ACCOUNT_CHARS_MAX: Final = 200
#: Most bytes of a structured result as JSON.
RESULT_BYTES_MAX: Final = 16 * 1024 * 1024
#: A larger result is stored as a blob of the run, and the journal's row refers to it.
INLINE_BYTES_MAX: Final = 64 * 1024


#: Of an item: whose it is, and what is known of it whatever it brought.
_IDENTITY: Final = ("run_id", "effect_id", "attempt", "token", "executor_id", "elapsed_s", "death")


@dataclass(frozen=True, slots=True)
class Ending:
    """Why we end an attempt ourselves: how it counts, the reason (EffectReason without prefix), and a sentence."""

    kind: Kind
    reason: str
    message: str
    #: True when no other attempt may follow.
    final: bool = False
    #: True when somebody is asked whether another attempt shall follow.
    asks: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """Why work did not succeed: the name of an EffectReason without prefix, and a sentence for people."""

    reason: str
    message: str
    #: True when no other attempt may follow.
    final: bool = False
    #: Seconds until another attempt makes sense, such as a quota's reset. None: the retry policy's own pause.
    retry_after_s: float | None = None
    #: True when its provider refused before the agent had used a tool or said anything: the work can be done anew, even
    #: where it is to start at most once.
    untouched: bool = False
    #: Account at the provider that it hit, such as `anthropic:default`: the same name is the same account on whichever
    #: executor. Empty: the one that the harness has in the effect's namespace.
    account: str = ""


@dataclass(slots=True)
class Outcome:
    """How the work ended. `value_json` is canonical JSON; None: there is no structured result."""

    kind: Kind = "succeeded"
    reason: str = ""
    message: str = ""
    exception_type: str = ""
    traceback: str = ""
    final: bool = False
    value_json: bytes | None = None
    exit_code: int | None = None
    signal: int | None = None
    #: CapturedOutput as proto3 JSON, by `stdout` and `stderr`.
    captured: dict[str, dict[str, Any]] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    #: The last journal.v1.Progress as proto3 JSON when the journal does not have it yet.
    progress: dict[str, Any] | None = None
    #: HarnessSession as proto3 JSON; None: there is none.
    session: dict[str, str] | None = None
    #: True when the session to continue was gone and a fresh one was started.
    session_lost: bool = False
    #: More fields of EffectResult as proto3 JSON, by name: what an agent brought beside its answer.
    more: dict[str, Any] = field(default_factory=dict)
    #: WorkspaceResult as proto3 JSON; None: it had no workspace of its own.
    workspace: dict[str, Any] | None = None
    #: See Failure.
    retry_after_s: float | None = None
    untouched: bool = False
    account: str = ""
    #: See Ending.
    asks: bool = False
    #: True: an agent had said its last word, that of a success, before anything made it end.
    answered: bool = False
    #: True: every descendant was looked for, none is alive. False: that could not be shown. None: there was no child.
    death_proven: bool | None = None

    def ended_by(self, ending: Ending) -> None:
        """Makes it the outcome of work that we ended: what it gave stays as partial result."""
        self.kind, self.reason, self.message, self.final = ending.kind, ending.reason, ending.message, ending.final
        self.asks = ending.asks
        self.exception_type = self.traceback = self.account = ""
        self.retry_after_s = None
        self.untouched = False

    def mask(self, masks: Masks) -> None:
        """Takes secrets out of all that it says."""
        for name in ("message", "exception_type", "traceback"):
            setattr(self, name, masks.text(getattr(self, name)))
        for name in ("captured", "usage", "progress", "more"):
            setattr(self, name, masks.message(getattr(self, name)))
        for told, names in ((self.session, ("session_id",)), (self.workspace, ("patch", "problem"))):
            if told is not None:  # where the work is, and on which branch, is nothing that it said
                told.update({name: masks.text(told[name]) for name in names if name in told})
        if self.value_json is not None:
            self.value_json = masks.encoded(self.value_json)

    def fail(self, reason: str, message: str, *, final: bool = False) -> Outcome:
        """Makes it a failure."""
        self.kind, self.reason, self.message, self.final = "failed", reason, message, final
        return self

    def fail_as(self, failure: Failure) -> Outcome:
        """Makes it this failure."""
        self.retry_after_s = failure.retry_after_s
        self.untouched, self.account = failure.untouched, failure.account
        return self.fail(failure.reason, failure.message, final=failure.final)


def settle_item(
    assignment: Assignment, executor_id: str, outcome: Outcome, elapsed_s: float, park_after_s: float | None = None
) -> bytes:
    """The item of `attempts_settle_v1`, encoded: what a large result costs is paid once, and outside the batch.

    `park_after_s`: a reset that is so many seconds away, or more, parks the effect; None: as the journal has it.
    """
    item: dict[str, Any] = {
        "run_id": assignment.run_id,
        "effect_id": assignment.effect_id,
        "attempt": assignment.attempt,
        "token": assignment.token,
        "executor_id": executor_id,
        "outcome": outcome.kind,
        "result": _result(outcome),
        "elapsed_s": round(elapsed_s, 6),
        "final": outcome.final,
    }
    if outcome.reason:
        item["reason"] = f"EFFECT_REASON_{outcome.reason}"
        item["message"] = storable(outcome.message)
        item["error"] = _error(outcome)
    if outcome.retry_after_s is not None:
        item["retry_after_s"] = outcome.retry_after_s
        if park_after_s is not None:
            item["park_after_s"] = park_after_s
    if outcome.asks:
        item["asks"] = True
    if outcome.untouched:
        item["untouched"] = True
    if outcome.account:
        item["account"] = replace_unstorable(outcome.account)[:ACCOUNT_CHARS_MAX]
    if outcome.death_proven is not None:
        item["death"] = "DEATH_PROVEN" if outcome.death_proven else "DEATH_UNPROVEN"
    if outcome.progress is not None:
        item["progress"] = outcome.progress
    if _is_large(outcome):
        item["blob_text"] = outcome.value_json.decode()  # type: ignore[union-attr]  # large, so not None
    return orjson.dumps(item)


def refused_item(item: bytes, error: object) -> bytes:
    """What is settled instead of an item that the journal refuses: nothing of it can be refused for what work gave."""
    was = orjson.loads(item)
    outcome = Outcome().fail("INVALID_RESULT", f"the outcome cannot be stored: {error}", final=True)
    instead = {name: was[name] for name in _IDENTITY if name in was}
    reason = f"EFFECT_REASON_{outcome.reason}"
    return orjson.dumps(
        instead
        | {"outcome": outcome.kind, "result": {}, "final": True, "reason": reason}
        | {"message": storable(outcome.message), "error": _error(outcome)}
    )


def _is_large(outcome: Outcome) -> bool:
    return outcome.value_json is not None and len(outcome.value_json) > INLINE_BYTES_MAX


def _result(outcome: Outcome) -> dict[str, Any]:
    result: dict[str, Any] = dict(outcome.captured)
    if outcome.value_json is not None and not _is_large(outcome):  # what is large the journal puts in
        result["value"] = {"value": orjson.Fragment(outcome.value_json)}
    if outcome.exit_code is not None:
        result["exit_code"] = outcome.exit_code
    if outcome.signal is not None:
        result["signal"] = outcome.signal
    if outcome.usage:
        result["usage"] = outcome.usage
    if outcome.session:
        result["session"] = {name: storable(value) for name, value in outcome.session.items() if value}
    if outcome.session_lost:
        result["session_lost"] = True
    if outcome.workspace:
        result["workspace"] = {name: _storable_field(value) for name, value in outcome.workspace.items() if value}
    return result | outcome.more


def _storable_field(value: Any) -> Any:
    return replace_unstorable(value) if isinstance(value, str) else value


def _error(outcome: Outcome) -> dict[str, Any]:
    error = {"reason": f"EFFECT_REASON_{outcome.reason}", "message": storable(outcome.message)}
    if outcome.exception_type:
        error["exception_type"] = storable(outcome.exception_type)
    if outcome.traceback:
        error["traceback"] = storable(outcome.traceback)
    return error


def storable(text: str, bytes_max: int = TEXT_BYTES_MAX) -> str:
    """Text that Postgres and protobuf can hold: no NUL, no lone surrogates, the last so many bytes of it."""
    raw = replace_unstorable(text).encode()
    return raw.decode() if len(raw) <= bytes_max else tail_text(raw, bytes_max)


def replace_unstorable(text: str) -> str:
    """Text of the same length without NUL and lone surrogates, such as undecodable bytes of a file's name become."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def tail_text(raw: bytes, bytes_max: int = TEXT_BYTES_MAX) -> str:
    """The last bytes as text of at most so many bytes: invalid UTF-8 replaced, no character cut in half."""
    cut = raw[-bytes_max:]
    if len(raw) > len(cut):
        cut = cut[_continuations(cut) :]
    text = cut.decode("utf-8", "replace").replace("\x00", "\ufffd")
    while len(encoded := text.encode()) > bytes_max:  # replacing makes three bytes of one
        text = text[-(-(len(encoded) - bytes_max) // 3) :]
    return text


def _continuations(cut: bytes) -> int:
    """Leading bytes that continue a character which was cut off."""
    for index, byte in enumerate(cut[:3]):
        if byte & 0xC0 != 0x80:
            return index
    return min(3, len(cut))
