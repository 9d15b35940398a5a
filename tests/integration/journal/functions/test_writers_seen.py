"""Who writes what (protocol, section 1): the table, and the functions that were seen to write each type of event.

A trigger notes the function on the call stack of every insert while a scenario goes through all of them, rightly and
wrongly. A type that turns up elsewhere breaks the table; one that never turns up makes the scenario incomplete.
"""

import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Final, LiteralString

import pytest

from backburner.journal.v1 import journal_pb2
from tests.integration.journal import items
from tests.integration.journal.desk import Desk, desk

#: Rows that only the run's owner asks for, with its epoch and the number of its iteration.
OWNERS: Final = (
    "EFFECT_REQUESTED", "TIMER_SET", "TIMER_FIRED", "PROCESS_LOG", "PATCH_MARKED", "RUN_CLOSING",
    "RUN_COMPLETED", "RUN_FAILED", "RUN_CANCELLED", "RUN_CONTINUED", "RUN_REPORTED", "PROCESS_RUNTIME_ERROR",
)  # fmt: skip

WRITERS: Final[dict[str, set[str]]] = {type_: {"append_v1"} for type_ in OWNERS} | {
    # Child runs, and the runs that runs go on as: with what asks for them, and with what they are told at once.
    "RUN_CREATED": {"create_runs_v1", "append_v1", "client_requests_v1"},
    "RUN_CANCEL_REQUESTED": {"request_cancels_v1", "append_v1", "finish_runs_v1"},
    "CHILD_RUN_STARTED": {"append_v1", "client_requests_v1"},
    # By the process, or from outside; going on is always asked for from outside.
    "RUN_HALTED": {"append_v1", "halt_runs_v1", "halt_idle_v1"},
    "RUN_RESUMED": {"resume_runs_v1", "open_clients_v1", "client_requests_v1", "finish_runs_v1"},
    # By the process's owner, or by the client of a client-driven run.
    "RUN_CLOSING": {"append_v1", "finish_runs_v1"},
    "RUN_COMPLETED": {"append_v1", "finish_runs_v1"},
    "RUN_FAILED": {"append_v1", "finish_runs_v1"},
    "EFFECT_REQUESTED": {"append_v1", "client_requests_v1"},
    "EFFECT_REUSED": {"append_v1", "client_requests_v1"},
    "SIGNAL_RECEIVED": {"signal_runs_v1", "append_v1"},
    "EFFECT_CANCEL_REQUESTED": {"append_v1", "request_cancels_v1", "finish_runs_v1"},
    "EFFECT_DISPATCHED": {"append_v1", "claim_v1", "client_requests_v1"},
    "EFFECT_STARTED": {"attempts_started_v1"},
    "EFFECT_PROGRESS": {"attempts_progress_v1"},
    "EFFECT_ATTEMPT_FAILED": {"attempts_settle_v1"},
    "EFFECT_PARKED": {"attempts_settle_v1"},
    "EFFECT_ATTEMPT_LOST": {"attempts_lost_v1"},
    # The attempt's executor; whoever settles what no executor has; the owner, with the loss of the last attempt.
    "EFFECT_RESOLVED": {
        "attempts_settle_v1",
        "append_v1",
        "resolve_external_v1",
        "attempts_lost_v1",
        "client_requests_v1",
    },
    "EFFECT_CANCELLED": {"attempts_settle_v1", "append_v1", "request_cancels_v1", "attempts_lost_v1", "finish_runs_v1"},
    "EFFECT_SUPERSEDED": {"attempts_settle_v1", "append_v1"},
}
EXECUTORS: Final = {"attempts_started_v1", "attempts_progress_v1", "attempts_settle_v1"}

TRAP: Final = """
    CREATE TABLE backburner.seen (type text, writer text, stack text);
    CREATE FUNCTION backburner.note_the_writer() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        stack text;
    BEGIN
        GET DIAGNOSTICS stack = PG_CONTEXT;
        INSERT INTO backburner.seen VALUES (new.type, new.writer, stack);
        RETURN new;
    END $$;
    CREATE TRIGGER note_the_writer BEFORE INSERT ON backburner.journal
        FOR EACH ROW EXECUTE FUNCTION backburner.note_the_writer();
"""


@pytest.fixture
async def at(database_url: str) -> AsyncIterator[Desk]:
    async with desk(database_url) as made:
        await made.connection.execute(TRAP)
        yield made


def test_table_has_every_type_of_event() -> None:
    names = {name.removeprefix("EVENT_TYPE_") for name in journal_pb2.EventType.keys()}  # noqa: SIM118
    assert set(WRITERS) == names - {"UNSPECIFIED"}


async def test_types_are_written_by_the_functions_of_the_table_and_by_no_other(at: Desk) -> None:
    await owners_rows(at)
    await executors_rows(at)
    await outsiders_rows(at)
    await clients_rows(at)
    seen: dict[str, set[str]] = defaultdict(set)
    for row in await at.rows("SELECT DISTINCT type, writer, stack FROM backburner.seen"):
        function = re.findall(r"function (?:backburner\.)?(\w+_v1)\(", row["stack"])[-1]
        seen[row["type"]].add(function)
        role = row["writer"].partition("/")[0]
        assert (role == "executor") == (function in EXECUTORS), f"{function} signs as {row['writer']}"
    assert dict(seen) == {type_: functions for type_, functions in WRITERS.items() if functions}


