"""A harness module for tests: agents without a child, as quick as a function. For what is about numbers of effects.

It works on the file that its prompt ends with, as `checks.work_on` does; a file that holds "impossible" cannot be done.
"""

import asyncio
from functools import partial
from pathlib import Path

from executor_service.harness.agent import AgentRequest, Answer, Attempt, Failure, Host
from tests.support.checks import work_on


class InstantAgent:
    """Answers at once."""

    name = "instant"
    version = ""

    async def run(self, request: AgentRequest, attempt: Attempt) -> Answer:
        """Works on the file."""
        attempt.started(0)
        path = request.prompt.split()[-1]
        work = asyncio.ensure_future(work_on(path))
        attempt.on_end(partial(_cancel, work))
        try:
            await work
        except asyncio.CancelledError:
            if not work.cancelled():
                raise  # not asked of the work: the executor itself is being ended
            return Answer()
        if _is_beyond_repair(Path(path)):
            return Answer(failure=Failure("INVALID_WORK", f"{path} is beyond repair", final=True))
        return Answer(text=f"mended {Path(path).name}")


def _cancel(work: asyncio.Future[None]) -> None:
    work.cancel()


def _is_beyond_repair(path: Path) -> bool:
    return path.exists() and "impossible" in path.read_text()


def harnesses(host: Host) -> list[InstantAgent]:
    """The one."""
    return [InstantAgent()]
