"""Processes that use each asyncio construct; run by the construct tests here and in other interpreters."""

import asyncio
import contextvars
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import scheduler_service.authoring as bb
from scheduler_service.replay.harness import Driven, drive
from tests.replay.answers import by_key, fails_after

NAMES = [f"n{number}" for number in range(12)]


def work(name: str) -> bb.Effect[Any]:
    return bb.function("work", name)


@bb.process
async def gathering(ctx: bb.Context) -> Any:
    return await asyncio.gather(*(ctx.run(work(n), key=n) for n in NAMES))


@bb.process
async def gathering_handles(ctx: bb.Context) -> Any:
    handles = [ctx.start(work(n), key=n) for n in NAMES]
    return await asyncio.gather(*handles, ctx.run(work("last"), key="last"))


@bb.process
async def gather_of_gathers(ctx: bb.Context) -> Any:
    pairs = zip(NAMES[::2], NAMES[1::2], strict=True)
    groups = [asyncio.gather(ctx.run(work(a), key=a), ctx.run(work(b), key=b)) for a, b in pairs]
    done, _ = await asyncio.wait(groups)
    return [group.result() for group in done]


@bb.process
async def waiting(ctx: bb.Context) -> Any:
    tasks = {asyncio.create_task(ctx.run(work(n), key=n)) for n in NAMES}
    order: list[str] = []
    while tasks:
        done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        order += [await ctx.run(work(task.result()), key=f"again/{task.result()}") for task in done]
    return order


@bb.process
async def waiting_for_handles(ctx: bb.Context) -> Any:
    handles: Any = {ctx.start(work(n), key=n) for n in NAMES}
    done, pending = await asyncio.wait(handles, timeout=0.011)
    for handle in [*done, *pending]:
        await ctx.run(work(handle.key), key=f"again/{handle.key}")
    return [handle.key for handle in done]


@bb.process
async def aborted_group(ctx: bb.Context) -> Any:
    async def clean(name: str) -> None:
        try:
            await ctx.run(work(name), key=name)
        finally:
            await ctx.run(work("clean"), key=f"clean/{name}")

    seen: list[str] = []
    try:
        async with asyncio.TaskGroup() as group:
            for name in NAMES:
                group.create_task(clean(name))
            group.create_task(ctx.run(work("bad"), key="bad"))
    except* bb.EffectFailed as errors:
        seen += [str(error) for error in errors.exceptions]
    return seen


@bb.process
async def timeouts(ctx: bb.Context) -> Any:
    seen = []
    for name in NAMES:
        try:
            async with asyncio.timeout(1):
                seen.append(await ctx.run(work(name), key=f"slow/{name}"))
        except TimeoutError:
            seen.append("late")
    return seen


@bb.process
async def waits_for(ctx: bb.Context) -> Any:
    seen = []
    for key in ("slow/n1", "quick", "slow/n3"):
        try:
            seen.append(await asyncio.wait_for(ctx.run(work(key), key=key), 1))
        except TimeoutError:
            seen.append("late")
    return seen


@bb.process
async def shielded(ctx: bb.Context) -> Any:
    inner = asyncio.ensure_future(ctx.run(work("slow"), key="slow/n1"))
    try:
        async with asyncio.timeout(1):
            await asyncio.shield(inner)
    except TimeoutError:
        await ctx.run(work("between"), key="between")
    return await inner


@bb.process
async def queueing(ctx: bb.Context) -> Any:
    queue: asyncio.Queue[str | None] = asyncio.Queue(maxsize=3)
    urgent: asyncio.PriorityQueue[tuple[int, str]] = asyncio.PriorityQueue()

    async def worker(number: int) -> None:
        while (name := await queue.get()) is not None:
            urgent.put_nowait((-len(name), await ctx.run(work(name), key=f"{number}/{name}")))

    workers = [asyncio.create_task(worker(number)) for number in range(3)]
    for name in [*NAMES, None, None, None]:
        await queue.put(name)
    await asyncio.gather(*workers)
    return [urgent.get_nowait() for _ in range(urgent.qsize())]


