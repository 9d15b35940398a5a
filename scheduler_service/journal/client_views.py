"""What clients see of runs, effects and executors, as `client_reads.py` answers it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run. `input` and `result` are there only when all is read, `counts` only when one run is."""

    run_id: str
    namespace: str
    key: str
    process: str
    client_driven: bool
    #: Of client-driven runs: the newest start of the client, and whether the run is halted because it was silent.
    client_epoch: int
    client_idle: bool
    state: str
    labels: Mapping[str, str]
    parent_run_id: str
    parent_effect_id: str
    previous_run_id: str
    next_run_id: str
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None
    cancel_requested_at: datetime | None
    halt_reason: str
    report: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    head_seq: int
    shard: int
    input: Mapping[str, Any] | None
    result: Mapping[str, Any] | None
    cancel_reason: str
    unobserved_failures: int
    counts: Mapping[str, int] | None
    #: What its effects have consumed; None: nothing was reported.
    usage: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectView:
    """An effect. `spec` and the result in `settled` (data of the settling event) are there only when all is read."""

    effect_id: str
    run_id: str
    key: str
    namespace: str
    kind: str
    name: str
    harness: str
    pool: str
    background: bool
    state: str
    attempt: int
    capabilities: Sequence[str]
    executor_id: str
    incarnation: str
    executor_labels: Mapping[str, str]
    cancel_reason: str
    requested_seq: int
    settled_seq: int
    requested_at: datetime
    dispatched_at: datetime | None
    started_at: datetime | None
    settled_at: datetime | None
    not_before: datetime | None
    group_id: str
    group_max: int | None
    group_limit: int | None
    group_open: int
    #: Executor that has the session which the next attempt goes on with. Empty: any may.
    continues_on: str
    labels: Mapping[str, str]
    poll_interval_s: float
    progress: Mapping[str, Any] | None
    usage: Mapping[str, Any] | None
    #: What the attempts before the newest one consumed, which `usage` includes.
    usage_before: Mapping[str, Any] | None
    #: The budget that it waits for: see the SQL function `budget_awaited_v1`.
    budget: Mapping[str, Any] | None
    #: Who works in its directory, as the executor said that handed it back. Empty: nobody that is known.
    busy: str
    last_activity_at: datetime | None
    elapsed_s: float | None
    run_state: str
    shard: int
    spec: Mapping[str, Any] | None
    settled: Mapping[str, Any] | None
    settled_type: str
    #: For kind RUN: the run that it stands for, and that run's state.
    child_run_id: str
    child_state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorView:
    """An executor as its last session registered it."""

    executor_id: str
    incarnation: str
    session_no: int
    holder: str
    address: str
    namespace: str
    pools: Any
    capabilities: Sequence[str]
    labels: Mapping[str, str]
    version: str
    state: str
    connected_at: datetime | None
    seen_at: datetime | None
    clock_skew_s: float
    harness_checks: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Page(Generic[V]):
    """Some rows of a list; `more` when others follow."""

    rows: Sequence[V]
    more: bool


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """A run and its open effects at one moment: at seq `run.head_seq`."""

    run: RunView
    effects: Sequence[EffectView]


@dataclass(frozen=True, slots=True)
class OpenWork:
    """What a list shows of a run that has not ended: some open effects, the next timer, effects by state."""

    effects: Sequence[EffectView]
    next_timer: datetime | None
    counts: Mapping[str, int] | None
