"""The command tree, and the one place where errors become messages and exit codes."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final, NamedTuple

import click

from scheduler_service.cli.errors import CliError
from scheduler_service.cli.exit_codes import ExitCode


class _Command(NamedTuple):
    section: str
    module: str
    summary: str


# The summaries stand here and not in the modules, so that `backburner --help` imports none of them.
_COMMANDS: Final = {
    "dev": _Command("Start", "dev", "Start everything on this machine: Postgres, scheduler, executor."),
    "demo": _Command("Start", "demo", "See it work on a git repository; `demo agents`: with coding agents."),
    "scheduler": _Command("Start", "services", "Start one scheduler service."),
    "executor": _Command("Start", "services", "Start one executor service."),
    "migrate": _Command("Start", "migrate", "Bring the database schema up to date."),
    "new": _Command("Start", "new", "Write a small process and its test, to begin from."),
    "run": _Command("Run", "run", "Start a process and follow it to its result."),
    "exec": _Command("Run", "exec", "Run one command or function as an effect, as if it ran here."),
    "watch": _Command("Run", "watch", "Follow a run or an effect until it ends."),
    "signal": _Command("Run", "signal", "Send a message to a run."),
    "approvals": _Command("Run", "approvals", "List what waits for an answer, and answer it."),
    "resolve": _Command("Run", "resolve", "Settle external work with any outcome."),
    "cancel": _Command("Run", "cancel", "Cancel runs or effects."),
    "halt": _Command("Run", "halt", "Pause runs."),
    "resume": _Command("Run", "halt", "Let halted and parked runs go on."),
    "ps": _Command("Look", "ps", "List runs, or the effects that are open."),
    "show": _Command("Look", "show", "Show one run or one effect in full."),
    "logs": _Command("Look", "logs", "Print the output of an effect's child."),
    "journal": _Command("Look", "journal", "Print the journal of a run."),
    "blob": _Command("Look", "blob", "Write a large value to stdout."),
    "usage": _Command("Look", "usage", "Add up what was consumed: tokens, costs, turns, time."),
    "executors": _Command("Look", "executors", "List executors with their slots."),
    "harnesses": _Command("Look", "harnesses", "List the agent CLIs that executors found, and what to do about them."),
    "doctor": _Command("Operate", "doctor", "Say what is wrong, and what to do."),
    "hold": _Command("Operate", "hold", "Hold dispatch: the kill-switch."),
    "unhold": _Command("Operate", "hold", "Release holds."),
    "holds": _Command("Operate", "hold", "List the holds in force."),
    "breakers": _Command("Operate", "breakers", "List the circuit breakers of providers, and close them."),
    "budget": _Command("Operate", "budget", "Bound what labels, runs and effects may consume."),
    "drain": _Command("Operate", "drain", "Let an executor take nothing new."),
    "undrain": _Command("Operate", "drain", "Let an executor take new work again."),
    "expire": _Command("Operate", "drain", "Declare an executor dead now."),
    "settle": _Command("Operate", "settle", "Settle an effect that is stuck, by hand."),
    "prune": _Command("Operate", "prune", "Remove whole runs that ended long ago."),
    "audit": _Command("Operate", "audit", "List what operators did."),
    "verify": _Command("Operate", "verify", "Check stored journals against the invariants."),
    "replay-check": _Command("Operate", "replay_check", "Replay stored journals with the code that is here."),
    "completion": _Command("Look", "completion", "Print the completion script of a shell."),
}


class _Tree(click.Group):
    """Loads a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"scheduler_service.cli.commands.{_COMMANDS[cmd_name].module}")
        command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            from scheduler_service.cli.suggest import did_you_mean, near

            meant = did_you_mean(near(args[0], _COMMANDS)) or "`backburner --help` lists them"
            raise click.UsageError(f"no such command: {args[0]!r}; {meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in dict.fromkeys(command.section for command in _COMMANDS.values()):
            with formatter.section(section):
                formatter.write_dl([(name, c.summary) for name, c in _COMMANDS.items() if c.section == section])


_EPILOG: Final = """\b
Try it:
  backburner demo                      everything at once, on a git repository of yours
  backburner demo agents               the same with coding agents, with your keys or without
  backburner dev --process-module M    then, in another terminal:
  backburner run PROCESS key=value     bars, result, exit code

\b
RUN is a run id, its beginning or its end (6 characters or more), or key:KEY.
EFFECT is an effect id, or RUN/KEY.

\b
Exit codes: 0 ok, 1 run failed, 2 usage, 3 parked, 4 cancelled, 5 timed out waiting, 6 service unreachable,
130 interrupted (a run that was watched goes on).
"""


@click.group(
    cls=_Tree, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="backburner", prog_name="backburner")
def tree() -> None:
    """Run outside work (commands, functions, coding agents) in the background of an orchestration loop.

    Every fact is in a Postgres journal, so nothing is lost when anything dies.
    """


def run(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code and prints every error as a message."""
    try:
        code = tree.main(list(arguments), prog_name="backburner", standalone_mode=False, color=_color())
    except click.ClickException as error:
        error.show()
        return int(ExitCode.USAGE)
    except CliError as error:
        _say(error)
        return int(error.code)
    except (KeyboardInterrupt, click.Abort):
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        return _reader_is_gone()
    except OSError as error:
        _say(CliError(f"{error.filename}: {error.strerror}" if error.filename else str(error)))
        return int(ExitCode.FAILED)
    return int(code) if isinstance(code, int) else int(ExitCode.OK)


def _say(error: CliError) -> None:
    click.echo(f"{click.style('error:', fg='red', bold=True)} {error.message}", err=True, color=_color())
    if error.remedy:
        click.echo(f"{click.style('try:', bold=True)}   {error.remedy}", err=True, color=_color())


def _color() -> bool | None:
    return False if os.environ.get("NO_COLOR") else None  # None: where there is a terminal


def _reader_is_gone() -> int:
    # `backburner journal R | head` is fine; what is still buffered would raise again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(ExitCode.OK)
