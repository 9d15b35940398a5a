"""Processes of the tests of how effects end: each gives how its effect ended, as its author sees it."""

import asyncio
from collections.abc import Awaitable, Mapping
from datetime import timedelta
from typing import Any

import backburner as bb
from scheduler_service.authoring.definitions import AnyProcess
from tests.integration.engine.processes import probe


async def told(effect: Awaitable[Any]) -> list[Any]:
    """How it ended."""
    try:
        await effect
    except bb.EffectCancelled as error:
        message = str(error).partition("\n")[0].removeprefix(f"effect {error.key}: {error.reason}: ")
        return ["cancelled", error.reason, message, error.attempts]
    except bb.EffectTimedOut as error:
        return ["timed out", error.reason, error.attempts]
    except bb.EffectFailed as error:
        return ["failed", error.reason, error.attempts]
    return ["succeeded"]


def holding(folder: str, name: str = "it") -> bb.Effect[Any]:
    """A child with a daemon in a session of its own, both of which say their process ids and never end."""
    line = f"setsid sleep 300 & echo $! >> {folder}/{name}; echo $$ >> {folder}/{name}; exec sleep 300"
    return bb.shell(line, label="holding")


@bb.process("one-effect-ends")
async def ends(ctx: bb.Context, kind: str, folder: str = "", attempts: int = 1, pause: float = 600.0) -> list[Any]:
    """One effect of the kind."""
    later = ctx.now() + timedelta(days=1)
    effects: dict[str, bb.Effect[Any]] = {
        "function": probe(),
        "shell": holding(folder),
        "external": bb.external("?"),
        "timer": bb.timer(later),
        "run": bb.run("leaf", folder=folder),
        "asleep": holding(folder),
    }
    again = bb.Retry(max_attempts=attempts, initial=pause, backoff=1.0, max_interval=pause)
    options: dict[str, Any] = {"kill_grace": 0.5, "retry": again} if kind in ("function", "shell", "asleep") else {}
    if kind == "asleep":
        options["sleep_until"] = later
    return await told(ctx.start(effects[kind], key="it", **options))


@bb.process("leaf")
async def leaf(ctx: bb.Context, folder: str) -> None:
    await ctx.run(holding(folder), key="leaf", kill_grace=0.5)


@bb.process("breaks")
async def breaks(ctx: bb.Context, folder: str) -> None:
    """A bug while a child of it runs."""
    ctx.start(holding(folder), key="it", kill_grace=0.5)
    await ctx.run(bb.external("?"), key="bug")
    raise ValueError("a bug")


@bb.process("not-before")
async def not_before(ctx: bb.Context, what: str, seconds: float) -> list[Any]:
    """Something that is to be in so many seconds, and not before."""
    at = ctx.now() + timedelta(seconds=seconds)
    if what == "sleep_until":
        return await told(ctx.start(probe(), key="it", sleep_until=at))
    if what == "pause":
        again = bb.Retry(max_attempts=2, initial=2 * seconds, backoff=1.0)  # up to half of it is taken off
        return await told(ctx.start(probe(), key="it", retry=again))
    if what == "timer":
        return await told(ctx.start(bb.timer(at), key="it"))
    await asyncio.sleep(seconds)
    return ["succeeded"]


@bb.process("asks-twice")
async def asks_twice(ctx: bb.Context, seconds: float) -> list[Any]:
    """What it sees of an answer that has a deadline, and what it sees of it when it looks again."""
    handle = ctx.start(bb.external("?"), key="it", total_timeout=seconds)
    first = await told(handle)
    return [first, await told(handle), str(handle.status)]


@bb.process("bounded-ends")
async def bounded_ends(
    ctx: bb.Context, options: dict[str, Any], attempts: int = 1, folder: str = "", wall: float = 0
) -> list[Any]:
    """A child, or with an empty folder a function, with these options."""
    effect = holding(folder) if folder else probe()
    again = bb.Retry(max_attempts=attempts, initial=0.01, backoff=1.0)
    if wall:
        options = options | {"budget": bb.budget(wall=wall)}
    return await told(ctx.start(effect, key="it", retry=again, kill_grace=0.5, **options))


@bb.process("gives-up")
async def gives_up(ctx: bb.Context, folder: str, how: str) -> list[Any]:
    """Ends its own effect in one of the ways that process code has."""
    if how == "await":
        with_timeout = asyncio.timeout(0.5)
        try:
            async with with_timeout:
                await ctx.run(holding(folder), key="it", kill_grace=0.5)
        except TimeoutError:
            return ["gave up"]
    handle = ctx.start(holding(folder), key="it", kill_grace=0.5, on_run_end="cancel")
    await ctx.run(bb.external("?"), key="go")
    if how == "race":
        other: bb.EffectHandle[Any] = ctx.start(bb.shell("true"), key="winner")
        await bb.first_success([handle, other])
        return await told(handle)
    if how == "cancel":
        handle.cancel("not needed")
        return await told(handle)
    return ["returned"]


_NAMES = ("one-effect-ends", "leaf", "breaks", "not-before", "asks-twice", "bounded-ends", "gives-up")
ALL: Mapping[str, AnyProcess] = {name: bb.processes()[name] for name in _NAMES}
