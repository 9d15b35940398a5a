"""Everything that a diagnosis can find is provoked, and found with its severity and its subjects.

The registry cannot rot: a code without an entry fails, and so does an entry without a code.
"""

from collections.abc import Callable
from typing import Any, Final

import orjson
import pytest

from backburner.scheduler.v1 import operator_service_pb2 as pb
from scheduler_service.api.diagnosis import diagnose
from scheduler_service.api.findings import CRITICAL, INFO, REMEDIES, WARNING
from scheduler_service.api.ids import new_run_id
from scheduler_service.journal.diagnosis import open_reads
from scheduler_service.journal.errors import JournalError, JournalUnavailable
from tests.support.journal_items import Scene, external_row, plain_row

Provoke = Callable[[Scene], Any]


def parked(scene: Scene, row_type: str, **data: Any) -> str:
    run_id = scene.run(code_version="v7")
    assert scene.append(run_id, plain_row(row_type, **data))["outcome"] == "ok"
    return run_id


def process_error(scene: Scene) -> str:
    return parked(scene, "PROCESS_RUNTIME_ERROR", error={"kind": "EXCEPTION", "message": "a bug"})


def halted(scene: Scene) -> str:
    return parked(scene, "RUN_HALTED", reason="registry down")


def client_idle(scene: Scene) -> str:
    run_id = scene.run(client_driven=True, process="", start_id="s", idle_timeout_s=0.0)
    [row] = scene.call("halt_idle_v1", [{"run_id": run_id, "epoch": 0, "actor": "scheduler/test"}])
    assert row["outcome"] == "ok"
    return run_id


def long_history(scene: Scene) -> str:
    run_id = scene.run()
    scene.query("UPDATE backburner.run_heads SET seq = 10001, history_warned = true WHERE run_id = %s", run_id)
    return run_id


def queued(scene: Scene, seconds: int) -> str:
    effect_id = scene.request(scene.run(), "a")
    scene.query(
        "UPDATE backburner.dispatch_queue SET enqueued_at = enqueued_at - make_interval(secs => %s),"
        " not_before = not_before - make_interval(secs => %s)", seconds, seconds,
    )  # fmt: skip
    return effect_id


def no_executor(scene: Scene) -> str:
    return queued(scene, 90)


def slots_full(scene: Scene) -> str:
    scene.hello(address="e:1", pools={"shell": {"slots": 1}})
    return queued(scene, 400)


def hold(scene: Scene) -> str:
    queued(scene, 400)
    [row] = scene.call("set_holds_v1", [
        {"hold_id": "01890a5d-ac96-774b-bcce-b302099a8057", "namespace": "", "harness": "", "executor_id": "",
         "labels": {}, "until": None, "reason": "drill", "actor": "ada", "release": False},
    ])  # fmt: skip
    return str(row["hold_id"])


def approval(scene: Scene) -> str:
    run_id = scene.run()
    scene.append(run_id, external_row("ask"))
    return f"{run_id}/ask"


def away(scene: Scene) -> str:
    scene.dispatched(scene.hello(), scene.run())
    scene.query("SELECT backburner.executor_gone_v1('e1', 1)")
    return "e1"


def silent_holder(scene: Scene) -> str:
    """Its session was never said to have ended: whoever held it died."""
    scene.hello()
    scene.query("UPDATE backburner.executors SET seen_at = seen_at - interval '2 min'")
    return "e1"


def expired(scene: Scene) -> str:
    scene.hello()
    scene.call("expire_executors_v1", [{"executor_id": "e1", "incarnation": "i1", "reason": "", "actor": "ada"}])
    return "e1"


def draining(scene: Scene) -> str:
    scene.hello()
    scene.call("drain_executors_v1", [{"executor_id": "e1", "drain": True, "reason": "kernel", "actor": "ada"}])
    return "e1"


def over_slots(scene: Scene) -> str:
    session, run_id = scene.hello(pools={"shell": {"slots": 1}}), scene.run()
    for key in "ab":
        scene.dispatched(session, run_id, key)
    return "e1"


