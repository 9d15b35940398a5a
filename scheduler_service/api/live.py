"""Live frames of one watch: progress and output of the attempts that run now.

They stand only between an attempt's EFFECT_DISPATCHED and its end, as the watch has sent them. Progress comes from the
executor's stream or, while that cannot be reached, from its heartbeats; an ordinal is never sent twice. Output goes on
where the watcher left off; what is left of an attempt's output is sent before the attempt's end is.
"""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

from backburner.executor.v1 import executor_service_pb2 as executor_pb
from backburner.journal.v1 import journal_pb2
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.api.engine import EngineApi
from scheduler_service.api.joined_output import RETRY_SECONDS, AttemptRef, JoinedOutput, Piece
from scheduler_service.api.recorded import RecordedOutput
from scheduler_service.api.run_requests import OutputKey
from scheduler_service.api.waiting import Situations
from scheduler_service.dispatch.progress import Attempt, Feed, LiveFrame, ProgressHub
from scheduler_service.journal.client_views import EffectView
from scheduler_service.replay.events import Event

#: Attempts that one watch follows by stream; the others are shown by heartbeats.
FOLLOWED_MAX: Final = 100
#: Attempts that one watch shows live at all.
SHOWN_MAX: Final = 10_000
_HEARTBEATS_EVERY_SECONDS: Final = 1.0
_RUNS: Final = frozenset({"DISPATCHED", "RUNNING", "CANCELLING"})
_ENDS: Final = frozenset({
    "EFFECT_ATTEMPT_FAILED", "EFFECT_ATTEMPT_LOST", "EFFECT_RESOLVED", "EFFECT_CANCELLED", "EFFECT_PARKED",
})  # fmt: skip

Frame = dict[str, Any]


class _Shown:
    """An attempt of the watch."""

    def __init__(self, key: str, executor_id: str) -> None:
        self.key = key
        self.executor_id = executor_id
        self.ordinal = -1
        self.usage = journal_pb2.Usage()
        self.source: Attempt | None = None
        self.reached = False
        self.announced = False


