"""Cancels of effects, whatever state they are in: acknowledged, ended as CANCELLED with the reason given, all dead."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import dispatch_service_pb2 as dispatch_pb
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.dispatch.sessions import Ref, Session
from tests.integration.engine import ending_processes
from tests.integration.engine.executor import CANCELLED, FAILED, ScriptedExecutor
from tests.integration.engine.pairs import run_of, start_of, two
from tests.integration.engine.real_executor import living, real_executor, said_pids
from tests.integration.engine.world import World, world
from tests.support.eventually import eventually
from tests.support.journals import JournalRow
from tests.support.tcp_proxy import tcp_proxy

pytestmark = pytest.mark.timeout(240)

SECONDS = 60.0
WHY = "not needed"
BY_USER = "EFFECT_REASON_CANCELLED_BY_USER"
_OPEN = (journal_pb2.EFFECT_STATE_CANCELLING, journal_pb2.EFFECT_STATE_CANCELLED)


@pytest.fixture
async def at(database_url: str) -> AsyncIterator[World]:
    async with world(database_url, ending_processes.ALL, grace_seconds=60.0) as made:
        yield made


async def cancel(at: World, run_id: str, key: str = "it", why: str = WHY) -> None:
    """Is acknowledged."""
    request = pb.CancelEffectRequest(effect=pb.EffectName(run_id=run_id, key=key), reason=why)
    answer = await at.client.CancelEffect(request, timeout=SECONDS)
    assert answer.effect.state in _OPEN, answer.effect


async def cancelled(at: World, run_id: str, key: str = "it", why: str = WHY) -> JournalRow:
    """The one row that settles the effect, which gives the reason that the one acknowledged cancel gave."""
    row = await at.row(run_id, "EFFECT_CANCELLED", key, SECONDS)
    [asked] = await at.rows(run_id, "EFFECT_CANCEL_REQUESTED", key=key)
    assert [asked.data["reason"], asked.data["message"]] == [BY_USER, why]
    assert [row.data["reason"], row.data["message"]] == [BY_USER, why]
    assert not await at.rows(run_id, "EFFECT_RESOLVED", "EFFECT_SUPERSEDED", key=key)
    settled = "SELECT state, reason FROM backburner.effects WHERE run_id = %s AND key = %s"
    assert await at.query(settled, run_id, key) == [("CANCELLED", "CANCELLED_BY_USER")]
    return row


def seen(attempts: int = 0, why: str = WHY) -> list[Any]:
    """What the process sees of it."""
    return ["cancelled", "CANCELLED_BY_USER", why, attempts]


@pytest.mark.invariant("I6")
@pytest.mark.parametrize("kind", ["function", "asleep", "external", "timer"])
async def test_what_nobody_works_on_is_cancelled_with_its_acknowledgement(at: World, kind: str) -> None:
    """Queued, asleep, asked of somebody outside, waiting for its time: no time passes, and nothing can come of it."""
    run_id = await at.create("one-effect-ends", kind=kind, folder="/nowhere")
    await at.row(run_id, "EFFECT_REQUESTED", "it", SECONDS)
    await cancel(at, run_id)
    assert await at.rows(run_id, "EFFECT_CANCELLED", key="it"), "acknowledged before it was so"
    row = await cancelled(at, run_id)
    assert "death" not in row.data, "there was nothing that could die"
    assert await at.value(run_id, SECONDS) == seen()
    executor = at.executor()
    await executor.connect()
    await asyncio.gather(*(at.engine.dispatcher._claim_for(s, polled=True) for s in at.engine.sessions))
    assert not executor.starts, "it was started after its cancel"


@pytest.mark.invariant("I6")
async def test_what_backs_off_is_cancelled_and_not_tried_again(at: World) -> None:
    executor = at.executor()
    await executor.connect()
    run_id = await at.create("one-effect-ends", kind="function", attempts=3)
    await executor.settle(await executor.start_of("it", timeout_s=SECONDS), **FAILED)
    await at.row(run_id, "EFFECT_ATTEMPT_FAILED", "it", SECONDS)
    await cancel(at, run_id)
    assert (await cancelled(at, run_id)).attempt == 1
    assert await at.value(run_id, SECONDS) == seen(attempts=1)
    assert await at.query("SELECT count(*) FROM backburner.dispatch_queue WHERE run_id = %s", run_id) == [(0,)]


@pytest.mark.invariant("I6", "I10")
@pytest.mark.parametrize("kind", ["shell", "run"])
async def test_what_runs_is_dead_when_its_cancel_is_settled(at: World, tmp_path: Path, kind: str) -> None:
    async with real_executor(at, tmp_path):
        run_id = await at.create("one-effect-ends", kind=kind, folder=str(tmp_path))
        pids = await said_pids(tmp_path)
        await cancel(at, run_id)
        row = await cancelled(at, run_id)
        assert not living(pids)
        assert await at.value(run_id, SECONDS) == seen(attempts=1 if kind == "shell" else 0)
    if kind == "shell":
        assert row.data["death"] == "DEATH_PROVEN"
        return
    kid = (await at.rows(run_id, "CHILD_RUN_STARTED"))[0].data["child_run_id"]
    leaf = await at.row(kid, "EFFECT_CANCELLED", "leaf")
    assert (leaf.data["reason"], leaf.data["death"]) == ("EFFECT_REASON_RUN_CANCELLED", "DEATH_PROVEN")
    assert WHY in (await at.row(kid, "RUN_CANCELLED")).data["reason"]


@pytest.mark.invariant("I6", "I10")
@pytest.mark.parametrize("parking", ["halted", "went wrong"])
async def test_a_parked_run_loses_its_child_to_a_cancel(at: World, tmp_path: Path, parking: str) -> None:
    """Its process is not asked, and sees what happened once it goes on."""
    async with real_executor(at, tmp_path):
        halts = parking == "halted"
        given: dict[str, Any] = {"folder": str(tmp_path)} | ({"kind": "shell"} if halts else {})
        run_id = await at.create("one-effect-ends" if halts else "breaks", **given)
        pids = await said_pids(tmp_path)
        if halts:
            await at.client.HaltRun(pb.HaltRunRequest(run_id=run_id, reason="look"), timeout=SECONDS)
        else:
            await answer(at, run_id, "bug")
            await at.row(run_id, "PROCESS_RUNTIME_ERROR", timeout_s=SECONDS)
        await cancel(at, run_id)
        assert (await cancelled(at, run_id)).data["death"] == "DEATH_PROVEN"
        assert not living(pids)
        if halts:
            await at.client.ResumeRun(pb.ResumeRunRequest(run_id=run_id), timeout=SECONDS)
            assert await at.value(run_id, SECONDS) == seen(attempts=1)


async def answer(at: World, run_id: str, key: str) -> None:
    """From outside, as a person would."""
    await at.row(run_id, "EFFECT_REQUESTED", key, SECONDS)
    request = pb.ResolveEffectRequest(effect=pb.EffectName(run_id=run_id, key=key), actor="test")
    request.succeeded.SetInParent()
    await at.client.ResolveEffect(request, timeout=SECONDS)


# The gap between the commit of a dispatch and the executor's start


class Gap:
    """Starts that were committed and have not left the scheduler."""

    def __init__(self, at: World, monkeypatch: pytest.MonkeyPatch, *, known: bool) -> None:
        self.held: list[Callable[[], None]] = []
        send = Session.send_start

        def keep(session: Session, ref: Ref, start: dispatch_pb.StartAttempt) -> None:
            held = session.held[ref] if known else session.held.pop(ref)

            def go_on() -> None:
                session.held.setdefault(ref, held)
                send(session, ref, start)

            self.held.append(go_on)

        monkeypatch.setattr(Session, "send_start", keep)

    async def filled(self) -> None:
        await eventually(lambda: self.held, SECONDS, "nothing was dispatched")

    def open(self) -> None:
        for send in self.held:
            send()


@pytest.mark.invariant("I3", "I6", "I10")
@pytest.mark.parametrize("known", [True, False])
async def test_a_start_that_comes_after_its_cancel_starts_nothing(
    at: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """`known`: the cancel has the attempt's token, and settles it at once; else it stays as a tombstone."""
    gap = Gap(at, monkeypatch, known=known)
    async with real_executor(at, tmp_path) as executor:
        run_id = await at.create("one-effect-ends", kind="shell", folder=str(tmp_path))
        await gap.filled()
        await cancel(at, run_id)
        if known:
            await cancelled(at, run_id)
        else:
            await eventually(lambda: executor.attempts._tombstones, SECONDS, "the executor has not heard of the cancel")
        gap.open()
        row = await cancelled(at, run_id)
        assert (row.writer, row.attempt) == ("executor/real", 1)
        assert row.data.get("death") in (None, "DEATH_PROVEN"), "what never ran is dead for certain"
        assert await at.value(run_id, SECONDS) == seen(attempts=1)
        assert len(executor.attempts) == 0
    assert not (tmp_path / "it").exists(), "its child has run"


