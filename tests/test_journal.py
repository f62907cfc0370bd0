"""The journal keeps its contract, and outlives kills, full disks, broken disks, locks and damaged rows."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.logger import LogLevel, capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.contracts import JOURNAL, STEP, pushed
from tests.fakes import MemoryJournal
from tests.journals import (
    CALL_IN_REACTOR,
    ROOT,
    Pump,
    accepting,
    columns,
    indexes,
    needs_strace,
    on_the_writing_thread,
    opened,
    refused,
    run_sql,
    settled,
)
from tests.waiting import become
from twisted_hook.boundaries import Journal
from twisted_hook.journal import MOST_ROWS, SqliteJournal, groupcommit
from twisted_hook.journal.arrivals import ROWS
from twisted_hook.journal.pruning import ASKED_FOR
from twisted_hook.journal.schema import SCHEMA_VERSION, SchemaTooNew
from twisted_hook.model import (
    Commit,
    JournalUnavailable,
    Outcome,
    Phase,
    Push,
    Receipt,
    Steering,
    Trigger,
    Verdict,
)

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite3"


# The contract, on the fake and on the real one.


class MemoryJournalTests(SynchronousTestCase):
    """One test for each check of the contract, and what only the fake has."""

    def test_while_it_is_told_to_fail_it_writes_nothing(self) -> None:
        journal = MemoryJournal()
        journal.fail_with = JournalUnavailable("disk full")
        self.failureResultOf(Deferred.fromCoroutine(journal.accept(pushed("one", "blog"))), JournalUnavailable)
        self.failureResultOf(Deferred.fromCoroutine(journal.enqueue("blog", Trigger.POLL)), JournalUnavailable)
        journal.fail_with = None
        receipt = self.successResultOf(Deferred.fromCoroutine(journal.accept(pushed("one", "blog"))))
        self.assertIs(receipt.verdict, Verdict.ACCEPTED)


def _on_memory(check: Callable[[Journal], Awaitable[None]]) -> Callable[[SynchronousTestCase], None]:
    async def run() -> None:
        await check(MemoryJournal())

    def test(self: SynchronousTestCase) -> None:
        self.successResultOf(Deferred.fromCoroutine(run()))

    test.__doc__ = check.__doc__
    return test


for _check in JOURNAL:
    setattr(MemoryJournalTests, _check.__name__.replace("check_", "test_", 1), _on_memory(_check))


@pytest.mark.parametrize("check", JOURNAL, ids=lambda check: check.__name__)
@pytest_twisted.ensureDeferred
async def test_the_sqlite_journal_keeps_the_contract(path: Path, check: Callable[[Journal], Awaitable[None]]) -> None:
    async with opened(path) as journal:
        await check(journal)


SOME = st.integers(0, 5)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("accept"),
            st.sampled_from(["github", "gitlab"]),
            st.sampled_from("abc"),
            st.sampled_from("xyz"),
            st.sampled_from([(), ("blog",), ("blog", "shop")]),
        ),
        st.tuples(st.just("enqueue"), st.sampled_from(["blog", "shop"]), st.sampled_from(Trigger)),
        st.tuples(st.just("begin"), SOME),
        st.tuples(st.just("advance"), SOME, st.sampled_from(Phase)),
        st.tuples(st.just("add_step"), SOME),
        st.tuples(st.just("finish"), SOME, st.sampled_from(Outcome), st.none() | SOME),
        st.tuples(st.just("describe"), SOME, st.sampled_from("xyz"), st.none() | st.sampled_from("xyz")),
        st.tuples(st.just("prune"), st.sampled_from([0.0, 2.0**40]), st.integers(0, 4)),
    ),
    max_size=30,
)


async def perform(journal: Journal, operations: Sequence[tuple[Any, ...]]) -> list[str]:  # noqa: C901 - one case each
    """All that a journal says while it is told a story, with its ids replaced by their order of appearance."""
    said: list[object] = []
    names: dict[str, str] = {}
    for name, *args in operations:
        await _name(journal, names)  # some may be gone in the end
        made = [one.id for one in reversed(await journal.deployments())]
        match name, *args:
            case "accept", hook, guid, digest, apps:
                said.append(await journal.accept(pushed(guid, *apps, hook=hook, digest=digest, reason=f"for {apps}")))
            case "enqueue", app, trigger:
                said.append(await journal.enqueue(app, trigger))
            case "prune", before, rows:
                await journal.prune(before=before, rows=rows)
            case _ if not made:
                continue
            case "describe", which, revision, previous:
                commit = Commit(revision, "", "")
                await journal.describe(made[which % len(made)], commit=commit, previous=previous, release=None)
            case "begin", which:
                said.append(await journal.begin(made[which % len(made)], 1.0))
            case "advance", which, phase:
                await journal.advance(made[which % len(made)], phase, 2.0)
            case "add_step", which:
                await journal.add_step(made[which % len(made)], STEP)
            case "finish", which, outcome, by:
                if by is None:
                    await journal.finish(made[which % len(made)], outcome, 3.0)
                else:
                    await journal.supersede({made[which % len(made)]: made[by % len(made)]}, 3.0)
    deployments, deliveries = list(await journal.deployments()), list(await journal.deliveries())
    said += [deployments, deliveries, list(await journal.unfinished()), await journal.last("blog")]
    said += [await journal.last_about("blog", "x"), await journal.decided("blog", "y")]
    await _name(journal, names)
    return [_renamed(repr(words), names) for words in said]


async def _name(journal: Journal, names: dict[str, str]) -> None:
    rows = {"deployment": [one.id for one in await journal.deployments()]}
    rows["delivery"] = [one.id for one in await journal.deliveries()]
    for kind, ids in rows.items():
        for each in reversed(ids):
            names.setdefault(each, f"{kind} {sum(kind in name for name in names.values())}")


def _renamed(text: str, names: dict[str, str]) -> str:
    for known, name in names.items():
        text = text.replace(repr(known), name)
    return text


class JournalsAgreeTests(SynchronousTestCase):
    @settings(deadline=None, max_examples=60)
    @given(OPERATIONS)
    def test_the_fake_and_the_real_journal_say_the_same_of_any_story(self, operations: list[tuple[Any, ...]]) -> None:
        pump = Pump()
        with tempfile.TemporaryDirectory() as directory:
            journal = SqliteJournal.open(Path(directory) / "journal.sqlite3", pump.call, lambda: 100.0)
            try:
                real = pump.run(perform(journal, operations))
            finally:
                pump.run(journal.close())
        self.assertEqual(real, pump.run(perform(MemoryJournal(now=100.0), operations)))


# What was acknowledged is there, and what was refused is not.

CHILD = """
import sys
from pathlib import Path
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from tests.contracts import pushed
from twisted_hook.journal import SqliteJournal

