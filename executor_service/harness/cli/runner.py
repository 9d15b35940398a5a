"""Runs a coding-agent CLI: the way of one attempt from the request to the answer, whichever CLI it is.

1. A task: where it works, its HOME, its scratch folder, the session to go on with.
2. The adapter says how to start it; its lines become events, the events progress, usage and a transcript.
3. With its own last word the work is over: a CLI that lingers is ended a moment later, with all that it started.
4. Judged are the last word and the exit together; neither alone makes a success.
5. An answer that does not fit its schema is given back once, in the same session.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from executor_service.assignment import InvalidWork
from executor_service.harness.agent import (
    RESUME_PROMPT,
    AgentRequest,
    Answer,
    Attempt,
    ChildEnd,
    ChildWork,
    Host,
    Report,
    SessionLost,
)
from executor_service.harness.child import ChildControl
from executor_service.harness.cli import structured
from executor_service.harness.cli.adapter import Adapter, Program, Silence, Task
from executor_service.harness.cli.events import Ended, Event, Tokens
from executor_service.harness.cli.failures import classify, failure
from executor_service.harness.cli.homes import Homes
from executor_service.harness.cli.prices import Prices
from executor_service.harness.cli.scribe import Scribe
from executor_service.harness.cli.stream import EventStream
from executor_service.outcome import Failure, replace_unstorable
from executor_service.process_group import SpawnFailed

log = logging.getLogger(__name__)

#: How long a CLI may take to exit after its last word: it may still write its session.
LINGER_SECONDS: Final = 1.0
#: Grace of one that has not exited by then.
REAP_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 1.0
_COUNT_SECONDS: Final = 2.0
_STDERR_CHARACTERS: Final = 1_500


class CliAgent:
    """A CLI as a harness of agents."""

    def __init__(self, adapter: Adapter, program: Program, host: Host, homes: Homes, prices: Prices) -> None:
        self.name = adapter.name
        self.version = program.version
        self.resumes = adapter.resumes
        self.adapter = adapter
        self.program = program
        self.children = host.children
        self.homes = homes
        self.prices = prices
        #: Hears of each attempt that failed: the name of an EffectReason without prefix.
        self.on_failure: Callable[[str], None] = lambda reason: None

    async def run(self, request: AgentRequest, attempt: Attempt) -> Answer:
        """Runs one attempt."""
        namespace, effect_id = attempt.assignment.namespace, attempt.assignment.effect_id
        if not request.cwd:
            await asyncio.to_thread(self.homes.forget_old)
        with self.homes.scratch() as scratch, self.homes.workspace(request.cwd, effect_id) as workspace:
            model, options = own(self.name, attempt.assignment.read_spec()[0])
            request = replace(request, model=model, options=options)
            task = Task(
                prompt=RESUME_PROMPT if request.resumed_attempt else request.prompt,
                workspace=workspace,
                scratch=scratch,
                home=self.homes.of(namespace),
                env=request.env,
                session_id="" if request.session is None else request.session.session_id,
                model=request.model,
                system_prompt=request.system_prompt,
                max_turns=request.max_turns,
                permissions=request.permissions,
                mcp_servers=request.mcp_servers,
                options=request.options,
            )
            account = await asyncio.to_thread(_account, self.adapter, task)
            try:
                answer = await _Work(self, task, request, attempt, account).answer()
            except SpawnFailed:
                self.on_failure("SPAWN_FAILED")
                raise
            if answer.failure is not None:
                self.on_failure(answer.failure.reason)
            return answer


def own(harness: str, spec: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Model and options for one harness of an effect's chain.

    An option that is called like a harness of the chain holds options for that one alone, its `model` among them. The
    model of the effect is the first harness's: another provider would not know it.
    """
    work = spec["agent"]
    first, given = work.get("harness", ""), work.get("options") or {}
    chain = {first, *spec.get("fallbacks", ())}
    options = {name: value for name, value in given.items() if name not in chain}
    mine = given.get(harness, {})
    if not isinstance(mine, dict):
        raise InvalidWork(f"option {harness}: expected an object with options of that harness, not {mine!r}")
    options |= mine
    model = options.pop("model", "") or (work.get("model") or "" if harness == first else "")
    if not isinstance(model, str):
        raise InvalidWork(f"option model: expected a text, not {model!r}")
    return model, options


