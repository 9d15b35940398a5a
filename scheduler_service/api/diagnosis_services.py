"""The part of the diagnosis that looks at the schedulers and at the database."""

from collections.abc import AsyncIterator, Iterable
from typing import Final

from backburner.scheduler.v1 import operator_service_pb2 as pb
from scheduler_service.api.findings import CRITICAL, INFO, WARNING, Row, builds, finding
from scheduler_service.journal.diagnosis import DiagnosisReads

_STARTS_AN_HOUR: Final = 5
#: Of few samples, one that was slow says nothing.
_SAMPLES_MIN: Final = 20
_COMMIT_SECONDS: Final = 0.1
_WAIT_SECONDS: Final = 0.1
_LAG_SECONDS: Final = 1.0
_MIB: Final = 2**20


async def schedulers(reads: DiagnosisReads) -> AsyncIterator[pb.Finding]:
    """Who is up, who owns the shards, how each does, and what is late."""
    unowned = await reads.rows("unowned")
    if unowned:
        runs = sum(row["open_runs"] for row in unowned)
        message = f"no live scheduler owns {len(unowned)} shards with {runs} open runs"
        yield finding(CRITICAL, "SHARDS_UNOWNED", message, [str(row["shard"]) for row in unowned])
    known = await reads.rows("schedulers")
    young = [row["scheduler_id"] for row in known if row["young"]]
    if len(young) > _STARTS_AN_HOUR:
        message = f"schedulers were started {len(young)} times within an hour"
        yield finding(WARNING, "SCHEDULERS_RESTART", message, young)
    for found in builds("SCHEDULERS_MIXED", WARNING, [row for row in known if row["live"]]):
        yield found
    for row in known:
        if row["live"]:
            for found in _vitals(row["scheduler_id"], row["vitals"]):
                yield found
    for row in await reads.rows("timer_lag"):
        if row["timers"]:
            message = f"{row['timers']} timers are late, the latest by {row['lag_s']:.0f} s"
            yield finding(WARNING, "TIMER_LAG", message, row["subjects"])


def _vitals(name: str, has: Row) -> Iterable[pb.Finding]:
    """What the replica measured of itself in the minute before its last renewal."""
    if has.get("shards_lost"):
        message = f"scheduler {name} lost {has['shards_lost']} leases of shards within ten minutes"
        yield finding(WARNING, "SHARDS_LOST", message, [name])
    if (lag := has.get("iteration_lag_p99_s", 0.0)) > _LAG_SECONDS:
        message = f"on scheduler {name} iterations wait up to {lag:.1f} s for their turn (p99 of {has['iterations']})"
        yield finding(WARNING, "ITERATION_LAG", message, [name])
    if (took := has.get("commit_p99_s", 0.0)) > _COMMIT_SECONDS and has["commits"] >= _SAMPLES_MIN:
        message = f"commits of scheduler {name} take up to {took * 1000:.0f} ms (p99 of {has['commits']})"
        yield finding(WARNING, "COMMITS_SLOW", message, [name])
    if (wait := has.get("read_wait_p99_s", 0.0)) > _WAIT_SECONDS and has["reads"] >= _SAMPLES_MIN:
        message = (
            f"reads of scheduler {name} wait up to {wait * 1000:.0f} ms for a connection (p99 of {has['reads']}); "
            f"{has['reads_waiting']} waited when it said so"
        )
        yield finding(WARNING, "POOL_WAITERS", message, [name])


async def database(reads: DiagnosisReads) -> AsyncIterator[pb.Finding]:
    """The schema, and what fills the disk."""
    version, newest = (await reads.rows("schema"))[0]["version"] or 0, reads.newest_schema
    if version != newest:
        code, severity = ("SCHEMA_NEWER", INFO) if version > newest else ("SCHEMA_OLD", WARNING)
        yield finding(severity, code, f"the schema is at {version:04d}, this release has {newest:04d}", [])
    for row in await reads.rows("slots"):
        idle = "" if row["active"] else ", which nobody reads,"
        message = f"replication slot {row['slot_name']}{idle} holds {row['held'] / _MIB:,.0f} MiB of WAL back"
        yield finding(WARNING, "WAL_HELD", message, [row["slot_name"]])
    for row in await reads.rows("archiver"):
        message = f"WAL is not archived: {row['last_failed_wal']} failed {row['failed_for_s']:.0f} s ago"
        yield finding(WARNING, "ARCHIVER_FAILING", message, [row["last_failed_wal"]])
    for row in await reads.rows("dead_tuples"):
        message = f"table {row['name']} has {row['dead']:,} dead rows and {row['live']:,} live ones"
        yield finding(WARNING, "DEAD_TUPLES", message, [row["name"]])
    for row in await reads.rows("sizes"):
        yield finding(INFO, "SIZES", _sizes(row), [])


def _sizes(row: Row) -> str:
    parts = [f"{name} {row[name] / _MIB:,.0f} MiB" for name in ("journal", "blobs", "output", "database")]
    if row["day_rows"]:
        grown = row["day_rows"] * row["row_bytes"] / _MIB
        parts.append(f"the runs of the last 24 hours have about {grown:,.1f} MiB of the journal")
    if row["wal_bytes"] is not None and row["wal_s"]:
        parts.append(f"WAL {row['wal_bytes'] / _MIB / (row['wal_s'] / 3600):,.0f} MiB an hour")
    return ", ".join(parts)
