"""The six processes in memory: what they ask for, event by event."""

from typing import Any

from scheduler_service.replay.harness import Reply, check_prefixes, drive, failed, succeeded
from tests.support.six_processes import deploy, over_files, poll, release_check, review, supervise


def test_release_check() -> None:
    def answer(command: Any) -> list[Reply]:
        if command.effect_key == "tests":
            return succeeded(exit_code=2, after=9)
        return succeeded({"problems": 1})

    run = drive(release_check, {"repo": "/r", "files": ["a", "b"]}, answer)
    assert run.result == {"exit_code": 2, "found": [{"problems": 1}, {"problems": 1}]}
    assert [event.cause for event in run.rows("EFFECT_REQUESTED")] == [1, 1, 1]  # one commit
    check_prefixes(run)


def test_review() -> None:
    approving = drive(review, {"diff": "d"}, lambda _c: succeeded({"approve": True}))
    assert approving.result == "approved by review/claude-code, review/codex"
    assert drive(review, {"diff": "d"}, lambda _c: succeeded({"approve": False})).result == "rejected: 2"


def test_poll_writes_no_timer() -> None:
    def answer(_command: Any) -> list[Reply]:
        rows = [Reply("EFFECT_PROGRESS", {"progress": {"percent": n, "step": "s"}}, n * 10.0) for n in range(1, 10)]
        return [*rows, *succeeded("text", after=200)]

    run = drive(poll, {"prompt": "p"}, answer)
    assert run.result == "text"
    assert [row.data["percent"] for row in run.rows("RUN_REPORTED")] == [1, 7]
    assert run.rows("TIMER_SET") == []


def test_deploy_reminds_until_it_is_answered() -> None:
    def answer(command: Any) -> list[Reply]:
        data = {"state": "EFFECT_STATE_SUCCEEDED", "result": {"choice": "yes"}, "resolved_by": "ann"}
        return [Reply("EFFECT_RESOLVED", data, 9000)] if command.effect_key == "approve" else succeeded()

    run = drive(deploy, {"tag": "1"}, answer)
    assert run.result is True
    assert [row.effect_key for row in run.rows("EFFECT_REQUESTED")] == ["approve", "notify.remind#1", "notify.remind#2"]


def test_map_over_500_files_is_one_commit() -> None:
    files = [f"f{n}" for n in range(500)]
    run = drive(over_files, {"files": files}, lambda c: failed() if c.effect_key == "fix/f7" else succeeded("ok"))
    assert {event.cause for event in run.rows("EFFECT_REQUESTED")} == {1}
    assert run.result["fix/f7"] == "RAISED"
    assert run.result["fix/f8"] == "ok"


def test_supervisor_carries_the_session_on() -> None:
    def answer(command: Any) -> list[Reply]:
        if command.effect_key != "w/1":
            return succeeded()
        error = {"reason": "EFFECT_REASON_CHILD_RUN_FAILED"}
        result = {"session": {"harness": "codex", "session_id": "s1"}}
        return [Reply("EFFECT_RESOLVED", {"state": "EFFECT_STATE_FAILED", "error": error, "result": result})]

    no_more = Reply("SIGNAL_RECEIVED", {"name": "scale", "value": {"value": ""}}, 30)
    run = drive(supervise, {"spec": {"names": ["w"]}, "sessions": {}}, answer, outside=[no_more])
    assert run.result is None
    second = run.rows("EFFECT_REQUESTED")[1]
    assert second.data["spec"]["run"]["input"]["session"]["session_id"] == "s1"
    check_prefixes(run)
