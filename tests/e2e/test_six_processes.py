"""The six processes of the API through both services: to their ends, and with a kill -9 in the middle of all of them.

The runs of one round go on at the same time; every scenario is judged by itself.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest

from backburner.journal.v1 import journal_pb2
from tests.e2e.conftest import services_of_their_own
from tests.e2e.six_scenarios import ALL, Scenario, starts
from tests.support import instant_agent, scripted_agent
from tests.support.journals import check_journal, of_type
from tests.support.services import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.crash, pytest.mark.timeout(500)]

#: It takes agents only: what else is to be killed must not run on it.
_REVIEWERS = {
    "SCRIPTED_AGENTS": "claude-code,gemini-cli", "BACKBURNER_SLOTS_FUNCTIONS": "0", "BACKBURNER_SLOTS_SHELL": "0",
}  # fmt: skip

Ended = Mapping[str, Scenario | BaseException]


@pytest.fixture(scope="module")
async def services(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """The services, with a second executor of agents that nobody kills."""
    modules = f"{scripted_agent.__name__},{instant_agent.__name__}"
    place = {"REMINDERS": str(tmp_path_factory.mktemp("reminders"))}
    env = {
        "BACKBURNER_FUNCTION_MODULES": "tests.support.checks",
        "BACKBURNER_HARNESS_MODULES": modules,
        "BACKBURNER_SLOTS_AGENTS": "32",
        "SCRIPTED_AGENTS": "codex",
        **place,
    }
    async with services_of_their_own("tests.support.six_processes", scheduler_env=place, executor_env=env) as stack:
        reviewers = stack.new_executor("reviewers", **_REVIEWERS)
        reviewers.start()
        yield stack
        reviewers.kill()


@pytest.fixture(scope="module", params=["nobody", "scheduler", "executor"])
async def killed(request: pytest.FixtureRequest) -> str:
    """Who is killed in the middle."""
    return str(request.param)


@pytest.fixture(scope="module")
async def ended(services: Stack, killed: str, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Every scenario at its end, or what went wrong with it."""
    folder = tmp_path_factory.mktemp(killed)
    scenarios = [made(services, folder / made.process) for made in ALL]
    reached = await asyncio.gather(*(_to_the_middle(one) for one in scenarios), return_exceptions=True)
    victim = {"scheduler": services.scheduler, "executor": services.executor}.get(killed)
    if victim is not None:
        victim.kill()
        victim.start()
    going_on = [one for one, error in zip(scenarios, reached, strict=True) if error is None]
    failed = {one.process: error for one, error in zip(scenarios, reached, strict=True) if error is not None}
    done = await asyncio.gather(*(one.end() for one in going_on), return_exceptions=True)
    return failed | {one.process: error or one for one, error in zip(going_on, done, strict=True)}


async def _to_the_middle(scenario: Scenario) -> None:
    await scenario.begin()
    await scenario.reach_the_middle()
    scenario.before = scenario.rows


@pytest.fixture(params=[made.process for made in ALL])
def played(request: pytest.FixtureRequest, ended: Ended) -> Scenario:
    """One scenario at its end."""
    scenario = ended[request.param]
    if isinstance(scenario, BaseException):
        raise scenario
    return scenario


@pytest.mark.invariant("I2", "I3", "I8")
def test_it_ends_as_it_should_and_repeats_nothing(played: Scenario, killed: str) -> None:
    check_journal(played.rows)
    assert played.rows[: len(played.before)] == played.before, "what was recorded before the kill has changed"
    for key in played.settled:
        if key in played.files():
            assert starts(played.files()[key]) == 1, f"{key} had settled and was started again"
        assert len(of_type(played.rows, "EFFECT_DISPATCHED", key=key)) == 1
    for key, path in played.files().items():
        assert starts(path) <= played.allowed(key), f"{key} was started more often than its attempts say"
    if killed == "executor" and played.ends_with_its_executor:
        assert played.run.state == journal_pb2.RUN_STATE_FAILED, played.run
        # The first loss ends the run, which cancels what it has not yet been told the loss of.
        assert "EXECUTOR_LOST" in {played.reason(key) for key in played.running} <= {"EXECUTOR_LOST", "RUN_ENDED"}
        assert all(starts(played.files()[key]) == 1 for key in played.running), "it may be started once"
    else:
        assert played.returned() == played.result
        played.check()


def test_a_killed_schedulers_runs_keep_their_attempts(played: Scenario, killed: str) -> None:
    """The executors ran on: what was running is adopted, not lost."""
    if killed == "scheduler":
        assert not of_type(played.rows, "EFFECT_ATTEMPT_LOST")
        assert all(starts(played.files()[key]) == 1 for key in played.running)
