"""Fan-in: waiting for many effects at once. Losers are cancelled, and the journal says who won.

Every primitive decides at the event that decides it, keeps the order of its input, and needs no loop of its own: it is
built on the handles alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, TypeVar

from scheduler_service.authoring.context import EffectHandle
from scheduler_service.authoring.errors import AllFailed, EffectTimedOut, OptionError, QuorumNotReached
from scheduler_service.authoring.results import Outcome

T = TypeVar("T")


async def all(handles: Iterable[EffectHandle[T]], *, drain: bool = False) -> list[T]:  # noqa: A001 - asyncio's verb
    """The results of all, in input order. The first failure cancels the rest and is raised.

    With `drain` the cancelled ones are waited for until they have settled.
    """
    waited = _checked(handles)
    decider = await _until(waited, lambda handle: handle.exception() is not None)
    if decider is not None:
        await _drop_losers(waited, decider, drain=drain)
        return [decider.result()]  # raises
    return [handle.result() for handle in waited]


async def best_effort(
    handles: Iterable[EffectHandle[T]], *, timeout: float | None = None, drain: bool = False
) -> list[Outcome[T]]:
    """The outcomes of all, in input order; never raises for an effect.

    After `timeout` seconds what is still open is cancelled and counts as EffectTimedOut with `timeout_kind` WAIT.
    """
    waited = _checked(handles)
    if timeout is None:
        await _until(waited, _never)
        return [handle.outcome() for handle in waited]
    try:
        async with asyncio.timeout(timeout):
            await _until(waited, _never)
    except TimeoutError:
        for handle in _open(waited):
            handle.cancel(f"best_effort gave up after {timeout} s")
    outcomes = [handle.outcome() if handle.done() else _gave_up(handle, timeout) for handle in waited]
    if drain:
        await _until(waited, _never)
    return outcomes


def _gave_up(handle: EffectHandle[T], timeout: float) -> Outcome[T]:
    message = f"not settled within the {timeout} s of best_effort"
    error = EffectTimedOut(message, key=handle.key, effect_id=handle.effect_id, reason="TIMEOUT_WAIT")
    value: Any = None
    return Outcome(handle.key, ok=False, value=value, error=error, effect_id=handle.effect_id)


async def first_success(handles: Iterable[EffectHandle[T]], *, drain: bool = False) -> Outcome[T]:
    """The outcome of the first that succeeds; the others are cancelled. Raises AllFailed with all outcomes."""
    waited = _checked(handles)
    winner = await _until(waited, lambda handle: handle.exception() is None)
    if winner is None:
        raise AllFailed(f"none of {len(waited)} effects succeeded", [handle.outcome() for handle in waited])
    await _drop_losers(waited, winner, drain=drain)
    return winner.outcome()


async def quorum(
    handles: Iterable[EffectHandle[T]],
    k: int,
    *,
    accept: Callable[[Outcome[T]], bool] = lambda outcome: outcome.ok,
    drain: bool = False,
) -> list[Outcome[T]]:
    """The first `k` accepted outcomes, in input order; the others are cancelled.

    `accept` is called once for each settled effect (default: it succeeded). Raises QuorumNotReached, with the outcomes
    known by then, as soon as too few are left.
    """
    waited = _checked(handles)
    if not 1 <= k <= len(waited):
        raise OptionError(f"quorum: k={k} of {len(waited)} effects")
    accepted: list[EffectHandle[T]] = []
    refused = 0

    def decides(handle: EffectHandle[T]) -> bool:
        nonlocal refused
        if accept(handle.outcome()):
            accepted.append(handle)
        else:
            refused += 1
        return len(accepted) == k or len(waited) - refused < k

    decider = await _until(waited, decides)
    if decider is not None:  # always: when all have settled, k is reached or out of reach
        await _drop_losers(waited, decider, drain=drain)
    if len(accepted) < k:
        known = [handle.outcome() for handle in waited if handle.done()]
        raise QuorumNotReached(f"{len(accepted)} of {k} accepted, {refused} of {len(waited)} not", known)
    return [handle.outcome() for handle in waited if handle in accepted]


async def wait(
    handles: Iterable[EffectHandle[T]], *, timeout: float | None = None, return_when: str = asyncio.ALL_COMPLETED
) -> tuple[list[EffectHandle[T]], list[EffectHandle[T]]]:
    """`asyncio.wait` for handles: (settled, open), both in input order. Cancels nothing and raises nothing."""
    waited = _checked(handles)
    tests: dict[str, Callable[[EffectHandle[T]], bool]] = {
        asyncio.ALL_COMPLETED: _never,
        asyncio.FIRST_COMPLETED: lambda _handle: True,
        asyncio.FIRST_EXCEPTION: lambda handle: handle.exception() is not None,
    }
    try:
        async with asyncio.timeout(timeout):
            await _until(waited, tests[return_when])
    except TimeoutError:
        pass  # the wait ends, the effects go on
    return [handle for handle in waited if handle.done()], _open(waited)


async def as_completed(handles: Iterable[EffectHandle[T]]) -> AsyncIterator[EffectHandle[T]]:
    """The handles in the order in which they settle; `handle.result()` or `handle.outcome()` gives the rest."""
    settled: asyncio.Queue[EffectHandle[T]] = asyncio.Queue()
    waited = _checked(handles)
    for handle in waited:
        handle.add_done_callback(settled.put_nowait)
    try:
        for _ in waited:
            yield await settled.get()
    finally:
        for handle in waited:
            handle.remove_done_callback(settled.put_nowait)


def _checked(handles: Iterable[EffectHandle[T]]) -> Sequence[EffectHandle[T]]:
    waited = list(handles)
    for handle in waited:
        if not isinstance(handle, EffectHandle):
            raise TypeError(f"{handle!r} is no effect handle; ctx.start(...) gives one")
    if len(set(waited)) != len(waited):
        raise OptionError("a handle was given twice")
    return waited


def _open(handles: Sequence[EffectHandle[T]]) -> list[EffectHandle[T]]:
    return [handle for handle in handles if not handle.done()]


def _never(_handle: EffectHandle[Any]) -> bool:
    return False


async def _until(
    handles: Sequence[EffectHandle[T]], decides: Callable[[EffectHandle[T]], bool]
) -> EffectHandle[T] | None:
    """The handle at whose settlement `decides` first said yes; None when all have settled and none did."""
    for handle in handles:
        if handle.done() and decides(handle):
            return handle
    opened = _open(handles)
    if not opened:
        return None
    decision: asyncio.Future[EffectHandle[T] | None] = asyncio.get_running_loop().create_future()
    left = len(opened)

    def settled(handle: EffectHandle[T]) -> None:
        nonlocal left
        left -= 1
        if decision.done():
            return
        try:
            decided = decides(handle)
        except Exception as error:  # noqa: BLE001 - the author's `accept`: it is raised where it was given
            decision.set_exception(error)
            return
        if decided or not left:
            decision.set_result(handle if decided else None)

    for handle in opened:
        handle.add_done_callback(settled)
    try:
        return await decision
    finally:
        for handle in opened:
            handle.remove_done_callback(settled)


async def _drop_losers(handles: Sequence[EffectHandle[Any]], winner: EffectHandle[Any], *, drain: bool) -> None:
    losers = _open(handles)
    for loser in losers:
        loser.cancel(lost_to=winner.key)
    if drain and losers:
        await _until(losers, _never)
