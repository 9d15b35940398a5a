"""Processes of the tests of child runs and of runs that go on as new ones."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import backburner as bb
from scheduler_service.authoring.definitions import AnyProcess
from tests.integration.engine.processes import probe


@dataclass
class Item:
    name: str
    size: int


@bb.process("child")
async def child(ctx: bb.Context, item: Item, fail: str = "") -> str:
    """One effect; then it succeeds or fails as it is told."""
    said = await ctx.run(probe(item.name), key="work")
    if fail:
        raise bb.Fail(fail, {"size": item.size})
    return f"{item.name}: {said}"


@bb.process("family")
async def family(ctx: bb.Context, names: list[str]) -> list[str]:
    async with asyncio.TaskGroup() as tasks:
        done = [tasks.create_task(ctx.run(bb.run(child, Item(n, 1)), key=f"child/{n}")) for n in names]
    return [task.result() for task in done]


@bb.process("one-child")
async def one_child(ctx: bb.Context, /, of: str = "child", fail: str = "", given: Any = None, **more: Any) -> Any:
    """How its child ended, as an author sees it."""
    given = given or {"item": {"name": "a", "size": 1}, "fail": fail}
    try:
        return await ctx.start(bb.run(of, **given), key="kid", **more)
    except bb.EffectCancelled as error:
        return ["cancelled", error.reason, error.by]
    except bb.EffectTimedOut as error:
        return ["timed out", error.reason]
    except bb.EffectFailed as error:
        return ["failed", error.reason, error.message]


@bb.process("bounded")
async def bounded(ctx: bb.Context, seconds: float) -> Any:
    return await one_child.fn(ctx, total_timeout=seconds)


@bb.process("grandparent")
async def grandparent(ctx: bb.Context) -> Any:
    return await ctx.run(bb.run("one-child"), key="middle")


@bb.process("impatient")
async def impatient(ctx: bb.Context) -> str:
    """Gives its foreground child up, which is to be dead before the timeout is raised."""
    try:
        async with asyncio.timeout(0.2):
            await ctx.run(bb.run("child", item={"name": "a", "size": 1}), key="kid")
    except TimeoutError:
        return "gave up"
    return "in time"


@bb.process("leaves")
async def leaves(ctx: bb.Context, how: str) -> str:
    ctx.start(bb.run("child", item={"name": "a", "size": 1}), key="kid", on_run_end=how)  # type: ignore[arg-type]
    await ctx.run(probe(), key="first")
    return "left"


@bb.process("counts")
async def counts(ctx: bb.Context, left: int, heard: list[Any]) -> list[Any]:
    """Goes on as a new run until it has counted down; what it was told it carries along."""
    heard = [*heard, await ctx.signal("tell")]
    if left:
        await ctx.continue_as_new(left - 1, heard)
    return heard


@bb.process("carries")
async def carries(ctx: bb.Context, left: int, second: bool = False) -> int:
    """Goes on as a new run with signals that it has not taken; gives how many it took."""
    if not second:
        await ctx.signal("go")
        await ctx.continue_as_new(left, True)
    return len([await ctx.signal("bulk") for _ in range(left)])


@bb.process("counting-parent")
async def counting_parent(ctx: bb.Context) -> Any:
    return await ctx.run(bb.run("counts", left=2, heard=[]), key="kid")


@bb.process("too-early")
async def too_early(ctx: bb.Context) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(ctx.run(probe(), key="open"))
        await asyncio.sleep(0)
        await ctx.continue_as_new()


_NAMES = (
    "child", "family", "one-child", "bounded", "grandparent", "impatient", "leaves", "counts", "counting-parent",
    "too-early", "steps", "carries",
)  # fmt: skip
ALL: Mapping[str, AnyProcess] = {name: bb.processes()[name] for name in _NAMES}
