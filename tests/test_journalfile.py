"""The journal's file is damaged, deleted, replaced, full or slow, and the journal outlives it."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import LogLevel, capturedLogs

from tests.contracts import STEP, pushed
from tests.journals import (
    CALL_IN_REACTOR,
    ROOT,
    accepting,
    needs_strace,
    on_the_writing_thread,
    opened,
    refused,
    run_sql,
)
from tests.waiting import become
from twisted_hook.journal import SqliteJournal, file
from twisted_hook.journal.schema import SchemaTooNew
from twisted_hook.model import Commit, JournalUnavailable, Outcome, Steering, Trigger, Verdict

PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite3"


def aside(path: Path) -> list[Path]:
    """What was moved aside, without its write-ahead logs."""
    return sorted(one for one in path.parent.glob("*.damaged-*") if not one.name.endswith(("-wal", "-shm")))


async def filled(path: Path, deliveries: int = 400) -> None:
    """A journal with an app that is pinned, one revision that was put back, and enough to fill many pages."""
    async with opened(path) as journal:
        await journal.steer("blog", Steering(pinned=True))
        await journal.steer("shop", Steering(paused=True))
        receipts = await accepting(journal, [pushed(f"{n} {'x' * 300}", "blog") for n in range(deliveries)])
        steps = [journal.add_step(receipt.queued[0].id, STEP) for receipt in receipts]
        await gatherResults([Deferred.fromCoroutine(step) for step in steps])
        back = await journal.enqueue("blog", Trigger.ROLLBACK)
        await journal.describe(back.id, commit=Commit("a" * 40, "", ""), previous="b" * 40, release=None)
        await journal.finish(back.id, Outcome.DEPLOYED, 2.0)


def pages_of(path: Path, name: str) -> list[int]:
    """The numbers of the pages of a table or index that hold rows, in order."""
    sql = f"SELECT pageno FROM dbstat WHERE name = '{name}' AND pagetype = 'leaf' ORDER BY path"
    return [number for (number,) in run_sql(path, sql)]


def spoil(path: Path, page: int) -> None:
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(b"\xa5" * PAGE)


@asynccontextmanager
async def renewing(path: Path, **options: Any) -> AsyncIterator[tuple[SqliteJournal, list[Path]]]:
    """A journal, and what it says to have moved aside."""
    renewed: list[Path] = []
    async with opened(path, renewed=renewed.append, **options) as journal:
        yield journal, renewed


# Damage.


@pytest.mark.parametrize("content", [b"not a database, but long enough to look at" * 100, b"short", b"\0" * 9000])
@pytest_twisted.ensureDeferred
async def test_what_is_no_database_is_moved_aside(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    SqliteJournal.probe(path)
    assert path.read_bytes() == content
    with capturedLogs() as logged:
        async with renewing(path) as (journal, renewed):
            assert (await journal.accept(pushed("one", "blog"))).verdict is Verdict.ACCEPTED
            await become(lambda: renewed)
    [moved] = aside(path)
    assert renewed == [moved]
    assert moved.read_bytes() == content
    said = [event for event in logged if event.get("log_level") is LogLevel.critical]
    assert [event["aside"] for event in said] == [str(moved)]
    assert {one.name for one in path.parent.iterdir()} == {path.name, moved.name}
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("table", ["deployments", "deliveries", "steps", "sqlite_autoindex_deliveries_1"])
@pytest_twisted.ensureDeferred
async def test_a_damaged_page_costs_the_rows_on_it(path: Path, table: str) -> None:
    await filled(path)
    pages = pages_of(path, table)
    assert len(pages) >= 3
    spoil(path, pages[len(pages) // 2])
    async with renewing(path) as (journal, renewed):
        await become(lambda: renewed)
        assert len(aside(path)) == 1
        assert await journal.steering("blog") == Steering(pinned=True)
        assert await journal.steering("shop") == Steering(paused=True)
        last = await journal.last_about("blog", "b" * 40)
        assert last is not None
        assert last.trigger is Trigger.ROLLBACK
        deliveries, deployments = await journal.deliveries(limit=1000), await journal.deployments(limit=1000)
        assert 350 < len(deliveries) <= 400
        assert 300 < len(deployments) <= 401
        assert deliveries[0].guid.startswith("399 ")
        assert deliveries[-1].guid.startswith("0 ")
        if table.startswith("sqlite"):
            assert (len(deliveries), len(deployments)) == (400, 401)
        assert (await journal.accept(pushed("new", "blog"))).verdict is Verdict.ACCEPTED
    assert run_sql(path, "PRAGMA integrity_check") == [("ok",)]
    assert run_sql(path, "PRAGMA foreign_key_check") == []
    async with renewing(path) as (journal, again):
        await journal.rows()  # in a later turn of the reactor than that of the opening
        assert not again


@pytest_twisted.ensureDeferred
async def test_any_one_page_may_be_damaged_and_the_journal_opens(path: Path, tmp_path: Path) -> None:
    """Page for page; of all but the first, which says where all else is, what people have steered is carried over."""
    await filled(path, 40)
    whole = path.read_bytes()
    [steering] = [page for (page,) in run_sql(path, "SELECT pageno FROM dbstat WHERE name = 'steering'")]
    for page in range(1, len(whole) // PAGE + 1):
        one = tmp_path / f"{page}" / "journal.sqlite3"
        one.parent.mkdir()
        one.write_bytes(whole)
        spoil(one, page)
        async with opened(one) as journal:
            assert (await journal.accept(pushed("new", "blog"))).queued
            if page not in (1, steering):
                assert (await journal.steering("blog")).pinned, page
        assert run_sql(one, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize(("was", "by"), [(b"phase  ", b"phasf  "), (b"STRICT", b"STR\xcaCT")])
@pytest_twisted.ensureDeferred
async def test_a_damaged_schema_costs_no_more_than_it_must(path: Path, was: bytes, by: bytes) -> None:
    """A column has another name; or SQLite quotes, in its complaint, what is no text."""
    await filled(path, 40)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(was, by, 1))
    SqliteJournal.probe(path)
    async with renewing(path) as (journal, renewed):
        await become(lambda: renewed)
        assert await journal.steering("blog") == Steering(pinned=True)
        assert (await journal.accept(pushed("new", "blog"))).queued
        assert len(await journal.deliveries(limit=1000)) == 41 if was == b"phase  " else True


@pytest_twisted.ensureDeferred
async def test_rows_of_an_older_schema_are_carried_over_too(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.executescript(Path(__file__).with_name("schema_2.sql").read_text())
        connection.execute("INSERT INTO steering VALUES ('blog', 0, 1)")
        rows = [(n, f"{n} {'x' * 300}", f"{n}") for n in range(1, 200)]
        connection.executemany(
            "INSERT INTO deliveries VALUES (?, 'github', ?, ?, 'push', 'accepted', '', 'a', 'b', 'c', 1.0)", rows
        )
    connection.close()
    spoil(path, pages_of(path, "deliveries")[3])
    async with renewing(path) as (journal, renewed):
        await become(lambda: renewed)
        assert await journal.steering("blog") == Steering(pinned=True)
        assert 170 < len(await journal.deliveries(limit=1000)) < 199


@pytest_twisted.ensureDeferred
async def test_what_was_covered_by_a_lost_deployment_is_to_be_tried_again(path: Path) -> None:
    await filled(path)
    async with opened(path) as journal:
        newest = (await journal.deployments(limit=1))[0]
        await journal.supersede({one.id: newest.id for one in await journal.unfinished()}, 1.0)
    spoil(path, pages_of(path, "deployments")[-1])
    async with opened(path) as journal:
        assert await journal.deployment(newest.id) is None
        assert {(one.outcome, one.transient) for one in await journal.deployments(limit=1000)} == {
            (Outcome.FAILED, True)
        }
        assert len((await journal.accept(pushed(f"0 {'x' * 300}", "blog"))).queued) == 1


@pytest_twisted.ensureDeferred
async def test_a_newer_schema_is_never_taken_for_damage(path: Path) -> None:
    await filled(path)
    run_sql(path, "PRAGMA user_version = 7")
    spoil(path, pages_of(path, "deliveries")[0])
    before = path.read_bytes()
    for opening in (SqliteJournal.probe, lambda path: SqliteJournal.open(path, CALL_IN_REACTOR)):
        with pytest.raises(SchemaTooNew):
            opening(path)
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("met", ["by a write", "by a read"])
@pytest_twisted.ensureDeferred
async def test_damage_in_the_midst_of_work_refuses_one_call_and_no_other(path: Path, met: str) -> None:
    """One that meets it is told so; both connections come to the new file, with nothing else to bring them there."""
    await filled(path)
    index, table = pages_of(path, "sqlite_autoindex_deliveries_1"), pages_of(path, "deployments")
    async with renewing(path) as (journal, renewed):
        for page in index if met == "by a write" else [table[len(table) // 2]]:
            spoil(path, page)
        await on_the_writing_thread(journal, "PRAGMA shrink_memory")  # or it would not look at the file at all
        if met == "by a write":
            assert "malformed" in await refused(journal, pushed("new", "blog"))
        else:
            with pytest.raises(JournalUnavailable, match="malformed"):
                await journal.deployments(limit=1000)
        await become(lambda: renewed)
        assert (await journal.accept(pushed("new", "blog"))).verdict is Verdict.ACCEPTED
        assert len(await journal.deliveries(limit=1000)) == 401
        assert await journal.steering("blog") == Steering(pinned=True)
        assert renewed == aside(path)
        [(newest,)] = run_sql(path, "SELECT guid FROM deliveries ORDER BY id DESC LIMIT 1")
        assert newest == "new"
    assert run_sql(path, "PRAGMA integrity_check") == [("ok",)]


@pytest_twisted.ensureDeferred
async def test_damage_that_cannot_be_healed_now_is_healed_later(path: Path) -> None:
    await filled(path)
    async with renewing(path) as (journal, renewed):
        obstacle = path.with_name(path.name + ".new")
        obstacle.mkdir()
        for page in pages_of(path, "sqlite_autoindex_deliveries_1"):
            spoil(path, page)
        await on_the_writing_thread(journal, "PRAGMA shrink_memory")
        for n in range(3):
            await refused(journal, pushed(f"{n}", "blog"))
        obstacle.rmdir()
        assert (await journal.accept(pushed("0", "blog"))).verdict is Verdict.ACCEPTED
        await become(lambda: renewed)
        assert len(aside(path)) == 1


# A file that others take away.


@pytest.mark.parametrize("gone", [("",), ("", "-wal", "-shm"), ("-wal",), ("-wal", "-shm")])
@pytest_twisted.ensureDeferred
async def test_a_file_that_is_deleted_under_us_is_written_again(path: Path, gone: tuple[str, ...]) -> None:
    """What was acknowledged before is still there, and so is what is acknowledged after."""
    async with renewing(path) as (journal, renewed):
        await journal.steer("blog", Steering(pinned=True))
        await journal.accept(pushed("before", "blog"))
        for ending in gone:
            Path(f"{path}{ending}").unlink()
        assert (await journal.accept(pushed("after", "blog"))).verdict is Verdict.ACCEPTED
        assert [one.guid for one in await journal.deliveries()] == ["after", "before"]
        await become(lambda: renewed)
        assert [one for (one,) in run_sql(path, "SELECT guid FROM deliveries ORDER BY id")] == ["before", "after"]
        assert await journal.steering("blog") == Steering(pinned=True)
    async with opened(path) as journal:
        assert [one.guid for one in await journal.deliveries()] == ["after", "before"]
    assert run_sql(path, "PRAGMA integrity_check") == [("ok",)]


@pytest_twisted.ensureDeferred
async def test_a_read_finds_its_file_again_by_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "PATIENCE", 60.0)
    async with opened(path) as journal:
        await journal.accept(pushed("before", "blog"))
        path.unlink()
        assert [one.guid for one in await journal.deliveries()] == ["before"]
        assert path.exists()


@pytest_twisted.ensureDeferred
async def test_a_directory_that_is_deleted_under_us_refuses_until_it_is_back(path: Path, tmp_path: Path) -> None:
    path = tmp_path / "state" / "journal.sqlite3"
    path.parent.mkdir()
    async with opened(path) as journal:
        await journal.accept(pushed("before", "blog"))
        shutil.rmtree(path.parent)
        for n in range(2):
            await refused(journal, pushed(f"{n}", "blog"))
        path.parent.mkdir()
        assert (await journal.accept(pushed("0", "blog"))).verdict is Verdict.ACCEPTED
        assert [one.guid for one in await journal.deliveries()] == ["0", "before"]


@pytest.mark.parametrize("log_is_left", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_file_that_is_put_in_its_place_is_taken_as_it_is(path: Path, tmp_path: Path, log_is_left: bool) -> None:
    """A person restores a copy; nothing of the former file's log must be taken for the log of this one."""
    copy = tmp_path / "copy.sqlite3"
    async with opened(path) as journal:
        await journal.accept(pushed("then", "blog"))
    shutil.copy(path, copy)
    async with renewing(path) as (journal, renewed):
        for n in range(50):
            await journal.accept(pushed(f"{n} {'x' * 3000}", "blog"))
        copy.replace(path)
        if not log_is_left:
            Path(f"{path}-wal").unlink()
        assert (await journal.accept(pushed("after", "blog"))).verdict is Verdict.ACCEPTED
        assert [one.guid for one in await journal.deliveries()] == ["after", "then"]
        await become(lambda: renewed)
        assert len(list(tmp_path.glob("*.damaged-*-shm"))) == 1
    assert run_sql(path, "PRAGMA integrity_check") == [("ok",)]


