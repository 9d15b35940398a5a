"""What is said of a failure: why, the end of the output, where in process code."""

import signal
from pathlib import Path

import pytest

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.failures import Failure, location
from scheduler_service.cli.outcome import describe_end, describe_failure

RUN = "0198f2c4-a1b2-7c3d-8e4f-0123456789ab"


def failed(**fields: object) -> pb.Effect:
    effect = pb.Effect(run_id=RUN, key="tests", state=journal.EFFECT_STATE_FAILED, attempt=1)
    effect.error.reason, effect.error.message = journal.EFFECT_REASON_EXITED_NONZERO, "the child exited with code 3"
    effect.result.exit_code = 3
    for name, value in fields.items():
        setattr(effect, name, value)
    return effect


def test_what_the_message_says_already_is_not_said_again() -> None:
    assert Failure.of(failed()).why() == "EXITED_NONZERO: the child exited with code 3"


def test_an_exit_code_that_the_message_leaves_out_is_added_and_so_are_the_attempts() -> None:
    effect = failed(attempt=2)
    effect.error.message = "no answer"
    effect.spec.retry.max_attempts = 5
    assert Failure.of(effect).why() == "EXITED_NONZERO: no answer, exit code 3 (attempt 2 of 5)"


def test_a_signal_is_said_by_its_name() -> None:
    effect = failed()
    effect.result.ClearField("exit_code")
    effect.result.signal = signal.SIGTERM
    effect.error.reason, effect.error.message = journal.EFFECT_REASON_TIMEOUT_SILENCE, "silent for 60 s"
    assert Failure.of(effect).why() == "TIMEOUT_SILENCE: silent for 60 s, SIGTERM"


def test_a_cancelled_effect_says_why_it_was_cancelled() -> None:
    effect = pb.Effect(state=journal.EFFECT_STATE_CANCELLED, cancel_reason=journal.EFFECT_REASON_RACE_LOST)
    assert Failure.of(effect).why() == "RACE_LOST"


def test_the_end_of_each_stream_is_shown_with_its_name_and_where_the_rest_is() -> None:
    effect = failed()
    effect.result.stdout.tail = "".join(f"line {n}\n" for n in range(50))
    effect.result.stdout.total_bytes = len(effect.result.stdout.tail)
    effect.result.stderr.tail = "E   assert 1 == 2\n"
    effect.result.stderr.total_bytes = len(effect.result.stderr.tail)
    lines = describe_failure(Failure.of(effect))
    assert lines[0] == "effect tests failed: EXITED_NONZERO: the child exited with code 3"
    assert lines[1] == "  stdout │ line 30"
    assert lines[-2:] == ["  stderr │ E   assert 1 == 2", f"  all of its output: backburner logs {RUN}/tests"]


def test_output_that_is_shown_whole_has_no_pointer_to_more() -> None:
    effect = failed()
    effect.result.stderr.tail, effect.result.stderr.total_bytes = "short\n", 6
    assert describe_failure(Failure.of(effect))[1:] == ["  stderr │ short"]
    effect.result.stderr.total_bytes = 7
    assert "backburner logs" in describe_failure(Failure.of(effect))[-1]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("10%\r50%\r100%\n", "100%\n"),
        ("dos\r\nlines\r\n", "dos\nlines\n"),
        ("\x1b]0;title\x07text", "text"),
        ("bell\x07\x08\x00 tab\tstays", "bell tab\tstays"),
        ("\x1b[2J\x1b[1;1Hcleared", "cleared"),
        ("c1 \x9b31m", "c1 31m"),
    ],
)
def test_what_a_child_wrote_cannot_drive_the_terminal(written: str, shown: str) -> None:
    assert text.plain(written) == shown


def test_long_names_keep_both_ends() -> None:
    assert text.middle("review/packages/web/src/index.ts", 15) == "review/…ndex.ts"
    assert text.middle("short", 15) == "short"
    assert [len(text.middle("abcdefgh", width)) for width in (1, 2, 7, 8)] == [1, 2, 7, 8]


TRACEBACK = """Traceback (most recent call last):
  File "/app/shop.py", line 34, in build
    helper(1)
  File "/app/tools.py", line 29, in helper
    return json.loads("{")
           ^^^^^^^^^^^^^^^
  File "/usr/lib/python3.11/json/__init__.py", line 346, in loads
    return _default_decoder.decode(s)
json.decoder.JSONDecodeError: Expecting property name
"""


def test_the_place_is_the_innermost_line_that_is_not_a_librarys() -> None:
    assert location(TRACEBACK) == '/app/tools.py:29 in helper: return json.loads("{")'
    assert location("") == ""
    assert location("RuntimeError: no frames\n") == ""


def test_the_place_is_short_below_the_folder_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    frame = f'  File "{tmp_path}/shop.py", line 3, in build\n    1 / 0\n'
    assert location(frame) == "shop.py:3 in build: 1 / 0"


def test_a_parked_run_says_where_then_why_then_how_it_goes_on() -> None:
    run = pb.Run(run_id=RUN, state=journal.RUN_STATE_PROCESS_ERROR)
    run.error.kind, run.error.message, run.error.traceback = "EXCEPTION", "bad", TRACEBACK
    lines = describe_end(run)
    assert lines[:3] == [
        f"run {RUN} PROCESS_ERROR (EXCEPTION: bad)",
        '  at /app/tools.py:29 in helper: return json.loads("{")',
        "Traceback (most recent call last):",
    ]
    assert f"`backburner resume {RUN}`" in "\n".join(lines[-2:])


def test_a_halted_run_is_not_said_to_need_a_fix() -> None:
    run = pb.Run(run_id=RUN, state=journal.RUN_STATE_HALTED)
    run.waiting_on.add(message="the run is halted (registry down); ResumeRun lets it go on")
    said = "\n".join(describe_end(run))
    assert "the run is halted (registry down)\n" in said
    assert f"`backburner resume {RUN}` lets it go on" in said
    assert "code" not in said
