"""What people do to runs from outside, what they see of each state, and what programs read: against real services."""

import asyncio
import socket
from collections.abc import Iterable
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import operator_service_pb2 as op
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.e2e.commands import Cli
from tests.support.eventually import eventually
from tests.support.services import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


async def shows(cli: Cli, name: str, text: str) -> str:
    """What `show` prints, once it has the text."""

    async def shown() -> str:
        done = await cli("show", name)
        assert text in done.out, done
        return done.out

    return await eventually(shown, timeout=30)


async def test_an_approval_is_found_in_the_inbox_and_answered_by_somebody(cli: Cli) -> None:
    run = await cli.start("run", "cli.asks")
    await run.until("answer it: backburner approvals answer ")
    run_id = run.err.decode().split()[1]
    name = f"{run_id}/approve"
    await shows(cli, name, "WAITING")
    inbox, wrong = await asyncio.gather(cli("approvals"), cli("approvals", "answer", name, "perhaps"))
    line = next(line for line in inbox.out.splitlines() if line.startswith(name))
    assert [cell.strip() for cell in line.split("  ") if cell.strip()][-3:] == ["Deploy 1.4.2?", "yes/no", "ops"]
    assert (wrong.code, "choose one of yes, no" in wrong.err) == (2, True)
    done = await cli("approvals", "answer", name, "yes", "--by", "ada")
    assert (done.code, done.out) == (0, "effect approve: yes\n")
    again, other, end = await asyncio.gather(
        cli("approvals", "answer", name, "yes", "--by", "ada"), cli("approvals", "answer", name, "no"), run.end()
    )
    assert again.code == 0
    assert (other.code, "EFFECT_SETTLED" in other.err) == (2, True)
    assert (end.code, '"by": "ada"' in end.out) == (0, True)


async def test_a_halted_run_keeps_its_signals_until_it_is_resumed(cli: Cli) -> None:
    run_id = await cli.detached("cli.listens")
    halted = await cli("halt", run_id, "--reason", "registry down")
    assert (halted.code, halted.out) == (0, f"run {run_id}: halted\n")
    signalled = await cli("signal", run_id, "scale", "3")
    assert (signalled.code, signalled.out.startswith("signal scale is event ")) == (0, True)
    shown, watched = await asyncio.gather(cli("show", run_id), cli("watch", run_id))
    for said in (shown.out, watched.err):
        assert "the run is halted (registry down)" in said
        assert f"`backburner resume {run_id}` lets it go on" in said
    assert watched.code == 3
    assert (await cli("resume", run_id)).out == f"run {run_id}: running\n"
    assert (await cli("watch", run_id)).out == "3\n"
    refused = await cli("resume", run_id)
    assert (refused.code, "backburner show RUN" in refused.err) == (2, True)


async def test_a_process_that_halts_itself_goes_on_when_it_is_resumed(cli: Cli) -> None:
    label = ("--label", f"test={cli.folder.name}")
    halted = await cli("run", "cli.halts", *label)
    assert (halted.code, "wait for the registry" in halted.err) == (3, True)
    run_id = halted.err.split()[1]
    assert (await cli("resume", *label, "--yes")).out == "resume: 1 runs\n"
    assert (await cli("watch", run_id)).out == "went on\n"


async def test_runs_are_cancelled_by_filter_only_after_their_number_was_confirmed(cli: Cli) -> None:
    label = ("--label", f"batch={cli.folder.name}")
    run_ids = await asyncio.gather(*(cli.detached("cli.sleeps", *label) for _ in range(3)))
    asked = await cli("cancel", *label)
    assert (asked.code, asked.out) == (2, "")
    assert "this would cancel 3 runs" in asked.err
    states = {run["state"] for run in await cli.json("ps", *label)}
    assert states == {"RUN_STATE_RUNNING"}
    terminal = await cli.terminal("cancel", *label)
    await terminal.until(lambda text: "cancel 3 runs? [y/N]" in text)
    terminal.type("n\n")
    assert await terminal.end() == 130
    done = await cli("cancel", *label, "--yes", "--reason", "wrong branch")
    assert (done.code, done.err) == (0, "cancel 3 runs\n")
    assert done.out == "cancel: 3 runs\n"
    ended = await cli("watch", run_ids[0])
    assert (ended.code, "wrong branch" in ended.err) == (4, True)
    assert (await cli("cancel", *label, "--yes")).err == "cancel 0 runs\n"


