"""Processes made of a seed: any nesting of the constructs that process code is written with.

A node is an async function of the context and a path; its keys begin with the path, so that no two are alike. What a
node does hangs on nothing but the seed and the events fed, as with any process that keeps the rules.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from random import Random
from typing import Any, Literal

import scheduler_service.authoring as bb

Node = Callable[[bb.Context, str], Coroutine[Any, Any, Any]]

#: Errors with which an ordinary process may end: the run is FAILED, not parked.
ORDINARY = (bb.EffectError, bb.FanInError, bb.Fail, TimeoutError)
_POLICIES: tuple[Literal["wait", "cancel", "detach"], ...] = ("wait", "cancel", "detach")
_PAUSES = (0.001, 0.5, 1.0, 1.0, 2.0, 7.5)


def random_process(random: Random, depth: int = 4) -> bb.ProcessDefinition[..., Any]:
    """A process of nodes nested at most `depth` deep."""
    body = _node(random, depth)

    async def process(ctx: bb.Context) -> Any:
        return _plain(await body(ctx, "r"))

    return bb.ProcessDefinition("random", process)


def _node(random: Random, depth: int) -> Node:
    makers = _LEAVES if depth == 0 else _LEAVES + _BRANCHES * 2
    return random.choice(makers)(random, depth - 1)


def _nodes(random: Random, depth: int, most: int = 4) -> list[Node]:
    return [_node(random, depth) for _ in range(random.randint(1, most))]


def _work(path: str) -> bb.Effect[Any]:
    return bb.function("work", path)


def _plain(value: Any) -> Any:
    """A value as a result can hold it."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__


# --- leaves ----------------------------------------------------------------------------------------------------------


def _foreground(random: Random, _depth: int) -> Node:
    policy = random.choice(_POLICIES)

    async def node(ctx: bb.Context, path: str) -> Any:
        return await ctx.run(_work(path), key=path, on_run_end=policy)

    return node


def _left_running(random: Random, _depth: int) -> Node:
    policy = random.choice(_POLICIES)

    async def node(ctx: bb.Context, path: str) -> Any:
        return ctx.start(_work(path), key=path, on_run_end=policy).status

    return node


def _sleep(random: Random, _depth: int) -> Node:
    seconds = random.choice((0, *_PAUSES))

    async def node(ctx: bb.Context, _path: str) -> Any:
        await asyncio.sleep(seconds)
        return (ctx.now().second, asyncio.get_running_loop().time())

    return node


def _signal(random: Random, _depth: int) -> Node:
    name, seconds = random.choice(("go", "stop")), random.choice(_PAUSES)

    async def node(ctx: bb.Context, _path: str) -> Any:
        try:
            async with asyncio.timeout(seconds):
                return await ctx.signal(name)
        except TimeoutError:
            return "no signal"

    return node


def _told(random: Random, _depth: int) -> Node:
    percent = random.randint(0, 100)

    async def node(ctx: bb.Context, path: str) -> Any:
        ctx.report(percent=percent, label=path)
        ctx.log.info("at %s", path, drawn=ctx.random.random(), id=str(ctx.uuid4()))
        return ctx.patched(path)

    return node


def _error(random: Random, _depth: int) -> Node:
    def error() -> Exception:
        return random_error("on purpose")

    random_error = random.choice((bb.Fail, TimeoutError, ValueError))

    async def node(ctx: bb.Context, path: str) -> Any:
        if ctx.history_length % 3 == 0:
            raise error()
        await ctx.run(_work(path), key=path)

    return node


# --- branches --------------------------------------------------------------------------------------------------------


def _sequence(random: Random, depth: int) -> Node:
    parts = _nodes(random, depth)

    async def node(ctx: bb.Context, path: str) -> Any:
        return [await part(ctx, f"{path}.{number}") for number, part in enumerate(parts)]

    return node


def _gathered(random: Random, depth: int) -> Node:
    parts, quiet = _nodes(random, depth), random.random() < 0.5

    async def node(ctx: bb.Context, path: str) -> Any:
        return await asyncio.gather(*_called(parts, ctx, path), return_exceptions=quiet)

    return node


def _grouped(random: Random, depth: int) -> Node:
    parts = _nodes(random, depth)

    async def node(ctx: bb.Context, path: str) -> Any:
        failures: list[str] = []
        tasks: list[asyncio.Task[Any]] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks += [group.create_task(part(ctx, f"{path}.{n}")) for n, part in enumerate(parts)]
        except* ORDINARY as errors:
            failures += [type(error).__name__ for error in errors.exceptions]
        return failures or [task.result() for task in tasks]

    return node


def _timed(random: Random, depth: int) -> Node:
    part, seconds = _node(random, depth), random.choice(_PAUSES)

    async def node(ctx: bb.Context, path: str) -> Any:
        try:
            async with asyncio.timeout(seconds):
                return await part(ctx, path + ".t")
        except TimeoutError:
            return "too late"

    return node


def _waited_for(random: Random, depth: int) -> Node:
    part, seconds = _node(random, depth), random.choice(_PAUSES)

    async def node(ctx: bb.Context, path: str) -> Any:
        task = asyncio.ensure_future(part(ctx, path + ".w"))
        try:
            return await asyncio.wait_for(asyncio.shield(task), seconds)
        except TimeoutError:
            return await task

    return node


