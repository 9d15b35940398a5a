"""Processes of the tests that take executors with sessions away."""

import json
from typing import Any

import backburner as bb

_RETRY = bb.Retry(max_attempts=3, initial=0.05, backoff=1.0)


@bb.process("sessions.works")
async def works(ctx: bb.Context, script: dict[str, Any]) -> str:
    """One agent, tried three times."""
    answer = await ctx.run(bb.agent("codex", prompt="work " + json.dumps(script)), key="work", retry=_RETRY)
    return answer.text[:14]


@bb.process("sessions.goes-on")
async def goes_on(ctx: bb.Context, session: bb.Session, lost: str = "fresh") -> str:
    """An agent that goes on with a session of another run."""
    turn = bb.agent("codex", prompt="more")
    try:
        answer = await ctx.run(turn, key="work", continue_from=session, if_session_lost=lost)  # type: ignore[arg-type]
    except bb.EffectFailed as error:
        return error.reason
    return answer.text