def unreachable(scene: Scene) -> str:
    scene.hello()
    return "e1"


def executors_mixed(scene: Scene) -> str:
    scene.hello("e1", version="1")
    scene.hello("e2", version="2")
    return "1"


def skewed(scene: Scene) -> str:
    scene.hello(clock_skew_s=-7.5)
    return "e1"


def silent(scene: Scene) -> str:
    run_id = scene.run()
    effect_id = scene.request(run_id, "quiet")
    scene.query("SET session_replication_role = replica")  # the journal is append-only for everybody else
    scene.query(
        """UPDATE backburner.journal SET data = '{"spec": {"timeouts": {"silence": "30s"}}}'"""
        " WHERE run_id = %s AND seq = 2", run_id,
    )  # fmt: skip
    scene.query("SET session_replication_role = origin")
    [attempt] = scene.claim(scene.hello())
    scene.started(attempt)
    scene.query(
        "UPDATE backburner.effects SET started_at = started_at - interval '100 s',"
        " last_activity_at = last_activity_at - interval '100 s'"
    )
    return effect_id


def unowned(scene: Scene) -> str:
    scene.run()
    return "0"


def scheduler(scene: Scene, name: str, version: str = "1") -> None:
    scene.query("SELECT * FROM backburner.claim_shards_v1(%s, '', %s, 60.0, 16)", name, version)


def restarts(scene: Scene) -> str:
    for number in range(6):
        scheduler(scene, f"s{number}")
    return "s0"


def schedulers_mixed(scene: Scene) -> str:
    scheduler(scene, "a", "1.0")
    scheduler(scene, "b", "1.1")
    return "1.0"


def vitals(**has: float) -> Provoke:
    """A replica that says so of itself when it renews its leases."""

    def provoke(scene: Scene) -> str:
        scene.query(
            "SELECT * FROM backburner.renew_shards_v3('s', '', '1', 60.0, false, %s::jsonb)", orjson.dumps(has).decode()
        )
        return "s"

    return provoke


def dead_tuples(scene: Scene) -> str:
    scene.query("ALTER TABLE backburner.schedulers SET (autovacuum_enabled = false)")
    scheduler(scene, "s")
    scene.query(
        "DO $$ BEGIN FOR i IN 1..10100 LOOP UPDATE backburner.schedulers SET version = i::text; END LOOP; END $$"
    )
    scene.query("SELECT pg_stat_force_next_flush()")
    scene.query("SELECT 1")
    return "schedulers"


def late_timer(scene: Scene) -> str:
    run_id = scene.run()
    scene.append(run_id, plain_row("TIMER_SET", ordinal=1, fire_at="2026-01-01T00:00:00Z"))
    return run_id


def schema_old(scene: Scene) -> None:
    scene.query("DELETE FROM backburner.schema_migrations WHERE version > 3")


def schema_newer(scene: Scene) -> None:
    scene.query("INSERT INTO backburner.schema_migrations (version, name, checksum) VALUES (9000, 'x', 'x')")


def breaker(scene: Scene) -> str:
    scene.query(
        "INSERT INTO backburner.provider_breakers VALUES ('default', 'codex', 'openai:me', '', 'QUOTA_EXHAUSTED', "
        "'spent', now(), now(), now() + interval '1 h', true, 1)"
    )
    return "codex"


def harness(**said: Any) -> Provoke:
    """An executor that has found this of codex, and the agents that are not there are no finding."""

    def provoke(scene: Scene) -> str:
        scene.hello("e1", harness_checks=[{"name": "pi", "remedy": "no pi on PATH"}, {"name": "codex"} | said])
        return "codex"

    return provoke


