"""Processes of the tests of budgets: children that say what they have consumed, step by step."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import backburner as bb
from scheduler_service.authoring.definitions import AnyProcess


def spender(usages: Sequence[Mapping[str, Any]], *, hold: str = "", fail: bool = False) -> bb.Effect[Any]:
    """A child that reports these usages one after the other, and then waits while the file `hold` exists."""
    lines = [f"echo '{json.dumps({'usage': usage})}' >&$BACKBURNER_PROGRESS_FD" for usage in usages]
    lines += [f"while test -e {hold}; do sleep 0.05; done"] if hold else []
    return bb.shell("; ".join([*lines, "exit 3" if fail else "exit 0"]), label="spender")


@bb.process("budgets/one")
async def one(ctx: bb.Context, child: dict[str, Any], own: dict[str, Any], attempts: int = 1) -> list[Any]:
    """One child; how it ended, and what it had consumed by then."""
    options: dict[str, Any] = {"budget": bb.budget(**own)} if own else {}
    again = bb.Retry(max_attempts=attempts, initial=0.01, backoff=1.0)
    try:
        await ctx.run(spender(**child), key="it", retry=again, kill_grace=0.5, **options)
    except bb.EffectFailed as error:
        return [error.reason, error.usage.input_tokens if error.usage else None, str(error)]
    return ["succeeded"]


@bb.process("budgets/many")
async def many(ctx: bb.Context, tokens: list[float], hold: str) -> list[str]:
    """Children one after the other, of which the second stays; the reason of each that failed."""
    found = []
    for n, each in enumerate(tokens):
        child = spender([{"input_tokens": each}], hold=hold if n == 1 else "")
        handle: bb.EffectHandle[Any] = ctx.start(child, key=f"it/{n}", kill_grace=0.5)
        [outcome] = await bb.best_effort([handle])
        found.append(outcome.error.reason if outcome.error else "")
    return found


@bb.process("budgets/agent")
async def agent(ctx: bb.Context, prompt: str, own: dict[str, Any]) -> str:
    """One agent."""
    await ctx.run(bb.agent("codex", prompt=prompt), key="it", kill_grace=0.5, budget=bb.budget(**own))
    return "succeeded"


@bb.process("budgets/workspace")
async def workspace(ctx: bb.Context, source: str, prompt: str, own: dict[str, Any]) -> list[str]:
    """One agent in a worktree: how it ended, and its workspace."""
    work = bb.agent("codex", prompt=prompt, workspace=bb.worktree(source))
    try:
        done = await ctx.run(work, key="it", kill_grace=0.5, budget=bb.budget(**own))
    except bb.EffectFailed as error:
        left = error.workspace
        return [error.reason, left.path, left.patch] if left else [error.reason]
    left = done.workspace
    return ["succeeded", left.branch, left.patch] if left else ["succeeded"]


_NAMES = ("budgets/one", "budgets/many", "budgets/agent", "budgets/workspace")
ALL: Mapping[str, AnyProcess] = {name: bb.processes()[name] for name in _NAMES}