class _Work:
    """One attempt."""

    def __init__(self, agent: CliAgent, task: Task, request: AgentRequest, attempt: Attempt, account: str) -> None:
        self._agent = agent
        self._account = account
        self._adapter = agent.adapter
        self._task = task
        self._schema = request.output_schema
        self._attempt = attempt
        self._silence = _silence(self._adapter.silence, request.options, attempt)
        price = partial(_price, agent.prices, request.model)
        self._scribe = Scribe(attempt, self._adapter.name, agent.version)
        self._answered = False
        self._stream = EventStream(self._report, self._hear, price=price, turns_max=request.max_turns)

    async def answer(self) -> Answer:
        """Runs the turn, and the one that mends its answer."""
        task = self._task
        if task.session_id and not await asyncio.to_thread(self._adapter.session_exists, task):
            raise SessionLost(f"session {task.session_id} is not on this executor")
        asked = task.prompt if self._schema is None else structured.asked(task.prompt, self._schema)
        end, failed = await self._turn(replace(task, prompt=asked))
        if failed is not None and self._session_is_lost(task, end):
            raise SessionLost(f"{self._adapter.name} does not know session {task.session_id} any more")
        if failed is not None or self._schema is None:
            return self._answer(end, failed)
        value, problem = await asyncio.to_thread(structured.read, self._stream.text, self._schema)
        repairs = 0
        while problem and repairs < structured.REPAIRS_MAX and self._may_mend():
            repairs += 1
            mend = structured.mend(problem, self._schema)
            end, failed = await self._turn(replace(task, prompt=mend, session_id=self._stream.session_id))
            if failed is not None:
                return self._answer(end, failed, repairs=repairs)
            value, problem = await asyncio.to_thread(structured.read, self._stream.text, self._schema)
        if problem:
            words = f"the answer does not fit the schema{', also when asked again' if repairs else ''}: {problem}"
            return self._answer(end, Failure("INVALID_RESULT", words), repairs=repairs)
        return replace(self._answer(end, None, repairs=repairs), value=value)

    def _may_mend(self) -> bool:
        return self._adapter.resumes and bool(self._stream.session_id) and self._attempt.may_go_on

    async def _turn(self, task: Task) -> tuple[ChildEnd, Failure | None]:
        """Runs one child to its end, and says what speaks against it."""
        adapter, stream = self._adapter, self._stream
        before = await asyncio.to_thread(_consumed, adapter, task, task.session_id) or Tokens()
        launch = adapter.launch(self._agent.program, task)
        for path, content in launch.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        stream.begin(adapter.parser(task, before), plain=adapter.plain)
        self._scribe.begin(task.prompt, resumed=bool(task.session_id))
        control = ChildControl()
        work = ChildWork(
            launch.argv,
            str(task.workspace),
            self._environment(task, launch.env),
            stdin=launch.stdin,
            first_signal=adapter.first_signal,
        )
        self._watch = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)
        counting = asyncio.create_task(self._count(task, before), name="count")
        try:
            take = partial(self._line, control)
            end = await self._agent.children.run(work, self._attempt, on_line=take, control=control)
        finally:
            self._watch.cancel()
            counting.cancel()
            await asyncio.gather(counting, return_exceptions=True)
        stream.close(end.status)
        if adapter.counts_in_files or stream.ended is None:  # until it was cut off: its files may tell
            await self._count_once(task, before)
        self._scribe.end(end, stream.usage())
        return end, _judged(adapter, stream, end, reaped=control.reaped)

    async def _count(self, task: Task, before: Tokens) -> None:
        """Looks into the session's files for what is consumed, of a CLI that tells only when it is done."""
        pause = _COUNT_SECONDS
        while self._adapter.counts_in_files:
            await asyncio.sleep(pause)
            began = time.monotonic()
            await self._count_once(task, before)
            pause = max(_COUNT_SECONDS, 20 * (time.monotonic() - began))  # a long session's files are long

    async def _count_once(self, task: Task, before: Tokens) -> None:
        stream = self._stream
        total = await asyncio.to_thread(_consumed, self._adapter, task, stream.session_id)
        if total is not None and (now := total.minus(before)) != Tokens():
            stream.correct(now)

    def _hear(self, event: Event) -> None:
        if isinstance(event, Ended):  # an end that we made a CLI come to is no answer, whatever it says
            self._answered = event.ok and self._attempt.may_go_on
        self._scribe.hear(event)

    def _line(self, control: ChildControl, line: bytes) -> None:
        self._stream.take(line)
        ended = self._stream.ended
        if ended is not None and not control.finishing:
            control.finish(0.0 if ended.stop else LINGER_SECONDS, REAP_SECONDS)

    def _environment(self, task: Task, launch: Mapping[str, str]) -> dict[str, str]:
        keys = {name: os.environ[name] for name in self._adapter.credentials if name in os.environ}
        places = {"HOME": str(task.home), "TMPDIR": str(task.scratch), "NO_COLOR": "1"}
        return keys | places | dict(launch) | dict(task.env)

    def _report(self, report: Report) -> None:
        """Progress, with the session in which another attempt may go on."""
        if self._adapter.resumes and self._stream.session_id:
            report.session_id, report.workspace = self._stream.session_id, str(self._task.workspace)
        self._attempt.report(report)

    def _look(self) -> None:
        """Ends the attempt when its CLI has hung, by its profile; a silence timeout of the effect replaces that."""
        if self._silence is None or self._stream.ended is not None:
            return
        kind, left = self._stream.hung(self._silence, self._attempt.last_activity)
        if left <= 0:
            what = {"tool": "while a tool ran", "retry": "while it tried again", "output": "while the model was asked"}
            limit = getattr(self._silence, kind)
            self._attempt.hung(f"{self._adapter.name} said nothing for {limit:g} s {what[kind]}")
            return
        self._watch = asyncio.get_running_loop().call_later(min(max(left, 0.05), _LOOK_SECONDS), self._look)

    def _session_is_lost(self, task: Task, end: ChildEnd) -> bool:
        pattern, stream = self._adapter.session_lost, self._stream
        if not task.session_id or pattern is None or stream.tools_used:
            return False
        said = stream.ended.failure.message if stream.ended is not None and stream.ended.failure is not None else ""
        return bool(pattern.search(said) or pattern.search(_stderr(end)))

    def _answer(self, end: ChildEnd, failed: Failure | None, *, repairs: int = 0) -> Answer:
        stream = self._stream
        if failed is not None:
            failed = replace(failed, untouched=not stream.touched)
        return Answer(
            end,
            text=replace_unstorable(stream.text),
            failure=failed,
            session_id=stream.session_id if self._adapter.resumes else "",
            workspace=str(self._task.workspace),
            denials=[(denial.tool, denial.request) for denial in stream.denials],
            repair_turns=repairs,
            account=self._account,
            answered=self._answered,
        )


