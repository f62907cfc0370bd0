"""The journal: what arrived, what it led to and how that went, in one SQLite file that outlives a kill and a full disk.

Writes share one thread, and those that wait share one commit (group commit), so that a burst costs few fsyncs and a
slow disk never blocks the reactor. Reads have a thread and a read-only connection of their own. Nobody is answered
before the commit. This module never orders by the clock, never imports the reactor, never uses the reactor's threads.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from twisted.logger import Logger

from twisted_hook.boundaries import Journal
from twisted_hook.journal import pruning, statements
from twisted_hook.journal.arrivals import MICROSECONDS, Arrivals
from twisted_hook.journal.file import JournalFile, Renewal, is_damage
from twisted_hook.journal.groupcommit import GroupCommit
from twisted_hook.journal.rows import DELIVERY, DEPLOYMENT, Parking, Value, key_of, read
from twisted_hook.journal.rows import delivery as delivery_of
from twisted_hook.journal.rows import deployment as deployment_of
from twisted_hook.journal.schema import connect, prepare_to_write
from twisted_hook.journal.statements import LAST_ABOUT
from twisted_hook.model import (
    Commit,
    Delivery,
    Deployment,
    JournalUnavailable,
    NewDelivery,
    Outcome,
    Parked,
    Phase,
    Receipt,
    Steering,
    Step,
    Trigger,
    Verified,
)
from twisted_hook.timings import Durations

MOST_ROWS = 1_000
"""The longest list that one call gives."""
T = TypeVar("T")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the block name the file."""
    try:
        yield
    except (OSError, sqlite3.Error, JournalUnavailable) as error:
        kind = type(error) if isinstance(error, JournalUnavailable) else JournalUnavailable
        raise kind(f"{path}: {error}") from error


