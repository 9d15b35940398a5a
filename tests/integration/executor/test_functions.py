"""Functions: what they return and raise, and how they are ended."""

import threading
from typing import Any

import pytest

from executor_service.server import ExecutorServer
from tests.integration.executor import functions
from tests.support.eventually import eventually
from tests.support.fake_scheduler import Dispatch, FakeScheduler, Settled

pytestmark = pytest.mark.usefixtures("executor")


def call(name: str, *args: object, **kwargs: object) -> dict[str, Any]:
    return {"function": {"function": name, "args": list(args), "kwargs": kwargs}}


async def begun(name: str) -> None:
    await eventually(functions.BEGAN[name].is_set)


async def test_result_is_stored_as_canonical_json(scheduler: FakeScheduler) -> None:
    settled = await scheduler.run(**call("exec.echo", {"b": 1.0, "a": [None, True, "é"]}))
    assert settled.type == "EFFECT_RESOLVED"
    assert settled.data["state"] == "EFFECT_STATE_SUCCEEDED"
    assert settled.value == {"a": [None, True, "é"], "b": 1}


async def test_function_without_result_gives_null(scheduler: FakeScheduler) -> None:
    assert (await scheduler.run(**call("exec.noop"))).value is None


async def test_blocking_function_runs_in_a_thread_with_decoded_arguments(scheduler: FakeScheduler) -> None:
    settled = await scheduler.run(**call("exec.blocking", {"x": 2, "y": 3}))
    assert settled.value == {"sum": 5}


async def test_blocking_function_reports_progress_from_its_thread(scheduler: FakeScheduler) -> None:
    dispatch = await scheduler.one(**call("exec.steps_in_thread"))
    assert (await scheduler.settled(dispatch)).value != threading.get_ident()


async def test_exception_is_a_failure_with_type_and_traceback(scheduler: FakeScheduler) -> None:
    settled = await scheduler.run(**call("exec.raises", "no such<NUL> thing<SURROGATE>"))
    error = settled.data["error"]
    assert settled.data["state"] == "EFFECT_STATE_FAILED"
    assert settled.reason == "RAISED"
    assert error["exception_type"] == "LookupError"
    assert "no such\ufffd thing?" in error["message"]
    assert "functions.py" in error["traceback"]
    assert "executor_service" not in error["traceback"]


@pytest.mark.parametrize(
    ("kind", "retry_after", "reason", "later"),
    [
        ("rate", 3600.0, "RATE_LIMITED", True),
        ("load", None, "OVERLOADED", False),
    ],
)
async def test_a_function_that_is_refused_says_so_and_when_to_try_again(
    scheduler: FakeScheduler, kind: str, retry_after: float | None, reason: str, later: bool
) -> None:
    settled = await scheduler.run(max_attempts=2, **call("exec.refused", kind, retry_after))
    assert (settled.type, settled.reason, settled.data["error"]["message"]) == (
        "EFFECT_PARKED" if later else "EFFECT_ATTEMPT_FAILED", reason, "not now",
    )  # fmt: skip
    paused = "SELECT not_before > clock_timestamp() + interval '30 min' FROM backburner.effects"
    assert await scheduler.query(paused) == [(later,)], "a pause of its own, else the retry policy's minute"


@pytest.mark.parametrize("size", [100, 1_000_000])
async def test_message_of_any_length_is_stored_within_bounds(scheduler: FakeScheduler, size: int) -> None:
    error = (await scheduler.run(**call("exec.raises", "é" * size))).data["error"]
    assert len(error["message"].encode()) <= 8192
    assert len(error["traceback"].encode()) <= 8192


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("exec.unknown", [], "not loaded"),
        ("exec.blocking", [{"x": 1}], "input.point.y"),
        ("exec.blocking", [], "missing a required argument"),
        ("exec.noop", [1], "too many positional arguments"),
    ],
)
async def test_what_cannot_be_called_is_invalid_work(
    scheduler: FakeScheduler, name: str, args: list[object], said: str
) -> None:
    settled = await scheduler.run(max_attempts=5, **call(name, *args))
    assert (settled.type, settled.reason) == ("EFFECT_RESOLVED", "INVALID_WORK"), "no other attempt would do better"
    assert said in settled.data["error"]["message"]


async def test_malformed_spec_is_invalid_work(scheduler: FakeScheduler) -> None:
    dispatch = await scheduler.one(send=False, **call("exec.noop"))
    dispatch.start.spec_json = b'{"function": '
    scheduler.sessions[-1].start(dispatch)
    assert (await scheduler.settled(dispatch)).reason == "INVALID_WORK"


@pytest.mark.parametrize(("size", "where"), [(65_536, "value"), (65_537, "blob"), (16 << 20, "blob")])
async def test_large_result_is_stored_beside_the_journal(scheduler: FakeScheduler, size: int, where: str) -> None:
    settled = await scheduler.run(**call("exec.text", size))
    assert settled.data["state"] == "EFFECT_STATE_SUCCEEDED"
    payload = settled.data["result"]["value"]
    assert set(payload) == {where}
    if where == "blob":
        assert payload["blob"]["size_bytes"] == size


