"""Keeps answers below what clients accept: pages end early, and single answers leave out what does not fit.

What a client may not have left out, a row of the journal, is small enough from the start (`authoring/bounds.py`).
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from google.protobuf.message import Message

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api import limits

M = TypeVar("M", bound=Message)

# Room for the envelope around an item: tags, tokens, head positions.
_ENVELOPE_BYTES = 4096


def page_of(messages: Sequence[M], bytes_max: int = limits.ANSWER_BYTES_MAX) -> Sequence[M]:
    """The first messages that fit together; always one, made to fit."""
    total = _ENVELOPE_BYTES
    for count, message in enumerate(messages):
        total += fitted(message).ByteSize() + 8
        if total > bytes_max and count > 0:
            return messages[:count]
    return messages


def fitted(message: M, bytes_max: int = limits.ANSWER_BYTES_MAX - _ENVELOPE_BYTES) -> M:
    """The message itself; a run without its input, and an effect without its spec, when it is too large to be sent."""
    if message.ByteSize() > bytes_max:
        if isinstance(message, pb.Run):
            message.ClearField("input")
        elif isinstance(message, pb.Effect):
            message.ClearField("spec")
    return message


#: What effects are answered without when they do not fit together, the first thing first.
_LEFT_OUT: Final[Sequence[Callable[[pb.Effect], None]]] = (
    lambda effect: effect.ClearField("spec"),
    lambda effect: effect.ClearField("result"),
    lambda effect: effect.error.ClearField("traceback") if effect.HasField("error") else None,
    lambda effect: effect.progress.ClearField("data") if effect.HasField("progress") else None,
    lambda effect: effect.ClearField("labels"),
    lambda effect: effect.error.ClearField("message") if effect.HasField("error") else None,
)


def within_answer(effects: Sequence[pb.Effect], bytes_max: int = limits.ANSWER_BYTES_MAX) -> list[pb.Effect]:
    """All of these effects in one answer, each without as little as possible; the last ones give way first."""
    left = bytes_max - _ENVELOPE_BYTES - sum(effect.ByteSize() + 8 for effect in effects)
    for leave_out in _LEFT_OUT:
        for effect in reversed(effects):
            if left >= 0:
                return list(effects)
            size = effect.ByteSize()
            leave_out(effect)
            left += size - effect.ByteSize()
    return list(effects)
