"""Processes with agents, as users write them; the agents are those of `tests/support/scripted_agent.py`."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import backburner as bb


@dataclass
class Verdict:
    """What a reviewer thinks."""

    approve: bool
    reasons: list[str]


def scripted(prompt: str, **script: Any) -> str:
    """A prompt that tells the scripted agent what to do."""
    return f"{prompt} {json.dumps(script, sort_keys=True)}"


@bb.process("agents.review")
async def review(ctx: bb.Context, diff: str, verdicts: dict[str, bool]) -> str:
    hs = [
        ctx.start(
            bb.agent(h, prompt=scripted(diff, value={"approve": yes, "reasons": [h]}), output=Verdict),
            key=f"review/{h}",
        )
        for h, yes in sorted(verdicts.items())
    ]
    try:
        won = await bb.quorum(hs, k=2, accept=lambda o: o.ok and o.value.approve)
    except bb.QuorumNotReached as e:
        return f"rejected: {sum(o.ok for o in e.outcomes)} answered"
    return "approved by " + ", ".join(o.value.reasons[0] for o in won)


@bb.process("agents.talk")
async def talk(ctx: bb.Context, cwd: str) -> dict[str, Any]:
    """A session that goes on: by its handle, by its value, and after a failure by the error."""
    first = ctx.start(bb.agent("codex", prompt="first", cwd=cwd), key="first")
    said = [(await first).text]
    second = await ctx.run(bb.agent("codex", prompt="second"), key="second", continue_from=first)
    said.append(second.text)
    try:
        await ctx.run(
            bb.agent("codex", prompt=scripted("third", fail={"reason": "OVERLOADED", "message": "busy"})),
            key="third",
            continue_from=second.session,
        )
    except bb.EffectFailed as error:
        said.append(error.reason)
        fourth = await ctx.run(bb.agent("codex", prompt="fourth"), key="fourth", continue_from=error.session)
        said.append(fourth.text)
        assert fourth.session is not None
        return {"said": said, "session": asdict(fourth.session), "lost": fourth.session_lost}
    return {"said": said}


@bb.process("agents.go-on")
async def go_on(ctx: bb.Context, session: bb.Session, other: bb.Session | None = None) -> dict[str, Any]:
    """A session that came as input: plain JSON, read by annotation."""
    here = await ctx.run(bb.agent("codex", prompt="here"), key="here", continue_from=session)
    gone = bb.Session(session.harness, "no-such-session", effect_id=session.effect_id)
    fresh = await ctx.run(bb.agent("codex", prompt="fresh"), key="fresh", continue_from=gone)
    try:
        await ctx.run(bb.agent("codex", prompt="no"), key="no", continue_from=gone, if_session_lost="fail")
    except bb.EffectFailed as error:
        return {
            "here": here.text,
            "session": here.session,
            "fresh": [fresh.text, fresh.session_lost],
            "no": error.reason,
        }
    return {}


@bb.process("agents.watched")
async def watched(ctx: bb.Context, harness: str, prompt: str) -> str:
    """In the background, where a watch shows more."""
    return (await ctx.start(bb.agent(harness, prompt=prompt), key="it")).text


@bb.process("agents.one")
async def one(ctx: bb.Context, harness: str, prompt: str = "do") -> str:
    return (await ctx.run(bb.agent(harness, prompt=prompt), key="it")).text


@bb.process("agents.adaptive")
async def adaptive(ctx: bb.Context, failing: list[str]) -> list[str]:
    """Three agents of a group that starts at 4; some are refused by their provider, and so is a command."""
    group = bb.group("fix", max_concurrency=4, strategy="adaptive")
    refused = {"reason": "RATE_LIMITED", "message": "too many requests"}
    handles: list[Any] = [
        ctx.start(
            bb.agent("codex", prompt=scripted(name, fail=refused if name in failing else None)), key=name, group=group
        )
        for name in ("a", "b", "c")
    ]
    said = json.dumps({"failure": refused})
    handles.append(ctx.start(bb.shell(f"echo '::backburner {said}'; exit 75"), key="shell", group=group))
    return [outcome.error.reason if outcome.error else "ok" for outcome in await bb.best_effort(handles)]


@bb.process("agents.worker")
async def worker(ctx: bb.Context, fail: bool, session: bb.Session | None = None) -> str:
    """One turn of an agent, which goes on where an earlier worker's ended."""
    refused = {"reason": "OVERLOADED", "message": "busy"}
    turn = bb.agent("codex", prompt=scripted("turn", fail=refused if fail else None, text="went on"))
    answer = await ctx.run(turn, key="turn", continue_from=session)
    assert answer.session is not None
    return answer.session.session_id


@bb.process("agents.supervisor")
async def supervisor(ctx: bb.Context) -> list[str]:
    """Starts a worker again with the session that its predecessor failed in."""
    try:
        await ctx.run(bb.run("agents.worker", fail=True), key="worker/1")
    except bb.EffectFailed as error:
        left = error.session or bb.Session()
        again = await ctx.run(bb.run("agents.worker", fail=False, session=left), key="worker/2")
        return [error.reason, left.session_id, again]
    return []
