"""The process of `backburner demo agents`, as an author would write it.

Three agents work in the background, each in a git worktree of its own. The foreground runs the tests meanwhile; with
each result that comes in it tries how the tests go with it, and merges what passes. Who breaks the tests is told so,
once, in the same session. It reads no file and no clock: all of that is effects.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import backburner as bb
from scheduler_service.cli.demo.agents import functions as fn

T = TypeVar("T")

AGENT_SECONDS_MAX: Final = 1200
TEST_SECONDS_MAX: Final = 900
TURNS_MAX: Final = 40
#: Lines of the tests' output that an agent is shown.
SHOWN_LINES: Final = 60
SUMMARY: Final = re.compile(r"\b(?:passed|failed|failures?|errors?|ok)\b", re.IGNORECASE)
# Looking, testing and merging may be repeated: an executor that dies costs nothing else.
AGAIN: Final = bb.Retry(max_attempts=5, initial=0.5)


@dataclass
class Finding:
    """Something that a reviewer would change."""

    file: str
    line: int
    severity: str
    message: str


@dataclass
class Review:
    """What a reviewer gives: the agent's answer has to fit this, else it is asked to mend it."""

    summary: str
    findings: list[Finding]


@dataclass
class Order:
    """What is to be done: agents work in a clone of `repository` below the folder `place`, of which the repository gets
    `branch` in the end. `test` is a command for `sh -c`."""

    repository: str
    place: str
    test: str
    branch: str


@dataclass
class Agent:
    """Who does what, for at most `budget_usd` (0: no bound). `model`, `env`, `options` lead a stand-in to its model."""

    role: str
    harness: str
    budget_usd: float = 0
    model: str = ""
    env: dict[str, str] = field(default_factory=dict)
    env_again: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def bounds(self) -> dict[str, Any]:
        """How long it may take, and what it may cost. A stand-in costs nothing, whatever its CLI makes up."""
        budget = {"budget": bb.budget(usd=self.budget_usd)} if self.budget_usd else {}
        return {"timeout": AGENT_SECONDS_MAX, **budget}

    def reached_by(self, env: dict[str, str]) -> dict[str, Any]:
        """What `bb.agent` is given beside what to do."""
        return {"model": self.model, "env": env, "options": self.options, "max_turns": TURNS_MAX}


@dataclass
class Tests:
    """How the tests went."""

    passed: bool
    said: str
    output: str = ""


@dataclass
class Work:
    """What one agent did, and what became of it."""

    role: str
    keys: list[str]
    answer: str = ""
    findings: list[Finding] = field(default_factory=list)
    commit: str = ""
    files: int = 0
    insertions: int = 0
    deletions: int = 0
    path: str = ""
    tests: str = ""
    merged: bool = False
    why: str = ""
    failed: bool = False

    @property
    def left_over(self) -> bool:
        """It was done, and not merged."""
        return bool(self.commit) and not self.merged


@dataclass
class Report:
    """How it went."""

    commit: str = ""
    before: str = ""
    passed_before: bool = False
    after: str = ""
    passed_after: bool = False
    work: list[Work] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)
    test_runs: int = 0
    polls: int = 0


ASKED: Final = {
    "fix": "The tests of this repository are run with `{test}`. Look for what makes them fail, or, when nothing does, "
    "for the most certain defect in the code, and fix it with the smallest change that is right. Change no tests.",
    "document": "Document this repository where it needs it most: what its public functions and classes do, where no "
    "docstring or comment says so, and a short section on use in its README. Change what is said, not what is done.",
    "review": "Review this repository as an experienced colleague: the few things that matter most, each with its file "
    "and line, and what to do about it. Severity is high, medium or low. Change nothing.",
}
AGAIN_ASKED: Final = (
    "Your change was merged for a trial, and the tests were run with `{test}`. They fail:\n\n{output}\n\n"
    "Find out why, and mend it in the same directory. Change no tests."
)


@bb.process("demo-agents")
async def improve_repository(ctx: bb.Context, order: Order, agents: list[Agent]) -> Report:
    """Let agents review, fix and document a repository; merge what passes its tests into a new branch of it."""
    clone = await ctx.run(fn.clone(order.repository, order.place), key="clone", retry=AGAIN)
    job = Job(ctx, clone, order, len(agents))
    started = [(agent, job.start(agent)) for agent in agents]  # returns at once: the agents work from here on
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(job.look_at_the_start())
        for agent, handle in started:
            tasks.create_task(job.follow(agent, handle))
        tasks.create_task(job.poll())
    await job.publish()
    return job.report


