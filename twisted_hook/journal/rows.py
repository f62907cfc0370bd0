"""Rows of the journal as values, and what becomes of a row that cannot be read.

It is parked: the whole of it is kept among the parked rows, and what cannot be read in it is replaced in place. So
what refers to it stays good, a repeat of its delivery is told from a new one, and it stops neither the others nor a
start. Works on the connection that it is given and never commits.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from enum import StrEnum
from sqlite3 import Connection, Row
from typing import Any, TypeVar

from msgspec.json import Decoder, encode

from twisted_hook.journal.groupcommit import SOUND_AFTER
from twisted_hook.model import Delivery, Deployment, Outcome, Parked, Phase, Push, Step, Trigger, Verdict

# The columns have the names of the fields of `Delivery` and `Deployment`.
DELIVERY = "SELECT id, hook, guid, event, verdict, reason, pushes, received_at FROM deliveries"
DEPLOYMENT = """SELECT id, app, "trigger", phase, queued_at, attempts, revision, previous, subject, author, "release",
    outcome, reason, started_at, finished_at, superseded_by, wanted, migrated, transient, delivery FROM deployments"""

_STEPS = "SELECT name, command, started_at, seconds, status FROM steps WHERE deployment = ? ORDER BY rowid"
_PHASES = "SELECT phase, at FROM phases WHERE deployment = ? ORDER BY rowid"
_PUSHES = Decoder(tuple[Push, ...])

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)
Value = Callable[[Connection, Row], T]


def public(key: int) -> str:
    """The id for a row's key: hexadecimal digits that sort by time, 13 of them until the year 2112."""
    return f"{key:013x}"


def key_of(id: str) -> int:
    """The row's key behind an id; -1, which no row has, for what never was one."""
    return int(id, 16) if re.fullmatch("[0-9a-f]{13,15}", id) else -1


def deployment(connection: Connection, row: Row) -> Deployment:
    """The value of a row of ``DEPLOYMENT``. Raises ``ValueError`` if the row is damaged."""
    found, key, by = dict(row), (row["id"],), row["superseded_by"]
    found["id"] = public(row["id"])
    found["trigger"] = Trigger(row["trigger"])
    found["phase"] = Phase(row["phase"])
    found["transient"] = bool(row["transient"])
    found["outcome"] = None if row["outcome"] is None else Outcome(row["outcome"])
    found["superseded_by"] = None if by is None else public(by)
    found["delivery"] = None if row["delivery"] is None else public(row["delivery"])
    found["steps"] = tuple(Step(*step) for step in connection.execute(_STEPS, key))
    found["phases"] = tuple((Phase(phase), at) for phase, at in connection.execute(_PHASES, key))
    return Deployment(**found)


def delivery(connection: Connection, row: Row) -> Delivery:
    """The value of a row of ``DELIVERY``. Raises ``ValueError`` if the row is damaged."""
    deployments = connection.execute("SELECT id FROM deployments WHERE delivery = ? ORDER BY id", (row["id"],))
    found = dict(row)
    found["id"] = public(row["id"])
    found["verdict"] = Verdict(row["verdict"])
    found["pushes"] = _PUSHES.decode(row["pushes"])
    found["deployments"] = tuple(public(key) for (key,) in deployments)
    return Delivery(**found)


def read(
    connection: Connection, value: Value[T], sql: str, parameters: tuple[object, ...]
) -> tuple[list[T], list[int]]:
    """What a query finds, and the keys of damaged rows: those must stop neither the others nor a start."""
    good: list[T] = []
    damaged: list[int] = []
    for row in connection.execute(sql, parameters).fetchall():
        try:
            good.append(value(connection, row))
        except ValueError:
            damaged.append(row["id"])
    return good, damaged


