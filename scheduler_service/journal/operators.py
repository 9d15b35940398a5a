"""What operators order, and the audit of it. Any replica writes it; every function that dispatches obeys it."""

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from scheduler_service.journal.breakers import Breaker, ResetBreakers, breaker_of
from scheduler_service.journal.connecting import Row
from scheduler_service.journal.link import Link
from scheduler_service.journal.statements import load_statements
from scheduler_service.journal.writer import GroupWriter

_SQL: Final = load_statements(Path(__file__).with_name("queries.sql"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A hold on dispatch. Empty texts and labels mean any; all that is given has to match."""

    hold_id: str
    namespace: str = ""
    harness: str = ""
    executor_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    #: By the database's clock. None: until it is released.
    until: datetime | None = None
    reason: str = ""
    actor: str = ""
    created_at: datetime | None = None

    def covers(self, namespace: str, harness: str, executor_id: str, labels: Mapping[str, str]) -> bool:
        """True when it forbids this dispatch; the twin of the SQL function `is_held`."""
        return (
            self.namespace in ("", namespace)
            and self.harness in ("", harness)
            and self.executor_id in ("", executor_id)
            and self.labels.items() <= labels.items()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SetHold:
    """Sets a hold, or releases the one with this id. A hold on what is held already keeps the id of that one."""

    hold_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    namespace: str = ""
    harness: str = ""
    executor_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    until: datetime | None = None
    reason: str
    actor: str
    release: bool = False


@dataclass(frozen=True, slots=True)
class SetHoldOutcome:
    """`ok`, or `already` for a release that is repeated, with the hold; `past`, `too_many` or `not_found` without."""

    outcome: str
    hold: Hold | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainOrder:
    """An executor shall take nothing new, or shall again."""

    executor_id: str
    drain: bool
    reason: str
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpireOrder:
    """An incarnation of an executor is dead."""

    executor_id: str
    incarnation: str
    reason: str
    actor: str


@dataclass(frozen=True, slots=True)
class ExpireOutcome:
    """`ok` or `already` with the number of attempts that are lost by it, `other_incarnation` with the one that it has,
    or `not_found`.
    """

    outcome: str
    attempts: int
    incarnation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleOrder:
    """An effect of an executor shall be settled: `state` is SUCCEEDED or FAILED, `data` holds `result` or `error`."""

    effect_id: str
    #: The attempt that the operator has seen: a later one is left alone.
    attempt: int
    state: str
    data: Mapping[str, Any]
    reason: str
    actor: str
    #: The JSON text of a value that is too large for the row; `data` refers to it.
    blob_text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleByHand:
    """The owner settles an effect as it was ordered."""

    run_id: str
    epoch: int
    effect_id: str
    actor: str


@dataclass(frozen=True, slots=True)
class SettledByHand:
    """`ok` with the rows, and the executor that may still run it; else why nothing was written."""

    outcome: str
    head_seq: int
    recorded_at: datetime
    extra: Sequence[Row]
    told: str


@dataclass(frozen=True, slots=True)
class ExecutorOrder:
    """What became of an executor's session, and why an operator lets it take nothing new; None: none does."""

    executor_id: str
    incarnation: str
    session_no: int
    state: str
    ordered_drain: str | None


@dataclass(frozen=True, slots=True)
class ExpiredAttempt:
    """A live attempt of an incarnation that an operator, or its successor, has declared dead."""

    run_id: str
    effect_id: str
    attempt: int
    executor_id: str
    actor: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """One step of retention: runs that ended so long ago, oldest first. Empty `states`: any; `namespace` None: all."""

    older_than_s: float
    states: Sequence[str] = ()
    namespace: str | None = None
    dry_run: bool = False
    runs_max: int = 200
    rows_max: int = 20_000
    reason: str = ""
    actor: str


@dataclass(frozen=True, slots=True)
class Pruned:
    """`ok`, or `busy` when another one prunes; what is gone of runs and journal rows; `more` when others follow."""

    outcome: str
    runs: int
    journal_rows: int
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SetBudget:
    """Sets or clears the budget of a label, or changes that of a run or of an effect. `budget` is proto3 JSON."""

    budget: Mapping[str, Any]
    reason: str
    actor: str
    namespace: str
    label: str = ""
    value: str = ""
    per_day: bool = False
    clear: bool = False
    run_id: str | None = None
    effect_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditNote:
    """What an operator is about to do in many commits."""

    action: str
    subject: str
    actor: str
    reason: str
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """Something that an operator did."""

    audit_id: int
    recorded_at: datetime
    action: str
    subject: str
    actor: str
    reason: str
    detail: Mapping[str, Any]


class Operators:
    """The writers of what operators order; part of `Journal`."""

    def __init__(self, link: Link) -> None:
        self._holds = GroupWriter(link, _SQL["set_holds"], "hold")
        self._drains = GroupWriter(link, _SQL["drain_executors"], "drain")
        self._expiries = GroupWriter(link, _SQL["expire_executors"], "expire")
        self._settle_orders = GroupWriter(link, _SQL["order_settlements"], "order_settlement")
        self._settle = GroupWriter(link, _SQL["settle_by_hand"], "settle_by_hand")
        self._audit = GroupWriter(link, _SQL["audit"], "audit")
        self._breakers = GroupWriter(link, _SQL["reset_breakers"], "reset_breakers")
        self._budgets = GroupWriter(link, _SQL["set_budgets"], "set_budget")
        self.writers = (
            self._holds, self._drains, self._expiries, self._settle_orders, self._settle, self._audit, self._breakers,
            self._budgets,
        )  # fmt: skip

    async def set_hold(self, request: SetHold) -> SetHoldOutcome:
        """Sets or releases a hold. When this returns, nothing is dispatched past it any more, on any replica."""
        row = await self._holds.submit(dataclasses.asdict(request))
        return SetHoldOutcome(row["outcome"], hold_of(row) if row["hold_id"] else None)

    async def set_budget(self, asked: SetBudget) -> str:
        """Sets, changes or clears a budget: `ok`, `not_found` or `too_many`."""
        return str((await self._budgets.submit(dataclasses.asdict(asked)))["outcome"])

    async def note(self, note: AuditNote) -> None:
        """Writes into the audit what is about to be done."""
        await self._audit.submit(dataclasses.asdict(note))

    async def reset_breakers(self, request: ResetBreakers) -> Sequence[Breaker]:
        """Closes breakers; answers with those that were closed, as they were."""
        row = await self._breakers.submit(dataclasses.asdict(request))
        return [breaker_of(closed) for closed in row["breakers"]]

    async def drain(self, order: DrainOrder) -> str:
        """Lets an executor take nothing new, or ends that: `ok` or `not_found`."""
        return str((await self._drains.submit(dataclasses.asdict(order)))["outcome"])

    async def expire(self, order: ExpireOrder) -> ExpireOutcome:
        """Declares an incarnation dead; the owners of its runs declare its attempts lost."""
        row = await self._expiries.submit(dataclasses.asdict(order))
        return ExpireOutcome(row["outcome"], row["attempts"], row["incarnation"])

    async def order_settlement(self, order: SettleOrder) -> str:
        """Has an effect settled by the owner of its run: `ok`, `already`, or why not: `settled`, `no_executor`,
        `other_attempt`, `not_found`.
        """
        return str((await self._settle_orders.submit(dataclasses.asdict(order)))["outcome"])

    async def settle_by_hand(self, order: SettleByHand) -> SettledByHand:
        """Settles an effect as it was ordered."""
        row = await self._settle.submit(dataclasses.asdict(order))
        return SettledByHand(row["outcome"], row["head_seq"], row["recorded_at"], row["extra"], row["told"])


def hold_of(row: Row) -> Hold:
    """A hold from its row."""
    names = [item.name for item in dataclasses.fields(Hold)]
    return Hold(**({name: row[name] for name in names} | {"hold_id": str(row["hold_id"])}))
