"""halt, resume, signal, cancel, approvals, blob and completion against a played scheduler."""

import json
import os
import pty
import shutil
import subprocess
import sys
from typing import Any

import pytest

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import operator_service_pb2 as op
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli.commands.ps import families
from tests.unit.cli.conftest import Shell
from tests.unit.cli.fake_scheduler import BLOB, OTHER, RUN


def asked(shell: Shell, kind: type) -> list[Any]:
    return [request for request in shell.fake.asked if isinstance(request, kind)]


def test_halt_and_resume_send_their_reason_and_say_the_state(shell: Shell) -> None:
    assert shell("halt", "key:rel/1", "--reason", "registry down")[:2] == (0, f"run {RUN}: halted\n")
    assert asked(shell, pb.HaltRunRequest)[0].reason == "registry down"
    code, out, _ = shell("resume", "key:rel/1", "--json")
    assert (code, json.loads(out)["state"]) == (0, "RUN_STATE_RUNNING")


def test_many_runs_are_changed_by_filter_only_when_that_is_meant(shell: Shell) -> None:
    which = ("resume", "--state", "process_error", "--process", "build", "--label", "a=b", "--reason", "fixed")
    code, _, err = shell(*which)
    assert (code, "this would resume 2 runs" in err, "--yes" in err) == (2, True, True)
    assert shell(*which, "--dry-run")[:2] == (0, "would resume 2 runs\n")
    assert all(request.dry_run for request in asked(shell, op.BulkActionRequest))
    code, out, err = shell(*which, "--yes", "--by", "ada")
    assert (code, out) == (0, "resume: 1 runs, 1 had changed meanwhile\n")
    assert ("resume 2 runs" in err, "1 done, 1 left" in err) == (True, True)
    first, second = [request for request in asked(shell, op.BulkActionRequest) if not request.dry_run]
    assert (first.states, first.processes) == ([journal.RUN_STATE_PROCESS_ERROR], ["build"])
    assert (first.action, first.reason, first.actor) == (op.BulkActionRequest.ACTION_RESUME, "fixed", "ada")
    assert (dict(first.labels), first.page_token, second.page_token) == ({"a": "b"}, "", "more")
    assert not asked(shell, pb.ResumeRunRequest)


def test_a_dry_run_is_of_a_filter(shell: Shell) -> None:
    for command in ("halt", "resume", "cancel"):
        assert shell(command, RUN, "--dry-run")[0] == 2
    assert not asked(shell, pb.HaltRunRequest)


def test_a_refusal_among_many_is_shown_and_the_others_are_done(shell: Shell) -> None:
    shell.fake.not_parked = OTHER
    code, out, err = shell("resume", RUN, OTHER)
    assert (code, out) == (2, f"run {RUN}: running\n")
    assert "NOT_PARKED" in err
    assert "1 of 2 were refused" in err


@pytest.mark.parametrize("arguments", [[], ["key:rel/1", "--process", "build"]])
def test_names_and_filters_are_one_or_the_other(shell: Shell, arguments: list[str]) -> None:
    for command in ("halt", "resume", "cancel"):
        code, _, err = shell(command, *arguments)
        assert (code, "name runs" in err) == (2, True)


def test_cancel_takes_runs_and_effects_and_cancels_none_when_one_is_unknown(shell: Shell) -> None:
    code, _, _ = shell("cancel", RUN, f"{RUN}/tests", f"{RUN}/nothing")
    assert (code, asked(shell, pb.CancelRunRequest)) == (2, [])
    code, out, _ = shell("cancel", RUN, f"{RUN}/tests")
    assert (code, len(out.splitlines())) == (0, 2)


@pytest.mark.parametrize(("given", "value"), [("3", 3), ("look here", "look here"), ('{"n": [1]}', {"n": [1]})])
def test_signal_sends_json_or_text(shell: Shell, given: str, value: object) -> None:
    code, out, _ = shell("signal", RUN, "scale", given)
    request = asked(shell, pb.SignalRunRequest)[0]
    assert (code, request.name, "event 9" in out) == (0, "scale", True)
    assert request.value == pb.SignalRunRequest(value=json_value(value)).value
    assert request.request_id


def test_a_blob_is_written_byte_for_byte_from_an_offset(shell: Shell) -> None:
    digest = "0" * 63 + "a"
    process = shell.start("blob", RUN, f"sha256:{digest}", "--offset", "7")
    assert process.communicate(timeout=30)[0] == BLOB[7:]
    assert asked(shell, pb.ReadBlobRequest)[0].digest == digest
    assert shell("blob", RUN, "beef")[0] == 2


def test_approvals_list_questions_and_are_answered_with_a_comment(shell: Shell) -> None:
    code, out, _ = shell("approvals")
    assert (code, "Deploy?" in out, "yes/no" in out) == (0, True, True)
    listed = asked(shell, pb.ListEffectsRequest)[-1]
    assert (listed.kinds, listed.states) == ([journal.EFFECT_KIND_EXTERNAL], [journal.EFFECT_STATE_WAITING])
    code, _, _ = shell("approvals", "answer", f"{RUN}/approve", "yes", "--comment", "looks good", "--by", "ada")
    request = asked(shell, pb.ResolveEffectRequest)[0]
    assert (code, request.succeeded.choice, request.actor) == (0, "yes", "ada")
    assert request.succeeded.value.struct_value["comment"] == "looks good"


