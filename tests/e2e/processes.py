"""Processes and functions that the e2e and crash suites run through both services."""

import asyncio
import logging
import os
from pathlib import Path

import backburner as bb


@bb.function
def add(a: int, b: int) -> int:
    return a + b


@bb.function
async def wait_for_file(path: str, seconds: float = 60.0) -> str:
    """Waits until a test makes the file; its text is the result."""
    for _ in range(int(seconds / 0.02)):
        if Path(path).exists():  # noqa: ASYNC240 - a look at a local folder
            return Path(path).read_text()  # noqa: ASYNC240
        await asyncio.sleep(0.02)
    raise TimeoutError(path)


@bb.function
def mark(folder: str, name: str) -> str:
    """Leaves a mark outside the database each time it runs."""
    with (Path(folder) / name).open("a") as marks:
        marks.write(f"{os.getpid()}\n")
    return name


@bb.function
def text_of(length: int) -> str:
    """A text of so many letters."""
    return "x" * length


@bb.process("mixed")
async def mixed(ctx: bb.Context, folder: str, foreground: int = 20) -> dict[str, object]:
    """Background effects that a test releases, foreground ones beside them, a durable sleep, a poll."""
    again = bb.Retry(max_attempts=10, initial=0.05, backoff=1.0)
    release = f"while [ ! -e {folder}/release ]; do sleep 0.02; done; echo released; echo done >&2"
    slow = ctx.start(bb.shell(release, label="release"), key="slow", retry=again)
    total = 0
    for i in range(foreground):
        total = await ctx.run(add(total, i), key=f"add/{i}", retry=again)
        await ctx.run(mark(folder, f"mark-{i}"), key=f"mark/{i}", retry=again)
    pending = not slow.done()
    await ctx.run(mark(folder, "half-way"), key="half-way", retry=again)
    await asyncio.sleep(0.05)
    out = await slow
    async with asyncio.TaskGroup() as tasks:
        sums = [tasks.create_task(ctx.run(add(i, i), key=f"sum/{i}", retry=again)) for i in range(10)]
    return {
        "total": total, "pending": pending, "stdout": out.stdout_tail, "stderr": out.stderr_tail,
        "sums": [task.result() for task in sums],
    }  # fmt: skip


@bb.process("race")
async def race(ctx: bb.Context, folder: str) -> dict[str, str]:
    """Two commands race; the loser ignores TERM and leaves a grandchild of its own session behind."""
    stubborn = (
        f"trap '' TERM; setsid sh -c 'trap \"\" TERM; echo $$ > {folder}/grandchild; while :; do sleep 0.1; done' & "
        f"echo $$ > {folder}/loser; while :; do sleep 0.1; done"
    )
    quick = f"while [ ! -s {folder}/grandchild ]; do sleep 0.02; done; echo won"
    handles = [
        ctx.start(bb.shell(quick, label="quick"), key="quick"),
        ctx.start(bb.shell(stubborn, label="stubborn"), key="stubborn", kill_grace=0.2),
    ]
    won = await bb.first_success(handles)
    return {"winner": won.key}


@bb.process("failing")
async def failing(ctx: bb.Context) -> dict[str, object]:
    """Ways in which effects fail, each caught."""
    found: dict[str, object] = {}
    for key, effect in (
        ("exit", bb.shell("echo out; echo err >&2; exit 3", label="exit")),
        ("signal", bb.shell("kill -SEGV $$", label="signal")),
        ("missing", bb.shell(["/does/not/exist"], label="missing")),
    ):
        try:
            await ctx.run(effect, key=key)
        except bb.EffectFailed as error:
            found[key] = [error.reason, error.exit_code, error.signal]
    try:
        await ctx.run(bb.shell("sleep 60", label="late"), key="late", timeout=0.2)
    except bb.EffectTimedOut as error:
        found["late"] = [error.reason, error.kind]
    return found


@bb.process("ends")
async def ends(ctx: bb.Context, folder: str) -> str:
    """Returns while effects are open: one is waited for, one cancelled, one goes on alone."""
    hold = f"while [ ! -e {folder}/release ]; do sleep 0.02; done"
    ctx.start(bb.shell(hold, label="waited"), key="waited")
    ctx.start(bb.shell("sleep 600", label="cancelled"), key="cancelled", on_run_end="cancel")
    ctx.start(bb.shell(f"while [ ! -e {folder}/later ]; do sleep 0.02; done", label="alone"), key="alone",
              on_run_end="detach")  # fmt: skip
    await ctx.run(mark(folder, "returned"), key="mark")
    return "returned"


@bb.process("cleans-up")
async def cleans_up(ctx: bb.Context, folder: str) -> None:
    """Runs an effect in `finally` after a cancel."""
    try:
        await ctx.run(bb.shell(f"touch {folder}/started; sleep 600", label="long"), key="long")
    finally:
        await ctx.run(mark(folder, "cleaned"), key="clean")


@bb.process("groups")
async def groups(ctx: bb.Context, folder: str, count: int, most: int) -> int:
    """Effects of one group; each notes how many run beside it."""
    probe = f"mkdir {folder}/run-$$; ls -d {folder}/run-* | wc -l; sleep 0.05; rmdir {folder}/run-$$"
    group = bb.group("probe", max_concurrency=most)
    handles = [ctx.start(bb.shell(probe, label="probe"), key=f"probe/{i}", group=group) for i in range(count)]
    outs = await bb.all(handles)
    return max(int(out.stdout_tail) for out in outs)


@bb.process("talks")
async def talks(ctx: bb.Context, folder: str) -> str:
    """Prints before and after an effect that a test releases."""
    print("printed before")
    logging.getLogger("talks").warning("logged before")
    await ctx.run(wait_for_file(f"{folder}/release"), key="wait", retry=bb.Retry(10, initial=0.05))
    print("printed after")
    return "done"