class Job:
    """What is known while it goes on. All of it is a function of the journal, so it survives the scheduler's death."""

    def __init__(self, ctx: bb.Context, clone: fn.Clone, order: Order, agents: int) -> None:
        self.report = Report(commit=clone.commit)
        self._ctx = ctx
        self._clone = clone
        self._test = order.test
        self._branch = order.branch
        self._tip = clone.commit  # what is merged so far
        self._merging = asyncio.Lock()
        self._following = agents
        self._news = asyncio.Event()
        self._held: list[Work] = []
        self._open: list[bb.EffectHandle[Any]] = []

    def start(self, agent: Agent) -> bb.EffectHandle[Any]:
        """An agent in the background, in a worktree of its own."""
        prompt, how = ASKED[agent.role].format(test=self._test), agent.reached_by(agent.env)
        # A session goes on only in a directory that was kept.
        tree = bb.worktree(self._clone.path, base=self._clone.commit, keep="always")
        effect: bb.Effect[Any] = bb.agent(agent.harness, prompt=prompt, workspace=tree, permissions="edit", **how)
        if agent.role == "review":
            effect = bb.agent(
                agent.harness, prompt=prompt, workspace=tree, permissions="read_only", output=Review, **how
            )
        key = f"{agent.role}/{agent.harness}"
        return self._noted(self._ctx.start(effect, key=key, retry=2, **agent.bounds))

    async def look_at_the_start(self) -> None:
        """The tests as they are before anybody has changed anything. Nothing is merged before that is known."""
        async with self._merging:
            before = await self._run_tests(self._tip, "before")
        self.report.before, self.report.passed_before = before.said, before.passed
        self.report.after, self.report.passed_after = before.said, before.passed

    async def follow(self, agent: Agent, handle: bb.EffectHandle[Any]) -> None:
        """What an agent did is used the moment it is done."""
        work = Work(agent.role, [handle.key])
        self.report.work.append(work)
        try:
            await self._use(agent, handle, work)
        finally:
            self._following -= 1
            self._news.set()

    async def _use(self, agent: Agent, handle: bb.EffectHandle[Any], work: Work) -> None:
        try:
            found = await handle
        except bb.EffectError as error:
            work.failed, work.why = True, f"{error.reason}: {error.message}"
            return
        _note(work, handle.workspace)
        if isinstance(found, Review):
            work.answer, work.findings, work.why = found.summary, found.findings, "it only looks"
            return
        work.answer = found.text
        failing = await self._offer(work, hold=agent.role != "fix")
        if failing is not None and (agent.role == "fix" or self.report.passed_after):
            await self._send_back(agent, handle, work, failing)

    async def _send_back(self, agent: Agent, handle: bb.EffectHandle[Any], work: Work, failing: Tests) -> None:
        """The agent goes on in its session and in its worktree, told what the tests say; then it is tried again."""
        self._ctx.log.info("%s goes back to %s: %s", work.role, agent.harness, failing.said)
        prompt, how = AGAIN_ASKED.format(test=self._test, output=failing.output), agent.reached_by(agent.env_again)
        again = bb.agent(agent.harness, prompt=prompt, workspace=bb.exclusive(work.path), permissions="edit", **how)
        key = f"{handle.key}/again"
        work.keys.append(key)
        followed = self._ctx.start(again, key=key, continue_from=handle, **agent.bounds)
        try:
            work.answer = (await self._noted(followed)).text
        except bb.EffectError as error:
            work.failed, work.why = True, f"{work.why}; sent back: {error.reason}: {error.message}"
            return
        done = await self._ctx.run(fn.commit(work.path, work.role, self._clone.commit), key=f"commit/{work.role}")
        work.commit, work.files, work.insertions, work.deletions = done.id, done.files, done.insertions, done.deletions
        await self._offer(work, hold=True)

    async def _offer(self, work: Work, *, hold: bool) -> Tests | None:
        """One at a time is tried on top of what is merged so far; gives the tests when they fail with it."""
        async with self._merging:
            return await self._try(work, hold=hold)

    async def _try(self, work: Work, *, hold: bool) -> Tests | None:
        """Merge for a trial and run the tests. What fails while they fail anyway is held, and tried again later."""
        if not work.commit:
            work.why = "it changed nothing"
            return None
        name = f"{work.role}/{self.report.test_runs}"
        effect = bb.merge(self._clone.path, [work.commit], into=f"trial/{name}", base=self._tip)
        merged = await self._ctx.run(effect, key=f"merge/{name}", retry=AGAIN)
        if merged.conflicts:
            places = [_place(conflict) for item in merged.conflicts for conflict in item.conflicts]
            work.why = f"in conflict with what was merged before it: {', '.join(places)}"
            return None
        tests = await self._run_tests(merged.commit, work.role)
        work.tests = tests.said
        if tests.passed:
            await self._merge(work, merged.commit, tests)
            return None
        work.why = f"the tests fail with it{'' if self.report.passed_after else ', as without it'}"
        if hold and not self.report.passed_after:
            self._held.append(work)
        return tests

    async def _merge(self, work: Work, commit: str, tests: Tests) -> None:
        self._tip, work.merged, work.why = commit, True, "the tests pass with it"
        self.report.after, self.report.passed_after = tests.said, True
        self._ctx.log.info("%s is merged: %s", work.role, tests.said)
        held, self._held = self._held, []
        for other in held:  # the tests that failed with it may have failed for another reason
            await self._try(other, hold=False)

    async def publish(self) -> None:
        """New branches of the repository: what is merged, and, for whoever wants to look, what is not."""
        branches = {f"{self._branch}-{work.role}": work.commit for work in self.report.work if work.left_over}
        if self._tip != self._clone.commit:
            branches[self._branch] = self._tip
        if branches:
            effect = fn.publish(self._clone.path, self._clone.source, branches)
            self.report.branches = await self._ctx.run(effect, key="publish", retry=AGAIN)

    async def poll(self) -> None:
        """Look at the agents every second, as a person would; a foreground effect each time, as a pulse."""
        while self._following:
            self.report.polls += 1
            still_open = [handle for handle in self._open if not handle.done()]
            self._ctx.report(label="; ".join(f"{handle.key} {_doing(handle.progress)}" for handle in still_open))
            await self._ctx.run(fn.pulse(), key=f"pulse/{self.report.polls}", retry=AGAIN)
            await self._a_second_or_news()

    async def _a_second_or_news(self) -> None:
        self._news.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._news.wait()

    def _noted(self, handle: bb.EffectHandle[T]) -> bb.EffectHandle[T]:
        self._open.append(handle)
        self._news.set()
        return handle

    async def _run_tests(self, commit: str, name: str) -> Tests:
        self.report.test_runs += 1
        key = f"{name}/{self.report.test_runs}"
        folder = await self._ctx.run(fn.checkout(self._clone.path, commit), key=f"checkout/{key}", retry=AGAIN)
        # check=False: tests that fail are a finding, not a failure of this run.
        tests = bb.shell(["/bin/sh", "-c", self._test], cwd=folder, check=False, env={"CI": "1"}, label="tests")
        try:
            result = await self._ctx.run(tests, key=f"tests/{key}", timeout=TEST_SECONDS_MAX, retry=AGAIN)
        except bb.EffectError as error:
            return Tests(False, f"{error.reason}: {error.message}", error.stderr_tail)
        return Tests(result.exit_code == 0, *_said(result))


def _note(work: Work, workspace: bb.WorkspaceResult | None) -> None:
    if workspace is not None:
        work.path, work.commit = workspace.path, workspace.result_commit
        work.files, work.insertions = workspace.files_changed, workspace.insertions
        work.deletions = workspace.deletions


def _place(conflict: bb.Conflict) -> str:
    lines = ", ".join(f"{first}-{last}" for first, last in conflict.hunks)
    return f"{conflict.path} ({conflict.kind}{f', lines {lines}' if lines else ''})"


def _said(result: bb.ShellResult) -> tuple[str, str]:
    """The line of the tests' output that sums it up, and the end of the output."""
    out, err = (
        [line for line in tail.splitlines() if line.strip(" =-")] for tail in (result.stdout_tail, result.stderr_tail)
    )
    last_first = [*reversed(out), *reversed(err)]
    said = next(filter(SUMMARY.search, last_first), last_first[0] if last_first else "no output")
    return said.strip("= ")[:200], "\n".join([*out, *err][-SHOWN_LINES:])


def _doing(progress: bb.Progress) -> str:
    return " ".join(part for part in (progress.tool, progress.step) if part) or "…"
