"""OpenAI Chat Completions."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Final

from .dialect import Frame, Json, Reply, last_question, last_turn
from .faults import Fault, Refusal, by_openai

_STOPS: Final = {"refusal": "content_filter", "length": "length"}


class Chat:
    """`POST .../chat/completions`."""

    name = "chat"

    def tools(self, body: Json) -> dict[str, Json]:
        """Functions only."""
        functions = [tool["function"] for tool in body.get("tools") or [] if "function" in tool]
        return {function["name"]: function.get("parameters") or {} for function in functions}

    def turn(self, body: Json) -> int:
        """Results have a role of their own."""
        return last_turn(
            body.get("messages", []), lambda one: one.get("role") == "tool", lambda one: one.get("role") == "user"
        )

    def question(self, body: Json) -> str:
        """By its role."""
        return last_question(body.get("messages", []), lambda one: one.get("role") == "user")

    def session(self, body: Json, headers: Mapping[str, str]) -> str:
        """Where clients put it for the provider's cache."""
        return str(body.get("prompt_cache_key") or headers.get("x-session-affinity") or headers.get("session_id") or "")

    def stream(self, reply: Reply, body: Json) -> Iterator[Frame]:
        """Usage is told when it was asked for."""
        yield _chunk(reply, {"role": "assistant", "content": ""})
        if reply.thinking:
            yield _chunk(reply, {"reasoning_content": reply.thinking})
        for piece in reply.pieces if reply.text is not None else []:
            yield _chunk(reply, {"content": piece})
        if reply.call:
            yield _chunk(reply, {"tool_calls": [{"index": 0, **_call(reply)}]})
        told = bool((body.get("stream_options") or {}).get("include_usage"))
        yield _chunk(reply, {}, _finish(reply), end=not told)
        if told:
            yield Frame({**_head(reply, "chat.completion.chunk"), "choices": [], "usage": _usage(reply)}, end=True)
        yield Frame("[DONE]")

    def whole(self, reply: Reply) -> Json:
        """One choice."""
        message: Json = {"role": "assistant", "content": reply.text}
        if reply.call:
            message["tool_calls"] = [_call(reply)]
        choice = {"index": 0, "message": message, "finish_reason": _finish(reply)}
        return {**_head(reply, "chat.completion"), "choices": [choice], "usage": _usage(reply)}

    def refusal(self, fault: Fault) -> Refusal:
        """The provider's words."""
        return by_openai(fault)


def _head(reply: Reply, kind: str) -> Json:
    return {"id": f"chatcmpl-{reply.id}", "object": kind, "created": int(time.time()), "model": reply.model}


def _chunk(reply: Reply, delta: Json, finish: str | None = None, *, end: bool = False) -> Frame:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return Frame({**_head(reply, "chat.completion.chunk"), "choices": [choice]}, delta="content" in delta, end=end)


def _call(reply: Reply) -> Json:
    assert reply.call is not None  # noqa: S101 - for the types: asked before
    function = {"name": reply.call.name, "arguments": json.dumps(dict(reply.call.arguments))}
    return {"id": f"call_{reply.id}", "type": "function", "function": function}


def _finish(reply: Reply) -> str:
    return _STOPS.get(reply.stop, "tool_calls" if reply.call else "stop")


def _usage(reply: Reply) -> Json:
    usage = reply.usage
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }
