"""Consoles and tables: for terminals with bars and colour, for files and pipes whole and plain."""

import os
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

# Nothing may be cut or wrapped in what a program reads: a line of a table is a line of the file.
_PLAIN_WIDTH: Final = 2000


def console(*, stderr: bool = False) -> Console:
    """A console; COLUMNS and NO_COLOR are honoured, and without a terminal nothing is wrapped."""
    found = Console(stderr=stderr, highlight=False)
    if found.is_terminal or os.environ.get("COLUMNS", "").isdigit():
        return found
    return Console(stderr=stderr, highlight=False, width=_PLAIN_WIDTH, soft_wrap=True)


def put(out: Console, drawn: RenderableType) -> None:
    """Print it; where a program reads, without the spaces that fill lines up."""
    if out.is_terminal:
        out.print(drawn)
        return
    with out.capture() as captured:
        out.print(drawn)
    out.file.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


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
