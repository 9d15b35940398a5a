"""What both demos have in common: a run is followed while the services are watched over."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

import click

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli.child import is_warning
from scheduler_service.cli.client import Client
from scheduler_service.cli.follow import follow, screen
from scheduler_service.cli.output import console
from scheduler_service.cli.run_view import RunView
from scheduler_service.cli.stack import Stack
from scheduler_service.cli.watching import watch_run

T = TypeVar("T")

_SUPERVISE_SECONDS: Final = 0.5


async def follow_run(client: Client, run_id: str) -> None:
    """Show the run until it ends."""
    view = RunView(run_id)
    with screen(console(stderr=True), view) as on:
        await follow(watch_run(client, run_id, 0, on.note, (pb.WatchRunRequest.INCLUDE_PROGRESS,)), view, on)


async def supervised(stack: Stack, work: Coroutine[Any, Any, T]) -> T:
    """Await the work, or raise ChildDied as soon as a service ends."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            stack.raise_if_died()
            await asyncio.wait([task], timeout=_SUPERVISE_SECONDS)
    except BaseException:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        raise
    return task.result()


def say(message: str) -> None:
    """A line for people."""
    click.echo(message, err=True)


def say_warning(name: str, line: str) -> None:
    """A line of a service's log, when it is a warning."""
    if is_warning(line):
        click.echo(f"{name}: {line}", err=True)
