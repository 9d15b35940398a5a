"""How a run or an effect ended: its exit code, and what is printed of it."""

from __future__ import annotations

from typing import Final

import click

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.exit_codes import ExitCode

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
        return
    if run.state == journal.RUN_STATE_COMPLETED:
        _say_result(run.result)
    else:
        _say_error(run)
    if run.unobserved_failures:
        click.echo(
            f"{run.unobserved_failures} background effect(s) failed and nobody looked: `backburner show {run.run_id}`",
            err=True,
        )


def say_effect_outcome(effect: pb.Effect) -> None:
    """Print the effect's result on stdout, or on stderr why there is none."""
    if effect.state == journal.EFFECT_STATE_SUCCEEDED:
        _say_result(effect.result.value)
        return
    state = text.effect_state(effect.state).lower()
    click.echo(f"effect {effect.key} {state}: {describe_effect_error(effect)}", err=True)


def describe_effect_error(effect: pb.Effect) -> str:
    """Reason and message of an effect that did not succeed."""
    reason = effect.error.reason or effect.cancel_reason
    said = text.effect_reason(reason) if reason else ""
    return f"{said}: {effect.error.message}" if effect.error.message else said


def _say_result(result: journal.Payload) -> None:
    value = text.payload(result)
    if value is not None:
        click.echo(value if isinstance(value, str) else text.pretty_json(value))


def _say_error(run: pb.Run) -> None:
    state, error = text.run_state(run.state), run.error
    said = f"{error.kind}: {error.message}" if error.message else (run.cancel_reason or error.kind)
    click.echo(f"run {run.run_id} {state}{f' ({said})' if said else ''}", err=True)
    # A bug in process code, or several errors at once: the lines are what one needs. `backburner show` always has them.
    if error.traceback and (run.state in text.RUN_PARKED or error.kind == "GROUP"):
        click.echo(error.traceback.rstrip(), err=True)
    if run.state in text.RUN_PARKED:
        click.echo(
            "It is parked, not lost: all that it did is in its journal, to be replayed once the code is fixed. "
            f"`backburner show {run.run_id}` has the details, `backburner cancel {run.run_id}` ends it.",
            err=True,
        )
