"""Reads a deployment's log for people who look at it: its end, what came since, and the whole as plain text.

Reads only, never more at once than a browser bears.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from twisted_hook.dashboard.ansi import PLAIN, Style, coloured
from twisted_hook.deploymentlog import text_of
from twisted_hook.redaction import colourless

SHOWN = 65_536
"""Bytes of a log's end that a page shows; a log may have 4 MiB, with a million lines."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a log, up to the end of its last whole line."""

    shown: Markup
    start: int
    """Where it begins, in bytes."""
    end: int
    """Where it ends, in bytes."""
    style: Style


def tail(logs: Path, deployment: str) -> Piece:
    """The end of a log, beginning with a whole line."""
    data, start = _read(logs, deployment, None)
    return _piece(data, start, PLAIN)


def since(logs: Path, deployment: str, place: int, style: Style) -> Piece:
    """What came after a place; where that is more than a page shows, the end of it."""
    data, start = _read(logs, deployment, place)
    return _piece(data, start, style)


def whole(logs: Path, deployment: str) -> str:
    """All of it, without the colours; all else was made harmless when it was written."""
    return colourless(text_of(logs / f"{deployment}.log"))


def _read(logs: Path, deployment: str, place: int | None) -> tuple[bytes, int]:
    """Whole lines from a place on, and where they begin."""
    try:
        with (logs / f"{deployment}.log").open("rb") as file:
            size = file.seek(0, 2)
            start = max(size - SHOWN, place or 0)
            file.seek(start)
            data = file.read(SHOWN)
    except FileNotFoundError:
        return b"", place or 0
    if start > (place or 0):  # in the middle of a line
        first = data.find(b"\n") + 1
        data, start = data[first:], start + first
    return data[: data.rfind(b"\n") + 1] or data[: SHOWN * (len(data) == SHOWN)], start


def _piece(data: bytes, start: int, style: Style) -> Piece:
    shown, style = coloured(data.decode("utf-8", "replace"), style)
    return Piece(shown, start, start + len(data), style)
