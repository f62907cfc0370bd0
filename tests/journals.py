"""What the tests of the journal share: a journal that is closed again, and what others could do to its file."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

from twisted_hook.boundaries import Journal
from twisted_hook.journal import SqliteJournal
from twisted_hook.model import JournalUnavailable, NewDelivery, Receipt

T = TypeVar("T")

CALL_IN_REACTOR = IReactorFromThreads(reactor).callFromThread
ROOT = Path(__file__).parent.parent
needs_strace = pytest.mark.skipif(
    not os.environ.get("HOOKDEPLOY_ALL_TESTS") and shutil.which("strace") is None, reason="strace is not installed"
)


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[SqliteJournal]:
    journal = SqliteJournal.open(path, CALL_IN_REACTOR, **options)
    try:
        yield journal
    finally:
        await journal.close()


class Pump:
    """Stands in for the reactor: what the threads have to say waits until somebody runs a coroutine here."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[..., object], tuple[object, ...]]] = SimpleQueue()

    def call(self, function: Callable[..., object], *args: object) -> None:
        self._calls.put((function, args))

    def run(self, coroutine: Coroutine[Deferred[Any], Any, T]) -> T:
        results: list[T | Failure] = []
        Deferred.fromCoroutine(coroutine).addBoth(results.append)
        while not results:
            function, args = self._calls.get(timeout=60)
            function(*args)
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]


def accepting(journal: Journal, deliveries: Sequence[NewDelivery]) -> Deferred[list[Receipt]]:
    """Have all of them accepted at once."""
    return gatherResults([Deferred.fromCoroutine(journal.accept(one)) for one in deliveries], consumeErrors=True)


async def settled(waiting: Sequence[Deferred[Any]]) -> list[Any]:
    """How each of them ended: a result, or a failure."""
    return [result for _, result in await DeferredList(waiting, consumeErrors=True)]


async def refused(journal: Journal, *deliveries: NewDelivery) -> str:
    """Why the journal refuses all of these, which are accepted at once."""
    results = await settled([Deferred.fromCoroutine(journal.accept(one)) for one in deliveries])
    failures = [result.value for result in results if isinstance(result, Failure)]
    assert [type(failure) for failure in failures] == [JournalUnavailable] * len(deliveries), results
    return str(failures[0])


async def on_the_writing_thread(journal: SqliteJournal, sql: str) -> None:
    await journal._writer.ask(lambda connection: connection.execute(sql).fetchall())


def run_sql(path: Path, *statements: str) -> list[Any]:
    """What a person at the file could do: the rows of the last statement."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return [connection.execute(sql).fetchall() for sql in statements][-1]


def columns(path: Path) -> list[Any]:
    """Every column of every table, with what SQLite knows of it; its order in the table is of no matter."""
    tables = [name for (name,) in run_sql(path, "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]
    return sorted((table, *row[1:]) for table in tables for row in run_sql(path, f"PRAGMA table_info({table})"))


def indexes(path: Path) -> list[Any]:
    """Every index that somebody has named, as its statement but for the spaces."""
    rows = run_sql(path, "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL ORDER BY name")
    return [(name, " ".join(sql.split())) for name, sql in rows]
