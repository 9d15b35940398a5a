"""Anthropic Messages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Final

from .dialect import Frame, Json, Reply, last_question, last_turn
from .faults import Fault, Refusal, by_anthropic

_STOPS: Final = {"refusal": "refusal", "length": "max_tokens"}
_SESSION: Final = re.compile(r'session(?:_id)?["_:\s]+([0-9a-f-]{36})')


class Anthropic:
    """`POST .../messages`."""

    name = "anthropic"

    def tools(self, body: Json) -> dict[str, Json]:
        """By name."""
        return {tool["name"]: tool.get("input_schema") or {} for tool in body.get("tools") or []}

    def turn(self, body: Json) -> int:
        """Results come in messages of the user."""
        messages = [message for message in body.get("messages", []) if message.get("role") == "user"]
        return last_turn(messages, _is_result, lambda _: True)

    def question(self, body: Json) -> str:
        """A message of results is none, whatever else is in it."""
        return last_question(body.get("messages", []), lambda one: one.get("role") == "user" and not _is_result(one))

    def session(self, body: Json, headers: Mapping[str, str]) -> str:
        """Claude Code names it within the id of the user."""
        found = _SESSION.search(str((body.get("metadata") or {}).get("user_id", "")))
        return found.group(1) if found else ""

    def stream(self, reply: Reply, body: Json) -> Iterator[Frame]:
        """Each block is begun, told in deltas, and ended."""
        message = self.whole(reply)
        begun = {**message, "content": [], "stop_reason": None, "usage": {**message["usage"], "output_tokens": 1}}
        yield _frame("message_start", message=begun)
        for index, block in enumerate(message["content"]):
            yield _frame("content_block_start", index=index, content_block=_empty(block))
            for delta in _deltas(block, reply):
                yield _frame("content_block_delta", index=index, delta=delta)
            yield _frame("content_block_stop", index=index)
        ending = {"stop_reason": message["stop_reason"], "stop_sequence": None}
        yield _frame("message_delta", delta=ending, usage=message["usage"])
        yield _frame("message_stop")

    def whole(self, reply: Reply) -> Json:
        """What was read from the cache is not in `input_tokens`."""
        blocks: list[Json] = []
        if reply.thinking:
            blocks.append({"type": "thinking", "thinking": reply.thinking, "signature": "scripted"})
        if reply.text is not None:
            blocks.append({"type": "text", "text": reply.text})
        if reply.call:
            use = {"id": f"toolu_{reply.id}", "name": reply.call.name, "input": dict(reply.call.arguments)}
            blocks.append({"type": "tool_use", **use})
        return {
            "id": f"msg_{reply.id}", "type": "message", "role": "assistant", "model": reply.model, "content": blocks,
            "stop_reason": _STOPS.get(reply.stop, "tool_use" if reply.call else "end_turn"), "stop_sequence": None,
            "usage": {
                "input_tokens": reply.usage.input - reply.usage.cached,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": reply.usage.cached,
                "output_tokens": reply.usage.output,
            },
        }  # fmt: skip

    def refusal(self, fault: Fault) -> Refusal:
        """Its words."""
        return by_anthropic(fault)


def _is_result(message: Json) -> bool:
    content = message["content"]
    return isinstance(content, list) and any(block.get("type") == "tool_result" for block in content)


def _frame(kind: str, **fields: object) -> Frame:
    return Frame({"type": kind, **fields}, kind, delta=kind == "content_block_delta", end=kind == "message_delta")


def _empty(block: Json) -> Json:
    empty: dict[str, Json] = {
        "thinking": {"thinking": "", "signature": ""}, "text": {"text": ""}, "tool_use": {"input": {}},
    }  # fmt: skip
    return {**block, **empty[block["type"]]}


def _deltas(block: Json, reply: Reply) -> list[Json]:
    if block["type"] == "tool_use":
        return [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]
    if block["type"] == "thinking":
        return [
            {"type": "thinking_delta", "thinking": block["thinking"]},
            {"type": "signature_delta", "signature": block["signature"]},
        ]
    return [{"type": "text_delta", "text": piece} for piece in reply.pieces]
