"""Forbidden calls: three nets, each naming the line, the call and the right call."""

import asyncio
import contextlib
import datetime as dt
import gc
import logging
import os
import random
import socket
import subprocess
import threading
import time
import uuid
import warnings
from pathlib import Path
from typing import Any

import pytest

import scheduler_service.authoring as bb
from scheduler_service.replay.events import Event
from scheduler_service.replay.execution import Execution
from scheduler_service.replay.harness import RUN_ID, START, drive, never, succeeded

LOOP_CALLS = {
    "run_in_executor": lambda: asyncio.to_thread(print),
    "subprocess_shell": lambda: asyncio.create_subprocess_shell("true"),
    "create_connection": lambda: asyncio.open_connection("localhost", 1),
    "getaddrinfo": lambda: asyncio.get_running_loop().getaddrinfo("localhost", 1),
    "add_reader": lambda: asyncio.get_running_loop().add_reader(0, print),
    "add_signal_handler": lambda: asyncio.get_running_loop().add_signal_handler(1, print),
    "call_soon_threadsafe": lambda: asyncio.get_running_loop().call_soon_threadsafe(print),
    "set_task_factory": lambda: asyncio.get_running_loop().set_task_factory(None),
}
AUDITED_CALLS = {
    "open": lambda: open("/dev/null"),  # noqa: SIM115, PTH123 - the point
    "os.listdir": lambda: os.listdir("/"),  # noqa: PTH208 - the point
    "subprocess.Popen": lambda: subprocess.Popen(["true"]),
    "socket.socket": socket.socket,
}
C_CALLS = {
    "time.time": time.time,
    "time.sleep": lambda: time.sleep(0.001),
    "time.monotonic": time.monotonic,
    "datetime.now": lambda: dt.datetime.now(dt.UTC),
    "date.today": dt.date.today,
    "random.random": random.random,
    "random.getrandbits": lambda: random.randint(1, 5),
    "os.urandom": uuid.uuid4,
    "os.stat": lambda: Path("/").exists(),
    "threading.Thread.start": lambda: threading.Thread(target=print).start(),
}


def refusal(call: Any) -> dict[str, Any]:
    """The error with which a process that makes this call is parked."""

    async def body(ctx: bb.Context) -> Any:
        result = call()
        if asyncio.iscoroutine(result):
            await result

    driven = drive(bb.ProcessDefinition("body", body), {})
    assert driven.end is not None, "the call went through"
    assert driven.end.type == "PROCESS_RUNTIME_ERROR", driven.end
    error: dict[str, Any] = driven.end.data["error"]
    return error


@pytest.mark.parametrize("name", [*LOOP_CALLS, *AUDITED_CALLS, *C_CALLS])
def test_forbidden_call_names_line_call_and_the_right_call(name: str) -> None:
    calls: dict[str, Any] = {**LOOP_CALLS, **AUDITED_CALLS, **C_CALLS}
    error = refusal(calls[name])
    assert error["kind"] == "DETERMINISM"
    assert Path(__file__).name in error["message"].split(" ")[0]
    assert name in error["message"]
    assert "; use " in error["message"]


def test_as_completed_of_coroutines_is_refused_and_names_the_alternative() -> None:
    async def nothing() -> None:
        pass

    def call() -> Any:
        return [*asyncio.as_completed([nothing(), nothing()])]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the coroutines that were not started
        assert "bb.as_completed" in refusal(call)["message"]
        gc.collect()


def test_what_is_allowed() -> None:
    """Imports, logging, warnings and what is derived from the run go through."""

    async def body(ctx: bb.Context) -> Any:
        import colorsys  # noqa: F401 - an import reads files

        import this_does_not_exist_anywhere  # type: ignore[import-not-found]  # noqa: F401

    async def fine(ctx: bb.Context) -> Any:
        with contextlib.suppress(ModuleNotFoundError):
            await body(ctx)
        logging.getLogger("process").warning("said at some time")
        assert ctx.now().tzinfo is not None
        stream = ctx.random
        return [stream.random() != stream.random(), ctx.uuid4() != ctx.uuid4(), random.Random(7).random() > 0]

    assert drive(bb.ProcessDefinition("fine", fine), {}).result == [True, True, True]


def test_guards_are_off_outside_of_steps_and_restored() -> None:
    async def body(ctx: bb.Context) -> Any:
        return 1

    drive(bb.ProcessDefinition("body", body), {})
    assert time.time() > 0
    assert os.listdir("/")  # noqa: PTH208


def test_calls_are_not_watched_when_it_is_switched_off() -> None:
    async def body(ctx: bb.Context) -> Any:
        return time.time() > 0

    assert drive(bb.ProcessDefinition("body", body), {}, watch_calls=False).result is True


def test_nothing_leaks_in_from_whoever_feeds() -> None:
    import contextvars

    variable = contextvars.ContextVar("variable", default="clean")
    variable.set("request of somebody")

    async def body(ctx: bb.Context) -> Any:
        assert bb.current() is ctx
        return variable.get()

    assert drive(bb.ProcessDefinition("body", body), {}).result == "clean"
    with pytest.raises(RuntimeError, match="no process is running"):
        bb.current()


