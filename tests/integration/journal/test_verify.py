"""Each rule of `backburner verify` finds what breaks it: tables are damaged as no function would, and it must tell."""

import json
import subprocess
import sys
import uuid
from typing import LiteralString

import psycopg
import psycopg.sql
import pytest

from scheduler_service.journal.errors import JournalRefused, JournalUnavailable
from scheduler_service.journal.verify import RULES, verify
from tests.integration.journal import items
from tests.integration.journal.desk import Desk, desk

# Rule -> what breaks it in a run whose effect `a` is settled, `b` runs, `c` is queued, and whose timer 0 is set.
DAMAGE: dict[str, LiteralString] = {
    "dense_seq": "UPDATE backburner.journal SET seq = 99 WHERE run_id = %s AND type = 'PROCESS_LOG'",
    "time_forward": "UPDATE backburner.journal SET recorded_at = '2001-01-01' WHERE run_id = %s AND seq = 3",
    "created_first": "UPDATE backburner.journal SET type = 'RUN_CREATED' WHERE run_id = %s AND type = 'PROCESS_LOG'",
    "ends_once": "UPDATE backburner.journal SET type = 'RUN_COMPLETED' WHERE run_id = %s AND seq = 2",
    "cause_before": "UPDATE backburner.journal SET cause = 50 WHERE run_id = %s AND type = 'PROCESS_LOG'",
    "causes_forward": "UPDATE backburner.journal SET cause = 2 WHERE run_id = %s AND type = 'TIMER_SET'",
    "requested_first": "UPDATE backburner.journal SET type = 'EFFECT_SUPERSEDED' WHERE run_id = %s AND seq = 2",
    "settles_once": "DROP INDEX backburner.journal_settles_once; "
    "UPDATE backburner.journal SET type = 'EFFECT_CANCELLED', effect_key = 'a', effect_id = (SELECT effect_id "
    "FROM backburner.effects WHERE key = 'a') WHERE type = 'PROCESS_LOG'",
    "attempts_numbered": "UPDATE backburner.journal SET attempt = 3 WHERE run_id = %s AND type = 'EFFECT_DISPATCHED'",
    "dispatched_before": "UPDATE backburner.journal SET type = 'EFFECT_STARTED', attempt = 7 WHERE run_id = %s AND "
    "type = 'EFFECT_DISPATCHED' AND effect_key = 'b'",
    "starts_bounded": "UPDATE backburner.effects SET max_attempts = 0 WHERE run_id = %s AND key = 'b'",
    "effect_state": "UPDATE backburner.effects SET state = 'RUNNING' WHERE run_id = %s AND key = 'b'",
    "effect_known": "DELETE FROM backburner.effects WHERE run_id = %s AND key = 'a'",
    "queue": "DELETE FROM backburner.dispatch_queue WHERE run_id = %s",
    "timers": "DELETE FROM backburner.timers WHERE run_id = %s",
    "not_early": "UPDATE backburner.journal SET type = 'TIMER_FIRED', data = '{\"ordinal\": 0}' WHERE run_id = %s AND "
    "type = 'PROCESS_LOG'",
    "run_state": "UPDATE backburner.runs SET state = 'CANCELLING' WHERE run_id = %s",
    "head": "UPDATE backburner.run_heads SET open_effects = 7 WHERE run_id = %s",
    "groups": "UPDATE backburner.run_groups SET successes = 3 WHERE run_id = %s",
    "blobs": "DELETE FROM backburner.blobs WHERE run_id = %s",
    "usage": "DELETE FROM backburner.attempt_usage WHERE run_id = %s",
    "settled_at_end": "UPDATE backburner.run_heads SET open = false WHERE run_id = %s",
}


async def scene(at: Desk) -> str:
    """A run with something of everything, as the functions wrote it."""
    run_id = await at.create()
    await at.request(run_id, "a", "b", fast=True, max_attempts=2)
    await at.request(run_id, "c", group_id="g", group_max=2, group_strategy="ADAPTIVE")
    await at.settle(run_id, "a", blob_text='"large"', result={"usage": {"input_tokens": 7}})
    timer = {"type": "TIMER_SET", "cause": 1, "data": {"ordinal": 0, "fire_at": "2030-01-01T00:00:00Z"}}
    await at.append(run_id, timer, {"type": "PROCESS_LOG", "cause": 1, "data": {"message": "m"}})
    return run_id


async def broken_rules(dsn: str) -> set[str]:
    return {violation.rule async for run in verify(dsn) for violation in run.violations}


async def test_what_the_functions_wrote_breaks_no_rule(database_url: str) -> None:
    async with desk(database_url) as at:
        await scene(at)
        await at.lose(await at.running("x", max_attempts=1), "x")
        checked = [run async for run in verify(database_url)]
    assert [run.violations for run in checked] == [[], []]
    assert sum(run.rows for run in checked) > 10


def test_every_rule_has_damage() -> None:
    assert DAMAGE.keys() == RULES.keys()


