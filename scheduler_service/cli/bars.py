"""Draws a run as bars: background effects each on a line, the foreground as one."""

from __future__ import annotations

import datetime as dt
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from backburner.journal.v1 import journal_pb2 as journal
from scheduler_service.cli import agents, text
from scheduler_service.cli.run_view import EffectView, RunView, describe_report, way_to_answer

_BAR_WIDTH: Final = 24
_KEY_WIDTH: Final = 30
_LINES_MAX: Final = 16
_QUIET_SECONDS: Final = 5.0
_MARKS: Final = {
    journal.EFFECT_STATE_SUCCEEDED: Text("✓", "green"),
    journal.EFFECT_STATE_FAILED: Text("✗", "red"),
    journal.EFFECT_STATE_TIMED_OUT: Text("✗", "red"),
    journal.EFFECT_STATE_CANCELLED: Text("-", "yellow"),
}
_SPINNER: Final = Spinner("dots", style="cyan")


def draw(view: RunView, now: dt.datetime, console: Console) -> RenderableType:
    """The whole picture, never higher than the terminal."""
    room = max(min(_LINES_MAX, console.size.height - 6), 3)
    # A copy: the picture is drawn by a thread of its own while frames come in.
    still_open = list(view.open.values())
    background = [*view.settled_background, *(effect for effect in still_open if effect.background)]
    questions = [effect for effect in still_open if effect.asks]
    parts: list[RenderableType] = [_head(view, now), _lines(background[-room:], now, len(background) - room)]
    parts.append(_foreground(view, [effect for effect in still_open if not effect.background], now))
    parts += [_question(view, effect) for effect in questions[:3]]
    return Group(*parts)


def _head(view: RunView, now: dt.datetime) -> RenderableType:
    state = text.run_state(view.state)
    elapsed = text.span((now - view.started_at).total_seconds()) if view.started_at else ""
    said = describe_report(view.report)
    return Text.assemble(
        (view.process or "run", "bold"), " ", (state, text.style(state)), " ", (elapsed, "dim"), "  ", said,
        no_wrap=True, overflow="ellipsis",
    )  # fmt: skip


def _lines(effects: list[EffectView], now: dt.datetime, hidden: int) -> RenderableType:
    lines = Table.grid(padding=(0, 1))
    for width in (1, _KEY_WIDTH, _BAR_WIDTH, 4, None, None):
        lines.add_column(no_wrap=True, overflow="ellipsis", max_width=width)
    for effect in effects:
        lines.add_row(*_line(effect, now))
    return Group(lines, Text(f"  and {hidden} more", "dim")) if hidden > 0 else lines


def _line(effect: EffectView, now: dt.datetime) -> list[RenderableType]:
    percent = effect.progress.percent if effect.progress.HasField("percent") else None
    if effect.settled_at is not None:
        percent = 100.0 if effect.state == journal.EFFECT_STATE_SUCCEEDED else percent
    shown = "" if percent is None else f"{percent:3.0f}%"
    mark = _MARKS.get(effect.state) or _SPINNER
    key, took = Text(text.middle(effect.key, _KEY_WIDTH)), text.span(effect.elapsed(now))
    return [mark, key, _bar(effect, percent), shown, took, _said(effect, now)]


def _bar(effect: EffectView, percent: float | None) -> RenderableType:
    settled = effect.settled_at is not None
    pulse = percent is None and not settled and effect.state == journal.EFFECT_STATE_RUNNING
    return ProgressBar(total=100, completed=percent or 0, width=_BAR_WIDTH, pulse=pulse)


def _said(effect: EffectView, now: dt.datetime) -> Text:
    if effect.settled_at is not None:
        return Text(" · ".join([*([effect.note] if effect.note else []), *agents.spent(effect.usage)]), "dim")
    progress, parts = effect.progress, []
    if effect.state not in (journal.EFFECT_STATE_RUNNING, journal.EFFECT_STATE_DISPATCHED):
        parts.append(text.effect_state(effect.state).lower())
    if progress.step_count:
        parts.append(f"{progress.step_index}/{progress.step_count}")
    parts += [*agents.doing(progress), *agents.spent(effect.usage), *agents.todos(progress)]
    parts += [effect.note] if effect.note else []
    if (eta := effect.eta(now)) is not None:
        parts.append(f"ETA {'~' if progress.eta_estimated else ''}{text.span(eta)}")
    parts += _quiet(effect, now)
    return Text(" · ".join(parts), "dim")


def _quiet(effect: EffectView, now: dt.datetime) -> list[str]:
    """Of an agent, which says much, how long it has said nothing."""
    if effect.work != "agent" or effect.heard_at is None or effect.state != journal.EFFECT_STATE_RUNNING:
        return []
    quiet = (now - effect.heard_at).total_seconds()
    return [f"last heard {text.span(quiet)} ago"] if quiet >= _QUIET_SECONDS else []


def _foreground(view: RunView, still_open: list[EffectView], now: dt.datetime) -> RenderableType:
    done = view.foreground_succeeded + view.foreground_unsuccessful
    if not done and not still_open:
        return Text()
    failed = f", {view.foreground_unsuccessful} not ok" if view.foreground_unsuccessful else ""
    newest = ", ".join(
        f"{effect.key} {text.span(effect.elapsed(now))}" for effect in reversed(list(view.recent_foreground))
    )
    return Text.assemble(
        ("foreground ", "bold"), f"{done} done{failed}, {len(still_open)} open", (f"  {newest}", "dim"),
        no_wrap=True, overflow="ellipsis",
    )  # fmt: skip


def _question(view: RunView, effect: EffectView) -> RenderableType:
    return Text.assemble(("? ", "magenta"), effect.prompt, (f"  {way_to_answer(view.run_id, effect)}", "dim"))
