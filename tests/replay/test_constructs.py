"""Plain asyncio is deterministic on the loop: every construct, under shuffled memory, in every interpreter."""

import json
import subprocess
import sys
from typing import Any

import pytest

from scheduler_service.replay.harness import check_prefixes
from tests.replay import constructs
from tests.support import pythons


def _id(process: Any) -> str:
    return str(process.name.rpartition(".")[2])


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("process", constructs.PROCESSES, ids=_id)
def test_construct_completes_and_every_prefix_replays_to_the_same_commands(process: Any) -> None:
    run = constructs.driven(process)
    assert run.end is not None
    assert run.end.type == "RUN_COMPLETED", run.end.data
    check_prefixes(run)


@pytest.mark.invariant("I8")
def test_commands_do_not_depend_on_memory_addresses() -> None:
    """Three interpreters with other allocations and other hash seeds ask for the same in the same order."""
    _compare(*(_run_elsewhere(pythons.OURS, seed) for seed in (1, 2, 3)))


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("version", pythons.OTHERS)
def test_journals_are_the_same_on_other_pythons(version: str) -> None:
    """Each construct, twice on that Python with other allocations and hash seeds: event by event what it is here."""
    if reason := pythons.why_not(version):
        pytest.skip(reason)
    here = {_id(process): constructs.history(constructs.driven(process)) for process in constructs.PROCESSES}
    _compare(json.loads(json.dumps(here)), *(_run_elsewhere(version, seed) for seed in (4, 5)))


def _compare(first: dict[str, Any], *others: dict[str, Any]) -> None:
    assert first.keys() == {_id(process) for process in constructs.PROCESSES}
    for other in others:
        assert other.keys() == first.keys()
        for name, history in first.items():
            assert other[name] == history, name


def _run_elsewhere(version: str, seed: int) -> dict[str, Any]:
    python = sys.executable if version == pythons.OURS else pythons.interpreter(version)
    assert python is not None
    done = subprocess.run(
        [python, "-c", f"from tests.replay import constructs; constructs.print_histories({seed})"],
        cwd=pythons.ROOT, env=pythons.environment(version, seed), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    histories: dict[str, Any] = json.loads(done.stdout)
    return histories


def test_results_are_what_asyncio_promises() -> None:
    names = constructs.NAMES
    assert constructs.driven(constructs.gathering).result == names
    assert constructs.driven(constructs.gathering_handles).result == [*names, "last"]
    assert constructs.driven(constructs.timeouts).result == [
        "late" if name in ("n1", "n3") else f"slow/{name}" for name in names
    ]
    assert constructs.driven(constructs.waits_for).result == ["late", "quick", "late"]
    assert constructs.driven(constructs.shielded).result == "slow/n1"
    assert constructs.driven(constructs.completions).result[:2] == ["n7", "n3"]
    assert constructs.driven(constructs.variables).result == ["n0", "n1", "n2", "unset"]
    assert constructs.driven(constructs.sleeping).result == ["first", *names, 5]
    assert constructs.driven(constructs.timeout_after_a_late_failure).result == 0
    assert constructs.driven(constructs.cancelled_while_a_group_fails).result is True
    assert constructs.driven(constructs.waits_in_groups).result[-2:] == [True, "now"]


def test_tasks_come_in_creation_order() -> None:
    assert constructs.driven(constructs.every_task).result == constructs.NAMES


def test_generators_left_open_are_closed_when_their_task_ends() -> None:
    run = constructs.driven(constructs.generators)
    closed = [event.effect_key for event in run.rows("EFFECT_REQUESTED") if event.effect_key.startswith("closed/")]
    assert closed == [f"closed/{name}" for name in constructs.NAMES[:4]]


def test_timers_set_and_cancelled_in_one_step_write_nothing() -> None:
    run = constructs.driven(constructs.sleeping)
    assert [event.data["ordinal"] for event in run.rows("TIMER_SET")] == list(range(1, 15))