def _account(adapter: Adapter, task: Task) -> str:
    """The account at the provider: as the options name it, else a fingerprint, as in a check. Blocking."""
    given = task.options.get("account", "")
    if not isinstance(given, str):
        raise InvalidWork(f"option account: expected a text, not {given!r}")
    name = given or adapter.account({**os.environ, **task.env}, task.home, task)
    return f"{adapter.provider}:{name}" if name else ""


def _consumed(adapter: Adapter, task: Task, session_id: str) -> Tokens | None:
    try:
        return adapter.consumed(task, session_id) if session_id else None
    except OSError as error:  # no reason to fail the work: what its lines told stands
        log.warning("what session %s of %s consumed cannot be read: %s", session_id, adapter.name, error)
        return None


def _price(prices: Prices, asked: str, model: str, tokens: Tokens) -> float | None:
    return prices.cost(model or asked, tokens)


def _silence(profile: Silence, options: Mapping[str, Any], attempt: Attempt) -> Silence | None:
    """The profile with what the options say of it; None when the effect has a silence timeout of its own."""
    if attempt.assignment.read_spec()[1].silence_s is not None:
        return None
    given = {kind: options.get(f"{prefix}silence_s") for kind, prefix in _PREFIXES.items()}
    for kind, seconds in given.items():
        if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or seconds <= 0):
            raise InvalidWork(f"option {_PREFIXES[kind]}silence_s: expected seconds above 0, not {seconds!r}")
    return replace(profile, **{kind: float(seconds) for kind, seconds in given.items() if seconds is not None})


_PREFIXES: Final = {"output": "", "tool": "tool_", "retry": "retry_"}


def _judged(adapter: Adapter, stream: EventStream, end: ChildEnd, *, reaped: bool) -> Failure | None:
    """What speaks against success; None: the last word and the exit both say that it is one."""
    ended = stream.ended
    if ended is None:
        return _crash(adapter, stream, end)
    if not ended.ok:
        return ended.failure or failure("the harness failed and gave no reason")
    if end.status and not reaped:
        return Failure("HARNESS_CRASHED", f"it said that it was done, and then {end.describe()}{_said(end)}")
    return None


def _crash(adapter: Adapter, stream: EventStream, end: ChildEnd) -> Failure:
    """No last word: what it had said of errors may explain it, or its exit code, or its stderr."""
    trouble = stream.trouble.message if stream.trouble is not None else ""
    status = stream.trouble.status if stream.trouble is not None else 0
    words = f"{trouble}{_said(end)}"
    reason = adapter.exits.get(end.status) or classify(words, status, default="HARNESS_CRASHED")
    found = failure(words, status, default=reason)
    message = f"{end.describe()} without saying how its work ended: {words.strip(': ')}".rstrip(": ")
    return replace(found, reason=reason, message=message)


def _said(end: ChildEnd) -> str:
    words = _stderr(end).strip()
    return f": {words[-_STDERR_CHARACTERS:]}" if words else ""


def _stderr(end: ChildEnd) -> str:
    return str(end.captured.get("stderr", {}).get("tail", ""))
