"""A primary is killed with -9 and its synchronous standby promoted, under a run that never pauses."""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from backburner.journal.v1 import journal_pb2
from tests.support.eventually import eventually
from tests.support.journals import SETTLING, check_journal, journal_of, of_type
from tests.support.services import Stack, result_value, running_stack
from tests.support.standby import Pair, primary_and_standby

_MODULES = "tests.crash.failover_processes"
_PATIENCE = 120.0
#: Steps of the run before the primary dies, and after.
_STEPS = 20


@dataclass(frozen=True)
class Failover:
    """What came of one. Times count from when the standby takes writes, by its clock, in seconds."""

    #: Until the first row of a journal: an outcome that was held, or the next step of the run.
    first_commit_s: float
    #: Until a step was settled that was asked for after the promotion: all services are through.
    first_step_s: float
    violations: tuple[str, ...]


async def fail_over_once(folder: Path) -> Failover:
    """One failover, with servers and services of its own."""
    with primary_and_standby() as pair:
        await pair.primary.migrate()
        pair.wait_for_commits_on_both()
        await eventually(pair.is_synchronous, timeout=_PATIENCE)
        async with running_stack(pair.dsn, folder, _MODULES) as stack:
            return await _measure(pair, stack, folder)


async def _measure(pair: Pair, stack: Stack, folder: Path) -> Failover:
    run_id = await stack.create("goes_on", folder=str(folder))
    await _steps(stack, run_id, _STEPS)
    before = await journal_of(stack.dsn, run_id)
    promoted = pair.fail_over()
    await _steps(stack, run_id, len(of_type(before, *SETTLING)) + 2 * _STEPS)
    (folder / "stop").touch()
    run = await stack.result(run_id, _PATIENCE)
    rows = await journal_of(stack.dsn, run_id)
    check_journal(rows)
    violations = []
    if rows[: len(before)] != before:
        violations.append("rows that had been read are gone")
    # What was dispatched as the primary died, and never reached its executor, is dispatched again: nothing had started.
    taken_back = sum(bool(row.data.get("never_started")) for row in of_type(rows, "EFFECT_ATTEMPT_LOST"))
    if len(of_type(rows, "EFFECT_DISPATCHED")) - taken_back != len(of_type(rows, *SETTLING)):
        violations.append("an effect was run again")
    if run.state != journal_pb2.RUN_STATE_COMPLETED or result_value(run) != len(of_type(rows, *SETTLING)):
        violations.append(f"the run has not ended as it should: {run}")
    new = [row for row in rows if row.recorded_at > promoted]
    asked = {row.key for row in of_type(new, "EFFECT_REQUESTED")}
    step = next(row for row in of_type(new, *SETTLING) if row.key in asked)
    return Failover(_since(promoted, new[0].recorded_at), _since(promoted, step.recorded_at), tuple(violations))


async def _steps(stack: Stack, run_id: str, count: int) -> None:
    """Waits until so many steps are settled."""

    async def so_many() -> bool:
        return len(of_type(await journal_of(stack.dsn, run_id), *SETTLING)) >= count

    await eventually(so_many, timeout=_PATIENCE, message=lambda: f"{stack.scheduler.tail}\n{stack.executor.tail}")


def _since(begin: datetime, end: datetime) -> float:
    return (end - begin).total_seconds()


async def failovers(rounds: int, show: Callable[[str], None]) -> list[str]:
    """So many failovers, their figures and their violations."""
    seen = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="bb-failover-") as folder:
            seen.append(await fail_over_once(Path(folder)))
        show(f"first commit {seen[-1].first_commit_s:.2f} s, first step {seen[-1].first_step_s:.2f} s after promotion")
    commit = statistics.median(one.first_commit_s for one in seen)
    step = statistics.median(one.first_step_s for one in seen)
    show(f"median of {rounds}: first commit {commit:.2f} s, first step {step:.2f} s after promotion")
    return [violation for one in seen for violation in one.violations]
