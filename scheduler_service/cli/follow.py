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
from scheduler_service.cli.run_view import Notice, RunView

_PROGRESS_LINE_SECONDS: Final = 5.0
_FOREGROUND_LINE_SECONDS: Final = 2.0
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
                self._console.print(_line(notice))

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
                self._console.print(_line(notice))
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
        return due

    def _sum_up(self, *, last: bool = False) -> None:
        done = self._view.foreground_succeeded + self._view.foreground_unsuccessful
        now = time.monotonic()
        if done == self._foreground_said or (not last and now - self._foreground_at < _FOREGROUND_LINE_SECONDS):
            return
        self._foreground_at, self._foreground_said = now, done
        newest = "".join(f"; newest {effect.key}" for effect in list(self._view.recent_foreground)[-1:])
        message = f"{done} done, {self._view.open_foreground} open{newest}"
        self._console.print(_line(Notice(dt.datetime.now(dt.UTC), "foreground", message)))


def _line(notice: Notice) -> str:
    when = notice.at.astimezone().strftime("%H:%M:%S")
    style = _WEIGHT_STYLES[notice.weight]
    said = escape(text.one_line(notice.message, 400))
    return f"[dim]{when}[/] [bold]{escape(notice.subject):<20}[/] {f'[{style}]{said}[/]' if style else said}"
