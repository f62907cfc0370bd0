"""Which rows of the journal may go, by age and by count, and how they go.

What has not ended stays; so does what came to something last for each app, by its branch, by a person's choice and by
going back, and what says that a revision was put back or may have been half migrated. What is old is told by the ids,
which grow whatever the clock does: so nothing goes before what it took the place of. Works on the connection that it is
given and never commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Connection

PORTION = 250
"""How many rows of a table go in one transaction, so that no delivery waits long for its turn."""
ASKED_FOR = 30 * 86_400.0
"""Seconds for which it is remembered that a forge was asked to deliver again; longer than any forge lets one ask."""
_FREED = 1_000
"""How many freed pages at most a portion gives back to the file system."""

_MARKS = ", ".join("?" * PORTION)
_BEYOND = "(SELECT id FROM {table} ORDER BY id DESC LIMIT 1 OFFSET ?2)"
_LAST_WORDS = """
    WITH words (app, revision, id, holds) AS (
        SELECT app, revision, id, outcome <> 'deployed' FROM deployments
            WHERE outcome IN ('deployed', 'rolled_back') OR (outcome = 'interrupted' AND phase = 'migrating')
        UNION ALL SELECT app, previous, id, 1 FROM deployments WHERE "trigger" = 'rollback' AND outcome = 'deployed'),
    last_words AS (SELECT max(id) AS id, holds FROM words WHERE revision IS NOT NULL GROUP BY app, revision)
    SELECT id FROM last_words WHERE holds
    UNION SELECT max(id) FROM deployments WHERE outcome NOT IN ('superseded', 'unchanged')
        GROUP BY app, wanted IS NULL, "trigger" = 'rollback'"""


def old_deployments(connection: Connection, before: int, rows: int) -> list[int]:
    """The keys of the deployments that may go, oldest first: those before a key, or beyond the newest so many."""
    sql = f"""SELECT id FROM deployments
        WHERE (id < ?1 OR id <= {_BEYOND.format(table="deployments")})
            AND outcome IS NOT NULL AND id NOT IN ({_LAST_WORDS}) ORDER BY id"""
    return [key for (key,) in connection.execute(sql, (before, rows))]


def old_deliveries(connection: Connection, before: int, rows: int) -> list[int]:
    """The keys of the deliveries that may go: all that they led to has gone."""
    sql = f"""SELECT id FROM deliveries
        WHERE (id < ?1 OR id <= {_BEYOND.format(table="deliveries")})
            AND NOT EXISTS (SELECT 1 FROM deployments WHERE delivery = deliveries.id) ORDER BY id"""
    return [key for (key,) in connection.execute(sql, (before, rows))]


def forget_deployments(connection: Connection, keys: Sequence[int]) -> None:
    """Let go of up to ``PORTION`` of them, and of all that belongs to them."""
    some = _filled(keys)
    connection.execute(f"UPDATE deployments SET superseded_by = NULL WHERE superseded_by IN ({_MARKS})", some)
    for table in ("phases", "steps"):
        connection.execute(f"DELETE FROM {table} WHERE deployment IN ({_MARKS})", some)
    connection.execute(f"DELETE FROM deployments WHERE id IN ({_MARKS})", some)
    _give_back(connection)


def forget_deliveries(connection: Connection, keys: Sequence[int]) -> None:
    """Let go of up to ``PORTION`` of them, but for those that have led to something since they were looked for."""
    sql = f"""DELETE FROM deliveries
        WHERE id IN ({_MARKS}) AND NOT EXISTS (SELECT 1 FROM deployments WHERE delivery = deliveries.id)"""
    connection.execute(sql, _filled(keys))
    _give_back(connection)


def forget_the_rest(connection: Connection, before: float, rows: int, now: float) -> None:
    """Let go of what was parked, by age and by count, and of what a forge was asked for long ago."""
    newest = "SELECT rowid FROM parked ORDER BY rowid DESC LIMIT ?"
    connection.execute(f"DELETE FROM parked WHERE parked_at < ? OR rowid NOT IN ({newest})", (before, rows))
    connection.execute("DELETE FROM asked WHERE asked_at < ?", (now - ASKED_FOR,))


def _filled(keys: Sequence[int]) -> list[int | None]:
    """As many parameters as there are marks, so that each statement is prepared once."""
    return [*keys, *[None] * (PORTION - len(keys))]


def _give_back(connection: Connection) -> None:
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    for _ in range(min(free, _FREED)):
        # One at a time: the statement gives rows without columns, of which Python's sqlite3 takes the first alone.
        connection.execute("PRAGMA incremental_vacuum(1)")
