"""What holds for every journal at every moment, as `backburner verify` knows it, asserted."""

from typing import Final

from scheduler_service.journal.verify import Recorded, Violation, verify, violations

#: The engine ends a run when what it waits for is settled; the functions take its word.
_BY_THE_ENGINE: Final = ("settled_at_end",)


async def check_all(dsn: str) -> None:
    """Asserts that no journal of the database breaks a rule."""
    async for run in verify(dsn):
        _none(run.violations)


def check(run: Recorded) -> None:
    """Asserts that a run breaks no rule."""
    _none(violations(run))


def _none(found: list[Violation]) -> None:
    broken = [violation for violation in found if violation.rule not in _BY_THE_ENGINE]
    assert not broken, broken
