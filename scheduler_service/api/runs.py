"""Runs: create, get, list, wait, cancel, and pages of their journals."""

import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Final

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api import inputs, limits
from scheduler_service.api.convert import RUN_ENDED, RUN_PARKED, run_message
from scheduler_service.api.engine import EngineApi
from scheduler_service.api.events import journal_event
from scheduler_service.api.ids import new_run_id
from scheduler_service.api.pages import encode_token
from scheduler_service.api.presence import Presence
from scheduler_service.api.run_requests import NewRun, RunList, RunRef
from scheduler_service.api.sizes import fitted, page_of
from scheduler_service.api.waiting import RUN_CAUSES_MAX, Situations, run_waiting
from scheduler_service.api.waits import wait_until
from scheduler_service.errors import (
    CursorAhead,
    Draining,
    ProcessNotFound,
    RequestIdReused,
    RunClosed,
    RunKeyConflict,
    RunNotFound,
    RunPruned,
)
from scheduler_service.journal import CancelRequest, CreateRun, CreateRunOutcome, OpenClient
from scheduler_service.journal.client_reads import ClientReads
from scheduler_service.journal.client_views import RunView

ACTOR: Final = "client"
#: Open effects of each run that a list names.
LIST_CAUSES_MAX: Final = 3
#: States in which nobody need wait any longer.
STOPPED: Final = RUN_ENDED | RUN_PARKED


class Runs:
    """What clients do with runs."""

    def __init__(self, engine: EngineApi, reads: ClientReads, situations: Situations, presence: Presence) -> None:
        self._presence = presence
        self._engine = engine
        self._reads = reads
        self._situations = situations

    async def create(self, new: NewRun) -> pb.CreateRunResponse:
        """Creates a run, or finds the one that has the same key or request id."""
        code_version = "" if new.client_driven else self._bind(new)
        if self._engine.draining:
            raise Draining(self._engine.scheduler_id)
        if new.reuse_from:
            await self.read(RunRef(new.namespace, new.reuse_from), full=False)
        digest = inputs.input_digest(new.process, new.input)
        asked = _create_run(new, digest, code_version)
        outcome = await self._engine.create_run(asked)
        if outcome.outcome == "key_conflict":
            raise RunKeyConflict(new.namespace, new.key, outcome.detail.get("recorded_digest", ""), digest)
        if outcome.outcome == "pruned":
            raise RunPruned(new.namespace, outcome.run_id)
        if outcome.outcome == "request_conflict":
            raise RequestIdReused(new.namespace, new.request_id)
        epoch = await self._client_epoch(asked, outcome) if new.client_driven else 0
        run = await self.message(await self.read(RunRef(new.namespace, outcome.run_id)))
        return pb.CreateRunResponse(run=run, created=outcome.created, client_epoch=epoch)

    def _bind(self, new: NewRun) -> str:
        """Version of the process's code; its input fits."""
        process = self._engine.processes().get(new.process)
        if process is None:
            raise ProcessNotFound(new.process, sorted(self._engine.processes()))
        inputs.bind(process, new.input)
        return process.code_version

    async def _client_epoch(self, asked: CreateRun, outcome: CreateRunOutcome) -> int:
        """Epoch of the client that calls: the first of a new run, else one that fences whoever had it before."""
        if outcome.created:
            return 1
        opened = await self._engine.clients.open(
            OpenClient(
                run_id=outcome.run_id,
                idle_timeout_s=asked.idle_timeout_s or limits.IDLE_SECONDS_DEFAULT,
                actor=ACTOR,
                start_id=asked.start_id or "",
            )
        )
        if opened.outcome == "not_found":  # removed by retention just now
            raise RunNotFound(asked.namespace, outcome.run_id)
        return opened.client_epoch

    async def read(self, ref: RunRef, *, full: bool = True) -> RunView:
        """A run. Raises RunNotFound."""
        run = await self._reads.run(ref.namespace, run_id=ref.run_id, key=ref.key, full=full)
        if run is None:
            await self._refuse_pruned(ref)
            raise RunNotFound(ref.namespace, ref.run_id or ref.key)
        if run.client_driven:
            self._presence.seen(run.run_id)
        return run

    async def _refuse_pruned(self, ref: RunRef) -> None:
        removed = await self._reads.pruned(ref.namespace, run_id=ref.run_id, key=ref.key)
        if removed is not None:
            raise RunPruned(ref.namespace, removed)

    async def is_gone(self, ref: RunRef) -> bool:
        """True when retention has removed the run."""
        return await self._reads.pruned(ref.namespace, run_id=ref.run_id, key=ref.key) is not None

    async def message(self, run: RunView) -> pb.Run:
        """A run as a message, with what it waits for."""
        message = run_message(run)
        if run.state not in RUN_ENDED:
            message.waiting_on.extend(await self._waiting(run))
        return fitted(message)

    async def get(self, ref: RunRef, *, full: bool) -> pb.GetRunResponse:
        """One run."""
        return pb.GetRunResponse(run=await self.message(await self.read(ref, full=full)))

    async def page(self, asked: RunList) -> pb.ListRunsResponse:
        """A page of runs, newest first."""
        page = await self._reads.runs(
            limit=asked.page_size,
            bytes_max=limits.ANSWER_BYTES_MAX,
            full=asked.full,
            filters=asdict(asked.filter) | {"before": asked.before_run_id},
        )
        messages = page_of(await self._listed(page.rows))
        answer = pb.ListRunsResponse(runs=messages)
        if page.more or len(messages) < len(page.rows):
            answer.next_page_token = encode_token([messages[-1].run_id], asdict(asked.filter))
        return answer

    async def wait(self, ref: RunRef, seconds: float) -> pb.WaitRunResponse:
        """The run once it has ended or is parked, or as it is when the time is over."""
        if self._engine.draining:
            raise Draining(self._engine.scheduler_id)

        async def read() -> tuple[RunView | None, bool, int]:
            found = await self._reads.progress_of(ref.namespace, ref.run_id)
            if found is None:
                raise RunNotFound(ref.namespace, ref.run_id)
            state, head_seq = found
            if state not in STOPPED:
                return None, False, head_seq
            run = await self.read(ref)  # the answer is this one: a parked run may have been resumed since
            return run, run.state in STOPPED, run.head_seq

        # Woken by the stop only: a long run's every event is no news to whoever waits for its end.
        run, timed_out = await wait_until(partial(self._engine.wait_stopped, ref.run_id), read, seconds, self._leaving)
        return pb.WaitRunResponse(run=await self.message(run or await self.read(ref)), timed_out=timed_out)

    def _leaving(self) -> bool:
        return self._engine.draining

    async def cancel(self, ref: RunRef, reason: str) -> pb.CancelRunResponse:
        """Makes the cancel of a run durable."""
        await self.read(ref, full=False)
        outcome = await self._engine.request_cancel(
            CancelRequest(
                run_id=ref.run_id,
                effect_id=None,
                reason="EFFECT_REASON_CANCELLED_BY_USER",
                message=reason,
                actor=ACTOR,
            )
        )
        run = await self.read(ref)
        if outcome.outcome in ("run_closed", "settled") and run.state != "CANCELLED":
            raise RunClosed(ref.run_id, run.state, run.next_run_id)
        return pb.CancelRunResponse(run=await self.message(run))

    async def journal(self, ref: RunRef, after_seq: int, page_size: int) -> pb.ReadJournalResponse:
        """A page of a run's journal."""
        run = await self.read(ref, full=False)
        if after_seq > run.head_seq:
            raise CursorAhead(run.run_id, after_seq, run.head_seq)
        page = await self._reads.events(run.run_id, after_seq, limit=page_size, bytes_max=limits.JOURNAL_PAGE_BYTES_MAX)
        events = page_of([journal_event(row) for row in page.rows])
        last = events[-1].seq if events else after_seq
        head = max(run.head_seq, last) if events else run.head_seq
        return pb.ReadJournalResponse(events=events, head_seq=head, next_after_seq=last)

    async def _listed(self, runs: Sequence[RunView]) -> list[pb.Run]:
        """Runs as a list shows them: those that have not ended with what they wait for."""
        work = await self._reads.open_work([run.run_id for run in runs if run.state not in RUN_ENDED], LIST_CAUSES_MAX)
        situation = await self._situations.now() if work else None
        messages = []
        for run in runs:
            known = work.get(run.run_id)
            message = run_message(run if known is None else replace(run, counts=known.counts))
            if known is not None and situation is not None:
                message.waiting_on.extend(run_waiting(run, known.effects, known.next_timer, situation))
            messages.append(message)
        return messages

    async def _waiting(self, run: RunView) -> list[pb.WaitingOn]:
        effects = await self._reads.effects(
            limit=RUN_CAUSES_MAX, filters={"namespace": run.namespace, "run_id": run.run_id, "open_only": True}
        )
        timer = await self._reads.next_timer(run.run_id)
        return run_waiting(run, effects.rows, timer, await self._situations.now())


