"""Golden journals replay for ever."""

from pathlib import Path

import pytest

import scheduler_service.authoring as bb
from scheduler_service.replay.execution import replay
from scheduler_service.replay.harness import Driven, check_prefixes
from scheduler_service.replay.recorded import Divergence
from tests.replay import golden

JOURNALS = sorted(golden.HISTORIES.glob("*.json"))


def test_there_are_golden_journals() -> None:
    assert {path.stem for path in JOURNALS} >= {"release", "race", "cancelled", "changed"}


@pytest.mark.invariant("I8")
@pytest.mark.parametrize("path", JOURNALS, ids=lambda path: str(path.stem))
def test_golden_journal_replays(path: Path) -> None:
    head, events = golden.load(path)
    process = bb.processes()[head["process"]]
    if head["diverges_at"] is not None:
        with pytest.raises(Divergence) as caught:
            replay(process, head["run_id"], events)
        assert caught.value.seq == head["diverges_at"]
        assert caught.value.details.items() >= head["divergence"].items()
        return
    execution, pending = replay(process, head["run_id"], events)
    assert pending == []
    assert execution.closed
    check_prefixes(Driven(process, events, execution))
