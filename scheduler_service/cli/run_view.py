"""What a watcher knows of a run: a model fed by the frames of WatchRun, free of drawing."""

from __future__ import annotations

import datetime as dt
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from backburner.journal.v1 import journal_pb2 as journal
from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import agents, text
from scheduler_service.cli.failures import LINES_MAX_LIVE, Failure, describe_setback

_SETTLED_KEPT: Final = 12
_RECENT_KEPT: Final = 3
# Of 500 files of which each fails, the first few say it all.
_EXPLAINED_MAX: Final = 10
_REQUESTS_SAID: Final = 20

_ON_EXECUTORS: Final = {"shell", "function", "agent"}

_RUN_STATES: Final[Mapping[str, journal.RunState.ValueType]] = {
    "run_created": journal.RUN_STATE_RUNNING,
    "run_closing": journal.RUN_STATE_CLOSING,
    "run_completed": journal.RUN_STATE_COMPLETED,
    "run_failed": journal.RUN_STATE_FAILED,
    "run_cancelled": journal.RUN_STATE_CANCELLED,
    "run_halted": journal.RUN_STATE_HALTED,
    "run_resumed": journal.RUN_STATE_RUNNING,
    "run_cancel_requested": journal.RUN_STATE_CANCELLING,
    "run_continued": journal.RUN_STATE_CONTINUED,
    "process_runtime_error": journal.RUN_STATE_PROCESS_ERROR,
}


@dataclass
class EffectView:
    """An effect as a watcher knows it."""

    key: str
    name: str
    background: bool
    work: str
    requested_at: dt.datetime
    state: journal.EffectState.ValueType = journal.EFFECT_STATE_QUEUED
    started_at: dt.datetime | None = None
    settled_at: dt.datetime | None = None
    progress: journal.Progress = field(default_factory=journal.Progress)
    progress_at: dt.datetime | None = None
    usage: journal.Usage = field(default_factory=journal.Usage)
    heard_at: dt.datetime | None = None
    """When it last said something of its progress or of what it consumed."""
    prompt: str = ""
    choices: tuple[str, ...] = ()
    note: str = ""
    attempts_max: int = 0

    @property
    def asks(self) -> bool:
        """True when somebody has to answer."""
        return self.work == "external" and self.settled_at is None

    def eta(self, now: dt.datetime) -> float | None:
        """Seconds to the end as far as they are known; what was told counts down."""
        if not self.progress.HasField("eta"):
            return None
        left = text.seconds(self.progress.eta) - max((now - (self.progress_at or now)).total_seconds(), 0.0)
        return left if left > 0 else None

    def elapsed(self, now: dt.datetime) -> float:
        """Seconds since it started, or since it was asked for."""
        return max(((self.settled_at or now) - (self.started_at or self.requested_at)).total_seconds(), 0.0)


@dataclass(frozen=True)
class Notice:
    """Something worth a line, for readers without bars. `weight`: 0 routine, 1 worth knowing, 2 bad."""

    at: dt.datetime
    subject: str
    message: str
    weight: int = 1
    background: bool = True
    stays: bool = False
    """True for what bars cannot say: lines of the process's log."""
    details: tuple[str, ...] = ()
    """Lines that belong below it: the end of a failed child's output."""


