"""Follows a run to its end, drawing what happens: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Final, Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from backburner.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_service.cli import text
from scheduler_service.cli.bars import draw
from scheduler_service.cli.client import Client
from scheduler_service.cli.ending import continuation
from scheduler_service.cli.run_view import Notice, RunView
from scheduler_service.cli.watching import watch_run

LIVE: Final = (pb.WatchRunRequest.INCLUDE_PROGRESS,)
"""What a watch that is drawn has beside the events."""

_PROGRESS_LINE_SECONDS: Final = 5.0
_FOREGROUND_LINE_SECONDS: Final = 2.0
_SUBJECT_WIDTH: Final = 24
_WEIGHT_STYLES: Final = {0: "dim", 1: "", 2: "red"}


class Screen(Protocol):
    """Where a followed run is drawn."""

    def show(self, notices: list[Notice]) -> None:
        """Draw what is new."""

    def note(self, message: str) -> None:
        """Say something of the watch itself."""


def screen(console: Console, view: RunView) -> AbstractContextManager[Screen]:
    """Bars when there is a terminal to draw on, else lines."""
    return (
        BarScreen(console, view) if console.is_terminal and not console.is_dumb_terminal else LineScreen(console, view)
    )


async def follow(frames: AsyncIterator[pb.WatchRunResponse], view: RunView, on: Screen) -> pb.Run:
    """Draw every frame; gives the run as the end frame has it."""
    run = pb.Run(run_id=view.run_id)
    async for frame in frames:
        on.show(view.feed(frame))
        if frame.WhichOneof("frame") == "end":
            run = frame.end.run
    return run


class Following:
    """A run that is drawn to its end, then the run that it continued as, and so on."""

    def __init__(self, client: Client, run_id: str, out: Console) -> None:
        self.run_id = run_id
        """The run that is drawn now."""
        self.explained: set[str] = set()
        """Keys of its effects whose failure was drawn with details."""
        self._client = client
        self._out = out

    async def to_the_end(self, after: int | None) -> pb.Run:
        """Draw from a snapshot, or what is `after` a seq; gives the last run, ended or parked."""
        while True:
            view = RunView(self.run_id)
            self.explained = view.explained
            with screen(self._out, view) as on:
                await follow(watch_run(self._client, self.run_id, after, on.note, LIVE), view, on)
            run = await self._client.get_run(self.run_id)
            following = view.continued_as or await continuation(self._client, run)
            if not following:
                return run
            self._out.print(f"run {self.run_id} continued as {following}: following that", markup=False)
            self.run_id, after = following, 0


class BarScreen:
    """Bars below, and above them the lines that should stay: logs, questions, failures."""

    def __init__(self, console: Console, view: RunView) -> None:
        self._console = console
        self._view = view
        self._live = Live(console=console, refresh_per_second=8, get_renderable=self._draw, transient=False)

    def __enter__(self) -> BarScreen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, notices: list[Notice]) -> None:
        """Print what should stay; the bars redraw themselves."""
        for notice in notices:
            if notice.stays or notice.weight == 2:
                _print(self._console, notice)

    def note(self, message: str) -> None:
        """Print above the bars."""
        self._console.print(Text(message, style="yellow"))

    def _draw(self) -> RenderableType:
        return draw(self._view, dt.datetime.now(dt.UTC), self._console)


class LineScreen:
    """One line for each thing worth knowing, bounded: progress every few seconds, foreground effects summed up."""

    def __init__(self, console: Console, view: RunView) -> None:
        self._console = console
        self._view = view
        self._progress_at: dict[str, float] = {}
        #: By subject: the newest progress that came too soon after a line of it.
        self._held_back: dict[str, Notice] = {}
        self._foreground_at = 0.0
        self._foreground_said = 0

    def __enter__(self) -> LineScreen:
        return self

    def __exit__(self, *_: object) -> None:
        self._sum_up(last=True)

    def show(self, notices: list[Notice]) -> None:
        """Print the notices that are worth a line now."""
        for notice in notices:
            if self._is_due(notice):
                _print(self._console, notice)
        self._catch_up()
        self._sum_up()

    def note(self, message: str) -> None:
        """Print the message."""
        self._console.print(message, markup=False)

    def _is_due(self, notice: Notice) -> bool:
        if notice.weight == 2:
            return True
        if not notice.background:
            return False
        if notice.weight == 1:
            return True
        now = time.monotonic()
        due = now - self._progress_at.get(notice.subject, 0.0) >= _PROGRESS_LINE_SECONDS
        if due:
            self._progress_at = {key: at for key, at in self._progress_at.items() if key in self._view.open}
            self._progress_at[notice.subject] = now
            self._held_back.pop(notice.subject, None)
        else:
            self._held_back[notice.subject] = notice
        return due

    def _catch_up(self) -> None:
        """What a silent effect said last is told, if late."""
        for subject, notice in list(self._held_back.items()):
            if subject not in self._view.open:
                del self._held_back[subject]
            elif self._is_due(notice):
                _print(self._console, notice)

    def _sum_up(self, *, last: bool = False) -> None:
        done = self._view.foreground_succeeded + self._view.foreground_unsuccessful
        now = time.monotonic()
        if done == self._foreground_said or (not last and now - self._foreground_at < _FOREGROUND_LINE_SECONDS):
            return
        self._foreground_at, self._foreground_said = now, done
        newest = "".join(f"; newest {effect.key}" for effect in list(self._view.recent_foreground)[-1:])
        message = f"{done} done, {self._view.open_foreground} open{newest}"
        _print(self._console, Notice(dt.datetime.now(dt.UTC), "foreground", message))


def _print(out: Console, notice: Notice) -> None:
    style = _WEIGHT_STYLES[notice.weight]
    said = escape(text.one_line(notice.message, 400))
    subject = f"{escape(text.middle(notice.subject, _SUBJECT_WIDTH)):<{_SUBJECT_WIDTH}}"
    when = notice.at.astimezone().strftime("%H:%M:%S")
    out.print(f"[dim]{when}[/] [bold]{subject}[/] {f'[{style}]{said}[/]' if style else said}")
    for line in notice.details:
        out.print(Text(f"{'':9}{line}", style="dim"))
