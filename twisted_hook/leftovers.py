"""Finds and ends the commands that a killed hookdeploy has left running, before anything listens.

Touches processes that an earlier hookdeploy has recorded, and only while they are the same: a pid alone may belong to
somebody else by now, a pid with its start time does not.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from twisted.logger import Logger

PATIENCE = 2.0
"""Seconds that all of them together may take to end by themselves."""

_log = Logger()


def record(path: Path, pid: int) -> None:
    """Write down that this process is ours."""
    started = start_time(pid)
    if started is not None:
        path.write_text(f"{pid} {started}\n")


@contextmanager
def recorded(path: Path, pid: int) -> Iterator[None]:
    """Has it written down, as far as the disk allows, that this command runs."""
    with suppress(OSError):
        record(path, pid)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def end_all(directory: Path) -> None:
    """End every recorded command that is still the same, with its family, and forget the records.

    They are asked first, because git then removes its locks, and killed after ``PATIENCE``.
    """
    with _found(directory) as found:
        for pid in found:
            _log.warn("ending the command {pid} that an earlier hookdeploy has left", pid=pid)
            with suppress(OSError):
                os.killpg(pid, signal.SIGTERM)
        _still_there(found, PATIENCE)
        _kill(found)


def start_time(pid: int) -> int | None:
    """When the process started, in ticks since boot (proc_pid_stat(5), field 22); None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()  # a program's name may be any bytes
    except OSError:
        return None
    return int(stat.rpartition(b")")[2].split()[19])


@contextmanager
def _found(directory: Path) -> Iterator[dict[int, int]]:
    """The recorded processes that are still the same, and descriptors of them.

    Their records are forgotten when they have been dealt with, so that a start that is cut off can be repeated.
    """
    records = list(directory.glob("*.pid"))
    found = {pid: descriptor for pid, descriptor in map(_open, records) if descriptor is not None}
    try:
        yield found
    finally:
        for descriptor in found.values():
            os.close(descriptor)
    for record in records:
        with suppress(OSError):
            record.unlink()


def _open(record: Path) -> tuple[int, int | None]:
    """A descriptor of the recorded process, by which no other can be meant; None if it has gone."""
    try:
        pid, started = map(int, record.read_text().split())
        descriptor = os.pidfd_open(pid)
    except (OSError, ValueError, OverflowError):  # gone, or the record was cut off when hookdeploy was killed
        return 0, None
    if start_time(pid) == started:
        return pid, descriptor
    os.close(descriptor)
    return pid, None


def _kill(found: dict[int, int]) -> None:
    """Kill them with their families, and see them gone."""
    for pid, descriptor in found.items():
        with suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        with suppress(OSError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    _still_there(found, PATIENCE)


def _still_there(found: dict[int, int], patience: float) -> dict[int, int]:
    """Those that have not gone after so many seconds. A descriptor becomes readable at the end (pidfd_open(2))."""
    left, deadline = dict(found), time.monotonic() + patience
    poll = select.poll()
    for descriptor in left.values():
        poll.register(descriptor, select.POLLIN)
    while left and time.monotonic() < deadline:
        for gone, _ in poll.poll(1000 * max(0.0, deadline - time.monotonic())):
            poll.unregister(gone)
            left = {pid: descriptor for pid, descriptor in left.items() if descriptor != gone}
    return left
