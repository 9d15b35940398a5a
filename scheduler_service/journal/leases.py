"""Leases: which replicas are alive, which shards each owns, and the runs that come with them."""

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson

from scheduler_service.journal.connecting import Row
from scheduler_service.journal.items import LostAttempt


@dataclass(frozen=True, slots=True)
class ShardLease:
    """A shard of the caller's, and its epoch."""

    shard: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Vitals:
    """How a replica did in the last minute; times in seconds."""

    #: Commits, and how long 99 of 100 of them took at most.
    commits: int = 0
    commit_p99_s: float = 0.0
    #: Reads, how many wait for a connection now, and how long 99 of 100 waited at most.
    reads: int = 0
    reads_waiting: int = 0
    read_wait_p99_s: float = 0.0
    #: Iterations, and how long 99 of 100 waited for the iteration thread at most.
    iterations: int = 0
    iteration_lag_p99_s: float = 0.0
    #: Shards whose lease it lost without giving them back, within ten minutes.
    shards_lost: int = 0


@dataclass(frozen=True, slots=True)
class AdoptedRun:
    """A run that carries the caller's epoch now."""

    run_id: str
    seq: int
    epoch: int
    iteration: int
    strikes: int
    state: str
    process: str
    namespace: str
    cancel_requested: bool
    client_driven: bool


@dataclass(frozen=True, slots=True)
class Replica:
    """A scheduler that was seen within the last day. `live`: its lease has not run out; the dead own no shard."""

    scheduler_id: str
    #: `host:port` where the others reach it. Empty: nowhere.
    address: str
    version: str
    started_at: datetime
    seen_at: datetime
    lease_until: datetime
    draining: bool
    live: bool
    shards: int


_UNKNOWN: Final = Vitals()

Call = Callable[[str, str, Mapping[str, Any]], Awaitable[list[Row]]]
Read = Callable[..., Awaitable[list[Row]]]


class Leases:
    """The replicas' part of the journal."""

    def __init__(self, call: Call, read: Read) -> None:
        self._call = call
        self._read = read

    async def renew(
        self,
        scheduler_id: str,
        *,
        address: str,
        version: str,
        ttl_s: float,
        draining: bool = False,
        vitals: Vitals = _UNKNOWN,
    ) -> list[ShardLease]:
        """Registers the replica and renews its leases; answers with the shards that are still its own."""
        parameters = {
            "scheduler_id": scheduler_id, "address": address, "version": version, "ttl_s": ttl_s, "draining": draining,
            "vitals": orjson.dumps(dataclasses.asdict(vitals)).decode(),
        }  # fmt: skip
        rows = await self._call("lease", "renew_shards", parameters)
        return [ShardLease(**row) for row in rows]

    async def claim(
        self, scheduler_id: str, *, address: str, version: str, ttl_s: float, most: int = 16
    ) -> list[ShardLease]:
        """Takes shards that nobody owns."""
        parameters = {
            "scheduler_id": scheduler_id, "address": address, "version": version, "ttl_s": ttl_s, "most": most,
        }  # fmt: skip
        rows = await self._call("lease", "claim_shards", parameters)
        return [ShardLease(**row) for row in rows]

    async def release(self, scheduler_id: str, shards: Sequence[int] | None = None) -> None:
        """Gives shards back; without `shards` all of them, and then the replica counts as gone."""
        given = None if shards is None else list(shards)
        await self._call("lease", "release_shards", {"scheduler_id": scheduler_id, "shards": given})

    async def replicas(self) -> list[Replica]:
        """The replicas that were seen within the last day, by name."""
        return [Replica(**row) for row in await self._read("replicas")]

    async def owners(self) -> dict[int, str]:
        """Who owns each shard, of those that have a live owner."""
        return {row["shard"]: row["owner"] for row in await self._read("owners")}

    async def adopt_runs(
        self, scheduler_id: str, shard: int, epoch: int, after: str | None, most: int
    ) -> list[AdoptedRun]:
        """Stamps our epoch into the open runs of a shard, a page at a time."""
        parameters = {"scheduler_id": scheduler_id, "shard": shard, "epoch": epoch, "after": after, "most": most}
        rows = await self._call("request", "adopt_runs", parameters)
        return [_adopted(row) for row in rows]

    async def adopt_created(self, scheduler_id: str, run_ids: Sequence[str]) -> list[AdoptedRun]:
        """Stamps our epoch into single runs; answers with those that are open and lie in shards of ours."""
        rows = await self._call("request", "adopt_created", {"scheduler_id": scheduler_id, "run_ids": list(run_ids)})
        return [_adopted(row) for row in rows]

    async def created_elsewhere(self, scheduler_id: str, most: int) -> list[str]:
        """Runs in shards of ours that other replicas have created and nobody has adopted."""
        rows = await self._read("created_elsewhere", scheduler_id=scheduler_id, most=most)
        return [str(row["run_id"]) for row in rows]

    async def quiet_runs(self, shard: int, after: str | None, most: int, *, quiet_s: float) -> list[str]:
        """Open runs of a shard in whose journals nothing has happened for so long, a page by id."""
        rows = await self._read("quiet_runs", shard=shard, after=after, most=most, quiet_s=quiet_s)
        return [str(row["run_id"]) for row in rows]

    async def report_missing(self, lost: Sequence[LostAttempt]) -> None:
        """Leaves notes to the owners of runs about attempts that executors of ours do not have."""
        items = orjson.dumps([dataclasses.asdict(item) for item in lost]).decode()
        await self._call("dispatch", "report_missing", {"items": items})

    async def take_missing(self, shards: Sequence[int]) -> list[LostAttempt]:
        """Takes away the notes about runs of these shards. The epoch of each is the caller's to fill in."""
        rows = await self._call("dispatch", "take_missing", {"shards": list(shards)})
        return [LostAttempt(**row["item"]) for row in rows]


def _adopted(row: Row) -> AdoptedRun:
    return AdoptedRun(**(row | {"run_id": str(row["run_id"])}))
