"""A full disk: what was there stays, nothing is added to what fills it, and when there is room again it works."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase

from tests.gitorigin import Origin, ambient
from twisted_hook.clone import Clone
from twisted_hook.model import Command, CommandResult, NoRoom, StepFailed, Tree
from twisted_hook.process import SpawningRunner
from twisted_hook.releases import Releases
from twisted_hook.repository import explained, failed, is_damage

SIZE = 6 * 1024**2


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def run() -> SpawningRunner:
    return SpawningRunner(reactor)


def fill(disk: Path, *, but: int) -> Path:
    """Leave so many bytes free on it."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - but))
    return ballast


def noise(size: int, number: int = 10) -> dict[str, str | None]:
    return {f"noise/{name:02}": os.urandom(size // number // 2).hex() for name in range(number)}


def releases(origin: Origin, state: Path) -> Releases:
    times = count(1_790_000_000)
    return Releases(
        app="blog",
        url=origin.url,
        branch="main",
        directory=state / "apps" / "blog",
        mirror=state / "mirrors" / "blog.git",
        keep_newest=5,
        ambient=ambient(origin.directory),
        now=lambda: float(next(times)),
        least_index=0,
    )


async def deploy(checkout: Releases | Clone, run: SpawningRunner) -> Tree:
    tree = await checkout.take(run, await checkout.fetch(run))
    await checkout.keep(run, tree)
    await checkout.retire(run, ())
    return tree


@pytest_twisted.ensureDeferred
async def test_a_fetch_without_room_leaves_nothing(tmp_path: Path, disk: Path, run: SpawningRunner) -> None:
    """P84."""
    origin = Origin.create(tmp_path / "origin")
    checkout = releases(origin, disk)
    first = await deploy(checkout, run)
    revision = origin.push(noise(1_000_000))
    ballast = fill(disk, but=200_000)
    before = shutil.disk_usage(disk).used
    for _ in range(3):
        with pytest.raises(NoRoom, match="branch main could not be fetched: the disk is full"):
            await checkout.fetch(run)
        assert shutil.disk_usage(disk).used <= before
    assert await checkout.current(run) == first
    ballast.unlink()
    assert (await deploy(checkout, run)).commit.revision == revision


@pytest_twisted.ensureDeferred
async def test_a_first_fetch_without_room_works_when_there_is_some(
    tmp_path: Path, disk: Path, run: SpawningRunner
) -> None:
    """P84: there is not even a mirror yet, nor room for an empty one."""
    origin = Origin.create(tmp_path / "origin")
    revision = origin.push(noise(1_000_000))
    checkout = releases(origin, disk)
    for but in (0, 4096, 30_000, 200_000):
        ballast = fill(disk, but=but)
        for _ in range(2):
            with pytest.raises(NoRoom):
                await checkout.fetch(run)
        ballast.unlink()
    assert (await deploy(checkout, run)).commit.revision == revision


@pytest.mark.parametrize("forward", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_release_without_room_leaves_nothing(
    tmp_path: Path, disk: Path, run: SpawningRunner, forward: bool
) -> None:
    """P84: the commit fits, its tree does not; ``forward`` where there is a spare to be brought forward."""
    origin = Origin.create(tmp_path / "origin")
    checkout = releases(origin, disk)
    for number in range(7 if forward else 1):
        origin.push({"number": f"{number}\n"})
        served = await deploy(checkout, run)
    revision = origin.push(noise(1_000_000))
    commit = await checkout.fetch(run)
    ballast = fill(disk, but=200_000)
    before = shutil.disk_usage(disk).used
    for _ in range(3):
        with pytest.raises(NoRoom):
            await checkout.take(run, commit)
        assert shutil.disk_usage(disk).used <= before
    assert await checkout.current(run) == served
    ballast.unlink()
    tree = await deploy(checkout, run)
    assert tree.commit.revision == revision
    assert len(list((tree.path / "noise").iterdir())) == 10


@pytest.mark.parametrize("update", ["rebase", "ff-only", "reset"])
@pytest.mark.parametrize("fetched", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_clone_without_room_is_as_it_was(
    tmp_path: Path, disk: Path, run: SpawningRunner, update: str, fetched: bool
) -> None:
    """P84: with ``fetched`` the commit is there, and only the files do not fit."""
    origin = Origin.create(tmp_path / "origin", {"app.py": "one\n", "noise/00": "small\n"})
    path, state = disk / "clone", tmp_path / "state"
    origin.git("clone", "--quiet", origin.url, str(path))
    clone = Clone(path, "main", update, state, ambient(origin.directory), lambda: 1_790_000_000.0)
    first = await deploy(clone, run)
    revision = origin.push({**noise(1_000_000), "app.py": "two\n"})
    if fetched:
        await clone.fetch(run)
    ballast = fill(disk, but=300_000)
    for _ in range(2):
        with pytest.raises(NoRoom):
            await deploy(clone, run)
        assert await clone.current(run) == first
        assert (path / "app.py").read_text() == "one\n"
        assert (path / "noise" / "00").read_text() == "small\n"
    ballast.unlink()
    assert update == "reset" or origin.git("status", "--porcelain", at=path) == ""
    assert (await deploy(clone, run)).commit.revision == revision
    assert len(list((path / "noise").iterdir())) == 10


class WordsTests(SynchronousTestCase):
    def failure(self, tail: str) -> StepFailed:
        command = Command("git fetch", ("git", "fetch"), {})
        return failed("main could not be fetched", CommandResult(command, 128, None, False, 1.0, b"", tail))

    def test_a_full_disk_of_ours_is_no_damage(self) -> None:
        """Otherwise the mirror would be thrown away, and there would be no room for another."""
        problem = self.failure("error: object file x is empty\nfatal: write error: No space left on device")
        self.assertIsInstance(problem, NoRoom)
        self.assertFalse(is_damage(problem))
        self.assertIsInstance(self.failure("fatal: write error: Disk quota exceeded"), NoRoom)

    def test_a_full_disk_of_the_remotes_is_not_ours(self) -> None:
        problem = self.failure("remote: fatal: write error: No space left on device\nfatal: early EOF")
        self.assertNotIsInstance(problem, NoRoom)
        self.assertIn("the remote's disk is full", problem.summary)

    def test_what_our_own_writing_meets_is_told_alike(self) -> None:
        for number, kind in ((28, NoRoom), (122, NoRoom), (13, StepFailed)):
            with self.assertRaises(StepFailed) as caught, explained("x"):
                raise OSError(number, os.strerror(number), "/x")
            self.assertIs(type(caught.exception), kind)
