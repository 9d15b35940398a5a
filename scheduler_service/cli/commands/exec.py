"""`backburner exec`: one command or function, run elsewhere as if it ran here."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

import click

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.address import Target
from scheduler_service.cli.child_output import ChildOutput
from scheduler_service.cli.client import Client, connect
from scheduler_service.cli.exec_session import ClientRun, Interruptions, until_interrupted
from scheduler_service.cli.exec_spec import ExecOptions, default_key, effect_spec
from scheduler_service.cli.exit_codes import ExitCode
from scheduler_service.cli.failures import describe_setback
from scheduler_service.cli.names import read_labels
from scheduler_service.cli.options import asynchronous, seconds, with_json, with_target
from scheduler_service.cli.outcome import exec_exit_code, say_effect_outcome
from scheduler_service.cli.watching import resumed

_WAITING_AFTER_SECONDS: Final = 2.0
_ASK_AGAIN_SECONDS: Final = 10.0
# A command that ended by itself has said on its own output what it had to say.
_SAID_BY_ITSELF: Final = (journal.EFFECT_REASON_UNSPECIFIED, journal.EFFECT_REASON_EXITED_NONZERO)
_ENDS_OF_ATTEMPTS: Final = ("effect_attempt_failed", "effect_attempt_lost")


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.argument("argv", metavar="[--] [COMMAND [ARGUMENT]...]", nargs=-1, type=click.UNPROCESSED)
@click.option("-c", "command_line", metavar="LINE", help="A command line for /bin/sh, instead of COMMAND.")
@click.option("--function", metavar="NAME", help="A function of the executors, instead of COMMAND.")
@click.option("--args", metavar="JSON|@FILE|-", help="Its arguments: an array, or an object of keyword arguments.")
@click.option("--background", "-b", is_flag=True, help="Print run and effect and return; the run ends by itself.")
@click.option("--key", default="", metavar="KEY", help="Key of the effect in its run. Default: its name.")
@click.option("--run-key", default="", metavar="KEY", help="Run with this key, old or new. Default: a new run. With it "
              "the same command again is the same effect.")  # fmt: skip
@click.option("--keep-open", is_flag=True, help="Leave the run open for more effects; needs --run-key.")
@click.option("--cwd", default="", metavar="DIR", help="Folder on the executor; a relative one begins at this folder. "
              "Default: a fresh folder.")  # fmt: skip
@click.option("--env", "-e", multiple=True, metavar="NAME[=VALUE]", help="Variable; NAME alone passes this shell's on.")
@click.option("--stdin", metavar="TEXT|@FILE|-", help="Text for its stdin.")
@click.option("--name", default="", metavar="NAME", help="For people and for ETAs. Default: the program or function.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Label of run and effect. Repeatable.")
@click.option("--on", "executor_labels", multiple=True, metavar="NAME=VALUE", help="Label that the executor must have.")
@click.option("--timeout", type=seconds, metavar="TIME", help="Longest an attempt may run, such as 90, 15m or 2h.")
@click.option("--silence-timeout", type=seconds, metavar="TIME", help="Longest without output or progress.")
@click.option("--queue-timeout", type=seconds, metavar="TIME", help="Longest until it starts.")
@click.option("--total-timeout", type=seconds, metavar="TIME", help="Longest from request to end, all attempts.")
@click.option(
    "--retry", type=click.IntRange(1, 100), default=1, metavar="N", help="Attempts at most, the first included."
)
@click.option("--priority", type=click.IntRange(-100, 100), default=0, metavar="N", help="Higher starts first.")
@with_json
@with_target
@asynchronous
async def exec_command(
    *, key: str, run_key: str, keep_open: bool, as_json: bool, target: Target, **options: Any
) -> int:
    """Run COMMAND as one effect and behave as if it ran here: its output, its exit code.

    Ctrl-C cancels it and waits until it is proven dead; the second Ctrl-C leaves at once. With --background it goes on
    without this command: `backburner watch RUN/KEY` waits for it. With --json the effect is printed as one JSON
    document, and its output is left to `backburner logs`.

    \b
    Exit codes: the command's own, or 128 + N when signal N ended it; besides, 4 cancelled, 5 one of its timeouts,
    6 service unreachable, 127 not started, 1 for all else. --json tells a command's 5 from ours.

    \b
    Examples:
      backburner exec --cwd . make test
      backburner exec --timeout 15m --retry 3 -c 'pytest -q | tee report.txt'
      backburner exec --background --run-key nightly-0726 -- ./backup.sh --all
      backburner exec --function shop.double --args '[21]'
    """
    asked = ExecOptions(**options)
    if keep_open and not run_key:
        raise click.UsageError("--keep-open needs --run-key: nobody could name the run again")
    spec = effect_spec(asked)
    async with connect(target) as client:
        run = await ClientRun.open(client, run_key, read_labels(asked.labels))
        effect = await run.request(key or default_key(spec), spec)
        if asked.background:
            if not keep_open:
                await run.finish_by_itself()
            _say_started(effect, as_json=as_json)
            return ExitCode.OK
        settled = await _Followed(run, effect, silent=as_json).to_its_end()
        if not keep_open:
            await run.finish(settled)
    _say_end(settled, as_json=as_json)
    return exec_exit_code(settled)


class _Followed:
    """The effect while it is followed in the foreground."""

    def __init__(self, run: ClientRun, effect: pb.Effect, *, silent: bool) -> None:
        self._run = run
        self._client: Client = run.client
        self._effect = effect
        self._name = pb.EffectName(effect_id=effect.effect_id)
        self._output = ChildOutput(run.client, effect.effect_id, _note, silent=silent)
        self._started = asyncio.Event()

    async def to_its_end(self) -> pb.Effect:
        """Write its output until it has settled; an interruption cancels it first."""
        with Interruptions() as interruptions:
            self._interruptions = interruptions
            watching = asyncio.create_task(self._watch())
            explaining = asyncio.create_task(self._say_why_it_waits())
            try:
                await until_interrupted(watching, interruptions.first, self._cancel)
            finally:
                explaining.cancel()
            settled = await self._client.get_effect(self._name)
            await self._complete(settled.attempt, settled.result)
        return settled

    async def _cancel(self) -> None:
        _note("cancelling, and waiting until it is dead; Ctrl-C again leaves at once")
        try:
            await self._run.cancel(self._effect, "interrupted at the terminal")
        except asyncio.CancelledError:
            name = f"{self._effect.run_id}/{self._effect.key}"
            _note(f"nobody has answered to the cancel, it may run on: `backburner cancel {name}`")
            raise

    async def _watch(self) -> None:
        async for frame in self._frames():
            kind = frame.WhichOneof("frame")
            if kind == "output":
                self._started.set()
                with self._reader():
                    await self._output.take(frame.output.attempt, frame.output.chunk)
            elif kind == "event":
                await self._take_event(frame.event)

    def _frames(self) -> AsyncIterator[pb.WatchEffectResponse]:
        def open_stream(after: int | None) -> Any:
            request = pb.WatchEffectRequest(
                effect=self._name, namespace=self._client.namespace, after_seq=after, include_output=True,
                output_positions=self._output.wanted(),
            )  # fmt: skip
            return self._client.runs.WatchEffect(request)

        return resumed(open_stream, self._effect.request_seq, _note)

    async def _take_event(self, event: journal.JournalEvent) -> None:
        kind = event.WhichOneof("data")
        if kind == "effect_started":
            self._started.set()
        elif kind in _ENDS_OF_ATTEMPTS:
            await self._complete(event.attempt, event.effect_attempt_failed.partial)
            _note(describe_setback(event))

    async def _complete(self, attempt: int, result: journal.EffectResult) -> None:
        with self._reader():
            await self._output.complete(attempt, result)

    def _reader(self) -> Any:
        return _Reader(self._output, self._interruptions)

    async def _say_why_it_waits(self) -> None:
        """Say what holds it up, when it does not start soon; again when that changes."""
        said, pause = "", _WAITING_AFTER_SECONDS
        while True:
            await asyncio.sleep(pause)
            effect = await self._client.get_effect(self._name)
            reason = effect.waiting_on.message
            if effect.state == journal.EFFECT_STATE_QUEUED and reason != said:
                _note(f"waiting: {reason}")
                said = reason
            pause = _ASK_AGAIN_SECONDS


class _Reader:
    """Context of writing for whoever reads our output: when that is gone, the effect is cancelled, as by SIGPIPE."""

    def __init__(self, output: ChildOutput, interruptions: Interruptions) -> None:
        self._output = output
        self._interruptions = interruptions

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _where: object) -> bool:
        if not isinstance(error, BrokenPipeError):
            return False
        self._output.close()
        self._interruptions.first.set()
        return True


def _say_started(effect: pb.Effect, *, as_json: bool) -> None:
    if as_json:
        click.echo(text.json_line(effect))
        return
    click.echo(f"{effect.run_id}/{effect.key}")
    if sys.stderr.isatty():
        name = f"{effect.run_id}/{effect.key}"
        click.echo(f"wait for it: backburner watch {name}; its output: backburner logs {name} -f", err=True)


def _say_end(effect: pb.Effect, *, as_json: bool) -> None:
    if as_json:
        click.echo(text.json_line(effect))
    elif effect.kind == journal.EFFECT_KIND_FUNCTION or effect.error.reason not in _SAID_BY_ITSELF:
        say_effect_outcome(effect, output=effect.kind == journal.EFFECT_KIND_FUNCTION)


def _note(message: str) -> None:
    click.echo(f"backburner: {message}", err=True)
