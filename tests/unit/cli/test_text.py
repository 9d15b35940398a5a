import json

import pytest
from google.protobuf import json_format, struct_pb2

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "0ms"), (0.34, "340ms"), (4.21, "4.2s"), (187, "3m 07s"), (7500, "2h 05m"), (277_200, "3d 05h")],
)
def test_spans(seconds: float, shown: str) -> None:
    assert text.span(seconds) == shown


def test_states_lose_their_prefix_and_those_of_newer_releases_keep_their_number() -> None:
    assert text.run_state(journal.RUN_STATE_PROCESS_ERROR) == "PROCESS_ERROR"
    assert text.effect_state(journal.EFFECT_STATE_TIMED_OUT) == "TIMED_OUT"
    assert text.run_state(99) == "99"


def test_json_lines_have_proto_field_names_on_one_line() -> None:
    line = text.json_line(pb.Run(run_id="r", head_seq=3, state=journal.RUN_STATE_RUNNING))
    assert "\n" not in line
    assert json.loads(line) == {"run_id": "r", "head_seq": "3", "state": "RUN_STATE_RUNNING"}


def test_payloads_keep_integers() -> None:
    value = json_format.ParseDict({"n": 3, "f": 0.5, "l": [1, None, True]}, struct_pb2.Value())
    shown = text.payload(journal.Payload(value=value))
    assert json.dumps(shown, sort_keys=True) == '{"f": 0.5, "l": [1, null, true], "n": 3}'


def test_a_blob_is_shown_as_one() -> None:
    assert text.payload(journal.Payload(blob=journal.BlobRef(digest="ab"))) == {"blob": {"digest": "ab"}}


def test_no_payload_is_none() -> None:
    assert text.payload(journal.Payload()) is None


def test_long_texts_are_cut_with_a_mark() -> None:
    assert text.one_line("a\n b  c", 10) == "a b c"
    assert text.one_line("abcdef", 4) == "abc…"
