"""A clone in place whose git was killed while it wrote: it heals by itself, and what is a person's is kept."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError

from tests.gitorigin import Killed, KilledWhen, Origin
from tests.patient import up_when
from tests.test_clone import MODES, START, World, begin_a_rebase, deploy, git_at_work
from twisted_hook.boundaries import CommandRunner
from twisted_hook.model import Command, CommandResult, StepFailed
from twisted_hook.process import SpawningRunner

MANY = 300
MIDDLE = f"many/{MANY // 2:04}"
BACK_AND_FORTH = ("forwards", "back")

OLD = {
    **{f"many/{number:04}": f"old {number}\n" for number in range(MANY)},
    "becomes-directory": "old\n",
    "becomes-file/inner": "old\n",
    "goes": "old\n",
    "notes": "old\n",
    "wsgi.py": "SAY = 1\n",
}
NEW: dict[str, str | None] = {
    **{f"many/{number:04}": f"the new {number}\n" for number in range(MANY)},
    **{f"more/{number:04}": "new\n" for number in range(20)},
    "becomes-directory/inner": "new\n",
    "becomes-file": "new\n",
    "wsgi.py": "SAY = 2\n",
}
IN_ITS_WAY = {"becomes-directory": "old\n", "becomes-file/inner": "old\n"}
"""Of which a reset always keeps copies: it does not ask whether they have changed."""


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The origin's tip brings many files that the clone does not have yet, also in the place of others."""
    directory = tmp_path_factory.mktemp("many")
    origin = Origin.create(directory, OLD)
    path = origin.clone()
    origin.git("rm", "--quiet", "-r", "becomes-directory", "becomes-file", "goes")
    (origin.work / "many" / "0007").chmod(0o755)
    (origin.work / "becomes-link").symlink_to("notes")
    origin.git("add", "becomes-link")
    origin.push(NEW, "tip")
    yield World(origin, path, directory, iter(()))
    shutil.rmtree(directory)


@pytest.fixture
def world(first: World, tmp_path: Path) -> World:
    """A clone of its own for each test."""
    path = tmp_path / "clone"
    shutil.copytree(first.path, path, symlinks=True)
    world = World(first.origin, path, tmp_path / "state" / "apps" / "blog", (START + n for n in count()))
    world.git("update-index", "--refresh")
    return world


def tip_of(world: World) -> str:
    return world.origin.git("rev-parse", "HEAD")


@pytest.fixture
def run() -> SpawningRunner:
    return SpawningRunner(reactor)


async def go(world: World, update: str, way: str, run: CommandRunner) -> None:
    """Deploy the tip, or go back from it."""
    clone = world.clone(update)
    if way == "forwards":
        await deploy(clone, run)
    elif there := await clone.current(run):
        await clone.discard(run, there, ())


async def kill_at(world: World, name: str, update: str, way: str = "forwards") -> None:
    """Kill hookdeploy and its git when git has come to the file of this name, which it has not written yet."""
    started = world.directory / "started"
    world.directory.mkdir(parents=True, exist_ok=True)
    world.git("config", "filter.slow.smudge", f"echo > '{started}'; exec sleep 1000")
    (world.path / ".git" / "info").mkdir(exist_ok=True)
    world.write(".git/info/attributes", f"{name} filter=slow\n")
    with pytest.raises(Killed):
        await go(world, update, way, KilledWhen(started.exists))
    world.write(".git/info/attributes", "")
    started.unlink()


async def kill_on_seeing(world: World, name: str, update: str, way: str) -> None:
    """Kill git and hookdeploy as soon as git has written this file, wherever it has come to by then."""
    file = world.path / name
    before = file.stat().st_mtime_ns
    with suppress(Killed):
        await go(world, update, way, KilledWhen(lambda: _changed_at(file) not in (before, None), pause=0))


def _changed_at(file: Path) -> int | None:
    with suppress(FileNotFoundError):  # git takes it away before it writes it anew
        return file.stat().st_mtime_ns
    return None


async def prepare(world: World, update: str, way: str) -> tuple[str, str]:
    """The commits between which it will go: from where, to where."""
    start, tip = world.head, tip_of(world)
    if way == "forwards":
        return start, tip
    await world.deploy(update)
    assert world.head == tip
    return tip, start


