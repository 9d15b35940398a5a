"""Processes for schedulers that run as processes of their own."""

import os
from typing import Any

import backburner as bb


@bb.process("replica-steps")
async def replica_steps(ctx: bb.Context, count: int) -> list[Any]:
    return [await ctx.run(bb.function("probe", i), key=f"step/{i}") for i in range(count)]


@bb.process("kills-its-scheduler")
async def kills_its_scheduler(ctx: bb.Context) -> None:
    """The worst of all processes."""
    await ctx.run(bb.function("probe"), key="fuse")
    os._exit(7)