@bb.process
async def locking(ctx: bb.Context) -> Any:
    lock, semaphore, gate = asyncio.Lock(), asyncio.Semaphore(2), asyncio.Event()
    order: list[str] = []

    async def one(name: str) -> None:
        await gate.wait()
        async with semaphore:
            order.append(await ctx.run(work(name), key=name))
            async with lock:
                await asyncio.sleep(0.5)
                order.append(await ctx.run(work(name), key=f"locked/{name}"))

    tasks = [asyncio.create_task(one(name)) for name in NAMES[:5]]
    await asyncio.sleep(1)
    gate.set()
    await asyncio.gather(*tasks)
    return order


@bb.process
async def conditions(ctx: bb.Context) -> Any:
    condition, barrier = asyncio.Condition(), asyncio.Barrier(4)
    order: list[str] = []

    async def one(name: str) -> None:
        async with condition:
            await condition.wait()
        await ctx.run(work(name), key=name)
        await barrier.wait()
        order.append(name)

    tasks = [asyncio.create_task(one(name)) for name in NAMES[:4]]
    await asyncio.sleep(0)
    async with condition:
        condition.notify(2)
    await asyncio.sleep(1)
    async with condition:
        condition.notify_all()
    await asyncio.gather(*tasks)
    return order


@bb.process
async def variables(ctx: bb.Context) -> Any:
    variable = contextvars.ContextVar("variable", default="unset")
    seen = []

    async def one(name: str) -> None:
        variable.set(name)
        with ctx.scope(name):
            await asyncio.gather(*(ctx.run(work(n)) for n in NAMES[:3]))
        seen.append(variable.get())

    await asyncio.gather(*(one(name) for name in NAMES[:3]))
    return [*seen, variable.get()]


@bb.process
async def generators(ctx: bb.Context) -> Any:
    async def numbers(name: str) -> AsyncIterator[int]:
        try:
            for number in range(3):
                await ctx.run(work(name), key=f"{name}/{number}")
                yield number
        finally:
            await ctx.run(work(name), key=f"closed/{name}")

    async def first(name: str) -> int:
        async for number in numbers(name):
            return number  # leaves the generator open
        return -1

    found = await asyncio.gather(*(first(name) for name in NAMES[:4]))
    await asyncio.sleep(1)
    return found


@bb.process
async def completions(ctx: bb.Context) -> Any:
    tasks = [asyncio.create_task(ctx.run(work(n), key=n)) for n in NAMES]
    return [await earliest for earliest in asyncio.as_completed(tasks)]


@bb.process
async def every_task(ctx: bb.Context) -> Any:
    tasks = [asyncio.create_task(ctx.run(work(n), key=n), name=n) for n in NAMES]
    await asyncio.sleep(0)
    names = [task.get_name() for task in asyncio.all_tasks() if task.get_name() != "main"]
    await asyncio.gather(*tasks)
    return names


@bb.process
async def sleeping(ctx: bb.Context) -> Any:
    loop = asyncio.get_running_loop()
    order: list[Any] = []
    for name in NAMES:
        loop.call_later(2, order.append, name)  # due together
    loop.call_later(1, order.append, "first")
    loop.call_later(3, order.append, "never").cancel()
    await asyncio.sleep(5)
    return [*order, loop.time()]


@bb.process
async def first_failure(ctx: bb.Context) -> Any:
    tasks = [asyncio.create_task(ctx.run(work(n), key=n)) for n in [*NAMES, "bad"]]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in pending:
        task.cancel()
    late = await asyncio.gather(*pending, return_exceptions=True)
    return [[task.get_name() for task in done], [type(error).__name__ for error in late]]


@bb.process
async def groups_in_groups(ctx: bb.Context) -> Any:
    async def inner(names: list[str], bad: Exception) -> None:
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(ctx.run(work(name), key=name))
            await ctx.run(work("turn"), key=f"turn/{names[0]}")
            raise bad

    seen: list[str] = []
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(inner(NAMES[:4], ValueError("v")))
            group.create_task(inner(NAMES[4:8], KeyError("k")))
            group.create_task(inner(NAMES[8:], ValueError("w")))
    except* ValueError as errors:
        seen += [repr(error) for error in errors.exceptions]
    except* KeyError as errors:
        seen += [repr(error) for error in errors.exceptions]
    return seen