class LiveFrames:
    """What one watch shows live. `feed.wake` is set when there is something new."""

    def __init__(
        self,
        hub: ProgressHub,
        engine: EngineApi,
        situations: Situations,
        recorded: RecordedOutput,
        *,
        run_id: str,
        progress: bool,
        output: bool,
        positions: Mapping[OutputKey, int],
        effect_id: str = "",
        hold_s: float,
    ) -> None:
        self.feed = Feed()
        self._hub = hub
        self._engine = engine
        self._situations = situations
        self._run_id = run_id
        self._wants_progress = progress
        self._output = output
        self._joined = JoinedOutput(recorded, positions, hold_s)
        self._effect_id = effect_id
        self._shown: dict[AttemptRef, _Shown] = {}
        self._fresh: list[AttemptRef] = []
        self._heartbeats_at = 0.0

    def begin(self, effects: Sequence[EffectView]) -> None:
        """Shows the attempts that run at the watch's position."""
        for effect in effects:
            if effect.attempt and effect.state in _RUNS:
                self._show((effect.effect_id, effect.attempt), effect.key, effect.executor_id)

    def observe(self, event: Event) -> None:
        """Follows the journal, as the watch sends it."""
        ref = (event.effect_id, event.attempt)
        if event.type == "EFFECT_DISPATCHED" and self._concerns(event):
            self._show(ref, event.effect_key, event.data.get("executor_id", ""))
        elif event.type in _ENDS:
            # A settlement without an attempt's number ends whatever attempt there is.
            ended = [ref] if event.attempt else [known for known in self._shown if known[0] == event.effect_id]
            for known in ended:
                self._hide(known)

    async def before(self, event: Event) -> AsyncIterator[Frame]:
        """What has to be sent before an event is: at the end of an attempt, the rest of its output."""
        if not self._output or not self._concerns(event):
            return
        if event.type == "EFFECT_DISPATCHED":
            self._joined.from_start((event.effect_id, event.attempt))
        elif event.type in _ENDS:
            known = self._joined.attempts_of(event.effect_id)
            for ref in [(event.effect_id, event.attempt)] if event.attempt else known:
                async for piece in self._joined.recorded(ref):
                    yield self._output_frame(ref, event.effect_key, piece)
                self._joined.forget(ref)

    @property
    def next_s(self) -> float:
        """Seconds until it is worth to look again, whatever is heard."""
        return RETRY_SECONDS if self._joined.waits else float("inf")

    async def frames(self) -> AsyncIterator[Frame]:
        """What is new, as keyword arguments of a watch's frame."""
        for ref in self._take_fresh():
            async for frame in self._join(ref):
                yield frame
        found, lost = self.feed.drain()
        if lost:
            yield {"gap": pb.LiveGap(reason=pb.LiveGap.REASON_SLOW, frames=lost)}
        for item in found:
            async for frame in self._convert(item):
                yield frame
        async for ref, piece in self._joined.due():
            yield self._output_frame(ref, self._key(ref), piece)
        for frame in self._from_heartbeats():
            yield frame

    def close(self) -> None:
        """Ends all subscriptions."""
        for ref in list(self._shown):
            self._hide(ref)

    def _show(self, ref: AttemptRef, key: str, executor_id: str) -> None:
        if ref not in self._shown and len(self._shown) < SHOWN_MAX:
            self._shown[ref] = _Shown(key, executor_id)
            self._fresh.append(ref)

    def _hide(self, ref: AttemptRef) -> None:
        shown = self._shown.pop(ref, None)
        if shown is not None and shown.source is not None:
            self._hub.unsubscribe(self.feed, shown.source, with_output=self._output)

    def _take_fresh(self) -> list[AttemptRef]:
        fresh, self._fresh = self._fresh, []
        return [ref for ref in fresh if ref in self._shown]

    async def _join(self, ref: AttemptRef) -> AsyncIterator[Frame]:
        """Subscribes to an attempt, and sends the recorded output that the watcher does not have."""
        shown = self._shown[ref]
        address = await self._address(shown.executor_id)
        followed = sum(1 for other in self._shown.values() if other.source is not None)
        if not address:
            yield self._unreachable(ref, shown)
        elif followed < FOLLOWED_MAX:
            source = Attempt(ref[0], ref[1], address)
            if self._hub.subscribe(self.feed, source, with_output=self._output):
                shown.source = source
        if self._output:
            async for piece in self._joined.recorded(ref):
                yield self._output_frame(ref, shown.key, piece)

    async def _address(self, executor_id: str) -> str:
        for executor in self._engine.connected():
            if executor.executor_id == executor_id:
                return executor.address
        situation = await self._situations.now()
        return next((e.address for e in situation.executors if e.executor_id == executor_id), "")

    async def _convert(self, item: LiveFrame) -> AsyncIterator[Frame]:
        ref = (item.source.effect_id, item.source.attempt)
        shown = self._shown.get(ref)
        if shown is None:
            return
        if item.frame is None:
            shown.reached = False
            if not shown.announced:
                yield self._unreachable(ref, shown)
            return
        shown.reached, shown.announced = True, False
        if item.frame.HasField("output"):
            async for piece in self._joined.live(ref, item.frame.output):
                yield self._output_frame(ref, shown.key, piece)
        elif (small := self._small(ref, shown, item.frame)) is not None:
            yield small

    def _small(self, ref: AttemptRef, shown: _Shown, frame: executor_pb.StreamProgressResponse) -> Frame | None:
        match frame.WhichOneof("frame"):
            case "progress":
                return self._progress(ref, shown, frame.progress, None)
            case "usage":
                return self._progress(ref, shown, None, frame.usage)
            case "gap":
                reason = pb.LiveGap.REASON_BUFFER_OVERRUN
                return {"gap": pb.LiveGap(effect_id=ref[0], reason=reason, frames=frame.gap.frames)}
            case _:
                return None

    def _progress(
        self,
        ref: AttemptRef,
        shown: _Shown,
        progress: journal_pb2.Progress | None,
        usage: journal_pb2.Usage | None,
    ) -> Frame | None:
        if not self._wants_progress:
            return None
        news = progress is not None and progress.ordinal > shown.ordinal
        if usage is not None and usage != shown.usage:
            shown.usage = usage
            news = True
        if not news:
            return None
        message = pb.LiveProgress(effect_id=ref[0], effect_key=shown.key, attempt=ref[1], usage=shown.usage)
        if progress is not None and progress.ordinal > shown.ordinal:
            shown.ordinal = progress.ordinal
            message.progress.CopyFrom(progress)
        return {"progress": message}

    def _output_frame(self, ref: AttemptRef, key: str, piece: Piece) -> Frame:
        if not piece.data:
            return {"gap": pb.LiveGap(effect_id=ref[0], reason=pb.LiveGap.REASON_BUFFER_OVERRUN)}
        chunk = executor_pb.OutputChunk(stream=piece.stream, offset=piece.offset, data=piece.data)  # type: ignore[arg-type]
        return {"output": pb.LiveOutput(effect_id=ref[0], effect_key=key, attempt=ref[1], chunk=chunk)}

    def _key(self, ref: AttemptRef) -> str:
        shown = self._shown.get(ref)
        return shown.key if shown is not None else ""

    def _concerns(self, event: Event) -> bool:
        return self._effect_id in ("", event.effect_id)

    def _unreachable(self, ref: AttemptRef, shown: _Shown) -> Frame:
        shown.announced = True
        return {"gap": pb.LiveGap(effect_id=ref[0], reason=pb.LiveGap.REASON_EXECUTOR_UNREACHABLE)}

    def _from_heartbeats(self) -> list[Frame]:
        """Progress of attempts that no stream shows, at most once a second."""
        now = time.monotonic()
        if now - self._heartbeats_at < _HEARTBEATS_EVERY_SECONDS or all(s.reached for s in self._shown.values()):
            return []
        self._heartbeats_at = now
        frames = []
        for attempt in self._engine.live(self._run_id):
            ref = (attempt.effect_id, attempt.attempt)
            shown = self._shown.get(ref)
            if shown is not None and not shown.reached:
                frames.append(self._progress(ref, shown, attempt.progress, attempt.usage))
        return [frame for frame in frames if frame is not None]
