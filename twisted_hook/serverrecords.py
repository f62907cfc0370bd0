"""The servers that run, written down on disk, so that the next hookdeploy finds them if this one is killed.

Touches one app's directory of records, and looks into ``/proc``. A record counts only while its process is the same:
a pid alone may belong to somebody else by now, a pid with its start time does not.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from twisted_hook.leftovers import start_time
from twisted_hook.model import Launch

GATE = 6
"""The descriptor of the gate in every server; ``gate.py`` knows the same number."""


@dataclass(frozen=True, slots=True)
class Record:
    """One running server."""

    pid: int
    started: int
    """In ticks since boot; with the pid it names one process for as long as the machine runs."""
    argv: tuple[str, ...]
    bind: str
    launch: Launch
    draining: bool = False


def write(directory: Path, record: Record) -> None:
    """Have it on disk, whole, before this returns."""
    path = _path(directory, record.pid)
    new = path.with_suffix(".new")
    new.touch(mode=0o600)  # it holds the app's environment
    new.write_bytes(msgspec.json.encode(record, enc_hook=str))
    new.replace(path)


def forget(directory: Path, pid: int) -> None:
    _path(directory, pid).unlink(missing_ok=True)


def alive(directory: Path) -> list[Record]:
    """The servers that still run, the oldest first. What is recorded of others is forgotten."""
    found = []
    for path in directory.glob("*.json"):
        record = _read(path)
        if record is not None and start_time(record.pid) == record.started:
            found.append(record)
        else:
            path.unlink(missing_ok=True)
    return sorted(found, key=lambda record: (record.started, record.pid))


def end_all(directory: Path, *, patience: float = 0.0) -> None:
    """Ask every server that still runs to finish its requests and to end, and wait for that so many seconds at most."""
    asked = alive(directory)
    for record in asked:
        with suppress(OSError):
            os.kill(record.pid, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while any(start_time(record.pid) == record.started for record in asked) and time.monotonic() < deadline:
        time.sleep(0.02)
    for record in asked:
        forget(directory, record.pid)


def gate_is_open(pid: int) -> bool:
    """Whether this server was let through its gate, so that it may hold somebody's request."""
    try:
        return Path(f"/proc/{pid}/fd/{GATE}").stat().st_size > 0
    except OSError:
        return False


def _path(directory: Path, pid: int) -> Path:
    return directory / f"{pid}.json"


def _read(path: Path) -> Record | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record, dec_hook=_path_of)
    except (OSError, msgspec.MsgspecError):  # cut off by a crash of the machine, and then the server is gone too
        return None


def _path_of(_: type, value: Any) -> Path:
    return Path(value)