class SqliteJournal:
    """The journal in a SQLite file. Open it after the process has daemonised: its threads do not survive a fork."""

    log = Logger()

    def __init__(
        self,
        path: Path,
        call_in_reactor: Callable[..., object],
        clock: Callable[[], float],
        busy_timeout: float,
        renewed: Callable[[Path], object],
    ) -> None:
        self._clock = clock
        self._renewed = renewed
        self._parking = Parking(clock, partial(call_in_reactor, self._say_parked))
        self._file = JournalFile(
            path, busy_timeout, partial(call_in_reactor, self._say_renewed), partial(call_in_reactor, self._wake)
        )
        worker = partial(
            GroupCommit,
            call_in_reactor=call_in_reactor,
            is_current=self._file.is_current,
            failed=self._file.suspect,
        )
        self._writer = worker(self._file.to_write, "BEGIN IMMEDIATE")
        self._reader = worker(self._file.to_read, "BEGIN")

    @classmethod
    def open(
        cls,
        path: Path,
        call_in_reactor: Callable[..., object],
        clock: Callable[[], float] = time.time,
        *,
        busy_timeout: float = 1.0,
        renewed: Callable[[Path], object] = lambda _: None,
    ) -> SqliteJournal:
        """Open the file, or make it, and start the threads. Raises ``JournalUnavailable``, naming the path.

        ``call_in_reactor`` is the reactor's ``callFromThread``. ``busy_timeout`` is how many seconds a call waits for a
        lock that another process has on the file. ``renewed`` is called in a later turn of the reactor, so never before
        this returns, whenever another file has taken the place of the journal's, because that was damaged, deleted or
        replaced: with the path at which the former lies, if it lies anywhere. What it held may not all be in the new.
        """
        journal = cls(path, call_in_reactor, clock, busy_timeout, renewed)
        with _naming(path):
            journal._open()
        return journal

    def _open(self) -> None:
        newest = "SELECT max(ifnull((SELECT max(id) FROM deliveries), 0), ifnull((SELECT max(id) FROM deployments), 0))"
        with ExitStack() as opened:
            writing = opened.enter_context(closing(self._file.open()))
            self._parking.sweep(writing)
            (last_key,) = writing.execute(newest).fetchone()
            self._arrivals = Arrivals(self._clock, last_key, self._parking)
            reading = self._file.to_read(None)
            opened.pop_all()
        self._writer.start(writing)
        self._reader.start(reading)

    @staticmethod
    def probe(path: Path) -> None:
        """Open the file if it is there, and close it again, so that a fault is found before any thread is started.

        Damage is no such fault: ``open`` deals with it.
        """
        if not path.exists():
            return
        with _naming(path):
            try:
                connect(path, "rw", 1.0, prepare_to_write).close()
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                if not is_damage(error):
                    raise

    def _wake(self) -> None:
        """Have the writing thread look at the file. What comes of it, others are told."""
        with suppress(JournalUnavailable):
            self._writer.ask(statements.nothing).addErrback(lambda failure: failure.trap(JournalUnavailable) and None)

    def _say_parked(self, parked: Parked) -> None:
        self.log.critical(
            "The journal cannot read {kind} {id}: {problem!r}. What it held is kept: GET /api/v1/parked",
            kind=parked.kind,
            id=parked.id,
            problem=parked.problem,
        )

    def _say_renewed(self, renewal: Renewal) -> None:
        if renewal.rows is None:
            self.log.critical("The file of the journal is another than before: {problem}", problem=renewal.problem)
        else:
            self.log.critical(
                "The file of the journal had to be made anew: {problem}. {rows} of its rows have been carried over;"
                " a pin, a pause or a rollback that is not among them is forgotten."
                " The former file is {aside}, if it is anywhere.",
                problem=renewal.problem,
                aside=str(renewal.aside),
                rows=renewal.rows,
            )
        self._renewed(renewal.aside)

    @property
    def commits(self) -> int:
        """How many transactions have been written; calls that waited together shared one."""
        return self._writer.commits

    @property
    def commit_times(self) -> Durations:
        """How long each of them took to be on disk."""
        return self._writer.commit_times

    async def rows(self) -> Mapping[str, int]:
        """How many rows there are of deployments and of deliveries."""
        return await self._reader.ask(statements.rows)

    async def close(self) -> None:
        """Commit what is queued and end the threads; calls that come later raise ``JournalUnavailable``."""
        await self._reader.stop()
        await self._writer.stop()  # last, so that SQLite folds the write-ahead log into the file

    async def accept(self, delivery: NewDelivery) -> Receipt:
        return await self._writer.ask_together(self._arrivals.accept, delivery)

    async def enqueue(
        self, app: str, trigger: Trigger, wanted: str | None = None, *, delivery: str | None = None, reason: str = ""
    ) -> Deployment:
        if delivery is not None:
            return await self._writer.ask(self._arrivals.replay, app, trigger, wanted, delivery, reason)
        return await self._writer.ask(self._arrivals.enqueue, app, trigger, wanted, None, reason)

    async def begin(self, deployment: str, at: float) -> Deployment:
        return await self._writer.ask(statements.begin, self._parking, deployment, at)

    async def advance(self, deployment: str, phase: Phase, at: float) -> None:
        await self._writer.ask(statements.advance, deployment, phase, at)

    async def describe(self, deployment: str, *, commit: Commit, previous: str | None, release: str | None) -> None:
        await self._writer.ask(statements.describe, deployment, commit, previous, release)

    async def add_step(self, deployment: str, step: Step) -> None:
        await self._writer.ask(statements.add_step, deployment, step)

    async def migrated(self, deployment: str, revision: str) -> None:
        await self._writer.ask(statements.migrated, deployment, revision)

    async def finish(
        self,
        deployment: str,
        outcome: Outcome,
        at: float,
        *,
        reason: str = "",
        transient: bool = False,
    ) -> None:
        await self._writer.ask(statements.finish, deployment, outcome, at, reason, transient)

    async def supersede(self, covered: Mapping[str, str], at: float) -> None:
        await self._writer.ask(statements.supersede, covered, at)

    async def last(self, app: str) -> Deployment | None:
        sql = f"""{DEPLOYMENT} WHERE app = ? AND outcome NOT IN ('superseded', 'unchanged') ORDER BY id DESC LIMIT 1"""
        return next(iter(await self._list(deployment_of, sql, app)), None)

    async def last_about(self, app: str, revision: str) -> Deployment | None:
        sql = f"{DEPLOYMENT} WHERE id = ({LAST_ABOUT})"
        return next(iter(await self._list(deployment_of, sql, app, revision)), None)

    async def decided(self, app: str, revision: str) -> Deployment | None:
        sql = f"""{DEPLOYMENT} WHERE app = ? AND revision = ? AND outcome NOT IN ('superseded', 'unchanged')
            ORDER BY id DESC LIMIT 1"""
        return next(iter(await self._list(deployment_of, sql, app, revision)), None)

    async def last_good(self, app: str, release: str | None = None) -> Deployment | None:
        sql = f"""{DEPLOYMENT} WHERE app = ?1 AND outcome = 'deployed' AND "release" IS ifnull(?2, "release")
            ORDER BY id DESC LIMIT 1"""
        return next(iter(await self._list(deployment_of, sql, app, release)), None)

    async def verified(self) -> Sequence[Verified]:
        return await self._reader.ask(statements.verified)

    async def told_of(self, revision: str) -> bool:
        return await self._reader.ask(statements.told_of, revision)

    async def ask_again(self, hook: str, guid: str, at: float) -> bool:
        return await self._writer.ask(statements.ask_again, hook, guid, at)

    async def steering(self, app: str) -> Steering:
        return await self._reader.ask(statements.steering, app)

    async def steer(self, app: str, steering: Steering) -> None:
        await self._writer.ask(statements.steer, app, steering)

    async def unfinished(self) -> Sequence[Deployment]:
        return await self._list(deployment_of, f"{DEPLOYMENT} WHERE outcome IS NULL ORDER BY id")

    async def deployment(self, id: str) -> Deployment | None:
        return next(iter(await self._list(deployment_of, f"{DEPLOYMENT} WHERE id = ?", key_of(id))), None)

    async def deployments(
        self, *, app: str | None = None, limit: int = 50, before: str | None = None
    ) -> Sequence[Deployment]:
        older = (sys.maxsize if before is None else key_of(before), _at_most(limit))
        if app is None:
            return await self._list(deployment_of, f"{DEPLOYMENT} WHERE id < ? ORDER BY id DESC LIMIT ?", *older)
        sql = f"{DEPLOYMENT} WHERE app = ? AND id < ? ORDER BY id DESC LIMIT ?"
        return await self._list(deployment_of, sql, app, *older)

    async def delivery(self, id: str) -> Delivery | None:
        return next(iter(await self._list(delivery_of, f"{DELIVERY} WHERE id = ?", key_of(id))), None)

    async def deliveries(self, *, limit: int = 50) -> Sequence[Delivery]:
        return await self._list(delivery_of, f"{DELIVERY} ORDER BY id DESC LIMIT ?", _at_most(limit))

    async def parked(self) -> Sequence[Parked]:
        return await self._reader.ask(statements.parked)

    async def prune(self, *, before: float, rows: int) -> None:
        """In portions, each in a transaction of its own, between which the others have their turn."""
        parts = (
            (pruning.old_deployments, pruning.forget_deployments),
            (pruning.old_deliveries, pruning.forget_deliveries),
        )
        for old, forget in parts:
            keys = await self._reader.ask(old, int(before * MICROSECONDS), rows)
            for start in range(0, len(keys), pruning.PORTION):
                await self._writer.ask(forget, keys[start : start + pruning.PORTION])
        await self._writer.ask(pruning.forget_the_rest, before, rows, self._clock())

    async def _list(self, value: Value[T], sql: str, *parameters: object) -> Sequence[T]:
        good, damaged = await self._reader.ask(read, value, sql, parameters)
        if damaged:
            with suppress(JournalUnavailable):  # then they are met again
                await self._writer.ask(statements.park, self._parking, value is deployment_of, damaged)
            good, _ = await self._reader.ask(read, value, sql, parameters)
        return good


def _at_most(limit: int) -> int:
    return max(0, min(limit, MOST_ROWS))


_: type[Journal] = SqliteJournal
