"""From spec to the columns of an effect's row."""

from typing import Any

import pytest

from scheduler_service.iteration.rows import projection, row_of, seconds, timestamp, work_of
from scheduler_service.replay.events import Command


@pytest.mark.parametrize(
    ("work", "columns"),
    [
        ({"shell": {}}, ("SHELL", "shell", "shell", ["shell"])),
        ({"function": {"function": "a.b"}}, ("FUNCTION", "functions", "function", ["function/a.b"])),
        ({"agent": {"harness": "codex"}}, ("AGENT", "agents", "codex", ["agent/codex"])),
        (
            {"agent": {"harness": "codex"}, "fallbacks": ["claude-code", "gemini"]},
            ("AGENT", "agents", "codex", ["agent/codex", "agent/claude-code", "agent/gemini"]),
        ),
        ({"external": {"prompt": "?"}}, ("EXTERNAL", "", "", [])),
        ({"run": {"process": "p"}}, ("RUN", "", "", [])),
        ({"timer": {"fire_at": "2030-01-01T00:00:00Z"}}, ("TIMER", "", "", [])),
    ],
)
def test_each_kind(work: dict[str, Any], columns: tuple[Any, ...]) -> None:
    x = projection({"name": "n"} | work)
    assert (x["kind"], x["pool"], x["harness"], x["capabilities"]) == columns
    assert x["dispatch"] is None


def test_defaults() -> None:
    x = projection({"shell": {}})
    assert (x["max_attempts"], x["initial_s"], x["backoff"], x["max_interval_s"]) == (1, 1.0, 2.0, 300.0)
    assert (x["on_run_end"], x["poll_interval_s"], x["priority"], x["background"]) == ("WAIT", 5.0, 0, False)
    assert (x["group_id"], x["group_max"], x["not_before"]) == (None, None, None)
    assert (x["queue_timeout_s"], x["total_timeout_s"]) == (None, None)


def test_options() -> None:
    x = projection(
        {
            "shell": {}, "background": True, "priority": -7, "on_run_end": "ON_RUN_END_DETACH", "labels": {"a": "b"},
            "timeouts": {"schedule_to_start": "1.500s", "total": "60s"}, "executor_labels": {"zone": "b"},
            "retry": {"max_attempts": 4, "initial": "0.010s", "backoff": 1.5, "max_interval": "9s",
                      "non_retryable": ["EXITED_NONZERO"]},
            "sleep_until": "2030-01-01T00:00:00Z", "poll_interval": "0.500s",
        }
    )  # fmt: skip
    assert (x["queue_timeout_s"], x["total_timeout_s"], x["poll_interval_s"]) == (1.5, 60.0, 0.5)
    assert (x["max_attempts"], x["initial_s"], x["backoff"], x["max_interval_s"]) == (4, 0.01, 1.5, 9.0)
    assert (x["on_run_end"], x["priority"], x["non_retryable"]) == ("DETACH", -7, ["EXITED_NONZERO"])
    work = work_of(x, "ns")
    assert (work.sleeps, work.background, work.namespace, work.executor_labels) == (True, True, "ns", {"zone": "b"})
    assert work.total_timeout_s == 60.0


@pytest.mark.parametrize("work", [{"external": {}}, {"run": {"process": "p"}}, {"timer": {"fire_at": "x"}}])
def test_what_begins_with_its_request_has_one_bound_in_time(work: dict[str, Any]) -> None:
    x = projection(work | {"timeouts": {"start_to_close": "5s", "total": "60s"}})
    assert x["total_timeout_s"] == 5.0


@pytest.mark.parametrize(
    ("group", "most"),
    [
        ({"id": "g", "strategy": "GROUP_STRATEGY_CONCURRENT", "max_concurrency": 3}, 3),
        ({"id": "g", "strategy": "GROUP_STRATEGY_SEQUENTIAL", "max_concurrency": 3}, 1),
        ({"id": "g", "strategy": "GROUP_STRATEGY_SEQUENTIAL"}, 1),
        ({"id": "g", "strategy": "GROUP_STRATEGY_ADAPTIVE", "max_concurrency": 5}, 5),
        ({"id": "g", "strategy": "GROUP_STRATEGY_CONCURRENT"}, 2**31 - 1),  # no limit of its own
    ],
)
def test_limits_of_groups(group: dict[str, Any], most: int) -> None:
    x = projection({"shell": {}, "group": group})
    assert (x["group_id"], x["group_max"]) == ("g", most)
    assert x["group_strategy"] == group["strategy"].removeprefix("GROUP_STRATEGY_")


def test_work_of_no_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="has no work"):
        projection({"name": "n"})


def test_rows() -> None:
    asked = row_of(Command("EFFECT_REQUESTED", 4, "id", "key", {"spec": {"shell": {}}}))
    assert (asked["cause"], asked["effect_id"], asked["effect_key"], asked["x"]["kind"]) == (4, "id", "key", "SHELL")
    assert row_of(Command("PROCESS_LOG", 4, "", "", {"message": "m"})) == {
        "type": "PROCESS_LOG", "cause": 4, "data": {"message": "m"},
    }  # fmt: skip


def test_times() -> None:
    assert seconds("3.500s") == 3.5
    assert seconds(None) is None
    assert timestamp("2030-01-01T00:00:00.250Z").timestamp() == 1893456000.25
