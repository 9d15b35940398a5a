"""Options that commands share."""

import asyncio
import getpass
import re
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Final

import click

from scheduler_service.cli.address import Target, find_address

Command = Callable[..., Any]

ROWS_MAX: Final = 100_000


_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def seconds(text: str) -> float:
    """The type of options that take a time: seconds, or a number with a unit such as 1.5h."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|[smhd]?)", text.strip())
    if match is None or not float(match[1]):
        raise click.BadParameter(f"{text!r} is no time above 0: give seconds, or a number with ms, s, m, h or d")
    return float(match[1]) * _UNITS[match[2]]


def with_target(command: Command) -> Command:
    """Add --address and --namespace; the command gets `target`."""

    @click.option("--address", metavar="HOST:PORT,...", help="Scheduler to talk to; of several, any that "
                  "answers. Default: BACKBURNER_ADDRESS, the address file of a `backburner dev` in this folder or "
                  "above, 127.0.0.1:7233.")  # fmt: skip
    @click.option("--namespace", "-n", envvar="BACKBURNER_NAMESPACE", default="default", show_default=True,
                  help="Namespace of runs and effects.")  # fmt: skip
    @wraps(command)
    def call(*args: Any, address: str | None, namespace: str, **kwargs: Any) -> Any:
        found, source = find_address(address)
        return command(*args, target=Target(found, source, namespace), **kwargs)

    return call


def with_json(command: Command) -> Command:
    """Add --json; the command gets `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="JSON lines (proto3 JSON with proto field names).")(
        command
    )


def with_reason(command: Command) -> Command:
    """Add --reason; the command gets `reason`."""
    return click.option("--reason", default="", metavar="TEXT", help="Why, for the journal.")(command)


def with_actor(command: Command) -> Command:
    """Add --by; the command gets `actor`."""
    return click.option(
        "--by", "actor", default=_user, metavar="WHO", help="Who does it, for the audit. Default: you."
    )(command)


def _user() -> str:
    return getpass.getuser()


def with_yes(command: Command) -> Command:
    """Add --yes; the command gets `yes`."""
    return click.option("--yes", "-y", is_flag=True, help="Do not ask before changing all runs that match.")(command)


def with_dry_run(command: Command) -> Command:
    """Add --dry-run; the command gets `dry_run`."""
    return click.option("--dry-run", is_flag=True, help="Only count the runs that match.")(command)


def with_pages(command: Command) -> Command:
    """Add --limit and --all; the command gets `limit`."""

    @click.option("--limit", type=click.IntRange(1, ROWS_MAX), default=50, show_default=True,
                  help="At most so many rows.")  # fmt: skip
    @click.option("--all", "everything", is_flag=True, help=f"All rows (at most {ROWS_MAX:,}).")
    @wraps(command)
    def call(*args: Any, limit: int, everything: bool, **kwargs: Any) -> Any:
        return command(*args, limit=ROWS_MAX if everything else limit, **kwargs)

    return call


def asynchronous(command: Callable[..., Awaitable[int | None]]) -> Command:
    """Run an async command to its end. Ctrl-C cancels it, so that its `finally` blocks run; the second one kills."""

    @wraps(command)
    def call(*args: Any, **kwargs: Any) -> int | None:
        return asyncio.run(_coroutine(command(*args, **kwargs)))

    return call


async def _coroutine(awaitable: Awaitable[int | None]) -> int | None:
    return await awaitable
