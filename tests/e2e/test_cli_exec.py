"""`exec` against real services: a command on an executor behaves as if it ran here."""

import asyncio
import random
from pathlib import Path

import pytest

from backburner.journal.v1 import journal_pb2 as journal
from tests.e2e.commands import Cli
from tests.support.eventually import eventually
from tests.support.journals import alive
from tests.support.services import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


async def test_the_exit_code_is_the_commands_own(cli: Cli) -> None:
    commands = (
        ("-c", "echo out; echo err >&2"),
        ("-c", "exit 3"),
        ("-c", "kill -TERM $$"),
        ("/does/not/exist",),
        ("--timeout", "0.2", "sleep", "60"),
        ("--retry", "2", "-c", "echo once; exit 7"),
        ("--function", "cli.refuse", "--args", '["now"]'),
        ("--function", "tests.e2e.processes.add", "--args", '{"a": 1, "b": 2}'),
    )
    done = await asyncio.gather(*(cli("exec", *command) for command in commands))
    assert [one.code for one in done] == [0, 3, 143, 127, 5, 7, 1, 0]
    fine, exited, killed, missing, late, twice, raised, added = done
    assert (fine.out, fine.err) == ("out\n", "err\n")
    assert (exited.out, exited.err) == ("", "")  # it has said itself what it had to say
    assert "SIGTERM" in killed.err
    assert "could not be started" in missing.err
    assert "TIMEOUT_START_TO_CLOSE" in late.err
    assert (twice.out, "attempt 1 failed (EXITED_NONZERO)" in twice.err) == ("once\nonce\n", True)
    assert "ValueError: not now" in raised.err
    assert added.out == "3\n"


async def test_stdin_folder_and_environment_reach_the_command(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "words").write_text("from a file\n")
    piped, file, place = await asyncio.gather(
        cli("exec", "--stdin", "-", "cat", stdin=b"from a pipe\n"), cli("exec", "--stdin", "@words", "cat"),
        cli("exec", "--cwd", ".", "--env", "GREETING=hello", "-c", 'echo "$GREETING"; pwd'),
    )  # fmt: skip
    assert (piped.out, file.out) == ("from a pipe\n", "from a file\n")
    assert place.out == f"hello\n{tmp_path}\n"


async def test_a_flood_comes_through_byte_for_byte_each_stream_to_its_own(cli: Cli, tmp_path: Path) -> None:
    out, err = random.Random(1).randbytes(5_000_000), random.Random(2).randbytes(5_000_000)
    (tmp_path / "out").write_bytes(out)
    (tmp_path / "err").write_bytes(err)
    command = await cli.start("exec", "--cwd", ".", "-c", "cat err >&2 & cat out; wait; exit 9")
    await asyncio.wait_for(asyncio.gather(command.process.wait(), *command.pumps), 60)
    assert command.process.returncode == 9, bytes(command.err)[-600:]
    assert bytes(command.out) == out
    assert bytes(command.err) == err


@pytest.mark.invariant("I6")
@pytest.mark.invariant("I10")
async def test_ctrl_c_kills_the_child_and_its_grandchild_before_it_returns(
    cli: Cli, stack: Stack, tmp_path: Path
) -> None:
    script = f"setsid sh -c 'echo $$ > {tmp_path}/grandchild; sleep 600' & echo $$ > {tmp_path}/child; echo up; wait"
    command = await cli.start("exec", "--label", f"of={tmp_path.name}", "-c", script)
    await command.until("up")
    files = [tmp_path / name for name in ("child", "grandchild")]
    await eventually(lambda: all(file.exists() and file.read_text() for file in files), timeout=30)
    pids = [int(file.read_text()) for file in files]
    assert all(map(alive, pids))
    command.interrupt()
    done = await command.end()
    assert not any(map(alive, pids))
    assert (done.code, done.out) == (4, "up\n")
    assert "cancelling, and waiting until it is dead" in done.err
    [run] = await cli.json("ps", "--label", f"of={tmp_path.name}")
    assert (await stack.result(run["run_id"])).state == journal.RUN_STATE_CANCELLED


async def test_a_second_ctrl_c_leaves_at_once(cli: Cli, tmp_path: Path) -> None:
    command = await cli.start(
        "exec", "--run-key", f"stubborn/{tmp_path.name}", "-c", "trap '' TERM; echo up; sleep 600"
    )
    await command.until("up")
    command.interrupt()
    await command.until("Ctrl-C again leaves at once")
    command.interrupt()
    assert (await command.end()).code == 130
    assert (await cli("watch", f"key:stubborn/{tmp_path.name}")).code == 4


async def test_in_the_background_it_goes_on_alone_and_the_same_command_again_is_the_same_effect(
    cli: Cli, tmp_path: Path
) -> None:
    script = f"echo x >> {tmp_path}/runs; while [ ! -e {tmp_path}/release ]; do sleep 0.02; done; echo finished"
    again = ("exec", "--background", "--run-key", f"nightly/{tmp_path.name}", "--key", "backup", "-c", script)
    first = await cli(*again)
    name = first.out.strip()
    assert (first.code, name.endswith("/backup"), first.err) == (0, True, "")
    second = await cli(*again)
    assert (second.code, second.out) == (0, first.out)
    (tmp_path / "release").touch()
    watched = await cli("watch", name)
    assert watched.code == 0
    # One after the other: of two clients of one run, the later one takes it over.
    third = await cli("exec", "--run-key", f"nightly/{tmp_path.name}", "--key", "backup", "-c", script)
    other = await cli("exec", "--run-key", f"nightly/{tmp_path.name}", "--key", "backup", "-c", "echo other")
    assert (third.code, third.out) == (0, "finished\n")
    assert (other.code, "give another --key" in other.err) == (2, True)
    assert (tmp_path / "runs").read_text() == "x\n"
    assert (await cli("watch", name.partition("/")[0])).code == 0


async def test_what_has_no_executor_says_what_it_waits_for_and_can_be_given_up(cli: Cli) -> None:
    command = await cli.start("exec", "--on", "gpu=yes", "true")
    await command.until("waiting: ")
    command.interrupt()
    assert (await command.end()).code == 4


async def test_on_a_terminal_the_childs_colours_are_its_own(cli: Cli) -> None:
    terminal = await cli.terminal("exec", "-c", r"printf '\033[31mred\033[0m\n'; exit 2")
    assert await terminal.end() == 2
    assert terminal.text == "red"
    assert bytes(terminal.raw) == b"\x1b[31mred\x1b[0m\r\n"
