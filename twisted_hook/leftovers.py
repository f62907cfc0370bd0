"""Finds and ends what a killed hookdeploy has left running, servers and commands, before anything listens.

Touches processes that an earlier hookdeploy has recorded, and only while they are the same: a pid alone may belong to
somebody else by now, a pid with its start time does not.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from twisted.logger import Logger

PATIENCE = 10.0
"""Seconds that a leftover may take to finish its requests."""

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
    """End every recorded server that is still the same, and forget the records. Blocks for ``PATIENCE`` at most."""
    for pid in _found(directory):
        _log.warn("ending the server {pid} that an earlier hookdeploy has left", pid=pid)
        _end(pid)
    for gate in directory.glob("*.open"):
        gate.unlink()


def kill_all(directory: Path) -> None:
    """Kill every recorded command that is still the same, with its family: nobody waits for what it does."""
    for pid in _found(directory):
        _log.warn("killing the command {pid} that an earlier hookdeploy has left", pid=pid)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        _end(pid)


def _found(directory: Path) -> Iterator[int]:
    """The recorded processes that are still the same. Each record is forgotten as soon as its process is dealt with."""
    for path in directory.glob("*.pid"):
        pid, started = (int(word) for word in path.read_text().split() or ("0", "0"))
        if started and start_time(pid) == started:
            yield pid
        path.unlink()


def start_time(pid: int) -> int | None:
    """When the process started, in ticks since boot (proc_pid_stat(5), field 22); None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def _end(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        gone, _, _ = select.select([descriptor], [], [], PATIENCE)
        if not gone:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            select.select([descriptor], [], [], PATIENCE)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)