@pytest.mark.invariant("I6", "I13")
async def test_a_cancel_of_what_was_dispatched_and_never_sent_is_settled_without_it(
    at: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start is lost for good: that it never started is known by the executor's report, and no attempt follows."""
    gap = Gap(at, monkeypatch, known=False)
    async with real_executor(at, tmp_path):
        run_id = await at.create("one-effect-ends", kind="shell", folder=str(tmp_path), attempts=3)
        await gap.filled()
        await cancel(at, run_id)
        row = await cancelled(at, run_id)
        assert "death" not in row.data, "it never started, so nobody can have outlived it"
        [lost] = await at.rows(run_id, "EFFECT_ATTEMPT_LOST", key="it")
        assert lost.data["never_started"] is True
        assert "next_attempt_at" not in lost.data
        assert await at.value(run_id, SECONDS) == seen(attempts=1)
    assert not (tmp_path / "it").exists()


@pytest.mark.invariant("I6", "I10")
async def test_start_and_cancel_that_were_under_way_together(at: World, tmp_path: Path) -> None:
    """Both wait in a network that lets nothing through, and come out of it one right after the other."""
    async with tcp_proxy(at.server.address) as proxy, real_executor(at, tmp_path, scheduler=proxy.address):
        proxy.black_hole()
        run_id = await at.create("one-effect-ends", kind="shell", folder=str(tmp_path))
        await at.row(run_id, "EFFECT_DISPATCHED", "it", SECONDS)
        await cancel(at, run_id)
        proxy.heal()
        row = await cancelled(at, run_id)
        assert row.data.get("death") != "DEATH_UNPROVEN"
        path = tmp_path / "it"
        assert not living([int(line) for line in path.read_text().split()] if path.exists() else [])
        assert await at.value(run_id, SECONDS) == seen(attempts=1)


# An executor that is cut off


@pytest.mark.invariant("I6", "I10")
async def test_a_cancel_waits_for_an_executor_that_is_cut_off_within_its_grace(at: World, tmp_path: Path) -> None:
    async with tcp_proxy(at.server.address) as proxy, real_executor(at, tmp_path, scheduler=proxy.address):
        run_id = await at.create("one-effect-ends", kind="shell", folder=str(tmp_path), attempts=3)
        pids = await said_pids(tmp_path)
        proxy.black_hole()
        await cancel(at, run_id)
        await eventually(lambda: at.engine.sessions.get("real") is None, SECONDS, "nobody sees that it is cut off")
        assert not await at.rows(run_id, "EFFECT_CANCELLED"), "nobody can know that yet"
        assert living(pids) == pids
        proxy.cut()
        proxy.heal()
        assert (await cancelled(at, run_id)).data["death"] == "DEATH_PROVEN"
        assert not living(pids)
        assert not await at.rows(run_id, "EFFECT_ATTEMPT_LOST")
        assert await at.value(run_id, SECONDS) == seen(attempts=1)


@pytest.mark.invariant("I2", "I6", "I10", "I13")
async def test_a_cancel_beyond_the_grace_ends_and_says_that_nobody_can_know(database_url: str, tmp_path: Path) -> None:
    """Never tried again, never taken for proven; what was cut off is killed as soon as it is back."""
    async with (
        world(database_url, ending_processes.ALL, grace_seconds=1.0) as at,
        tcp_proxy(at.server.address) as proxy,
        real_executor(at, tmp_path, scheduler=proxy.address),
    ):
        run_id = await at.create("one-effect-ends", kind="shell", folder=str(tmp_path), attempts=3)
        pids = await said_pids(tmp_path)
        proxy.black_hole()
        await cancel(at, run_id)
        row = await at.row(run_id, "EFFECT_CANCELLED", "it", SECONDS)
        assert [row.data["reason"], row.data["message"], row.data["death"]] == [BY_USER, WHY, "DEATH_UNPROVEN"]
        assert [lost.data["reason"] for lost in await at.rows(run_id, "EFFECT_ATTEMPT_LOST")] == [
            "EFFECT_REASON_EXECUTOR_LOST"
        ]
        assert await at.value(run_id, SECONDS) == seen(attempts=1)
        proxy.cut()
        proxy.heal()
        await eventually(lambda: not living(pids), SECONDS, "it outlives its settlement")
        await at.row(run_id, "EFFECT_SUPERSEDED", "it", SECONDS)
        assert len(await at.rows(run_id, "EFFECT_DISPATCHED")) == 1


# Two who cancel the same effect


@pytest.mark.invariant("I2", "I6")
async def test_two_replicas_cancel_the_same_effect_at_once(database_url: str) -> None:
    """Both are acknowledged; one of them is in the journal, and its words are those of the end."""
    async with two(database_url, ending_processes.ALL) as (first, second):
        executor = second.executor()
        await executor.connect()
        for kind in ("function", "external") * 3:
            run_id = await run_of(first, first, "one-effect-ends", kind=kind)
            started = [await start_of(executor, run_id, "it")] if kind == "function" else []
            await first.row(run_id, "EFFECT_REQUESTED", "it", SECONDS)
            await asyncio.gather(cancel(first, run_id, why="one"), cancel(second, run_id, why="the other"))
            for start in started:
                await eventually(partial(_told, executor, run_id), SECONDS)
                await executor.settle(start, **CANCELLED)
            [asked] = await first.rows(run_id, "EFFECT_CANCEL_REQUESTED")
            await cancelled(first, run_id, why=asked.data["message"])
            assert await first.value(run_id, SECONDS) == seen(len(started), asked.data["message"])


def _told(executor: ScriptedExecutor, run_id: str) -> bool:
    return any(told.run_id == run_id for told in executor.cancels)
