"""The journal: what arrived, what it led to and how that went, in one SQLite file that outlives a kill and a full disk.

Writes share one thread, and those that wait share one commit (group commit), so that a burst costs few fsyncs and a
slow disk never blocks the reactor. Reads have a thread and a read-only connection of their own. Nobody is answered
before the commit. This module never orders by the clock, never imports the reactor, never uses the reactor's threads.
"""

from __future__ import annotations

import re
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from sqlite3 import Connection, Row
from typing import TypeVar, TypeVarTuple

from twisted.logger import Logger

from twisted_hook.boundaries import Journal
from twisted_hook.groupcommit import GroupCommit
from twisted_hook.model import (
    Commit,
    Delivery,
    Deployment,
    JournalUnavailable,
    NewDelivery,
    Outcome,
    Phase,
    Push,
    Receipt,
    Steering,
    Step,
    Trigger,
    Verdict,
)

SCHEMA_VERSION = 2
_UPGRADES = {
    1: """BEGIN IMMEDIATE;
        ALTER TABLE deployments ADD COLUMN wanted TEXT;
        ALTER TABLE deployments ADD COLUMN migrated TEXT;
        CREATE TABLE steering (app TEXT PRIMARY KEY, paused INTEGER NOT NULL, pinned INTEGER NOT NULL) STRICT;
        PRAGMA user_version = 2;
        COMMIT;""",
}
"""From each earlier version of the schema to the one after it."""
MOST_ROWS = 1_000
"""The longest list that one call gives."""

# The columns have the names of the fields of `Delivery` and `Deployment`.
_DELIVERY = 'SELECT id, hook, guid, event, verdict, reason, repository, ref, "after", received_at FROM deliveries'
_DEPLOYMENT = """SELECT id, app, "trigger", phase, queued_at, attempts, revision, previous, subject, author, "release",
    outcome, reason, started_at, finished_at, superseded_by, wanted, migrated FROM deployments"""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class SchemaTooNew(JournalUnavailable):
    """The file was written by a newer hookdeploy; this one leaves it as it is."""


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the block name the file."""
    try:
        yield
    except (OSError, sqlite3.Error, JournalUnavailable) as error:
        kind = type(error) if isinstance(error, JournalUnavailable) else JournalUnavailable
        raise kind(f"{path}: {error}") from error


def _connect(path: Path, mode: str, busy_timeout: float, prepare: Callable[[Connection], object]) -> Connection:
    """A connection on which a transaction begins only where we say so. Never makes the file."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=busy_timeout,
        isolation_level=None,
        check_same_thread=False,  # the first one is made by who opens the journal, so that a fault is his to see
    )
    with ExitStack() as opened:
        opened.enter_context(closing(connection))
        connection.row_factory = Row
        # A text that is not UTF-8 would fail the whole query, and so all the good rows beside it.
        connection.text_factory = partial(str, encoding="utf-8", errors="replace")
        prepare(connection)
        opened.pop_all()
    return connection


