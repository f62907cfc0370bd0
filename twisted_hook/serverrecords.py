"""The servers that run, written down on disk, so that the next hookdeploy finds them if this one is killed.

Touches one app's directory of records, and looks into ``/proc``. A record counts only while its process is the same:
a pid alone may belong to somebody else by now, a pid with its start time does not.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from twisted_hook.leftovers import start_time
from twisted_hook.model import Launch

GATE = 6
"""The descriptor of the gate in every server that has one; ``gate.py`` knows the same number."""
GATE_NAME = "gate"
"""What the kernel calls it."""


KILLED = 2.0
"""Seconds that one that was killed may take to go."""


class State(StrEnum):
    """How far a server has come."""

    CANDIDATE = "candidate"
    """It waits at its gate, or has just passed it."""
    PROBATION = "probation"
    """It serves beside another one, and has not proven itself."""
    SERVING = "serving"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Record:
    """One running server."""

    pid: int
    started: int
    """In ticks since boot; with the pid it names one process for as long as the machine runs."""
    argv: tuple[str, ...]
    bind: str
    launch: Launch
    state: State = State.SERVING
    user: str | None = None
    """The account that it runs as, if not ours."""


def write(directory: Path, record: Record) -> None:
    """Have it on disk, whole, before this returns."""
    path = _path(directory, record.pid)
    new = path.with_suffix(".new")
    new.touch(mode=0o600)  # it holds the app's environment
    new.write_bytes(msgspec.json.encode(record, enc_hook=str))
    new.replace(path)


def forget(directory: Path, pid: int) -> None:
    """A record that cannot be removed does no harm: nothing runs any more that it could name."""
    with suppress(OSError):
        _path(directory, pid).unlink()


def alive(directory: Path) -> list[Record]:
    """The servers that still run, the oldest first. What is recorded of others is forgotten."""
    found = []
    for path in directory.glob("*.json"):
        record = running(path)
        if record is not None:
            found.append(record)
        else:
            with suppress(OSError):  # as in ``forget``
                path.unlink()
    return sorted(found, key=lambda record: (record.started, record.pid))


def running(path: Path) -> Record | None:
    """What this file records, if that server still runs. Changes nothing."""
    record = _read(path)
    return record if record is not None and start_time(record.pid) == record.started else None


def end_all(directory: Path, *, patience: float = 0.0) -> None:
    """Ask every server that still runs to finish its requests and to end.

    With ``patience``, wait for that so many seconds at most, and kill what is left.
    """
    asked = alive(directory)
    for record in asked:
        with suppress(OSError):
            os.kill(record.pid, signal.SIGTERM)
    left = _still_there(asked, patience)
    if patience and left:
        for record in left:
            with suppress(OSError):
                os.killpg(record.pid, signal.SIGKILL)
        _still_there(left, KILLED)
    for record in asked:
        forget(directory, record.pid)


def _still_there(records: Sequence[Record], patience: float) -> list[Record]:
    """Those that have not gone after so many seconds."""
    left, deadline = list(records), time.monotonic() + patience
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = [record for record in left if start_time(record.pid) == record.started]
    return left


def gate_is_shut(pid: int) -> bool:
    """Whether this server waits at its gate, so that it cannot hold anybody's request."""
    gate = Path(f"/proc/{pid}/fd/{GATE}")
    try:
        return gate.readlink().name.startswith(f"memfd:{GATE_NAME}") and gate.stat().st_size == 0
    except OSError:
        return False


def to_serve(records: Sequence[Record]) -> Record | None:
    """Which of those that run, the oldest first, is to serve on: the newest that did.

    If none did, the newest that has met requests but not proven itself: all the others have gone.
    """
    for states in ({State.SERVING}, {State.CANDIDATE, State.PROBATION}):
        for record in reversed(records):
            if record.state in states:
                return record
    return None


def _path(directory: Path, pid: int) -> Path:
    return directory / f"{pid}.json"


def _read(path: Path) -> Record | None:
    try:
        return _DECODER.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError):  # cut off by a crash of the machine, and then the server is gone too
        return None


def _path_of(_: type, value: Any) -> Path:
    return Path(value)


# Made once: two threads that both learn what a Record is, as the checks of doctor would, crash in msgspec.
_DECODER = msgspec.json.Decoder(Record, dec_hook=_path_of)