def _cancelled(random: Random, depth: int) -> Node:
    part, seconds, twice = _node(random, depth), random.choice((0, *_PAUSES)), random.random() < 0.3

    async def node(ctx: bb.Context, path: str) -> Any:
        task = asyncio.ensure_future(part(ctx, path + ".c"))
        await asyncio.sleep(seconds)
        task.cancel()
        if twice:
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait([task])
        return "cancelled" if task.cancelled() else type(task.exception()).__name__

    return node


def _cleaned_up(random: Random, depth: int) -> Node:
    part, cleanup = _node(random, depth), _node(random, 0)

    async def node(ctx: bb.Context, path: str) -> Any:
        try:
            return await part(ctx, path + ".b")
        finally:
            await cleanup(ctx, path + ".f")

    return node


def _caught(random: Random, depth: int) -> Node:
    part, instead = _node(random, depth), _node(random, depth)

    async def node(ctx: bb.Context, path: str) -> Any:
        try:
            return await part(ctx, path + ".a")
        except ORDINARY as error:
            return [type(error).__name__, await instead(ctx, path + ".e")]

    return node


def _raced(random: Random, depth: int) -> Node:
    parts = _nodes(random, depth)

    async def node(ctx: bb.Context, path: str) -> Any:
        tasks: set[asyncio.Future[Any]] = {asyncio.ensure_future(call) for call in _called(parts, ctx, path)}
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
        return [type(task.exception()).__name__ for task in done if not task.cancelled()]

    return node


def _fanned(random: Random, _depth: int) -> Node:
    count, how = random.randint(1, 5), random.choice((_all, _best_effort, _first_success, _quorum, _as_completed))
    background = random.random() < 0.7

    async def node(ctx: bb.Context, path: str) -> Any:
        keys = [f"{path}.h{number}" for number in range(count)]
        return await how([ctx.start(_work(key), key=key, background=background) for key in keys])

    return node


async def _all(handles: Sequence[bb.EffectHandle[Any]]) -> Any:
    return await bb.all(handles)


async def _best_effort(handles: Sequence[bb.EffectHandle[Any]]) -> Any:
    return [outcome.ok for outcome in await bb.best_effort(handles, timeout=3)]


async def _first_success(handles: Sequence[bb.EffectHandle[Any]]) -> Any:
    return (await bb.first_success(handles)).key


async def _quorum(handles: Sequence[bb.EffectHandle[Any]]) -> Any:
    return [outcome.key for outcome in await bb.quorum(handles, k=1 + len(handles) // 2)]


async def _as_completed(handles: Sequence[bb.EffectHandle[Any]]) -> Any:
    return [await _settled(handle) async for handle in bb.as_completed(handles)]


async def _settled(handle: Any) -> str:
    try:
        return str(await handle)
    except bb.EffectError as error:
        return error.reason


def _polled(random: Random, depth: int) -> Node:
    every, part = random.choice((0, 1.0)), _node(random, depth)

    async def node(ctx: bb.Context, path: str) -> Any:
        handle = ctx.start(_work(path), key=path)
        await part(ctx, path + ".m")
        seen = [progress.percent async for progress in handle.updates(every)]
        return [seen, handle.outcome().ok, handle.attempts]

    return node


def _dropped(random: Random, depth: int) -> Node:
    part = _node(random, depth)

    async def node(ctx: bb.Context, path: str) -> Any:
        handle = ctx.start(_work(path), key=path)
        await part(ctx, path + ".m")
        handle.cancel("no use")
        return await _settled(handle)

    return node


def _queued(random: Random, depth: int) -> Node:
    parts, room = _nodes(random, depth), random.randint(1, 2)

    async def node(ctx: bb.Context, path: str) -> Any:
        queue: asyncio.Queue[Any] = asyncio.Queue(room)
        lock = asyncio.Semaphore(room)

        async def produce(part: Node, number: int) -> None:
            async with lock:
                await queue.put(await part(ctx, f"{path}.{number}"))

        async with asyncio.TaskGroup() as group:
            for number, part in enumerate(parts):
                group.create_task(produce(part, number))
            return [await queue.get() for _ in parts]

    return node


def _scoped(random: Random, depth: int) -> Node:
    part = _node(random, depth)

    async def node(ctx: bb.Context, path: str) -> Any:
        with ctx.scope(path):
            return await part(ctx, "s")

    return node


def _called(parts: Sequence[Node], ctx: bb.Context, path: str) -> list[Coroutine[Any, Any, Any]]:
    return [part(ctx, f"{path}.{number}") for number, part in enumerate(parts)]


_LEAVES: list[Callable[[Random, int], Node]] = [_foreground, _foreground, _left_running, _sleep, _signal, _told, _error]
_BRANCHES: list[Callable[[Random, int], Node]] = [
    _sequence, _gathered, _grouped, _timed, _waited_for, _cancelled, _cleaned_up, _caught, _raced, _fanned, _polled,
    _dropped, _queued, _scoped,
]  # fmt: skip
