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


def directories() -> Iterator[tuple[int, str]]:
    """Each process by its id, and the directory in which it works."""
    for pid in psutil.pids():  # `process_iter` costs six times as much, and tests look again and again
        with suppress(OSError):  # nothing of one that has ended, of a zombie, nor of one of the kernel's own
            yield pid, os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)")  # noqa: PTH115


def command_lines() -> Iterator[tuple[int, list[str]]]:
    """Each process by its id, and the words of its command line."""
    for process in psutil.process_iter(["cmdline"]):
        if process.info["cmdline"]:
            yield process.pid, process.info["cmdline"]


def within(directory: Path) -> dict[int, Path]:
    """Those that work in a directory or below it, by their ids, and where each does."""
    return {pid: Path(cwd) for pid, cwd in directories() if f"{cwd}/".startswith(f"{directory}/")}


def told(*words: str | Path) -> list[int]:
    """Those on whose command line all of these words stand."""
    wanted = {str(word) for word in words}
    return [pid for pid, line in command_lines() if wanted <= {*line}]
