"""How a coding-agent CLI becomes a harness: the public interface of harness modules.

An executor started with `--harness-module my_agents` (BACKBURNER_HARNESS_MODULES) imports that module and calls its
function `harnesses`; what it gives serves the effects of `bb.agent(name, ...)`, in the pool of agents:

    from executor_service.harness.agent import AgentRequest, Answer, Attempt, ChildWork, Failure, Host

    class Parrot:
        name = "parrot"  # as in bb.agent("parrot", prompt=...)
        version = "1.0"  # shown by `backburner executors`; empty: unknown

        def __init__(self, host: Host) -> None:
            self._host = host

        async def run(self, request: AgentRequest, attempt: Attempt) -> Answer:
            work = ChildWork(["parrot", "--headless"], request.cwd, request.env, stdin=request.prompt)
            end = await self._host.children.run(work, attempt)
            if end.status:
                return Answer(end, failure=Failure("HARNESS_ERROR", end.describe()))
            return Answer(end, text="...", session_id="...")

    def harnesses(host: Host) -> list[Parrot]:
        return [Parrot(host)]

What a harness may rely on:

- `run` is called once an attempt, on the executor's event loop: it must not block. Several run at a time.
- It says how far it is by `attempt.report(Report(step=..., usage={...}))`; usage is the total of the attempt so far. A
  child may do so itself by the line protocol.
- What the agent says and does it writes to a `Transcript(attempt)`, which `backburner logs --pretty` shows.
- `Host.children.run` ends the child when the attempt shall end (cancel, timeout) and proves its death; `run` then just
  returns what it has: that is kept as partial result, and the session with it. A harness without a child registers
  with `attempt.on_end` what makes it end.
- It says which session it works in as soon as it knows, by `attempt.report(Report(session_id=..., workspace=...))`:
  when the attempt fails, or its executor dies, the next one goes on with it (`AgentRequest.resumed_attempt`).
- It raises InvalidWork for what cannot be done as asked, SessionLost before it has started anything when the session of
  the request is gone; whether that fails the effect or starts a fresh session is the effect's to say. Any other
  exception is a bug of the harness: the attempt fails as HARNESS_ERROR.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

from backburner.journal.v1 import journal_pb2
from executor_service.assignment import InvalidWork
from executor_service.harness.base import Attempt
from executor_service.harness.child import (
    END_SECONDS_MAX,
    ChildControl,
    ChildEnd,
    Children,
    ChildWork,
    spawn_failed,
)
from executor_service.harness.continuing import RESUME_PROMPT, Place, Session, SessionLost, continues, in_a_session
from executor_service.harness.prompts import attached, render
from executor_service.harness.schema import violation
from executor_service.line_protocol import Report, encode_result
from executor_service.outcome import Failure, Outcome, storable
from executor_service.process_group import SpawnFailed
from executor_service.secret_values import Secrets, secret_values
from executor_service.transcript import Transcript
from executor_service.workspaces.workspaces import Workspaces

__all__ = [
    "RESUME_PROMPT", "AgentHarness", "AgentRequest", "Answer", "Attempt", "ChildControl", "ChildEnd", "ChildWork",
    "Children", "Failure", "Host", "InvalidWork", "Report", "Session", "SessionLost", "Transcript",
]  # fmt: skip

_REASONS: Final = frozenset(name.removeprefix("EFFECT_REASON_") for name in journal_pb2.EffectReason.keys())  # noqa: SIM118
_NO_ANSWER: Final = object()
#: Most bytes of an agent's last words beside a structured answer.
TEXT_BYTES_KEPT: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class AgentRequest:
    """What an effect asks of an agent."""

    prompt: str
    #: Working directory: the effect's, else that of the session it continues. Empty: a fresh one.
    cwd: str = ""
    #: Model as the harness knows it. Empty: the harness's default.
    model: str = ""
    #: Variables for the child.
    env: Mapping[str, str] = field(default_factory=dict)
    #: JSON schema of the structured answer. None: an answer in words.
    output_schema: Mapping[str, Any] | None = None
    #: Options that the harness documents.
    options: Mapping[str, Any] = field(default_factory=dict)
    #: Session to continue; None: a fresh one.
    session: Session | None = None
    #: True when that session is the one of an earlier attempt of the same effect, which did not come to its end: the
    #: prompt stands in it, and RESUME_PROMPT says what to do now.
    resumed_attempt: bool = False
    #: Said to the agent on top of the harness's own system prompt.
    system_prompt: str = ""
    #: Most turns. 0: the harness's own bound.
    max_turns: int = 0
    #: `full`, `edit` or `read_only`.
    permissions: str = "full"
    #: MCP servers by name.
    mcp_servers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What an agent gave. `child` is its child's end, None when it had none."""

    child: ChildEnd | None = None
    #: The answer in words; it is the effect's value when there is no structured one.
    text: str = ""
    #: The structured answer, any JSON value: what `output_schema` asked for.
    value: Any = _NO_ANSWER
    #: Why it did not succeed; what it gave nevertheless is kept as partial result.
    failure: Failure | None = None
    #: The harness's own id of the session, so that a later effect can continue it. Empty: there is none.
    session_id: str = ""
    #: Working directory of the session, where that is kept.
    workspace: str = ""
    #: What the agent wanted to do and was not let: tool and request.
    denials: Sequence[tuple[str, str]] = ()
    #: Turns that were needed to mend the answer.
    repair_turns: int = 0
    #: Account at the provider that it used, see Failure. Empty: not known.
    account: str = ""
    #: True: it had said its last word before it was asked to end. Then the end of a budget is no failure.
    answered: bool = False


