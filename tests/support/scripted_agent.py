"""A harness module for tests: agents that do what their prompts say, in real children.

The prompt may hold one JSON object anywhere; what is left out has a default:

    steps      list of texts, each reported as a step with its percentage
    usage      what was consumed, as in the line protocol
    reports    list of objects, each reported as it is by the line protocol
    transcript list of events for the transcript, written `times` times (1)
    starts     path of a file: each start adds a line to it
    write      object by path, relative to the working directory: writes these files
    wait_for   path of a file: the child waits until it exists
    hold       path of a file: the child waits while it exists
    sh         a command, run after all that; when it fails, so does the agent, as TOOL_FAILED
    text       the answer in words; by default `turn N:`, or `turn N again:` when an attempt goes on with the session of
               the one before, and the prompt's first line
    value      the structured answer
    fail       object with reason, message, retry_after_s, final, untouched, account: fails with it
    fail_at    the turn of the session in which alone it fails
    fail_while path of a file: fails only while it exists
    exit       exit code after an answer
    spends     what was consumed in all, said with the answer; the child stays until it is ended
    session    false: leaves no session
    as         object by name of a harness: what is different for that one

Registered under the names of agent CLIs, so that processes run as users write them; SCRIPTED_AGENTS gives others.
"""

import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any, Final

from executor_service.harness.agent import (
    AgentRequest,
    Answer,
    Attempt,
    ChildEnd,
    ChildWork,
    Failure,
    Host,
    Report,
    SessionLost,
    Transcript,
)

NAMES: Final = ("claude-code", "codex", "gemini-cli")
_BEGINS: Final = {(False, False): "new", (True, False): "resume", (True, True): "retry"}
_CLI: Final = str(Path(__file__).with_name("scripted_agent_cli.py"))


def harnesses(host: Host) -> list["ScriptedAgent"]:
    """One for each name."""
    names = os.environ.get("SCRIPTED_AGENTS", ",".join(NAMES)).split(",")
    return [ScriptedAgent(name, host) for name in names]


class ScriptedAgent:
    """Runs the scripted CLI."""

    version = "0.0-scripted"

    def __init__(self, name: str, host: Host) -> None:
        self.name = name
        self._host = host
        self._store = host.store(name)

    async def run(self, request: AgentRequest, attempt: Attempt) -> Answer:
        """Runs one turn."""
        session_id = self._resumed(request) or f"{self.name}-{uuid.uuid4()}"
        turn = _Turn(request, attempt)
        begins = _BEGINS[request.session is not None, request.resumed_attempt]
        turn_of = [self.name, str(self._store), session_id, begins]
        argv = [sys.executable, "-S", "-E", _CLI, *turn_of]
        work = ChildWork(argv, request.cwd, request.env, stdin=request.prompt)
        end = await self._host.children.run(work, attempt, on_line=turn.take)
        return turn.answer(end)

    def _resumed(self, request: AgentRequest) -> str:
        if request.session is None:
            return ""
        if not (self._store / request.session.session_id).exists():
            raise SessionLost(f"session {request.session.session_id} is not on this executor")
        return request.session.session_id


class _Turn:
    """What the child says, line by line."""

    def __init__(self, request: AgentRequest, attempt: Attempt) -> None:
        self._request = request
        self._attempt = attempt
        self._transcript = Transcript(attempt)
        self._said: dict[str, dict[str, Any]] = {}
        self._answered = False

    def take(self, line: bytes) -> None:
        event = json.loads(line)
        if event["type"] == "event":
            self._transcript.write(event["event"])
            return
        self._said[event.pop("type")] = event
        if "id" in event:
            self._attempt.report(Report(session_id=event["id"], workspace=self._request.cwd))
        if "spends" in event:
            self._answered = self._attempt.may_go_on
            self._attempt.report(Report(usage=event["spends"]))

    def answer(self, end: ChildEnd) -> Answer:
        answer, error = self._said.get("answer", {}), self._said.get("error")
        failure = None if error is None else Failure(**error)
        if failure is None and not self._answered and (end.status or not answer):
            failure = Failure("HARNESS_ERROR", end.describe())
        given = {"value": answer["value"]} if "value" in answer else {}
        return Answer(
            end,
            text=answer.get("text", ""),
            failure=failure,
            session_id=self._said.get("session", {}).get("id", ""),
            workspace=self._request.cwd,
            answered=self._answered,
            **given,
        )
