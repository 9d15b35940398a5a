"""`bb.testing.run`: one process, from its input to its end, and every prefix of its journal again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from scheduler_service.authoring.definitions import ProcessDefinition
from scheduler_service.replay.harness import check_prefixes
from scheduler_service.replay.recorded import Divergence
from scheduler_service.replay.testing.events import Cancel, Signal
from scheduler_service.replay.testing.fakes import Fakes
from scheduler_service.replay.testing.seen import TestRun
from scheduler_service.replay.testing.world import Run, World

R = TypeVar("R")

EVENTS_MAX: Final = 20_000


class NotRepeatable(AssertionError):
    """A replay of what the run recorded asked for something else: its code is not deterministic."""


class StillRunning(AssertionError):
    """The run did not end within `events_max` events."""


def run(
    process: ProcessDefinition[Any, R],
    args: Mapping[str, Any] | Sequence[Any] = (),
    effects: Mapping[str, Any] | None = None,
    *,
    signals: Sequence[Signal] = (),
    cancel: Cancel | float | None = None,
    events_max: int = EVENTS_MAX,
) -> TestRun[R]:
    """Run a process with these arguments (by name, or in order) and fakes, to its end, in virtual time.

    `effects` holds the fakes by name (see the docstring of `bb.testing`), `signals` the messages from outside, `cancel`
    its cancel, or the seconds until then. A run that fails or is parked is a TestRun too: see its `state`. Raises
    InvalidValue for arguments that do not fit, NoFake and FakeMisused for fakes that do not, what fakes assert,
    StillRunning for a run that has no end, and NotRepeatable when its code is not deterministic.
    """
    given = process.input_object((), args) if isinstance(args, Mapping) else process.input_object(args, {})
    process.bind_input(given)
    cancels = [cancel if isinstance(cancel, Cancel) else Cancel(at=cancel)] if cancel is not None else []
    world = World(Fakes(effects or {}), [*signals, *cancels])
    try:
        world.begin(process, given)
        ended = world.drive(events_max)
        seen: TestRun[R] = _seen(world)
        if not ended:
            raise StillRunning(f"{process.name} did not end within {events_max} events\n{_tail(seen)}")
        for each in world.runs:
            _check(each)
        return seen
    finally:
        world.close()


def _seen(world: World) -> TestRun[Any]:
    *before, last = world.chain()
    ours = [*before, last]
    children: list[TestRun[Any]] = [TestRun(run.driven) for run in world.runs if run not in ours]
    return TestRun(last.driven, [TestRun(run.driven) for run in before], children)


def _check(run: Run) -> None:
    try:
        check_prefixes(run.driven)
    except Divergence as divergence:
        raise NotRepeatable(
            f"{run.process.name} is not deterministic; a replay of its own journal asked for something else:\n"
            f"{divergence}\n{TestRun(run.driven)}"
        ) from divergence


def _tail(seen: TestRun[Any]) -> str:
    head, *lines = str(seen).splitlines()
    return "\n".join([head, *lines[-20:]])