class AgentHarness(Protocol):
    """One coding-agent CLI. Read-only attributes: constants of the class will do."""

    @property
    def name(self) -> str:
        """Name, as in `bb.agent(name)`."""

    @property
    def version(self) -> str:
        """Version found. Empty: unknown."""

    async def run(self, request: AgentRequest, attempt: Attempt) -> Answer:
        """Does the work of one attempt. See the module's docstring."""


@dataclass(frozen=True, slots=True)
class Host:
    """What an executor gives its harnesses to work with."""

    executor_id: str
    #: Runs children.
    children: Children
    #: Gives attempts their workspaces.
    workspaces: Workspaces
    #: Secrets that effects ask for by name.
    secrets: Secrets
    _stores: Path

    def store(self, name: str) -> Path:
        """A folder that outlives attempts and restarts of the executor, for a harness's own files: made when needed."""
        folder = self._stores / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder


class AgentEffects:
    """Makes the harness of an agent one of the executor: reads the effect, minds its session, judges the answer."""

    pool = "agents"
    end_seconds_max = END_SECONDS_MAX

    def __init__(self, agent: AgentHarness, host: Host) -> None:
        self.name = agent.name
        self.version = agent.version
        self._agent = agent
        self._host = host

    async def run(self, spec: Mapping[str, Any], attempt: Attempt) -> Outcome:
        """Has the agent do the work, in its workspace when it has one."""
        _work(spec)
        return await self._host.workspaces.around(spec, "agent", attempt, lambda given: self._run(given, attempt))

    async def _run(self, spec: Mapping[str, Any], attempt: Attempt) -> Outcome:
        work = _work(spec)
        secrets = await secret_values(self._host.secrets, work, attempt)
        request = _request(work, secrets)

        async def run(session: Session | None, resumed: bool) -> Answer:
            cwd = request.cwd or _directory(session)
            prompt = await asyncio.to_thread(attached, request.prompt, work.get("attachments") or (), cwd)
            asked = replace(request, session=session, resumed_attempt=resumed, cwd=cwd, prompt=prompt)
            return await self._agent.run(asked, attempt)

        try:
            place = Place(self.name, self._host.executor_id)
            answer, begun = await in_a_session(spec, attempt, place, run)
        except SessionLost as error:
            return Outcome().fail("SESSION_LOST", str(error), final=True)
        except SpawnFailed as error:
            return spawn_failed(error, attempt)
        outcome = Outcome() if answer.child is None else answer.child.outcome()
        outcome.session_lost = bool(begun.fresh_because) and continues(spec)
        outcome.account, outcome.answered = answer.account, answer.answered
        self._take_session(outcome, answer)
        outcome.more |= _more(self.name, answer) | begun.fields()
        return _judged(outcome, answer, request)

    def _take_session(self, outcome: Outcome, answer: Answer) -> None:
        if answer.session_id:
            outcome.session = {
                "harness": self.name,
                "session_id": answer.session_id,
                "executor_id": self._host.executor_id,
                "workspace": answer.workspace,
            }


