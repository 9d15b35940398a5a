"""What the events of a CLI add up to: progress, usage, the answer; and structured answers."""

from typing import Any

import pytest

from executor_service.harness.cli import events, structured
from executor_service.harness.cli.adapter import Silence
from executor_service.harness.cli.events import Spent, Text, Tokens
from executor_service.harness.cli.stream import EventStream
from executor_service.line_protocol import Report


class Script:
    """A parser whose lines are indices into a list of events."""

    def __init__(self, said: list[list[events.Event]]) -> None:
        self._said = said

    def take(self, line: Any) -> list[events.Event]:
        return self._said[line]

    def close(self, _status: int) -> list[events.Event]:
        return []


def played(*said: list[events.Event], price: float | None = None) -> tuple[EventStream, list[Report]]:
    reports: list[Report] = []
    stream = EventStream(reports.append, lambda _event: None, price=lambda _m, _t: price, turns_max=9)
    stream.begin(Script(list(said)))
    for index in range(len(said)):
        stream.take(str(index).encode())
    return stream, reports


def test_a_request_that_goes_on_is_counted_once_and_requests_are_added_up() -> None:
    stream, _ = played(
        [Spent(Tokens(100, 1), request="a")], [Spent(Tokens(100, 20), request="a")], [Spent(Tokens(50, 5), request="b")]
    )
    assert stream.tokens == Tokens(150, 25)


def test_a_total_takes_the_place_of_what_was_added_up() -> None:
    stream, _ = played([Spent(Tokens(100, 20))], [Spent(Tokens(100, 20))], [Spent(Tokens(210, 40), total=True)])
    assert stream.tokens == Tokens(210, 40)


def test_another_child_is_counted_on_top() -> None:
    stream, _ = played([Spent(Tokens(100, 20), total=True)])
    stream.begin(Script([[Spent(Tokens(10, 2), total=True)]]))
    stream.take(b"0")
    assert stream.tokens == Tokens(110, 22)


@pytest.mark.parametrize(
    ("first", "second", "cost"),
    [(0.5, 0.25, 0.75), (0.5, None, None), (None, 0.25, None), (None, None, None)],
)
def test_a_sum_of_which_a_part_is_unknown_is_unknown(
    first: float | None, second: float | None, cost: float | None
) -> None:
    stream, _ = played([Spent(Tokens(1, 1, cost_usd=first))], [Spent(Tokens(1, 1, cost_usd=second))])
    assert stream.usage().get("cost_usd") == cost


def test_the_price_table_stands_in_for_a_cli_that_tells_no_cost_and_only_for_that() -> None:
    assert played([Spent(Tokens(1, 1))], price=3.0)[0].usage()["cost_usd"] == 3.0
    assert played([Spent(Tokens(1, 1, cost_usd=0.5))], price=3.0)[0].usage()["cost_usd"] == 0.5


def test_pieces_become_one_message_and_the_last_message_is_the_answer() -> None:
    pieces: list[events.Event] = [Text("I will ", delta=True), Text("look.", delta=True)]
    stream, _ = played(pieces, [events.ToolStarted("1", "Bash", "ls")], [events.ToolEnded("1")])
    assert stream.text == "I will look."
    stream, _ = played(pieces, [events.TurnStarted()], [Text("All ", delta=True), Text("done.", delta=True)])
    assert stream.text == "All done."
    stream, _ = played(pieces, [Text("I will look.")], [Text("Done.")])
    assert stream.text == "Done."


def test_progress_says_tool_turn_and_todos() -> None:
    _, reports = played(
        [events.TurnStarted()], [events.ToolStarted("1", "Bash", "pytest -q")], [events.Todos(2, 5)],
        [events.ToolEnded("1")],
    )  # fmt: skip
    told = [(report.tool, report.step) for report in reports[:3]]
    assert told == [("", "turn 1"), ("Bash", "pytest -q"), ("Bash", "pytest -q")], "the step says what with"
    last = reports[-1]
    assert (last.tool, last.turns, last.turns_max, last.todos_done, last.todos) == ("", 1, 9, 2, 5)


