"""Processes whose agents have workspaces; the agents are those of `tests/support/scripted_agent.py`."""

from dataclasses import asdict
from typing import Any

import backburner as bb
from tests.e2e.agents import scripted


@bb.process("workspaces.fan-in")
async def fan_in(ctx: bb.Context, repo: str, writes: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Agents in worktrees of their own, merged; who did not succeed brings nothing."""
    found = await bb.best_effort(
        ctx.start(
            bb.agent("codex", prompt=scripted(name, write=files), workspace=bb.worktree(repo, base="main")), key=name
        )
        for name, files in sorted(writes.items())
    )
    merged = await ctx.run(bb.merge(repo, found, into="agents/landing"), key="merge")
    return {"branch": merged.branch, "items": [[item.name, item.status] for item in merged.items], "conflicts": [
        [conflict.path, conflict.kind, conflict.hunks] for item in merged.conflicts for conflict in item.conflicts
    ]}  # fmt: skip


@bb.process("workspaces.retry")
async def retry(ctx: bb.Context, repo: str) -> dict[str, Any]:
    """The first attempt fails after half of the work, the second finds that."""
    script = scripted("twice", sh="test -e half.txt && cp half.txt whole.txt || { echo h > half.txt; exit 1; }")
    handle = ctx.start(
        bb.agent("codex", prompt=script, workspace=bb.worktree(repo)), key="it", retry=bb.Retry(2, initial=0.05)
    )
    result = await handle
    assert result.workspace == handle.workspace
    assert result.workspace is not None
    return {"attempts": handle.attempts, "workspace": asdict(result.workspace)}


@bb.process("workspaces.killed")
async def killed(ctx: bb.Context, repo: str, harness: str) -> dict[str, Any]:
    """The first attempt does half of the work and goes on for ever, the second finds that half."""
    script = scripted("twice", sh="test -e half.txt && cp half.txt whole.txt || { echo h > half.txt; sleep 600; }")
    work = bb.agent(harness, prompt=script, workspace=bb.worktree(repo))
    result = await ctx.run(work, key="it", retry=bb.Retry(2, initial=0.05))
    return asdict(result.workspace) if result.workspace is not None else {}


@bb.process("workspaces.in-turn")
async def in_turn(ctx: bb.Context, directory: str, agents: int) -> list[str]:
    """Agents in one directory: each of them finds it free, does its work, and leaves it so."""
    script = "test ! -e busy && touch busy && sleep 0.1 && rm busy"
    handles = [
        ctx.start(bb.agent("codex", prompt=scripted(str(n), sh=script), workspace=bb.exclusive(directory)), key=f"a{n}")
        for n in range(agents)
    ]
    return [outcome.error.reason if outcome.error else "ok" for outcome in await bb.best_effort(handles)]


@bb.process("workspaces.waits")
async def waits(ctx: bb.Context, directory: str, hold: str) -> str:
    """One agent works in a directory for as long as a file is there, another waits for a folder in it."""
    script = f"touch begun; while test -e {hold}; do sleep 0.05; done"
    ctx.start(bb.agent("codex", prompt=scripted("1", sh=script), workspace=bb.exclusive(directory)), key="has")
    await ctx.run(bb.shell(f"until test -e {directory}/begun; do sleep 0.05; done"), key="begun")
    work = bb.agent("codex", prompt=scripted("2"), workspace=bb.exclusive(f"{directory}/inner"))
    await ctx.run(work, key="waits")
    return "ok"


@bb.process("workspaces.failed")
async def failed(ctx: bb.Context, directory: str) -> dict[str, Any]:
    """What an agent that failed has left is on the error."""
    script = scripted("fails", write={"half.txt": "h\n"}, fail={"reason": "REFUSED", "message": "no"})
    [outcome] = await bb.best_effort(
        [ctx.start(bb.agent("codex", prompt=script, workspace=bb.copy_of(directory)), key="it")]
    )
    left = outcome.error.workspace if outcome.error is not None else None
    return asdict(left) if left is not None else {}