async def test_result_beyond_the_limit_says_so(scheduler: FakeScheduler) -> None:
    settled = await scheduler.run(**call("exec.text", (16 << 20) + 1))
    assert settled.reason == "INVALID_RESULT"
    assert "16777217 bytes as JSON; at most 16777216" in settled.data["error"]["message"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("exec.bad_result", "result.deep[1]"),
        ("exec.wrong_type", "result[1].x: expected an integer, got text; result[1].y: "),
        ("exec.too_large", "at most"),
    ],
)
async def test_result_that_cannot_be_stored_is_an_invalid_result(
    scheduler: FakeScheduler, name: str, said: str
) -> None:
    settled = await scheduler.run(**call(name))
    assert settled.reason == "INVALID_RESULT"
    assert said in settled.data["error"]["message"]


@pytest.mark.parametrize("name", ["exec.exits", "exec.cancels_itself"])
async def test_base_exception_of_a_function_is_its_own_failure(scheduler: FakeScheduler, name: str) -> None:
    assert (await scheduler.run(**call(name))).reason == "RAISED"
    assert (await scheduler.run(**call("exec.echo", 1))).value == 1


async def test_failed_attempt_with_attempts_left_is_queued_again(scheduler: FakeScheduler) -> None:
    settled = await scheduler.run(max_attempts=3, **call("exec.raises", "once"))
    assert settled.type == "EFFECT_ATTEMPT_FAILED"
    assert settled.data["next_attempt_at"]


@pytest.mark.parametrize("name", ["exec.forever", "exec.blocks_until_asked"])
async def test_cancelled_function_is_settled_as_cancelled(scheduler: FakeScheduler, name: str) -> None:
    functions.BEGAN[name] = threading.Event()
    dispatch = await scheduler.one(**call(name, name))
    await begun(name)
    scheduler.sessions[-1].cancel(dispatch, "RACE_LOST")
    settled = await scheduler.settled(dispatch)
    assert (settled.type, settled.reason) == ("EFFECT_CANCELLED", "RACE_LOST")


async def test_function_that_ignores_its_cancel_is_given_up_unproven(
    scheduler: FakeScheduler, executor: ExecutorServer
) -> None:
    functions.BEGAN.update({"s": threading.Event(), "s may end": threading.Event()})
    dispatch = await scheduler.one(timeouts={"kill_grace": "0.1s"}, **call("exec.stubborn", "s"))
    await begun("s")
    scheduler.sessions[-1].cancel(dispatch)
    settled = await scheduler.settled(dispatch)
    assert settled.type == "EFFECT_CANCELLED"
    assert settled.data["death"] == "DEATH_UNPROVEN"
    assert executor.attempts.pools["functions"].taken == 0
    functions.BEGAN["s may end"].set()


@pytest.mark.parametrize(
    ("timeouts", "reason"),
    [
        ({"start_to_close": "0.2s"}, "TIMEOUT_START_TO_CLOSE"),
        ({"silence": "0.2s", "start_to_close": "60s"}, "TIMEOUT_SILENCE"),
    ],
)
async def test_timeout_of_a_function_says_which(
    scheduler: FakeScheduler, timeouts: dict[str, str], reason: str
) -> None:
    functions.BEGAN["t"] = threading.Event()
    settled = await scheduler.run(timeouts=timeouts, **call("exec.forever", "t"))
    assert settled.data["state"] == "EFFECT_STATE_TIMED_OUT"
    assert settled.reason == reason


async def test_total_timeout_is_final_even_with_attempts_left(scheduler: FakeScheduler) -> None:
    functions.BEGAN["t"] = threading.Event()
    settled = await scheduler.run(total_remaining_s=0.2, max_attempts=9, **call("exec.forever", "t"))
    assert (settled.type, settled.reason) == ("EFFECT_RESOLVED", "TIMEOUT_TOTAL")


@pytest.mark.invariant("I7")
async def test_each_result_is_journaled_when_its_own_effect_ends(scheduler: FakeScheduler) -> None:
    functions.BEGAN["i7"] = threading.Event()
    session = await scheduler.session()
    run = await scheduler.create_run()
    slow, quick = await scheduler.dispatch(
        run, session, [("slow", call("exec.forever", "i7")), ("quick", call("exec.echo", "done"))]
    )
    session.start(slow, quick)
    assert (await scheduler.settled(quick)).value == "done"
    assert [row.type for row in await scheduler.rows(slow)][-1] != "EFFECT_RESOLVED"
    session.cancel(slow)
    assert isinstance(await scheduler.settled(slow), Settled)


async def test_many_attempts_at_once_each_settle_once(scheduler: FakeScheduler) -> None:
    dispatches: list[Dispatch] = await scheduler.request(200, **call("exec.noop"))
    session = scheduler.sessions[-1]
    await eventually(lambda: sum(e.frees_slot for e in session.events) == 200)
    assert {e.effect_id for e in session.events} == {d.effect_id for d in dispatches}
    assert len({e.seq for e in session.events}) == 200
    assert session.messages < 40, "notices travel many to a message"
