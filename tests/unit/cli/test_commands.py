"""The commands against a played scheduler, as a shell sees them: stdout, stderr, exit code."""

import json
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import click
import pytest

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli.entry import tree
from tests.unit.cli.conftest import ROOT, Shell
from tests.unit.cli.fake_scheduler import EFFECT, OTHER, RUN


def test_run_prints_the_result_on_stdout_and_everything_else_on_stderr(shell: Shell) -> None:
    code, out, err = shell("run", "build", "n=3", "name=main", "--key", "rel/1", "--label", "team=web")
    assert (code, json.loads(out)) == (0, {"passed": 3})
    assert RUN in err
    assert "\x1b" not in err
    asked = shell.fake.asked[0]
    assert (asked.key, dict(asked.labels)) == ("rel/1", {"team": "web"})
    assert dict(asked.input) == {"n": 3, "name": "main"}


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (journal.RUN_STATE_FAILED, 1),
        (journal.RUN_STATE_PROCESS_ERROR, 3),
        (journal.RUN_STATE_HALTED, 3),
        (journal.RUN_STATE_CANCELLED, 4),
    ],
)
def test_the_exit_code_says_how_the_run_ended(shell: Shell, state: Any, code: Any) -> None:
    shell.fake.state = state
    assert shell("run", "build")[0] == code


@pytest.mark.parametrize("command", [("run", "build"), ("watch", RUN), ("watch", RUN, "--after", "0")])
def test_a_run_that_goes_on_as_another_is_followed_there(shell: Shell, command: Any) -> None:
    shell.fake.continues = True
    code, out, err = shell(*command)
    assert (code, json.loads(out)) == (0, {"passed": 3})
    assert f"run {RUN} continued as {OTHER}" in err
    watched = [asked.run_id for asked in shell.fake.asked if isinstance(asked, pb.WatchRunRequest)]
    assert watched == [RUN, OTHER]


@pytest.mark.parametrize("command", [("run", "build"), ("watch", RUN), ("show", RUN)])
def test_a_failed_run_shows_what_the_effect_to_blame_had_written(shell: Shell, command: Any) -> None:
    shell.fake.state, shell.fake.blames = journal.RUN_STATE_FAILED, "tests"
    _, out, err = shell(*command)
    assert "effect tests failed: EXITED_NONZERO, exit code 2\n  stderr │ no rule to make target" in out + err


def test_run_as_json_prints_the_run(shell: Shell) -> None:
    code, out, _ = shell("run", "build", "--json")
    assert (code, json.loads(out)["run_id"]) == (0, RUN)


def test_a_detached_run_is_its_id(shell: Shell) -> None:
    assert shell("run", "build", "--detach")[:2] == (0, f"{RUN}\n")


def test_a_run_that_takes_longer_than_its_timeout_goes_on(shell: Shell) -> None:
    shell.fake.never_ends = True
    code, _, err = shell("run", "build", "--timeout", "0.5")
    assert code == 5
    assert f"backburner watch {RUN}" in err


def test_ctrl_c_detaches_and_says_how_to_come_back(shell: Shell) -> None:
    shell.fake.never_ends = True
    process = shell.start("run", "build")
    while not any(isinstance(asked, pb.WatchRunRequest) for asked in shell.fake.asked):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"backburner watch {RUN}".encode() in err
    assert f"backburner cancel {RUN}".encode() in err
    assert b"Traceback" not in err


def test_an_unknown_process_names_those_there_are_and_how_to_load_it(shell: Shell) -> None:
    code, _, err = shell("run", "biuld", "--process-module", "shop.processes")
    assert code == 2
    assert "it has: build, deploy" in err
    assert "backburner dev --process-module shop.processes" in err


def test_an_earlier_run_is_found_by_its_name_and_taken_over(shell: Shell) -> None:
    assert shell("run", "build", "--reuse-from", RUN[:-1])[0] == 0
    [request] = [asked for asked in shell.fake.asked if isinstance(asked, pb.CreateRunRequest)]
    assert request.reuse_from == RUN
    code, _, err = shell("run", "build", "--reuse-from", "key:nobody")
    assert (code, "no such run" in err) == (2, True), err


def test_nobody_there_is_exit_code_6(shell: Shell) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, _, err = shell("ps", BACKBURNER_ADDRESS=address)
    assert code == 6
    assert f"no scheduler answers at {address} (from BACKBURNER_ADDRESS)" in err
    assert "is `backburner dev` running?" in err


@pytest.mark.parametrize("name", [RUN, RUN[:-1], "0123456789ab", "key:rel/1"])
def test_a_run_is_found_by_id_by_part_and_by_key(shell: Shell, name: str) -> None:
    code, out, _ = shell("show", name, "--json")
    assert (code, json.loads(out)["run_id"]) == (0, RUN)


def test_a_part_that_many_runs_share_is_refused_with_their_names(shell: Shell) -> None:
    code, _, err = shell("show", "0198f2c4")
    assert code == 2
    assert RUN in err
    assert OTHER in err


def test_a_name_that_nobody_has_says_where_to_look(shell: Shell) -> None:
    code, _, err = shell("show", "key:nobody")
    assert code == 2
    assert "RUN_NOT_FOUND" in err
    assert "backburner ps" in err


