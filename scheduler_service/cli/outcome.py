"""How a run or an effect ended: its exit code, and what is printed of it."""

from __future__ import annotations

from typing import Final

import click

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.exit_codes import ExitCode
from scheduler_service.cli.failures import LINES_MAX, Failure, location

_RUN_CODES: Final = {
    journal.RUN_STATE_COMPLETED: ExitCode.OK,
    journal.RUN_STATE_CONTINUED: ExitCode.OK,
    journal.RUN_STATE_FAILED: ExitCode.FAILED,
    journal.RUN_STATE_CANCELLED: ExitCode.CANCELLED,
    journal.RUN_STATE_PROCESS_ERROR: ExitCode.PARKED,
    journal.RUN_STATE_HALTED: ExitCode.PARKED,
}
_EFFECT_CODES: Final = {
    journal.EFFECT_STATE_SUCCEEDED: ExitCode.OK,
    journal.EFFECT_STATE_FAILED: ExitCode.FAILED,
    journal.EFFECT_STATE_TIMED_OUT: ExitCode.FAILED,
    journal.EFFECT_STATE_CANCELLED: ExitCode.CANCELLED,
}


def run_exit_code(run: pb.Run) -> ExitCode:
    """What a command that waited for the run exits with."""
    return _RUN_CODES.get(run.state, ExitCode.FAILED)


def effect_exit_code(effect: pb.Effect) -> ExitCode:
    """What a command that waited for the effect exits with."""
    return _EFFECT_CODES.get(effect.state, ExitCode.FAILED)


def exec_exit_code(effect: pb.Effect) -> int:
    """What `exec` exits with: the child's own code when it ran to its end, 128 + N when signal N ended it."""
    if effect.state in (journal.EFFECT_STATE_TIMED_OUT, journal.EFFECT_STATE_CANCELLED):
        return ExitCode.TIMED_OUT if effect.state == journal.EFFECT_STATE_TIMED_OUT else ExitCode.CANCELLED
    if effect.state == journal.EFFECT_STATE_SUCCEEDED:
        return effect.result.exit_code
    if effect.error.reason == journal.EFFECT_REASON_SPAWN_FAILED:
        return ExitCode.NOT_STARTED
    if effect.result.HasField("signal"):
        return 128 + effect.result.signal
    return effect.result.exit_code or ExitCode.FAILED


def say_outcome(run: pb.Run, *, as_json: bool = False) -> None:
    """Print the result on stdout, or on stderr why there is none."""
    if as_json:
        click.echo(text.json_line(run))
    elif run.state == journal.RUN_STATE_COMPLETED:
        _say_result(run.result)
    else:
        for line in describe_end(run):
            click.echo(line, err=True)


def describe_end(run: pb.Run) -> list[str]:
    """Why a run has no result: the error, its place in process code, its traceback, and what can be done."""
    state, error = text.run_state(run.state), run.error
    said = f"{error.kind}: {error.message}" if error.message else (run.cancel_reason or error.kind)
    lines = [f"run {run.run_id} {state}{f' ({said})' if said else ''}"]
    lines += [f"  at {place}" for place in (location(error.traceback),) if place]
    # A bug in process code, or several errors at once: the lines are what one needs. `backburner show` always has them.
    if run.state in text.RUN_PARKED or error.kind == "GROUP":
        lines += text.plain(error.traceback).rstrip().splitlines()
    return [*lines, *ways_on(run)]


def ways_on(run: pb.Run) -> list[str]:
    """What can be done with a run that is parked; empty for others."""
    name = run.run_id
    ends = f"`backburner cancel {name}` ends it"
    if run.state == journal.RUN_STATE_HALTED:
        why = [item.message.partition(";")[0] for item in run.waiting_on[:1]]  # then it names the rpc
        return [*why, f"It is paused, not lost: `backburner resume {name}` lets it go on, {ends}."]
    if run.state == journal.RUN_STATE_PROCESS_ERROR:
        return [
            "It is parked, not lost: what it did is in its journal. Fix the code, start the scheduler with it, then",
            f"`backburner resume {name}` replays it and goes on; {ends}, `backburner show {name}` has the details.",
        ]
    return []


def say_effect_outcome(effect: pb.Effect, *, output: bool = True) -> None:
    """Print the effect's result on stdout, or on stderr why there is none, with the end of its `output`."""
    if effect.state == journal.EFFECT_STATE_SUCCEEDED:
        _say_result(effect.result.value)
        return
    for line in describe_failure(Failure.of(effect), output=output):
        click.echo(line, err=True)


def describe_failure(failure: Failure, *, output: bool = True) -> list[str]:
    """The headline of a failure and, indented, the end of its output and where the rest is."""
    shown = failure.output(LINES_MAX) if output else []
    rest = failure.more(LINES_MAX) if output else ""
    return [failure.headline(), *(f"  {line}" for line in (*shown, rest) if line)]


def describe_effect_error(effect: pb.Effect) -> str:
    """Reason and message of an effect that did not succeed."""
    return Failure.of(effect).why()


def _say_result(result: journal.Payload) -> None:
    value = text.payload(result)
    if value is not None:
        click.echo(value if isinstance(value, str) else text.pretty_json(value))