class RunView:
    """A run as a watcher knows it. `feed` takes one frame and gives the notices that it makes."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.process = ""
        self.state = journal.RUN_STATE_RUNNING
        self.started_at: dt.datetime | None = None
        self.report = journal.RunReported()
        self.open: dict[str, EffectView] = {}
        self.settled_background: deque[EffectView] = deque(maxlen=_SETTLED_KEPT)
        self.recent_foreground: deque[EffectView] = deque(maxlen=_RECENT_KEPT)
        self.foreground_succeeded = 0
        self.foreground_unsuccessful = 0
        self.seq = 0
        self.explained: set[str] = set()
        """Keys of the effects whose failure was shown with its details."""
        self._requests_said = 0
        self.continued_as = ""
        """The run that this one went on as; empty: none."""

    def feed(self, frame: pb.WatchRunResponse) -> list[Notice]:
        """Take one frame in."""
        kind = frame.WhichOneof("frame")
        if kind == "snapshot":
            return self._take_snapshot(frame.snapshot)
        if kind == "event":
            return self._take_event(frame.event)
        if kind == "progress":
            return self._take_live(frame.progress, dt.datetime.now(dt.UTC))
        return []

    @property
    def open_foreground(self) -> int:
        """Number of foreground effects that are open."""
        return sum(not effect.background for effect in self.open.values())

    def _take_snapshot(self, snapshot: pb.RunSnapshot) -> list[Notice]:
        run = snapshot.run
        self.seq, self.process, self.state = snapshot.seq, run.process, run.state
        self.started_at = text.moment(run.create_time)
        self.report.CopyFrom(run.report)
        counts = run.effect_counts
        self.foreground_succeeded, self.foreground_unsuccessful = counts.succeeded, counts.failed + counts.cancelled
        self.open = {effect.key: _from_resource(effect) for effect in snapshot.effects}
        return [Notice(self.started_at, "run", f"{text.run_state(run.state)}, {len(self.open)} effects open")]

    def _take_event(self, event: journal.JournalEvent) -> list[Notice]:
        self.seq = event.seq
        kind = event.WhichOneof("data") or ""
        if kind in _RUN_STATES:
            return self._take_run_event(kind, event)
        take = _EVENTS.get(kind)
        return take(self, event) if take else []

    def _take_run_event(self, kind: str, event: journal.JournalEvent) -> list[Notice]:
        self.state = _RUN_STATES[kind]
        at = text.moment(event.recorded_at)
        if kind == "run_created":
            self.started_at, self.process = at, event.run_created.process
        self.continued_as = event.run_continued.new_run_id
        bad = self.state in (journal.RUN_STATE_FAILED, journal.RUN_STATE_PROCESS_ERROR)
        return [Notice(at, "run", text.event_type(event.type).lower().replace("_", " "), 2 if bad else 1)]

    def _take_log(self, event: journal.JournalEvent) -> list[Notice]:
        log = event.process_log
        bad = log.level in ("WARNING", "ERROR")
        return [Notice(text.moment(event.recorded_at), log.level.lower(), log.message, 2 if bad else 1, stays=True)]

    def _take_report(self, event: journal.JournalEvent) -> list[Notice]:
        self.report.CopyFrom(event.run_reported)
        return [Notice(text.moment(event.recorded_at), "report", describe_report(self.report), 0)]

    def _take_request(self, event: journal.JournalEvent) -> list[Notice]:
        spec, at = event.effect_requested.spec, text.moment(event.recorded_at)
        effect = EffectView(event.effect_key, spec.name, spec.background, spec.WhichOneof("work") or "", at)
        if effect.work not in _ON_EXECUTORS:
            effect.state = journal.EFFECT_STATE_WAITING
        effect.prompt, effect.choices = spec.external.prompt, tuple(spec.external.choices)
        effect.attempts_max = spec.retry.max_attempts
        self.open[effect.key] = effect
        if effect.asks:
            return [Notice(at, effect.key, _question(effect), details=(way_to_answer(self.run_id, effect),))]
        if not effect.background or self._requests_said == _REQUESTS_SAID:
            return []
        self._requests_said += 1
        more = "; more are not listed one by one" if self._requests_said == _REQUESTS_SAID else ""
        return [Notice(at, effect.key, f"requested{more}")]

    def _take_start(self, event: journal.JournalEvent) -> list[Notice]:
        effect = self.open.get(event.effect_key)
        if effect is None:
            return []
        started = event.WhichOneof("data") == "effect_started"
        effect.state = journal.EFFECT_STATE_RUNNING if started else journal.EFFECT_STATE_DISPATCHED
        effect.started_at = text.moment(event.recorded_at)
        if not started:
            effect.progress.Clear()  # another attempt begins, and counts its progress from 1
            effect.usage.Clear()
            effect.heard_at = None
        effect.note = f"attempt {event.attempt}" if event.attempt > 1 else ""
        return [Notice(effect.started_at, effect.key, "running", 0, effect.background)] if started else []

    def _take_child(self, event: journal.JournalEvent) -> list[Notice]:
        effect = self.open.get(event.effect_key)
        if effect is None:
            return []
        effect.state, effect.started_at = journal.EFFECT_STATE_RUNNING, text.moment(event.recorded_at)
        effect.note = f"run {event.child_run_started.child_run_id}"
        return [Notice(effect.started_at, effect.key, effect.note, 1, effect.background)]

    def _take_durable_progress(self, event: journal.JournalEvent) -> list[Notice]:
        return self._take_progress(event.effect_key, event.effect_progress.progress, text.moment(event.recorded_at))

    def _take_live(self, live: pb.LiveProgress, at: dt.datetime) -> list[Notice]:
        effect = self.open.get(live.effect_key)
        if effect is None:
            return []
        news = live.HasField("usage") and live.usage != effect.usage
        if news:
            effect.usage.CopyFrom(live.usage)
            effect.heard_at = at
        if live.HasField("progress") and (told := self._take_progress(live.effect_key, live.progress, at)):
            return told
        return [_told(effect, at)] if news else []

    def _take_progress(self, key: str, progress: journal.Progress, at: dt.datetime) -> list[Notice]:
        effect = self.open.get(key)
        # Live frames and journal rows come by two ways: what is older than what is shown is dropped.
        if effect is None or progress.ordinal < effect.progress.ordinal:
            return []
        if progress.ordinal > effect.progress.ordinal:
            effect.heard_at = at
        effect.progress.CopyFrom(progress)
        effect.progress_at = at
        if not (progress.HasField("percent") or progress.step_count or agents.doing(progress)):
            return []  # an estimate alone: it would take the place of what the effect says of itself
        return [_told(effect, at)]

    def _take_setback(self, event: journal.JournalEvent) -> list[Notice]:
        effect, kind = self.open.get(event.effect_key), event.WhichOneof("data")
        if effect is None:
            return []
        effect.state = journal.EFFECT_STATE_PARKED if kind == "effect_parked" else journal.EFFECT_STATE_QUEUED
        effect.note = describe_setback(event)
        at, details = text.moment(event.recorded_at), self._explain(Failure.of_event(self.run_id, event), 1)
        return [Notice(at, effect.key, effect.note, 2, effect.background, details=details)]

    def _take_cancel_request(self, event: journal.JournalEvent) -> list[Notice]:
        effect = self.open.get(event.effect_key)
        if effect is None or event.effect_cancel_requested.no_op:
            return []
        effect.state = journal.EFFECT_STATE_CANCELLING
        reason = text.effect_reason(event.effect_cancel_requested.reason)
        return [Notice(text.moment(event.recorded_at), effect.key, f"cancelling ({reason})", 1, effect.background)]

    def _take_settlement(self, event: journal.JournalEvent) -> list[Notice]:
        effect = self.open.pop(event.effect_key, None)
        if effect is None:
            return []
        effect.settled_at = text.moment(event.recorded_at)
        failure = Failure.of_event(self.run_id, event, effect.attempts_max)
        effect.state, effect.note = failure.state, failure.why()
        if event.WhichOneof("data") == "effect_reused":
            effect.note = "taken from an earlier run"
        self._count(effect, succeeded=effect.state == journal.EFFECT_STATE_SUCCEEDED)
        took = text.seconds(event.effect_resolved.elapsed) or effect.elapsed(effect.settled_at)
        if used := _used(event):
            effect.usage.CopyFrom(used)
        message = f"{text.effect_state(effect.state).lower()} after {text.span(took)}"
        message = ", ".join([message, *agents.spent(effect.usage)])
        bad = effect.state not in (journal.EFFECT_STATE_SUCCEEDED, journal.EFFECT_STATE_CANCELLED)
        said = f"{message}: {effect.note}" if effect.note else message
        details = self._explain(failure, LINES_MAX_LIVE) if bad else ()
        return [Notice(effect.settled_at, effect.key, said, 2 if bad else 1, effect.background, details=details)]

    def _explain(self, failure: Failure, lines_max: int) -> tuple[str, ...]:
        if len(self.explained) >= _EXPLAINED_MAX and failure.key not in self.explained:
            return ()
        self.explained.add(failure.key)
        return tuple(failure.output(lines_max))

    def _count(self, effect: EffectView, *, succeeded: bool) -> None:
        if effect.background:
            self.settled_background.append(effect)
            return
        self.recent_foreground.append(effect)
        self.foreground_succeeded += succeeded
        self.foreground_unsuccessful += not succeeded


_EVENTS: Final[Mapping[str, Callable[[RunView, journal.JournalEvent], list[Notice]]]] = {
    "process_log": RunView._take_log,
    "run_reported": RunView._take_report,
    "effect_requested": RunView._take_request,
    "effect_dispatched": RunView._take_start,
    "effect_started": RunView._take_start,
    "child_run_started": RunView._take_child,
    "effect_progress": RunView._take_durable_progress,
    "effect_attempt_failed": RunView._take_setback,
    "effect_attempt_lost": RunView._take_setback,
    "effect_parked": RunView._take_setback,
    "effect_cancel_requested": RunView._take_cancel_request,
    "effect_resolved": RunView._take_settlement,
    "effect_cancelled": RunView._take_settlement,
    "effect_reused": RunView._take_settlement,
}


def _told(effect: EffectView, at: dt.datetime) -> Notice:
    return Notice(at, effect.key, describe_progress(effect.progress, effect.usage), 0, effect.background)


def _used(event: journal.JournalEvent) -> journal.Usage | None:
    """What the attempt that ended consumed in all, when that is known."""
    for result in (event.effect_resolved.result, event.effect_cancelled.partial):
        if result.HasField("usage"):
            return result.usage
    return None


def _question(effect: EffectView) -> str:
    choices = f" [{'/'.join(effect.choices)}]" if effect.choices else ""
    return f"asks: {effect.prompt}{choices}"


def way_to_answer(run_id: str, effect: EffectView) -> str:
    """The command that answers what an effect asks."""
    name = f"{run_id}/{effect.key}"
    if effect.choices:
        return f"answer it: backburner approvals answer {name} {effect.choices[0]}"
    return f"settle it: backburner resolve {name} --value JSON"


def describe_progress(progress: journal.Progress, usage: journal.Usage | None = None) -> str:
    """Progress in words: `42%, step 3/7, compiling, 12s left`, `turn 4/20, Bash: pytest -q, 12.3k tokens, $0.08`."""
    parts = [f"{progress.percent:.0f}%"] if progress.HasField("percent") else []
    if progress.step_count:
        parts.append(f"step {progress.step_index}/{progress.step_count}")
    parts += [*agents.doing(progress), *agents.spent(usage or journal.Usage()), *agents.todos(progress)]
    if progress.HasField("eta"):
        parts.append(f"{'~' if progress.eta_estimated else ''}{text.span(text.seconds(progress.eta))} left")
    return ", ".join(parts)


def last_heard(effect: pb.Effect, now: dt.datetime) -> str:
    """When an effect that runs last gave a sign of life: `2.0s ago`."""
    if effect.state != journal.EFFECT_STATE_RUNNING or not effect.HasField("last_activity_time"):
        return ""
    return f"{text.since(effect.last_activity_time, now)} ago"


def describe_report(report: journal.RunReported) -> str:
    """What a process said of itself, in words."""
    percent = f"{report.percent:.0f}%" if report.HasField("percent") else ""
    return " ".join(part for part in (percent, report.label) if part)


def _from_resource(effect: pb.Effect) -> EffectView:
    kind = journal.EffectKind.Name(effect.kind) if effect.kind in journal.EffectKind.values() else ""
    work = kind.removeprefix("EFFECT_KIND_").lower()
    view = EffectView(effect.key, effect.name, effect.background, work, text.moment(effect.request_time), effect.state)
    view.started_at = text.moment(effect.start_time) if effect.HasField("start_time") else None
    view.attempts_max = effect.spec.retry.max_attempts
    view.progress.CopyFrom(effect.progress)
    view.progress_at = dt.datetime.now(dt.UTC)
    view.usage.CopyFrom(effect.usage)
    view.heard_at = text.moment(effect.last_activity_time) if effect.HasField("last_activity_time") else None
    view.prompt, view.choices = effect.spec.external.prompt, tuple(effect.spec.external.choices)
    return view
