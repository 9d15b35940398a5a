"""Runs over the wire: created once, listed in pages, waited for, cancelled."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api import limits
from scheduler_service.journal import client_reads
from scheduler_service.journal.migrate import migrations
from tests.integration.api.scene import NOWHERE, Scene, external, log_row, refused, shell, struct
from tests.support.eventually import eventually


@pytest.mark.invariant("I14")
async def test_a_key_creates_one_run_however_often_it_is_asked_for(at: Scene) -> None:
    request = pb.CreateRunRequest(process="p", key="rel-1", input=struct(files=["a"]), labels={"team": "x"})
    answers = await asyncio.gather(*(at.client.CreateRun(request) for _ in range(10)))
    assert len({answer.run.run_id for answer in answers}) == 1
    assert [answer.created for answer in answers].count(True) == 1
    run = (await at.client.GetRun(pb.GetRunRequest(key="rel-1"))).run
    assert (run.process, run.head_seq, dict(run.labels)) == ("p", 1, {"team": "x"})
    assert run.input == request.input
    request.input["files"] = ["b"]
    info = await refused(at.client.CreateRun(request), grpc.StatusCode.ALREADY_EXISTS, "RUN_KEY_CONFLICT")
    assert info.metadata["recorded_digest"] != info.metadata["asked_digest"]


async def test_a_wrong_input_is_refused_before_there_is_a_run(at: Scene) -> None:
    bad = at.client.CreateRun(pb.CreateRunRequest(process="p", key="k", input=struct(files=["a", 2])))
    await refused(bad, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    await refused(at.client.GetRun(pb.GetRunRequest(key="k")), grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")


async def test_what_does_not_exist_is_not_found(at: Scene) -> None:
    not_found = grpc.StatusCode.NOT_FOUND
    await refused(at.client.CreateRun(pb.CreateRunRequest(process="q")), not_found, "PROCESS_NOT_FOUND")
    await refused(at.client.GetRun(pb.GetRunRequest(run_id=NOWHERE)), not_found, "RUN_NOT_FOUND")
    await refused(at.client.WaitRun(pb.WaitRunRequest(run_id=NOWHERE)), not_found, "RUN_NOT_FOUND")
    await refused(at.client.ReadJournal(pb.ReadJournalRequest(run_id=NOWHERE)), not_found, "RUN_NOT_FOUND")
    await refused(at.client.CancelRun(pb.CancelRunRequest(run_id=NOWHERE)), not_found, "RUN_NOT_FOUND")
    name = pb.EffectName(effect_id=NOWHERE)
    info = await refused(at.client.GetEffect(pb.GetEffectRequest(effect=name)), not_found, "EFFECT_NOT_FOUND")
    assert dict(info.metadata) == {"namespace": "default", "effect_id": NOWHERE}
    name = pb.EffectName(run_id=await at.create(), key="a")
    info = await refused(at.client.GetEffect(pb.GetEffectRequest(effect=name)), not_found, "EFFECT_NOT_FOUND")
    assert (info.metadata["run_id"], info.metadata["key"]) == (name.run_id, "a")


async def test_another_namespace_does_not_see_a_run(at: Scene) -> None:
    run_id = await at.create(namespace="one")
    call = at.client.GetRun(pb.GetRunRequest(run_id=run_id, namespace="two"))
    await refused(call, grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")
    assert (await at.client.GetRun(pb.GetRunRequest(run_id=run_id, namespace="one"))).run.namespace == "one"


async def test_pages_show_every_run_once_newest_first(at: Scene) -> None:
    made = [await at.create(labels={"n": str(n % 2)}) for n in range(7)]
    seen: list[str] = []
    token = ""
    while True:
        page = await at.client.ListRuns(pb.ListRunsRequest(page_size=3, page_token=token))
        seen += [run.run_id for run in page.runs]
        token = page.next_page_token
        if not token:
            break
    assert seen == sorted(made, reverse=True)
    odd = await at.client.ListRuns(pb.ListRunsRequest(labels={"n": "1"}))
    assert {run.run_id for run in odd.runs} == set(made[1::2])


async def test_a_page_token_belongs_to_its_filter(at: Scene) -> None:
    for _ in range(3):
        await at.create()
    token = (await at.client.ListRuns(pb.ListRunsRequest(page_size=1))).next_page_token
    for request in (
        pb.ListRunsRequest(page_token=token, namespace="other"),
        pb.ListRunsRequest(page_token=token, states=[journal_pb2.RUN_STATE_RUNNING]),
        pb.ListRunsRequest(page_token=token[:-2]),
        pb.ListRunsRequest(page_token="AAAA" + token),
    ):
        await refused(at.client.ListRuns(request), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    await refused(
        at.client.ListEffects(pb.ListEffectsRequest(page_token=token)),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    )


async def test_pages_end_before_an_answer_becomes_too_large_for_clients(at: Scene) -> None:
    big = "x" * 900_000
    made = [await at.create(input=struct(files=[big])) for _ in range(6)]
    seen, token, pages = [], "", 0
    while pages == 0 or token:
        page = await at.client.ListRuns(pb.ListRunsRequest(view=pb.VIEW_FULL, page_token=token))
        assert page.ByteSize() < 3.5 * 2**20
        seen += [run.run_id for run in page.runs]
        token, pages = page.next_page_token, pages + 1
    assert seen == sorted(made, reverse=True)
    assert pages > 1
    basic = await at.client.ListRuns(pb.ListRunsRequest())
    assert len(basic.runs) == 6
    assert not basic.runs[0].HasField("input")


async def test_a_position_ahead_of_the_journal_is_refused(at: Scene) -> None:
    run_id = await at.create()
    [created] = (await at.client.ReadJournal(pb.ReadJournalRequest(run_id=run_id))).events
    page = await at.client.ReadJournal(pb.ReadJournalRequest(run_id=run_id, after_seq=created.seq))
    assert (list(page.events), page.head_seq, page.next_after_seq) == ([], created.seq, created.seq)
    ahead = at.client.ReadJournal(pb.ReadJournalRequest(run_id=run_id, after_seq=created.seq + 1))
    info = await refused(ahead, grpc.StatusCode.OUT_OF_RANGE, "CURSOR_AHEAD")
    assert (info.metadata["after_seq"], info.metadata["head_seq"]) == ("2", "1")


async def test_waiting_ends_when_the_run_does(at: Scene) -> None:
    run_id = await at.create()
    waiting = asyncio.ensure_future(at.client.WaitRun(pb.WaitRunRequest(run_id=run_id)))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await at.end(run_id, {"ok": True})
    answer = await asyncio.wait_for(waiting, 30)
    assert not answer.timed_out
    assert answer.run.state == journal_pb2.RUN_STATE_COMPLETED
    assert answer.run.result.value.struct_value["ok"] is True
    assert not answer.run.waiting_on


async def test_waiting_hears_by_its_own_poll_of_what_another_replica_did(at: Scene) -> None:
    run_id = await at.create()
    waiting = asyncio.ensure_future(at.client.WaitRun(pb.WaitRunRequest(run_id=run_id)))
    await asyncio.sleep(0.1)
    await at.append(run_id, {"type": "RUN_COMPLETED", "cause": 1, "data": {}}, tell=False)
    assert not (await asyncio.wait_for(waiting, 30)).timed_out


async def test_waiting_goes_on_when_a_parked_run_was_resumed_before_it_could_be_read(
    at: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chaos, seed 71001: halted at the look at its state, and running at the look at all of it."""
    run_id = await at.create()
    progress_of = client_reads.ClientReads.progress_of
    parked = ["HALTED"]

    async def before_the_resumption(
        reads: client_reads.ClientReads, namespace: str, run_id: str
    ) -> tuple[str, int] | None:
        found = await progress_of(reads, namespace, run_id)
        return (parked.pop(), found[1]) if parked and found is not None else found

    monkeypatch.setattr(client_reads.ClientReads, "progress_of", before_the_resumption)
    waiting = asyncio.ensure_future(at.client.WaitRun(pb.WaitRunRequest(run_id=run_id)))
    await eventually(lambda: not parked)
    await at.end(run_id, {"ok": True})
    answer = await asyncio.wait_for(waiting, 30)
    assert answer.run.state == journal_pb2.RUN_STATE_COMPLETED
    assert not answer.timed_out