@pytest.mark.parametrize("type_", sorted(t for t, f in WRITERS.items() if "append_v1" not in f))
async def test_owner_cannot_append_what_is_not_the_owners(at: Desk, type_: str) -> None:
    """A start or a failed attempt that an owner makes up would stand in the journal with no projection to it."""
    run_id = await at.create()
    await at.request(run_id, "a")
    try:
        outcome = (await at.append(run_id, items.about(run_id, "a", type_, {})))["outcome"]
    except Exception as error:  # noqa: BLE001  # refused as a whole is refused
        outcome = str(error)
    assert outcome != "ok"
    assert type_ not in (await at.types(run_id))


async def owners_rows(at: Desk) -> None:
    """Everything of the owner, its fast path and its settlements included."""
    for ending in ("RUN_COMPLETED", "RUN_FAILED", "RUN_CANCELLED"):
        run_id = await at.create()
        await at.append(run_id, items.row(ending))
    run_id = await at.create()
    await at.one("signal_runs_v1", items.signal(run_id))
    await at.append(run_id, items.continued(run_id, signal_seqs=[2]))
    run_id = await at.create()
    await at.append(run_id, items.child(run_id, "child"))
    await at.append(run_id, items.cancel(run_id, "child"))
    run_id = await at.running("a")
    await at.request(run_id, "b", "c")
    plain = [
        t for t in OWNERS if t not in ("EFFECT_REQUESTED", "TIMER_SET", "TIMER_FIRED") and not t.startswith("RUN_")
    ]
    rows = [items.row(t) for t in (*plain, "RUN_REPORTED", "RUN_HALTED", "RUN_CLOSING")]
    timer = {"ordinal": 1, "fire_at": "2040-01-01T00:00:00Z"}
    rows += [items.row("TIMER_SET", 1, **timer), items.row("TIMER_FIRED", 0, **timer)]
    rows += [items.cancel(run_id, key) for key in ("a", "b")]
    rows += [items.resolved(run_id, key) for key in ("a", "c")]
    assert (await at.append(run_id, *rows))["outcome"] == "ok"


async def executors_rows(at: Desk) -> None:
    """Attempts that start, report, fail, are lost, succeed, and come too late."""
    run_id = await at.running("retried", "lost", "gone", "late", max_attempts=2)
    await at.call("attempts_started_v1", [items.attempt_of(run_id, "retried")])
    await at.call("attempts_progress_v1", [items.attempt_of(run_id, "retried") | {"ordinal": 1, "durable": True}])
    await at.settle(run_id, "retried", "failed")
    parked = await at.running("parked", max_attempts=2)
    await at.settle(parked, "parked", "failed", why="QUOTA_EXHAUSTED", retry_after_s=600)
    await at.lose(run_id, "lost")
    await at.claim(known=True)
    await at.settle(run_id, "retried", attempt=2)
    await at.settle(run_id, "lost")
    await at.lose(run_id, "lost", attempt=2)
    for key in ("gone", "late"):
        await at.one("request_cancels_v1", items.cancel_request(run_id, key))
    await at.lose(run_id, "gone")
    await at.settle(run_id, "late", "cancelled")


async def outsiders_rows(at: Desk) -> None:
    """Cancels of a run and of what waits, answers to approvals."""
    run_id = await at.create()
    await at.one("signal_runs_v1", items.signal(run_id))
    for function in ("halt_runs_v1", "resume_runs_v1"):
        await at.one(function, items.control(run_id))
    await at.request(run_id, "a", "b", kind="EXTERNAL", capabilities=[], pool="")
    await at.one("resolve_external_v1", items.answer(run_id, "a"))
    for key in ("b", None):
        await at.one("request_cancels_v1", items.cancel_request(run_id, key))


async def clients_rows(at: Desk) -> None:
    """Requests, ends and starts of clients, each also of a client that was silent; and what an earlier run answers."""
    old = await at.client_run("a")
    await at.settle(old, "a")
    await at.request(await at.create(reuse_from=old), "a")
    await at.client_run("a", reuse_from=old)
    calls: list[tuple[LiteralString, Callable[[str], items.Item]]] = [
        ("open_clients_v1", items.client_start),
        ("client_requests_v1", lambda run_id: items.client_request(run_id, "more")),
        ("finish_runs_v1", items.finish),
    ]
    for function, item in calls:
        run_id = await at.client_run()
        await at.silence(run_id)
        await at.one(function, item(run_id))
    await at.one("finish_runs_v1", items.finish(await at.client_run("queued", fast=False), state="FAILED"))
    await at.one("finish_runs_v1", items.finish(await at.client_run("runs"), wait=True))
    run_id = await at.client_run()
    refused = items.requested(run_id, "refused", cause=0, kind="RUN", capabilities=[], pool="")
    rows = [row | {"use_recorded": False} for row in (items.child(run_id, "child", cause=0), refused)]
    await at.one("client_requests_v1", items.client_request(run_id) | {"rows": rows})
    await at.one("finish_runs_v1", items.finish(run_id, state="FAILED"))