@pytest.mark.invariant("I1", "I2", "I3", "I4", "I12", "I13")
@pytest.mark.parametrize("rule", DAMAGE)
async def test_a_rule_finds_what_breaks_it(database_url: str, rule: str) -> None:
    async with desk(database_url) as at:
        run_id = await scene(at)
        await at.connection.execute("ALTER TABLE backburner.journal DISABLE TRIGGER ALL")
        for statement in DAMAGE[rule].split("; "):
            await at.connection.execute(statement.replace("%s", f"'{run_id}'"))
    assert rule in await broken_rules(database_url)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("UPDATE backburner.blobs SET content = 'other'", "is not what its digest says"),
        ("INSERT INTO backburner.blobs SELECT run_id, 'd', '', '' FROM backburner.blobs", "no row refers to it"),
        (
            "UPDATE backburner.journal SET data = jsonb_set(data, '{result,value,blob,size_bytes}', '8') "
            "WHERE type = 'EFFECT_RESOLVED'",
            "has 7 bytes, not 8",
        ),
    ],
)
async def test_what_is_wrong_with_a_blob_is_said(database_url: str, damage: LiteralString, said: str) -> None:
    async with desk(database_url) as at:
        await scene(at)
        await at.connection.execute("ALTER TABLE backburner.journal DISABLE TRIGGER ALL")
        await at.connection.execute(damage)
    [found] = [violation async for run in verify(database_url) for violation in run.violations]
    assert (found.rule, said in found.message) == ("blobs", True), found


@pytest.mark.parametrize(
    "sooner",
    [
        "data = jsonb_set(data, '{spec,sleep_until}', to_jsonb('2030-01-01T00:00:00Z'::text)) WHERE seq = 3",
        "type = 'EFFECT_ATTEMPT_LOST', data = jsonb_build_object('next_attempt_at', '2030-01-01T00:00:00Z'), "
        "effect_id = (SELECT effect_id FROM backburner.effects WHERE key = 'b') WHERE seq = 4",
    ],
)
async def test_an_attempt_that_was_sent_too_early_is_said(database_url: str, sooner: LiteralString) -> None:
    async with desk(database_url) as at:
        await scene(at)  # b is requested at 3 and dispatched at 5
        await at.connection.execute("ALTER TABLE backburner.journal DISABLE TRIGGER ALL")
        await at.connection.execute("UPDATE backburner.journal SET " + sooner)
    found = [violation async for run in verify(database_url) for violation in run.violations]
    [early] = [one for one in found if one.rule == "not_early"]
    assert (early.key, early.seq, "attempt 1 was dispatched" in early.message) == ("b", 5, True)


async def test_it_reads_while_somebody_holds_the_run(database_url: str) -> None:
    async with desk(database_url) as at, at.another(autocommit=False) as writer:
        run_id = await scene(at)
        await at.one("attempts_settle_v1", items.settled(run_id, "b"), on=writer)
        assert await broken_rules(database_url) == set(), "an uncommitted settlement is not seen, and is not waited for"


async def test_who_may_not_read_is_told(database_url: str) -> None:
    role = f"nobody_{uuid.uuid4().hex}"
    as_nobody = f"{database_url}{'&' if '?' in database_url else '?'}options=-c%20role%3D{role}"
    async with desk(database_url) as at:
        await at.connection.execute(psycopg.sql.SQL("CREATE ROLE {}").format(psycopg.sql.Identifier(role)))
        try:
            with pytest.raises(JournalRefused, match="permission denied"):
                await broken_rules(as_nobody)
        finally:
            await at.connection.execute(psycopg.sql.SQL("DROP ROLE {}").format(psycopg.sql.Identifier(role)))


async def test_a_database_that_is_away_is_said_to_be_away() -> None:
    with pytest.raises(JournalUnavailable):
        await broken_rules("postgresql://127.0.0.1:1/none")


async def test_the_command_prints_violations_and_exits_with_1(database_url: str) -> None:
    async with desk(database_url) as at:
        run_id = await scene(at)
        fine = run_verify(database_url, run_id)
        await at.connection.execute("UPDATE backburner.run_heads SET open_effects = 7")
    assert (fine.returncode, json.loads(fine.stdout)["violations"]) == (0, 0)
    bad = run_verify(database_url)
    [violation, counts] = map(json.loads, bad.stdout.splitlines())
    assert bad.returncode == 1
    assert (violation["run_id"], violation["rule"]) == (run_id, "head")
    assert counts == {"runs": 1, "rows": json.loads(fine.stdout)["rows"], "violations": 1, "by_rule": {"head": 1}}
    unknown = run_verify(database_url, "01890a5d-ac96-774b-bcce-b302099a8057")
    assert (unknown.returncode, "1 of the runs are not in this database" in unknown.stderr) == (2, True)


def run_verify(dsn: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scheduler_service.cli", "verify", "--json", "--database-url", dsn, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