async def test_each_end_has_its_exit_code(cli: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
        codes = await asyncio.gather(
            cli("run", "cli.returns"), cli("run", "cli.fails"), cli("run", "cli.returns", "m=1"),
            cli("run", "cli.halts"), cli("ps", "--address", nobody),
        )  # fmt: skip
    assert [done.code for done in codes] == [0, 1, 2, 3, 6]  # 4, 5 and 130 in the tests of cancel, timeout and Ctrl-C
    assert "no bread today" in codes[1].err
    assert "input" in codes[2].err
    assert f"no scheduler answers at {nobody} (from --address)" in codes[4].err
    assert "backburner dev" in codes[4].err


async def test_every_state_of_an_effect_can_be_shown(cli: Cli) -> None:
    run_id = await cli.detached("cli.states")
    await shows(cli, f"{run_id}/waiting", "WAITING")
    await shows(cli, f"{run_id}/running", "RUNNING")
    keys = ("succeeded", "failed", "timed-out", "cancelled", "running", "queued", "waiting")
    said = dict(zip(keys, await asyncio.gather(*(cli("show", f"{run_id}/{key}") for key in keys)), strict=True))
    for key, done in said.items():
        assert key.upper().replace("-", "_") in done.out, done
    assert "fine" in said["succeeded"].out
    assert "exit code  9" in said["failed"].out
    assert "TIMEOUT_START_TO_CLOSE" in said["timed-out"].out
    assert "CANCEL_REQUESTED" in said["cancelled"].out or "not wanted" in said["cancelled"].out
    assert "waiting on" in said["queued"].out
    assert "a webhook" in said["waiting"].out
    narrow, wide, effects = await asyncio.gather(
        cli("show", run_id, COLUMNS="80"), cli("show", run_id, COLUMNS="200"), cli("ps", "--effects", COLUMNS="80")
    )
    assert all(key in narrow.out for key in keys)
    assert max(map(len, narrow.out.splitlines())) <= 80
    assert max(map(len, wide.out.splitlines())) <= 200
    assert max(map(len, effects.out.splitlines())) <= 80
    assert (await cli("cancel", run_id)).code == 0


async def test_a_name_that_is_not_there_is_answered_with_those_that_are_near(cli: Cli) -> None:
    run_id = await cli.detached("cli.states")
    await shows(cli, run_id, "timed-out")
    effect, run, process = await asyncio.gather(
        cli("show", f"{run_id}/timedout"), cli("show", run_id[:-1] + ("0" if run_id[-1] != "0" else "1")),
        cli("run", "cli.retruns"),
    )  # fmt: skip
    assert (effect.code, "timed-out" in effect.err) == (2, True), effect.err
    assert (run.code, run_id in run.err) == (2, True), run.err
    assert (process.code, "did you mean cli.returns?" in process.err) == (2, True), process.err
    await cli("cancel", run_id)


def parsed(documents: Iterable[Any], kind: type[Message]) -> list[Any]:
    """The documents as messages: a name that the protos do not have is an error."""
    return [json_format.ParseDict(document, kind()) for document in documents]


async def test_what_programs_read_is_the_messages_of_the_api(cli: Cli, stack: Stack) -> None:
    [run] = await cli.json("run", "cli.child-fails", "--label", "team=web", code=1)
    run_id = run["run_id"]
    ps, [shown], [effect], rows, executors, frames = await asyncio.gather(
        cli.json("ps", "--process", "cli.child-fails"), cli.json("show", run_id), cli.json("show", f"{run_id}/tests"),
        cli.json("journal", run_id), cli.json("executors"), cli.json("watch", run_id, "--after", "0", code=1),
    )  # fmt: skip
    assert {item.run_id for item in parsed([run, shown], pb.Run)} == {run_id}
    assert run_id in [item.run_id for item in parsed(ps, pb.Run)]
    assert parsed([effect], pb.Effect)[0].key == "tests"
    assert {row.pop("run_id") for row in rows} == {run_id}  # an event of its own does not say whose it is
    assert [int(row.seq) for row in parsed(rows, journal.JournalEvent)] == list(range(1, len(rows) + 1))
    assert "executor-1" in {item.executor_id for item in parsed(executors, op.Executor)}
    assert parsed(frames, pb.WatchRunResponse)[-1].end.run.run_id == run_id
    # Scripts hold on to these names; a new one may come, none may go.
    assert shown.keys() >= {
        "run_id", "namespace", "process", "state", "labels", "create_time", "update_time", "end_time", "head_seq",
        "error", "effect_counts",
    }  # fmt: skip
    assert shown["error"].keys() >= {"kind", "message", "exception_type", "traceback", "effect_key"}
    assert effect.keys() >= {
        "effect_id", "run_id", "key", "kind", "name", "state", "attempt", "harness", "executor_id", "request_time",
        "settle_time", "spec", "result", "error", "death", "request_seq", "settle_seq", "elapsed",
    }  # fmt: skip
    assert effect["result"].keys() >= {"exit_code", "stdout", "stderr"}
    assert rows[0].keys() >= {"seq", "type", "recorded_at", "run_created"}
