"""The demo's process, as an author would write it: slow work in the background, while the loop goes on.

It reads no file and no clock: all of that is effects. So whatever dies at whatever line, it goes on where it was.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import Final

import backburner as bb
from scheduler_service.cli.demo import functions as fn

Handle = bb.EffectHandle[bb.ShellResult]

SLOW_SECONDS_MAX: Final = 600
FILES_MAX: Final = 80
FILES_AT_A_TIME: Final = 8
# All of it only looks, so an executor that dies costs a repetition and nothing else. What was too slow is so again.
AGAIN: Final = bb.Retry(max_attempts=5, initial=0.5, non_retryable=["TIMEOUT_START_TO_CLOSE"])


@dataclass
class Finding:
    """One piece of background work and how it ended."""

    key: str
    what: str
    verdict: str = ""
    last_progress: str = ""


@dataclass
class Report:
    """What the demo found."""

    files: int = 0
    files_checked: int = 0
    lines: int = 0
    marks: int = 0
    functions: int = 0
    longest: str = ""
    longest_lines: int = 0
    broken: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    polls: int = 0
    running_after_files: list[str] = field(default_factory=list)
    race: str = ""
    answer: str = ""


@bb.process("demo")
async def check_repository(ctx: bb.Context, repository: str, ask_seconds: float = 1.5) -> Report:
    """Check a repository, in the background and in the foreground at the same time."""
    survey = await ctx.run(fn.survey(repository, FILES_MAX), key="survey", retry=AGAIN)
    report = Report(files=survey.total_files)

    slow = start_slow_work(ctx, repository, survey, report)  # returns at once: everything slow runs from here on
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(poll(ctx, slow, report))
        for handle, finding in slow:
            tasks.create_task(use_result(ctx, handle, finding))

        await check_files(ctx, repository, survey.files, report)
        report.running_after_files = [handle.key for handle, _ in slow if not handle.done()]
        ctx.log.info("all files are checked; still running: %s", ", ".join(report.running_after_files) or "nothing")
        report.race = await race_two_searches(ctx, repository, in_git=survey.is_git)
        report.answer = await ask_for_approval(ctx, ask_seconds)
    return report


def start_slow_work(
    ctx: bb.Context, repository: str, survey: fn.Survey, report: Report
) -> list[tuple[Handle, Finding]]:
    """Start what is slow in the background; what this repository has not is said in the report."""
    started = []
    for slow in survey.slow:
        if slow.missing:
            report.skipped.append(f"{slow.what}: {slow.missing}")
            continue
        # check=False: a failing test suite is a finding about the repository, not a failure of this run.
        effect = bb.shell(slow.argv, cwd=repository, check=False, env=slow.env, label=slow.key)
        handle = ctx.start(effect, key=slow.key, timeout=SLOW_SECONDS_MAX, poll_interval=1, retry=AGAIN)
        started.append((handle, Finding(slow.key, slow.what)))
    report.findings = [finding for _, finding in started]
    return started


async def poll(ctx: bb.Context, slow: list[tuple[Handle, Finding]], report: Report) -> None:
    """Look at the background work every second, as a person would; a foreground effect each time, as a pulse."""
    while still_open := [(handle, finding) for handle, finding in slow if not handle.done()]:
        report.polls += 1
        for handle, finding in still_open:
            finding.last_progress = describe(handle.progress)
        ctx.report(label="; ".join(f"{handle.key} {finding.last_progress}" for handle, finding in still_open))
        await ctx.run(fn.pulse(), key=f"pulse/{report.polls}", retry=AGAIN)
        await bb.wait([handle for handle, _ in still_open], timeout=1.0, return_when=asyncio.FIRST_COMPLETED)


async def use_result(ctx: bb.Context, handle: Handle, finding: Finding) -> None:
    """Use a background result the moment it lands."""
    try:
        result = await handle
    except bb.EffectError as error:  # timed out, executor lost, ...: a finding too
        finding.verdict = f"{error.reason}: {error.message}"
        return
    verdict = fn.verdict(finding.key, result.exit_code, result.output, result.stdout_tail, result.stderr_tail)
    finding.verdict = await ctx.run(verdict, key=f"verdict/{finding.key}", retry=AGAIN)
    ctx.log.info("%s: %s", finding.what, finding.verdict)


async def check_files(ctx: bb.Context, repository: str, files: list[str], report: Report) -> None:
    """Short foreground effects over the files, a few files at a time."""
    room = asyncio.Semaphore(FILES_AT_A_TIME)

    async def check(index: int, file: str) -> None:
        async with room:
            try:
                await check_file(ctx, repository, file, key_of(index, file), report)
            except bb.EffectError as error:  # deleted meanwhile, not readable, ...: the others go on
                report.broken.append(f"{file}: {error.message}")

    await asyncio.gather(*(check(index, file) for index, file in enumerate(files)))


async def check_file(ctx: bb.Context, repository: str, file: str, key: str, report: Report) -> None:
    """The effects of one file: two at the same time, then a third where it makes sense."""
    size, marks = await asyncio.gather(
        ctx.run(fn.size(repository, file), key=f"size/{key}", retry=AGAIN),
        ctx.run(fn.marks(repository, file), key=f"marks/{key}", retry=AGAIN),
    )
    report.files_checked += 1
    report.lines += size.lines
    report.marks += marks
    if not file.endswith(".py"):
        return
    syntax = await ctx.run(fn.syntax(repository, file), key=f"syntax/{key}", retry=AGAIN)
    report.functions += syntax.functions
    if not syntax.ok:
        report.broken.append(f"{file}: {syntax.message}")
    if syntax.longest_lines > report.longest_lines:
        report.longest_lines, report.longest = syntax.longest_lines, f"{syntax.longest} in {file}"


async def race_two_searches(ctx: bb.Context, repository: str, *, in_git: bool) -> str:
    """Two ways to count the same lines; the first answer wins and the other is cancelled."""
    racers = [
        ctx.start(
            bb.shell(line, cwd=repository, check=False, label=name), background=False, key=f"race/{name}", retry=AGAIN
        )
        for name, line in (GIT_SEARCHES if in_git else PLAIN_SEARCHES)
    ]
    won = await bb.first_success(racers)
    loser = next(handle for handle in racers if handle.key != won.key)
    [lost] = await bb.best_effort([loser])  # its death is proven when this returns
    end = f"was cancelled ({lost.error.reason})" if lost.error else "had finished, too"
    return f"{won.key} was first; {loser.key} {end}"


# The second of each starts one child a file. Only the names of files go through them, so their output is bounded.
GIT_SEARCHES: Final = (
    ("git-grep", "git grep --untracked -c -e import"),
    ("grep-each", "git ls-files -z --cached --others --exclude-standard | xargs -0 -n 1 grep -c -H -e import"),
)
PLAIN_SEARCHES: Final = (
    ("grep-all", "grep -r -c -I -e import ."),
    ("grep-each", "find . -type f -exec grep -c -H -I -e import {} ';'"),
)


async def ask_for_approval(ctx: bb.Context, seconds: float) -> str:
    """Ask a person; here, after a durable sleep, an effect answers in the person's place."""
    question = ctx.start(bb.approval("Accept the report?", choices=["accept", "reject"]), key="approval")
    await asyncio.sleep(seconds)  # a row in the journal: it would survive a restart of everything
    await ctx.run(fn.answer(question.effect_id, "accept"), key="answer", retry=AGAIN)
    approval = await question
    return f"{approval.choice} by {approval.by}"


def describe(progress: bb.Progress) -> str:
    """Progress in a few words."""
    percent = "" if progress.percent is None else f"{progress.percent:.0f}%"
    return " ".join(part for part in (percent, progress.step) if part) or "…"


def key_of(index: int, file: str) -> str:
    """A key for a file: its path where that can be a key, else with its index to stay unique."""
    clean = re.sub(r"[^A-Za-z0-9._/:@+-]", "_", file)[-200:]
    return clean if clean == file else f"{clean}#{index}"
