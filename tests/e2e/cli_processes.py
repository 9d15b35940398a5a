"""Processes that the tests of the command line start: each end that a run can have, and all that one waits for."""

import datetime as dt

import backburner as bb
from tests.e2e.processes import add, mark


@bb.function(name="cli.refuse")
def refuse(text: str) -> str:
    raise ValueError(f"not {text}")


@bb.process("cli.returns")
async def returns(ctx: bb.Context, n: int = 3) -> dict[str, int]:
    return {"n": n}


@bb.process("cli.checked")
async def checked(ctx: bb.Context, n: int) -> int:
    """For the tests of replay-check alone, which count its runs."""
    total = await ctx.run(add(n, 1), key="add")
    if n:
        await ctx.signal("go")
    return total


@bb.process("cli.fails")
async def fails(ctx: bb.Context) -> None:
    raise bb.Fail("no bread today")


@bb.process("cli.child-fails")
async def child_fails(ctx: bb.Context) -> None:
    """A child that writes a lot, in colour, on both streams, twice."""
    script = "for i in $(seq 60); do echo out $i; done; printf '\\033[31mred\\033[0m err\\n' >&2; exit 3"
    await ctx.run(bb.shell(script), key="tests", retry=bb.Retry(2, initial=0.01))


@bb.process("cli.function-fails")
async def function_fails(ctx: bb.Context) -> None:
    await ctx.run(bb.function("cli.refuse", "today"), key="refuse")


@bb.process("cli.breaks")
async def breaks(ctx: bb.Context) -> None:
    await ctx.run(bb.shell("true"), key="before")
    _bug({})


def _bug(found: dict[str, int]) -> int:
    return found["missing"]


@bb.process("cli.halts")
async def halts(ctx: bb.Context) -> str:
    await ctx.halt("wait for the registry")
    return "went on"


@bb.process("cli.asks")
async def asks(ctx: bb.Context) -> dict[str, object]:
    answer = await ctx.run(bb.approval("Deploy 1.4.2?", choices=["yes", "no"], assignees=["ops"]), key="approve")
    return {"choice": answer.choice, "by": answer.by}


@bb.process("cli.listens")
async def listens(ctx: bb.Context) -> object:
    return await ctx.signal("scale")


@bb.process("cli.sleeps")
async def sleeps(ctx: bb.Context) -> None:
    await ctx.run(bb.shell("sleep 300", label="nap"), key="nap")


@bb.process("cli.family")
async def family(ctx: bb.Context, depth: int = 2) -> int:
    """Runs itself as its child, and that its own; the last one fails."""
    if depth == 0:
        await ctx.run(bb.shell("echo no such tag >&2; exit 4"), key="leaf")
    return await ctx.run(bb.run("cli.family", depth=depth - 1), key="child")


@bb.process("cli.goes-on")
async def goes_on(ctx: bb.Context, left: int = 2) -> str:
    if left:
        await ctx.continue_as_new(left - 1)
    return "the last one"


@bb.process("cli.works")
async def works(ctx: bb.Context, folder: str) -> str:
    """A background child that reports, and waits for a file; foreground work beside it."""
    script = (
        'echo \'::backburner {"percent": 40, "step": "linking"}\'; echo begun; '
        f"while [ ! -e {folder}/release ]; do sleep 0.02; done; printf 'b\\377ytes\\n'; echo done >&2"
    )
    slow = ctx.start(bb.shell(script), key="packages/web/compile-and-link-all-of-it/slow")
    for number in range(3):
        await ctx.run(add(number, 1), key=f"add/{number}")
    ctx.log.warning("the slow one is %s", slow.status)
    ctx.report(percent=50, label="half of it")
    return (await slow).stderr_tail.strip()


@bb.process("cli.states")
async def states(ctx: bb.Context) -> None:
    """One effect in each state that an effect can stay in."""
    outs = [
        ctx.start(bb.shell("echo fine"), key="succeeded"),
        ctx.start(bb.shell("echo broken >&2; exit 9"), key="failed"),
        ctx.start(bb.shell("sleep 60"), key="timed-out", timeout=0.1),
        ctx.start(bb.shell("sleep 300"), key="cancelled"),
    ]
    ctx.start(bb.shell("sleep 300"), key="running", on_run_end="cancel")
    ctx.start(bb.shell("true"), key="queued", sleep_until=ctx.now() + dt.timedelta(days=1))
    await bb.wait(outs[:3])
    outs[3].cancel("not wanted")
    await bb.wait(outs)
    await ctx.run(bb.external("a webhook"), key="waiting")


@bb.process("cli.costly")
async def costly(ctx: bb.Context, folder: str) -> list[str]:
    """Two effects that leave marks, and a check that fails until somebody makes it pass."""
    marks = [await ctx.run(mark(folder, name), key=name) for name in ("one", "two")]
    await ctx.run(bb.shell(f"test -e {folder}/fixed"), key="check")
    return marks
