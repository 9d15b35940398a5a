"""Random processes in a random world: replayed from every prefix, after evictions at random events, on every Python."""

import json
import subprocess
import sys

import pytest

from tests.property.replay_simulation import check
from tests.support import pythons

SCHEDULES = 250
#: Among these are some that went another way on another Python: TaskGroup, Task.uncancel and wait_for differ.
COMPARED = (20_400, 420)


@pytest.mark.invariant("I2", "I8")
@pytest.mark.parametrize("first", [*range(0, 4 * SCHEDULES, SCHEDULES), 18_700])
def test_no_schedule_breaks_a_rule(first: int) -> None:
    for seed in range(first, first + SCHEDULES):
        try:
            check(seed)
        except Exception as error:
            error.add_note(f"python -m tests.property.replay_simulation --schedules 1 --seed {seed} shows it again")
            raise


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("version", pythons.OTHERS)
def test_journals_are_the_same_on_other_pythons(version: str) -> None:
    if reason := pythons.why_not(version):
        pytest.skip(reason)
    here, there = _digests(pythons.OURS), _digests(version)
    assert len(here) == COMPARED[1]
    assert [seed for seed, digest in here.items() if there[seed] != digest] == []


def _digests(version: str) -> dict[str, str]:
    python = sys.executable if version == pythons.OURS else pythons.interpreter(version)
    assert python is not None
    code = f"from tests.property import replay_simulation as s; s.print_digests(*{COMPARED})"
    done = subprocess.run(
        [python, "-c", code], cwd=pythons.ROOT, env=pythons.environment(version), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    digests: dict[str, str] = json.loads(done.stdout)
    return digests
