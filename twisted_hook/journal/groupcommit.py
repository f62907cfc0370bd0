"""A thread with a SQLite connection that runs all the calls that wait in one transaction and commits once.

That is group commit: a burst costs few fsyncs, a slow disk never blocks the reactor, and nobody is answered before the
commit. Touches one connection; it does not know what the calls do, and never uses the reactor's own threads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from queue import SimpleQueue
from sqlite3 import Connection
from threading import Thread
from time import perf_counter
from typing import Any, TypeVar, TypeVarTuple

from twisted.internet.defer import Deferred

from twisted_hook.model import JournalUnavailable
from twisted_hook.timings import MOMENTS, Durations

BACKLOG = 10_000
"""How many calls may wait for one thread; one more is refused at once."""

_ONE_BAD_WRITE = (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError)
"""What SQLite says of one write; all else that it says concerns the file, and so everybody in the transaction."""
_OF_THE_FILE = (sqlite3.Error, MemoryError, UnicodeDecodeError)
"""The last where SQLite's own words quote garbage that it has found."""
SOUND_AFTER = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL)
"""Errors after which a connection is as good as before, if SQLite has ended the transaction."""

A = TypeVar("A")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class GroupCommit:
    """A thread and its connection: it takes all the calls that wait, runs them in one transaction, and commits once."""

    def __init__(
        self,
        connect: Callable[[Connection | None], Connection],
        begin: str,
        call_in_reactor: Callable[..., object],
        *,
        is_current: Callable[[Connection], bool],
        failed: Callable[[Connection, Exception], object],
    ) -> None:
        """``connect`` is given the connection that is current no more, if there is one, and does not close it.

        ``is_current`` is asked before each transaction, and ``failed`` told why one could not be; all on the thread.
        """
        self.commits = 0
        self.commit_times = Durations(MOMENTS)
        """Seconds of each, noted on the thread."""
        self._connect = connect
        self._begin = begin
        self._is_current = is_current
        self._failed = failed
        self._call_in_reactor = call_in_reactor
        self._connection: Connection | None = None
        self._asked: list[Any] = []
        """What was asked in this turn of the reactor."""
        self._waiting = 0
        """How many calls wait for their answers."""
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._stopping = self._ended = False
        self._waiting_for_end: list[Deferred[None]] = []
        # A daemon: a start that fails half-way must not keep the process. What was queued was promised to nobody yet.
        self._thread = Thread(target=self._work, name="journal", daemon=True)

    def start(self, connection: Connection) -> None:
        self._connection = connection
        self._thread.start()

    def ask(self, work: Callable[[Connection, *Ts], T], *args: *Ts) -> Deferred[T]:
        """Have ``work(connection, *args)`` done on the thread; the result comes once it is committed."""
        return self._enqueue(_one_by_one, (work, args))

    def ask_together(self, work: Callable[[Connection, Sequence[A]], Sequence[T]], arg: A) -> Deferred[T]:
        """Have ``work`` done on this and on all that was asked of it right before and after; one result for each.

        Python gives up the GIL at every statement, and has to win it back from the reactor: so fewer statements.
        """
        return self._enqueue(work, arg)

    def _enqueue(self, work: Callable[[Connection, Sequence[Any]], Sequence[T]], arg: object) -> Deferred[T]:
        if self._stopping:
            raise JournalUnavailable("the journal is closed")
        if self._waiting >= BACKLOG:
            raise JournalUnavailable(f"{BACKLOG} calls wait for the journal already")
        if not self._asked:
            self._call_in_reactor(self._hand_over)
        waiter: Deferred[T] = Deferred()  # a cancelled one swallows the result that comes later
        self._asked.append((waiter, work, arg))
        self._waiting += 1
        return waiter

    def _hand_over(self) -> None:
        """Give the thread all that a turn of the reactor has asked: one by one they would contend for the GIL."""
        if self._asked:
            self._queue.put(self._asked)
            self._asked = []

    async def stop(self) -> None:
        """Do what is queued, close the connection and end the thread."""
        if not self._stopping:
            self._stopping = True
            self._hand_over()
            self._queue.put(None)
        if not self._ended:
            waiter: Deferred[None] = Deferred()
            self._waiting_for_end.append(waiter)
            await waiter
        self._thread.join()

    def _work(self) -> None:
        asked = self._queue.get()
        while asked is not None:
            batch = list(asked)
            while not self._queue.empty() and asked is not None:  # nothing is queued after None, the sign to stop
                asked = self._queue.get()
                batch += asked or ()
            self._call_in_reactor(self._answer, batch, self._transact(batch))
            asked = asked and self._queue.get()
        self._disconnect()
        self._call_in_reactor(self._announce_end)

    def _transact(self, batch: Sequence[Any]) -> list[Any]:
        """The results of a batch, which are on disk, or one failure for all of it."""
        try:
            connection = self._current()
        except Exception as error:  # noqa: BLE001 - as below; what we have is kept, it may know what the file has lost
            return [_unavailable(error) for _ in batch]
        try:
            connection.execute(self._begin)
            results = _run_all(connection, batch, self._begin)
            begun = perf_counter()
            connection.execute("COMMIT")
            self.commit_times.note(perf_counter() - begun)
        except Exception as error:  # noqa: BLE001 - whatever it is, each of them is told, and the thread lives on
            self._recover(error)
            return [_unavailable(error) for _ in batch]
        self.commits += 1
        return results

    def _current(self) -> Connection:
        old = self._connection
        if old is not None and self._is_current(old):
            return old
        self._connection = self._connect(old)
        if old is not None:
            old.close()
        return self._connection

    def _recover(self, error: Exception) -> None:
        """Give the connection up, and with it what it has begun, unless it is surely as good as before."""
        if self._connection is None:
            return
        self._failed(self._connection, error)
        if self._connection.in_transaction or _code(error) not in SOUND_AFTER:
            self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _answer(self, batch: Sequence[Any], results: Sequence[Any]) -> None:
        self._waiting -= len(batch)
        for (waiter, _, _), result in zip(batch, results, strict=True):
            if isinstance(result, JournalUnavailable):
                waiter.errback(result)
            else:
                waiter.callback(result)

    def _announce_end(self) -> None:
        self._ended = True
        for waiter in self._waiting_for_end:
            waiter.callback(None)


