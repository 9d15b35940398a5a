"""What runs while the services are attacked."""

import asyncio

import backburner as bb


@bb.function
def double(n: int) -> int:
    """Sound work."""
    return 2 * n


@bb.function
def wide() -> str:
    """A result that is a blob."""
    return "wide" * 50_000


@bb.process("blob")
async def blob(ctx: bb.Context) -> None:
    """Has a blob."""
    await ctx.run(wide(), key="wide")


@bb.process("victim")
async def victim(ctx: bb.Context, files: list[str] | None = None, depth: int = 1) -> str:
    """Asks, queues and waits, until somebody answers or it is cancelled."""
    ctx.start(bb.shell("true", label="sh"), key="sh", on_run_end="cancel")
    ctx.start(double(depth), key="double", on_run_end="cancel")
    answer = await ctx.start(bb.approval("Go on?", choices=["yes", "no"]), key="ask")
    await asyncio.sleep(3600)
    return answer.choice


@bb.process("talker")
async def talker(ctx: bb.Context) -> None:
    """Has a live attempt with output and progress."""
    line = 'echo "::backburner {\\"percent\\": 5}"; echo out; echo err >&2; sleep 0.2'
    await ctx.run(bb.shell(f"while :; do {line}; done", label="talk"), key="talk")


@bb.process("sound")
async def sound(ctx: bb.Context, n: int) -> int:
    """What must work after every attack."""
    return await ctx.run(double(n), key="double")
