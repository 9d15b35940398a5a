"""Consoles and tables: for terminals with bars and colour, for files and pipes whole and plain."""

import os
from collections.abc import Sequence
from typing import Any, Final

import click
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from scheduler_service.cli import text

# Nothing may be cut or wrapped in what a program reads: a line of a table is a line of the file.
_PLAIN_WIDTH: Final = 2000
_WIDE: Final = 130
_BESIDE_KEYS: Final = 50
_KEY_MIN: Final = 20


def console(*, stderr: bool = False) -> Console:
    """A console; COLUMNS and NO_COLOR are honoured, and without a terminal nothing is wrapped."""
    found = Console(stderr=stderr, highlight=False)
    if found.is_terminal or os.environ.get("COLUMNS", "").isdigit():
        return found
    return Console(stderr=stderr, highlight=False, width=_PLAIN_WIDTH, soft_wrap=True)


def put(out: Console, drawn: RenderableType) -> None:
    """Print it; where a program reads, without the spaces that fill lines up."""
    if out.is_terminal:
        out.print(_without_empty_columns(drawn))
        return
    with out.capture() as captured:
        out.print(drawn)
    out.file.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _without_empty_columns(drawn: RenderableType) -> RenderableType:
    # Room is short on a terminal; a program finds every column at its place.
    if isinstance(drawn, Table) and drawn.row_count:
        drawn.columns = [column for column in drawn.columns if any(cell != "" for cell in column.cells)]
    return drawn


def say_limit(rows: int, limit: int) -> None:
    """Say that a list ends where it was cut, not where it ends."""
    if rows == limit:
        click.echo(f"the newest {limit}: --all shows all, --limit N more", err=True)


def short_id(run_id: str, width: int) -> str:
    """The id of a run where there is room for it, else its end; commands take either."""
    # The end of a UUIDv7 is random, so it is unique where its beginning, a time, is not.
    return run_id if width >= _WIDE else run_id.rpartition("-")[2]


def short_key(key: str, width: int) -> str:
    """The key of an effect, cut in its middle where there is little room; whole where a program reads."""
    return text.middle(key, max(width - _BESIDE_KEYS, _KEY_MIN))


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """A table without frame lines; cells fold rather than being cut. `right` names the right-aligned columns."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        made.add_column(name, overflow="fold", justify="right" if name in right else "left")
    return made


def details(pairs: Sequence[tuple[str, Any]]) -> Table:
    """Names and values below each other; empty values are left out."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        if value not in ("", None):
            made.add_row(name, escape(value) if isinstance(value, str) else value)
    return made
