"""What is written and read of deployments and of how apps are held back: one function a call of the journal.

Each runs within a transaction that somebody else begins and ends, on a thread of the journal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from sqlite3 import Connection

from msgspec.json import encode

from twisted_hook.journal.arrivals import write_rows
from twisted_hook.journal.rows import Parking, key_of, public
from twisted_hook.model import (
    Commit,
    Deployment,
    NoSuchRow,
    Outcome,
    Parked,
    Phase,
    Steering,
    Step,
    Verified,
)

# Whoever asks what has become of a push is not to follow a thousand others.
COVER = """UPDATE deployments SET superseded_by = ?1 WHERE id IN (
    WITH RECURSIVE covered (id) AS (
        SELECT id FROM deployments WHERE superseded_by = ?1
        UNION SELECT deployments.id FROM deployments JOIN covered ON superseded_by = covered.id
    ) SELECT id FROM covered)"""

LAST_ABOUT = """SELECT max(id) FROM (
    SELECT id FROM deployments WHERE app = ?1 AND revision = ?2
        AND (outcome IN ('deployed', 'rolled_back') OR (outcome = 'interrupted' AND phase = 'migrating'))
    UNION ALL SELECT id FROM deployments
        WHERE app = ?1 AND previous = ?2 AND "trigger" = 'rollback' AND outcome = 'deployed')"""


def _existing(connection: Connection, id: str) -> int:
    """The key of a deployment that the journal has."""
    key = key_of(id)
    if connection.execute("SELECT 1 FROM deployments WHERE id = ?", (key,)).fetchone() is None:
        raise NoSuchRow(f"there is no deployment {id!r}")
    return key


def begin(connection: Connection, parking: Parking, id: str, at: float) -> Deployment:
    key = key_of(_sound(connection, parking, id).id)  # before anything of it is written over
    sql = """UPDATE deployments SET attempts = attempts + 1, started_at = ?,
        phase = iif(phase = 'migrating' AND migrated IS NOT revision, phase, 'queued')
        WHERE id = ? AND outcome IS NULL RETURNING phase"""
    begun = connection.execute(sql, (at, key)).fetchone()
    if begun is not None and begun["phase"] == Phase.QUEUED:
        connection.execute("DELETE FROM phases WHERE deployment = ?", (key,))
        connection.execute("DELETE FROM steps WHERE deployment = ?", (key,))
    connection.execute(COVER, (key,))
    return _sound(connection, parking, id)


def _sound(connection: Connection, parking: Parking, id: str) -> Deployment:
    deployment = parking.deployment(connection, key_of(id))
    if deployment is None:
        raise NoSuchRow(f"there is no deployment {id!r}")
    return deployment


def advance(connection: Connection, id: str, phase: Phase, at: float) -> None:
    key = _existing(connection, id)
    connection.execute("UPDATE deployments SET phase = ? WHERE id = ?", (phase, key))
    connection.execute("INSERT INTO phases (deployment, phase, at) VALUES (?, ?, ?)", (key, phase, at))


def describe(connection: Connection, id: str, commit: Commit, previous: str | None, release: str | None) -> None:
    key = _existing(connection, id)
    sql = 'UPDATE deployments SET revision = ?, subject = ?, author = ?, previous = ?, "release" = ? WHERE id = ?'
    connection.execute(sql, (commit.revision, commit.subject, commit.author, previous, release, key))


def add_step(connection: Connection, id: str, step: Step) -> None:
    key = _existing(connection, id)
    sql = "INSERT INTO steps (deployment, name, command, started_at, seconds, status) VALUES (?, ?, ?, ?, ?, ?)"
    connection.execute(sql, (key, step.name, step.command, step.started_at, step.seconds, step.status))


def migrated(connection: Connection, id: str, revision: str) -> None:
    connection.execute("UPDATE deployments SET migrated = ? WHERE id = ?", (revision, _existing(connection, id)))


def steer(connection: Connection, app: str, steering: Steering) -> None:
    sql = "INSERT INTO steering VALUES (?1, ?2, ?3) ON CONFLICT (app) DO UPDATE SET paused = ?2, pinned = ?3"
    connection.execute(sql, (app, steering.paused, steering.pinned))


def steering(connection: Connection, app: str) -> Steering:
    row = connection.execute("SELECT paused, pinned FROM steering WHERE app = ?", (app,)).fetchone()
    return Steering() if row is None else Steering(bool(row["paused"]), bool(row["pinned"]))


def finish(connection: Connection, id: str, outcome: Outcome, at: float, reason: str, transient: bool) -> None:
    sql = """UPDATE deployments SET outcome = ?1, finished_at = ?2, reason = iif(?3 = '', reason, ?3), transient = ?4
        WHERE id = ?5 AND outcome IS NULL"""
    connection.execute(sql, (outcome, at, reason, transient, _existing(connection, id)))


def supersede(connection: Connection, covered: Mapping[str, str], at: float) -> None:
    sql = """UPDATE deployments SET outcome = 'superseded', finished_at = column3,
        superseded_by = (SELECT id FROM deployments WHERE id = column2)
        FROM (VALUES {rows}) WHERE id = column1 AND outcome IS NULL"""
    write_rows(connection, sql, [(key_of(one), key_of(by), at) for one, by in covered.items()])


def ask_again(connection: Connection, hook: str, guid: str, at: float) -> bool:
    sql = """INSERT INTO asked SELECT ?1, ?2, ?3
        WHERE NOT EXISTS (SELECT 1 FROM deliveries WHERE hook = ?1 AND guid = ?2) ON CONFLICT DO NOTHING"""
    return bool(connection.execute(sql, (hook, guid, at)).rowcount)


def verified(connection: Connection) -> list[Verified]:
    rows = connection.execute("SELECT hook, secret, at, delivery FROM verified ORDER BY at DESC")
    return [Verified(hook, secret, at, public(key)) for hook, secret, at, key in rows]


def told_of(connection: Connection, revision: str) -> bool:
    # The text is what JSON makes of this field, and of nothing else: quotes in a value are escaped. It has no
    # index, for which each delivery would pay: 10 000 are looked through in 3 ms, once for a branch that moved.
    sql = "SELECT 1 FROM deliveries WHERE instr(pushes, ?) ORDER BY id DESC LIMIT 1"
    return connection.execute(sql, (f'"after":{encode(revision).decode()}',)).fetchone() is not None


def parked(connection: Connection) -> list[Parked]:
    sql = 'SELECT id, kind, problem, parked_at, "row" FROM parked ORDER BY parked_at DESC, id DESC'
    return [Parked(public(row["id"]), *tuple(row)[1:]) for row in connection.execute(sql)]


def nothing(connection: Connection) -> None:
    """For a transaction whose beginning is what is wanted."""


def rows(connection: Connection) -> dict[str, int]:
    """How many there are in each of the tables that grow."""
    tables = ("deployments", "deliveries", "parked")
    return {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


def park(connection: Connection, parking: Parking, of_deployments: bool, keys: Sequence[int]) -> None:
    look = parking.deployment if of_deployments else parking.delivery
    for key in keys:
        look(connection, key)
