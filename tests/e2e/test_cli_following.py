"""run, watch and logs against real services: what one sees while a run goes on, and when it ends badly."""

import asyncio
import json
from pathlib import Path

import pytest

from backburner.journal.v1 import journal_pb2 as journal
from tests.e2e.commands import Cli, Command
from tests.support.eventually import eventually
from tests.support.services import Stack
from tests.support.tcp_proxy import TcpProxy, tcp_proxy

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SLOW = "packages/web/compile-and-link-all-of-it/slow"


async def test_a_run_on_a_terminal_has_bars_that_live(cli: Cli, tmp_path: Path) -> None:
    terminal = await cli.terminal("run", "cli.works", f"folder={tmp_path}", columns=110)
    await terminal.until(lambda text: "40%" in text and "linking" in text and "3 done" in text and "half of it" in text)
    assert "the slow one is" in terminal.text  # a line of the log stays above the bars
    assert "✓" not in terminal.text
    (tmp_path / "release").touch()
    assert await terminal.end() == 0
    lines = terminal.text.splitlines()
    assert lines[-1] == "done"
    assert sum("✓" in line for line in lines) == 1
    assert terminal.screen.coloured
    assert max(map(len, lines)) <= 110


async def test_no_color_is_obeyed_and_bars_are_left_to_terminals(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "release").touch()
    terminal = await cli.terminal("run", "cli.works", f"folder={tmp_path}", NO_COLOR="1")
    assert await terminal.end() == 0
    assert "✓" in terminal.text
    assert b"\x1b[3" not in terminal.raw  # bold and dim are no colours
    piped = await cli("run", "cli.works", f"folder={tmp_path}")
    assert (piped.code, piped.out, "\x1b" in piped.err, "✓" in piped.err) == (0, "done\n", False, False)


async def test_ctrl_c_leaves_the_run_and_a_watch_comes_back_to_it(cli: Cli, tmp_path: Path) -> None:
    command = await cli.start("run", "cli.works", f"folder={tmp_path}", "--key", f"left/{tmp_path.name}")
    await command.until("linking")
    command.interrupt()
    done = await command.end()
    assert (done.code, done.out) == (130, "")
    run_id = done.err.split()[1]
    assert f"the run goes on. Follow it with `backburner watch {run_id}`" in done.err
    watch = await cli.start("watch", run_id)
    await watch.until("effects open")
    (tmp_path / "release").touch()
    assert (await watch.end()).out == "done\n"


async def cut(proxy: TcpProxy, watch: Command) -> None:
    """Cut the connection, and wait until the watch is through again: its stream may be open then, or not yet."""
    there, through = proxy.connections, proxy.forwarded
    proxy.cut()
    await eventually(
        lambda: proxy.connections > there and proxy.forwarded > through, timeout=30, message=lambda: watch.said
    )


@pytest.mark.invariant("I9")
async def test_a_watch_that_is_cut_shows_every_event_once(cli: Cli, stack: Stack, tmp_path: Path) -> None:
    run_id = await cli.detached("cli.works", f"folder={tmp_path}")
    async with tcp_proxy(stack.address) as proxy:
        watch = await cli.start("watch", run_id, "--after", "0", "--json", BACKBURNER_ADDRESS=proxy.address)
        await watch.until("RUN_REPORTED")
        for _ in range(3):
            await cut(proxy, watch)
        (tmp_path / "release").touch()
        done = await watch.end()
    frames = [json.loads(line) for line in done.out.splitlines()]
    seqs = [int(frame["event"]["seq"]) for frame in frames if "event" in frame]
    assert seqs == list(range(1, len(seqs) + 1))
    assert "connection lost (UNAVAILABLE), trying again" in done.err
    assert (done.code, frames[-1]["end"]["reason"]) == (0, "REASON_RUN_CLOSED")


async def test_logs_follow_a_child_byte_for_byte(cli: Cli, tmp_path: Path) -> None:
    run_id = await cli.detached("cli.works", f"folder={tmp_path}")
    follow = await cli.start("logs", "-f", f"{run_id}/{SLOW}")
    await follow.until("begun")
    assert follow.process.returncode is None
    (tmp_path / "release").touch()
    done = await follow.end()
    assert (done.code, done.err) == (0, "done\n")
    assert bytes(follow.out).endswith(b"begun\nb\xffytes\n")


