"""Processes and functions that the benchmarks run."""

import asyncio

import backburner as bb


@bb.function
def noop() -> None:
    """Does nothing, durably."""


@bb.function
async def nap(seconds: float) -> None:
    """Sleeps on the executor."""
    await asyncio.sleep(seconds)


@bb.process("bench-serial")
async def serial(ctx: bb.Context, effects: int) -> int:
    """One no-op effect after another."""
    for _ in range(effects):
        await ctx.run(noop())
    return effects


@bb.process("bench-fanout")
async def fanout(ctx: bb.Context, effects: int) -> int:
    """All at once."""
    await asyncio.gather(*(ctx.run(noop()) for _ in range(effects)))
    return effects


@bb.process("bench-beside")
async def beside(ctx: bb.Context, background: int, effects: int, seconds: float) -> int:
    """Foreground no-ops one after another, with background effects of the same pool that sleep beside them."""
    for i in range(background):
        ctx.start(nap(seconds), key=f"nap/{i}", on_run_end="cancel")
    for i in range(effects):
        await ctx.run(noop(), key=f"foreground/{i}")
    return background
