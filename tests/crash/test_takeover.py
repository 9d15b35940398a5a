"""An owner goes while effects are in flight, a small `make takeover`: nothing is lost and nothing runs again."""

from pathlib import Path

import pytest

from tests.crash.outages.takeover import Size, take_over

pytestmark = [pytest.mark.crash, pytest.mark.timeout(400)]
#: The grace is longer than the test may take: whatever runs again does so for a wrong reason.
SMALL = Size(runs=12, functions=54, shells=6, probes=2, lease_s=1.5, grace_s=300)


@pytest.mark.invariant("I2", "I3", "I6", "I10", "I13", "I14")
async def test_what_is_in_flight_goes_on_with_the_other_owner(tmp_path: Path) -> None:
    outcome = await take_over("kill", SMALL, print, tmp_path)
    print(outcome)
    assert not outcome.violations, "\n".join(outcome.violations)
    assert outcome.owned > 0, "the one that went had no runs"
    assert outcome.held > 0, "the one that went had no executors"
