"""What authors are told, word for word: each net of the guards, divergence, and the constructs that are refused."""

import asyncio
import datetime as dt
import os
import random
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

import scheduler_service.authoring as bb
from scheduler_service.replay.execution import replay
from scheduler_service.replay.harness import RUN_ID, Driven, drive
from scheduler_service.replay.recorded import Divergence
from tests.replay.answers import by_key

EFFECT = "an effect: a @bb.function, or bb.shell"
ENVIRONMENT = "the input of the run, or a @bb.function"
TASK = "asyncio.create_task, or a @bb.function for what computes or blocks"
LOOP = "the loop as it is: the scheduler runs it"


def loop() -> Any:
    return asyncio.get_running_loop()


# What a process calls -> what is said of it, and what to use.
REFUSED: list[tuple[Any, str, str]] = [
    # (a) the loop
    (lambda: asyncio.to_thread(print), "loop.run_in_executor()", EFFECT),
    (lambda: asyncio.create_subprocess_exec("true"), "loop.subprocess_exec()", "bb.shell"),
    (lambda: asyncio.open_connection("localhost", 1), "loop.create_connection()", EFFECT),
    (lambda: loop().getaddrinfo("localhost", 1), "loop.getaddrinfo()", EFFECT),
    (lambda: loop().add_signal_handler(1, print), "loop.add_signal_handler()", "ctx.signals"),
    (
        lambda: loop().call_soon_threadsafe(print),
        "loop.call_soon_threadsafe()",
        "ctx.signal, or the result of an effect: threads cannot reach a process",
    ),
    (lambda: loop().set_task_factory(None), "loop.set_task_factory()", "asyncio.create_task"),
    (lambda: loop().set_debug(True), "loop.set_debug()", LOOP),
    (lambda: loop().run_forever(), "loop.run_forever()", LOOP),
    (asyncio.new_event_loop, "asyncio.new_event_loop()", "await: a process has its one loop already"),
    (lambda: asyncio.run(asyncio.sleep(0)), "asyncio.run()", "await: a process has its one loop already"),
    (
        lambda: asyncio.set_event_loop_policy(None),
        "asyncio.set_event_loop_policy()",
        "await: a process has its one loop already",
    ),
    (
        lambda: [*asyncio.as_completed([asyncio.sleep(1)])],
        "asyncio.as_completed() of coroutines (it starts them in memory order)",
        "tasks or futures there, or bb.as_completed",
    ),
    # (b) audited: files, sockets, children
    (lambda: open("/tmp/x"), "open('/tmp/x')", EFFECT),  # noqa: PTH123, SIM115
    (lambda: Path("/etc/hosts").read_text(), "pathlib.Path.read_text(), which calls open('/etc/hosts'),", EFFECT),
    (lambda: os.listdir("/"), "os.listdir('/')", EFFECT),  # noqa: PTH208
    (socket.socket, "socket.socket()", EFFECT),
    (
        lambda: socket.create_connection(("localhost", 1)),
        "socket.create_connection(), which calls socket.getaddrinfo('localhost'),",
        EFFECT,
    ),
    (lambda: sqlite3.connect(":memory:"), "sqlite3.connect(':memory:')", EFFECT),
    (
        lambda: subprocess.run(["true"], check=True),
        "subprocess.run(), which calls subprocess.Popen('true'),",
        "bb.shell",
    ),
    (lambda: os.system("true"), "os.system(b'true')", "bb.shell"),
    (lambda: os.kill(1, 0), "os.kill()", "handle.cancel()"),
    # (c) calls of C functions: clocks, randomness, threads
    (lambda: time.sleep(1), "time.sleep()", "await asyncio.sleep()"),
    (time.time, "time.time()", "ctx.now()"),
    (lambda: dt.datetime.now(dt.UTC), "datetime.now()", "ctx.now()"),
    (dt.date.today, "date.today()", "ctx.now()"),
    (random.random, "random.random()", "ctx.random"),
    (lambda: random.choice([1, 2]), "random.choice(), which calls random.getrandbits(),", "ctx.random"),
    (random.Random, "random.Random(), which calls random.seed(),", "ctx.random"),
    (uuid.uuid4, "uuid.uuid4(), which calls os.urandom(),", "ctx.uuid4()"),
    (lambda: os.urandom(8), "os.urandom()", "ctx.random or ctx.uuid4()"),
    (lambda: Path("/").exists(), "pathlib.Path.exists(), which calls os.stat(),", EFFECT),
    (os.getpid, "os.getpid()", "ctx.run_id"),
    (os.getcwd, "os.getcwd()", "the cwd= of an effect"),
    (Path.cwd, "pathlib.Path.cwd(), which calls os.getcwd(),", "the cwd= of an effect"),
    (lambda: os.environ["HOME"], "os.environ['HOME']", ENVIRONMENT),
    (lambda: "HOME" in os.environ, "os.environ['HOME']", ENVIRONMENT),
    (lambda: os.environ.get("HOME"), "os.environ['HOME']", ENVIRONMENT),
    (lambda: os.getenv("HOME"), "os.getenv(), which calls os.environ['HOME'],", ENVIRONMENT),
    (lambda: dict(os.environ), "os.environ", ENVIRONMENT),
    (lambda: os.path.expanduser("~"), "os.path.expanduser(), which calls os.environ['HOME'],", ENVIRONMENT),  # noqa: PTH111
    (os.uname, "os.uname()", EFFECT),
    (os.cpu_count, "os.cpu_count()", EFFECT),
    (lambda: os.readlink("/"), "os.readlink()", EFFECT),  # noqa: PTH115
    (lambda: time.strftime("%Y"), "time.strftime()", "ctx.now().strftime()"),
    (time.localtime, "time.localtime()", "ctx.now()"),
    (time.ctime, "time.ctime()", "ctx.now()"),
    (
        lambda: time.mktime((2026, 1, 1, 0, 0, 0, 0, 0, 0)),
        "time.mktime()",
        "a datetime with a time zone, and its timestamp()",
    ),
    (lambda: threading.Thread(target=print).start(), "threading.Thread.start()", TASK),
]


