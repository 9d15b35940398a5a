"""Stand-ins for what surrounds the writers of the journal: a lane that a test scripts, a holder, finished attempts."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import orjson

from backburner.scheduler.v1 import dispatch_service_pb2 as pb
from executor_service.assignment import Assignment, Ref
from executor_service.invocation import Invocation
from executor_service.outcome import Outcome
from executor_service.recording import OUTPUT, PROGRESS, SETTLE, STARTED, Lane
from executor_service.spool import Spool

KINDS = {STARTED: "started", PROGRESS: "progress", SETTLE: "settle", OUTPUT: "output"}
Item = dict[str, Any]
#: Answers one item of a call, or raises for the whole call.
Answer = Callable[[str, Item], str]


class FakeLane(Lane):
    """Answers from `answer`; keeps what it was asked in `written`, by the kind of the call."""

    def __init__(self, answer: Answer = lambda _kind, _item: "ok") -> None:
        super().__init__("", "fake")
        self.answer = answer
        self.calls: list[str] = []
        self.written: dict[str, list[Item]] = {kind: [] for kind in KINDS.values()}

    async def call(self, statement: str, parameters: Any) -> list[tuple[Any, ...]]:
        kind = KINDS[statement]
        self.calls.append(kind)
        if kind == "output":
            items = [{"effect_id": e, "data": d} for e, d in zip(parameters[1], parameters[6], strict=True)]
        else:
            items = orjson.loads(parameters[0])
        outcomes = [self.answer(kind, item) for item in items]
        self.written[kind] += [item for item, outcome in zip(items, outcomes, strict=True) if outcome == "ok"]
        return [
            (ord_, outcome, 1 if outcome == "ok" else None, "TYPE", 1, "{}", "key")
            for ord_, outcome in enumerate(outcomes)
        ]

    def effects(self, kind: str) -> list[str]:
        """Effects of what was written."""
        return [item["effect_id"] for item in self.written[kind]]


class FakeHolder:
    """Keeps what it is told. Also an invocation's listener."""

    def __init__(self) -> None:
        self.recorded_: list[Ref] = []
        self.stale_: list[Ref] = []

    def recorded(self, invocation: Invocation, event: pb.JournaledEvent | None) -> None:
        assert event is not None
        self.recorded_.append(invocation.assignment.ref)

    def stale(self, refs: Iterable[Ref]) -> None:
        self.stale_ += refs

    def dirty_output(self, invocation: Invocation) -> None:
        pass

    def dirty_progress(self, invocation: Invocation) -> None:
        pass

    def finished(self, invocation: Invocation) -> None:
        pass

    def not_started(self, invocation: Invocation, message: str) -> None:
        pass


def invocation(effect_id: str, outcome: Outcome | None = None) -> Invocation:
    """An attempt that runs, or has ended with the outcome."""
    assignment = Assignment(
        "run",
        effect_id,
        effect_id,
        1,
        "ab" * 16,
        "function/f",
        "functions",
        False,
        "f",
        "default",
        1,
        None,
        None,
        b"{}",
    )
    made = Invocation(assignment, "incarnation", FakeHolder())
    made.outcome = outcome
    return made


def idle_spool() -> Spool:
    """A spool that never writes anything."""
    return Spool(Path("/nowhere"), bytes_max=1_000_000, entries_max=100)
