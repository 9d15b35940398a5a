"""`backburner dev`: everything on this machine in one command."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import click

from scheduler_service.cli.address import DATA_DIR, DEFAULT_ADDRESS
from scheduler_service.cli.child import is_warning
from scheduler_service.cli.exit_codes import ExitCode
from scheduler_service.cli.service_options import HARNESS_MODULES, SLOTS, as_env, with_settings
from scheduler_service.cli.signals import StopRequested, StopSignals
from scheduler_service.cli.stack import Stack, StackOptions, next_port

_DATED = re.compile(r"\d{4}-\d\d-\d\d")
_SETTINGS = (HARNESS_MODULES, *SLOTS)
_COLORS = {"scheduler": "cyan", "executor": "magenta"}


@click.command("dev")
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), default=DATA_DIR, show_default=True,
              envvar="BACKBURNER_DATA_DIR", help="Database, logs and state; kept between starts.")  # fmt: skip
@click.option("--ephemeral", is_flag=True, help="Use a temporary directory and remove it at the end.")
@click.option("--listen", default=DEFAULT_ADDRESS, show_default=True, envvar="BACKBURNER_LISTEN", metavar="HOST:PORT",
              help="Address of the scheduler.")  # fmt: skip
@click.option("--metrics-address", default="", envvar="BACKBURNER_METRICS_ADDRESS", metavar="HOST:PORT",
              help="Serve the scheduler's metrics there, the executor's on the next port. Default: off.")  # fmt: skip
@click.option("--process-module", "process_modules", multiple=True, metavar="MODULE",
              help="Python module that defines processes, found from this folder. Repeatable.")  # fmt: skip
@click.option("--function-module", "function_modules", multiple=True, metavar="MODULE",
              help="Python module that defines functions. Repeatable.")  # fmt: skip
@with_settings(_SETTINGS)
@click.option("--verbose", "-v", is_flag=True, help="Show the whole logs, not only warnings.")
def dev_command(
    *,
    data_dir: Path,
    ephemeral: bool,
    listen: str,
    metrics_address: str,
    process_modules: tuple[str, ...],
    function_modules: tuple[str, ...],
    verbose: bool,
    **settings: Any,
) -> int:
    """Start Postgres, scheduler and executor on this machine; Ctrl-C stops them all.

    Without DATABASE_URL it starts a Postgres of its own. The other commands find this server by themselves when they
    are run in this folder or below.

    \b
    Examples:
      backburner dev --process-module myapp.processes --function-module myapp.functions
      backburner dev --ephemeral --listen 127.0.0.1:7300 --slots-shell 2
    """
    options = StackOptions(
        # Short on purpose: a Unix socket's path may be no longer than about 100 bytes.
        data_dir=Path(tempfile.mkdtemp(prefix="backburner-")) if ephemeral else data_dir,
        listen=listen,
        metrics_address=metrics_address,
        ephemeral=ephemeral,
        database_url=os.environ.get("DATABASE_URL"),
        process_modules=process_modules,
        function_modules=function_modules,
        env=as_env(_SETTINGS, settings),
    )
    return run_dev(Stack(options, _say, _Screen(verbose=verbose)))


def run_dev(stack: Stack) -> int:
    """Start, supervise, stop; a signal during the start stops what was started."""
    with StopSignals(stack.force) as signals:
        try:
            stack.start()
            signals.defer()
            _print_banner(stack)
            stack.supervise(signals.requested)
        except StopRequested:
            pass
        finally:
            signals.defer()
            stack.stop()
    _say("stopped")
    return ExitCode.OK


def _print_banner(stack: Stack) -> None:
    options, ready = stack.options, stack.readiness
    kept = "removed at the end" if options.ephemeral else "kept"
    postgres = "DATABASE_URL" if options.database_url else f"embedded, in {options.data_dir} ({kept})"
    processes = ", ".join(sorted(ready.processes)) or "none yet: load some with --process-module"
    click.echo()
    metrics = (
        f"{options.metrics_address} and {next_port(options.metrics_address)}" if options.metrics_address else "off"
    )
    for name, value in (
        ("postgres", postgres),
        ("scheduler", f"{options.listen}  (processes: {processes})"),
        ("executor", f"{ready.executor_address}  (functions: {len(ready.functions)})"),
        ("metrics", metrics),
        ("logs", str(stack.logs)),
    ):
        click.echo(f"  {click.style(f'{name:<10}', bold=True)} {value}")
    click.echo("\nNext, in another terminal:")
    for line in _next_commands(stack):
        click.echo(f"  {line}")
    click.echo("\nCtrl-C stops everything.\n")


def _next_commands(stack: Stack) -> list[str]:
    options, ready = stack.options, stack.readiness
    # The file `address` is found from below the folder of the data directory only.
    found = not options.ephemeral and options.data_dir.name == DATA_DIR
    where = "" if found or options.listen == DEFAULT_ADDRESS else f"export BACKBURNER_ADDRESS={options.listen}"
    first = f"backburner run {sorted(ready.processes)[0]} [KEY=VALUE]..." if ready.processes else "backburner demo"
    return [line for line in (where, first, "backburner ps", f'psql "{stack.dsn}"') if line]


def _say(message: str) -> None:
    click.echo(message, err=True)


class _Screen:
    """Lines of the services' logs on the screen, each with its service's name."""

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self._shown: dict[str, bool] = {}

    def __call__(self, name: str, line: str) -> None:
        # Lines without a time of their own go on with the line before them: tracebacks are shown whole.
        if _DATED.match(line) or is_warning(line):
            self._shown[name] = self._verbose or is_warning(line)
        if self._verbose or self._shown.get(name, False):
            click.echo(f"{click.style(f'{name:<9}', fg=_COLORS.get(name))} {line}", err=True)
