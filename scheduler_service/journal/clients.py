"""Client-driven runs: starts of clients, requests, ends. Any replica writes them, fenced by the client's epoch."""

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
class OpenClient:
    """Another start of the client of a run that is there. The same `start_id` again is the same start."""

    run_id: str
    idle_timeout_s: float
    actor: str
    start_id: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True, slots=True)
class OpenClientOutcome:
    """`ok` or `already` with the epoch, `not_client_driven` or `not_found`; `extra` are the rows that were written."""

    outcome: str
    client_epoch: int
    head_seq: int
    recorded_at: datetime
    extra: Sequence[Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRequest:
    """Effects that a client asks for: {effect_id, effect_key, type, data, x, use_recorded} each."""

    run_id: str
    namespace: str
    client_epoch: int
    actor: str
    rows: Sequence[dict[str, Any]]
    #: The scheduler that writes it, `scheduler/<id>`: it begins the child runs that are asked for.
    owner: str = ""


@dataclass(frozen=True, slots=True)
class ClientRequestOutcome:
    """`ok`, `recorded` (every key was there), or why nothing was written: `superseded`, `not_client_driven`,
    `key_conflict`, `group_conflict`, `run_closed`, `history_limit`, `queue_full`, `not_found`.

    `detail`: for ok the keys that became rows (`fresh`), from `first_seq` on; else what the refusal is about.
    """

    outcome: str
    first_seq: int
    head_seq: int
    recorded_at: datetime
    extra: Sequence[Row]
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishRun:
    """The end that a client gives its run: `state` is COMPLETED or FAILED, `data` holds its result or error."""

    run_id: str
    client_epoch: int
    state: str
    data: Mapping[str, Any]
    wait: bool
    actor: str
    #: The JSON text of a result that is too large for the row; `data` refers to it.
    blob_text: str | None = None


@dataclass(frozen=True, slots=True)
class FinishRunOutcome:
    """`ok`, `already`, or why not: `effects_open`, `run_closed`, `halted`, `superseded`, `not_client_driven`."""

    outcome: str
    head_seq: int
    recorded_at: datetime
    extra: Sequence[Row]
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class HaltIdle:
    """A run whose client is silent for too long, as its owner saw it."""

    run_id: str
    epoch: int
    actor: str


class Clients:
    """The writers of client-driven runs; part of `Journal`."""

    def __init__(self, link: Link) -> None:
        self._open = GroupWriter(link, _SQL["open_clients"], "open_client")
        self._request = GroupWriter(link, _SQL["client_requests"], "client_request")
        self._finish = GroupWriter(link, _SQL["finish_runs"], "finish")
        self._halt_idle = GroupWriter(link, _SQL["halt_idle"], "halt_idle")
        self.writers = (self._open, self._request, self._finish, self._halt_idle)

    async def open(self, request: OpenClient) -> OpenClientOutcome:
        """Another start of a client."""
        row = await self._open.submit(dataclasses.asdict(request))
        return OpenClientOutcome(row["outcome"], row["client_epoch"], row["head_seq"], row["recorded_at"], row["extra"])

    async def request(self, request: ClientRequest) -> ClientRequestOutcome:
        """Effects of a run, all in one commit or none."""
        row = await self._request.submit(
            {
                "run_id": request.run_id,
                "client_epoch": request.client_epoch,
                "actor": request.actor,
                "owner": request.owner,
                "rows": request.rows,
            }
        )
        return ClientRequestOutcome(
            row["outcome"], row["first_seq"], row["head_seq"], row["recorded_at"], row["extra"], row["detail"]
        )

    async def finish(self, request: FinishRun) -> FinishRunOutcome:
        """The end of a run."""
        row = await self._finish.submit(dataclasses.asdict(request))
        return FinishRunOutcome(row["outcome"], row["head_seq"], row["recorded_at"], row["extra"], row["detail"])

    async def halt_idle(self, request: HaltIdle) -> FinishRunOutcome:
        """Halts a run whose client is silent, if it still is."""
        row = await self._halt_idle.submit(dataclasses.asdict(request))
        return FinishRunOutcome(row["outcome"], row["head_seq"], row["recorded_at"], row["extra"], {})