def _create_run(new: NewRun, digest: str, code_version: str) -> CreateRun:
    return CreateRun(
        run_id=new_run_id(),
        namespace=new.namespace,
        key=new.key or None,
        process=new.process,
        client_driven=new.client_driven,
        labels=new.labels,
        input_digest=digest,
        code_version=code_version,
        actor=ACTOR,
        data=_run_created(new, digest),
        request_id=new.request_id or None,
        reuse_from=new.reuse_from or None,
        start_id=(new.request_id or uuid.uuid4().hex) if new.client_driven else None,
        idle_timeout_s=new.idle_timeout_s,
    )


def _run_created(new: NewRun, digest: str) -> dict[str, Any]:
    """Data of RUN_CREATED as proto3 JSON: what is empty is left out."""
    data: dict[str, Any] = {
        "namespace": new.namespace,
        "key": new.key,
        "process": new.process,
        "input": new.input,
        "labels": new.labels,
        "input_digest": digest,
    }
    if new.cleanup_timeout_s is not None:
        data["cleanup_timeout"] = f"{new.cleanup_timeout_s:.6f}s"
    if new.idle_timeout_s is not None:
        data |= {"client_driven": True, "idle_timeout": f"{new.idle_timeout_s:.6f}s"}
    data["reuse_from"] = new.reuse_from
    if new.budget is not None:
        data["budget"] = new.budget
    return {name: value for name, value in data.items() if value or name == "input"}
