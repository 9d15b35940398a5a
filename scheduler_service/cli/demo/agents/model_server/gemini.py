"""Gemini: generateContent and streamGenerateContent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from .dialect import Frame, Json, Reply, last_question, last_turn
from .faults import Fault, Refusal, by_gemini

_STOPS: Final = {"refusal": "SAFETY", "length": "MAX_TOKENS"}


class Gemini:
    """`POST .../models/MODEL:generateContent`."""

    name = "gemini"

    def tools(self, body: Json) -> dict[str, Json]:
        """Function declarations."""
        declared = [one for tool in body.get("tools") or [] for one in tool.get("functionDeclarations", [])]
        return {one["name"]: one.get("parametersJsonSchema") or one.get("parameters") or {} for one in declared}

    def turn(self, body: Json) -> int:
        """Results are parts of messages that are not the model's."""
        messages = [message for message in body.get("contents", []) if message.get("role") != "model"]
        return last_turn(messages, _is_result, lambda _: True)

    def question(self, body: Json) -> str:
        """What neither the model says nor a tool."""
        return last_question(body.get("contents", []), lambda one: one.get("role") != "model" and not _is_result(one))

    def session(self, body: Json, headers: Mapping[str, str]) -> str:
        """It has no place for one."""
        return str(body.get("session_id") or "")

    def stream(self, reply: Reply, body: Json) -> Iterator[Frame]:
        """Usage comes with the last part."""
        parts = _parts(reply)
        yield Frame(_candidate(reply, [{"text": ""}]))
        for part in parts[:-1]:
            yield Frame(_candidate(reply, [part]), delta=True)
        yield Frame({**_candidate(reply, parts[-1:], _finish(reply)), "usageMetadata": _usage(reply)}, end=True)

    def whole(self, reply: Reply) -> Json:
        """All parts at once."""
        return {**_candidate(reply, _parts(reply), _finish(reply)), "usageMetadata": _usage(reply)}

    def refusal(self, fault: Fault) -> Refusal:
        """The provider's words."""
        return by_gemini(fault)


def _is_result(message: Json) -> bool:
    return any("functionResponse" in part for part in message.get("parts", []))


def _parts(reply: Reply) -> list[Json]:
    parts: list[Json] = []
    if reply.thinking:
        parts.append({"text": reply.thinking, "thought": True})
    if reply.text is not None:
        parts += [{"text": piece} for piece in reply.pieces]
    if reply.call:
        parts.append({"functionCall": {"name": reply.call.name, "args": dict(reply.call.arguments)}})
    return parts


def _finish(reply: Reply) -> str:
    return _STOPS.get(reply.stop, "STOP")


def _candidate(reply: Reply, parts: list[Json], finish: str = "") -> Json:
    candidate: Json = {"content": {"role": "model", "parts": parts}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "modelVersion": reply.model, "responseId": reply.id}


def _usage(reply: Reply) -> Json:
    usage = reply.usage
    return {
        "promptTokenCount": usage.input,
        "candidatesTokenCount": usage.output - usage.reasoning,
        "thoughtsTokenCount": usage.reasoning,
        "totalTokenCount": usage.input + usage.output,
        "cachedContentTokenCount": usage.cached,
    }