class Parking:
    """Reads rows on the writing thread, and parks those that cannot be read."""

    def __init__(self, clock: Callable[[], float], announce: Callable[[Parked], object]) -> None:
        """``announce`` is told of each row, perhaps again if what has begun is not committed."""
        self._clock = clock
        self._announce = announce

    def deployment(self, connection: Connection, key: int) -> Deployment | None:
        return self._sound(connection, deployment, f"{DEPLOYMENT} WHERE id = ?", key)

    def delivery(self, connection: Connection, key: int) -> Delivery | None:
        return self._sound(connection, delivery, f"{DELIVERY} WHERE id = ?", key)

    def sweep(self, connection: Connection) -> None:
        """Park what cannot be read, as far as SQLite can tell; in a transaction of its own, if there is any."""
        deployments, deliveries = _doubtful_deployments(connection), _doubtful_deliveries(connection)
        if not deployments and not deliveries:
            return
        try:
            connection.execute("BEGIN IMMEDIATE")
            for key in deployments:
                self.deployment(connection, key)
            for key in deliveries:
                self.delivery(connection, key)
            connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in SOUND_AFTER:
                raise
            # For want of room or of a turn; they are parked when they are met.
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _sound(self, connection: Connection, value: Value[T], sql: str, key: int) -> T | None:
        row = connection.execute(sql, (key,)).fetchone()
        if row is None:
            return None
        try:
            return value(connection, row)
        except ValueError as error:
            self._park(connection, row, str(error))
            return value(connection, connection.execute(sql, (key,)).fetchone())

    def _park(self, connection: Connection, row: Row, problem: str) -> None:
        key, now, held = row["id"], self._clock(), dict(row)
        kind = "deployment" if "phase" in held else "delivery"
        if kind == "deployment":
            held["phases"] = [tuple(phase) for phase in connection.execute(_PHASES, (key,))]
            held["steps"] = [tuple(step) for step in connection.execute(_STEPS, (key,))]
        parked = Parked(public(key), kind, problem, now, encode(held).decode())
        connection.execute("INSERT INTO parked VALUES (?, ?, ?, ?, ?)", (key, kind, problem, now, parked.row))
        reason = f"its row in the journal could not be read: {problem}"
        if kind == "deployment":
            _mend_deployment(connection, row, now, reason)
        else:
            _mend_delivery(connection, row, reason)
        self._announce(parked)


def _mend_deployment(connection: Connection, row: Row, now: float, reason: str) -> None:
    """End it if it cannot be told to have ended: as one to be tried again, unless it may have half migrated."""
    key = row["id"]
    connection.execute(f"DELETE FROM phases WHERE deployment = ? AND phase NOT IN ({_listed(Phase)})", (key,))
    entered = [phase for phase, _ in connection.execute(_PHASES, (key,))]
    phase = _known(Phase, row["phase"]) or Phase(entered[-1] if entered else Phase.QUEUED)
    cut_off = phase is Phase.MIGRATING and row["migrated"] != row["revision"]
    outcome = _known(Outcome, row["outcome"])
    ended = outcome or (Outcome.INTERRUPTED if cut_off else Outcome.FAILED)
    trigger = _known(Trigger, row["trigger"]) or Trigger.PUSH
    transient = bool(row["transient"]) if outcome else ended is Outcome.FAILED
    sql = """UPDATE deployments SET "trigger" = ?, phase = ?, outcome = ?, transient = ?, reason = ?,
        finished_at = ifnull(finished_at, ?) WHERE id = ?"""
    connection.execute(sql, (trigger, phase, ended, transient, reason, now, key))


def _mend_delivery(connection: Connection, row: Row, reason: str) -> None:
    verdict = _known(Verdict, row["verdict"])
    if verdict is None:
        led = "SELECT 1 FROM deployments WHERE delivery = ?"
        led_somewhere = connection.execute(led, (row["id"],)).fetchone() is not None
        verdict = Verdict.ACCEPTED if led_somewhere else Verdict.IGNORED
    pushes = row["pushes"] if _is_pushes(row["pushes"]) else "[]"
    sql = "UPDATE deliveries SET verdict = ?, pushes = ?, reason = ? WHERE id = ?"
    connection.execute(sql, (verdict, pushes, reason, row["id"]))


def _known(words: type[E], text: Any) -> E | None:
    return words(text) if text in frozenset(words) else None


def _is_pushes(text: str) -> bool:
    try:
        _PUSHES.decode(text)
    except ValueError:
        return False
    return True


def _doubtful_deployments(connection: Connection) -> list[int]:
    triggers, phases, outcomes = map(_listed, (Trigger, Phase, Outcome))
    sql = f"""SELECT id FROM deployments
        WHERE "trigger" NOT IN ({triggers}) OR phase NOT IN ({phases}) OR outcome NOT IN ({outcomes})
        UNION SELECT deployment FROM phases WHERE phase NOT IN ({phases})"""
    return [key for (key,) in connection.execute(sql)]


def _doubtful_deliveries(connection: Connection) -> list[int]:
    """Those whose pushes are JSON, and not of pushes, are left until they are met: to decode them all takes longer."""
    sql = f"SELECT id FROM deliveries WHERE verdict NOT IN ({_listed(Verdict)}) OR NOT json_valid(pushes)"
    return [key for (key,) in connection.execute(sql)]


def _listed(words: type[StrEnum]) -> str:
    return ", ".join(f"'{word}'" for word in words)