async def test_a_failed_child_is_shown_with_attempts_exit_code_and_the_end_of_its_output(cli: Cli) -> None:
    done = await cli("run", "cli.child-fails")
    assert (done.code, done.out) == (1, "")
    lines = [line.strip() for line in done.err.splitlines()]
    failed = next(n for n, line in enumerate(lines) if "(attempt 2 of 2)" in line)
    assert "EXITED_NONZERO: the child exited with code 3" in lines[failed]
    assert lines[failed + 1 : failed + 7] == [*(f"stdout │ out {n}" for n in range(56, 61)), "stderr │ red err"]
    assert "attempt 1 failed (EXITED_NONZERO)" in done.err
    assert "cli_processes.py:" in lines[-1]
    assert "in child_fails: await ctx.run(bb.shell(script)" in lines[-1]
    # Who comes later is told more, and where all of it is.
    run_id = done.err.split()[1]
    later, shown = await asyncio.gather(cli("watch", run_id), cli("show", run_id))
    for said in (later.err, shown.out):
        assert "stdout │ out 41\n" in said
        assert "stdout │ out 40\n" not in said
        assert f"backburner logs {run_id}/tests" in said
    assert (await cli("logs", f"{run_id}/tests")).out.count("\n") == 60


async def test_a_function_that_raised_is_shown_with_its_traceback(cli: Cli) -> None:
    done = await cli("run", "cli.function-fails")
    assert done.code == 1
    assert "RAISED: ValueError: not today" in done.err
    assert 'traceback │     raise ValueError(f"not {text}")' in done.err


async def test_a_bug_of_a_process_is_shown_with_its_place_first_and_the_way_on(cli: Cli, stack: Stack) -> None:
    done = await cli("run", "cli.breaks")
    assert (done.code, done.out) == (3, "")
    lines = done.err.splitlines()
    run_id = lines[0].split()[1]
    head = lines.index(f"run {run_id} PROCESS_ERROR (EXCEPTION: 'missing')")
    assert "cli_processes.py:" in lines[head + 1]
    assert lines[head + 1].endswith('in _bug: return found["missing"]')
    assert lines[head + 2] == "Traceback (most recent call last):"
    assert f"`backburner resume {run_id}`" in lines[-1]
    run = await stack.result(run_id)
    assert run.state == journal.RUN_STATE_PROCESS_ERROR


async def test_a_run_that_outlasts_the_timeout_goes_on(cli: Cli) -> None:
    done = await cli("run", "cli.sleeps", "--timeout", "500ms")
    assert done.code == 5
    run_id = done.err.split()[1]
    assert f"`backburner watch {run_id}`" in done.err
    assert (await cli("watch", f"{run_id}/nap", "--timeout", "0.3")).code == 5
    assert (await cli("cancel", run_id)).code == 0
    assert (await cli("watch", run_id)).code == 4


async def test_a_run_that_continues_as_new_is_followed_to_its_last(cli: Cli) -> None:
    done = await cli("run", "cli.goes-on", "left=2")
    assert (done.code, done.out) == (0, "the last one\n")
    assert done.err.count(" continued as ") == 2
    first = done.err.split()[1]
    frames, watched = await asyncio.gather(cli.json("watch", first, "--after", "0"), cli("watch", first))
    assert [frame["end"]["run"]["state"].removeprefix("RUN_STATE_") for frame in frames if "end" in frame] == [
        "CONTINUED", "CONTINUED", "COMPLETED",
    ]  # fmt: skip
    assert (watched.code, watched.out) == (0, "the last one\n")  # also by who came after its end


async def test_child_runs_are_shown_below_their_parents_and_lead_to_what_failed(cli: Cli) -> None:
    done = await cli("run", "cli.family")
    assert done.code == 1
    tree = await cli("ps", "--tree", "--process", "cli.family")
    lines = tree.out.splitlines()[1:]
    assert [line.index("0") for line in lines] == [0, 3, 6]
    ids = [line.split("─ ")[-1].split()[0] for line in lines]
    assert f"how its run went: backburner show {ids[1]}" in (await cli("show", ids[0])).out
    assert "stderr │ no such tag" in (await cli("show", ids[2])).out
    assert (await cli("show", f"{ids[0]}/child")).out.splitlines()[3].split() == ["child", "run", ids[1]]
