"""The way of a dead incarnation's results into the journal: whatever it says to them, whatever became of the files."""

from pathlib import Path

import orjson
import pytest

from executor_service import resend, spool_files
from executor_service.recording import Busy, Refused
from executor_service.resend import ASIDE, Resend
from tests.unit.executor.fakes import FakeLane, Item


def left(folder: Path, *effects: str) -> None:
    """What the incarnation `dead` has left: a result of each effect."""
    items = [
        {"run_id": "run", "effect_id": effect, "attempt": 1, "token": "ab", "outcome": "succeeded", "result": {}}
        for effect in effects
    ]
    spool_files.write(folder / "dead", [(item["effect_id"], orjson.dumps(item)) for item in items])  # type: ignore[misc]


async def test_results_are_sent_and_removed_whatever_the_journal_makes_of_them(tmp_path: Path) -> None:
    left(tmp_path, "ok", "already", "stale", "settled", "not_found")
    lane = FakeLane(lambda _kind, item: str(item["effect_id"]))
    assert await Resend(lane, tmp_path).send("dead")
    assert len(lane.calls) == 1
    assert not (tmp_path / "dead").exists()


async def test_nothing_left_is_no_call(tmp_path: Path) -> None:
    lane = FakeLane()
    assert await Resend(lane, tmp_path).send("dead")
    assert lane.calls == []


async def test_locked_run_is_waited_for_and_holds_up_no_other(tmp_path: Path) -> None:
    left(tmp_path, "a", "locked", "z")
    busy = 2

    def answer(_kind: str, item: Item) -> str:
        nonlocal busy
        if item["effect_id"] != "locked" or not busy:
            return "ok"
        busy -= 1
        if not busy:
            raise Busy("locked")
        return "busy"

    lane = FakeLane(answer)
    assert await Resend(lane, tmp_path).send("dead")
    assert lane.effects("settle") == ["a", "z", "locked"]


async def test_run_that_stays_locked_is_left_to_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resend, "_BUSY_SECONDS_MAX", 0.0)
    left(tmp_path, "locked")
    assert not await Resend(FakeLane(lambda _kind, _item: "busy"), tmp_path).send("dead")
    assert [path.name for path in spool_files.entries(tmp_path / "dead")] == ["locked"]


async def test_refused_result_fails_as_invalid_and_keeps_its_identity(tmp_path: Path) -> None:
    def answer(_kind: str, item: Item) -> str:
        if item["effect_id"] == "bad" and item["outcome"] == "succeeded":
            raise Refused("unsupported Unicode escape sequence")
        return "ok"

    left(tmp_path, "a", "bad", "z")
    lane = FakeLane(answer)
    assert await Resend(lane, tmp_path).send("dead")
    assert sorted(lane.effects("settle")) == ["a", "bad", "z"]
    [failed] = [item for item in lane.written["settle"] if item["effect_id"] == "bad"]
    assert (failed["outcome"], failed["reason"], failed["token"]) == ("failed", "EFFECT_REASON_INVALID_RESULT", "ab")
    assert "unsupported Unicode escape sequence" in failed["message"]


async def test_damaged_and_hopeless_files_are_set_aside_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(_kind: str, item: Item) -> str:
        if item["effect_id"] == "hopeless":
            raise Refused("not even this")
        return "ok"

    left(tmp_path, "torn", "hopeless", "whole")
    torn = tmp_path / "dead" / "torn"
    torn.write_bytes(torn.read_bytes()[:-5])
    lane = FakeLane(answer)
    assert await Resend(lane, tmp_path).send("dead")
    assert lane.effects("settle") == ["whole"]
    assert sorted(path.name for path in (tmp_path / ASIDE).iterdir()) == ["dead-hopeless", "dead-torn"]
    assert caplog.text.count("set aside as") == 2
