"""Completion of names by asking the server: quick, and silent when it is away."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from scheduler_service.cli.address import Target, find_address

if TYPE_CHECKING:
    from backburner.scheduler.v1 import scheduler_service_pb2 as pb
    from scheduler_service.cli.client import Client

# A key press waits for it; what takes longer is of no use.
_SECONDS: Final = 1.0
_ITEMS_MAX: Final = 200

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
Ask = Callable[["Client", str], Awaitable[Iterable[CompletionItem]]]


def process_names(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Processes that the server has."""

    async def ask(client: Client, begun: str) -> list[CompletionItem]:
        from backburner.scheduler.v1 import scheduler_service_pb2 as pb

        info = await client.runs.GetServerInfo(pb.GetServerInfoRequest(), timeout=_SECONDS)
        return [CompletionItem(name) for name in info.processes if name.startswith(begun)]

    return _answer(ctx, incomplete, ask)


def run_names(*states: int) -> Complete:
    """Runs in these states (none: in any), newest first: `key:KEY` of those that have one, and ids."""

    async def ask(client: Client, begun: str) -> list[CompletionItem]:
        # A key names the newest of the runs that have it, so it is offered once.
        named: dict[str, CompletionItem] = {}
        for item in (item for run in await _newest(client, states) for item in _names(run)):
            named.setdefault(item.value, item)
        return [item for value, item in named.items() if value.startswith(begun)]

    return lambda ctx, _parameter, incomplete: _answer(ctx, incomplete, ask)


def effect_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """RUN/ at first, then the effects of that run."""

    async def ask(client: Client, begun: str) -> list[CompletionItem]:
        from backburner.scheduler.v1 import scheduler_service_pb2 as pb

        run_name = begun.rpartition("/")[0]
        run = await client.find_run(run_name)
        request = pb.ListEffectsRequest(run_id=run.run_id, page_size=_ITEMS_MAX)
        found = [CompletionItem(f"{run_name}/{e.key}") async for e in client.list_effects(request, _ITEMS_MAX)]
        return [item for item in found if item.value.startswith(begun)]

    return _answer(ctx, incomplete, ask) if "/" in incomplete else run_names()(ctx, parameter, incomplete)


async def _newest(client: Client, states: Iterable[int]) -> list[pb.Run]:
    from backburner.scheduler.v1 import scheduler_service_pb2 as pb

    request = pb.ListRunsRequest(page_size=_ITEMS_MAX)
    request.states.extend(states)  # type: ignore[arg-type]
    return [run async for run in client.list_runs(request, _ITEMS_MAX)]


def _names(run: pb.Run) -> list[CompletionItem]:
    from scheduler_service.cli import text

    said = f"{run.process or 'client-driven'}, {text.run_state(run.state).lower()}"
    names = [f"key:{run.key}"] if run.key else []
    return [CompletionItem(name, help=said) for name in (*names, run.run_id)]


def _answer(ctx: click.Context, incomplete: str, ask: Ask) -> list[CompletionItem]:
    import grpc

    from scheduler_service.cli.errors import CliError

    try:
        return asyncio.run(asyncio.wait_for(_ask(_target(ctx), incomplete, ask), _SECONDS))
    except (CliError, grpc.RpcError, TimeoutError, OSError):
        return []  # a shell that completes has no place for errors


async def _ask(target: Target, incomplete: str, ask: Ask) -> list[CompletionItem]:
    from scheduler_service.cli.client import connect

    async with connect(target) as client:
        return list(await ask(client, incomplete))


def _target(ctx: click.Context) -> Target:
    given: dict[str, Any] = ctx.params
    address, source = find_address(given.get("address"))
    namespace = given.get("namespace") or os.environ.get("BACKBURNER_NAMESPACE") or "default"
    return Target(address, source, namespace)
