"""What an app has served so far: a file with a line for each, in the order in which they began to.

Touches that file. It is changed by rename only, so that a crash leaves the one or the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def served(file: Path) -> list[str]:
    """Oldest first; none where there is no file yet."""
    return file.read_text().split() if file.is_file() else []


def note_served(file: Path, name: str) -> None:
    """Add one, unless it is there; what serves once more keeps its place."""
    there = served(file)
    if name not in there:
        write_served(file, [*there, name])


def write_served(file: Path, names: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text("".join(f"{name}\n" for name in names))
    new.replace(file)
