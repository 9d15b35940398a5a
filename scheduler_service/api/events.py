"""Journal rows as JournalEvent messages.

The stored data is the proto3 JSON of the event's data message, so that one table, type to message, is all there is.
Fields that a newer release wrote are skipped: histories outlive releases in both directions.
"""

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import Message

from backburner.journal.v1 import journal_pb2 as pb
from scheduler_service.replay.events import Event

_PREFIX: Final = "EVENT_TYPE_"

#: Type of an event, without prefix, to the field of JournalEvent that holds its data.
DATA_FIELDS: Final[Mapping[str, str]] = {
    name.removeprefix(_PREFIX): name.removeprefix(_PREFIX).lower() for name, number in pb.EventType.items() if number
}


def journal_event(row: Event) -> pb.JournalEvent:
    """The message of a row."""
    event = pb.JournalEvent(
        seq=row.seq,
        cause=row.cause,
        effect_key=row.effect_key,
        effect_id=row.effect_id,
        attempt=row.attempt,
        actor=row.actor,
    )
    event.recorded_at.FromDatetime(row.recorded_at)
    field = DATA_FIELDS.get(row.type)
    if field is not None:
        event.type = pb.EventType.Value(_PREFIX + row.type)
        data: Message = getattr(event, field)
        data.SetInParent()
        parse_into(data, row.data)
    return event


def parse_into(message: Message, stored: Mapping[str, Any]) -> None:
    """Fills a message from stored proto3 JSON."""
    json_format.ParseDict(dict(stored), message, ignore_unknown_fields=True, max_recursion_depth=250)
