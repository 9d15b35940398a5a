"""Processes of the engine's tests. Their effects are functions named `probe`, which scripted executors answer."""

import asyncio
import threading
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import backburner as bb
from scheduler_service.authoring.definitions import AnyProcess

#: What cleanup code of evicted runs did, by run: the test looks here.
CLEANED: list[str] = []
#: Ends what spins, so that a test leaves no thread behind.
RELEASED = threading.Event()


def probe(*args: Any) -> bb.Effect[Any]:
    return bb.function("probe", *args)


@bb.process("one")
async def one(ctx: bb.Context, attempts: int = 1, background: bool = False, pause: float = 0.01) -> Any:
    """One effect; how it failed is the result."""
    again = bb.Retry(max_attempts=attempts, initial=pause, backoff=1.0)
    try:
        if background:
            return await ctx.start(probe(), key="it", retry=again)
        return await ctx.run(probe(), key="it", retry=again)
    except bb.EffectFailed as error:
        return [error.reason, error.attempts]


@bb.process("steps")
async def steps(ctx: bb.Context, count: int) -> list[Any]:
    """Effects one after the other; cleanup that asks for more must not be heard when the run is evicted."""
    results = []
    try:
        for i in range(count):
            results.append(await ctx.run(probe(i), key=f"step/{i}"))  # noqa: PERF401 - cleanup counts them
    finally:
        CLEANED.append(ctx.run_id)
        if len(results) < count:
            ctx.start(probe("cleanup"), key="cleanup")
    return results


@bb.process("fan")
async def fan(ctx: bb.Context, count: int, background: bool = True, priority: int = 0, most: int = 0) -> int:
    """Many effects at once, in a group when `most` is given."""
    options: dict[str, Any] = {"priority": priority}
    if most:
        options["group"] = bb.group("g", max_concurrency=most)
    if background:
        handles = [ctx.start(probe(), key=f"fan/{i}", **options) for i in range(count)]
        await bb.all(handles)
    else:
        async with asyncio.TaskGroup() as tasks:
            for i in range(count):
                tasks.create_task(ctx.run(probe(), key=f"fan/{i}", **options))
    return count


@bb.process("command")
async def command(ctx: bb.Context, key: str) -> None:
    await ctx.run(bb.shell("make", label="make"), key=key)


@bb.process("adaptive")
async def adaptive(ctx: bb.Context, count: int) -> int:
    """Effects of an adaptive group that starts at 8, each tried twice."""
    group = bb.group("fix", max_concurrency=8, strategy="adaptive")
    again = bb.Retry(2, initial=60)
    return len(
        await bb.best_effort([ctx.start(probe(), key=f"fix/{i}", group=group, retry=again) for i in range(count)])
    )


@bb.process("unlimited-group")
async def unlimited_group(ctx: bb.Context) -> int:
    handles = [ctx.start(probe(), key=f"fan/{i}", group=bb.group("g")) for i in range(5)]
    return len(await bb.all(handles))


@bb.process("later")
async def later(ctx: bb.Context, seconds: float) -> None:
    await ctx.run(probe(), key="later", sleep_until=ctx.now() + timedelta(seconds=seconds))


@bb.process("labelled")
async def labelled(ctx: bb.Context) -> None:
    await ctx.run(probe(), key="it", executor_labels={"zone": "b"})


@bb.process("agents")
async def agents(ctx: bb.Context) -> None:
    await ctx.run(bb.agent("codex", prompt="do"), key="it", fallbacks=["claude-code"])


@bb.process("asks")
async def asks(ctx: bb.Context, count: int) -> list[Any]:
    return [await ctx.run(bb.external("?"), key=f"ask/{i}") for i in range(count)]


@bb.process("sleeper")
async def sleeper(ctx: bb.Context, seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "woke"


@bb.process("rings")
async def rings(ctx: bb.Context, seconds: float) -> str:
    """Waits for a timer that is an effect."""
    await ctx.run(bb.timer(ctx.now() + timedelta(seconds=seconds)), key="bell")
    return "rang"


@bb.process("raises")
async def raises(ctx: bb.Context, how: str = "ValueError") -> None:
    """A bug, with an effect beside it."""
    ctx.start(probe(), key="beside")
    await ctx.run(probe(), key="first")
    if how == "exit":
        raise SystemExit(3)
    if how == "interrupt":
        raise KeyboardInterrupt
    raise ValueError("a bug")


@bb.process("exits-at-eviction")
async def exits_at_eviction(ctx: bb.Context) -> None:
    try:
        await ctx.run(probe(), key="it")
    except bb.RunEvicted:
        raise SystemExit(3) from None


@bb.process("spins")
async def spins(ctx: bb.Context) -> None:
    """Does not come to rest, and hides every exception that is raised into it."""
    while not RELEASED.is_set():
        try:
            while not RELEASED.is_set():
                pass
        except BaseException:  # noqa: BLE001 - the worst that an author can write
            pass


@bb.process("slow-cleanup")
async def slow_cleanup(ctx: bb.Context) -> None:
    """Its cleanup waits for an effect that nobody answers."""
    try:
        await ctx.run(probe(), key="long")
    finally:
        await ctx.run(probe("cleanup"), key="cleanup")


@bb.process("changes")
async def changes_v1(ctx: bb.Context) -> str:
    await ctx.run(probe(), key="old")
    await ctx.run(probe(), key="end")
    return "old"


ALL: Mapping[str, AnyProcess] = dict(bb.processes())
