"""The transcript: whatever a harness writes becomes one line within bounds, and it never fails an attempt."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor_service.output import STDOUT, TRANSCRIPT, Capture
from executor_service.transcript import LINE_BYTES_MAX, TOOL_TEXT_MAX, WORDS_MAX, Transcript, line_of
from tests.unit.executor.fakes import invocation

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=9) | st.dictionaries(st.text(st.characters()) | st.integers(), inner, max_size=9)
    ),
    max_leaves=20,
)


def texts(value: Any) -> Iterator[str]:
    """Every text in it, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from (name, *texts(item))
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(st.characters()) | st.sampled_from(["type", "text", "t", "cut"]), anything, max_size=9))
def test_whatever_is_written_becomes_one_line_of_json_that_can_be_stored(event: dict[str, Any]) -> None:
    line = line_of(event, 1.23456)
    assert line.index(b"\n") == len(line) - 1
    read = json.loads(line)
    assert (read["t"], isinstance(read["type"], str)) == (1.235, True)
    assert not [text for text in texts(read) if "\x00" in text or any("\ud800" <= c <= "\udfff" for c in text)]


@pytest.mark.parametrize("item", ["x" * 3_000, {"y": "é" * 3_000}, ["z" * 3_000] * 9], ids=["text", "object", "list"])
def test_a_line_is_bounded_whatever_is_in_it(item: Any) -> None:
    line = line_of({"type": "tool", "input": {str(n): item for n in range(100)}}, 0.0)
    assert len(line) <= LINE_BYTES_MAX + 1
    assert json.loads(line)["cut"] > 1_000


def test_of_a_tools_answer_both_ends_are_kept_and_the_rest_is_counted() -> None:
    read = json.loads(line_of({"type": "tool_result", "text": "a" * 5_000 + "b" * 5_000}, 0.0))
    assert read["text"][:9] + read["text"][-9:] == "a" * 9 + "b" * 9
    assert read["cut"] == 10_000 - TOOL_TEXT_MAX
    words = json.loads(line_of({"type": "text", "text": "w" * (WORDS_MAX + 7)}, 0.0))
    assert (len(words["text"]), words["cut"]) == (WORDS_MAX, 7)


def test_what_is_not_known_is_left_out() -> None:
    assert json.loads(line_of({"type": "usage", "cost_usd": None, "turns": 0}, 0.0)) == {
        "t": 0.0, "type": "usage", "turns": 0,
    }  # fmt: skip


def test_it_is_a_stream_of_its_own_which_is_not_shown_live() -> None:
    attempt = invocation("e")
    transcript = Transcript(attempt, bytes_max=1_000)
    attempt.output(Capture(STDOUT, 100), b"raw")
    for n in range(100):
        transcript.write({"type": "turn", "turn": n})
    kept = attempt.captures[TRANSCRIPT]
    assert kept.total > 2_000
    assert kept.omitted == kept.total - 1_000
    shown = attempt.log.after(0, include_output=True, limit=1_000)
    assert [frame.message().output.data for frame in shown] == [b"raw"]
    assert (attempt.snapshot().stdout_bytes, attempt.snapshot().stderr_bytes) == (3, 0)