def test_an_answer_that_was_not_offered_is_not_sent(shell: Shell) -> None:
    code, _, err = shell("approvals", "answer", f"{RUN}/approve", "maybe")
    assert (code, "choose one of yes, no" in err, asked(shell, pb.ResolveEffectRequest)) == (2, True, [])
    assert shell("approvals", "answer")[0] == 2


def test_a_terminal_is_asked_for_the_answer(shell: Shell) -> None:
    code, said = at_a_terminal(shell, b"no\nnot today\n", "approvals", "answer", f"{RUN}/approve")
    request = asked(shell, pb.ResolveEffectRequest)[0]
    assert (code, request.succeeded.choice, "Deploy?" in said) == (0, "no", True)
    assert request.succeeded.value.struct_value["comment"] == "not today"


@pytest.mark.parametrize(("no_color", "coloured"), [("1", False), ("", True)])
def test_errors_are_coloured_on_terminals_only_and_not_with_no_color(
    shell: Shell, no_color: str, coloured: bool
) -> None:
    shell.env["NO_COLOR"] = no_color
    code, said = at_a_terminal(shell, b"", "show", "key:nobody")
    assert (code, "error:" in said, "\x1b[" in said) == (2, True, coloured)
    assert "\x1b[" not in shell("show", "key:nobody")[2]


def test_a_terminal_is_asked_before_many_runs_are_changed(shell: Shell) -> None:
    code, said = at_a_terminal(shell, b"n\n", "cancel", "--process", "build")
    assert (code, "cancel 2 runs?" in said, asked(shell, pb.CancelRunRequest)) == (130, True, [])


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_scripts_are_ones_that_their_shell_can_read(shell: Shell, name: str) -> None:
    code, out, _ = shell("completion", name)
    assert (code, "_BACKBURNER_COMPLETE" in out) == (0, True)
    if program := shutil.which(name):
        subprocess.run([program, "-n"], input=out, text=True, check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("backburner ru", ["run"]),
        ("backburner show key:re", ["rel/1"]),  # bash has set `key:` aside
        ("backburner logs key:rel/1/t", ["rel/1/tests"]),
        ("backburner signal ", ["key:rel/1", RUN, OTHER]),
    ],
)
def test_a_real_bash_completes_names_with_colons(shell: Shell, line: str, found: list[str]) -> None:
    program = f'''
        backburner() {{ {sys.executable} -m scheduler_service.cli "$@"; }}
        source /dev/stdin <<< "$(backburner completion bash)"
        COMP_LINE="{line}" COMP_POINT={len(line)}
        _backburner_completion backburner
        printf '%s\\n' "${{COMPREPLY[@]}}"'''
    done = subprocess.run(
        ["bash", "--norc", "-c", program], cwd=shell.folder, env=shell.env, capture_output=True, text=True, check=True
    )
    assert (done.stdout.splitlines(), done.stderr) == (found, "")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("backburner ru", {"run"}),
        ("backburner run b", {"build"}),
        ("backburner show key:", {"key:rel/1"}),
        ("backburner logs key:rel/1/t", {"key:rel/1/tests"}),
        ("backburner ps --li", {"--limit"}),
    ],
)
def test_names_complete_by_asking_the_server(shell: Shell, words: str, found: set[str]) -> None:
    assert completed(shell, words) == found


def test_completion_is_silent_when_the_server_is_away(shell: Shell) -> None:
    assert completed(shell, "backburner run b", BACKBURNER_ADDRESS="127.0.0.1:1") == set()


def completed(shell: Shell, words: str, **env: str) -> set[str]:
    count = str(len(words.split()) - 1)
    code, out, err = shell(_BACKBURNER_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=count, **env)
    assert (code, err) == (0, "")
    return {line.partition(",")[2] for line in out.splitlines() if line}


def json_value(value: Any) -> Any:
    from google.protobuf import json_format, struct_pb2

    return json_format.ParseDict(value, struct_pb2.Value())


def at_a_terminal(shell: Shell, typed: bytes, *arguments: str) -> tuple[int, str]:
    """Run a command whose stdin and stderr are a terminal; gives its exit code and what the terminal showed."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "scheduler_service.cli", *arguments]
    process = subprocess.Popen(command, cwd=shell.folder, env=shell.env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.write(ours, typed)  # the terminal keeps it until it is read
    shown = bytearray()
    try:
        while data := os.read(ours, 65536):
            shown += data
    except OSError:
        pass  # how a terminal says that nobody has it open any more
    finally:
        os.close(ours)
    return process.wait(30), shown.decode()


def test_children_stand_below_their_parents_the_oldest_first() -> None:
    runs = [
        pb.Run(run_id=name, parent_run_id=parent)
        for name, parent in (("e", "a"), ("d", "b"), ("c", "gone"), ("b", "a"), ("a", ""))
    ]  # newest first
    assert [(depth, run.run_id) for depth, run in families(runs)] == [
        (0, "c"), (0, "a"), (1, "b"), (2, "d"), (1, "e"),
    ]  # fmt: skip
