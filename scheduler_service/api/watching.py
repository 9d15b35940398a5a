"""WatchRun and WatchEffect: the journal from a position on, complete and in order, live frames between its rows.

The journal is read in pages; what this replica hears of only says when to read. A watch holds no row that its reader
has not made room for, and its end always says why.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api import limits
from scheduler_service.api.callers import Callers
from scheduler_service.api.convert import RUN_ENDED, effect_message, timestamp
from scheduler_service.api.effect_requests import EffectWatch
from scheduler_service.api.effects import Effects
from scheduler_service.api.engine import EngineApi
from scheduler_service.api.events import journal_event
from scheduler_service.api.live import Frame, LiveFrames
from scheduler_service.api.presence import Presence
from scheduler_service.api.recorded import RecordedOutput
from scheduler_service.api.run_requests import OutputKey, RunRef, RunWatch
from scheduler_service.api.runs import STOPPED, Runs
from scheduler_service.api.sizes import fitted, page_of
from scheduler_service.api.waiting import Situations, complete
from scheduler_service.api.watchers import Pace, Watchers, at_readers_pace
from scheduler_service.dispatch.progress import ProgressHub
from scheduler_service.errors import CursorAhead, Draining, RunNotFound, RunPruned
from scheduler_service.journal import JournalUnavailable, Life
from scheduler_service.journal.client_reads import ClientReads
from scheduler_service.journal.client_views import RunSnapshot
from scheduler_service.replay.events import Event

_PAGE_ROWS: Final = 200
_PAGE_BYTES: Final = 1 << 20
#: A wake that brings no row must not become a busy loop.
_EMPTY_WAKE_SECONDS: Final = 0.02
#: Events after which it is worth to look whether the run has stopped.
_STOPS: Final = frozenset({
    "RUN_COMPLETED", "RUN_FAILED", "RUN_CANCELLED", "RUN_CONTINUED", "RUN_HALTED", "PROCESS_RUNTIME_ERROR",
})  # fmt: skip
_SETTLES: Final = frozenset({"EFFECT_RESOLVED", "EFFECT_CANCELLED", "EFFECT_REUSED"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What a watch is to show: a run, or with `effect_id` one effect of it."""

    run: RunRef
    after_seq: int | None
    progress: bool
    output: bool
    positions: Mapping[OutputKey, int]
    effect_id: str = ""


class Watching:
    """Makes watches."""

    def __init__(
        self,
        *,
        engine: EngineApi,
        reads: ClientReads,
        runs: Runs,
        effects: Effects,
        callers: Callers,
        situations: Situations,
        hub: ProgressHub,
        watchers: Watchers,
        presence: Presence,
        pace: Pace,
    ) -> None:
        self.engine = engine
        self.reads = reads
        self.runs = runs
        self.situations = situations
        self.hub = hub
        self.watchers = watchers
        self.presence = presence
        self.pace = pace
        self._effects = effects
        self._callers = callers

    async def run(self, asked: RunWatch) -> AsyncIterator[pb.WatchRunResponse]:
        """Frames of WatchRun."""
        await self._callers.admit(asked.run, asked.client_epoch)
        watch = _Watch(
            self,
            _Asked(
                run=asked.run,
                after_seq=asked.after_seq,
                progress=asked.progress,
                output=asked.output,
                positions=asked.positions,
            ),
        )
        async for frame in watch.frames():
            yield pb.WatchRunResponse(**frame)

    async def effect(self, asked: EffectWatch) -> AsyncIterator[pb.WatchEffectResponse]:
        """Frames of WatchEffect."""
        effect = await self._effects.admit(asked.effect, asked.client_epoch)
        watch = _Watch(
            self,
            _Asked(
                run=RunRef(effect.namespace, effect.run_id),
                after_seq=asked.after_seq,
                progress=True,
                output=asked.output,
                positions=asked.positions,
                effect_id=effect.effect_id,
            ),
        )
        async for frame in watch.frames():
            yield pb.WatchEffectResponse(**frame)


