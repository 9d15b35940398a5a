"""The line protocol: what is read, what is only counted, and that memory stays bounded."""

from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from executor_service import line_protocol
from executor_service.line_protocol import LINE_BYTES_MAX, BadReport, LineScanner, Report, clean, parse
from executor_service.outcome import Failure
from executor_service.progress import ProgressState


def scan(*chunks: bytes, prefixed: bool = True) -> tuple[list[Report], int]:
    reports: list[Report] = []
    scanner = LineScanner(reports.append, prefixed=prefixed)
    for chunk in chunks:
        scanner.feed(chunk)
    scanner.close()
    return reports, scanner.bad_lines


def test_all_fields_are_read() -> None:
    report = parse(
        b'{"percent": 40, "step": "compiling", "step_index": 2, "step_count": 5, "eta_s": 30, "data": {"b": 1.0},'
        b' "usage": {"input_tokens": 3, "cost_usd": 0.25, "turns": 2, "model": "m", "unknown": 1}, "result": [1.0]}'
    )
    assert (report.percent, report.step, report.step_index, report.step_count) == (40, "compiling", 2, 5)
    assert (report.eta_s, report.data, report.result_json) == (30, {"b": 1}, b"[1]")
    assert report.usage == {"input_tokens": 3, "cost_usd": 0.25, "turns": 2, "model": "m"}


AGENT = b'{"tool": "Bash", "step": "pytest -q", "turns": 4, "turns_max": 20, "todos": 7, "todos_done": 3}'


def test_what_an_agent_does_is_read() -> None:
    report = parse(AGENT)
    assert (report.tool, report.turns, report.turns_max, report.todos, report.todos_done) == ("Bash", 4, 20, 7, 3)
    assert report.has_progress
    state = ProgressState(None)
    state.apply(report)
    state.apply(parse(b'{"tool": "", "turns": 5}'))
    progress = state.as_proto()
    assert (progress.tool, progress.turns, progress.turns_max, progress.todos) == ("", 5, 20, 7)
    assert len(parse(b'{"tool": "%s"}' % (b"x" * 900)).tool or "") == 100


@pytest.mark.parametrize(
    ("reports", "percent"),
    [
        ([b'{"turns": 4, "turns_max": 20}'], None),
        ([b'{"todos": 0}'], None),
        ([b'{"todos": 7, "todos_done": 0}'], 0.0),
        ([b'{"todos": 7, "todos_done": 3}'], 42.9),
        ([b'{"todos": 3, "todos_done": 9}'], 100.0),
        ([b'{"percent": 5, "todos": 4, "todos_done": 2}'], 5.0),
        ([b'{"todos": 4, "todos_done": 2}', b'{"todos": 0}'], None),
    ],
    ids=str,
)
def test_a_percentage_has_a_basis_or_there_is_none(reports: list[bytes], percent: float | None) -> None:
    state = ProgressState(None)
    for report in reports:
        state.apply(parse(report))
    progress = state.as_proto()
    assert (progress.percent if progress.HasField("percent") else None) == percent


def test_a_child_may_say_why_it_fails() -> None:
    said = parse(b'{"failure": {"reason": "RATE_LIMITED", "message": "quota", "retry_after_s": 12}}').failure
    assert said == Failure("RATE_LIMITED", "quota", retry_after_s=12)
    assert parse(b'{"failure": {"reason": "OVERLOADED"}}').failure == Failure("OVERLOADED", "the child was refused")


@pytest.mark.parametrize(("given", "read"), [(-5, 0), (250, 100), (33.3, 33.3)])
def test_percent_is_clamped(given: float, read: float) -> None:
    assert parse(b'{"percent": %f}' % given).percent == pytest.approx(read)


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{", b"[]", b"3", b"null", b'{"unknown": 1}', b'{"percent": "40"}', b'{"percent": true}',
        b'{"percent": NaN}', b'{"step": 3}', b'{"step_index": 1.5}', b'{"step_index": -1}', b'{"eta_s": "1"}',
        b'{"tool": 3}', b'{"turns": -1}', b'{"turns_max": "20"}', b'{"todos": 1.5}', b'{"todos_done": true}',
        b'{"data": []}', b'{"usage": 3}', b'{"usage": {"turns": "x"}}', b'{"data": {"a": 9007199254740993}}',
        b'{"data": {"a": ' + b"[" * 200 + b"]" * 200 + b"}}", b'{"data": {"a": "' + b"x" * 20_000 + b'"}}',
        b'{"failure": "RATE_LIMITED"}', b'{"failure": {"reason": "EXECUTOR_LOST"}}', b'{"failure": {}}',
        b'{"failure": {"reason": "OVERLOADED", "retry_after_s": "soon"}}',
        b'{"failure": {"reason": "OVERLOADED", "message": 3}}',
        b"[" * 100_000, b'{"step": "\xff"}',
    ],
)  # fmt: skip
def test_garbage_is_no_report(line: bytes) -> None:
    with pytest.raises(BadReport):
        parse(line)


