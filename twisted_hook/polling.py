"""Sees whether a program waits for connections, when it has no other way to tell.

Looks into ``/proc``, and touches nothing. Most servers wait by epoll, and Linux tells what an epoll descriptor waits
for (proc_pid_fdinfo(5)). One that waits otherwise, by poll or select or io_uring, is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

LOOK = 0.02
"""Seconds between two looks."""
_PROC = Path("/proc")


def waits_for(pid: int, inode: int) -> bool:
    """Whether this process, or one that descends from it, waits by epoll for the socket with this inode number.

    Descriptors are no help: a program may have made a duplicate of the one that it was given.
    """
    target = f" ino:{inode:x} ".encode()
    return any(target in text for process in _family(pid) for text in _epolls(process))


def _family(pid: int) -> Iterator[int]:
    yield pid
    tasks = _PROC / str(pid) / "task"
    for task in _names_in(tasks):
        with suppress(OSError):  # it has just ended
            for child in (tasks / task / "children").read_text().split():
                yield from _family(int(child))


def _epolls(pid: int) -> Iterator[bytes]:
    """What each epoll descriptor of a process waits for, one line for each target."""
    process = _PROC / str(pid)
    for descriptor in _names_in(process / "fd"):
        with suppress(OSError):  # it was just closed
            if (process / "fd" / descriptor).readlink().name == "anon_inode:[eventpoll]":
                yield (process / "fdinfo" / descriptor).read_bytes()


def _names_in(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir()]
    except OSError:  # it has gone, or is not ours to look into
        return []
