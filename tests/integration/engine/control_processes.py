"""Processes of the tests of run control: they halt, wait for signals, and go wrong until they are mended."""

import asyncio
from collections.abc import Mapping
from typing import Any

import backburner as bb
from scheduler_service.authoring.definitions import AnyProcess
from tests.integration.engine.processes import probe

#: What is wrong with `fragile`: an exception that it raises, mended by a test that takes it away.
BUGS: list[Exception] = []


@bb.process("pauses")
async def pauses(ctx: bb.Context) -> list[Any]:
    """Starts one effect in the very step in which it halts, and goes on when it is resumed."""
    beside = ctx.start(probe("beside"), key="beside")
    await ctx.halt("look at it")
    return [await beside, await ctx.run(probe("after"), key="after")]


@bb.process("listens")
async def listens(ctx: bb.Context) -> list[Any]:
    """What it was told, until it is told to stop."""
    heard: list[Any] = []
    async for message in ctx.signals("say"):
        if message == "stop":
            break
        heard.append(message)
    return heard


@bb.process("fragile")
async def fragile(ctx: bb.Context) -> Any:
    first = await ctx.run(probe(1), key="first")
    if BUGS:
        raise BUGS[0]
    return [first, await ctx.run(probe(2), key="second")]


@bb.process("tidies")
async def tidies(ctx: bb.Context) -> None:
    """Cleans up after a cancel, unless there is a bug in that."""
    try:
        await ctx.run(probe(), key="work")
    finally:
        if BUGS:
            raise BUGS[0]
        await ctx.run(probe("cleanup"), key="cleanup")


@bb.process("ticks")
async def ticks(ctx: bb.Context, seconds: float) -> list[str]:
    """A timer and an effect with a deadline, both of which come due."""
    late = ctx.start(bb.external("?"), key="late", total_timeout=seconds)
    await asyncio.sleep(seconds)
    try:
        await late
    except bb.EffectTimedOut as error:
        return ["slept", error.reason]
    return ["slept", "answered"]


ALL: Mapping[str, AnyProcess] = {
    name: bb.processes()[name] for name in ("pauses", "listens", "fragile", "tidies", "ticks", "steps", "one")
}