def _one_by_one(connection: Connection, calls: Sequence[Any]) -> list[Any]:
    return [work(connection, *args) for work, args in calls]


def _run_all(connection: Connection, batch: Sequence[Any], begin: str) -> list[Any]:
    """The results of all calls. Only where one has failed is each run again by itself, with a savepoint of its own."""
    results: list[Any] = []
    try:
        for work, calls in groupby(batch, itemgetter(1)):
            results += work(connection, [arg for _, _, arg in calls])
    except Exception as error:
        if _concerns_all(error):
            raise
        connection.execute("ROLLBACK")
        connection.execute(begin)
        return [_run(connection, work, arg) for _, work, arg in batch]
    return results


def _run(connection: Connection, work: Callable[[Connection, Sequence[Any]], Sequence[T]], arg: object) -> object:
    """The result of one call, or a failure that is its own: the others in the transaction stand."""
    connection.execute("SAVEPOINT one")
    try:
        [result] = work(connection, [arg])
    except Exception as error:  # any at all: a bug in one call ends neither the thread nor the calls of others
        if _concerns_all(error):
            raise
        connection.execute("ROLLBACK TO one")
        connection.execute("RELEASE one")
        return _unavailable(error)
    connection.execute("RELEASE one")
    return result


def _concerns_all(error: Exception) -> bool:
    return isinstance(error, _OF_THE_FILE) and not isinstance(error, _ONE_BAD_WRITE)


def _code(error: Exception) -> int:
    """SQLite's code for an error, without the detail in the higher bytes."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _unavailable(error: Exception) -> JournalUnavailable:
    """A new exception for each caller, as each adds its own traceback."""
    if isinstance(error, JournalUnavailable):
        return type(error)(*error.args)
    waited = " by another process, for longer than busy_timeout" if _code(error) == sqlite3.SQLITE_BUSY else ""
    unavailable = JournalUnavailable(f"{error}{waited}")
    unavailable.__cause__ = error
    return unavailable