async def accept_for_ever(journal, name):
    for n in range(1_000_000):
        receipt = await journal.accept(pushed(f"{name}.{n}", "blog"))
        print(receipt.delivery, receipt.queued[0].id, flush=True)

def start():
    journal = SqliteJournal.open(Path(sys.argv[1]), reactor.callFromThread)
    for n in range(8):
        Deferred.fromCoroutine(accept_for_ever(journal, f"{sys.argv[2]}.{n}"))

reactor.callWhenRunning(start)
reactor.run()
"""


FAULTY = """
import sys
from pathlib import Path
from twisted.internet.task import react
from tests.contracts import pushed
from twisted_hook.journal import SqliteJournal
from twisted_hook.model import JournalUnavailable

async def main(reactor):
    journal = SqliteJournal.open(Path(sys.argv[1]), reactor.callFromThread)
    for n in range(60):
        try:
            print(n, (await journal.accept(pushed(str(n), "blog"))).verdict)
        except JournalUnavailable:
            print(n, "refused")

react(main)
"""


def said_while_failing(path: Path, fault: str) -> dict[str, str]:
    """What a child is told of each of sixty deliveries while strace injects a fault."""
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", f"inject={fault}"]
    argv = [*strace, sys.executable, "-c", FAULTY, str(path)]
    child = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return dict(line.split() for line in child.stdout.splitlines())


def acknowledged_before_a_kill(path: Path, name: str, at_least: int) -> list[list[str]]:
    argv = [sys.executable, "-c", CHILD, str(path), name]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(at_least)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()
    assert child.returncode == -signal.SIGKILL
    return [line.split() for line in lines if line.endswith("\n")]


@pytest_twisted.ensureDeferred
async def test_what_was_acknowledged_outlives_a_kill(path: Path) -> None:
    """R1, P83: kill -9 in the middle of a burst, three times over the same file."""
    acknowledged: list[list[str]] = []
    for n in range(3):
        acknowledged += acknowledged_before_a_kill(path, f"child {n}", at_least=100 + 37 * n)
    assert all(len(ids) == 2 for ids in acknowledged)
    async with opened(path) as journal:
        for delivery, deployment in acknowledged:
            kept = await journal.delivery(delivery)
            assert kept is not None
            assert kept.deployments == (deployment,)
        newest = await journal.enqueue("blog", Trigger.START)
    assert newest.id > max(deployment for _, deployment in acknowledged)
    assert run_sql(path, "PRAGMA integrity_check") == [("ok",)]


@pytest_twisted.ensureDeferred
async def test_writes_that_wait_share_a_commit(path: Path) -> None:
    async with opened(path) as journal:
        receipts = await accepting(journal, [pushed(str(n), "blog") for n in range(100)])
        assert journal.commits <= 10
        assert {receipt.verdict for receipt in receipts} == {Verdict.ACCEPTED}
        assert len(await journal.deployments(limit=200)) == 100


@pytest_twisted.ensureDeferred
async def test_nobody_is_answered_before_the_commit(path: Path) -> None:
    """What one is told, another process can read."""
    async with opened(path) as journal:
        for n in range(50):
            receipt = await journal.accept(pushed(str(n), "blog"))
            assert run_sql(path, "SELECT max(id) FROM deliveries") == [(int(receipt.delivery, 16),)]


@pytest_twisted.ensureDeferred
async def test_a_read_sees_every_write_that_was_awaited_before(path: Path) -> None:
    async with opened(path) as journal:
        for _ in range(200):
            made = await journal.enqueue("blog", Trigger.POLL)
            assert await journal.deployment(made.id) == made
            assert (await journal.deployments(limit=1))[0] == made


@pytest_twisted.ensureDeferred
async def test_a_full_disk_refuses_everything_until_there_is_room(path: Path) -> None:
    """P85, with SQLite's own limit on the size of the file."""
    async with opened(path) as journal:
        first = await journal.accept(pushed("first", "blog"))
        await on_the_writing_thread(journal, "PRAGMA max_page_count = 1")
        large = [pushed(f"{n} {'x' * 3000}", "blog") for n in range(20)]
        assert "full" in await refused(journal, *large)
        assert [one.id for one in await journal.deliveries()] == [first.delivery]
        assert len(await journal.unfinished()) == 1
        await on_the_writing_thread(journal, "PRAGMA max_page_count = 1000000")
        receipts = await accepting(journal, large)
        assert {receipt.verdict for receipt in receipts} == {Verdict.ACCEPTED}
    assert run_sql(path, "PRAGMA integrity_check") == [("ok",)]


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """Have the kernel refuse (EFBIG) what this process writes beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest_twisted.ensureDeferred
async def test_a_write_that_the_kernel_refuses_at_any_place_is_refused_and_heals(path: Path) -> None:
    """P85, T34: the room ends a little later each time, so that it ends at each of the places in a transaction."""
    wal = path.with_name(path.name + "-wal")
    refusals = 0
    async with opened(path) as journal:
        for n in range(60):
            delivery = pushed(f"{n} {'x' * 3000}", "blog")
            with no_file_longer_than(wal.stat().st_size + 1500 * n):
                try:
                    await journal.accept(delivery)
                    expected = Verdict.DUPLICATE
                except JournalUnavailable:
                    expected = Verdict.ACCEPTED
                    refusals += 1
            assert (await journal.accept(delivery)).verdict is expected
        assert len(await journal.deliveries(limit=100)) == len(await journal.unfinished()) == 60
    assert 10 <= refusals <= 50
    assert run_sql(path, "PRAGMA integrity_check") == [("ok",)]


@pytest_twisted.ensureDeferred
async def test_a_connection_that_may_no_longer_write_is_replaced(path: Path) -> None:
    wal = path.with_name(path.name + "-wal")
    async with opened(path) as journal:
        await journal.enqueue("blog", Trigger.POLL)
        before = (wal.stat().st_ino, wal.stat().st_size)
        await on_the_writing_thread(journal, "PRAGMA query_only = ON")
        assert "readonly" in await refused(journal, pushed("one", "blog"))
        assert (wal.stat().st_ino, wal.stat().st_size) == before  # the reader's connection kept it from being folded in
        assert (await journal.accept(pushed("one", "blog"))).verdict is Verdict.ACCEPTED


@needs_strace
@pytest_twisted.ensureDeferred
async def test_a_refused_write_is_not_there_whatever_the_disk_says_to_fsync(path: Path) -> None:
    """R1: strace has every third fdatasync fail, sometimes that of a commit and sometimes the one after."""
    said = said_while_failing(path, "fdatasync:error=EIO:when=20+3")
    async with opened(path) as journal:
        there = {delivery.guid for delivery in await journal.deliveries(limit=100)}
    accepted = {guid for guid, verdict in said.items() if verdict == Verdict.ACCEPTED}
    # Of the last one SQLite cannot know: a start finds it in the write-ahead log, and carries it out.
    assert there - {"59"} == accepted - {"59"}
    assert len(said) == 60
    assert 10 < len(accepted) < 50


@pytest_twisted.ensureDeferred
async def test_a_writer_that_is_shut_out_does_not_stall_the_reactor(path: Path) -> None:
    async with opened(path, busy_timeout=60.0) as journal:
        made = await journal.enqueue("blog", Trigger.POLL)
        statements: list[str] = []
        await journal._writer.ask(lambda connection: connection.set_trace_callback(statements.append))
        statements.clear()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = Deferred.fromCoroutine(journal.accept(pushed("one", "blog")))
            await become(lambda: "BEGIN IMMEDIATE" in statements)
            for _ in range(10):
                assert await journal.deployment(made.id) == made  # reading needs no turn
            assert not waiting.called
            other.execute("ROLLBACK")
        assert (await waiting).verdict is Verdict.ACCEPTED


@pytest_twisted.ensureDeferred
async def test_a_writer_that_is_shut_out_does_not_wait_for_ever(path: Path) -> None:
    async with opened(path, busy_timeout=0.1) as journal:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert "busy_timeout" in await refused(journal, pushed("one", "blog"), pushed("two", "blog"))
            other.execute("ROLLBACK")
        assert (await journal.accept(pushed("one", "blog"))).verdict is Verdict.ACCEPTED


@pytest_twisted.ensureDeferred
async def test_no_more_calls_wait_than_the_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groupcommit, "BACKLOG", 10)
    async with opened(path, busy_timeout=0.3) as journal:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = [Deferred.fromCoroutine(journal.enqueue("blog", Trigger.POLL)) for _ in range(30)]
            ended = [one for one in waiting if one.called]
            assert len(ended) >= 15
            assert "10 calls wait" in str((await settled(ended))[-1])
            other.execute("ROLLBACK")
        await settled(waiting)
        await journal.enqueue("blog", Trigger.POLL)


# One bad write fails alone.


@pytest.mark.parametrize("odd", ["\ud800", 2**63, object(), float("nan"), None])
@pytest_twisted.ensureDeferred
async def test_a_value_that_sqlite_cannot_keep_fails_alone(path: Path, odd: Any) -> None:
    async with opened(path) as journal:
        made = await journal.enqueue("blog", Trigger.POLL)
        before = journal.commits
        writes: list[Coroutine[Deferred[Any], Any, Any]] = [
            journal.enqueue("blog", Trigger.POLL),
            journal.advance(made.id, Phase.FETCHING, odd),
            journal.accept(pushed("odd", "blog", odd)),
            journal.accept(pushed("good", "blog")),
        ]
        blocked = Deferred.fromCoroutine(on_the_writing_thread(journal, "SELECT randomblob(1000000)"))
        results = await settled([Deferred.fromCoroutine(write) for write in writes])
        await blocked
        assert [isinstance(result, Failure) for result in results] == [False, True, True, False]
        assert {results[1].type, results[2].type} == {JournalUnavailable}
        assert journal.commits - before <= 2
        assert [one.guid for one in await journal.deliveries()] == ["good"]
        assert (await journal.deployment(made.id)) == made
        assert len(await journal.deployments()) == 3


@pytest_twisted.ensureDeferred
async def test_a_bug_in_one_call_leaves_the_thread_alive(path: Path) -> None:
    async with opened(path) as journal:
        for worker in (journal._writer, journal._reader):
            with pytest.raises(JournalUnavailable, match="division by zero"):
                await worker.ask(lambda connection: 1 / 0)
        await journal.enqueue("blog", Trigger.POLL)
        assert len(await journal.deployments()) == 1


@pytest_twisted.ensureDeferred
async def test_who_stops_waiting_neither_undoes_a_write_nor_breaks_another(path: Path) -> None:
    """T13, P35: the client hangs up while the journal writes."""
    async with opened(path) as journal:
        waiting = [Deferred.fromCoroutine(journal.accept(pushed(str(n), "blog"))) for n in range(10)]
        for one in waiting[::2]:
            one.cancel()
        results = await settled(waiting)
        assert {failure.type for failure in results[::2]} == {CancelledError}
        assert {type(receipt) for receipt in results[1::2]} == {Receipt}
        assert len(await journal.deliveries()) == 10


@pytest_twisted.ensureDeferred
async def test_who_stopped_waiting_for_a_write_that_fails_leaves_no_trace(path: Path) -> None:
    async with opened(path, busy_timeout=0.05) as journal:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = Deferred.fromCoroutine(journal.accept(pushed("one", "blog")))
            waiting.cancel()
            with pytest.raises(CancelledError):
                await waiting
            await refused(journal, pushed("two", "blog"))
            other.execute("ROLLBACK")


# Rows that somebody damaged.

DAMAGE = [
    "UPDATE deployments SET phase = 'dancing' WHERE id = {id}",
    "UPDATE deployments SET outcome = '' WHERE id = {id}",
    "UPDATE deployments SET \"trigger\" = CAST(x'ff' AS TEXT) WHERE id = {id}",
    "INSERT INTO phases VALUES ({id}, 'dancing', 1.0)",
]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("met", ["at open", "in a list", "by a repeat", "by its lane"])
@pytest_twisted.ensureDeferred
async def test_a_deployment_that_cannot_be_read_is_parked(path: Path, damage: str, met: str) -> None:
    """A poisoned row must not stop a start, however often it is tried; and what it was for is not lost."""
    journal = SqliteJournal.open(path, CALL_IN_REACTOR)
    one = await journal.enqueue("blog", Trigger.POLL)
    damaged = await journal.accept(pushed("one", "blog"))
    three = await journal.enqueue("blog", Trigger.POLL)
    key = damaged.queued[0].id
    await journal.supersede({one.id: key}, 1.0)
    run_sql(path, damage.format(id=int(key, 16)))
    with capturedLogs() as logged:
        if met == "at open":
            await journal.close()
            journal = SqliteJournal.open(path, CALL_IN_REACTOR)
        elif met == "by a repeat":
            assert len((await journal.accept(pushed("one", "blog"))).queued) == 1
        elif met == "by its lane":
            assert (await journal.begin(key, 1.0)).outcome is Outcome.FAILED
        for _ in range(3):
            assert key not in [each.id for each in await journal.unfinished()]
            assert len(await journal.deployments()) >= 3
    [parked] = await journal.parked()
    assert (parked.id, parked.kind) == (key, "deployment")
    assert json.loads(parked.row)["app"] == "blog"
    said = [event for event in logged if event.get("log_level") is LogLevel.critical]
    assert [event["id"] for event in said] == [key]
    kept = await journal.deployment(key)
    assert kept is not None
    assert (kept.outcome, kept.transient) == (Outcome.FAILED, True)
    assert "could not be read" in kept.reason
    assert three in await journal.unfinished()
    again = await journal.accept(pushed("one", "blog"))
    assert (again.verdict, again.delivery) == (Verdict.DUPLICATE, damaged.delivery)
    assert len(again.deployments) == 1
    assert again.deployments[0] in await journal.unfinished()
    await journal.close()


@pytest_twisted.ensureDeferred
async def test_what_may_be_half_migrated_stays_so_when_it_is_parked(path: Path) -> None:
    async with opened(path) as journal:
        made = await journal.enqueue("blog", Trigger.PUSH)
        await journal.describe(made.id, commit=Commit("b" * 40, "", ""), previous=None, release=None)
        await journal.advance(made.id, Phase.MIGRATING, 1.0)
        run_sql(path, "UPDATE deployments SET phase = '', \"trigger\" = 'x'")
        assert not await journal.unfinished()
        last = await journal.last_about("blog", "b" * 40)
        assert last is not None
        assert (last.outcome, last.phase) == (Outcome.INTERRUPTED, Phase.MIGRATING)


@pytest_twisted.ensureDeferred
async def test_what_has_ended_keeps_its_end_when_it_is_parked(path: Path) -> None:
    async with opened(path) as journal:
        made = await journal.enqueue("blog", Trigger.ROLLBACK)
        await journal.describe(made.id, commit=Commit("a" * 40, "", ""), previous="b" * 40, release=None)
        await journal.finish(made.id, Outcome.DEPLOYED, 2.0)
        run_sql(path, "UPDATE deployments SET phase = ''")
        last = await journal.last_about("blog", "b" * 40)
        assert last is not None
        assert (last.id, last.outcome, last.finished_at) == (made.id, Outcome.DEPLOYED, 2.0)


@pytest.mark.parametrize("damage", ["verdict = '?'", "pushes = 'no JSON'", "pushes = '[1]'", "pushes = ''"])
@pytest.mark.parametrize("met", ["at open", "in a list", "by a repeat"])
@pytest_twisted.ensureDeferred
async def test_a_delivery_that_cannot_be_read_is_parked(path: Path, damage: str, met: str) -> None:
    journal = SqliteJournal.open(path, CALL_IN_REACTOR)
    one = await journal.accept(pushed("one", "blog"))
    await journal.accept(pushed("two", "blog"))
    await journal.accept(pushed("ignored"))
    if met == "at open":
        await journal.close()
    run_sql(path, f"UPDATE deliveries SET {damage} WHERE guid IN ('one', 'ignored')")
    if met == "at open":
        journal = SqliteJournal.open(path, CALL_IN_REACTOR)
    if met == "in a list":
        assert len(await journal.deliveries()) == 3
    again = await journal.accept(pushed("one", "blog"))
    assert again == Receipt(Verdict.DUPLICATE, one.delivery, one.deployments, ())
    assert len((await journal.accept(pushed("ignored", "blog"))).queued) == 1  # by now it is for somebody
    assert sorted(json.loads(one.row)["guid"] for one in await journal.parked()) == ["ignored", "one"]
    assert await journal.told_of("a" * 40)
    kept = await journal.delivery(one.delivery)
    assert kept is not None
    assert (kept.verdict, kept.deployments) == (Verdict.ACCEPTED, (one.queued[0].id,))
    assert "could not be read" in kept.reason
    await journal.close()


@pytest_twisted.ensureDeferred
async def test_a_row_that_cannot_be_parked_at_open_stops_no_start(path: Path) -> None:
    async with opened(path) as journal:
        await journal.enqueue("blog", Trigger.POLL)
    run_sql(path, "UPDATE deployments SET phase = ''")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        journal = SqliteJournal.open(path, CALL_IN_REACTOR, busy_timeout=0.05)
        assert await journal.unfinished() == []
        other.execute("ROLLBACK")
    await journal.close()


@pytest_twisted.ensureDeferred
async def test_a_row_that_cannot_be_parked_now_is_met_again(path: Path) -> None:
    async with opened(path, busy_timeout=0.05) as journal:
        made = await journal.enqueue("blog", Trigger.POLL)
        good = await journal.enqueue("blog", Trigger.POLL)
        run_sql(path, f"UPDATE deployments SET phase = '' WHERE id = {int(made.id, 16)}")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert await journal.unfinished() == [good]
            other.execute("ROLLBACK")
        assert not await journal.parked()
        assert await journal.unfinished() == [good]
        assert len(await journal.parked()) == 1


@pytest_twisted.ensureDeferred
async def test_a_text_that_is_not_utf_8_hides_nothing_else(path: Path) -> None:
    async with opened(path) as journal:
        made = await journal.enqueue("blog", Trigger.POLL)
        run_sql(path, "UPDATE deployments SET reason = CAST(x'41ff42' AS TEXT)")
        kept = await journal.deployment(made.id)
        assert kept is not None
        assert kept.reason == "A\N{REPLACEMENT CHARACTER}B"


# Opening and closing.


@pytest_twisted.ensureDeferred
async def test_only_its_owner_may_read_the_journal(path: Path) -> None:
    path.touch(mode=0o644)
    async with opened(path) as journal:
        await journal.enqueue("blog", Trigger.POLL)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {path.name: 0o600, f"{path.name}-wal": 0o600, f"{path.name}-shm": 0o600}


@pytest_twisted.ensureDeferred
async def test_ids_grow_even_when_the_clock_goes_back(path: Path) -> None:
    ids: list[str] = []
    for now in (2_000_000_000.0, 1_000.0, 1_000.0, 2_000_000_000.000_5):
        async with opened(path, clock=lambda now=now: now) as journal:
            receipt = await journal.accept(pushed(f"{len(ids)}", "blog"))
            ids += [receipt.delivery, receipt.queued[0].id, (await journal.enqueue("blog", Trigger.POLL)).id]
            listed = [deployment.id for deployment in await journal.deployments()]
            assert listed == sorted(set(ids) - {delivery.id for delivery in await journal.deliveries()}, reverse=True)
    assert sorted(set(ids)) == ids
    assert set(map(len, ids)) == {13}


OLD_ROWS = {
    1: """INSERT INTO deliveries VALUES (1, 'github', 'one', 'body', 'push', 'accepted', '', 'acme/blog',
            'refs/heads/main', 'aa', 1.5), (2, 'github', 'two', 'ping', 'ping', 'ignored', 'a ping', NULL, NULL, NULL,
            2.5), (3, 'github', 'gone', 'deletion', 'push', 'ignored', '', 'acme/blog', 'refs/heads/old', NULL, 3.5);
        INSERT INTO deployments (id, app, "trigger", queued_at, delivery) VALUES (5, 'blog', 'push', 5.0, 1);
        INSERT INTO deployments (id, app, "trigger", queued_at, outcome, superseded_by, delivery)
            VALUES (4, 'blog', 'push', 4.0, 'superseded', 5, 1);
        INSERT INTO phases VALUES (5, 'fetching', 6.0);
        INSERT INTO steps VALUES (5, 'install', 'uv sync', 7.0, 0.5, 'ok');""",
}
STEERED = "INSERT INTO steering VALUES ('blog', 0, 1); UPDATE deployments SET wanted = 'abc1234';"
OLD_ROWS[2] = OLD_ROWS[1] + STEERED
OLD_ROWS[3] = f"""INSERT INTO deliveries VALUES
        (1, 'github', 'one', 'body', 'push', 'accepted', '',
            '[{{"repository":"acme/blog","ref":"refs/heads/main","after":"aa","default_branch":null}}]', 1.5),
        (2, 'github', 'two', 'ping', 'ping', 'ignored', 'a ping', '[]', 2.5),
        (3, 'github', 'gone', 'deletion', 'push', 'ignored', '',
            '[{{"repository":"acme/blog","ref":"refs/heads/old","after":null,"default_branch":null}}]', 3.5);
    {OLD_ROWS[1].partition("3.5);")[2]} {STEERED}"""


@pytest.mark.parametrize("version", OLD_ROWS)
@pytest_twisted.ensureDeferred
async def test_an_older_schema_is_brought_forward_with_what_it_holds(path: Path, version: int) -> None:
    """As it was made then; what it becomes is what is made anew today."""
    anew = path.with_name("anew.sqlite3")
    await SqliteJournal.open(anew, CALL_IN_REACTOR).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(Path(__file__).with_name(f"schema_{version}.sql").read_text() + OLD_ROWS[version])
    SqliteJournal.probe(path)
    async with opened(path) as journal:
        [kept] = await journal.unfinished()
        assert (kept.app, kept.migrated, kept.transient) == ("blog", None, False)
        assert (kept.phases, [step.name for step in kept.steps]) == (((Phase.FETCHING, 6.0),), ["install"])
        assert [one.superseded_by for one in await journal.deployments()] == [None, kept.id]
        deleted, ping, push = await journal.deliveries()
        assert push.pushes == (Push("acme/blog", "refs/heads/main", "aa"),)
        assert deleted.pushes == (Push("acme/blog", "refs/heads/old", None),)
        assert (ping.pushes, ping.reason) == ((), "a ping")
        assert await journal.told_of("aa")
        again = await journal.accept(pushed("one", "blog"))
        assert (again.verdict, again.deployments) == (Verdict.DUPLICATE, (kept,))
        assert not await journal.parked()
        assert not await journal.verified()
        if version > 1:
            assert await journal.steering("blog") == Steering(pinned=True)
            assert kept.wanted == "abc1234"
    assert columns(path) == columns(anew)
    assert indexes(path) == indexes(anew)


@pytest_twisted.ensureDeferred
async def test_a_newer_schema_is_refused_and_left_as_it_is(path: Path) -> None:
    async with opened(path) as journal:
        await journal.enqueue("blog", Trigger.POLL)
    run_sql(path, "PRAGMA user_version = 7")
    before = path.read_bytes()
    with pytest.raises(SchemaTooNew) as caught:
        SqliteJournal.open(path, CALL_IN_REACTOR)
    assert str(path) in str(caught.value)
    assert "version 7" in str(caught.value)
    assert f"knows {SCHEMA_VERSION}" in str(caught.value)
    assert path.read_bytes() == before


def test_what_cannot_be_a_journal_is_refused_with_its_path(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "journal.sqlite3"):
        with pytest.raises(JournalUnavailable, match=str(path)):
            SqliteJournal.open(path, CALL_IN_REACTOR)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of somebody else's")
def test_a_file_of_somebody_else_is_refused() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal.sqlite3"
        path.touch(mode=0o444)
        path.parent.chmod(0o755)
        os.seteuid(NOBODY)
        try:
            with pytest.raises(JournalUnavailable, match=str(path)):
                SqliteJournal.open(path, CALL_IN_REACTOR)
        finally:
            os.seteuid(0)


@pytest_twisted.ensureDeferred
async def test_a_name_with_odd_characters_is_just_a_name(tmp_path: Path) -> None:
    path = tmp_path / "a?mode=memory&b#c %20 ü.sqlite3"
    async with opened(path) as journal:
        made = await journal.enqueue("blog", Trigger.POLL)
    async with opened(path) as journal:
        assert await journal.deployments() == [made]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest_twisted.ensureDeferred
async def test_closing_writes_what_is_queued_and_may_be_done_twice(path: Path) -> None:
    journal = SqliteJournal.open(path, CALL_IN_REACTOR)
    begun, gate = Event(), Event()

    def hold_the_thread(connection: sqlite3.Connection) -> bool:
        begun.set()
        return gate.wait(60)

    busy = journal._writer.ask(hold_the_thread)
    await become(begun.is_set)
    waiting = accepting(journal, [pushed(str(n), "blog") for n in range(50)])
    closing_twice = gatherResults([Deferred.fromCoroutine(journal.close()) for _ in range(2)])
    await become(lambda: journal._writer._stopping)
    gate.set()
    await closing_twice
    await journal.close()
    assert await busy
    assert len(await waiting) == 50
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    for call in (journal.enqueue("blog", Trigger.POLL), journal.accept(pushed("0", "blog")), journal.deliveries()):
        with pytest.raises(JournalUnavailable, match="closed"):
            await call
    async with opened(path) as again:
        assert len(await again.deliveries(limit=100)) == 50


@pytest_twisted.ensureDeferred
async def test_a_list_has_an_end(path: Path) -> None:
    async with opened(path) as journal:
        await accepting(journal, [pushed(str(n), "blog") for n in range(MOST_ROWS + 1)])
        assert len(await journal.deployments(limit=10**30)) == MOST_ROWS
        assert len(await journal.deliveries(limit=10**30)) == MOST_ROWS


@pytest_twisted.ensureDeferred
async def test_no_call_looks_through_a_whole_table(path: Path) -> None:
    """What happens often costs the same in an old journal as in a young one."""
    statements: set[str] = set()
    async with opened(path) as journal:
        for worker in (journal._writer, journal._reader):
            await worker.ask(lambda connection: connection.set_trace_callback(statements.add))
        first = await journal.accept(pushed("one", "blog"))
        deployment = first.queued[0].id
        await journal.accept(pushed("one", "blog"))
        await journal.begin(deployment, 1.0)
        await journal.add_step(deployment, STEP)
        await journal.unfinished()
        await journal.last("blog")
        await journal.last_about("blog", "a" * 40)
        await journal.decided("blog", "a" * 40)
        await journal.ask_again("github", "two", 1.0)
        await journal.enqueue("blog", Trigger.REPLAY, delivery=first.delivery)
        await journal.deployment(deployment)
        await journal.deployments(app="blog")
        await journal.deployments(before=deployment)
        await journal.delivery(first.delivery)
        for worker in (journal._writer, journal._reader):
            await worker.ask(lambda connection: connection.set_trace_callback(None))
    looking = [sql for sql in statements if sql.startswith(("SELECT", "UPDATE", "DELETE")) and "json" not in sql]
    plans = {sql: str(run_sql(path, f"EXPLAIN QUERY PLAN {sql}")) for sql in looking}
    assert len(plans) > 10
    scanned = {sql: plan for sql, plan in plans.items() if re.search("SCAN (?!covered)", plan)}
    assert not {sql: plan for sql, plan in scanned.items() if "deployments_unfinished" not in plan}
    about = [plan for sql, plan in plans.items() if "revision = " in sql and sql.startswith("SELECT")]
    assert len(about) == 2
    assert all("deployments_of_revision (revision=? AND app=?)" in plan for plan in about)


@pytest_twisted.ensureDeferred
async def test_what_pruning_frees_is_given_back_and_deliveries_have_their_turn_meanwhile(path: Path) -> None:
    async with opened(path) as journal:
        for n in range(4):
            receipts = await accepting(journal, [pushed(f"{n} {m} {'x' * 500}", "blog") for m in range(1000)])
            ending = [journal.finish(receipt.queued[0].id, Outcome.DEPLOYED, 2.0) for receipt in receipts]
            await gatherResults([Deferred.fromCoroutine(one) for one in ending])
        before, [(pages,)] = journal.commits, run_sql(path, "PRAGMA page_count")
        pruning = Deferred.fromCoroutine(journal.prune(before=0.0, rows=100))
        during = 0
        while not pruning.called:
            assert (await journal.accept(pushed(f"during {during}", "blog"))).verdict is Verdict.ACCEPTED
            during += 1
        await pruning
        assert during > 5
        assert journal.commits - before > 10
        assert len(await journal.deployments(limit=1000)) <= 100 + during
    assert run_sql(path, "PRAGMA page_count")[0][0] < pages / 4
    assert run_sql(path, "PRAGMA integrity_check") == [("ok",)]


@pytest_twisted.ensureDeferred
async def test_what_is_old_is_told_by_its_place_and_not_by_a_clock_that_was_wrong(path: Path) -> None:
    """The newest word about a revision would else go before the one that it took back."""
    now = [1_700_000_000.0]
    async with opened(path, clock=lambda: now[0]) as journal:

        async def ended(guid: str, outcome: Outcome) -> str:
            [deployment] = (await journal.accept(replace(pushed(guid, "blog"), received_at=now[0]))).queued
            commit = Commit(guid[0] * 40, "", "")
            await journal.describe(deployment.id, commit=commit, previous="0" * 40, release=None)
            await journal.finish(deployment.id, outcome, now[0])
            return deployment.id

        await ended("a put back", Outcome.ROLLED_BACK)
        now[0] = 5.0
        again = await ended("a again", Outcome.DEPLOYED)
        await ended("b", Outcome.DEPLOYED)
        now[0] = 1_700_000_100.0
        await journal.prune(before=now[0] - 3600, rows=100)
        word = await journal.last_about("blog", "a" * 40)
        assert word is not None
        assert word.id == again
        assert (await journal.accept(pushed("a again", "blog"))).verdict is Verdict.DUPLICATE


@pytest_twisted.ensureDeferred
async def test_parked_rows_and_what_was_asked_for_go_with_time(path: Path) -> None:
    now = 1_000_000.0
    async with opened(path, clock=lambda: now) as journal:
        await journal.enqueue("blog", Trigger.POLL)
        run_sql(path, "UPDATE deployments SET phase = ''")
        assert await journal.unfinished() == []
        assert await journal.ask_again("github", "lost", now)
        await journal.prune(before=now - 1, rows=10)
        assert len(await journal.parked()) == 1
        assert not await journal.ask_again("github", "lost", now)
        now += ASKED_FOR + 1
        await journal.prune(before=now - 1, rows=10)
        assert not await journal.parked()
        assert await journal.ask_again("github", "lost", now)


@pytest_twisted.ensureDeferred
async def test_a_delivery_costs_few_statements(path: Path) -> None:
    statements: list[str] = []
    async with opened(path) as journal:
        await journal.accept(pushed("one", "blog"))
        await journal._writer.ask(lambda connection: connection.set_trace_callback(statements.append))
        statements.clear()
        await journal.accept(pushed("two", "blog"))
        assert [sql.split()[0] for sql in statements] == ["BEGIN", "INSERT", "INSERT", "COMMIT"]
        await journal._writer.ask(lambda connection: connection.set_trace_callback(None))


# What waits together is written together.


@pytest_twisted.ensureDeferred
async def test_what_waits_together_is_written_together_and_each_has_its_own_answer(path: Path) -> None:
    async with opened(path) as journal:
        old = await journal.accept(pushed("old", "blog"))
        news = [pushed(f"new-{number}", "blog", "shop") for number in range(ROWS + 1)]
        blocked = Deferred.fromCoroutine(on_the_writing_thread(journal, "SELECT randomblob(1000000)"))
        asked = [Deferred.fromCoroutine(journal.accept(new)) for new in (*news, pushed("old", "blog"), news[0])]
        receipts: list[Receipt] = await settled(asked)
        await blocked
        assert [receipt.verdict.value for receipt in receipts] == ["accepted"] * len(news) + ["duplicate"] * 2
        assert receipts[-2].delivery == old.delivery
        assert receipts[-1].deployments == receipts[0].deployments
        assert len({each.id for receipt in receipts for each in receipt.queued}) == 2 * len(news)
        assert len(await journal.unfinished()) == 1 + 2 * len(news)
