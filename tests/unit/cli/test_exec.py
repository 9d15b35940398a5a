"""`exec` against a played effect: every byte once and in order whatever the watch sends, and the child's exit code."""

import json
import signal
import time
from typing import Any

import pytest

from backburner.executor.v1 import executor_service_pb2 as executor
from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from tests.unit.cli.conftest import Shell
from tests.unit.cli.fake_scheduler import EFFECT, RUN
from tests.unit.cli.test_control_commands import asked

OUT, ERR = executor.OUTPUT_STREAM_STDOUT, executor.OUTPUT_STREAM_STDERR


def requested(shell: Shell) -> pb.EffectRequest:
    [request] = asked(shell, pb.RequestEffectsRequest)
    assert request.client_epoch == 7
    effect: pb.EffectRequest = request.effects[0]
    return effect


def finished(shell: Shell) -> pb.FinishRunRequest:
    [request] = asked(shell, pb.FinishRunRequest)
    answer: pb.FinishRunRequest = request
    return answer


def test_live_output_with_holes_and_repetitions_is_written_whole_and_in_order(shell: Shell) -> None:
    played = shell.fake.played
    played.live(OUT, 0, b"abc")
    played.live(ERR, 0, b"warn")
    played.live(OUT, 1, b"bcde")  # overlaps
    played.live(OUT, 8, b"ij")  # fgh is missing
    played.live(OUT, 0, b"abc")  # again, after a cut
    played.wrote("stdout", b"abcdefghijklm")  # klm never came
    played.wrote("stderr", b"warning")
    assert shell("exec", "make")[:3] == (0, "abcdefghijklm", "warning")


def test_a_record_that_is_behind_the_live_output_is_waited_for(shell: Shell) -> None:
    played = shell.fake.played
    played.live(OUT, 0, b"abc")
    played.wrote("stdout", b"abcdef")
    played.end.result.exit_code, played.behind = 9, 2
    played.end.state, played.end.error.reason = journal.EFFECT_STATE_FAILED, journal.EFFECT_REASON_EXITED_NONZERO
    assert shell("exec", "make") == (9, "abcdef", "")


def test_output_that_nobody_kept_is_said_and_not_waited_for(shell: Shell) -> None:
    class Lossy(dict[str, bytes]):
        def __getitem__(self, name: str) -> bytes:
            return b""

    played = shell.fake.played
    played.wrote("stdout", b"abcdef")
    played.recorded = Lossy()
    played.end.result.stdout.total_bytes = 0
    played.live(OUT, 0, b"ab")
    played.live(OUT, 2, b"cd")
    assert shell("exec", "make")[:2] == (0, "abcd")


@pytest.mark.parametrize(
    ("state", "reason", "result", "code"),
    [
        ("SUCCEEDED", "", {"exit_code": 0}, 0),
        ("FAILED", "EXITED_NONZERO", {"exit_code": 5}, 5),
        ("FAILED", "KILLED_BY_SIGNAL", {"signal": 11}, 139),
        ("FAILED", "SPAWN_FAILED", {}, 127),
        ("FAILED", "EXECUTOR_LOST", {}, 1),
        ("FAILED", "INVALID_RESULT", {"exit_code": 0}, 1),
        ("TIMED_OUT", "TIMEOUT_START_TO_CLOSE", {"signal": 15}, 5),
        ("CANCELLED", "CANCELLED_BY_USER", {"signal": 15}, 4),
    ],
)
def test_the_exit_code_is_the_childs_own(shell: Shell, state: Any, reason: str, result: Any, code: int) -> None:
    end = shell.fake.played.end
    end.state = journal.EffectState.Value(f"EFFECT_STATE_{state}")
    end.result.CopyFrom(journal.EffectResult(**result))
    if reason:
        end.error.reason = journal.EffectReason.Value(f"EFFECT_REASON_{reason}")
        end.error.message = "this is why"
    found, out, err = shell("exec", "make")
    assert (found, out) == (code, "")
    assert ("this is why" in err) == (reason not in ("", "EXITED_NONZERO"))
    request = finished(shell)
    assert request.wait
    assert request.WhichOneof("outcome") == ("succeeded" if state == "SUCCEEDED" else "failed")


