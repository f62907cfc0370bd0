"""The processes of this machine, as tests look at them.

Each may end while it is looked at, and is then none; nor is one that is dead and waits to be reaped.
"""

from __future__ import annotations

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


def directories() -> Iterator[tuple[int, Path]]:
    """Each process by its id, and the directory in which it works."""
    for process in psutil.process_iter(["cwd"]):
        if process.info["cwd"]:  # nothing of a zombie, nor of one of the kernel's own
            yield process.pid, Path(process.info["cwd"])


def command_lines() -> Iterator[tuple[int, list[str]]]:
    """Each process by its id, and the words of its command line."""
    for process in psutil.process_iter(["cmdline"]):
        if process.info["cmdline"]:
            yield process.pid, process.info["cmdline"]


def within(directory: Path) -> dict[int, Path]:
    """Those that work in a directory or below it, by their ids, and where each does."""
    return {pid: cwd for pid, cwd in directories() if cwd.is_relative_to(directory)}


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
