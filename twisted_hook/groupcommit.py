"""A thread with a SQLite connection that runs all the calls that wait in one transaction and commits once.

That is group commit: a burst costs few fsyncs, a slow disk never blocks the reactor, and nobody is answered before the
commit. Touches one connection; it does not know what the calls do, and never uses the reactor's own threads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from sqlite3 import Connection
from threading import Thread
from typing import Any, TypeVar, TypeVarTuple

from twisted.internet.defer import Deferred

from twisted_hook.model import JournalUnavailable

BACKLOG = 10_000
"""How many calls may wait for one thread; one more is refused at once."""

_ONE_BAD_WRITE = (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError)
"""What SQLite says of one write; all else that it says concerns the file, and so everybody in the transaction."""
_SOUND_AFTER = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL)
"""Errors after which a connection is as good as before, if SQLite has ended the transaction."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class GroupCommit:
    """A thread and its connection: it takes all the calls that wait, runs them in one transaction, and commits once."""

    def __init__(self, connect: Callable[[], Connection], begin: str, call_in_reactor: Callable[..., object]) -> None:
        self.commits = 0
        self._connect = connect
        self._begin = begin
        self._call_in_reactor = call_in_reactor
        self._connection: Connection | None = None
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
        if self._stopping:
            raise JournalUnavailable("the journal is closed")
        if self._queue.qsize() >= BACKLOG:
            raise JournalUnavailable(f"{BACKLOG} calls wait for the journal already")
        waiter: Deferred[T] = Deferred()  # a cancelled one swallows the result that comes later
        self._queue.put((waiter, work, args))
        return waiter

    async def stop(self) -> None:
        """Do what is queued, close the connection and end the thread."""
        if not self._stopping:
            self._stopping = True
            self._queue.put(None)
        if not self._ended:
            waiter: Deferred[None] = Deferred()
            self._waiting_for_end.append(waiter)
            await waiter
        self._thread.join()

    def _work(self) -> None:
        last: Any = ()
        while last is not None:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            last = batch[-1]
            if last is None:  # nothing is queued after the sign to stop
                batch.pop()
            if batch:
                self._call_in_reactor(_answer, batch, self._transact(batch))
        self._disconnect()
        self._call_in_reactor(self._announce_end)

    def _transact(self, batch: Sequence[Any]) -> list[Any]:
        """The results of a batch, which are on disk, or one failure for all of it."""
        try:
            connection = self._connection = self._connection or self._connect()
            connection.execute(self._begin)
            results = [_run(connection, work, args) for _, work, args in batch]
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - whatever it is, each of them is told, and the thread lives on
            self._recover(error)
            return [_unavailable(error) for _ in batch]
        self.commits += 1
        return results

    def _recover(self, error: Exception) -> None:
        """Give the connection up, and with it what it has begun, unless it is surely as good as before."""
        if self._connection is not None and (self._connection.in_transaction or _code(error) not in _SOUND_AFTER):
            self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _announce_end(self) -> None:
        self._ended = True
        for waiter in self._waiting_for_end:
            waiter.callback(None)


def _run(connection: Connection, work: Callable[..., T], args: tuple[Any, ...]) -> T | JournalUnavailable:
    """The result of one call, or a failure that is its own: the others in the transaction stand."""
    connection.execute("SAVEPOINT one")
    try:
        result: T | JournalUnavailable = work(connection, *args)
    except Exception as error:  # any at all: a bug in one call ends neither the thread nor the calls of others
        if isinstance(error, (sqlite3.Error, MemoryError)) and not isinstance(error, _ONE_BAD_WRITE):
            raise
        connection.execute("ROLLBACK TO one")
        result = _unavailable(error)
    connection.execute("RELEASE one")
    return result


def _answer(batch: Sequence[Any], results: Sequence[Any]) -> None:
    for (waiter, _, _), result in zip(batch, results, strict=True):
        if isinstance(result, JournalUnavailable):
            waiter.errback(result)
        else:
            waiter.callback(result)


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