async def assert_it_heals(world: World, update: str, run: SpawningRunner) -> None:
    """A start, and the deployment that is taken up again."""
    await world.clone(update).recover(run, None)
    assert world.git("status", "--porcelain") == ""
    tree = await world.deploy(update)
    assert tree.commit.revision == world.head == tip_of(world)
    assert world.git("status", "--porcelain") == ""
    assert not (world.directory / "under-way").exists()
    assert (world.path / "many" / "0007").stat().st_mode & 0o100
    assert (world.path / "becomes-link").readlink() == Path("notes")


# Killed at any moment.


@pytest.mark.parametrize(
    ("update", "name"), [*((update, MIDDLE) for update in MODES), ("rebase", "many/0000"), ("rebase", "wsgi.py")]
)
@pytest.mark.parametrize("way", BACK_AND_FORTH)
@pytest_twisted.ensureDeferred
async def test_a_checkout_that_was_killed_is_taken_back(
    world: World, run: SpawningRunner, update: str, way: str, name: str
) -> None:
    """P83: at its beginning, in its middle and at its end."""
    start, _ = await prepare(world, update, way)
    await kill_at(world, name, update, way)
    assert world.head == start
    assert world.git("status", "--porcelain") != ""
    assert (world.path / ".git" / "index.lock").exists()
    await assert_it_heals(world, update, run)
    assert world.saved() == (IN_ITS_WAY if update == "reset" else {})


