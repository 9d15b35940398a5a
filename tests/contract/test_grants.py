"""Rights: enforced by the database, not promised. Schedulers read and call; executors call a few; nobody rewrites."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import psycopg
import pytest
from psycopg import errors

from scheduler_service.journal.migrate import migrate
from tests.support.journal_items import Scene, scene_at

ROOT: Final = Path(__file__).resolve().parents[2]
EXECUTOR_FUNCTIONS: Final = {
    "contract_v1", "server_life_v1",
    "attempts_started_v1", "attempts_progress_v1", "attempts_settle_v1", "output_append_v1",
}  # fmt: skip
SCHEDULER_FUNCTIONS: Final = {
    "contract_v1", "server_life_v1",
    "shard_of", "create_runs_v1", "append_v1", "request_cancels_v1", "resolve_external_v1", "claim_v1",
    "executor_hello_v1", "executors_seen_v1", "executor_gone_v1", "readopt_v1", "attempts_lost_v1", "claim_shards_v1",
    "renew_shards_v1", "release_shards_v1", "adopt_runs_v1", "strike_v1",
    "halt_runs_v1", "resume_runs_v1", "signal_runs_v1",
    "open_clients_v1", "client_requests_v1", "finish_runs_v1", "clients_seen_v1", "halt_idle_v1",
    "audit_v1", "set_holds_v1", "prune_runs_v1", "reset_breakers_v1",
    "drain_executors_v1", "expire_executors_v1", "order_settlements_v1", "settle_by_hand_v1",
    "renew_shards_v2", "release_shards_v2", "adopt_created_v1", "report_missing_v1", "take_missing_v1",
    "renew_shards_v3", "add_usage", "executor_found_v1", "spent_effects_v1", "budget_awaited_v1", "set_budgets_v1",
}  # fmt: skip
ACLS: Final = """
SELECT 'relation ' || relname AS name, (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(relacl) a) AS acl
FROM pg_class WHERE relnamespace = 'backburner'::regnamespace AND relkind IN ('r', 'v')
UNION ALL
SELECT 'function ' || oid::regprocedure::text, (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(proacl) a)
FROM pg_proc WHERE pronamespace = 'backburner'::regnamespace
UNION ALL
SELECT 'schema', (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(nspacl) a)
FROM pg_namespace WHERE nspname = 'backburner' ORDER BY 1
"""


@pytest.fixture
async def scene(database_url: str) -> Scene:
    await migrate(database_url, roles=True)
    return Scene(database_url)


@pytest.fixture(autouse=True)
def _closed(scene: Scene) -> Iterator[None]:
    yield
    scene.connection.close()


def relations(scene: Scene, kinds: str = "rv") -> list[str]:
    rows = scene.query(
        "SELECT relname FROM pg_class WHERE relnamespace = 'backburner'::regnamespace AND relkind = ANY (%s)",
        list(kinds),
    )
    return [row["relname"] for row in rows]


def refused(scene: Scene, statement: str) -> bool:
    """True when the statement is refused for want of rights, and for nothing else."""
    try:
        scene.connection.execute(cast("Any", statement))
    except errors.InsufficientPrivilege:
        return True
    return False


@pytest.mark.parametrize(
    ("role", "expected"),
    [("backburner_executor", EXECUTOR_FUNCTIONS), ("backburner_scheduler", SCHEDULER_FUNCTIONS), ("public", set())],
)
def test_role_may_call_its_functions_and_no_other(scene: Scene, role: str, expected: set[str]) -> None:
    rows = scene.query(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'backburner'::regnamespace"
        " AND has_function_privilege(%s, oid, 'EXECUTE')",
        role,
    )
    assert {row["proname"] for row in rows} == expected


def test_executor_reads_and_writes_no_table(scene: Scene) -> None:
    found = relations(scene)
    scene.query("SET ROLE backburner_executor")
    for name in found:
        assert refused(scene, f"SELECT * FROM backburner.{name}"), name
        if not name.startswith("v_"):
            assert refused(scene, f"DELETE FROM backburner.{name}"), name
            assert refused(scene, f"INSERT INTO backburner.{name} DEFAULT VALUES"), name
    assert len(found) > 15


def test_executor_calls_work(scene: Scene) -> None:
    run_id, session = scene.run(), scene.hello()
    attempt = scene.dispatched(session, run_id)
    scene.query("SET ROLE backburner_executor")
    assert scene.query("SELECT * FROM backburner.contract_v1()") == [{"lowest": 1, "highest": 1}]
    assert scene.started(attempt)["outcome"] == "ok"
    assert scene.progress(attempt, 1)["outcome"] == "ok"
    assert scene.settle(attempt)["outcome"] == "ok"
    for function in ("append_v1", "claim_v1", "attempt_items"):
        with pytest.raises(errors.InsufficientPrivilege):
            scene.call(function, [])


def test_scheduler_reads_everything_and_writes_nothing_directly(scene: Scene) -> None:
    tables, views = relations(scene, "r"), relations(scene, "v")
    scene.query("SET ROLE backburner_scheduler")
    for name in (*tables, *views):
        scene.query(f"SELECT count(*) FROM backburner.{name}")
    for name in tables:
        assert refused(scene, f"DELETE FROM backburner.{name}"), name
        assert refused(scene, f"TRUNCATE backburner.{name}"), name
        assert refused(scene, f"INSERT INTO backburner.{name} DEFAULT VALUES"), name
        column = scene.query(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum = 1", f"backburner.{name}"
        )[0]["attname"]
        assert refused(scene, f"UPDATE backburner.{name} SET {column} = {column}"), name


def test_scheduler_calls_work(scene: Scene) -> None:
    scene.query("SET ROLE backburner_scheduler")
    run_id, session = scene.run(), scene.hello()
    attempt = scene.dispatched(session, run_id)
    assert scene.lost(attempt)["outcome"] == "ok"
    assert scene.cancel(run_id)["outcome"] == "ok"
    for statement in ("SELECT * FROM backburner.v_queue", "SELECT * FROM backburner.v_open_approvals"):
        scene.query(statement)
    with pytest.raises(errors.InsufficientPrivilege):
        scene.settle(attempt)


@pytest.mark.invariant("I4")
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE backburner.journal SET data = '{}'",
        "UPDATE backburner.journal SET seq = 2 WHERE false",
        "DELETE FROM backburner.journal",
        "TRUNCATE backburner.journal",
        "TRUNCATE backburner.runs, backburner.journal CASCADE",
        "INSERT INTO backburner.journal TABLE backburner.journal ON CONFLICT (run_id, seq) DO UPDATE SET seq = 9",
        "MERGE INTO backburner.journal j USING backburner.runs r ON r.run_id = j.run_id WHEN MATCHED THEN DELETE",
    ],
)
def test_nobody_rewrites_the_journal_not_even_its_owner(scene: Scene, statement: str) -> None:
    run_id = scene.run()
    with pytest.raises(psycopg.Error) as refusal:
        scene.query(statement)
    assert refusal.value.sqlstate == "BB001"
    assert scene.types(run_id) == ["RUN_CREATED"]


def test_definers_look_names_up_in_our_schema_first(scene: Scene) -> None:
    """Or a caller's temporary objects would be taken for ours, with the owner's rights."""
    rows = scene.query(
        "SELECT proname, prosecdef, proconfig FROM pg_proc WHERE pronamespace = 'backburner'::regnamespace"
        " AND (prosecdef OR prosrc ~* '\\m(journal|effects|run_heads|runs|shards)\\M')"
    )
    unsafe = [r["proname"] for r in rows if "search_path=backburner, pg_temp" not in (r["proconfig"] or ())]
    assert unsafe == ["journal_is_append_only"]  # it looks nothing up: the word is in its message


def test_temporary_tables_of_a_caller_are_not_taken_for_ours(scene: Scene) -> None:
    run_id, session = scene.run(), scene.hello()
    attempt = scene.dispatched(session, run_id)
    scene.query("SET ROLE backburner_executor")
    for name in ("effects", "journal", "run_heads", "dispatch_queue"):
        scene.query(f"CREATE TEMP TABLE {name} (run_id uuid, seq bigint)")
    assert scene.settle(attempt)["outcome"] == "ok"
    scene.query("RESET ROLE")
    assert scene.effect(attempt.effect_id)["state"] == "SUCCEEDED"


def test_roles_file_grants_what_the_migration_grants(scene: Scene) -> None:
    granted = scene.query(ACLS)
    for role in ("backburner_scheduler", "backburner_executor"):
        for kind in ("TABLES", "FUNCTIONS"):
            scene.query(f"REVOKE ALL ON ALL {kind} IN SCHEMA backburner FROM {role}")
        scene.query(f"REVOKE ALL ON SCHEMA backburner FROM {role}")
    assert scene.query(ACLS) != granted
    for _ in range(2):
        scene.connection.execute((ROOT / "deploy" / "roles.sql").read_bytes())
    assert scene.query(ACLS) == granted


def test_roles_file_may_come_before_the_schema(scene: Scene) -> None:
    with scene_at(scene.dsn) as other:
        other.query("DROP SCHEMA backburner CASCADE")
        other.connection.execute((ROOT / "deploy" / "roles.sql").read_bytes())
