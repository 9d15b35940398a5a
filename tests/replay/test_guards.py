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
from scheduler_service.replay.harness import drive, never, succeeded

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
    "socket.__new__": socket.socket,
}
C_CALLS = {
    "time.time": time.time,
    "time.sleep": lambda: time.sleep(0.001),
    "time.monotonic": time.monotonic,
    "datetime.now": lambda: dt.datetime.now(dt.UTC),
    "date.today": dt.date.today,
    "random.random": random.random,
    "random.getrandbits": lambda: random.randint(1, 5),
    "posix.urandom": uuid.uuid4,
    "posix.stat": lambda: Path("/").exists(),
    "_thread.start": lambda: threading.Thread(target=print).start(),
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


@pytest.mark.parametrize(
    ("ask", "error", "text"),
    [
        (lambda ctx: ctx.start(bb.shell("x"), key="a b"), bb.OptionError, "key 'a b'"),
        (lambda ctx: ctx.start(bb.shell("x"), key="k" * 257), bb.OptionError, "256"),
        (lambda ctx: ctx.start(bb.shell("x"), timeout=-1), bb.OptionError, "timeout=-1"),
        (lambda ctx: ctx.start(bb.shell("x"), retry=0), bb.OptionError, "max_attempts"),
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