def test_the_command_is_an_effect_with_all_that_was_asked(shell: Shell, tmp_path: Any) -> None:
    code, _, _ = shell(
        "exec", "--timeout", "15m", "--retry", "3", "--cwd", "sub", "--env", "A=1", "--env", "HERE",
        "--label", "team=web",
        "--on", "gpu=yes", "--key", "t/1", "--run-key", "nightly", "--priority", "5", "make", "-j4", "--", "all",
        HERE="passed on",
    )  # fmt: skip
    effect, spec = requested(shell), requested(shell).spec
    assert (code, effect.key, spec.name) == (0, "t/1", "make")
    assert list(spec.shell.argv) == ["make", "-j4", "--", "all"]
    assert (spec.shell.cwd, dict(spec.shell.env)) == (f"{tmp_path}/sub", {"A": "1", "HERE": "passed on"})
    assert (spec.timeouts.start_to_close.seconds, spec.retry.max_attempts, spec.priority) == (900, 3, 5)
    assert (dict(spec.labels), dict(spec.executor_labels)) == ({"team": "web"}, {"gpu": "yes"})
    assert spec.shell.check
    created = asked(shell, pb.CreateRunRequest)[0]
    assert (created.key, dict(created.labels)) == ("nightly", {"team": "web"})


@pytest.mark.parametrize(
    ("args", "positional", "named"), [("[1, 2]", [1, 2], {}), ('{"n": 1}', [], {"n": 1}), (None, [], {})]
)
def test_a_function_prints_its_value(shell: Shell, args: Any, positional: Any, named: Any) -> None:
    end = shell.fake.played.end
    end.kind = journal.EFFECT_KIND_FUNCTION
    end.result.value.value.number_value = 42
    code, out, _ = shell("exec", "--function", "shop.double", *(["--args", args] if args else []))
    work = requested(shell).spec.function
    assert (code, out, work.function) == (0, "42\n", "shop.double")
    assert (list(work.args), dict(work.kwargs)) == (positional, named)


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["-c", "make", "make"], ["--function", "f", "make"], ["--args", "[]", "make"], ["--keep-open", "make"],
        ["--function", "f", "--args", "3"], ["--timeout", "soon", "make"], ["--env", "NOT_SET_ANYWHERE", "make"],
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused_before_anything_is_asked(shell: Shell, arguments: list[str]) -> None:
    code, _, err = shell("exec", *arguments)
    assert (code, bool(err), shell.fake.asked) == (2, True, [])


def test_in_the_background_it_prints_the_effect_and_the_run_ends_by_itself(shell: Shell) -> None:
    code, out, _ = shell("exec", "--background", "make")
    assert (code, out) == (0, f"{RUN}/make\n")
    assert requested(shell).spec.background
    request = finished(shell)
    assert (request.wait, request.WhichOneof("outcome"), request.client_epoch) == (True, "succeeded", 7)
    assert not asked(shell, pb.WatchEffectRequest)


def test_a_run_that_is_kept_open_is_not_finished(shell: Shell) -> None:
    assert shell("exec", "--run-key", "r", "--keep-open", "make")[0] == 0
    assert not asked(shell, pb.FinishRunRequest)


def test_as_json_it_is_one_document_and_no_output(shell: Shell) -> None:
    shell.fake.played.live(OUT, 0, b"abc")
    code, out, err = shell("exec", "--json", "make")
    assert (code, json.loads(out)["effect_id"], err) == (0, EFFECT, "")


def test_the_same_command_again_is_answered_by_a_run_that_has_ended(shell: Shell) -> None:
    played = shell.fake.played
    played.run_closed = True
    played.wrote("stdout", b"as before\n")
    shell("exec", "--background", "make")
    played.end.spec.CopyFrom(asked(shell, pb.RequestEffectsRequest)[0].effects[0].spec)
    shell.fake.asked.clear()
    assert shell("exec", "--run-key", "r", "make")[:2] == (0, "as before\n")
    code, _, err = shell("exec", "--run-key", "r", "make", "other")
    assert (code, "recorded with other work" in err) == (2, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_cancels_and_waits_for_the_end(shell: Shell, number: signal.Signals) -> None:
    played = shell.fake.played
    played.waits_for_cancel = True
    played.live(OUT, 0, b"begun\n")
    played.end.state = journal.EFFECT_STATE_CANCELLED
    process = shell.start("exec", "make")
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, len(asked(shell, pb.CancelRunRequest))) == (4, 1)
    assert b"waiting until it is dead" in err


def test_the_second_ctrl_c_leaves(shell: Shell) -> None:
    played = shell.fake.played
    played.waits_for_cancel = True
    played.live(OUT, 0, b"begun\n")
    played.cancelled.set = lambda: None  # type: ignore[method-assign]  # it never dies
    process = shell.start("exec", "make")
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGINT)
    while not asked(shell, pb.CancelRunRequest):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_a_reader_that_goes_away_cancels_it(shell: Shell) -> None:
    played = shell.fake.played
    played.waits_for_cancel = True
    played.end.state = journal.EFFECT_STATE_CANCELLED
    played.live(OUT, 0, b"x\n")
    for n in range(64):
        played.live(OUT, 2 + n * 60_000, b"y" * 60_000)
    process = shell.start("exec", "make")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as err:
        err.read()
    assert (process.wait(10), len(asked(shell, pb.CancelRunRequest))) == (4, 1)
