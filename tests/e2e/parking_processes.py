"""Processes whose agents are refused by their provider; the agents are those of `tests/support/scripted_agent.py`."""

import asyncio
import json
from typing import Any

import backburner as bb

_REFUSED = {"reason": "QUOTA_EXHAUSTED", "message": "quota spent", "untouched": True}


@bb.process("parking.waits")
async def waits(ctx: bb.Context, gate: str, reset_s: float) -> list[Any]:
    """Looks at an agent in the background until it is parked, and waits for it then."""
    refused = _REFUSED | {"retry_after_s": reset_s, "account": "openai:test"}
    script = {"fail": refused, "fail_while": gate, "text": "went"}
    handle = ctx.start(bb.agent("codex", prompt=f"go {json.dumps(script)}"), key="it")
    while handle.status != "PARKED":  # noqa: ASYNC110 - polling is what is shown
        await asyncio.sleep(0.2)
    answer = await handle
    return [handle.status, answer.text]


@bb.process("parking.other")
async def other(ctx: bb.Context, harness: str) -> str:
    return (await ctx.run(bb.agent(harness, prompt="other"), key="it")).text


@bb.process("parking.chain")
async def chain(ctx: bb.Context) -> list[Any]:
    """An agent whose first harness has begun a session, and is refused: the second goes on."""
    script = {"fail": _REFUSED | {"retry_after_s": 3600}, "as": {"claude-code": {"fail": None}}}
    answer = await ctx.run(bb.agent("gemini-cli", prompt=json.dumps(script)), key="it", fallbacks=["claude-code"])
    assert answer.session is not None
    return [answer.text[:6], answer.session.harness, answer.session_lost]
