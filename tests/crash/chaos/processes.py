"""What runs under chaos: a process that plays a plan, step after step, and work that leaves marks outside the database.

Whatever starts appends a line to a file of its own before it does anything else, so that starts can be counted without
asking the services. Every step catches the errors of effects: a run ends well unless it was cancelled.
"""

import asyncio
import datetime as dt
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import backburner as bb
from tests.crash.chaos.agents import Agents

#: How long a run waits for somebody outside before it goes on without.
PATIENCE_SECONDS: Final = 8.0


def mark_path(folder: str, run_id: str, key: str) -> str:
    """File that counts the starts of an effect."""
    return f"{folder}/marks/{run_id}~{key.replace('/', '~')}"


def note(path: str) -> None:
    """Counts a start."""
    with Path(path).open("a") as marks:
        marks.write("x\n")


@bb.function
def mark(path: str, seconds: float) -> str:
    """Counts its start and takes so long."""
    note(path)
    time.sleep(seconds)
    return Path(path).name


@bb.function
async def flaky(path: str, failures: int) -> int:
    """Fails so many times."""
    note(path)
    starts = len(Path(path).read_text().splitlines())  # noqa: ASYNC240 - a look at a local file
    if starts <= failures:
        raise RuntimeError(f"start {starts} fails")
    return starts


@bb.function
def wide(path: str, size: int) -> str:
    """A result that is kept as a blob."""
    note(path)
    return "x" * size


def command(path: str, step: Mapping[str, Any]) -> str:
    """A command line: counts its start, says something, takes some time, exits as told."""
    says = f"head -c {step.get('output', 100)} /dev/zero | tr '\\0' x; echo; echo '::backburner {{\"percent\": 50}}'"
    return f"echo x >> '{path}'; {says}; sleep {step.get('seconds', 0)}; exit {step.get('exit', 0)}"


def stubborn(path: str) -> str:
    """A command that ignores TERM and leaves a grandchild in a session of its own behind."""
    loop = "while :; do sleep 0.1; done"
    return f"echo x >> '{path}'; trap '' TERM; setsid sh -c 'trap \"\" TERM; {loop}' & {loop}"


class Player(Agents):
    """Plays one plan."""

    def __init__(self, ctx: bb.Context, folder: str) -> None:
        self.ctx = ctx
        self.folder = folder

    def path(self, key: str) -> str:
        return mark_path(self.folder, self.ctx.run_id, key)

    async def call(self, key: str, step: Mapping[str, Any]) -> object:
        return await self.ctx.run(mark(self.path(key), step["seconds"]), key=key, retry=retry(step))

    async def shell(self, key: str, step: Mapping[str, Any]) -> object:
        effect = bb.shell(command(self.path(key), step), label="shell")
        return (await self.ctx.run(effect, key=key, retry=retry(step))).exit_code

    async def flaky(self, key: str, step: Mapping[str, Any]) -> object:
        return await self.ctx.run(flaky(self.path(key), step["failures"]), key=key, retry=retry(step))

    async def wide(self, key: str, step: Mapping[str, Any]) -> object:
        return len(await self.ctx.run(wide(self.path(key), step["size"]), key=key, retry=retry(step)))

    async def background(self, key: str, step: Mapping[str, Any]) -> object:
        effect = bb.shell(command(self.path(f"{key}/slow"), step), label="slow")
        slow = self.ctx.start(effect, key=f"{key}/slow", retry=retry(step))
        quick = mark(self.path(f"{key}/quick"), 0)
        await self.ctx.run(quick, key=f"{key}/quick", retry=retry(step))
        return (await slow).exit_code

    async def race(self, key: str, step: Mapping[str, Any]) -> object:
        quick = bb.shell(command(self.path(f"{key}/quick"), step), label="quick")
        slow = bb.shell(stubborn(self.path(f"{key}/slow")), label="stubborn")
        handles = [
            self.ctx.start(quick, key=f"{key}/quick", retry=retry(step)),
            self.ctx.start(slow, key=f"{key}/slow", kill_grace=0.2, timeout=30),
        ]
        return (await bb.first_success(handles)).key

    async def timeout(self, key: str, step: Mapping[str, Any]) -> object:
        effect = bb.shell(stubborn(self.path(key)), label="late")
        async with asyncio.timeout(step["seconds"]):
            await self.ctx.run(effect, key=key, kill_grace=0.2)
        return "unreachable"

    async def cancel(self, key: str, step: Mapping[str, Any]) -> object:
        handle = self.ctx.start(bb.shell(stubborn(self.path(key)), label="cancelled"), key=key, kill_grace=0.2)
        await asyncio.sleep(step["seconds"])
        handle.cancel("enough")
        return (await handle).exit_code

    async def sleep(self, _key: str, step: Mapping[str, Any]) -> object:
        await asyncio.sleep(step["seconds"])
        return "slept"

    async def timer(self, key: str, step: Mapping[str, Any]) -> object:
        await self.ctx.run(bb.timer(self.ctx.now() + dt.timedelta(seconds=step["seconds"])), key=key)
        return "rang"

    async def group(self, key: str, step: Mapping[str, Any]) -> object:
        group = bb.group(f"group-{key}", max_concurrency=2)
        handles = [
            self.ctx.start(mark(self.path(f"{key}/{n}"), 0.05), key=f"{key}/{n}", group=group, retry=retry(step))
            for n in range(step["count"])
        ]
        return sum(outcome.ok for outcome in await bb.best_effort(handles))

    async def child(self, key: str, step: Mapping[str, Any]) -> object:
        return await self.ctx.run(bb.run("chaos", folder=self.folder, plan=step["plan"]), key=key)

    async def signal(self, _key: str, _step: Mapping[str, Any]) -> object:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await self.ctx.signal("go")
        except TimeoutError:
            return "nobody"

    async def ask(self, key: str, _step: Mapping[str, Any]) -> object:
        answer = self.ctx.start(bb.approval("Ship it?"), key=key, on_run_end="cancel")
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return (await answer).choice
        except TimeoutError:
            answer.cancel("nobody answers")
            return "nobody"

    async def say(self, _key: str, step: Mapping[str, Any]) -> object:
        for n in range(step["count"]):
            self.ctx.log.info("line %d of %s", n, self.ctx.uuid4())
        self.ctx.report(label="talks")
        return self.ctx.random.randint(0, 9)

    async def left(self, key: str, step: Mapping[str, Any]) -> object:
        effect = bb.shell(command(self.path(key), step), label="left")
        self.ctx.start(effect, key=key, retry=retry(step), on_run_end="cancel" if step["cancel"] else "wait")
        return "left"


def retry(step: Mapping[str, Any]) -> bb.Retry:
    """So many attempts, one soon after the other."""
    return bb.Retry(int(step.get("attempts", 1)), initial=0.05, backoff=1.5, max_interval=0.5)


@bb.process("chaos")
async def chaos(ctx: bb.Context, folder: str, plan: list[dict[str, Any]]) -> dict[str, str]:
    """Plays a plan; answers with the outcome of every step."""
    player, outcomes = Player(ctx, folder), dict[str, str]()
    for number, step in enumerate(plan):
        if step["kind"] == "continue":
            await ctx.continue_as_new(folder=folder, plan=plan[number + 1 :])
        play: Callable[[str, Mapping[str, Any]], Awaitable[object]] = getattr(player, step["kind"])
        try:
            outcomes[str(number)] = f"ok {await play(str(number), step)}"
        except (bb.EffectError, bb.AllFailed, TimeoutError) as error:
            outcomes[str(number)] = type(error).__name__
    return outcomes