PROVOKED: Final[dict[str, tuple[Provoke, pb.Finding.Severity.ValueType, str]]] = {
    "PROCESS_ERRORS": (process_error, CRITICAL, "build (build v7) are parked: EXCEPTION"),
    "RUNS_HALTED": (halted, WARNING, "registry down"),
    "CLIENTS_IDLE": (client_idle, WARNING, "silent"),
    "HISTORY_LONG": (long_history, WARNING, "10,001 rows"),
    "NO_EXECUTOR": (no_executor, CRITICAL, "no executor has harness shell"),
    "QUEUE_AGE": (slots_full, WARNING, "are taken"),
    "HOLD_IN_FORCE": (hold, WARNING, "everything is held by ada: drill"),
    "BREAKER_OPEN": (breaker, WARNING, "breaker of codex (account openai:me) in namespace default: open until"),
    "APPROVALS_OPEN": (approval, INFO, "1 external effects"),
    "EXECUTOR_LOST": (expired, INFO, "declared dead"),
    "EXECUTOR_AWAY": (away, CRITICAL, "has 1 attempts"),
    "EXECUTOR_DRAINING": (draining, INFO, "kernel"),
    "EXECUTOR_OVER_SLOTS": (over_slots, WARNING, "more attempts than slots: shell"),
    "EXECUTOR_UNREACHABLE": (unreachable, INFO, "cannot be dialled"),
    "EXECUTORS_MIXED": (executors_mixed, INFO, "1 (1), 2 (1)"),
    "CLOCK_SKEW": (skewed, WARNING, "-7.5 s"),
    "HARNESS_BROKEN": (
        harness(path="/x/codex", remedy="it says nothing"),
        WARNING,
        "codex on executor e1 is there and cannot be used: it says nothing",
    ),
    "HARNESS_NOT_LOGGED_IN": (
        harness(found=True, version="1", version_known=True, login="HARNESS_LOGIN_MISSING"),
        WARNING,
        "codex on executor e1 is offered, and nobody is logged in",
    ),
    "HARNESS_VERSION_UNKNOWN": (
        harness(found=True, version="9.1", known_versions="2 and later"),
        INFO,
        "has version 9.1, which is not known to work: known are 2 and later",
    ),
    "EFFECT_SILENT": (silent, WARNING, "its limit is 30 s"),
    "SHARDS_UNOWNED": (unowned, CRITICAL, "with 1 open runs"),
    "SCHEDULERS_RESTART": (restarts, WARNING, "6 times"),
    "SCHEDULERS_MIXED": (schedulers_mixed, WARNING, "1.0 (1), 1.1 (1)"),
    "TIMER_LAG": (late_timer, WARNING, "1 timers"),
    "SHARDS_LOST": (vitals(shards_lost=3), WARNING, "scheduler s lost 3 leases"),
    "ITERATION_LAG": (vitals(iteration_lag_p99_s=2.5, iterations=7), WARNING, "wait up to 2.5 s"),
    "COMMITS_SLOW": (vitals(commit_p99_s=0.25, commits=20), WARNING, "take up to 250 ms (p99 of 20)"),
    "POOL_WAITERS": (vitals(read_wait_p99_s=0.5, reads=20, reads_waiting=9), WARNING, "9 waited"),
    "DEAD_TUPLES": (dead_tuples, WARNING, "10,100 dead rows"),
    "SCHEMA_OLD": (schema_old, WARNING, "at 0003"),
    "SCHEMA_NEWER": (schema_newer, INFO, "at 9000"),
    "SIZES": (unowned, INFO, "journal"),
}


async def findings(dsn: str) -> dict[str, pb.Finding]:
    async with open_reads(dsn) as reads:
        return {finding.code: finding for finding in await diagnose(reads)}


#: These are of a whole server: `test_diagnosis_of_servers.py`.
OF_SERVERS: Final = {"WAL_HELD", "ARCHIVER_FAILING"}


def test_every_code_is_provoked() -> None:
    assert set(PROVOKED) | OF_SERVERS == set(REMEDIES)


@pytest.mark.parametrize("code", PROVOKED)
async def test_it_is_found(scene: Scene, code: str) -> None:
    provoke, severity, message = PROVOKED[code]
    subject = provoke(scene)
    found = (await findings(scene.dsn))[code]
    assert (found.severity, message in found.message) == (severity, True), found
    assert found.remedy
    if subject is not None and code != "SIZES":
        assert subject in found.subjects


