"""The six processes that the API was decided by, as authors write them. They type-check, and they run in memory
(`tests/replay/test_six_processes.py`) and through both services (`tests/e2e/test_six_processes.py`).

What is a constant in an author's code is a parameter here where a test on the real clock needs another value.
"""

import asyncio
import itertools
from typing import Any

import backburner as bb
from tests.support.checks import Report, Spec, Verdict, ask, lint, p, task


@bb.process("release-check")
async def release_check(ctx: bb.Context, repo: str, files: list[str]) -> Report:
    """Background tests, short foreground work beside them, a durable report."""
    tests = ctx.start(bb.shell("make test", cwd=repo, check=False), key="tests", timeout=3600)
    async with asyncio.TaskGroup() as tg:
        found = [tg.create_task(ctx.run(lint(f), key=f"lint/{f}")) for f in files]
    if not tests.done():
        ctx.report(label=f"tests at {tests.progress.percent}")
    out = await tests
    return Report(out.exit_code, [t.result() for t in found])


@bb.process("review")
async def review(ctx: bb.Context, diff: str) -> str:
    """Fan-out, quorum on a verdict, losers cancelled."""
    harnesses = ("claude-code", "codex", "gemini-cli")
    hs = [ctx.start(bb.agent(h, prompt=ask(diff), output=Verdict), key=f"review/{h}") for h in harnesses]
    try:
        won = await bb.quorum(hs, k=2, accept=lambda o: o.ok and o.value.approve)
    except bb.QuorumNotReached as e:
        return f"rejected: {len(e.outcomes)}"
    return "approved by " + ", ".join(o.key for o in won)


@bb.process("poll")
async def poll(ctx: bb.Context, prompt: str, every: float = 60) -> str:
    """A long poll over a background effect."""
    h = ctx.start(bb.agent("codex", prompt=prompt), key="long")
    async for progress in h.updates(every=every):
        ctx.report(percent=progress.percent, label=progress.step)
    return (await h).text


@bb.process("deploy")
async def deploy(ctx: bb.Context, tag: str, hour: float = 3600) -> bool:
    """An approval with reminders."""
    ask = ctx.start(bb.approval(f"Deploy {tag}?", choices=["yes", "no"], assignees=["ops"]), key="approve")
    while True:
        try:
            async with asyncio.timeout(hour):
                return (await ask).choice == "yes"
        except TimeoutError:
            await ctx.run(bb.function("notify.remind", ask.effect_id))


@bb.process("map")
async def over_files(ctx: bb.Context, files: list[str], harness: str = "codex") -> dict[str, str]:
    """Hundreds of files, eight at a time."""
    outs = await bb.best_effort(
        ctx.start(
            bb.agent(harness, prompt=p(f)),
            key=f"fix/{f}",
            group=bb.group("fix", max_concurrency=8),
            retry=bb.Retry(3, initial=5),
        )
        for f in files
    )
    return {o.key: o.error.reason if o.error else o.value.text for o in outs}


@bb.process("supervisor")
async def supervise(ctx: bb.Context, spec: Spec, sessions: dict[str, bb.Session]) -> None:
    """Restarts failed children and carries their sessions on."""

    async def keep(name: str) -> Any:  # noqa: RET503 - itertools.count never ends
        for n in itertools.count(1):
            try:
                return await ctx.run(bb.run("worker", name=name, session=sessions.get(name)), key=f"{name}/{n}")
            except bb.EffectFailed as e:
                if session := e.session or sessions.get(name):
                    sessions[name] = session
                await asyncio.sleep(min(2**n, 300))

    async with asyncio.TaskGroup() as tg:
        for n in spec.names:
            tg.create_task(keep(n), name=n)
        async for name in ctx.signals("scale"):
            if not name:
                break
            tg.create_task(keep(name), name=name)


@bb.process("worker")
async def worker(ctx: bb.Context, name: str, session: bb.Session | None = None) -> str:
    """The supervisor's child: one turn of an agent."""
    return (await ctx.run(bb.agent("codex", prompt=task(name, session)), key="turn", continue_from=session)).text
