"""Copies of what stands in a clone where git is about to write.

Touches the directory of the copies; the clone itself is only read.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path


def stamped(now: float) -> str:
    """A name for the copies of this moment; they sort."""
    return f"{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%S.%fZ}"


def save(clone: Path, names: Iterable[str], copies: Path) -> None:
    """Copy what stands in the place of these files. ``copies`` is made only if there is anything to copy."""
    for place in {place for name in names if (place := in_the_place_of(clone, name))}:
        copy = copies / place
        copy.parent.mkdir(parents=True, exist_ok=True)
        if (clone / place).is_dir() and not (clone / place).is_symlink():
            shutil.copytree(clone / place, copy, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(clone / place, copy, follow_symlinks=False)


def in_the_place_of(clone: Path, name: str) -> Path | None:
    """The file, link or directory that has to go for a file of this name: it, or what is no directory above it."""
    above = reversed(Path(name).parents[:-1])
    for place in (*above, Path(name)):
        if (clone / place).is_symlink() or (clone / place).is_file():
            return place
    return Path(name) if (clone / name).is_dir() else None
