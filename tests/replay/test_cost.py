"""An iteration costs the same at event 10 and at event 100,000. Counted in calls, not in time."""

import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import scheduler_service.authoring as bb
from scheduler_service.replay.events import Command, Event
from scheduler_service.replay.execution import Execution
from scheduler_service.replay.harness import RUN_ID, START

EFFECTS = 20_000


@bb.process("cost.chain")
async def chain(ctx: bb.Context, effects: int) -> int:
    kept = [ctx.start(bb.function("open", number), key=f"open/{number}") for number in range(1_000)]
    for number in range(effects):
        await ctx.run(bb.function("work", number))
    return len(kept)


def calls_of(work: Callable[[], Any]) -> int:
    count = 0

    def profile(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


class Owner:
    """The least of an owner: feeds, and gives every row of a foreground effect's life."""

    def __init__(self, effects: int) -> None:
        self.execution = Execution(chain, RUN_ID, watch_calls=False)
        self.seq = 0
        self.commands = self.feed("RUN_CREATED", data={"input": {"effects": effects}})
        for command in self.commands:
            self.own_row(command)

    def feed(self, type_: str, **fields: Any) -> list[Command]:
        self.seq += 1
        return self.execution.feed(Event(self.seq, type_, START, **fields))

    def own_row(self, command: Command) -> None:
        fed = self.feed(command.type, cause=command.cause, effect_key=command.effect_key, data=command.data)
        assert fed == []

    def life(self) -> dict[str, int]:
        """One effect from its dispatch to the request of the next; calls made by each feed."""
        key = self.commands[-1].effect_key
        counts = {
            type_: calls_of(lambda type_=type_: self.feed(type_, effect_key=key, attempt=1))  # type: ignore[misc]
            for type_ in ("EFFECT_DISPATCHED", "EFFECT_STARTED", "EFFECT_PROGRESS")
        }

        def resolve() -> None:
            data = {"state": "EFFECT_STATE_SUCCEEDED", "result": {"value": {"value": 1}}}
            self.commands = self.feed("EFFECT_RESOLVED", effect_key=key, attempt=1, data=data)

        counts["EFFECT_RESOLVED"] = calls_of(resolve)
        if self.commands[-1].type == "EFFECT_REQUESTED":
            counts["EFFECT_REQUESTED"] = calls_of(lambda: self.own_row(self.commands[-1]))
        return counts


def test_an_event_costs_the_same_at_the_end_of_a_long_history() -> None:
    owner = Owner(EFFECTS)
    early = [owner.life() for _ in range(12)][-1]
    for _ in range(EFFECTS - 30):
        owner.life()
    late = owner.life()
    assert owner.seq > 100_000
    assert late == early
    owner.execution.evict()


def test_rows_that_wake_nobody_are_cheap() -> None:
    owner = Owner(10)
    counts = owner.life()
    assert counts["EFFECT_DISPATCHED"] <= 24, counts
    assert counts["EFFECT_STARTED"] <= 24, counts
    assert counts["EFFECT_REQUESTED"] <= 24, counts
    owner.execution.evict()


def test_a_settled_effect_keeps_little_memory() -> None:
    owner = Owner(6_000)
    for _ in range(1_000):
        owner.life()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(4_000):
            owner.life()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / 4_000 < 250
    owner.execution.evict()