def _directory(session: Session | None) -> str:
    """Where a session goes on: where it was. Empty: anywhere."""
    directory = "" if session is None else session.workspace
    if directory and not os.path.isdir(directory):  # noqa: PTH112 - as in child.py
        raise SessionLost(f"the session's working directory {directory!r} is not on this executor")
    return directory


def _work(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    work = spec.get("agent")
    if not isinstance(work, dict) or not work.get("prompt"):
        raise InvalidWork("an agent effect needs a prompt")
    return work


def _request(work: Mapping[str, Any], secrets: Mapping[str, str]) -> AgentRequest:
    return AgentRequest(
        prompt=_text(work, "prompt"),
        cwd=work.get("cwd") or "",
        model=work.get("model") or "",
        env={**(work.get("env") or {}), **secrets},
        output_schema=work.get("output_schema"),
        options=work.get("options") or {},
        system_prompt=_text(work, "system_prompt"),
        max_turns=int(work.get("max_turns") or 0),
        permissions=_PERMISSIONS[work.get("permissions") or "AGENT_PERMISSIONS_UNSPECIFIED"],
        mcp_servers=work.get("mcp_servers") or {},
    )


def _text(work: Mapping[str, Any], field: str) -> str:
    text = work.get(field) or ""
    return render(text, work["inputs"], field) if "inputs" in work else text


_PERMISSIONS: Final = {
    "AGENT_PERMISSIONS_UNSPECIFIED": "full", "AGENT_PERMISSIONS_FULL": "full", "AGENT_PERMISSIONS_EDIT": "edit",
    "AGENT_PERMISSIONS_READ_ONLY": "read_only",
}  # fmt: skip


def _more(harness: str, answer: Answer) -> dict[str, Any]:
    """What an agent brought beside its answer, as fields of EffectResult."""
    structured = answer.value is not _NO_ANSWER
    said = {
        "harness": harness,
        "text": storable(answer.text, TEXT_BYTES_KEPT) if structured else "",
        "repair_turns": answer.repair_turns,
        "permission_denials": [{"tool": storable(tool), "request": storable(text)} for tool, text in answer.denials],
    }
    return {name: value for name, value in said.items() if value}


def _judged(outcome: Outcome, answer: Answer, request: AgentRequest) -> Outcome:
    """The outcome with the value and with what speaks against it, the gravest last."""
    value = answer.text if answer.value is _NO_ANSWER else answer.value
    if value != "":
        try:
            outcome.value_json = encode_result(value)
        except ValueError as error:
            outcome.fail("INVALID_RESULT", f"the answer cannot be stored: {error}")
    if answer.failure is not None:
        failed = _known(answer.failure)
        return outcome.fail_as(replace(failed, account=failed.account or answer.account))
    if request.output_schema is not None and (problem := violation(value, request.output_schema)):
        outcome.fail("INVALID_RESULT", f"the answer does not fit the schema: {problem}")
    return outcome


def _known(failure: Failure) -> Failure:
    """A reason that this release knows; another one would be refused, or misread, by everybody after us."""
    if failure.reason in _REASONS:
        return failure
    return replace(failure, reason="HARNESS_ERROR", message=f"{failure.reason}: {failure.message}")
