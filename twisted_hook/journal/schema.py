"""The shape of the journal's file: its version, the way there from earlier ones, and connections ready for use.

Touches the file that it is told to open and never makes one; it knows the tables, and not what their rows mean.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from importlib.resources import files
from pathlib import Path
from sqlite3 import Connection, Row

from twisted_hook.model import JournalUnavailable

SCHEMA_VERSION = 4
_UPGRADES = {
    1: """BEGIN IMMEDIATE;
        ALTER TABLE deployments ADD COLUMN wanted TEXT;
        ALTER TABLE deployments ADD COLUMN migrated TEXT;
        CREATE TABLE steering (app TEXT PRIMARY KEY, paused INTEGER NOT NULL, pinned INTEGER NOT NULL) STRICT;
        PRAGMA user_version = 2;
        COMMIT;""",
    2: """BEGIN IMMEDIATE;
        ALTER TABLE deliveries ADD COLUMN pushes TEXT NOT NULL DEFAULT '[]';
        UPDATE deliveries SET pushes = json_array(json_object('repository', repository, 'ref', ref, 'after', "after"))
            WHERE repository IS NOT NULL AND ref IS NOT NULL;
        ALTER TABLE deliveries DROP COLUMN repository;
        ALTER TABLE deliveries DROP COLUMN ref;
        ALTER TABLE deliveries DROP COLUMN "after";
        ALTER TABLE deployments ADD COLUMN transient INTEGER NOT NULL DEFAULT 0;
        CREATE INDEX deployments_of_revision ON deployments (revision, app) WHERE revision IS NOT NULL;
        CREATE INDEX deployments_back ON deployments (previous, app) WHERE "trigger" = 'rollback';
        CREATE INDEX deployments_superseded ON deployments (superseded_by) WHERE superseded_by IS NOT NULL;
        CREATE TABLE asked (hook TEXT NOT NULL, guid TEXT NOT NULL, asked_at REAL NOT NULL, PRIMARY KEY (hook, guid))
            STRICT;
        CREATE TABLE parked (id INTEGER NOT NULL, kind TEXT NOT NULL, problem TEXT NOT NULL, parked_at REAL NOT NULL,
            "row" TEXT NOT NULL) STRICT;
        PRAGMA user_version = 3;
        COMMIT;""",
    3: """BEGIN IMMEDIATE;
        CREATE TABLE verified (hook TEXT NOT NULL, secret TEXT NOT NULL, at REAL NOT NULL, delivery INTEGER NOT NULL,
            PRIMARY KEY (hook, secret)) STRICT;
        PRAGMA user_version = 4;
        COMMIT;""",
}
"""From each earlier version of the schema to the one after it."""
WAL_LIMIT = 4 * 1024 * 1024
"""Bytes: to this the write-ahead log is cut after a checkpoint, whatever it had grown to."""


class SchemaTooNew(JournalUnavailable):
    """The file was written by a newer hookdeploy; this one leaves it as it is."""


class FileConnection(Connection):
    """A connection that knows which files it has opened, whatever lies at their paths by now."""

    opened: tuple[tuple[int, int] | None, ...] = ()


def identities(path: Path) -> tuple[tuple[int, int] | None, ...]:
    """Which file lies at the path, and which is its write-ahead log; None for one that is not there."""
    name = str(path)
    return _identity(name), _identity(f"{name}-wal")


def _identity(name: str) -> tuple[int, int] | None:
    try:
        found = os.stat(name)  # noqa: PTH116 - for each transaction, and a new `Path` costs more than the call itself
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def connect(
    path: Path, mode: str, busy_timeout: float, prepare: Callable[[Connection], object] = lambda _: None
) -> FileConnection:
    """A connection on which a transaction begins only where we say so. Never makes the file."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=busy_timeout,
        isolation_level=None,
        check_same_thread=False,  # the first one is made by who opens the journal, so that a fault is his to see
        factory=FileConnection,
    )
    with ExitStack() as opened:
        opened.enter_context(closing(connection))
        connection.row_factory = Row
        # A text that is not UTF-8 would fail the whole query, and so all the good rows beside it.
        connection.text_factory = partial(str, encoding="utf-8", errors="replace")
        prepare(connection)
        connection.opened = identities(path)
        opened.pop_all()
    return connection


def version_of(connection: Connection) -> int:
    """The version of its schema, 0 if it has none yet. Raises ``SchemaTooNew``."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise SchemaTooNew(f"its schema has version {version}, and this hookdeploy knows {SCHEMA_VERSION} at most")
    return version


def has_our_tables(connection: Connection) -> bool:
    """Whether each table has the columns that it is to have; the text that says so is part of the file too."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as ours:
        ours.executescript(files("twisted_hook.journal").joinpath("schema.sql").read_text())
        return _columns(ours) <= _columns(connection)


def _columns(connection: Connection) -> set[tuple[object, ...]]:
    sql = """SELECT t.name, c.name, c.type, c."notnull", c.pk
        FROM sqlite_schema AS t, pragma_table_info(t.name) AS c WHERE t.type = 'table'"""
    return {tuple(row) for row in connection.execute(sql)}


def prepare_to_write(connection: Connection) -> None:
    version = version_of(connection)
    if version == 0:
        # Freed pages can be given back only by a file that was made for it.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    # What undoes a statement is else a file in /var/tmp, a new one for each transaction, on a disk that may be full.
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")
    if version == 0:
        connection.executescript(files("twisted_hook.journal").joinpath("schema.sql").read_text())
    for older in range(max(version, 1), SCHEMA_VERSION if version else 0):
        connection.executescript(_UPGRADES[older])
    connection.execute("SELECT 1 FROM deliveries LIMIT 1").fetchone()  # which opens the write-ahead log


def prepare_to_read(connection: Connection) -> None:
    connection.execute("PRAGMA query_only = ON")
    # To have read once holds the write-ahead log open. Were the writer's connection the only one, giving it up after a
    # failed fsync would recover the log, and with it rows that were refused (measured by injecting EIO).
    connection.execute("SELECT 1 FROM deliveries LIMIT 1").fetchone()
