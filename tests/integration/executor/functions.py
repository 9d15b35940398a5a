"""Functions that the executor's tests call by name."""

import asyncio
import threading
import time
from dataclasses import dataclass
from typing import Any

import backburner as bb
from executor_service.reporting import cancelled, progress, usage

#: Set by functions that a test wants to know have begun, by name.
BEGAN: dict[str, threading.Event] = {}
CALLS: list[str] = []


@dataclass
class Point:
    x: int
    y: int


@bb.function(name="exec.echo")
async def echo(value: Any) -> Any:
    return value


@bb.function(name="exec.text")
async def text(size: int) -> str:
    """A text that is so many bytes as JSON."""
    return "x" * (size - 2)


@bb.function(name="exec.noop")
async def noop() -> None:
    return None


@bb.function(name="exec.blocking")
def blocking(point: Point) -> dict[str, int]:
    return {"sum": point.x + point.y}


@bb.function(name="exec.count")
async def count(name: str) -> int:
    CALLS.append(name)
    return CALLS.count(name)


@bb.function(name="exec.raises")
async def raises(message: str) -> None:
    raise LookupError(message.replace("<NUL>", "\0").replace("<SURROGATE>", "\ud800"))


@bb.function(name="exec.refused")
def refused(kind: str, retry_after: float | None = None) -> None:
    raise {"rate": bb.RateLimited, "load": bb.Overloaded}[kind]("not now", retry_after=retry_after)


@bb.function(name="exec.exits")
def exits() -> None:
    raise SystemExit(3)


@bb.function(name="exec.bad_result")
async def bad_result() -> Any:
    return {"deep": [1, float("nan")]}


@bb.function(name="exec.too_large")
async def too_large() -> str:
    return "x" * (17 * 1024 * 1024)


@bb.function(name="exec.forever")
async def forever(name: str) -> None:
    BEGAN[name].set()
    await asyncio.Event().wait()


@bb.function(name="exec.stubborn")
async def stubborn(name: str) -> None:
    BEGAN[name].set()
    while not cancelled():
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            continue
    while not BEGAN[f"{name} may end"].is_set():  # noqa: ASYNC110 - set from outside of the loop
        await asyncio.sleep(0.01)


@bb.function(name="exec.blocks_until_asked")
def blocks_until_asked(name: str) -> str:
    BEGAN[name].set()
    deadline = time.monotonic() + 20
    while not cancelled() and time.monotonic() < deadline:
        time.sleep(0.005)
    return "stopped when asked"


@bb.function(name="exec.cancels_itself")
async def cancels_itself() -> None:
    raise asyncio.CancelledError


@bb.function(name="exec.steps")
async def steps(names: list[str], pause_s: float) -> int:
    for index, name in enumerate(names):
        progress(step=name, step_index=index + 1, step_count=len(names), percent=100 * index / len(names))
        await asyncio.sleep(pause_s)
    return len(names)


@bb.function(name="exec.flood")
async def flood(name: str, count: int, *, ends: bool) -> None:
    """Reports a new step and a little more of the whole, so many times; then it ends, or waits."""
    for n in range(1, count + 1):
        progress(step=f"step {n}", step_index=n, percent=100 * n / count)
        if n % 500 == 0:
            await asyncio.sleep(0)
    BEGAN[name].set()
    if not ends:
        await asyncio.Event().wait()


@bb.function(name="exec.odd_text")
async def odd_text(name: str) -> None:
    _say_odd_text()
    BEGAN[name].set()
    await asyncio.Event().wait()


@bb.function(name="exec.odd_text_in_thread")
def odd_text_in_thread(name: str) -> None:
    _say_odd_text()
    BEGAN[name].set()
    while not cancelled():
        time.sleep(0.005)


def _say_odd_text() -> None:
    odd = b"caf\xe9\x00.txt".decode("utf-8", "surrogateescape")
    progress(step=odd, data={odd: odd})
    usage(model=odd, turns=1)


@bb.function(name="exec.steps_in_thread")
def steps_in_thread() -> int:
    progress(step="in a thread", percent=12.5)
    return threading.get_ident()


@bb.function(name="exec.wrong_type")
async def wrong_type() -> list[Point]:
    return [Point(1, 2), Point("x", None)]  # type: ignore[arg-type]


@bb.function(name="exec.blocks_for")
def blocks_for(name: str, seconds: float) -> str:
    """Returns after so long, whether it is asked to end or not."""
    BEGAN[name].set()
    time.sleep(seconds)
    return name
