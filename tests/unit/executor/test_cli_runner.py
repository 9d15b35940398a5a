"""The runner of CLIs, with children that a test plays: what is an answer, and which turn may lose its session."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from executor_service.harness.agent import AgentRequest, Answer, ChildEnd, Host, Session, SessionLost
from executor_service.harness.child import ChildControl, ChildWork, OnLine
from executor_service.harness.cli.adapter import Program
from executor_service.harness.cli.command import CommandAdapter
from executor_service.harness.cli.homes import Homes
from executor_service.harness.cli.prices import Prices
from executor_service.harness.cli.runner import CliAgent
from executor_service.invocation import Invocation
from executor_service.outcome import Ending
from tests.unit.executor.fakes import FakeHolder, invocation

SPENT = Ending("failed", "BUDGET", "spent")
LINES: dict[str, Any] = {
    "argv": ["it"], "resume": ["{session}"], "session": "sid", "text": "say", "success": {"done": True},
    "session_lost": "no such session", "failure": {"done": False}, "error": "why",
}  # fmt: skip
TEXT: dict[str, Any] = {"argv": ["it"], "output": "text"}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
#: Says the lines of one child, and gives its status and its stderr.
Part = Callable[[Invocation, OnLine], tuple[int, str]]


class Played:
    """Children that a test plays, one after the other."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts

    async def run(self, _work: ChildWork, attempt: Invocation, *, on_line: OnLine, control: ChildControl) -> ChildEnd:
        status, stderr = self.parts.pop(0)(attempt, on_line)
        control.close()
        return ChildEnd(status, True, {"stderr": {"tail": stderr}})


def said(*lines: Any, status: int = 0, stderr: str = "", ended_after: int | None = None) -> Part:
    """Says the lines; after so many of them the attempt is asked to end."""

    def play(attempt: Invocation, on_line: OnLine) -> tuple[int, str]:
        for number, line in enumerate(lines):
            if number == ended_after:
                attempt.end(SPENT)
            on_line(line if isinstance(line, bytes) else json.dumps(line).encode())
        if ended_after == len(lines):
            attempt.end(SPENT)
        return status, stderr

    return play


async def answer(tmp_path: Path, config: dict[str, Any], *parts: Part, **asked: Any) -> Answer:
    adapter = CommandAdapter("it", config)
    host = cast(Host, SimpleNamespace(children=Played(list(parts))))
    agent = CliAgent(adapter, Program("it", ["it"]), host, Homes("tenant", tmp_path, "i"), Prices({}))
    spec = {"agent": {"harness": "it", "prompt": "p"}}
    made = replace(invocation("e").assignment, harness="it", pool="agents", spec_json=json.dumps(spec).encode())
    attempt = Invocation(made, "incarnation", FakeHolder())
    given = await asyncio.wait_for(agent.run(AgentRequest("p", str(tmp_path), **asked), attempt), 60)
    attempt._stop_timers()
    return given


async def test_only_a_last_word_from_before_the_end_is_an_answer(tmp_path: Path) -> None:
    assert (await answer(tmp_path, TEXT, said(b"all"))).answered
    assert not (await answer(tmp_path, TEXT, said(b"half", ended_after=1))).answered
    assert (await answer(tmp_path, LINES, said({"done": True}, ended_after=1))).answered
    assert not (await answer(tmp_path, LINES, said({"done": True}, ended_after=0))).answered


@pytest.mark.parametrize(
    "child",
    [said(status=1, stderr="no such session: s-1"), said({"done": False, "why": "no such session: s-1"}, status=1)],
    ids=["on stderr", "as its last word"],
)
async def test_a_cli_of_a_configuration_may_say_that_a_session_is_lost(tmp_path: Path, child: Part) -> None:
    """Else its task would end with the executor that has the session: another one can only begin it anew."""
    with pytest.raises(SessionLost):
        await answer(tmp_path, LINES, child, session=Session("it", "s-1"))


async def test_a_session_is_not_lost_by_the_turn_that_mends(tmp_path: Path) -> None:
    first = said({"sid": "s-2"}, {"say": "words"}, {"done": True})
    mending = said(status=1, stderr="no such session")
    given = await answer(tmp_path, LINES, first, mending, output_schema=SCHEMA, session=Session("it", "s-1"))
    assert given.failure is not None
    assert given.repair_turns == 1


async def test_a_plain_text_is_the_answer_as_it_stands(tmp_path: Path) -> None:
    lines = [b'{"b": 1.0, "a": 2}', b"", b"  1e2", b"null", b"end"]
    assert (await answer(tmp_path, TEXT, said(*lines))).text.encode() == b"\n".join(lines)