END = dt.datetime.max.replace(tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("ask", "error", "text"),
    [
        (lambda ctx: ctx.start(bb.shell("x"), key="a b"), bb.OptionError, "key 'a b'"),
        (lambda ctx: ctx.start(bb.shell("x"), key="k" * 257), bb.OptionError, "256"),
        (lambda ctx: ctx.start(bb.shell("x"), timeout=-1), bb.OptionError, "timeout=-1"),
        (lambda ctx: ctx.start(bb.shell("x"), retry=0), bb.OptionError, "max_attempts"),
        (lambda ctx: ctx.start(bb.run("p"), retry=2, queue_timeout=1), bb.OptionError, "queue_timeout, retry: not for"),
        (lambda ctx: ctx.start(bb.approval("?"), sleep_until=ctx.now()), bb.OptionError, "sleep_until: not"),
        (lambda ctx: ctx.start(bb.timer(ctx.now()), priority=1), bb.OptionError, "priority: not for"),
        (lambda ctx: ctx.start(bb.shell("x"), retry=1001), bb.OptionError, "max_attempts=1001"),
        (lambda ctx: ctx.start(bb.shell("x"), retry=bb.Retry(2, backoff=1e9)), bb.OptionError, "backoff"),
        (lambda ctx: ctx.start(bb.shell("x"), kill_grace=61), bb.OptionError, "kill_grace=61"),
        (lambda ctx: ctx.start(bb.shell("x"), sleep_until=END), bb.OptionError, "years 1 and 9999"),
        (lambda ctx: ctx.start(bb.timer(END)), bb.OptionError, "years 1 and 9999"),
        (lambda ctx: ctx.start(bb.shell("x", output_bytes_max=1 << 40)), bb.OptionError, "output_bytes_max"),
        (lambda ctx: ctx.start(bb.shell("x"), colour="red"), TypeError, "unknown option 'colour'"),
        (lambda ctx: ctx.start(bb.shell("x"), on_run_end="explode"), bb.OptionError, "on_run_end"),
        (lambda ctx: ctx.start(bb.shell("x" * (1 << 20))), bb.OptionError, "at most 1048576"),
        (lambda ctx: ctx.start("x"), TypeError, "no effect"),
        (lambda ctx: [ctx.start(bb.shell("x"), key="k"), ctx.start(bb.shell("x"), key="k")], bb.KeyReused, "'k'"),
    ],
)
def test_static_mistakes_raise_at_the_line(ask: Any, error: type[Exception], text: str) -> None:
    async def body(ctx: bb.Context) -> Any:
        with pytest.raises(error, match=text.replace("(", r"\(")):
            ask(ctx)

    drive(bb.ProcessDefinition("body", body), {}, lambda _command: succeeded())


def test_generated_keys_count_by_name_and_scope() -> None:
    async def body(ctx: bb.Context) -> Any:
        one = ctx.start(bb.shell("make all"))
        with ctx.scope("file/a.py"):
            two = ctx.start(bb.shell(["/usr/bin/make", "x"]))
            three = ctx.start(bb.shell("make"), key="mine")
        return [one.key, two.key, three.key, ctx.start(bb.shell("make")).key, ctx.start(bb.shell("x", label="a b")).key]

    run = drive(bb.ProcessDefinition("body", body), {}, never)
    closing = run.rows("RUN_CLOSING")[0]
    assert closing.data["result"]["value"] == ["make#1", "file/a.py/make#1", "file/a.py/mine", "make#2", "a_b#1"]


SHARED: dict[str, Any] = {}


async def waits(ctx: bb.Context) -> Any:
    """Leaves what belongs to it where other runs find it, as a module global would."""
    SHARED.update(ctx=ctx, handle=ctx.start(bb.function("f"), key="k"), event=asyncio.Event())
    await SHARED["event"].wait()


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda of: of["ctx"].log.info("x"), "the ctx of another run"),
        (lambda of: of["ctx"].start(bb.function("f")), "the ctx of another run"),
        (lambda of: of["handle"].cancel(), "the ctx of another run"),
        (lambda of: of["event"].set(), "an asyncio object (Event, Queue, Future) that another run waits for"),
    ],
)
def test_what_belongs_to_another_run_is_refused_and_that_run_asks_for_nothing(use: Any, said: str) -> None:
    async def thief(ctx: bb.Context) -> Any:
        use(SHARED)

    robbed = Execution(bb.ProcessDefinition("waits", waits), RUN_ID)
    created = Event(1, "RUN_CREATED", START)
    assert [command.type for command in robbed.feed(created)] == ["EFFECT_REQUESTED"]
    [command] = Execution(bb.ProcessDefinition("thief", thief), RUN_ID).feed(created)
    error = command.data["error"]
    assert error["kind"] == "DETERMINISM"
    assert error["message"].startswith(f"{__file__}:")
    assert f" {said} is not deterministic in a process; use " in error["message"]
    assert robbed.feed(Event(2, "SIGNAL_RECEIVED", START, data={"name": "x"})) == []
    robbed.evict()


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("name", [*LOOP_CALLS, *AUDITED_CALLS, *C_CALLS])
def test_process_code_cannot_go_on_from_a_refusal(name: str) -> None:
    """A step that is not watched, or replayed, would take the other way."""
    call: Any = {**LOOP_CALLS, **AUDITED_CALLS, **C_CALLS}[name]

    async def body(ctx: bb.Context) -> Any:
        try:
            result = call()
            if asyncio.iscoroutine(result):
                await result
        except Exception:  # noqa: BLE001 - what authors write
            return "went on"

    driven = drive(bb.ProcessDefinition("body", body), {})
    assert driven.end is not None
    assert (driven.end.type, driven.end.data.get("error", {}).get("kind")) == ("PROCESS_RUNTIME_ERROR", "DETERMINISM")