async def test_nothing_is_wrong_with_a_fresh_system(scene: Scene) -> None:
    scheduler(scene, "s")
    session = scene.hello(address="e:1", pools={"shell": {"slots": 8}})
    scene.dispatched(session, scene.run())
    scene.request(scene.run(), "just asked")
    assert set(await findings(scene.dsn)) == {"SIZES"}


async def test_a_replica_that_does_well_is_no_finding_and_neither_is_one_of_an_older_release(scene: Scene) -> None:
    vitals(
        commits=500, commit_p99_s=0.02, reads=500, reads_waiting=1, read_wait_p99_s=0.001, iterations=500,
        iteration_lag_p99_s=0.01, shards_lost=0,
    )(scene)  # fmt: skip
    scheduler(scene, "t")
    assert set(await findings(scene.dsn)) == {"SIZES"}


async def test_a_few_commits_say_nothing_of_a_database(scene: Scene) -> None:
    vitals(commits=19, commit_p99_s=3.0, reads=19, reads_waiting=0, read_wait_p99_s=3.0)(scene)
    assert not {"COMMITS_SLOW", "POOL_WAITERS"} & set(await findings(scene.dsn))


async def test_a_schema_without_vitals_can_be_diagnosed(scene: Scene) -> None:
    scheduler(scene, "s")
    scene.query("ALTER TABLE backburner.schedulers DROP COLUMN vitals CASCADE")
    assert "SIZES" in await findings(scene.dsn)


async def test_the_growth_of_the_journal_is_that_of_the_days_runs(scene: Scene) -> None:
    scene.run(run_id=new_run_id())
    scene.query("SELECT pg_stat_force_next_flush()")
    assert "the runs of the last 24 hours have about" in (await findings(scene.dsn))["SIZES"].message


async def test_an_executor_whose_holder_died_is_away(scene: Scene) -> None:
    silent_holder(scene)
    assert (await findings(scene.dsn))["EXECUTOR_AWAY"].severity == WARNING


async def test_what_is_held_is_not_said_to_wait_for_an_executor(scene: Scene) -> None:
    hold(scene)
    found = await findings(scene.dsn)
    assert ("NO_EXECUTOR" in found, "QUEUE_AGE" in found) == (False, False)


async def test_a_harness_that_is_missing_is_named_with_what_to_do_about_it(scene: Scene) -> None:
    here = {"name": "codex", "found": True, "remedy": "version 9 is used, but not known to work"}
    gone = {"name": "codex", "remedy": "no codex on PATH: install it"}
    scene.hello("e1", harness_checks=[{"name": "other", "remedy": "not this one"}, here])
    scene.hello("e2", harness_checks=[gone])
    effect_id = scene.request(scene.run(), "review", kind="AGENT", harness="codex", capabilities=["agent/codex"])
    scene.query("UPDATE backburner.dispatch_queue SET enqueued_at = enqueued_at - interval '90 s',"
                " not_before = not_before - interval '90 s'")  # fmt: skip
    found = (await findings(scene.dsn))["NO_EXECUTOR"]
    assert list(found.subjects) == [effect_id]
    assert found.message.endswith("no executor has harness codex; e2 says: codex: no codex on PATH: install it")


async def test_the_gravest_comes_first(scene: Scene) -> None:
    process_error(scene)
    halted(scene)
    async with open_reads(scene.dsn) as reads:
        severities = [finding.severity for finding in await diagnose(reads)]
    assert severities == sorted(severities, reverse=True)


async def test_a_database_that_is_not_ours_or_not_there_is_an_error_that_says_so(scene: Scene) -> None:
    scene.query("DROP SCHEMA backburner CASCADE")
    with pytest.raises(JournalError, match="backburner migrate"):
        await findings(scene.dsn)
    with pytest.raises(JournalUnavailable):
        await findings("postgresql://127.0.0.1:1/none")
