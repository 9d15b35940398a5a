"""Options that commands share."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import click

from scheduler_service.cli.address import Target, find_address

Command = Callable[..., Any]


def with_target(command: Command) -> Command:
    """Add --address and --namespace; the command gets `target`."""

    @click.option("--address", metavar="HOST:PORT", help="Scheduler to talk to. Default: BACKBURNER_ADDRESS, the "
                  "address file of a `backburner dev` in this folder or above, 127.0.0.1:7233.")  # fmt: skip
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


def asynchronous(command: Callable[..., Awaitable[int | None]]) -> Command:
    """Run an async command to its end. Ctrl-C cancels it, so that its `finally` blocks run; the second one kills."""

    @wraps(command)
    def call(*args: Any, **kwargs: Any) -> int | None:
        return asyncio.run(_coroutine(command(*args, **kwargs)))

    return call


async def _coroutine(awaitable: Awaitable[int | None]) -> int | None:
    return await awaitable