@pytest_twisted.ensureDeferred
async def test_a_file_of_a_newer_schema_in_its_place_is_left_alone(path: Path, tmp_path: Path) -> None:
    newer, ours = tmp_path / "newer.sqlite3", tmp_path / "ours.sqlite3"
    run_sql(newer, "CREATE TABLE things (id)", "PRAGMA user_version = 7")
    before = newer.read_bytes()
    async with renewing(path) as (journal, renewed):
        await journal.accept(pushed("before", "blog"))
        path.rename(ours)
        shutil.copy(newer, path)
        for n in range(3):
            with pytest.raises(SchemaTooNew):
                await journal.accept(pushed(f"{n}", "blog"))
        assert path.read_bytes() == before
        assert not renewed
        path.unlink()
        assert (await journal.accept(pushed("after", "blog"))).verdict is Verdict.ACCEPTED
        assert [one.guid for one in await journal.deliveries()] == ["after", "before"]
        await become(lambda: renewed)
        assert len(renewed) == 1


@pytest_twisted.ensureDeferred
async def test_a_start_between_two_renames_finds_the_new_file(path: Path) -> None:
    await filled(path, 3)
    path.rename(f"{path}.new")
    async with opened(path) as journal:
        assert await journal.steering("blog") == Steering(pinned=True)


