"""What commands show: tables that fit the terminal, and times as a person says them.

Nothing of what is shown can steer a terminal, and colours are for terminals only.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from twisted_hook.redaction import clean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

WHOLE = 1000
"""Columns where no terminal has to be fitted: nothing is cut off for who reads it later."""
ROOMY = 120
"""Columns from which on a table shows all that it has."""
_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"))
_STYLES = {
    **dict.fromkeys(("deployed", "serving", "accepted"), "green"),
    **dict.fromkeys(("failed", "rolled_back", "interrupted", "down", "stopped"), "bold red"),
    **dict.fromkeys(("superseded", "unchanged", "cancelled", "ignored", "duplicate"), "dim"),
    **dict.fromkeys(("starting", "restarting"), "yellow"),
}


def console_of(width: int | None = None) -> Console:
    """Standard output as it is: as wide as the terminal, or of any width where there is none."""
    from rich.console import Console

    whole = None if sys.stdout.isatty() else WHOLE
    return Console(highlight=False, markup=False, emoji=False, width=width or whole)


def show_tables(*tables: Table, notes: Sequence[str] = ()) -> None:
    """Print them as wide as the terminal is, and whole where there is none; then the notes."""
    console = console_of()
    for place, table in enumerate(tables):
        if place:
            console.print()
        console.print(table)
    if notes:
        console.print()
    for note in notes:
        console.print(in_a_line(note), soft_wrap=True, no_wrap=False, overflow="ignore")


def table_of(*columns: str, shrinks: str) -> Table:
    """A table without a frame, of which one column gives way where the terminal is narrow."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(in_a_line(column), no_wrap=column != shrinks)  # rich narrows what may be wrapped first
    return table


def in_a_line(text: object, style: str = "") -> Text:
    """A text in one line, without what a terminal would obey."""
    from rich.text import Text

    return Text(" ".join(clean(str(text)).split()), style=style, no_wrap=True, overflow="ellipsis")


def add(table: Table, *cells: object) -> None:
    """Add a row; what is an outcome, a verdict or a state has its colour."""
    table.add_row(*(in_a_line(cell, _STYLES.get(str(cell), "")) for cell in cells))


def ago(at: str | None, now: datetime) -> str:
    """How long ago a time of the API's was, in one unit."""
    if at is None:
        return ""
    return f"{span((now - datetime.fromisoformat(at)).total_seconds())} ago"


def span(seconds: float) -> str:
    """How long that is, in one unit."""
    whole = max(0, int(seconds))
    size, unit = next(((size, unit) for size, unit in _UNITS if whole >= size), (1, "s"))
    return f"{whole // size} {unit}"
