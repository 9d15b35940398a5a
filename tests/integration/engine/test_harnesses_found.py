"""Agent CLIs that are installed, upgraded and removed while the executor runs: dispatch and people hear of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import backburner as bb
from backburner.scheduler.v1 import operator_service_pb2 as op
from backburner.scheduler.v1 import operator_service_pb2_grpc as operator_grpc
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from executor_service import server as executor_server
from executor_service.harness.cli import lookout
from scheduler_service.authoring.definitions import AnyProcess
from scheduler_service.journal import ExecutorFound, JournalUnavailable
from tests.integration.engine.real_executor import real_executor
from tests.integration.engine.world import World, world
from tests.support.eventually import eventually

pytestmark = pytest.mark.timeout(240)


@bb.process("found/one")
async def one(ctx: bb.Context) -> str:
    """One agent, whoever has it."""
    return str((await ctx.run(bb.agent("late", prompt="hi"), key="it")).text)


KNOWN: Mapping[str, AnyProcess] = {"found/one": one}


def install(folder: Path, version: str, *, gate: str = "") -> None:
    """Puts the agent `late` where the executor looks for it."""
    wait = f"until test -e {gate}; do sleep 0.02; done\n" if gate else ""
    new = folder / "late.new"
    new.write_text(f'#!/bin/sh\n[ "$1" = --version ] && {{ {wait}\necho {version}; exit; }}\nprintf "I am {version}"\n')
    new.chmod(0o755)
    new.rename(folder / "late")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of an executor that looks for `late` and for nothing else, often."""
    monkeypatch.setattr(lookout, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(executor_server, "_LOOK_SECONDS", 0.2)
    commands = tmp_path / "commands.json"
    commands.write_text(json.dumps({"late": {"argv": [str(tmp_path / "late")], "output": "text"}}))
    return {"harness_commands": str(commands), "agents": ("late",), "harness_check_seconds": 0.1}


async def executors(at: World) -> op.ListExecutorsResponse:
    """As people see them."""
    return await operator_grpc.OperatorServiceStub(at.channel).ListExecutors(op.ListExecutorsRequest(), timeout=60)


async def is_version(at: World, version: str) -> None:
    """Waits until people see that version; empty: none that can be used."""

    async def seen() -> bool:
        [check] = (await executors(at)).executors[0].harness_checks
        return (check.version if check.found else "") == version

    await eventually(seen, 60, f"it is not {version or 'gone'}")


async def test_one_that_comes_later_gets_what_waits_for_it_and_is_upgraded_and_removed(
    database_url: str, tmp_path: Path, settings: dict[str, Any]
) -> None:
    async with world(database_url, KNOWN) as at, real_executor(at, tmp_path, **settings):
        run_id = await at.create("found/one")
        await at.row(run_id, "EFFECT_REQUESTED")
        install(tmp_path, "1.0.0")
        assert await at.value(run_id) == "I am 1.0.0"
        install(tmp_path, "1.1.0")
        await is_version(at, "1.1.0")
        assert await at.value(await at.create("found/one")) == "I am 1.1.0"
        (tmp_path / "late").unlink()
        await is_version(at, "")
        [(capabilities,)] = await at.query("SELECT capabilities FROM backburner.executors")
        assert "agent/late" not in capabilities
        waits = await at.create("found/one")
        await eventually(lambda: _waiting(at, waits, "is no program: install it"), 60)
        install(tmp_path, "1.2.0")
        assert await at.value(waits) == "I am 1.2.0"


async def _waiting(at: World, run_id: str, said: str) -> bool:
    answer = await at.client.ListEffects(pb.ListEffectsRequest(run_id=run_id), timeout=60)
    assert any(said in effect.waiting_on.message for effect in answer.effects), answer
    return True


async def test_one_that_is_slow_to_tell_its_version_does_not_hold_up_the_start(
    database_url: str, tmp_path: Path, settings: dict[str, Any]
) -> None:
    install(tmp_path, "1.0.0", gate=str(tmp_path / "gate"))
    async with world(database_url, KNOWN) as at, real_executor(at, tmp_path, **settings):  # it has a session here
        [session] = at.engine.sessions
        assert "agent/late" not in session.capabilities
        assert [check.looking for check in (await executors(at)).executors[0].harness_checks] == [True]
        (tmp_path / "gate").touch()
        assert await at.value(await at.create("found/one")) == "I am 1.0.0"


async def test_what_the_database_could_not_take_it_is_told_again(
    database_url: str, tmp_path: Path, settings: dict[str, Any]
) -> None:
    async with world(database_url, KNOWN) as at, real_executor(at, tmp_path, **settings):
        refused: list[ExecutorFound] = []
        noted = at.engine.journal.executor_found

        async def away(found: ExecutorFound) -> None:
            if len(refused) < 2:
                refused.append(found)
                raise JournalUnavailable("away")
            await noted(found)

        at.engine.journal.executor_found = away  # type: ignore[method-assign]
        install(tmp_path, "1.0.0")
        await is_version(at, "1.0.0")
        assert len(refused) == 2
