"""Keeps answers below what clients accept: pages end early, and a value too large for one message goes by reference."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from backburner.journal.v1 import journal_pb2
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
    """The message itself; its largest values are replaced by references while it is too large to be sent."""
    if message.ByteSize() > bytes_max:
        for payload in sorted(_payloads(message), key=lambda item: item.ByteSize(), reverse=True):
            _refer(payload)
            if message.ByteSize() <= bytes_max:
                break
    return message


def _payloads(message: Message) -> Iterator[journal_pb2.Payload]:
    for _field, value in message.ListFields():
        if isinstance(value, journal_pb2.Payload):
            if value.HasField("value"):
                yield value
        elif isinstance(value, Message) and value.DESCRIPTOR.file.package.startswith("backburner."):
            yield from _payloads(value)


def _refer(payload: journal_pb2.Payload) -> None:
    text: Any = json_format.MessageToJson(payload.value, indent=None, sort_keys=True)
    content = text.encode()
    payload.blob.CopyFrom(
        journal_pb2.BlobRef(
            digest=hashlib.sha256(content).hexdigest(), size_bytes=len(content), media_type="application/json"
        )
    )
