"""Metrics of an executor: looked at by its event loop, and answered when that is stuck."""

import json
from pathlib import Path

import pytest

from executor_service import server
from executor_service.errors import StartError
from executor_service.harness.cli import lookout
from executor_service.metrics import state
from tests.integration.executor.conftest import StartExecutor
from tests.support.eventually import eventually
from tests.support.fake_scheduler import FakeScheduler
from tests.support.scraping import scrape, scrape_while_stuck


async def test_what_runs_and_what_it_takes_is_shown(scheduler: FakeScheduler, start_executor: StartExecutor) -> None:
    executor = await start_executor(metrics_address="127.0.0.1:0", slots_shell=3)
    session = await scheduler.session()
    dispatch = await scheduler.one(shell={"argv": ["sleep", "300"]})
    await eventually(lambda: len(executor.attempts) == 1)
    scraped = await scrape(executor.metrics_address)
    assert scraped.value("backburner_executor_attempts_running", harness="shell") == 1
    assert scraped.all("backburner_executor_slots", **{"pool": "shell", "class": "all"}) == [3]
    assert scraped.all("backburner_executor_slots_used", **{"pool": "shell", "class": "all"}) == [1]
    assert scraped.value("backburner_executor_attempts_started_total", harness="shell") == 1
    assert scraped.value("backburner_executor_spool_taken_bytes") == 100 * 1024, "room for its result"
    session.cancel(dispatch)
    await eventually(lambda: len(executor.attempts) == 0, timeout=30)
    scraped = await scrape(executor.metrics_address)
    assert scraped.value("backburner_executor_attempts_running") is None
    ended = {"harness": "shell", "outcome": "cancelled", "reason": "CANCELLED_BY_USER"}
    assert scraped.value("backburner_executor_attempts_ended_total", **ended) == 1


async def test_an_executor_that_is_stuck_is_scraped_all_the_same(
    start_executor: StartExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "LOOK_SECONDS", 0.2)
    executor = await start_executor(metrics_address="127.0.0.1:0")
    scraped = scrape_while_stuck(executor.metrics_address)
    assert scraped.value("backburner_executor_up") == 0
    assert scraped.value("backburner_executor_slots") is None
    monkeypatch.setattr(state, "LOOK_SECONDS", 60.0)
    assert (await scrape(executor.metrics_address)).value("backburner_executor_up") == 1


async def test_an_address_in_use_is_told_with_the_setting(start_executor: StartExecutor) -> None:
    first = await start_executor(metrics_address="127.0.0.1:0")
    with pytest.raises(StartError, match=r"in use\): choose another address with --metrics-address"):
        await start_executor(metrics_address=first.metrics_address, executor_id="another")


async def test_an_agent_cli_that_is_installed_later_counts_under_its_name(
    scheduler: FakeScheduler, start_executor: StartExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(server, "_LOOK_SECONDS", 0.2)
    program, commands = tmp_path / "late", tmp_path / "commands.json"
    commands.write_text(json.dumps({"late": {"argv": [str(program)], "output": "text"}}))
    executor = await start_executor(
        metrics_address="127.0.0.1:0", harness_commands=str(commands), agents=("late",), harness_check_seconds=0.1
    )
    info = "backburner_executor_harness_info"
    await eventually(lambda: not any(check.looking for check in executor._builtin.checks), timeout=60)
    assert (await scrape(executor.metrics_address)).all(info, name="late", version="", found="false") == [1]
    new = tmp_path / "late.new"
    new.write_text('#!/bin/sh\n[ "$1" = --version ] && { echo 1.0.0; exit; }\necho hello\n')
    new.chmod(0o755)
    new.rename(program)
    await eventually(lambda: executor._builtin.checks[0].found, timeout=60)
    assert (await scrape(executor.metrics_address)).all(info, name="late") == [1]
    assert (await scrape(executor.metrics_address)).all(info, name="late", version="1.0.0", found="true") == [1]
    await scheduler.run(agent={"harness": "late", "prompt": "hi"})
    scraped = await scrape(executor.metrics_address)
    assert scraped.value("backburner_executor_attempts_started_total", harness="late") == 1
    assert scraped.value("backburner_executor_attempts_ended_total", harness="late", outcome="succeeded") == 1
