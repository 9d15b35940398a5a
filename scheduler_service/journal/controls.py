"""Run control: halts, resumptions and signals from outside. Any replica writes them, fenced by the run's state."""

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from scheduler_service.journal.connecting import Row
from scheduler_service.journal.link import Link
from scheduler_service.journal.statements import load_statements
from scheduler_service.journal.writer import GroupWriter

_SQL: Final = load_statements(Path(__file__).with_name("queries.sql"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlRequest:
    """A halt or a resumption of a run."""

    run_id: str
    reason: str
    actor: str
    #: Tells a repetition of this call from another one.
    call_id: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True, slots=True)
class ControlOutcome:
    """`ok`, `already`, `not_parked`, `run_closed` or `not_found`; `extra` are the rows that were written."""

    outcome: str
    head_seq: int
    recorded_at: datetime
    extra: Sequence[Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalRequest:
    """A message to a run. `data` is the proto3 JSON of SignalReceived, `digest` covers it and the run."""

    run_id: str
    namespace: str
    request_id: str
    digest: str
    data: Mapping[str, Any]
    actor: str


@dataclass(frozen=True, slots=True)
class SignalOutcome:
    """`ok` or `already` with the signal's seq, or `request_conflict`, `history_limit`, `run_closed`, `not_found`."""

    outcome: str
    seq: int
    head_seq: int
    recorded_at: datetime
    extra: Sequence[Row]


class Controls:
    """The writers of run control; part of `Journal`."""

    def __init__(self, link: Link) -> None:
        self._halt = GroupWriter(link, _SQL["halt_runs"], "halt")
        self._resume = GroupWriter(link, _SQL["resume_runs"], "resume")
        self._signal = GroupWriter(link, _SQL["signal_runs"], "signal")
        self.writers = (self._halt, self._resume, self._signal)

    async def halt(self, request: ControlRequest) -> ControlOutcome:
        """Pauses a run."""
        return _outcome(await self._halt.submit(dataclasses.asdict(request)))

    async def resume(self, request: ControlRequest) -> ControlOutcome:
        """Lets a halted or parked run go on."""
        return _outcome(await self._resume.submit(dataclasses.asdict(request)))

    async def signal(self, request: SignalRequest) -> SignalOutcome:
        """Sends a message, once for each request id."""
        row = await self._signal.submit(dataclasses.asdict(request))
        return SignalOutcome(row["outcome"], row["seq"] or 0, row["head_seq"], row["recorded_at"], row["extra"])


def _outcome(row: Row) -> ControlOutcome:
    return ControlOutcome(row["outcome"], row["head_seq"], row["recorded_at"], row["extra"])