def test_a_tool_is_named_whole_and_what_it_is_given_may_be_nothing() -> None:
    _, reports = played([events.ToolStarted("1", "mcp:issues/list", "")])
    assert (reports[0].tool, reports[0].step) == ("mcp:issues/list", "")


def test_silence_is_measured_by_what_is_awaited() -> None:
    limits = Silence(output=10, tool=100, retry=50)
    assert played([events.TurnStarted()])[0].hung(limits)[0] == "output"
    assert played([events.ToolStarted("1", "Bash")])[0].hung(limits)[0] == "tool"
    assert played([events.Retrying("overloaded")])[0].hung(limits)[0] == "retry"
    kind, left = played([events.ToolStarted("1", "Bash")], [events.ToolEnded("1")])[0].hung(limits)
    assert kind == "output"
    assert left <= 10


def test_a_part_of_a_line_is_no_silence() -> None:
    stream, _ = played([events.TurnStarted()])
    stream.heard_at -= 100
    assert stream.hung(Silence(output=10))[1] <= 0
    assert stream.hung(Silence(output=10), stream.heard_at + 99)[1] > 0


@pytest.mark.parametrize(
    "good", [events.TurnStarted(), events.ToolStarted("1", "Bash"), Text("Done."), Spent(Tokens(1, 1))]
)
def test_what_was_overcome_explains_no_later_end(good: events.Event) -> None:
    assert played([events.Retrying("overloaded", 529)])[0].trouble == events.Trouble("overloaded", 529)
    assert played([events.Retrying("overloaded", 529)], [good])[0].trouble is None
    bill = Spent(Tokens(1, 1), total=True)
    assert played([good, events.Trouble("no such model"), bill])[0].trouble is not None


def test_forged_counts_are_reported_within_bounds() -> None:
    turns = events.Fields({"n": 3 * 2**31}).whole("n")
    _, reports = played([events.Ended(True, turns=turns)], [events.TurnStarted()])
    assert 0 < (reports[-1].turns or 0) < 2**31


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@pytest.mark.parametrize(
    "text",
    [
        '{"n": 1}',
        'Here you are:\n```json\n{"n": 1}\n```\nAnything else?',
        'First I had {"n": "x"}, but it is {"n": 1}',
        'The set {a, b} has [some] members. {"n": 1}',
        '{"n": 1} and so on {',
        '{"n": 1} and so on {"n": "',
    ],
)
def test_the_value_is_found_in_an_answer(text: str) -> None:
    assert structured.read(text, SCHEMA) == ({"n": 1}, "")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("no value", "it holds no JSON value"),
        ("", "it holds no JSON value"),
        ('{"n": "x"}', "answer.n is string, not integer"),
        ("{" * 100_000, "it holds no JSON value"),
        ('{"n": NaN}', "it holds no JSON value"),
        ('{"n": 1e999}', "it holds no JSON value"),
        (f'{{"n": {"9" * 5_000}}}', "it holds no JSON value"),
    ],
)
def test_what_is_wrong_with_an_answer_is_said(text: str, problem: str) -> None:
    assert structured.read(text, SCHEMA)[1] == problem


CUT = '{"files": [{"n": 1}, {"n": 2}, {"n": '


@pytest.mark.parametrize("end", ["", "1", "-", "1.", "tru", "nul", '"half a word', '"\\u20', '"\\', "3}", "3},"])
def test_a_piece_of_an_answer_that_is_cut_off_is_none(end: str) -> None:
    assert structured.read(f"Here: {CUT}{end}\n", {"type": "object"}) == (None, "it holds no JSON value")


def test_what_is_read_again_and_again_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f'{"[" * 50} {"1, " * 100} x {{"n": 1}}'
    assert structured.read(text, SCHEMA) == ({"n": 1}, "")
    monkeypatch.setattr(structured, "_READ_MAX", 40 * 300)
    assert structured.read(text, SCHEMA) == (None, "it holds no JSON value")


def test_a_number_may_be_larger_than_any_float() -> None:
    assert structured.read(f'{{"n": {10**400}}}', SCHEMA) == ({"n": 10**400}, "")


def test_the_prompt_of_a_repair_says_what_was_wrong() -> None:
    said = structured.mend("answer.n is missing", SCHEMA)
    assert "answer.n is missing" in said
    assert '"required": ["n"]' in said
