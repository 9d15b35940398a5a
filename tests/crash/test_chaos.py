"""A few rounds of chaos as a test (`pytest -m soak`); `make chaos ROUNDS=300` is the same for longer."""

import secrets
from pathlib import Path

import pytest

from tests.crash.chaos.rounds import Chaos

pytestmark = [pytest.mark.crash, pytest.mark.soak, pytest.mark.timeout(400)]


@pytest.mark.invariant("I2", "I3", "I4", "I6", "I9", "I10", "I13", "I14")
async def test_nothing_is_lost_and_nothing_runs_twice_whatever_breaks(tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    verdict = await Chaos(seed, clients=6, every=3, show=print, keep=tmp_path).run(3)
    print(verdict)
    assert not verdict.violations, "\n".join(verdict.violations)
    assert verdict.checked.effects > 10
