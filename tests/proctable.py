"""The processes of this machine, as tests look at them.

Each may end while it is looked at, and is then none; nor is one that is dead and waits to be reaped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

DEAD = {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in DEAD
    except psutil.NoSuchProcess:
        return False


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has come to it."""
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


def parent(pid: int) -> int | None:
    try:
        return psutil.Process(pid).ppid()
    except psutil.NoSuchProcess:
        return None


def children(pid: int) -> list[int]:
    try:
        found = psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []
    return [child.pid for child in found if runs(child.pid)]


# Straight from the kernel, for these look at every process there is, again and again: psutil takes twice as long. What
# cannot be read has just ended, or is not ours to look into.


def directories() -> Iterator[tuple[int, str]]:
    """Each process by its id, and the directory in which it works; a zombie has none."""
    for pid in psutil.pids():
        with suppress(OSError):
            name = os.readlink(f"/proc/{pid}/cwd")  # noqa: PTH115 - as above
            yield pid, name.removesuffix(" (deleted)")


def command_lines() -> Iterator[tuple[int, list[str]]]:
    """Each process by its id, and the words of its command line; a zombie has none."""
    for pid in psutil.pids():
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if words:
                yield pid, os.fsdecode(words).removesuffix("\0").split("\0")


def within(directory: Path) -> dict[int, Path]:
    """Those that work in a directory or below it, by their ids, and where each does."""
    return {pid: Path(cwd) for pid, cwd in directories() if f"{cwd}/".startswith(f"{directory}/")}


def descriptors(pid: int) -> dict[int, str]:
    """What each descriptor of a process leads to."""
    found = {}
    with suppress(OSError):  # it has ended
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # it was just closed
                found[int(path.name)] = str(path.readlink())
    return found


def told(*words: str | Path) -> list[int]:
    """Those on whose command line all of these words stand."""
    wanted = {str(word) for word in words}
    return [pid for pid, line in command_lines() if wanted <= {*line}]