@pytest.mark.parametrize(("call", "said", "instead"), REFUSED, ids=[said for _call, said, _instead in REFUSED])
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_refused_call(call: Any, said: str, instead: str) -> None:
    async def body(ctx: bb.Context) -> Any:
        result = call()
        if asyncio.iscoroutine(result):
            await result

    run = drive(bb.ProcessDefinition("body", body), {})
    assert run.end is not None
    error = run.end.data["error"]
    path, line, message = error["message"].split(":", 2)
    assert (path, error["kind"]) == (__file__, "DETERMINISM")
    assert message == f" {said} is not deterministic in a process; use {instead}"
    source = Path(__file__).read_text().splitlines()[int(line) - 1]
    assert "call()" in source or "await result" in source or "lambda: " in source


def test_a_library_that_tells_the_purpose_decides_the_right_call() -> None:
    async def body(ctx: bb.Context) -> Any:
        return tempfile.mkdtemp()

    run = drive(bb.ProcessDefinition("body", body), {})
    assert run.end is not None
    message = run.end.data["error"]["message"]
    # What it calls first depends on whether anybody has used tempfile before: its source of names is made once.
    assert message.startswith(f"{__file__}:{body.__code__.co_firstlineno + 1}: tempfile.mkdtemp(")
    assert message.endswith(f"is not deterministic in a process; use {EFFECT}")


# --- divergence ------------------------------------------------------------------------------------------------------


def lint(path: str) -> bb.Effect[Any]:
    return bb.function("lint", path)


async def original(ctx: bb.Context) -> Any:
    await ctx.run(lint("a.py"))
    await asyncio.sleep(2)
    handle = ctx.start(lint("b.py"))
    handle.cancel()
    await asyncio.sleep(1)
    return "done"


async def changed_args(ctx: bb.Context) -> Any:
    await ctx.run(lint("other.py"))


async def no_sleep(ctx: bb.Context) -> Any:
    await ctx.run(lint("a.py"))
    await ctx.run(lint("b.py"))


async def stays(ctx: bb.Context) -> Any:
    await ctx.run(lint("a.py"))
    await ctx.signal("go")


async def ends(ctx: bb.Context) -> Any:
    await ctx.run(lint("a.py"))


async def more_at_once(ctx: bb.Context) -> Any:
    await ctx.run(lint("a.py"))
    await asyncio.sleep(2)
    await asyncio.gather(asyncio.sleep(1), asyncio.sleep(1))


def line(body: Any, offset: int) -> str:
    return f"{__file__}:{body.__code__.co_firstlineno + offset}"


A, B, OTHER = (f'{{"function":{{"args":["{name}"],"function":"lint"}}}}' for name in ("a.py", "b.py", "other.py"))
AFTER_LINT = "replay diverged at seq 3 (EFFECT_RESOLVED of lint#1): recorded TIMER_SET 1 (seq 4); "
DIVERGED: list[tuple[Any, str]] = [
    (
        changed_args,
        f"replay diverged at seq 1 (RUN_CREATED): args of lint#1 changed: recorded {A} (seq 2); "
        f"asked {OTHER} at {line(changed_args, 1)}",
    ),
    (no_sleep, f"{AFTER_LINT}asked EFFECT_REQUESTED lint#2 {B} at {line(no_sleep, 2)}"),
    (stays, f"{AFTER_LINT}asked nothing, process code waits at {line(stays, 2)}"),
    (ends, f"{AFTER_LINT}asked RUN_COMPLETED"),
    (
        more_at_once,
        "replay diverged at seq 5 (TIMER_FIRED): recorded nothing; asked TIMER_SET 3, process code waits at "
        f"{line(more_at_once, 3)}",
    ),
]
REMEDY = ". Restore the code, or keep the old way for old runs: if ctx.patched(id): new code, else: old code"


@pytest.mark.invariant("I8")
@pytest.mark.parametrize(("body", "said"), DIVERGED, ids=[body.__name__ for body, _said in DIVERGED])
def test_a_divergence(body: Any, said: str) -> None:
    history: Driven = drive(bb.ProcessDefinition("body", original), {}, by_key())
    assert history.result == "done"
    with pytest.raises(Divergence) as caught:
        replay(bb.ProcessDefinition("body", body), RUN_ID, history.events)
    assert str(caught.value) == said + REMEDY
