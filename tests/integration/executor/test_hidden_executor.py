"""A child of a real executor, of an ordinary user: it may see neither what the executor was given, nor its keepers."""

import os

import pytest

from tests.integration.executor.conftest import NewExecutor
from tests.support.fake_scheduler import FakeScheduler

pytestmark = pytest.mark.skipif(os.getuid() == 0, reason="nothing hides from root")

LOOKS = 'cat /proc/{pid}/environ "/proc/$PPID/environ" 2>&1; echo; tr "\\0" "\\n" < /proc/self/environ'


async def test_a_child_sees_nothing_of_the_executor(scheduler: FakeScheduler, new_executor: NewExecutor) -> None:
    service = new_executor()
    await scheduler.session()
    settled = await scheduler.run(shell={"command_line": LOOKS.format(pid=service.pid)})
    said = settled.data["result"]["stdout"]["tail"]
    assert said.count("Permission denied") == 2, said
    assert "BACKBURNER_ATTEMPT=" in said, "it sees its own"
    assert "DATABASE_URL" not in said