@bb.process
async def bounded_and_reversed(ctx: bb.Context) -> Any:
    stack: asyncio.LifoQueue[str] = asyncio.LifoQueue()
    slots = asyncio.BoundedSemaphore(3)
    loop = asyncio.get_running_loop()

    async def one(name: str) -> None:
        async with slots:
            await stack.put(await ctx.run(work(name), key=name))

    async with asyncio.timeout_at(loop.time() + 60), asyncio.TaskGroup() as group:
        for name in NAMES:
            group.create_task(one(name))
    found = [stack.get_nowait() for _ in NAMES]
    for _ in NAMES:
        stack.task_done()
    await stack.join()
    return found


@bb.process
async def cancelled_and_uncancelled(ctx: bb.Context) -> Any:
    async def stubborn(name: str) -> str:
        try:
            await ctx.run(work(name), key=f"slow/{name}")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            return f"{task.get_name()} {task.cancelling()} {task.uncancel()}"
        return "done"

    tasks = [asyncio.create_task(stubborn(name), name=name) for name in ("n1", "n3")]
    await asyncio.sleep(1)
    return [task.cancel() and await task for task in tasks]


@bb.process
async def ours_as_completed(ctx: bb.Context) -> Any:
    handles = [ctx.start(work(n), key=n) for n in NAMES]
    return [handle.key async for handle in bb.as_completed(handles)]


@bb.process
async def coroutines_as_completed(ctx: bb.Context) -> Any:
    coroutines = [ctx.run(work(n), key=n) for n in NAMES[:3]]
    try:
        return [await earliest for earliest in asyncio.as_completed(coroutines)]
    except bb.DeterminismError as error:
        for coroutine in coroutines:
            coroutine.close()
        return [error.call, error.instead]


@bb.process
async def timeout_after_a_late_failure(ctx: bb.Context) -> Any:
    async def fails() -> None:
        await ctx.run(work("bad"), key="bad")

    try:
        async with asyncio.timeout(1):
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(fails())  # fails while the group is waited for
            except* bb.EffectError:
                pass
            await asyncio.sleep(2)
    except TimeoutError:
        return asyncio.current_task().cancelling()  # type: ignore[union-attr]


@bb.process
async def cancelled_while_a_group_fails(ctx: bb.Context) -> Any:
    async def cleans_up_badly() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise bb.Fail("in the cleanup")

    async def goes_on() -> str:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(cleans_up_badly())
        except* bb.Fail:
            pass
        await ctx.run(work("after"), key="after")  # the cancel comes again
        return "not cancelled"

    task = asyncio.create_task(goes_on())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()


@bb.process
async def waits_in_groups(ctx: bb.Context) -> Any:
    order: list[str] = []

    async def one(name: str) -> None:
        try:
            await asyncio.wait_for(ctx.run(work(name), key=name), 0.005 if name == "n4" else 60)
        except TimeoutError:
            order.append(f"{name} is late")
        order.append(name)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(name)) for name in NAMES]
    return [*order, isinstance(tasks[0], asyncio.Task), await asyncio.wait_for(asyncio.sleep(0, "now"), None)]


SLOW: dict[str, float | None] = {"slow/n1": 5.0, "slow/n3": 5.0, "n3": 0.005, "n7": 0.001}
PROCESSES = [
    gathering, gathering_handles, gather_of_gathers, waiting, waiting_for_handles, aborted_group, timeouts, waits_for,
    shielded, queueing, locking, conditions, variables, generators, completions, every_task, sleeping,
    first_failure, groups_in_groups, bounded_and_reversed, cancelled_and_uncancelled, ours_as_completed,
    coroutines_as_completed, timeout_after_a_late_failure, cancelled_while_a_group_fails, waits_in_groups,
]  # fmt: skip


def driven(process: Any) -> Driven:
    return drive(process, {}, by_key(SLOW, bad=fails_after(0.008)))


def history(run: Driven) -> list[Any]:
    return [[e.seq, e.cause, e.type, e.effect_key, dict(e.data)] for e in run.events]


def print_histories(seed: int) -> None:
    """As JSON, after noise: other objects at other addresses, so that whatever hangs on `id` comes out differently."""
    noise = random.Random(seed)
    kept = [bytearray(noise.randrange(1, 2000)) for _ in range(noise.randrange(20_000))]
    del kept[:: noise.randrange(2, 5)]
    print(json.dumps({process.name.rpartition(".")[2]: history(driven(process)) for process in PROCESSES}))
