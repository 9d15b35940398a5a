"""A breaker of an account, with two real executors and a real scheduler: whom it stops, and what a client is told."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

import backburner as bb
from backburner.scheduler.v1 import operator_service_pb2 as op
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from executor_service.harness.cli import lookout
from executor_service.harness.cli.accounts import fingerprint
from executor_service.server import ExecutorServer
from scheduler_service.authoring.definitions import AnyProcess
from tests.integration.engine.real_executor import real_executor
from tests.integration.engine.world import World, world
from tests.support.eventually import eventually

pytestmark = pytest.mark.timeout(240)

#: Stands for Codex: whose quota is spent is in a file beside its login.
CODEX = """#!/bin/sh
[ "$1" = --version ] && { echo codex-cli 0.171.0; exit; }
cat > /dev/null
echo '{"type":"thread.started","thread_id":"01a20949-9fb8-73a3-9926-6d0523692a2a"}'
echo '{"type":"turn.started"}'
if [ -e "$CODEX_HOME/spent" ]; then
    echo '{"type":"turn.failed","error":{"message":"You have hit your usage limit. Try again in 2 hours."}}'
    exit 1
fi
echo '{"type":"item.completed","item":{"id":"item_1","type":"agent_message","text":"went"}}'
echo '{"type":"turn.completed","usage":{"input_tokens":1,"cached_input_tokens":0,"output_tokens":1}}'
"""


@bb.process("accounts/one")
async def one(ctx: bb.Context) -> str:
    """One agent; why it failed, when it did."""
    try:
        return str((await ctx.run(bb.agent("codex", prompt="hi"), key="it", on_quota="fail")).text)
    except bb.EffectFailed as error:
        return error.reason


KNOWN: Mapping[str, AnyProcess] = {"accounts/one": one}


class Place:
    """A scheduler, and executors that have Codex, each with a login of its own."""

    def __init__(self, at: World, folder: Path) -> None:
        self.at = at
        self._folder = folder
        self._program = folder / "codex"
        self._program.write_text(CODEX)
        self._program.chmod(0o755)

    def home(self, name: str) -> Path:
        """Where that executor's Codex has its login."""
        return self._folder / f"state-{name}" / "harnesses" / "codex" / "homes" / "default" / ".codex"

    def log_in(self, name: str, account: str) -> None:
        """Somebody logs in there."""
        home = self.home(name)
        home.mkdir(parents=True, exist_ok=True)
        (home / "new").write_text(json.dumps({"tokens": {"account_id": account}}))
        (home / "new").rename(home / "auth.json")

    def executor(self, name: str, account: str) -> AbstractAsyncContextManager[ExecutorServer]:
        """One that is logged in with this account."""
        self.log_in(name, account)
        settings: dict[str, Any] = {
            "agents": ("codex",), "harness_paths": (f"codex={self._program}",), "agent_homes": "tenant",
            "harness_check_seconds": 0.1,
        }  # fmt: skip
        return real_executor(self.at, self._folder, name, **settings)

    async def stopped(self, run_id: str) -> pb.WaitingOn:
        """That a breaker stops its effect, as a client is told; what it is told is half a second old at times."""

        async def told() -> list[pb.WaitingOn]:
            answer = await self.at.client.ListEffects(pb.ListEffectsRequest(run_id=run_id), timeout=60)
            causes = [effect.waiting_on for effect in answer.effects]
            return [cause for cause in causes if cause.cause == pb.WaitingOn.CAUSE_BREAKER]

        return (await eventually(told, 60, "no breaker stops it"))[0]


@pytest.fixture
async def place(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    monkeypatch.setattr(lookout, "PAUSE_SECONDS", 0.05)
    for name in ("CODEX_API_KEY", "OPENAI_API_KEY", "CODEX_HOME"):
        monkeypatch.delenv(name, raising=False)
    async with world(database_url, KNOWN) as at:
        yield Place(at, tmp_path)


async def test_a_spent_quota_stops_who_has_the_account_and_a_client_sees_it(place: Place) -> None:
    """Another account does the work; who shares the spent one waits, until somebody logs in there with another one."""
    at, account = place.at, f"openai:{fingerprint('mine')}"
    async with place.executor("first", "mine"):
        (place.home("first") / "spent").touch()
        assert await at.value(await at.create("accounts/one")) == "QUOTA_EXHAUSTED"
        [breaker] = (await at.operator.ListBreakers(op.ListBreakersRequest(), timeout=60)).breakers
        assert (breaker.account, breaker.executor_id, breaker.reset_known) == (account, "", True)
        waits = await at.create("accounts/one")
        cause = await place.stopped(waits)
        assert cause.until == breaker.until
        assert f"codex (account {account})" in cause.message
        async with place.executor("other", "theirs"):
            assert await at.value(waits) == "went"
            assert (await at.row(waits, "EFFECT_DISPATCHED")).data["executor_id"] == "other"
    async with place.executor("shares", "mine"):
        waits = await at.create("accounts/one")
        assert await place.stopped(waits) == cause
        place.log_in("shares", "theirs")
        assert await at.value(waits) == "went"
    [still] = (await at.operator.ListBreakers(op.ListBreakersRequest(), timeout=60)).breakers
    assert still == breaker, "the quota of the first account is spent all the same"