@pytest.mark.parametrize("name", [f"{RUN}/tests", "0123456789ab/tests", "key:rel/1/tests", EFFECT])
def test_an_effect_is_found_by_id_and_by_run_and_key(shell: Shell, name: str) -> None:
    code, out, _ = shell("show", name, "--json")
    assert (code, json.loads(out)["effect_id"]) == (0, EFFECT)


def test_tables_in_a_pipe_are_whole(shell: Shell) -> None:
    code, out, _ = shell("ps")
    assert code == 0
    assert RUN in out
    assert "effect tests runs on local" in out.splitlines()[1]
    assert "\x1b" not in out


def test_tables_fold_at_columns(shell: Shell) -> None:
    _, out, _ = shell("ps", COLUMNS="60")
    assert max(map(len, out.splitlines())) <= 60


def test_open_effects_say_what_they_wait_for(shell: Shell) -> None:
    code, out, _ = shell("ps", "--effects", "--state", "waiting")
    assert code == 0
    assert "effect tests runs on local" not in out
    assert "Deploy? [yes/no]" in out
    assert shell.fake.asked[-1].states == [journal.EFFECT_STATE_WAITING]


def test_effects_are_listed_by_harness_with_those_that_have_ended(shell: Shell) -> None:
    assert shell("ps", "--effects")[0] == 0
    assert (shell.fake.asked[-1].open_only, list(shell.fake.asked[-1].harnesses)) == (True, [])
    code, out, _ = shell("ps", "--effects", "--ended", "--harness", "codex", "--harness", "pi")
    assert (code, "HARNESS" in out) == (0, True)
    assert (shell.fake.asked[-1].open_only, list(shell.fake.asked[-1].harnesses)) == (False, ["codex", "pi"])
    code, _, err = shell("ps", "--ended")
    assert (code, "add --effects" in err) == (2, True)


def test_a_state_that_does_not_exist_names_those_that_do(shell: Shell) -> None:
    code, _, err = shell("ps", "--state", "runing")
    assert code == 2
    assert "running" in err


def test_cancel_sends_its_reason(shell: Shell) -> None:
    assert shell("cancel", "key:rel/1", "--reason", "wrong branch")[0] == 0
    assert shell.fake.asked[-1].reason == "wrong branch"


def test_resolve_sends_choice_value_and_actor(shell: Shell) -> None:
    code, _, _ = shell("resolve", f"{RUN}/approve", "--choice", "yes", "--value", '{"n": 1}', "--actor", "ada")
    asked = shell.fake.asked[-1]
    assert (code, asked.succeeded.choice, asked.actor) == (0, "yes", "ada")
    assert asked.succeeded.value.struct_value["n"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--choice yes|no"),
        (["--choice", "maybe"], "choose one of yes, no"),
        (["--choice", "yes", "--fail", "no"], "--fail goes with neither"),
        (["--value", "{"], "not JSON"),
    ],
)
def test_an_answer_that_does_not_fit_is_never_sent(shell: Shell, arguments: list[str], said: str) -> None:
    code, _, err = shell("resolve", f"{RUN}/approve", *arguments)
    assert code == 2
    assert said in err
    assert not any(isinstance(asked, pb.ResolveEffectRequest) for asked in shell.fake.asked)


def test_logs_are_the_bytes_that_the_child_wrote(shell: Shell) -> None:
    code, out, err = shell("logs", f"{RUN}/tests")
    assert (code, out.encode(errors="surrogateescape"), err) == (0, b"out\xff\n", "err\n")


def test_the_journal_is_read_page_by_page(shell: Shell) -> None:
    code, out, _ = shell("journal", RUN, "--json")
    assert (code, [json.loads(line)["seq"] for line in out.splitlines()]) == (0, ["1", "2"])


def test_executors_show_their_slots(shell: Shell) -> None:
    code, out, _ = shell("executors")
    assert code == 0
    assert "shell 2/8" in out


def test_watch_as_json_prints_frames(shell: Shell) -> None:
    code, out, _ = shell("watch", RUN, "--after", "0", "--json")
    frames = [json.loads(line) for line in out.splitlines()]
    assert (code, [next(iter(frame)) for frame in frames]) == (0, ["event", "end"])
    assert shell.fake.asked[-1].after_seq == 0


def test_help_needs_neither_grpc_nor_a_server() -> None:
    program = (
        "import sys; from scheduler_service.cli.entry import run; run(['--help']); assert 'grpc' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "Exit codes: 0 ok, 1 run failed" in done.stdout


@pytest.mark.parametrize("command", tree.list_commands(click.Context(tree)))
def test_every_command_explains_itself_with_an_example(shell: Shell, command: Any) -> None:
    code, out, _ = shell(command, "--help")
    assert code == 0
    assert "Example" in out
    assert f"backburner {command}" in out.partition("Example")[2]


def test_a_mistyped_command_is_answered_with_the_near_one(shell: Shell) -> None:
    code, _, err = shell("wacth")
    assert (code, "did you mean watch?" in err) == (2, True)


def test_options_before_a_subcommand_are_not_silently_dropped(shell: Shell) -> None:
    code, _, err = shell("approvals", "--address", "127.0.0.1:1", "answer", f"{RUN}/approve", "yes")
    assert (code, "after `answer`" in err) == (2, True)