#: What a file's name with an undecodable byte becomes, and a NUL.
ODD = "caf\udce9\0\ud800.txt"


def test_text_of_a_program_becomes_storable() -> None:
    report = clean(Report(step=ODD, data={ODD: [ODD, {"deep": ODD}]}, usage={"model": ODD}))
    stored = "caf?\ufffd?.txt"
    assert report.step == stored
    assert report.data == {stored: [stored, {"deep": stored}]}
    assert report.usage == {"model": stored}
    state = ProgressState(None)
    state.apply(report)
    progress = json_format.MessageToDict(state.as_proto())
    assert (progress["step"], progress["data"]) == (stored, report.data)
    assert state.usage_proto().model == stored


def test_nul_of_a_child_is_replaced_in_data_too() -> None:
    assert parse(b'{"step": "a\\u0000", "data": {"a\\u0000": "b\\u0000"}}').data == {"a\ufffd": "b\ufffd"}


def test_data_of_a_program_becomes_plain_json() -> None:
    report = clean(Report(data={"pair": (1, 2.0), "at": datetime(2026, 1, 2, tzinfo=UTC), "nan": float("nan")}))
    assert report.data == {"pair": [1, 2], "at": "2026-01-02T00:00:00+00:00", "nan": None}


NAMES_THAT_ARE_NO_TEXT: Any = {1: 2}


@pytest.mark.parametrize(
    "report",
    [
        Report(percent=10**400),
        Report(step_index=10**400),
        Report(data=NAMES_THAT_ARE_NO_TEXT),
        Report(data={"a": {1, 2}}),
    ],
)
def test_what_a_program_gives_wrong_is_no_report(report: Report) -> None:
    with pytest.raises(BadReport):
        clean(report)


@pytest.mark.parametrize("result", [b"9007199254740993", b'"a\\u0000"', b'"' + b"x" * 1_048_577 + b'"'])
def test_result_that_cannot_be_stored_is_remembered_as_such(result: bytes) -> None:
    report = parse(b'{"result": ' + result + b"}")
    assert report.result_json is None
    assert report.result_error


def test_only_lines_with_the_prefix_are_read_from_output() -> None:
    text = (
        b'hello ::backburner {"step": "no"}\n::backburner {"step": "yes"}\n{"step": "no"}\n'
        b' ::backburner {"step": "no"}\n'
    )
    reports, bad = scan(text)
    assert [r.step for r in reports] == ["yes"]
    assert bad == 0


def test_prefix_may_be_left_out_on_the_pipe() -> None:
    reports, _ = scan(b'{"step": "a"}\r\n::backburner {"step": "b"}\n\n{"step": "c"}', prefixed=False)
    assert [r.step for r in reports] == ["a", "b", "c"]


@settings(max_examples=300)
@given(st.data())
def test_chunk_borders_do_not_matter(data: Any) -> None:
    lines = [b'::backburner {"step": "s%d"}' % n for n in range(4)] + [
        b"noise",
        b"::back",
        b"",
        b"::backburner x",
        b"::",
    ]
    text = b"\n".join(data.draw(st.lists(st.sampled_from(lines), max_size=12)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole, whole_bad = scan(text)
    assert scan(*chunks) == (whole, whole_bad)
    expected = [line for line in text.split(b"\n") if line.startswith(b"::backburner ")]
    assert len(whole) + whole_bad == len(expected)


@pytest.mark.parametrize("prefixed", [True, False])
def test_endless_line_is_skipped_in_bounded_memory(prefixed: bool) -> None:
    reports: list[Report] = []
    scanner = LineScanner(reports.append, prefixed=prefixed)
    scanner.feed(b'::backburner {"step": "')
    for _ in range(100):
        scanner.feed(b"x" * 65_536)
        assert len(scanner._partial) <= LINE_BYTES_MAX + 65_536
    scanner.feed(b'"}\n::backburner {"step": "next"}\n')
    assert [r.step for r in reports] == ["next"]
    assert scanner.bad_lines == 1


def test_noise_without_line_breaks_is_not_kept() -> None:
    scanner = LineScanner(lambda _: None, prefixed=True)
    scanner.feed(b"x" * 1_000_000)
    assert scanner._partial == b""


def test_canonical_names_the_path() -> None:
    with pytest.raises(ValueError, match=r"result\.a\[1\]"):
        line_protocol.canonical({"a": [1, 2**60]}, "result")
