"""Carries over what can still be read of a damaged journal into a new one.

Reads each table from both of its ends up to where it cannot be read; nothing that it finds in the old file makes it
fail. Works on two connections and never touches a path.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from sqlite3 import Connection, Row

# What matters most comes first. The value says whether rows of the same table are told apart by a key of their own.
_TABLES = {
    "steering": True,
    "deployments": True,
    "deliveries": True,
    "asked": True,
    "verified": True,
    "phases": False,
    "steps": False,
    "parked": False,
}
_LOST = "what covered it was lost with a damaged journal"


def carry_over(old: Connection, new: Connection) -> int:
    """Copy all rows that can be read; how many they were. Raises only for what the new file says."""
    new.execute("PRAGMA foreign_keys = OFF")
    new.execute("BEGIN IMMEDIATE")
    rows = sum(_copy(old, new, table) for table in _TABLES)
    _let_go_of_what_is_lost(new)
    new.execute("COMMIT")
    return rows


def _copy(old: Connection, new: Connection, table: str) -> int:
    there = _columns(old, table)
    names = [name for name in _columns(new, table) if name in there]
    if not names:
        return 0
    if not _TABLES[table]:
        names.insert(0, "rowid")
    listed = ", ".join(f'"{name}"' for name in names)
    insert = f"INSERT OR IGNORE INTO {table} ({listed}) VALUES ({', '.join('?' * len(names))})"
    count = 0
    # Along the table itself: an index may be what is damaged.
    for order in ("ASC", "DESC"):
        for row in _readable(old, f"SELECT {listed} FROM {table} NOT INDEXED ORDER BY rowid {order}"):
            if row is None:
                return count
            with suppress(sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.DataError):  # a value that is garbage
                count += new.execute(insert, tuple(row)).rowcount
    return count


def _readable(connection: Connection, sql: str) -> Iterator[Row | None]:
    """The rows up to the first that cannot be read, or all of them and then None."""
    try:
        yield from connection.execute(sql)
    except (sqlite3.Error, MemoryError, OverflowError, UnicodeDecodeError):
        return
    yield None


def _columns(connection: Connection, table: str) -> list[str]:
    return [row["name"] for row in _readable(connection, f"PRAGMA table_info({table})") if row is not None]


def _let_go_of_what_is_lost(new: Connection) -> None:
    """Have no row refer to one that is not there. What was covered by such a one is to be tried again."""
    sql = """UPDATE deployments SET superseded_by = NULL, outcome = 'failed', transient = 1, reason = ?
        WHERE superseded_by NOT IN (SELECT id FROM deployments)"""
    new.execute(sql, (_LOST,))
    new.execute("UPDATE deployments SET delivery = NULL WHERE delivery NOT IN (SELECT id FROM deliveries)")
    for table in ("phases", "steps"):
        new.execute(f"DELETE FROM {table} WHERE deployment NOT IN (SELECT id FROM deployments)")
