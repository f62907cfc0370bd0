"""The file of the journal at its path: opened, and made anew when it is damaged, gone or replaced under us.

Touches that file and its neighbours by name. One that is damaged is moved aside, never deleted, and what can be read of
it is carried over. Used on the writing and on the reading thread; files are moved by the writing one alone.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection

from twisted_hook.journal.salvage import carry_over
from twisted_hook.journal.schema import (
    FileConnection,
    connect,
    has_our_tables,
    identities,
    prepare_to_read,
    prepare_to_write,
    version_of,
)
from twisted_hook.model import JournalUnavailable

DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
PATIENCE = 5.0
"""Seconds for which a read waits until the writing thread has made a damaged file anew."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """The journal is in another file than before."""

    problem: str
    aside: Path
    """Where the former file lies, or would lie: one that was deleted is nowhere."""
    rows: int | None
    """How many of its rows were carried over; None if it was replaced by somebody, as a whole."""


class JournalFile:
    """The journal's file. ``renewed`` is told, on whatever thread, of each one that took the place of another."""

    def __init__(
        self, path: Path, busy_timeout: float, renewed: Callable[[Renewal], object], wake: Callable[[], object]
    ) -> None:
        """``wake`` is called on whatever thread when the writing one should look at the file."""
        self._path = path.resolve()  # as SQLite does it, which puts the write-ahead log beside what a link means
        self._busy_timeout = busy_timeout
        self._renewed = renewed
        self._wake = wake
        self._problem = ""
        self._untold: Renewal | None = None
        self._written: object = None

    # --- on whatever thread

    def suspect(self, connection: Connection, error: Exception) -> None:
        """Have the file made anew if an error says that it is damaged, and if it is still the one that we have."""
        if is_damage(error) and getattr(connection, "opened", None) == self._written:
            self._problem = str(error)
            self._wake()

    def is_current(self, connection: Connection) -> bool:
        """Whether the connection's files are those at the path, and none is damaged as far as we know."""
        return not self._problem and getattr(connection, "opened", None) == identities(self._path)

    # --- on the writing thread, or before there is any

    def open(self) -> FileConnection:
        """Look through the whole file, or make it. Raises ``OSError``, ``sqlite3.Error`` or ``SchemaTooNew``."""
        fresh = self._beside(".new")
        if fresh.exists() and not self._path.exists():  # we were killed between two renames
            self._put_in_place(fresh, self._aside())
        self._path.touch(mode=0o600)
        self._path.chmod(0o600)
        connection = self.to_write(None)
        try:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found == "ok" and not has_our_tables(connection):
                found = "its tables are not those of a journal"
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if not is_damage(error):
                connection.close()
                raise
            found = str(error)
        if found == "ok":
            return connection
        connection.close()
        self._problem = found
        return self.to_write(None)

    def to_write(self, old: Connection | None) -> FileConnection:
        """A connection to a sound file; ``old`` is the former one, which may know what the path has lost."""
        self._mend(old)
        try:
            connection = connect(self._path, "rw", self._busy_timeout, prepare_to_write)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if not is_damage(error):
                raise
            self._problem = str(error)
            self._mend(None)
            connection = connect(self._path, "rw", self._busy_timeout, prepare_to_write)
        self._written = connection.opened
        if self._untold is not None:
            self._renewed(self._untold)
            self._untold = None
        return connection

    def _mend(self, old: Connection | None) -> None:
        here, was = identities(self._path), getattr(old, "opened", None)
        if self._problem:
            self._renew(None, self._problem)
        elif here[0] is None or (was is not None and here[0] == was[0] and here != was):
            self._renew(old, "it was deleted" if here[0] is None else "its write-ahead log was taken away")
        elif was is not None and here[0] != was[0]:
            aside = self._aside()
            if here[1] in (None, was[1]):  # its log, or else its index of the log, would damage this one
                self._move_away(aside, "-wal", "-shm")
            self._untold = Renewal("it was replaced", aside, None)
        self._problem = ""

    def _renew(self, held: Connection | None, problem: str) -> None:
        """Put a new file at the path, with what ``held`` knows, or else with what can be read of the one there."""
        fresh, aside, rows = self._beside(".new"), self._aside(), 0
        with ExitStack() as opened:
            source = held or self._legible(opened)
            for leftover in (fresh, self._beside(".new-wal"), self._beside(".new-shm")):
                leftover.unlink(missing_ok=True)
            fresh.touch(mode=0o600)
            with closing(connect(fresh, "rw", self._busy_timeout, prepare_to_write)) as new:
                if source is not None:
                    rows = carry_over(source, new)
                # To close it does the same, and does not say that there was no room.
                new.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            # The source is still open: SQLite sees that its file has moved, and does not fold its log into it.
            self._put_in_place(fresh, aside)
        self._untold = Renewal(problem, aside, rows)

    def _put_in_place(self, fresh: Path, aside: Path) -> None:
        # The file goes before its log: one whose log is gone lacks what was acknowledged last, and looks sound.
        self._move_away(aside, "", "-wal", "-shm")
        _sync(self._path.parent)  # nor may a power cut leave the former one's log beside the new file
        fresh.rename(self._path)
        _sync(self._path.parent)

    def _legible(self, opened: ExitStack) -> Connection | None:
        """A connection to the file at the path as it is, if that can be. Raises ``SchemaTooNew``."""
        try:
            source = opened.enter_context(closing(connect(self._path, "rw", self._busy_timeout)))
            version_of(source)
            # Has SQLite pass over what it cannot read of the schema, instead of reading nothing.
            source.execute("PRAGMA writable_schema = ON")
        except (sqlite3.Error, OSError, UnicodeDecodeError):
            return None
        return source

    def _aside(self) -> Path:
        stamp = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
        names = [self._beside(f".damaged-{stamp}{again}") for again in ("", *(f"-{n}" for n in range(2, 1000)))]
        return next(name for name in names if not name.exists())

    def _move_away(self, aside: Path, *endings: str) -> None:
        for ending in endings:
            with suppress(FileNotFoundError):
                self._beside(ending).rename(f"{aside}{ending}")

    def _beside(self, ending: str) -> Path:
        return Path(f"{self._path}{ending}")

    # --- on the reading thread

    def to_read(self, old: Connection | None) -> FileConnection:
        """A read-only connection to the file that the writing thread has, once it has a sound one."""
        deadline = time.monotonic() + PATIENCE
        if identities(self._path) != self._written:
            self._wake()
        while self._problem or identities(self._path) != self._written:
            if time.monotonic() > deadline:
                raise JournalUnavailable(f"{self._path} is not what it was: {self._problem or 'it was taken away'}")
            time.sleep(0.01)
        try:
            return connect(self._path, "ro", self._busy_timeout, prepare_to_read)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if is_damage(error):
                self._problem = str(error)
                self._wake()
            raise


def is_damage(error: Exception) -> bool:
    """Whether SQLite says that the file itself is not as it should be."""
    if isinstance(error, UnicodeDecodeError):  # what SQLite says quotes garbage, and sqlite3 cannot make a text of it
        return True
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in DAMAGE


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
