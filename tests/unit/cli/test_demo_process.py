import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler_service.authoring.definitions import functions
from scheduler_service.cli.demo.process import check_repository, key_of
from scheduler_service.replay.events import Command
from scheduler_service.replay.harness import Answer, Driven, Reply, check_prefixes, drive, failed, never, succeeded

# How long each piece of slow work takes, in the run's time.
SLOW = {"tests": 20.0, "types": 5.0, "history": 0.5, "content": 0.2}


@pytest.fixture(autouse=True)
def no_callbacks_of_the_collector() -> Iterator[None]:
    # Hypothesis looks at the clock in one; when it runs within a step, that counts as a call of the process.
    kept, gc.callbacks[:] = gc.callbacks[:], []
    yield
    gc.callbacks[:] = kept


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for number in range(20):
        (tmp_path / f"m{number}.py").write_text(f"import os\n\ndef f{number}():\n    return {number}  # TODO\n")
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "with space.txt").write_text("one\ntwo\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("def test_a(): pass\n")
    return tmp_path


def world(command: Command) -> list[Reply]:
    """Functions are really called, children are played."""
    spec, key = command.data["spec"], command.effect_key
    if key == "approval":
        resolved = {"state": "EFFECT_STATE_SUCCEEDED", "result": {"choice": "accept"}, "resolved_by": "demo"}
        return [Reply("EFFECT_RESOLVED", resolved, after=1.6)]
    if key == "answer":
        return succeeded("accept", after=0.2)
    if "function" in spec:
        definition = functions()[spec["function"]["function"]]
        args, kwargs = definition.decode_arguments(spec["function"].get("args", []), spec["function"].get("kwargs", {}))
        return succeeded(definition.encode_result(definition.fn(*args, **kwargs)), after=0.003)
    if key.startswith("race/"):
        return succeeded(exit_code=0, after=0.01) if key.endswith("-all") else never(command)
    progress = Reply("EFFECT_PROGRESS", {"progress": {"percent": 40, "step": "half"}}, SLOW[key] / 2)
    return [progress, *succeeded({"found": 3} if key != "tests" else None, exit_code=int(key == "tests"),
                                 stdout={"tail": "1 failed in 3s"}, after=SLOW[key])]  # fmt: skip


def demo(repository: Path, answer: Answer = world) -> Driven:
    return drive(check_repository, {"repository": str(repository)}, answer)


def test_the_report_says_what_was_found(repository: Path) -> None:
    report = demo(repository).result
    assert (report["files"], report["files_checked"]) == (23, 23)
    assert report["marks"] == 20
    assert report["broken"] == ["broken.py: invalid syntax (broken.py, line 1)"]
    assert [finding["verdict"] for finding in report["findings"]] == ["exit code 1: 1 failed in 3s", "found 3"]
    assert report["skipped"] == [
        "type check: mypy is not configured",
        "walk of the whole history: not a git repository",
    ]
    assert report["race"] == "race/grep-all was first; race/grep-each was cancelled (RACE_LOST)"
    assert report["answer"] == "accept by demo"
    assert report["running_after_files"] == ["tests", "content"]


@pytest.mark.invariant("I8")
def test_every_prefix_of_the_demo_replays_to_the_same_requests(repository: Path) -> None:
    check_prefixes(demo(repository))


def test_the_foreground_goes_on_under_every_background_effect(repository: Path) -> None:
    events = demo(repository).events
    asked = {event.effect_key: event.seq for event in events if event.type == "EFFECT_REQUESTED"}
    ended = {event.effect_key: event.seq for event in events if event.type == "EFFECT_RESOLVED"}
    for slow in ("tests", "content"):
        quick = [key for key in ended if asked[slow] < asked[key] and ended[key] < ended[slow]]
        assert len(quick) > 10


def test_a_check_that_times_out_is_a_finding_too(repository: Path) -> None:
    def slow_tests(command: Command) -> list[Reply]:
        if command.effect_key == "tests":
            return failed("TIMEOUT_START_TO_CLOSE", "ran 75 s", after=75, timed_out=True)
        return world(command)

    driven = demo(repository, slow_tests)
    assert driven.result["findings"][0]["verdict"] == "TIMEOUT_START_TO_CLOSE: ran 75 s"
    [asked] = [e for e in driven.events if e.type == "EFFECT_REQUESTED" and e.effect_key == "tests"]
    assert asked.data["spec"]["retry"]["non_retryable"] == ["TIMEOUT_START_TO_CLOSE"], "not tried again"


def test_a_file_that_cannot_be_checked_does_not_end_the_run(repository: Path) -> None:
    def one_is_gone(command: Command) -> list[Reply]:
        return failed("RAISED", "FileNotFoundError") if command.effect_key == "size/m3.py" else world(command)

    report = demo(repository, one_is_gone).result
    assert "m3.py: FileNotFoundError" in report["broken"]
    assert report["files_checked"] == 22


def test_a_result_is_used_the_moment_it_lands(repository: Path) -> None:
    events = demo(repository).events
    landed = next(event for event in events if event.type == "EFFECT_RESOLVED" and event.effect_key == "content")
    used = next(e for e in events if e.type == "EFFECT_REQUESTED" and e.effect_key == "verdict/content")
    assert used.cause == landed.seq


def test_every_file_name_makes_a_key() -> None:
    assert key_of(3, "src/a.py") == "src/a.py"
    assert key_of(3, "with space.txt") == "with_space.txt#3"
    assert len(key_of(7, "d/" * 150 + "a.py")) < 210
    assert Path(key_of(1, "a.py")).suffix == ".py"
