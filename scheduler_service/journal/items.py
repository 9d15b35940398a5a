"""What goes into the journal's functions and what comes out, one dataclass each.

Field names are those of the SQL functions' items; ids are lower-case UUID strings, `*_s` are seconds.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRun:
    """A run to create. `data` is the proto3 JSON of RunCreated."""

    run_id: str
    namespace: str
    key: str | None
    process: str
    client_driven: bool
    labels: Mapping[str, str]
    input_digest: str
    actor: str
    data: Mapping[str, Any]
    code_version: str = ""
    parent_run_id: str | None = None
    parent_effect_id: str | None = None
    request_id: str | None = None
    #: Earlier run whose succeeded effects answer equal requests.
    reuse_from: str | None = None
    #: For client-driven runs: names the start of the client that makes the run, and how long it may be silent.
    start_id: str | None = None
    idle_timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class CreateRunOutcome:
    """`ok` or `key_conflict`; the run may be one that was there before (`created` false)."""

    outcome: str
    run_id: str
    created: bool
    head_seq: int
    epoch: int
    recorded_at: datetime
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Append:
    """The rows of one iteration of a run: {type, cause, effect_id?, effect_key?, attempt?, data, x?} each."""

    run_id: str
    epoch: int
    iteration: int
    actor: str
    rows: Sequence[Mapping[str, Any]]
    #: Tells a repetition of this append from another one with the same number.
    append_id: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True, slots=True)
class AppendOutcome:
    """`ok`, `already`, or why nothing was written. `extra` are further rows of the same commit, with their seq."""

    outcome: str
    first_seq: int
    head_seq: int
    recorded_at: datetime
    extra: Sequence[Row]
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequest:
    """A cancel of a run (`effect_id` None) or of an effect. `reason` is a whole EffectReason name."""

    run_id: str
    effect_id: str | None
    reason: str
    message: str
    actor: str


@dataclass(frozen=True, slots=True)
class CancelOutcome:
    """`ok`, `already`, `settled`, `run_closed` or `not_found`; `extra` are all rows that were written."""

    outcome: str
    head_seq: int
    recorded_at: datetime
    extra: Sequence[Row]
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveRequest:
    """An answer from outside. `state` is a whole EffectState name."""

    run_id: str
    effect_id: str
    actor: str
    state: str
    result: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    #: The JSON text of a result's value that is too large for the row; `result` is without it.
    blob_text: str | None = None


@dataclass(frozen=True, slots=True)
class ResolveOutcome:
    """`ok`, `already`, `settled`, `has_executor` or `not_found`; `extra` are the rows that were written."""

    outcome: str
    head_seq: int
    recorded_at: datetime
    extra: Sequence[Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class LostAttempt:
    """An attempt that the run's owner declares lost, or never started."""

    run_id: str
    epoch: int
    effect_id: str
    attempt: int
    never_started: bool
    reason: str
    message: str
    actor: str
    #: How long to wait before an attempt that never started is dispatched again.
    pause_s: float = 0.0
    #: Session of the executor when the caller looked; a newer one refuses the loss.
    executor_session: int | None = None


@dataclass(frozen=True, slots=True)
class LostOutcome:
    """`ok`, or why nothing was written."""

    outcome: str
    head_seq: int
    recorded_at: datetime
    extra: Sequence[Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimPool:
    """Free slots of a pool; `background` is how many of them background effects may take."""

    pool: str
    foreground: int
    background: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRequest:
    """What one session can take."""

    executor_id: str
    incarnation: str
    session_no: int
    namespace: str
    capabilities: Sequence[str]
    labels: Mapping[str, str]
    pools: Sequence[ClaimPool]
    token_hashes: Sequence[str]
    limit: int
    actor: str
    #: How long what goes on with another executor's session is left to that.
    session_wait_s: float


@dataclass(frozen=True, slots=True)
class ClaimedAttempt:
    """An attempt that a claim has dispatched; `spec` is the JSON of its EffectSpec as journaled.

    `resume` is what earlier attempts left to go on with: see effects.session.
    """

    token_index: int
    run_id: str
    effect_id: str
    effect_key: str
    attempt: int
    name: str
    harness: str
    pool: str
    background: bool
    spec: bytes
    total_remaining_s: float | None
    seq: int
    recorded_at: datetime
    data: Mapping[str, Any]
    head_seq: int
    resume: Mapping[str, Any] | None = None
    #: JSON of what budgets leave it: see `dispatch/budgets.py`; None: no budget holds for it.
    budget: str | None = None


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim took. `busy`: others hold runs with more of it, ask again soon."""

    attempts: Sequence[ClaimedAttempt]
    busy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorHello:
    """A new session of an executor."""

    executor_id: str
    incarnation: str
    holder: str
    address: str
    namespace: str
    pools: Mapping[str, Any]
    capabilities: Sequence[str]
    labels: Mapping[str, str]
    version: str
    draining: bool
    clock_skew_s: float
    succeeds: Sequence[str] = field(default_factory=tuple)
    #: Counts the sessions that the incarnation has tried to open; 0: not counted.
    dial: int = 0
    #: What it found of the harnesses that it knows: HarnessCheck as proto3 JSON.
    harness_checks: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorFound:
    """What an executor has of harnesses, later in its session."""

    executor_id: str
    session_no: int
    capabilities: Sequence[str]
    #: HarnessCheck as proto3 JSON.
    harness_checks: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class HelloAnswer:
    """The session's number (0: a later hello has overtaken this one), and the incarnation before (empty: none)."""

    session_no: int
    previous_incarnation: str


@dataclass(frozen=True, slots=True)
class ExecutorSeen:
    """A sign of life of a session."""

    executor_id: str
    session_no: int
    state: str


@dataclass(frozen=True, slots=True)
class OpenAttempt:
    """An attempt that an executor has, or may have. `age_s` counts from its dispatch."""

    run_id: str
    effect_id: str
    key: str
    name: str
    attempt: int
    state: str
    executor_id: str
    incarnation: str
    session_no: int
    pool: str
    background: bool
    cancel_reason: str
    cancel_message: str
    age_s: float
    #: Session that its executor had then, for those that are stranded.
    executor_session: int | None = None
    #: True when an operator has declared its incarnation dead since it was dispatched.
    expired: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Readoption:
    """A running attempt that an executor reported in a new session."""

    run_id: str
    effect_id: str
    attempt: int
    executor_id: str
    incarnation: str
    session_no: int


@dataclass(frozen=True, slots=True)
class FlaggedAttempt:
    """A live attempt whose cancel was asked for."""

    run_id: str
    effect_id: str
    attempt: int
    executor_id: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class DeadlineDue:
    """An effect without live attempt whose time is over, or whose budget is spent.

    `reason` is an EffectReason without prefix; empty for a timer that is due and outlives its run.
    """

    run_id: str
    effect_id: str
    effect_key: str
    attempt: int
    kind: str
    reason: str
    #: The run as it stands: detached effects outlive theirs.
    open: bool
    epoch: int
    iteration: int
    #: Of a budget that is spent: its figures.
    spent: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class OpenEffect:
    """An effect that has not settled."""

    effect_id: str
    key: str
    state: str
    on_run_end: str
    cancel_reason: str
