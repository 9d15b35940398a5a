"""OpenAI Responses."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from .dialect import Frame, Json, Reply, last_question, last_turn
from .faults import Fault, Refusal, by_openai

_STOPS: Final = {"refusal": "content_filter", "length": "max_output_tokens"}


class Responses:
    """`POST .../responses`."""

    name = "responses"

    def tools(self, body: Json) -> dict[str, Json]:
        """Functions, those of a namespace as `namespace.name`, and tools without a schema, which take text."""
        found: dict[str, Json] = {}
        for tool in body.get("tools") or []:
            within = tool.get("type") == "namespace"
            for one in tool.get("tools", []) if within else [tool]:
                name = one.get("name") or one.get("type")
                found[f"{tool.get('name')}.{name}" if within else name] = one.get("parameters") or {}
        return found

    def turn(self, body: Json) -> int:
        """Results are items whose type ends so."""
        return last_turn(
            _input(body),
            lambda item: str(item.get("type", "")).endswith("_output"),
            lambda item: item.get("role") == "user",
        )

    def question(self, body: Json) -> str:
        """By its role."""
        return last_question(_input(body), lambda item: item.get("role") == "user")

    def session(self, body: Json, headers: Mapping[str, str]) -> str:
        """Where clients put it for the provider's cache."""
        return str(body.get("prompt_cache_key") or headers.get("session_id") or "")

    def stream(self, reply: Reply, body: Json) -> Iterator[Frame]:
        """Each item is begun, told in deltas and ended, numbered through."""
        number = itertools.count()
        for kind, fields in _events(reply, self.whole(reply)):
            data = {"type": kind, "sequence_number": next(number), **fields}
            end = kind in {"response.completed", "response.incomplete"}
            yield Frame(data, kind, delta=kind == "response.output_text.delta", end=end)

    def whole(self, reply: Reply) -> Json:
        """The response that the last event holds."""
        usage = {
            "input_tokens": reply.usage.input,
            "input_tokens_details": {"cached_tokens": reply.usage.cached},
            "output_tokens": reply.usage.output,
            "output_tokens_details": {"reasoning_tokens": reply.usage.reasoning},
            "total_tokens": reply.usage.input + reply.usage.output,
        }
        done = {**_begun(reply), "status": "completed", "output": _items(reply), "usage": usage}
        if reply.stop:
            done |= {"status": "incomplete", "incomplete_details": {"reason": _STOPS[reply.stop]}}
        return done

    def refusal(self, fault: Fault) -> Refusal:
        """The provider's words."""
        return by_openai(fault)


def _input(body: Json) -> list[Json]:
    items = body.get("input")
    return items if isinstance(items, list) else []


def _begun(reply: Reply) -> Json:
    return {
        "id": f"resp_{reply.id}", "object": "response", "created_at": int(time.time()), "model": reply.model,
        "status": "in_progress", "output": [], "error": None, "incomplete_details": None,
        "parallel_tool_calls": False, "tool_choice": "auto", "tools": [], "metadata": {},
    }  # fmt: skip


def _items(reply: Reply) -> list[Json]:
    items: list[Json] = []
    if reply.thinking:
        summary = [{"type": "summary_text", "text": reply.thinking}]
        items.append({"type": "reasoning", "id": f"rs_{reply.id}", "summary": summary})
    if reply.text is not None:
        content = [{"type": "output_text", "text": reply.text, "annotations": []}]
        head = {"type": "message", "id": f"msg_{reply.id}", "role": "assistant", "status": "completed"}
        items.append({**head, "content": content})
    if reply.call:
        namespace, _, name = reply.call.name.rpartition(".")
        call = {"call_id": f"call_{reply.id}", "name": name, **({"namespace": namespace} if namespace else {})}
        call["arguments"] = json.dumps(dict(reply.call.arguments))
        items.append({"type": "function_call", "id": f"fc_{reply.id}", **call, "status": "completed"})
    return items


def _events(reply: Reply, done: Json) -> Iterator[tuple[str, Json]]:
    yield "response.created", {"response": _begun(reply)}
    for index, item in enumerate(done["output"]):
        where = {"item_id": item["id"], "output_index": index}
        empty: dict[str, Any] = {"message": {"content": []}, "function_call": {"arguments": ""}}
        begun = {**item, "status": "in_progress", **empty.get(item["type"], {"summary": []})}
        yield "response.output_item.added", {"output_index": index, "item": begun}
        if item["type"] == "message":
            yield from _text(reply, where, item["content"][0])
        elif item["type"] == "function_call":
            yield "response.function_call_arguments.delta", {**where, "delta": item["arguments"]}
            yield "response.function_call_arguments.done", {**where, "arguments": item["arguments"]}
        yield "response.output_item.done", {"output_index": index, "item": item}
    yield f"response.{done['status']}", {"response": done}


def _text(reply: Reply, where: Json, part: Json) -> Iterator[tuple[str, Json]]:
    where = {**where, "content_index": 0}
    yield "response.content_part.added", {**where, "part": {**part, "text": ""}}
    for piece in reply.pieces:
        yield "response.output_text.delta", {**where, "delta": piece}
    yield "response.output_text.done", {**where, "text": part["text"]}
    yield "response.content_part.done", {**where, "part": part}