@pytest.mark.parametrize(
    ("update", "way", "seen"),
    [
        ("rebase", "forwards", 210),
        ("rebase", "back", 3),
        ("ff-only", "forwards", 90),
        ("ff-only", "back", 294),
        ("reset", "forwards", 3),
        ("reset", "back", 150),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_git_that_is_killed_wherever_it_is_leaves_nothing_that_needs_a_person(
    world: World, run: SpawningRunner, update: str, way: str, seen: int
) -> None:
    """P83: also where it has half written a file, or is done."""
    await prepare(world, update, way)
    await kill_on_seeing(world, f"many/{seen:04}", update, way)
    await assert_it_heals(world, update, run)
    assert len(world.saved().keys() - IN_ITS_WAY.keys()) <= 1


@pytest.mark.parametrize("update", MODES)
@pytest.mark.parametrize("way", BACK_AND_FORTH)
@pytest_twisted.ensureDeferred
async def test_what_a_person_does_in_a_half_tree_is_kept(
    world: World, run: SpawningRunner, update: str, way: str
) -> None:
    """P68, P83: they edit after the kill, and before hookdeploy comes back."""
    world.write("uploads/photo", "precious\n")
    await prepare(world, update, way)
    await kill_at(world, MIDDLE, update, way)
    world.write("many/0001", "my edit of what git has written\n")
    world.write("many/0270", "my edit of what git has not written yet\n")
    world.write("notes", "my notes\n")
    world.write("new.py", "mine\n")
    (world.path / "many" / "0271").unlink()
    (world.path / "many" / "0271").mkdir()
    world.write("many/0271/inner", "mine in a directory\n")
    await world.clone(update).recover(run, None)
    assert world.git("status", "--porcelain", "-uall").split("\n") == ["M notes", "?? new.py", "?? uploads/photo"]
    assert (world.read("notes"), world.read("uploads/photo")) == ("my notes\n", "precious\n")
    edits = {
        "many/0001": "my edit of what git has written\n",
        "many/0270": "my edit of what git has not written yet\n",
        "many/0271/inner": "mine in a directory\n",
    }
    saved = edits | (IN_ITS_WAY if update == "reset" else {})
    assert world.saved() == saved
    if update != "reset":
        with pytest.raises(StepFailed, match="has local changes: notes"):
            await world.deploy(update)
        world.git("checkout", "--quiet", "notes")
    await world.deploy(update)
    assert world.head == tip_of(world)
    assert world.git("status", "--porcelain", "-uall").split("\n") == ["?? new.py", "?? uploads/photo"]
    assert world.saved() == saved | ({"notes": "my notes\n"} if update == "reset" else {})


@pytest.mark.parametrize("update", MODES)
@pytest_twisted.ensureDeferred
async def test_what_was_there_before_is_no_work_of_gits(world: World, run: SpawningRunner, update: str) -> None:
    """A person's own file in the place of one that comes, and git was killed before it found that out."""
    world.write("more/0001", "mine\n")
    world.write("notes", "mine\n")
    note(world, world.head, await fetched(world, run))
    await world.clone(update).recover(run, None)
    assert (world.read("more/0001"), world.read("notes"), world.saved()) == ("mine\n", "mine\n", {})


@pytest_twisted.ensureDeferred
async def test_a_link_in_the_place_of_a_directory_is_not_followed(world: World, run: SpawningRunner) -> None:
    """P57: what git has written is there no longer, and what the link leads to is nobody's business."""
    await kill_at(world, "wsgi.py", "rebase")
    elsewhere = world.origin.directory / "elsewhere"
    (world.path / "more").rename(elsewhere)
    (world.path / "more").symlink_to(elsewhere)
    await world.clone().recover(run, None)
    assert len(list(elsewhere.iterdir())) == 20
    assert (world.path / "more").readlink() == elsewhere


# What git leaves between its steps.


def note(world: World, start: str, end: str) -> None:
    world.directory.mkdir(parents=True, exist_ok=True)
    (world.directory / "under-way").write_text(f"{start} {end}\n")


async def fetched(world: World, run: SpawningRunner) -> str:
    return (await world.clone().fetch(run)).revision


@pytest_twisted.ensureDeferred
async def test_a_git_that_was_killed_when_only_head_was_left_to_move_is_taken_back(
    world: World, run: SpawningRunner
) -> None:
    """It writes its index first."""
    start, tip = world.head, await fetched(world, run)
    note(world, start, tip)
    world.git("read-tree", "-m", "-u", start, tip)
    assert world.head == start
    await assert_it_heals(world, "rebase", run)
    assert world.saved() == {}


@pytest.mark.parametrize("written", [(), ("interactive",), ("interactive", "head-name", "orig-head")])
@pytest_twisted.ensureDeferred
async def test_a_rebase_that_had_hardly_begun_is_no_persons(
    world: World, run: SpawningRunner, written: tuple[str, ...]
) -> None:
    """git was killed while it wrote down what it was going to do, or while it forgot that again."""
    start, tip = world.head, await fetched(world, run)
    note(world, start, tip)
    (world.path / ".git" / "rebase-merge").mkdir()
    for name in written:
        world.write(f".git/rebase-merge/{name}", f"{start}\n" if name == "orig-head" else "")
    await assert_it_heals(world, "rebase", run)


@pytest.mark.parametrize("name", ["many/0000", "wsgi.py"])
@pytest_twisted.ensureDeferred
async def test_a_rebase_that_was_killed_in_its_checkout_is_taken_back(
    world: World, run: SpawningRunner, name: str
) -> None:
    """P68, P83: it has local commits to bring along, and a person edits in between."""
    mine = world.commit("local.py", "mine\n")
    await kill_at(world, name, "rebase")
    assert (world.path / ".git" / "rebase-merge").is_dir()
    world.write("notes", "my notes\n")
    world.write("many/0000", "my edit\n")
    await world.clone().recover(run, None)
    assert (world.head, world.git("symbolic-ref", "HEAD")) == (mine, "refs/heads/main")
    assert world.git("status", "--porcelain") == "M notes"
    assert world.saved() == {"many/0000": "my edit\n"}
    world.git("checkout", "--quiet", "notes")
    await world.deploy()
    assert world.git("log", "-2", "--format=%s").splitlines() == ["local", "tip"]
    assert world.git("status", "--porcelain") == ""


@pytest_twisted.ensureDeferred
async def test_what_a_person_does_in_a_rebase_of_ours_that_was_killed_is_kept(
    world: World, run: SpawningRunner
) -> None:
    """P68, P83: in the midst of its commits, where HEAD is on no branch."""
    world.commit("aaa", "mine\n", "harmless")
    mine = world.commit("zzz", "mine\n", "slow")
    await kill_at(world, "zzz", "rebase")
    assert world.git("log", "-1", "--format=%s", "HEAD") in ("tip", "harmless")
    world.write("notes", "my notes\n")
    await world.clone().recover(run, None)
    assert (world.head, world.git("symbolic-ref", "HEAD")) == (mine, "refs/heads/main")
    assert (world.git("status", "--porcelain"), world.saved()) == ("M notes", {})


@pytest.mark.parametrize("update", MODES)
@pytest_twisted.ensureDeferred
async def test_a_git_whose_time_is_up_leaves_the_clone_as_it_was(
    world: World, run: SpawningRunner, update: str, tmp_path: Path
) -> None:
    before = world.everything()
    clone = world.clone(update)
    tip = await clone.fetch(run)
    begun = tmp_path / "begun"
    world.git("config", "filter.slow.smudge", f"grep old || {{ echo > {begun}; exec sleep 1000; }}")
    world.write(".git/info/attributes", f"{MIDDLE} filter=slow\n")

    def is_cut_off() -> bool:
        """Once: what heals afterwards is to have its time."""
        with suppress(FileNotFoundError):
            begun.unlink()
            return True
        return False

    with pytest.raises(StepFailed):
        await replace(clone, timeout=20.0).take(SpawningRunner(up_when(is_cut_off, 20.0)), tip)
    assert world.everything() == before


@pytest_twisted.ensureDeferred
async def test_a_healing_that_is_cut_off_is_repeated(world: World, run: SpawningRunner) -> None:
    """P83: before each of its commands."""
    mine = world.commit("local.py", "mine\n")
    await kill_at(world, MIDDLE, "rebase")
    world.write("many/0001", "my edit\n")

    class CutOff:
        def __init__(self, left: int) -> None:
            self.left = left

        async def run(self, command: Command, *, output: Callable[[bytes], None] | None = None) -> CommandResult:
            if self.left == 0:
                raise CancelledError
            self.left -= 1
            return await run.run(command, output=output)

    times = 0
    while (world.directory / "under-way").exists():
        with suppress(CancelledError):
            await world.clone().recover(CutOff(times), None)
        times += 1
    assert times > 9
    await world.clone().recover(run, None)
    assert (world.head, world.git("symbolic-ref", "HEAD")) == (mine, "refs/heads/main")
    assert (world.git("status", "--porcelain"), world.saved()) == ("", {"many/0001": "my edit\n"})


# What is left alone.


@pytest_twisted.ensureDeferred
async def test_a_half_tree_in_which_a_person_has_gone_on_is_theirs(world: World, run: SpawningRunner) -> None:
    await kill_at(world, MIDDLE, "rebase")
    (world.path / ".git" / "index.lock").unlink()
    world.git("add", "--all")
    world.git("commit", "--quiet", "--message", "I take it as it is")
    world.write("many/0001", "and go on\n")
    before = world.everything()
    await world.clone().recover(run, None)
    assert world.everything() == before
    assert not (world.directory / "under-way").exists()


@pytest_twisted.ensureDeferred
async def test_a_half_tree_is_left_alone_while_a_git_runs_in_the_clone(world: World, run: SpawningRunner) -> None:
    """P67: and taken back by the first deployment after that."""
    await kill_at(world, MIDDLE, "rebase")
    before = world.git("status", "--porcelain")
    with git_at_work(world.path):
        await world.clone().recover(run, None)
        with pytest.raises(StepFailed, match="is half written, and another git command is at work there"):
            await world.deploy()
        assert world.git("status", "--porcelain") == before
    await world.deploy()
    assert (world.head, world.git("status", "--porcelain"), world.saved()) == (tip_of(world), "", {})


@pytest_twisted.ensureDeferred
async def test_what_a_person_edits_after_their_git_was_in_our_way_stays(world: World, run: SpawningRunner) -> None:
    """P67: a lock of theirs was held, so that nothing of ours was begun."""
    (world.path / ".git" / "index.lock").touch()
    with git_at_work(world.path), pytest.raises(StepFailed, match="another git command holds a lock"):
        await world.deploy()
    world.write("many/0001", "my edit\n")
    with pytest.raises(StepFailed, match="has local changes: many/0001"):
        await world.deploy()
    assert (world.read("many/0001"), world.saved()) == ("my edit\n", {})


@pytest_twisted.ensureDeferred
async def test_a_persons_rebase_in_a_half_tree_is_left_alone(world: World, run: SpawningRunner) -> None:
    await kill_at(world, MIDDLE, "rebase")
    (world.path / ".git" / "index.lock").unlink()
    world.git("reset", "--quiet", "--hard")
    world.git("clean", "--quiet", "-fd")
    world.commit("wsgi.py", "mine\n")
    begin_a_rebase(world)
    before = world.git("status", "--porcelain")
    await world.clone().recover(run, None)
    with pytest.raises(StepFailed, match="somebody's rebase is under way"):
        await world.deploy()
    assert world.git("status", "--porcelain") == before


@pytest_twisted.ensureDeferred
async def test_a_half_tree_for_which_there_is_no_room_is_taken_back_later(world: World, run: SpawningRunner) -> None:
    """P84: the copy of a person's edit cannot be kept, so that the edit stays where it is."""
    await kill_at(world, MIDDLE, "rebase")
    world.write("many/0001", "my edit\n")
    (world.directory / "saved").write_text("in the way")
    await world.clone().recover(run, None)
    assert world.read("many/0001") == "my edit\n"
    (world.directory / "saved").unlink()
    await assert_it_heals(world, "rebase", run)
    assert world.saved() == {"many/0001": "my edit\n"}