@pytest_twisted.ensureDeferred
async def test_a_kill_between_any_two_renames_costs_no_row(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one that is in the write-ahead log alone: that stays with its file until there is another."""
    left_by_a_kill: list[Path] = []
    rename = Path.rename

    def as_a_kill_leaves_it(old: Path, new: str) -> Path:
        left_by_a_kill.append(tmp_path / f"after {len(left_by_a_kill)} renames")
        left_by_a_kill[-1].mkdir()
        for one in path.parent.glob(f"{path.name}*"):
            shutil.copy(one, left_by_a_kill[-1])
        return rename(old, new)

    await filled(path, 50)
    async with renewing(path) as (journal, renewed):
        await journal.accept(pushed("! in the log alone", "blog"))  # far from the others in the index
        for page in pages_of(path, "sqlite_autoindex_deliveries_1"):
            spoil(path, page)
        await on_the_writing_thread(journal, "PRAGMA shrink_memory")
        monkeypatch.setattr(Path, "rename", as_a_kill_leaves_it)
        await refused(journal, pushed("refused", "blog"))
        await become(lambda: renewed)
        monkeypatch.undo()
    assert len(left_by_a_kill) == 4
    for directory in left_by_a_kill:
        async with opened(directory / path.name) as restarted:
            assert (await restarted.deliveries())[0].guid == "! in the log alone", directory.name
        assert run_sql(directory / path.name, "PRAGMA integrity_check") == [("ok",)]


# A disk that is full, broken or slow.


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of its own, with room for a young journal."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(directory)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(filler: Path) -> None:
    """Take all the room that there is."""
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 1024)


@pytest_twisted.ensureDeferred
async def test_a_disk_that_is_really_full_refuses_and_heals(small_disk: Path) -> None:
    """P85."""
    path, filler = small_disk / "journal.sqlite3", small_disk / "filler"
    async with opened(path) as journal:
        accepted = [(await journal.accept(pushed("first", "blog"))).delivery]
        for again in range(3):
            fill(filler)
            said: list[str] = []
            for n in range(20):
                try:
                    receipt = await journal.accept(pushed(f"{again} {n} {'x' * 3000}", "blog"))
                    accepted.append(receipt.delivery)
                except JournalUnavailable as unavailable:
                    said.append(str(unavailable))
            assert len(said) > 10
            assert set(said) <= {"database or disk is full", "disk I/O error"}
            assert len(await journal.deliveries(limit=1000)) == len(accepted)
            filler.unlink()
            accepted.append((await journal.accept(pushed(f"{again} after", "blog"))).delivery)
        assert [one.id for one in reversed(await journal.deliveries(limit=1000))] == accepted
    assert run_sql(path, "PRAGMA integrity_check") == [("ok",)]


@pytest_twisted.ensureDeferred
async def test_a_damaged_file_is_made_anew_as_a_whole_or_not_yet(small_disk: Path, tmp_path: Path) -> None:
    """P85: there may be room for the rows in the write-ahead log of the new file, and none for them in the file."""
    path, filler, damaged = small_disk / "journal.sqlite3", small_disk / "filler", tmp_path / "damaged"
    await filled(damaged, 12)
    spoil(damaged, pages_of(damaged, "sqlite_autoindex_deliveries_1")[0])
    refusals = 0
    for room in range(0, 400, 8):
        for leftover in small_disk.iterdir():
            leftover.unlink()
        shutil.copy(damaged, path)
        fill(filler)
        os.truncate(filler, max(filler.stat().st_size - room * 1024, 0))
        try:
            await SqliteJournal.open(path, CALL_IN_REACTOR).close()
        except JournalUnavailable:
            refusals += 1
        filler.unlink()
        async with opened(path) as journal:
            assert len(await journal.deliveries()) == 12, f"with {room} KiB"
            assert await journal.steering("blog") == Steering(pinned=True)
    assert 0 < refusals < 50


@pytest_twisted.ensureDeferred
async def test_a_journal_on_a_full_disk_opens_as_soon_as_there_is_room(small_disk: Path) -> None:
    path, filler = small_disk / "journal.sqlite3", small_disk / "filler"
    fill(filler)
    for _ in range(2):
        with pytest.raises(JournalUnavailable, match=r"full|disk I/O"):
            SqliteJournal.open(path, CALL_IN_REACTOR)
    filler.unlink()
    async with renewing(path) as (journal, renewed):
        assert (await journal.accept(pushed("one", "blog"))).verdict is Verdict.ACCEPTED
        assert not renewed


def run(*argv: str | Path) -> str:
    """What it prints."""
    return subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


CALLS = 100
"""More than a thread makes for a few deliveries."""

FEW = """
import os
import sys
from contextlib import suppress
from pathlib import Path
from tests.contracts import pushed
from tests.journals import Pump
from twisted_hook.journal import SqliteJournal
from twisted_hook.model import JournalUnavailable

async def accept_some(journal, name, spend):
    await journal._writer.ask(spend)
    for n in range(3):
        try:
            said = (await journal.accept(pushed(str(n), "blog"))).delivery
        except JournalUnavailable:
            said = (await journal.accept(pushed(str(n), "blog"))).delivery
        print(name, said, flush=True)
    await journal.close()

def serve(name, calls, spare, useless):
    def spend(_):
        for _ in range(spare):
            with suppress(OSError):
                os.fdatasync(useless) if calls == "fdatasync" else os.pwrite(useless, b"", 0)
    spend(None)
    pump = Pump()
    with suppress(JournalUnavailable):
        journal = SqliteJournal.open(Path(name, "journal.sqlite3"), pump.call)
        pump.run(accept_some(journal, name, spend))

calls, number_of_calls, useless, *names = *sys.argv[1:3], os.pipe()[1], *sys.argv[3:]
for name in names:
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, name
    else:
        serve(name, calls, int(number_of_calls) - int(Path(name).name), useless)
        os._exit(0)
"""


@needs_strace
@pytest.mark.parametrize(("calls", "failing"), [("pwrite64", range(1, CALLS, 5)), ("fdatasync", range(1, 30))])
@pytest_twisted.ensureDeferred
async def test_whichever_call_fails_what_was_acknowledged_is_there(tmp_path: Path, calls: str, failing: range) -> None:
    """T34, P85: the first fails, a later one, and so on until none is left to fail; the next call is served.

    There are some seventy writes, of which every fifth has to do. Each has a process of its own, forked from one, in
    which strace lets the same call of each thread fail: a thread first makes so many that do nothing.
    """
    error = "ENOSPC" if calls == "pwrite64" else "EIO"
    fresh = tmp_path / "fresh.sqlite3"
    await SqliteJournal.open(fresh, CALL_IN_REACTOR).close()
    places = [tmp_path / f"{number}" for number in failing]
    for place in places:
        place.mkdir()
        shutil.copy(fresh, place / "journal.sqlite3")
    strace = ["strace", "-ff", "-y", "-qq", "-o", str(tmp_path / "trace"), "--seccomp-bpf", "-e", f"trace={calls}"]
    inject = ["-e", f"inject={calls}:error={error}:when={CALLS}"]
    said = run(*strace, *inject, sys.executable, "-c", FEW, calls, f"{CALLS}", *places)
    traces = [trace.read_text() for trace in tmp_path.glob("trace.*")]  # one of each thread
    failed = {int(number) for trace in traces for number in re.findall(r"/(\d+)/journal.*INJECTED", trace)}
    assert len(failed) > 3
    assert failing[-1] not in failed
    for number, place in zip(failing, places, strict=True):
        path = place / "journal.sqlite3"
        acknowledged = [line.split()[1] for line in said.splitlines() if line.startswith(f"{place} ")]
        assert len(acknowledged) == 3 or (number in failed and not acknowledged), number
        async with renewing(path) as (journal, renewed):
            assert [one.id for one in reversed(await journal.deliveries())] == acknowledged, number
            assert len(await journal.unfinished()) == len(acknowledged)
            assert not renewed
        assert run_sql(path, "PRAGMA integrity_check") == [("ok",)]


SLOW = """
import sys
from pathlib import Path
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import LoopingCall, react
from tests.contracts import pushed
from twisted_hook.journal import SqliteJournal

async def main(reactor):
    journal = SqliteJournal.open(Path(sys.argv[1]), reactor.callFromThread)
    turns = []
    turning = LoopingCall(turns.append, "one more")
    turning.start(0.01)
    for n in range(3):
        turns.clear()
        burst = [journal.accept(pushed(f"{n} {m}", "blog")) for m in range(20)]
        await gatherResults([Deferred.fromCoroutine(one) for one in burst])
        print(len(turns))
    turning.stop()
    print(journal.commits)
    await journal.close()

react(main)
"""


@needs_strace
def test_a_slow_disk_never_stalls_the_reactor(path: Path) -> None:
    """Each fdatasync takes 500 ms more: if the reactor waited for it, it would not turn in any of the bursts.

    It is enough if it does in one of them: the machine may be busy with something else.
    """
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "--seccomp-bpf", "-e", "trace=fdatasync"]
    inject = ["-e", "inject=fdatasync:delay_enter=500000"]
    *turns, commits = map(int, run(*strace, *inject, sys.executable, "-c", SLOW, path).split())
    assert commits <= 9
    assert max(turns) > 2 * commits


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of somebody else's")
@pytest_twisted.ensureDeferred
async def test_a_file_that_becomes_read_only_refuses_until_it_is_ours_again() -> None:
    """And a directory. What is open already is written on; a connection that has to be made anew cannot be."""
    directory = Path(mkdtemp())  # not below that of the tests, which is for root alone
    os.chown(directory, 65534, 65534)
    path = directory / "journal.sqlite3"
    os.setegid(65534)
    os.seteuid(65534)
    try:
        async with opened(path) as journal:
            await journal.accept(pushed("before", "blog"))
            for target, mode in ((path, 0o400), (directory, 0o500)):
                before = target.stat().st_mode
                target.chmod(mode)
                await on_the_writing_thread(journal, "PRAGMA query_only = ON")
                await refused(journal, pushed(f"{mode} during", "blog"))
                target.chmod(before)
                assert (await journal.accept(pushed(f"{mode} after", "blog"))).verdict is Verdict.ACCEPTED
            assert (await journal.deliveries())[0].guid == f"{0o500} after"
    finally:
        os.seteuid(0)
        os.setegid(0)
        shutil.rmtree(directory)


@pytest_twisted.ensureDeferred
async def test_a_thousand_superseded_deployments_cost_few_commits(path: Path) -> None:
    async with opened(path) as journal:
        receipts = await accepting(journal, [pushed(str(n), "blog") for n in range(1000)])
        *covered, newest = [receipt.queued[0].id for receipt in receipts]
        before = journal.commits
        for one in covered:
            Deferred.fromCoroutine(journal.supersede({one: newest}, 1.0))
        assert [one.id for one in [await journal.begin(newest, 1.0)]] == [newest]
        assert journal.commits - before <= 20
        assert [one.id for one in await journal.unfinished()] == [newest]
