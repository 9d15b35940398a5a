"""What the servicers ask of the engine: the seam between requests and the loop, kept by `iteration/engine.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from backburner.journal.v1 import journal_pb2
from scheduler_service.authoring.definitions import AnyProcess
from scheduler_service.journal import (
    AuditNote,
    Breaker,
    CancelOutcome,
    CancelRequest,
    ClientRequest,
    ClientRequestOutcome,
    ControlOutcome,
    ControlRequest,
    CreateRun,
    CreateRunOutcome,
    DrainOrder,
    ExpireOrder,
    ExpireOutcome,
    FinishRun,
    FinishRunOutcome,
    Journal,
    OpenClient,
    OpenClientOutcome,
    Prune,
    Pruned,
    ResetBreakers,
    ResolveOutcome,
    ResolveRequest,
    SetBudget,
    SetHold,
    SetHoldOutcome,
    SettleOrder,
    SignalOutcome,
    SignalRequest,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolUse:
    """Slots of one pool of an executor, and how many are taken."""

    slots: int
    background_slots: int
    foreground_taken: int = 0
    background_taken: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectedExecutor:
    """An executor whose session this replica holds."""

    executor_id: str
    incarnation: str
    namespace: str = "default"
    #: Where its ExecutorService listens. Empty: not dialable.
    address: str = ""
    pools: Mapping[str, PoolUse] = field(default_factory=dict)
    capabilities: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    draining: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveAttempt:
    """A running attempt as its executor's last heartbeat showed it."""

    effect_id: str
    effect_key: str
    attempt: int
    executor_id: str
    progress: journal_pb2.Progress | None = None
    usage: journal_pb2.Usage | None = None


class ControlApi(Protocol):
    """Run control from outside. Each is durable when it returns; the run's owner hears of it."""

    async def halt(self, request: ControlRequest) -> ControlOutcome:
        """Pauses a run."""

    async def resume(self, request: ControlRequest) -> ControlOutcome:
        """Lets a halted or parked run go on."""

    async def signal(self, request: SignalRequest) -> SignalOutcome:
        """Sends a message to a run."""


class ClientApi(Protocol):
    """What clients do to client-driven runs. Each is durable when it returns; the run's owner hears of it."""

    async def open(self, request: OpenClient) -> OpenClientOutcome:
        """Another start of a run's client: fences the one before."""

    async def request(self, asked: ClientRequest) -> ClientRequestOutcome:
        """Requests effects, all in one commit or none."""

    async def finish(self, request: FinishRun) -> FinishRunOutcome:
        """Ends a run, or has it closed."""

    async def seen(self, run_ids: Sequence[str]) -> Mapping[str, float]:
        """Notes signs of life; answers with how many seconds the client of each watched run may be silent."""


class OperatorApi(Protocol):
    """What operators order. Each is durable when it returns, and obeyed on every replica."""

    async def set_budget(self, request: SetBudget) -> str:
        """Sets, changes or clears a budget: `ok`, `not_found` or `too_many`."""

    async def set_hold(self, request: SetHold) -> SetHoldOutcome:
        """Sets or releases a hold on dispatch."""

    async def reset_breakers(self, request: ResetBreakers) -> Sequence[Breaker]:
        """Closes circuit breakers; answers with those that were closed."""

    async def note(self, note: AuditNote) -> None:
        """Writes into the audit what is about to be done."""

    async def prune(self, request: Prune) -> Pruned:
        """One step of retention."""

    async def drain(self, order: DrainOrder) -> str:
        """Lets an executor take nothing new, or ends that."""

    async def expire(self, order: ExpireOrder) -> ExpireOutcome:
        """Declares an incarnation of an executor dead."""

    async def order_settlement(self, order: SettleOrder) -> str:
        """Has an effect settled by the owner of its run."""


class EngineApi(Protocol):
    """The engine of one replica, as the servicers see it."""

    @property
    def scheduler_id(self) -> str:
        """Name of this replica."""

    @property
    def journal(self) -> Journal:
        """The journal; servicers read from it and never write."""

    @property
    def draining(self) -> bool:
        """True once this replica goes away."""

    @property
    def control(self) -> ControlApi:
        """Run control."""

    @property
    def operations(self) -> OperatorApi:
        """What operators order."""

    @property
    def clients(self) -> ClientApi:
        """Client-driven runs."""

    def processes(self) -> Mapping[str, AnyProcess]:
        """Processes that this replica can run, by name."""

    async def create_run(self, request: CreateRun) -> CreateRunOutcome:
        """Commits the run, and begins it when this replica owns its shard."""

    async def request_cancel(self, request: CancelRequest) -> CancelOutcome:
        """Makes a cancel durable; it is delivered after."""

    async def resolve_external(self, request: ResolveRequest) -> ResolveOutcome:
        """Settles an external effect."""

    def head(self, run_id: str) -> int:
        """Newest seq of a run that this replica has heard of; 0: none."""

    async def wait_head(self, run_id: str, after_seq: int, timeout_s: float) -> int:
        """Returns when a seq beyond `after_seq` is heard of, or at the timeout. Only a hint: read again after it."""

    async def wait_stopped(self, run_id: str, after_seq: int, timeout_s: float) -> None:
        """Returns when a run has ended or is parked, at a seq beyond `after_seq`, or at the timeout. Only a hint."""

    def expected_duration(self, namespace: str, name: str) -> float | None:
        """Median seconds of the latest successful attempts of a name; None when there is no history."""

    def connected(self) -> Sequence[ConnectedExecutor]:
        """Executors whose session this replica holds."""

    def live(self, run_id: str) -> Sequence[LiveAttempt]:
        """Running attempts of a run on those executors."""