class _Watch:
    """One watch. Frames are keyword arguments of its response message, which both rpcs share."""

    def __init__(self, service: Watching, asked: _Asked) -> None:
        self._service = service
        self._asked = asked
        self._run_id = asked.run.run_id
        self._cursor = 0
        self._delivered = 0
        self._snapshot_seq = 0
        self._stopped = False
        self._sent_at = time.monotonic()
        self._ends_at = service.pace.end()
        self._live: LiveFrames | None = None
        self._life: Life | None = None

    async def frames(self) -> AsyncIterator[Frame]:
        """All frames, at the reader's pace."""
        async for frame in at_readers_pace(self._made(), self._service.pace.patience_s, self._too_slow):
            if "event" in frame:
                self._delivered = frame["event"].seq
            elif "snapshot" in frame:
                self._delivered = self._snapshot_seq
            yield frame

    async def _made(self) -> AsyncGenerator[Frame, None]:
        with self._service.watchers.one():
            try:
                async for frame in self._sequence():
                    self._sent_at = time.monotonic()
                    yield frame
            finally:
                if self._live is not None:
                    self._live.close()

    async def _sequence(self) -> AsyncIterator[Frame]:
        snapshot = await self._begin()
        if self._asked.after_seq is None:
            yield await self._snapshot_frame(snapshot)
        while True:
            if snapshot.run.client_driven:
                self._service.presence.seen(self._run_id)
            before = self._cursor
            async for frame in self._journal(snapshot):
                yield frame
            stuck = self._cursor == before and self._cursor < snapshot.run.head_seq
            if (end := await self._end(look=stuck or self._is_quiet())) is not None:
                yield {"end": end}
                return
            async for frame in self._live_frames():
                yield frame
            if self._is_quiet():
                yield {"heartbeat": pb.WatchHeartbeat(seq=self._cursor, server_time=timestamp(datetime.now(UTC)))}
            await self._wait(progressed=self._cursor > before)

    async def _begin(self) -> RunSnapshot:
        if self._service.engine.draining:
            raise Draining(self._service.engine.scheduler_id)
        ref = self._asked.run
        snapshot = await self._service.reads.snapshot(
            ref.namespace, ref.run_id, limits.SNAPSHOT_EFFECTS_MAX, self._asked.effect_id
        )
        if snapshot is None:
            await self._service.runs.read(ref, full=False)  # says so when retention has removed it
            raise RunNotFound(ref.namespace, ref.run_id)
        self._life = self._service.engine.journal.lives.current  # that of the snapshot: a read is of one life
        head = snapshot.run.head_seq
        self._cursor = head if self._asked.after_seq is None else self._asked.after_seq
        if self._cursor > head:
            raise CursorAhead(ref.run_id, self._cursor, head)
        self._snapshot_seq = head
        self._delivered = self._cursor
        self._stopped = self._has_stopped(snapshot)
        if self._asked.progress or self._asked.output:
            self._live = self._live_of()
            if self._cursor == head:
                self._live.begin(snapshot.effects)
        return snapshot

    def _has_stopped(self, snapshot: RunSnapshot) -> bool:
        if self._asked.effect_id:
            return any(effect.settled_seq for effect in snapshot.effects)
        return snapshot.run.state in STOPPED

    def _live_of(self) -> LiveFrames:
        service, asked = self._service, self._asked
        return LiveFrames(
            service.hub,
            service.engine,
            service.situations,
            RecordedOutput(service.reads),
            run_id=self._run_id,
            progress=asked.progress,
            output=asked.output,
            positions=asked.positions,
            effect_id=asked.effect_id,
            hold_s=service.pace.hold_s,
        )

    async def _snapshot_frame(self, snapshot: RunSnapshot) -> Frame:
        situation = await self._service.situations.now()
        effects = [complete(effect_message(effect), effect, situation) for effect in snapshot.effects]
        if self._asked.effect_id:
            return {"snapshot": fitted(effects[0])}
        run = fitted(await self._service.runs.message(snapshot.run), limits.ANSWER_BYTES_MAX // 2)
        shown = page_of(effects, limits.ANSWER_BYTES_MAX - run.ByteSize())
        return {"snapshot": pb.RunSnapshot(run=run, effects=shown, seq=snapshot.run.head_seq)}

    async def _journal(self, snapshot: RunSnapshot) -> AsyncIterator[Frame]:
        """The rows after the cursor, to the head."""
        more = True
        while more:
            page = await self._service.reads.events(self._run_id, self._cursor, limit=_PAGE_ROWS, bytes_max=_PAGE_BYTES)
            if self._service.engine.journal.lives.current != self._life:
                # The cursor may be ahead of what is left: the reader asks again with it, and is told.
                raise JournalUnavailable("the database is in another life than the one in which the watch began")
            for row in page.rows:
                self._check_next(row)
                if self._live is not None:
                    async for frame in self._live.before(row):
                        yield frame
                self._follow(row, snapshot)
                if self._asked.effect_id in ("", row.effect_id):
                    yield {"event": fitted(journal_event(row))}
            more = page.more

    def _check_next(self, row: Event) -> None:
        if row.seq != self._cursor + 1:
            # Better no watch than one with a hole in it.
            raise RuntimeError(f"the journal of run {self._run_id} goes from {self._cursor} to {row.seq}")

    def _follow(self, row: Event, snapshot: RunSnapshot) -> None:
        self._cursor = row.seq
        settles = self._asked.effect_id == row.effect_id and row.type in _SETTLES
        self._stopped |= settles if self._asked.effect_id else row.type in _STOPS
        if self._live is not None:
            if row.seq == snapshot.run.head_seq:
                self._live.begin(snapshot.effects)
            elif row.seq > snapshot.run.head_seq:
                self._live.observe(row)

    def _is_quiet(self) -> bool:
        return time.monotonic() - self._sent_at >= self._service.pace.heartbeat_s

    async def _end(self, *, look: bool) -> pb.WatchEnd | None:
        """The last frame, when it is time for it; `look`: nothing came, so the run may be gone."""
        if look and await self._service.runs.is_gone(self._asked.run):
            return pb.WatchEnd(reason=pb.WatchEnd.REASON_PRUNED, resume_after_seq=self._cursor)
        if self._stopped and (end := await self._stop()) is not None:
            return end
        if self._service.engine.draining:
            return pb.WatchEnd(reason=pb.WatchEnd.REASON_MOVED, resume_after_seq=self._cursor)
        if time.monotonic() >= self._ends_at:
            return pb.WatchEnd(reason=pb.WatchEnd.REASON_LIFETIME, resume_after_seq=self._cursor)
        return None

    async def _stop(self) -> pb.WatchEnd | None:
        """The end of what is watched; None when the journal has gone on, or the run was resumed."""
        if self._asked.effect_id:
            return pb.WatchEnd(reason=pb.WatchEnd.REASON_EFFECT_SETTLED, resume_after_seq=self._cursor)
        try:
            run = await self._service.runs.read(self._asked.run)
        except RunPruned:
            return pb.WatchEnd(reason=pb.WatchEnd.REASON_PRUNED, resume_after_seq=self._cursor)
        self._stopped = run.state in STOPPED
        if run.head_seq > self._cursor or not self._stopped:
            return None
        ended = run.state in RUN_ENDED
        reason = pb.WatchEnd.REASON_RUN_CLOSED if ended else pb.WatchEnd.REASON_PARKED
        message = await self._service.runs.message(run)
        return pb.WatchEnd(reason=reason, resume_after_seq=self._cursor, run=message)

    async def _live_frames(self) -> AsyncIterator[Frame]:
        if self._live is not None:
            async for frame in self._live.frames():
                yield frame

    async def _wait(self, *, progressed: bool) -> None:
        """Until there may be something to send."""
        engine, pace, now = self._service.engine, self._service.pace, time.monotonic()
        due = min(pace.next_poll(), self._ends_at - now, self._sent_at + pace.heartbeat_s - now)
        due = due if self._live is None else min(due, self._live.next_s)
        after = self._cursor if progressed else max(self._cursor, engine.head(self._run_id))
        heard = engine.wait_head(self._run_id, after, max(due, _EMPTY_WAKE_SECONDS))
        if self._live is None:
            await heard
            return
        tasks = [asyncio.create_task(heard), asyncio.create_task(self._live.feed.wake.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _too_slow(self) -> Frame:
        return {"end": pb.WatchEnd(reason=pb.WatchEnd.REASON_SLOW, resume_after_seq=self._delivered)}
