"""One definition serves psql, the SQL functions and every client: the stored JSON is the data message."""

import datetime as dt
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor

from backburner.journal.v1 import journal_pb2 as pb
from scheduler_service.api.events import DATA_FIELDS, journal_event
from scheduler_service.replay.events import Event

TYPES = sorted(DATA_FIELDS)
NOW = dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC)
WELL_KNOWN = {
    "google.protobuf.Timestamp": "2026-01-02T03:04:05.678Z",
    "google.protobuf.Duration": "3.500s",
    "google.protobuf.Struct": {"a": [1, None, {"b": True}]},
    "google.protobuf.Value": {"any": "thing"},
    "google.protobuf.ListValue": [1, "x"],
}


def example(descriptor: Any, depth: int = 0) -> dict[str, Any]:
    """Stored JSON with every field set once."""
    return {
        field.name: value
        for field in descriptor.fields
        if depth < 6 and (not field.containing_oneof or field.containing_oneof.fields[0] is field)
        for value in [value_of(field, depth)]
    }


def value_of(field: Any, depth: int) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {"k": "v"}
    single = scalar_of(field, depth)
    return [single] if field.is_repeated else single


def scalar_of(field: Any, depth: int) -> Any:
    if field.message_type is not None:
        known = WELL_KNOWN.get(field.message_type.full_name)
        return example(field.message_type, depth + 1) if known is None else known
    if field.enum_type is not None:
        return field.enum_type.values[1].name
    return {
        FieldDescriptor.CPPTYPE_STRING: "text",
        FieldDescriptor.CPPTYPE_BOOL: True,
        FieldDescriptor.CPPTYPE_DOUBLE: 1.5,
        FieldDescriptor.CPPTYPE_INT32: 7,
    }[field.cpp_type]


def row(kind: str, data: dict[str, Any]) -> Event:
    return Event(3, kind, NOW, 2, "e" if kind.startswith("EFFECT") else "", "k", 1, "scheduler/a", data)


def test_every_event_type_has_a_data_message_of_its_own() -> None:
    fields = [field.name for field in pb.JournalEvent.DESCRIPTOR.oneofs_by_name["data"].fields]
    assert sorted(DATA_FIELDS.values()) == sorted(fields)
    assert len(DATA_FIELDS) == len(pb.EventType.values()) - 1


@pytest.mark.parametrize("kind", TYPES)
def test_stored_data_round_trips(kind: str) -> None:
    field = DATA_FIELDS[kind]
    stored = example(pb.JournalEvent.DESCRIPTOR.fields_by_name[field].message_type)
    event = journal_event(row(kind, stored))
    assert event.type == pb.EventType.Value(f"EVENT_TYPE_{kind}")
    assert event.WhichOneof("data") == field
    back = json_format.MessageToDict(getattr(event, field), preserving_proto_field_name=True)
    assert back == stored
    assert (event.seq, event.cause, event.attempt, event.actor) == (3, 2, 1, "scheduler/a")
    assert event.recorded_at.ToDatetime(tzinfo=dt.UTC) == NOW


@pytest.mark.parametrize("kind", TYPES)
def test_no_data_message_has_a_64_bit_integer(kind: str) -> None:
    wide = {FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64}

    def check(descriptor: Any, seen: frozenset[str]) -> None:
        if descriptor.full_name in seen or descriptor.full_name.startswith("google.protobuf."):
            return
        for field in descriptor.fields:
            assert field.cpp_type not in wide, field.full_name
            if field.message_type is not None:
                check(field.message_type, seen | {descriptor.full_name})

    check(pb.JournalEvent.DESCRIPTOR.fields_by_name[DATA_FIELDS[kind]].message_type, frozenset())


def test_what_a_newer_release_wrote_is_skipped() -> None:
    event = journal_event(row("EFFECT_RESOLVED", {"state": "EFFECT_STATE_NEW", "novel": 1, "death": "DEATH_PROVEN"}))
    assert event.effect_resolved.state == pb.EFFECT_STATE_UNSPECIFIED
    assert event.effect_resolved.death == pb.DEATH_PROVEN
    assert journal_event(row("SOMETHING_NEW", {"a": 1})).type == pb.EVENT_TYPE_UNSPECIFIED


def test_empty_data_is_present() -> None:
    assert journal_event(row("RUN_CLOSING", {})).HasField("run_closing")
