"""Transcripts drawn for people: every event once, whatever the pieces, and what is missing is said."""

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from scheduler_service.cli.pretty import Pretty

SESSION: list[dict[str, Any]] = [
    {"t": 0.1, "type": "session", "harness": "codex", "model": "gpt-x", "session_id": "s-1", "resumed": True},
    {"t": 0.2, "type": "prompt", "text": "\n".join(f"line {n}" for n in range(30))},
    {"t": 1.0, "type": "turn", "turn": 1, "turns_max": 20},
    {"t": 2.0, "type": "thinking", "text": "what now"},
    {"t": 3.0, "type": "text", "text": "I run the \x1b[31mtests\x1b[0m."},
    {"t": 65.0, "type": "tool", "name": "Bash", "input": {"command": ["pytest", "-q", "a b"], "timeout": 3}},
    {"t": 66.0, "type": "tool_result", "name": "Bash", "text": "\n".join(f"out {n}" for n in range(100)), "cut": 77},
    {"t": 67.0, "type": "tool", "name": "Odd", "id": "c1", "input": {"depth": {"x": 1}}},
    {"t": 68.0, "type": "tool_result", "id": "c1", "text": "no such thing", "error": True},
    {"t": 69.0, "type": "todos", "done": 3, "total": 7, "items": [{"text": "write it", "active": True}]},
    {"t": 70.0, "type": "usage", "input_tokens": 10_100, "output_tokens": 2_200, "cost_usd": 0.01},
    {"t": 71.0, "type": "error", "reason": "OVERLOADED", "message": "busy", "final": False, "retry_after_s": 30},
    {"t": 72.0, "type": "note", "text": "a repair turn"},
    {"t": 73.0, "type": "from a newer release", "text": "unseen"},
    {"t": 3700.0, "type": "text", "text": "All is well."},
    {"t": 3701.0, "type": "usage", "input_tokens": 12_000, "output_tokens": 2_300, "cost_usd": 0.08, "turns": 4},
    {"t": 3702.0, "type": "result", "ok": True, "text": "All is well."},
    {"t": 3703.0, "type": "exit", "code": 1},
]
DRAWN = """\
   0:00  codex · model gpt-x · session s-1 · an earlier session goes on
   0:00  > line 0
         > line 1
         > line 2
         > line 3
         > line 4
         > line 5
         > line 6
         > line 7
         > … 22 lines more
   0:01  ── turn 1 of 20
   0:02  ~ what now
   0:03  I run the tests.
   1:05  ▸ Bash  pytest -q 'a b'
   1:06  │ out 0
         │ out 1
         │ out 2
         │ … 94 lines more
         │ out 97
         │ out 98
         │ out 99
         … 77 characters are left out
   1:07  ▸ Odd  {"depth":{"x":1}}
   1:08  ✗ Odd failed
         │ no such thing
   1:09  ☐ 3/7 todos: write it
   1:11  error OVERLOADED: busy, it tries again in 30.0s
   1:12  * a repair turn
1:01:40  All is well.
1:01:42  ✓ done
1:01:43  its program exited with code 1
         used 14.3k tokens (12.0k in, 2.3k out) · $0.08 · 4 turns
"""


def lines(events: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def drawn(*pieces: bytes | int) -> str:
    """What is drawn of pieces; a number is a gap of so many bytes."""
    file = io.StringIO()
    pretty = Pretty(Console(file=file, width=40, highlight=False))
    for piece in pieces:
        pretty.gap(piece) if isinstance(piece, int) else pretty.feed(piece)
    pretty.close()
    return file.getvalue()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, len(lines(SESSION)) - 1), max_size=9).map(sorted))
def test_a_session_is_drawn_alike_whatever_the_pieces(cuts: list[int]) -> None:
    whole = lines(SESSION)
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert drawn(*pieces) == DRAWN


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_where_the_middle_is_gone_every_whole_event_is_there_and_halves_are_counted(data: st.DataObject) -> None:
    whole = lines([{"type": "text", "text": f"word-{n}-"} for n in range(20)])
    end = data.draw(st.integers(0, len(whole)), label="end of the head")
    begin = data.draw(st.integers(end, len(whole)), label="begin of the tail")
    said = drawn(whole[:end], begin - end, whole[begin:])
    kept = [line for part in (whole[:end], whole[begin:]) for line in part.split(b"\n") if line]
    ok = [line for line in kept if line.startswith(b"{") and line.endswith(b"}")]
    assert [f"word-{n}-" in said for n in range(20)] == [f'"word-{n}-"'.encode() in b"".join(ok) for n in range(20)]
    assert f"[{begin - end} bytes of the transcript were not kept]" in said
    halves = len(kept) - len(ok)
    assert ("left out" in said) == bool(halves)
    assert halves != 2 or "[2 lines, cut in half, are left out]" in said


def test_how_it_failed_is_said_and_another_try_only_where_there_is_one() -> None:
    events: list[dict[str, Any]] = [
        {"type": "error", "message": "odd"},
        {"type": "tool", "name": "TaskCreate", "input": {"subject": "write it", "description": "at length"}},
        {"type": "result", "ok": False, "reason": "RATE_LIMITED", "message": "429", "text": "half"},
    ]
    said = [line.strip() for line in drawn(lines(events)).splitlines()]
    assert said == ["error odd", "▸ TaskCreate  write it", "✗ RATE_LIMITED: 429", "half"]


def test_a_cost_that_is_not_known_is_no_0_dollars() -> None:
    said = drawn(lines([{"type": "usage", "input_tokens": 10, "cost_usd": 0.5}, {"type": "usage", "output_tokens": 5}]))
    assert "15 tokens (10 in, 5 out) · cost unknown" in said
    assert "$0.00" in drawn(lines([{"type": "usage", "input_tokens": 10, "cost_usd": 0}]))


NOISE = st.text("ab\x1b[3m\r\n\x07", max_size=20)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | NOISE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
KINDS = sorted({event["type"] for event in SESSION})
NAMES = sorted({name for event in SESSION for name in event} - {"type"})


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(NAMES), anything, max_size=9), NOISE)
def test_whatever_the_fields_hold_it_is_drawn_and_harms_no_terminal(
    kind: str, fields: dict[str, Any], noise: str
) -> None:
    events = [{**fields, "type": kind}, {**dict.fromkeys(NAMES, noise), "type": kind}]
    assert "\x1b" not in drawn(lines(events))


@pytest.mark.parametrize("line", [b"no JSON", b"[1]", b'{"type": 3}', b"[" * 100_000, b'"\xff"'], ids=lambda b: b[:9])
def test_what_is_no_event_is_left_out_and_said(line: bytes) -> None:
    said = drawn(line + b"\n" + lines([{"type": "text", "text": "hello"}]))
    assert "hello" in said
    assert "[1 line, cut in half, is left out]" in said