def _prepare_to_write(connection: Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise SchemaTooNew(f"its schema has version {version}, and this hookdeploy knows {SCHEMA_VERSION} at most")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    if version == 0:
        connection.executescript(files("twisted_hook").joinpath("schema.sql").read_text())
    for older in range(max(version, 1), SCHEMA_VERSION if version else 0):
        connection.executescript(_UPGRADES[older])


def _prepare_to_read(connection: Connection) -> None:
    connection.execute("PRAGMA query_only = ON")
    # To have read once holds the write-ahead log open. Were the writer's connection the only one, giving it up after a
    # failed fsync would recover the log, and with it rows that were refused (measured by injecting EIO).
    connection.execute("SELECT 1 FROM deliveries LIMIT 1").fetchone()


def _public(key: int) -> str:
    """The id for a row's key: hexadecimal digits that sort by time, 13 of them until the year 2112."""
    return f"{key:013x}"


def _key(id: str) -> int:
    """The row's key behind an id; -1, which no row has, for what never was one."""
    return int(id, 16) if re.fullmatch("[0-9a-f]{13,15}", id) else -1


def _existing(connection: Connection, id: str) -> int:
    """The key of a deployment that the journal has."""
    key = _key(id)
    if connection.execute("SELECT 1 FROM deployments WHERE id = ?", (key,)).fetchone() is None:
        raise JournalUnavailable(f"there is no deployment {id!r}")
    return key


def _deployment(connection: Connection, row: Row) -> Deployment:
    """The value of a row of ``_DEPLOYMENT``. Raises ``ValueError`` if the row is damaged."""
    found, key, by = dict(row), (row["id"],), row["superseded_by"]
    steps = "SELECT name, command, started_at, seconds, status FROM steps WHERE deployment = ? ORDER BY rowid"
    phases = "SELECT phase, at FROM phases WHERE deployment = ? ORDER BY rowid"
    found["id"] = _public(row["id"])
    found["trigger"] = Trigger(row["trigger"])
    found["phase"] = Phase(row["phase"])
    found["outcome"] = None if row["outcome"] is None else Outcome(row["outcome"])
    found["superseded_by"] = None if by is None else _public(by)
    found["steps"] = tuple(Step(*step) for step in connection.execute(steps, key))
    found["phases"] = tuple((Phase(phase), at) for phase, at in connection.execute(phases, key))
    return Deployment(**found)


def _delivery(connection: Connection, row: Row) -> Delivery:
    """The value of a row of ``_DELIVERY``. Raises ``ValueError`` if the row is damaged."""
    deployments = connection.execute("SELECT id FROM deployments WHERE delivery = ? ORDER BY id", (row["id"],))
    found = dict(row)
    found["id"] = _public(row["id"])
    found["verdict"] = Verdict(row["verdict"])
    found["deployments"] = tuple(_public(key) for (key,) in deployments)
    return Delivery(**found)


def _read(
    connection: Connection, value: Callable[[Connection, Row], T], sql: str, parameters: tuple[object, ...]
) -> tuple[list[T], list[str]]:
    """What a query finds, and what is wrong with each damaged row: that must stop neither the others nor a start."""
    good: list[T] = []
    damaged: list[str] = []
    for row in connection.execute(sql, parameters).fetchall():
        try:
            good.append(value(connection, row))
        except ValueError as error:
            damaged.append(f"{_public(row['id'])}: {error}")
    return good, damaged


def _standing(connection: Connection, delivery: int, app: str) -> Deployment | None:
    """The deployment that stands for a delivery and an app; None if it is to be tried, or tried again."""
    newest = f"{_DEPLOYMENT} WHERE delivery = ? AND app = ? ORDER BY id DESC LIMIT 1"
    row = connection.execute(newest, (delivery, app)).fetchone()
    followed = set()
    while row is not None and row["superseded_by"] is not None and row["id"] not in followed:
        followed.add(row["id"])
        row = connection.execute(f"{_DEPLOYMENT} WHERE id = ?", (row["superseded_by"],)).fetchone()
    try:
        deployment = None if row is None else _deployment(connection, row)
    except ValueError:  # damaged: nobody will ever work on it
        return None
    failed = deployment is not None and deployment.outcome in {Outcome.FAILED, Outcome.INTERRUPTED}
    return None if failed else deployment


class _Arrivals:
    """What makes new rows, on the writing thread: there, and there alone, ids are made."""

    def __init__(self, clock: Callable[[], float], last_key: int) -> None:
        self._clock = clock
        self._last_key = last_key

    def _next_key(self) -> int:
        """Microseconds since the epoch, or one more than the last key: it grows, whatever the clock does."""
        self._last_key = max(self._last_key + 1, int(self._clock() * 1_000_000))
        return self._last_key

    def enqueue(
        self,
        connection: Connection,
        app: str,
        trigger: Trigger,
        wanted: str | None = None,
        delivery: int | None = None,
    ) -> Deployment:
        key, now = self._next_key(), self._clock()
        sql = 'INSERT INTO deployments (id, app, "trigger", queued_at, wanted, delivery) VALUES (?, ?, ?, ?, ?, ?)'
        connection.execute(sql, (key, app, trigger, now, wanted, delivery))
        return Deployment(_public(key), app, trigger, Phase.QUEUED, now, wanted=wanted)

    def accept(self, connection: Connection, new: NewDelivery) -> Receipt:
        key, event = self._next_key(), new.message.event
        verdict = Verdict.ACCEPTED if new.apps else Verdict.IGNORED
        about = (event.repository, event.ref, event.after) if isinstance(event, Push) else (None, None, None)
        named = (new.hook, new.message.guid, new.digest, new.message.name)
        sql = """INSERT INTO deliveries
            (id, hook, guid, digest, event, verdict, reason, repository, ref, "after", received_at)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"""
        if not connection.execute(sql, (key, *named, verdict, new.reason, *about, new.received_at)).rowcount:
            return self._accept_again(connection, new)
        queued = tuple(self.enqueue(connection, app, Trigger.PUSH, delivery=key) for app in new.apps)
        return Receipt(verdict, _public(key), queued, queued)

    def _accept_again(self, connection: Connection, new: NewDelivery) -> Receipt:
        # The hash of the body speaks first: the forge signs the body, and not the id.
        sql = """SELECT id, verdict FROM deliveries WHERE hook = ?1 AND (digest = ?2 OR guid = ?3)
            ORDER BY digest = ?2 DESC LIMIT 1"""
        key, verdict = connection.execute(sql, (new.hook, new.digest, new.message.guid)).fetchone()
        if verdict == Verdict.IGNORED and not new.apps:
            return Receipt(Verdict.IGNORED, _public(key), (), ())
        deployments, queued = [], []
        for app in new.apps:
            deployment = _standing(connection, key, app)
            if deployment is None:
                deployment = self.enqueue(connection, app, Trigger.PUSH, delivery=key)
                queued.append(deployment)
            deployments.append(deployment)
        answer = Verdict.DUPLICATE
        if verdict == Verdict.IGNORED:  # the configuration has changed since: now it is for somebody
            answer = Verdict.ACCEPTED
            connection.execute("UPDATE deliveries SET verdict = ?, reason = ? WHERE id = ?", (answer, new.reason, key))
        return Receipt(answer, _public(key), tuple(deployments), tuple(queued))


def _begin(connection: Connection, id: str, at: float) -> Deployment:
    key = _existing(connection, id)
    sql = """UPDATE deployments SET attempts = attempts + 1, started_at = ?,
        phase = iif(phase = 'migrating' AND migrated IS NOT revision, phase, 'queued')
        WHERE id = ? AND outcome IS NULL RETURNING phase"""
    begun = connection.execute(sql, (at, key)).fetchone()
    if begun is not None and begun["phase"] == Phase.QUEUED:
        connection.execute("DELETE FROM phases WHERE deployment = ?", (key,))
        connection.execute("DELETE FROM steps WHERE deployment = ?", (key,))
    return _deployment(connection, connection.execute(f"{_DEPLOYMENT} WHERE id = ?", (key,)).fetchone())


def _advance(connection: Connection, id: str, phase: Phase, at: float) -> None:
    key = _existing(connection, id)
    connection.execute("UPDATE deployments SET phase = ? WHERE id = ?", (phase, key))
    connection.execute("INSERT INTO phases (deployment, phase, at) VALUES (?, ?, ?)", (key, phase, at))


def _describe(connection: Connection, id: str, commit: Commit, previous: str | None, release: str | None) -> None:
    key = _existing(connection, id)
    sql = 'UPDATE deployments SET revision = ?, subject = ?, author = ?, previous = ?, "release" = ? WHERE id = ?'
    connection.execute(sql, (commit.revision, commit.subject, commit.author, previous, release, key))


def _add_step(connection: Connection, id: str, step: Step) -> None:
    key = _existing(connection, id)
    sql = "INSERT INTO steps (deployment, name, command, started_at, seconds, status) VALUES (?, ?, ?, ?, ?, ?)"
    connection.execute(sql, (key, step.name, step.command, step.started_at, step.seconds, step.status))


def _migrated(connection: Connection, id: str, revision: str) -> None:
    connection.execute("UPDATE deployments SET migrated = ? WHERE id = ?", (revision, _existing(connection, id)))


def _steer(connection: Connection, app: str, steering: Steering) -> None:
    sql = "INSERT INTO steering VALUES (?1, ?2, ?3) ON CONFLICT (app) DO UPDATE SET paused = ?2, pinned = ?3"
    connection.execute(sql, (app, steering.paused, steering.pinned))


def _steering(connection: Connection, app: str) -> Steering:
    row = connection.execute("SELECT paused, pinned FROM steering WHERE app = ?", (app,)).fetchone()
    return Steering() if row is None else Steering(bool(row["paused"]), bool(row["pinned"]))


def _finish(
    connection: Connection, id: str, outcome: Outcome, at: float, reason: str, superseded_by: str | None
) -> None:
    key = _existing(connection, id)
    by = None if superseded_by is None else _existing(connection, superseded_by)
    sql = """UPDATE deployments SET outcome = ?, finished_at = ?, reason = ?, superseded_by = ?
        WHERE id = ? AND outcome IS NULL"""
    connection.execute(sql, (outcome, at, reason, by, key))


class SqliteJournal:
    """The journal in a SQLite file. Open it after the process has daemonised: its threads do not survive a fork."""

    log = Logger()

    def __init__(self, writer: GroupCommit, reader: GroupCommit, arrivals: _Arrivals) -> None:
        self._writer = writer
        self._reader = reader
        self._arrivals = arrivals

    @classmethod
    def open(
        cls,
        path: Path,
        call_in_reactor: Callable[..., object],
        clock: Callable[[], float] = time.time,
        *,
        busy_timeout: float = 1.0,
    ) -> SqliteJournal:
        """Open the file, or make it, and start the threads. Raises ``JournalUnavailable``, naming the path.

        ``call_in_reactor`` is the reactor's ``callFromThread``. ``busy_timeout`` is how many seconds a call waits for a
        lock that another process has on the file.
        """
        to_write = partial(_connect, path, "rw", busy_timeout, _prepare_to_write)
        to_read = partial(_connect, path, "ro", busy_timeout, _prepare_to_read)
        newest = "SELECT max(ifnull((SELECT max(id) FROM deliveries), 0), ifnull((SELECT max(id) FROM deployments), 0))"
        with _naming(path), ExitStack() as opened:
            path.touch(mode=0o600)
            path.chmod(0o600)
            writing = opened.enter_context(closing(to_write()))
            (last_key,) = writing.execute(newest).fetchone()
            reading = to_read()
            opened.pop_all()
        writer = GroupCommit(to_write, "BEGIN IMMEDIATE", call_in_reactor)
        reader = GroupCommit(to_read, "BEGIN", call_in_reactor)
        writer.start(writing)
        reader.start(reading)
        return cls(writer, reader, _Arrivals(clock, last_key))

    @staticmethod
    def probe(path: Path) -> None:
        """Open the file if it is there, and close it again, so that a fault is found before any thread is started."""
        if path.exists():
            with _naming(path), closing(_connect(path, "rw", 1.0, _prepare_to_write)):
                pass

    @property
    def commits(self) -> int:
        """How many transactions have been written; calls that waited together shared one."""
        return self._writer.commits

    async def close(self) -> None:
        """Commit what is queued and end the threads; calls that come later raise ``JournalUnavailable``."""
        await self._reader.stop()
        await self._writer.stop()  # last, so that SQLite folds the write-ahead log into the file

    async def accept(self, delivery: NewDelivery) -> Receipt:
        return await self._writer.ask(self._arrivals.accept, delivery)

    async def enqueue(self, app: str, trigger: Trigger, wanted: str | None = None) -> Deployment:
        return await self._writer.ask(self._arrivals.enqueue, app, trigger, wanted)

    async def begin(self, deployment: str, at: float) -> Deployment:
        return await self._writer.ask(_begin, deployment, at)

    async def advance(self, deployment: str, phase: Phase, at: float) -> None:
        await self._writer.ask(_advance, deployment, phase, at)

    async def describe(self, deployment: str, *, commit: Commit, previous: str | None, release: str | None) -> None:
        await self._writer.ask(_describe, deployment, commit, previous, release)

    async def add_step(self, deployment: str, step: Step) -> None:
        await self._writer.ask(_add_step, deployment, step)

    async def migrated(self, deployment: str, revision: str) -> None:
        await self._writer.ask(_migrated, deployment, revision)

    async def finish(
        self, deployment: str, outcome: Outcome, at: float, *, reason: str = "", superseded_by: str | None = None
    ) -> None:
        await self._writer.ask(_finish, deployment, outcome, at, reason, superseded_by)

    async def last(self, app: str) -> Deployment | None:
        sql = f"""{_DEPLOYMENT} WHERE app = ? AND outcome NOT IN ('superseded', 'unchanged') ORDER BY id DESC LIMIT 1"""
        return next(iter(await self._list(_deployment, sql, app)), None)

    async def last_about(self, app: str, revision: str) -> Deployment | None:
        served = "revision = ?2 AND outcome IN ('deployed', 'rolled_back')"
        cut_off = "revision = ?2 AND outcome = 'interrupted' AND phase = 'migrating'"
        took_back = "\"trigger\" = 'rollback' AND outcome = 'deployed' AND previous = ?2"
        sql = f"{_DEPLOYMENT} WHERE app = ?1 AND (({served}) OR ({cut_off}) OR ({took_back})) ORDER BY id DESC LIMIT 1"
        return next(iter(await self._list(_deployment, sql, app, revision)), None)

    async def steering(self, app: str) -> Steering:
        return await self._reader.ask(_steering, app)

    async def steer(self, app: str, steering: Steering) -> None:
        await self._writer.ask(_steer, app, steering)

    async def unfinished(self) -> Sequence[Deployment]:
        return await self._list(_deployment, f"{_DEPLOYMENT} WHERE outcome IS NULL ORDER BY id")

    async def deployment(self, id: str) -> Deployment | None:
        return next(iter(await self._list(_deployment, f"{_DEPLOYMENT} WHERE id = ?", _key(id))), None)

    async def deployments(
        self, *, app: str | None = None, limit: int = 50, before: str | None = None
    ) -> Sequence[Deployment]:
        older = (sys.maxsize if before is None else _key(before), _at_most(limit))
        if app is None:
            return await self._list(_deployment, f"{_DEPLOYMENT} WHERE id < ? ORDER BY id DESC LIMIT ?", *older)
        sql = f"{_DEPLOYMENT} WHERE app = ? AND id < ? ORDER BY id DESC LIMIT ?"
        return await self._list(_deployment, sql, app, *older)

    async def delivery(self, id: str) -> Delivery | None:
        return next(iter(await self._list(_delivery, f"{_DELIVERY} WHERE id = ?", _key(id))), None)

    async def deliveries(self, *, limit: int = 50) -> Sequence[Delivery]:
        return await self._list(_delivery, f"{_DELIVERY} ORDER BY id DESC LIMIT ?", _at_most(limit))

    async def _list(self, value: Callable[[Connection, Row], T], sql: str, *parameters: object) -> Sequence[T]:
        good, damaged = await self._reader.ask(_read, value, sql, parameters)
        for row in damaged:
            self.log.error("The journal leaves a damaged row aside: {row!r}", row=row)
        return good


def _at_most(limit: int) -> int:
    return max(0, min(limit, MOST_ROWS))


_: type[Journal] = SqliteJournal