async def test_waiting_says_timed_out_before_the_callers_deadline(at: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DEADLINE_MARGIN_SECONDS", 15.0)  # for a slow machine
    run_id = await at.create()
    begun = time.monotonic()
    answer = await at.client.WaitRun(pb.WaitRunRequest(run_id=run_id, max_wait=Duration(nanos=200_000_000)))
    assert answer.timed_out
    answer = await at.client.WaitRun(pb.WaitRunRequest(run_id=run_id), timeout=15.5)
    assert answer.timed_out
    assert time.monotonic() - begun < limits.WAIT_SECONDS_DEFAULT


async def test_waiting_returns_for_a_parked_run(at: Scene) -> None:
    run_id = await at.create()
    await at.append(
        run_id,
        {"type": "PROCESS_RUNTIME_ERROR", "cause": 1, "data": {"error": {"kind": "EXCEPTION", "message": "boom"}}},
    )
    answer = await at.client.WaitRun(pb.WaitRunRequest(run_id=run_id))
    assert (answer.run.state, answer.run.error.message) == (journal_pb2.RUN_STATE_PROCESS_ERROR, "boom")
    assert answer.run.waiting_on[0].cause == pb.WaitingOn.CAUSE_PROCESS_ERROR


@pytest.mark.invariant("I14")
async def test_cancelling_again_changes_nothing(at: Scene) -> None:
    run_id = await at.create()
    for _ in range(3):
        run = (await at.client.CancelRun(pb.CancelRunRequest(run_id=run_id, reason="enough"))).run
        assert run.state == journal_pb2.RUN_STATE_CANCELLING
        assert (run.cancel_requested, run.cancel_reason, run.head_seq) == (True, "enough", 2)
    await at.append(run_id, {"type": "RUN_CANCELLED", "cause": 2, "data": {"reason": "enough"}})
    again = (await at.client.CancelRun(pb.CancelRunRequest(run_id=run_id, reason="enough"))).run
    assert again.state == journal_pb2.RUN_STATE_CANCELLED


async def test_a_run_that_ended_otherwise_cannot_be_cancelled(at: Scene) -> None:
    run_id = await at.create()
    await at.end(run_id)
    call = at.client.CancelRun(pb.CancelRunRequest(run_id=run_id))
    await refused(call, grpc.StatusCode.FAILED_PRECONDITION, "RUN_CLOSED")


async def test_a_journal_is_read_in_pages_without_gap_or_repetition(at: Scene) -> None:
    run_id = await at.create()
    for n in range(25):
        await at.append(run_id, log_row(n))
    seqs, after = [], 0
    while True:
        page = await at.client.ReadJournal(pb.ReadJournalRequest(run_id=run_id, after_seq=after, page_size=7))
        seqs += [event.seq for event in page.events]
        after = page.next_after_seq
        if after == page.head_seq:
            break
    assert seqs == list(range(1, 27))


async def test_a_run_says_what_it_waits_for(at: Scene) -> None:
    run_id = await at.create()
    await at.request(run_id, "ask", external("yes"))
    await at.request(run_id, "sh", shell())
    run = (await at.client.GetRun(pb.GetRunRequest(run_id=run_id))).run
    causes = {item.effect_key: item.cause for item in run.waiting_on}
    assert causes == {"ask": pb.WaitingOn.CAUSE_EXTERNAL, "sh": pb.WaitingOn.CAUSE_NO_EXECUTOR}
    assert run.effect_counts.waiting == 2


#: Reads of what all effects wait for, of half a second ago at most.
SITUATION = ("executors", "live_shards", "holds", "breakers")


async def test_a_list_says_what_each_run_waits_for_in_as_many_reads_whatever_its_length(
    at: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = [await at.create() for _ in range(3)]
    for run_id in waiting:
        for n in range(5):
            await at.request(run_id, f"approve/{n}", external())
    ended = await at.create()
    await at.append(ended, {"type": "RUN_COMPLETED", "data": {"result": {"value": 1}}})
    reads: list[str] = []
    fetch = client_reads._fetch

    async def counted(connection: Any, name: str, parameters: Any) -> Any:
        reads.append(name)
        return await fetch(connection, name, parameters)

    monkeypatch.setattr(client_reads, "_fetch", counted)
    listed = {run.run_id: run for run in (await at.client.ListRuns(pb.ListRunsRequest())).runs}
    assert [len(listed[run_id].waiting_on) for run_id in (*waiting, ended)] == [3, 3, 3, 0]
    assert {cause.effect_key for cause in listed[waiting[0]].waiting_on} == {f"approve/{n}" for n in (2, 3, 4)}
    assert listed[waiting[0]].effect_counts.waiting == 5
    assert sorted(name for name in reads if name not in SITUATION) == ["causes", "runs", "tallies"]


async def test_the_server_says_what_it_is(at: Scene) -> None:
    info = await at.client.GetServerInfo(pb.GetServerInfoRequest())
    assert (info.version, info.scheduler_id, list(info.processes)) == ("test", "stub", ["p"])
    assert (info.api_revision, info.schema_version) == (1, migrations()[-1].version)
    assert abs(info.server_time.ToDatetime(UTC) - datetime.now(UTC)) < timedelta(seconds=30)
    assert dict(info.limits) == {**limits.LIMITS, "watchers_max": 100}


async def test_every_kind_of_effect_and_what_a_client_may_ask_for_is_a_feature(at: Scene) -> None:
    info = await at.client.GetServerInfo(pb.GetServerInfoRequest())
    of_kinds = {
        "SHELL": "background_effects", "FUNCTION": "background_effects", "AGENT": "agent_effects",
        "EXTERNAL": "external_effects", "RUN": "child_runs", "TIMER": "timer_effects",
    }  # fmt: skip
    assert {f"EFFECT_KIND_{kind}" for kind in of_kinds} == {*journal_pb2.EffectKind.keys()} - {
        "EFFECT_KIND_UNSPECIFIED"
    }
    assert {*of_kinds.values(), "blobs", "client_driven_runs", "effect_groups", "reuse_from"} <= {*info.features}
    assert list(info.features) == sorted({*info.features})


async def test_a_replica_that_goes_away_creates_nothing(at: Scene) -> None:
    at.engine.draining = True
    call = at.client.CreateRun(pb.CreateRunRequest(process="p"))
    await refused(call, grpc.StatusCode.UNAVAILABLE, "DRAINING")
