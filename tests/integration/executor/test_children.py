"""Child processes: exit, output, environment, and that none of their descendants outlives its attempt."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from executor_service.server import ExecutorServer
from tests.integration.executor.conftest import StartExecutor
from tests.support.children import ESCAPEE, FLOOD, HOLDER, STUBBORN, TREE, alive, pids_in, program
from tests.support.eventually import eventually
from tests.support.fake_scheduler import Dispatch, FakeScheduler

pytestmark = pytest.mark.usefixtures("executor")


def sh(command_line: str, **fields: object) -> dict[str, Any]:
    return {"shell": {"command_line": command_line, "check": True, **fields}}


async def said_pids(executor: ExecutorServer, dispatch: Dispatch, count: int = 1) -> list[int]:
    """The process ids that a running child has written to stderr."""

    def look() -> list[int] | None:
        held = executor.attempts.get(dispatch.effect_id, 1)
        capture = held.captures.get(2) if held is not None else None
        pids = pids_in(capture.tail()) if capture is not None else []
        return pids if len(pids) >= count else None

    found = await eventually(look)
    assert found is not None
    return found


async def test_exit_0_succeeds_with_output(scheduler: FakeScheduler) -> None:
    settled = await scheduler.run(**sh("echo out; echo err >&2"))
    result = settled.data["result"]
    assert settled.data["state"] == "EFFECT_STATE_SUCCEEDED"
    assert settled.data["death"] == "DEATH_PROVEN"
    assert result["exit_code"] == 0
    assert (result["stdout"]["tail"], result["stderr"]["tail"]) == ("out\n", "err\n")
    assert result["stdout"]["total_bytes"] == 4


@pytest.mark.parametrize(
    ("ending", "check", "reason"),
    [
        ("exit 3", True, "RATE_LIMITED"),
        ("kill -9 $$", True, "RATE_LIMITED"),
        ("exit 3", False, ""),
        ("exit 0", True, ""),
    ],
)
async def test_a_child_that_fails_may_say_why_and_when_to_try_again(
    scheduler: FakeScheduler, ending: str, check: bool, reason: str
) -> None:
    said = '{"failure": {"reason": "RATE_LIMITED", "message": "quota spent", "retry_after_s": 3600}}'
    settled = await scheduler.run(max_attempts=2, **sh(f"echo '::backburner {said}'; {ending}", check=check))
    assert settled.reason == reason
    if reason:
        assert (settled.type, settled.data["error"]["message"]) == ("EFFECT_PARKED", "quota spent")
        assert (
            await scheduler.query("SELECT not_before > clock_timestamp() + interval '50 min' FROM backburner.effects")
        ) == [(True,)]


async def test_argv_is_run_without_a_shell(scheduler: FakeScheduler) -> None:
    settled = await scheduler.run(shell={"argv": ["printf", "%s|", "$HOME", "a b", "*"]})
    assert settled.data["result"]["stdout"]["tail"] == "$HOME|a b|*|"


@pytest.mark.parametrize(("check", "state"), [(True, "EFFECT_STATE_FAILED"), (False, "EFFECT_STATE_SUCCEEDED")])
async def test_nonzero_exit_fails_only_with_check(scheduler: FakeScheduler, check: bool, state: str) -> None:
    settled = await scheduler.run(**sh("echo why >&2; exit 7", check=check))
    assert settled.data["state"] == state
    assert settled.data["result"]["exit_code"] == 7
    assert settled.data["result"]["stderr"]["tail"] == "why\n"
    assert settled.reason == ("EXITED_NONZERO" if check else "")


async def test_signal_from_elsewhere_is_a_failure_that_names_it(scheduler: FakeScheduler) -> None:
    settled = await scheduler.run(**sh("kill -SEGV $$", check=False))
    assert settled.reason == "KILLED_BY_SIGNAL"
    assert settled.data["result"]["signal"] == signal.SIGSEGV
    assert "exit_code" not in settled.data["result"]


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        ({"argv": ["/no/such/program"]}, "SPAWN_FAILED"),
        ({"argv": ["/etc/passwd"]}, "SPAWN_FAILED"),
        ({"argv": ["true"], "cwd": "/no/such/directory"}, "INVALID_WORK"),
        ({}, "INVALID_WORK"),
        ({"argv": ["true"], "command_line": "true"}, "INVALID_WORK"),
    ],
)
async def test_what_cannot_be_started_says_why(scheduler: FakeScheduler, work: dict[str, Any], reason: str) -> None:
    settled = await scheduler.run(shell=work)
    assert settled.reason == reason
    assert "death" not in settled.data, "there was no child"


@pytest.mark.parametrize(
    ("work", "named"),
    [
        ({"argv": ["echo", "x", "y" * 131_072]}, "argument 2 with 131072"),
        ({"command_line": "true " + "y" * 140_000}, "argument 2 with 140005"),
        ({"argv": ["true"], "env": {"LARGE": "é" * 70_000}}, "variable LARGE with 140006"),
    ],
)
async def test_what_is_too_large_to_be_started_is_named_and_not_tried_again(
    scheduler: FakeScheduler, work: dict[str, Any], named: str
) -> None:
    settled = await scheduler.run(shell=work, retry={"max_attempts": 3})
    assert settled.reason == "INVALID_WORK"
    message = settled.data["error"]["message"]
    assert named in message
    assert "Give large data by stdin, or in a file" in message


async def test_stdin_is_null_or_what_was_given(scheduler: FakeScheduler) -> None:
    assert (await scheduler.run(**sh("wc -c"))).data["result"]["stdout"]["tail"].strip() == "0"
    given = "é" * 200_000
    settled = await scheduler.run(**sh("wc -c", stdin=given))
    assert settled.data["result"]["stdout"]["tail"].strip() == "400000"


async def test_stdin_that_nobody_reads_holds_nothing_up(scheduler: FakeScheduler) -> None:
    assert (await scheduler.run(**sh("exec 0<&-; echo done", stdin="x" * 500_000))).data["result"]["exit_code"] == 0


async def test_environment_is_an_allow_list(
    scheduler: FakeScheduler, start_executor: StartExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:secret@host/db")
    monkeypatch.setenv("MY_TOKEN", "secret")
    monkeypatch.setenv("LC_TIME", "C")
    await scheduler.session()  # of the other executor, so that the newest one is of this
    await start_executor(executor_id="other", env_allow=("MY_ALLOWED",))
    monkeypatch.setenv("MY_ALLOWED", "yes")
    await scheduler.session(1)
    given = {"GIVEN": "1", "BACKBURNER_RUN_ID": "forged", "BACKBURNER_ATTEMPT": "forged"}
    dispatch = await scheduler.one(**sh("env -0", env=given))
    output = (await scheduler.settled(dispatch)).data["result"]["stdout"]["tail"]
    env = dict(item.split("=", 1) for item in output.replace("\ufffd", "\0").split("\0") if "=" in item)
    assert env["GIVEN"] == "1"
    assert env["MY_ALLOWED"] == "yes"
    assert env["LC_TIME"] == "C"
    assert env["PATH"] == os.environ["PATH"]
    assert env["BACKBURNER_RUN_ID"] == dispatch.run_id
    assert env["BACKBURNER_ATTEMPT"].endswith(f"/{dispatch.effect_id}/1")
    assert "secret" not in output


async def test_working_directory_is_fresh_and_removed(scheduler: FakeScheduler) -> None:
    folder = (await scheduler.run(**sh("pwd; touch file"))).data["result"]["stdout"]["tail"].strip()
    assert folder != str(Path.cwd())
    await eventually(lambda: not Path(folder).exists())


async def test_no_file_descriptor_leaks_into_the_child(scheduler: FakeScheduler) -> None:
    settled = await scheduler.run(**sh("ls /proc/$$/fd; echo $BACKBURNER_PROGRESS_FD >&2"))
    fds = set(settled.data["result"]["stdout"]["tail"].split())
    assert fds - {"0", "1", "2"} == {settled.data["result"]["stderr"]["tail"].strip()}


# Output


async def test_short_output_is_stored_byte_for_byte(scheduler: FakeScheduler) -> None:
    dispatch = await scheduler.one(**sh(r"printf 'a\377b\000c'; sleep 0.3; printf 'later'"))
    settled = await scheduler.settled(dispatch)
    stored = await scheduler.output(dispatch)
    assert b"".join(data for _, data in stored) == b"a\xffb\x00clater"
    assert settled.data["result"]["stdout"]["tail"] == "a\ufffdb\ufffdclater"


@pytest.mark.parametrize("size", [999, 1000, 1001, 65_536, 1_000_003])
async def test_head_and_tail_are_kept_exactly(scheduler: FakeScheduler, size: int) -> None:
    dispatch = await scheduler.one(shell={**program(FLOOD, str(size)), "output_bytes_max": 1000})
    settled = await scheduler.settled(dispatch)
    whole = (b"0123456789" * 6553 * (size // 65530 + 1))[:size]
    stored = await scheduler.output(dispatch)
    for offset, data in stored:
        assert data == whole[offset : offset + len(data)]
    kept = min(size, 1000)
    assert sum(len(data) for _, data in stored) == kept
    assert stored[0][0] == 0
    assert stored[-1][0] + len(stored[-1][1]) == size
    captured = settled.data["result"]["stdout"]
    assert captured["total_bytes"] == size
    assert captured.get("omitted_bytes", 0) == size - kept


async def test_output_is_complete_before_the_effect_settles(scheduler: FakeScheduler) -> None:
    for _ in range(5):
        dispatch = await scheduler.one(**sh("seq 20000"))
        await scheduler.settled(dispatch)
        stored = b"".join(data for _, data in await scheduler.output(dispatch))
        assert stored.splitlines()[-1] == b"20000"


@pytest.mark.slow
@pytest.mark.invariant("I11")
async def test_flood_of_100_mb_costs_bounded_memory_and_delays_nobody(scheduler: FakeScheduler) -> None:
    before = psutil.Process().memory_info().rss
    flood = await scheduler.one(shell=program(FLOOD, str(100 * 1024 * 1024)))
    echoes = [(await scheduler.run(function={"function": "exec.echo", "args": [n]})).value for n in range(5)]
    settled = await scheduler.settled(flood, 60)
    assert echoes == [0, 1, 2, 3, 4]
    assert settled.data["result"]["stdout"]["total_bytes"] == 100 * 1024 * 1024
    assert psutil.Process().memory_info().rss - before < 60 * 1024 * 1024


@pytest.mark.invariant("I6")
async def test_endless_flood_is_cancelled(scheduler: FakeScheduler, executor: ExecutorServer) -> None:
    dispatch = await scheduler.one(**sh("yes"))
    await eventually(lambda: (held := executor.attempts.get(dispatch.effect_id, 1)) and held.snapshot().stdout_bytes)
    scheduler.sessions[-1].cancel(dispatch)
    session = scheduler.sessions[-1]
    await eventually(lambda: any(e.frees_slot for e in session.events_of(dispatch)))
    assert (await scheduler.settled(dispatch)).type == "EFFECT_CANCELLED"


# Descendants


@pytest.mark.invariant("I10")
async def test_daemon_that_escaped_is_dead_when_the_cancel_is_settled(
    scheduler: FakeScheduler, executor: ExecutorServer
) -> None:
    dispatch = await scheduler.one(timeouts={"kill_grace": "0.2s"}, shell=program(ESCAPEE, "stay"))
    [daemon] = await said_pids(executor, dispatch)
    assert alive(daemon)
    scheduler.sessions[-1].cancel(dispatch)
    settled = await scheduler.settled(dispatch)
    assert settled.type == "EFFECT_CANCELLED"
    assert settled.data["death"] == "DEATH_PROVEN"
    assert not alive(daemon)


@pytest.mark.invariant("I10")
async def test_tree_across_sessions_is_dead_after_a_timeout(scheduler: FakeScheduler, executor: ExecutorServer) -> None:
    timeouts = {"kill_grace": "0.1s", "start_to_close": "1s"}
    dispatch = await scheduler.one(timeouts=timeouts, shell=program(TREE, "12"))
    pids = await said_pids(executor, dispatch, 12)
    settled = await scheduler.settled(dispatch)
    assert settled.reason == "TIMEOUT_START_TO_CLOSE"
    assert settled.data["death"] == "DEATH_PROVEN"
    assert [pid for pid in pids if alive(pid)] == []


async def test_daemon_left_after_a_normal_exit_is_ended_too(scheduler: FakeScheduler) -> None:
    settled = await scheduler.run(shell=program(ESCAPEE, "leave"))
    [daemon] = pids_in(settled.data["result"]["stderr"]["tail"])
    assert settled.data["state"] == "EFFECT_STATE_SUCCEEDED"
    assert not alive(daemon)


async def test_grandchild_that_holds_the_pipe_does_not_hold_up_the_result(scheduler: FakeScheduler) -> None:
    settled = await scheduler.run(shell=program(HOLDER))
    [grandchild] = pids_in(settled.data["result"]["stderr"]["tail"])
    assert settled.data["result"]["stdout"]["tail"] == "done\n"
    assert not alive(grandchild)


async def test_child_that_ignores_term_is_killed_after_the_grace(
    scheduler: FakeScheduler, executor: ExecutorServer
) -> None:
    dispatch = await scheduler.one(timeouts={"kill_grace": "0.3s"}, shell=program(STUBBORN))
    [child] = await said_pids(executor, dispatch)
    scheduler.sessions[-1].cancel(dispatch)
    settled = await scheduler.settled(dispatch)
    assert settled.data["partial"]["signal"] == signal.SIGKILL
    assert not alive(child)


async def test_child_may_clean_up_within_the_grace(scheduler: FakeScheduler, executor: ExecutorServer) -> None:
    line = "trap 'echo cleaned; exit 0' TERM; echo pid=$$ >&2; while :; do sleep 0.05; done"
    dispatch = await scheduler.one(**sh(line))
    await said_pids(executor, dispatch)
    scheduler.sessions[-1].cancel(dispatch)
    settled = await scheduler.settled(dispatch)
    assert settled.type == "EFFECT_CANCELLED", "an exit 0 after our TERM is no success"
    assert settled.data["partial"]["stdout"]["tail"] == "cleaned\n"


async def test_stopped_child_is_killed(scheduler: FakeScheduler, executor: ExecutorServer) -> None:
    dispatch = await scheduler.one(timeouts={"kill_grace": "0.1s"}, **sh("echo pid=$$ >&2; kill -STOP $$; sleep 60"))
    [child] = await said_pids(executor, dispatch)
    scheduler.sessions[-1].cancel(dispatch)
    assert (await scheduler.settled(dispatch)).type == "EFFECT_CANCELLED"
    assert not alive(child)


async def test_no_zombies_are_left(scheduler: FakeScheduler) -> None:
    await asyncio.gather(*(scheduler.run(**sh("(sleep 0.01 &) ; (setsid sleep 0.01 &) ; true")) for _ in range(5)))

    def zombies() -> list[int]:
        children = psutil.Process().children()
        return [c.pid for c in children if c.status() == psutil.STATUS_ZOMBIE]

    await eventually(lambda: not zombies(), message=lambda: f"zombies: {zombies()}")


@pytest.mark.parametrize(
    ("line", "silence", "longest", "reason"),
    [
        ("sleep 600", "0.4s", "600s", "TIMEOUT_SILENCE"),
        ("while :; do echo tick; sleep 0.05; done", "3s", "4s", "TIMEOUT_START_TO_CLOSE"),
    ],
)
async def test_silence_is_told_from_slowness(
    scheduler: FakeScheduler, line: str, silence: str, longest: str, reason: str
) -> None:
    settled = await scheduler.run(timeouts={"silence": silence, "start_to_close": longest}, **sh(line))
    assert settled.data["state"] == "EFFECT_STATE_TIMED_OUT"
    assert settled.reason == reason
    assert settled.data["death"] == "DEATH_PROVEN"
