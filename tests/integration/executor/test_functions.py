"""Functions: what they return and raise, and how they are ended."""

import threading

import pytest

from executor_service.server import ExecutorServer
from tests.integration.executor import functions
from tests.support.eventually import eventually
from tests.support.fake_scheduler import Dispatch, FakeScheduler, Settled

pytestmark = pytest.mark.usefixtures("executor")


def call(name: str, *args: object, **kwargs: object) -> dict[str, object]:
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
