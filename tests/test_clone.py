"""An existing clone is kept up to date, and nothing that a person has changed in it is ever lost."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import contextlib
import os
import py_compile
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.gitorigin import Killed, KilledWhen, Origin, ambient, by_root
from tests.proctable import told
from tests.test_commands import plant_hooks, set_hostile_environment
from tests.waiting import become, until
from twisted_hook.boundaries import CommandRunner
from twisted_hook.clone import MOST_NAMES, MOST_SERVED, Clone, parse_status
from twisted_hook.commands import Ambient
from twisted_hook.model import Command, CommandResult, StepFailed, Tree
from twisted_hook.process import SpawningRunner

MODES = ("rebase", "ff-only", "reset")
CAREFUL = ("rebase", "ff-only")
MODULES = ("wsgi.py", "package/other.py", "package/same.py")
START = 1_790_000_000.0


@dataclass
class World:
    """An origin, a user's clone of it, and where hookdeploy keeps what it saves."""

    origin: Origin
    path: Path
    directory: Path
    times: Iterator[float]

    def clone(self, update: str = "rebase", *, branch: str = "main") -> Clone:
        home = ambient(self.origin.directory)
        return Clone(self.path, branch, update, self.directory, home, lambda: next(self.times))

    async def deploy(self, update: str = "rebase", *, branch: str = "main") -> Tree:
        """What a deployment does with a clone."""
        return await deploy(self.clone(update, branch=branch))

    def git(self, *arguments: str) -> str:
        return self.origin.git(*arguments, at=self.path)

    @property
    def head(self) -> str:
        return self.git("rev-parse", "HEAD")

    def write(self, name: str, content: str) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(content)

    def read(self, name: str) -> str:
        return (self.path / name).read_text()

    def commit(self, name: str, content: str, message: str = "local") -> str:
        return self.origin.commit({name: content}, message, at=self.path)

    def everything(self) -> object:
        """All that a person can see of the clone: HEAD, its branch, what git says of the files, and the files."""
        files = {
            str(file.relative_to(self.path)): file.read_bytes()
            for file in self.path.rglob("*")
            if file.is_file() and ".git" not in file.relative_to(self.path).parts
        }
        state = sorted(path.name for path in (self.path / ".git").glob("rebase-*"))
        said = self.git("status", "--porcelain=v2", "--branch", "--ignored")
        return self.head, self.git("symbolic-ref", "HEAD"), said.partition("# branch.ab")[0], files, state

    def saved(self) -> dict[str, str]:
        """The copies, by the name of the file."""
        places = (self.directory / "saved").glob("*")
        return {
            str(file.relative_to(place)): file.read_text()
            for place in places
            for file in place.rglob("*")
            if file.is_file()
        }

    def kept(self) -> list[str]:
        """The revisions under refs of ours."""
        return self.git("for-each-ref", "--format=%(objectname)", "refs/hookdeploy/").split()


async def deploy(clone: Clone, run: CommandRunner | None = None) -> Tree:
    run = run or SpawningRunner(reactor)
    return await clone.take(run, await clone.fetch(run))


@pytest.fixture
def world(tmp_path: Path) -> World:
    origin = Origin.create(tmp_path, {"app.py": "one\n", "notes": "a\nb\nc\nd\ne\nf\ng\nh\n", "settings/dev": "1\n"})
    return World(origin, origin.clone(), tmp_path / "state" / "apps" / "blog", (START + n for n in count()))


def begin_a_rebase(world: World) -> None:
    """As a person does, who then finds that there is a conflict to resolve."""
    done = subprocess.run(["git", "-C", world.path, "rebase", "origin/main"], capture_output=True, check=False)
    assert done.returncode != 0
    assert (world.path / ".git" / "rebase-merge").is_dir()


# The good way.


@pytest.mark.parametrize("update", MODES)
@pytest_twisted.ensureDeferred
async def test_a_clean_clone_comes_to_the_tip(world: World, update: str) -> None:
    revision = world.origin.push({"app.py": "two\n"}, "Say two")
    tree = await world.deploy(update)
    assert (tree.path, tree.commit.revision, tree.release) == (world.path, revision, revision[:12])
    assert (tree.commit.subject, tree.commit.author) == ("Say two", "Ada Pusher")
    assert (world.head, world.read("app.py")) == (revision, "two\n")
    assert world.git("symbolic-ref", "HEAD") == "refs/heads/main"
    assert world.git("rev-parse", "origin/main") == revision
    assert (world.saved(), world.kept()) == ({}, [])


@pytest.mark.parametrize("update", MODES)
@pytest_twisted.ensureDeferred
async def test_a_clone_that_is_at_the_tip_stays_as_it_is(world: World, update: str) -> None:
    before = world.everything()
    tree = await world.deploy(update)
    assert tree.commit.revision == world.head
    assert world.everything() == before


@pytest_twisted.ensureDeferred
async def test_the_current_tree_is_what_is_checked_out(world: World) -> None:
    found = await world.clone().current(SpawningRunner(reactor))
    assert found is not None
    assert (found.path, found.commit.revision) == (world.path, world.head)


@pytest.mark.parametrize("update", MODES)
@pytest_twisted.ensureDeferred
async def test_untracked_and_ignored_files_that_nobody_needs_the_place_of_stay(world: World, update: str) -> None:
    world.origin.push({".gitignore": "*.sqlite3\n", "app.py": "two\n"})
    world.write("db.sqlite3", "precious")
    world.write("uploads/photo", "precious")
    await world.deploy(update)
    assert (world.read("db.sqlite3"), world.read("uploads/photo")) == ("precious", "precious")


@pytest_twisted.ensureDeferred
async def test_local_commits_are_rebased_onto_the_tip(world: World) -> None:
    world.commit("local.py", "mine\n", "Mine")
    tip = world.origin.push({"app.py": "two\n"})
    tree = await world.deploy()
    assert world.git("rev-parse", "HEAD~1") == tip
    assert (tree.commit.revision, tree.commit.subject) == (world.head, "Mine")
    assert (world.read("app.py"), world.read("local.py")) == ("two\n", "mine\n")
    assert world.git("log", "-1", "--format=%an") == "Ada Pusher"


@pytest_twisted.ensureDeferred
async def test_local_commits_alone_are_left_as_they_are(world: World) -> None:
    mine = world.commit("local.py", "mine\n")
    assert (await world.deploy()).commit.revision == mine


@pytest_twisted.ensureDeferred
async def test_a_forced_push_takes_back_what_came_from_the_origin_and_nothing_else(world: World) -> None:
    """P56: what was amended at the origin is no local commit."""
    world.origin.push({"app.py": "mistake\n", "mistake": "x\n"}, "Mistake")
    await world.deploy()
    world.commit("local.py", "mine\n", "Mine")
    world.origin.git("reset", "--quiet", "--hard", "HEAD~1")
    tip = world.origin.push({"app.py": "right\n"}, "Right")
    await world.deploy()
    assert world.git("log", "--format=%s").splitlines() == ["Mine", "Right", "first"]
    assert world.git("rev-parse", "HEAD~1") == tip
    assert (world.read("app.py"), (world.path / "mistake").exists()) == ("right\n", False)


@pytest.mark.parametrize("update", MODES)
@pytest_twisted.ensureDeferred
async def test_odd_commits_can_be_told_of(world: World, update: str) -> None:
    """P47, T27: a subject of 300 kB with control bytes, and an author that is none."""
    world.origin.git("config", "user.name", "")
    world.origin.push({"app.py": "two\n"}, "\x1b[31mgrün\x1b[0m " + "x" * 100_000)
    tree = await world.deploy(update)
    assert tree.commit.subject.startswith("grün xxx")
    assert len(tree.commit.subject) <= 500


@pytest_twisted.ensureDeferred
async def test_a_subject_that_is_longer_than_what_is_read_is_cut(world: World) -> None:
    """P47."""
    (world.origin.directory / "message").write_text("subject " * 50_000)
    world.origin.git("commit", "--quiet", "--allow-empty", "--file", str(world.origin.directory / "message"))
    world.origin.git("push", "--quiet", "origin", "HEAD")
    tree = await world.deploy()
    assert (tree.commit.author, len(tree.commit.subject)) == ("Ada Pusher", 500)


@pytest.mark.parametrize("update", MODES)
@pytest_twisted.ensureDeferred
async def test_the_bytecode_of_a_changed_module_goes_and_no_other(world: World, update: str) -> None:
    """Python would serve the old bytecode of a module of the same size that was changed within the same second."""
    world.origin.push({"wsgi.py": "SAY = 1\n", "package/other.py": "SAY = 1\n", "package/same.py": "SAY = 1\n"})
    await world.deploy(update)
    compiled = {name: Path(py_compile.compile(str(world.path / name))) for name in MODULES}  # type: ignore[arg-type]
    world.origin.push({"wsgi.py": "SAY = 2\n", "package/other.py": "SAY = 2\n"})
    await world.deploy(update)
    assert {name for name, bytecode in compiled.items() if bytecode.exists()} == {"package/same.py"}


@by_root
@pytest_twisted.ensureDeferred
async def test_an_origin_on_this_machine_may_belong_to_somebody_else(world: World) -> None:
    revision = world.origin.push({"app.py": "two\n"})
    world.origin.give_away()
    assert (await world.deploy()).commit.revision == revision


# What is refused: nothing is touched, and the reason names the files.


@pytest.mark.parametrize("update", CAREFUL)
@pytest_twisted.ensureDeferred
async def test_local_changes_are_refused_by_name(world: World, update: str) -> None:
    """P68: a local edit, a staged one, a deleted and a renamed file."""
    world.origin.push({"app.py": "two\n"})
    world.write("app.py", "my edit\n")
    world.write("naïve staged.py", "new\n")
    world.git("add", "naïve staged.py")
    world.git("mv", "settings/dev", "settings/prod")
    (world.path / "notes").unlink()
    before = world.everything()
    with pytest.raises(StepFailed) as caught:
        await world.deploy(update)
    for name in ("app.py", "naïve staged.py", "settings/dev", "settings/prod", "notes", str(world.path), "git stash"):
        assert name in caught.value.reason
    assert world.everything() == before


@pytest.mark.parametrize("update", CAREFUL)
@pytest_twisted.ensureDeferred
async def test_a_change_that_the_push_does_not_touch_is_refused_all_the_same(world: World, update: str) -> None:
    """P68."""
    world.origin.push({"app.py": "two\n"})
    world.write("notes", "mine\n")
    with pytest.raises(StepFailed, match="local changes: notes"):
        await world.deploy(update)
    assert (world.read("notes"), world.read("app.py")) == ("mine\n", "one\n")


@pytest.mark.parametrize("update", CAREFUL)
@pytest.mark.parametrize(
    ("there", "coming"),
    [("new.py", "new.py"), ("später.py", "später.py"), ("package", "package/new.py"), ("data/photo", "data")],
)
@pytest_twisted.ensureDeferred
async def test_an_untracked_file_in_the_way_is_refused_by_name(
    world: World, update: str, there: str, coming: str
) -> None:
    """P68: also a file where a directory is to be, and a directory where a file is to be."""
    world.origin.push({coming: "theirs\n"})
    world.write(there, "mine\n")
    before = world.everything()
    with pytest.raises(StepFailed) as caught:
        await world.deploy(update)
    assert there.partition("/")[0] in caught.value.reason
    assert "in the way" in caught.value.summary
    assert world.everything() == before


@pytest_twisted.ensureDeferred
async def test_of_many_changed_files_the_first_are_named(world: World) -> None:
    for number in range(MOST_NAMES + 5):
        world.write(f"{number:02}.py", "new\n")
    world.git("add", "--all")
    with pytest.raises(StepFailed) as caught:
        await world.deploy()
    assert caught.value.reason.count(".py") == MOST_NAMES
    assert f"{MOST_NAMES - 1:02}.py …" in caught.value.reason


@pytest.mark.parametrize("update", CAREFUL)
@pytest_twisted.ensureDeferred
async def test_changed_files_with_odd_names_can_be_told_of(world: World, update: str) -> None:
    """T27: a name that is no UTF-8, and one with an escape sequence."""
    for name in (b"caf\xe9", b"\x1b[31mred\ntwo lines"):
        Path(os.fsdecode(os.fsencode(world.path) + b"/" + name)).write_text("x")
    world.git("add", "--all")
    with pytest.raises(StepFailed) as caught:
        await world.deploy(update)
    assert "caf\N{REPLACEMENT CHARACTER}" in caught.value.reason
    caught.value.reason.encode()
    assert "\x1b" not in caught.value.reason


@pytest_twisted.ensureDeferred
async def test_a_clone_with_local_commits_is_not_fast_forwarded(world: World) -> None:
    world.commit("local.py", "mine\n")
    world.origin.push({"app.py": "two\n"})
    before = world.everything()
    with pytest.raises(StepFailed, match=r"could not be fast-forwarded: .*different ways"):
        await world.deploy("ff-only")
    assert world.everything() == before


@pytest_twisted.ensureDeferred
async def test_a_rebase_that_conflicts_is_taken_back(world: World) -> None:
    """P68: the second of three local commits conflicts; all is exactly as it was."""
    world.commit("local.py", "mine\n", "harmless")
    world.commit("app.py", "mine\n", "conflicts")
    world.commit("other.py", "mine\n", "never reached")
    world.write("untracked", "precious\n")
    world.origin.push({"app.py": "two\n"})
    before = world.everything()
    with pytest.raises(StepFailed, match="is as it was: its local commits conflict") as caught:
        await world.deploy()
    assert "app.py" in caught.value.tail
    assert world.everything() == before
    with pytest.raises(StepFailed, match="is as it was"):
        await world.deploy()


@pytest_twisted.ensureDeferred
async def test_a_deployment_after_a_conflict_succeeds_when_the_origin_gives_way(world: World) -> None:
    world.commit("app.py", "mine\n")
    world.origin.push({"app.py": "two\n"})
    with pytest.raises(StepFailed):
        await world.deploy()
    world.origin.push({"app.py": "one\n", "more.py": "x\n"})
    await world.deploy()
    assert (world.read("app.py"), world.read("more.py")) == ("mine\n", "x\n")


@pytest.mark.parametrize("update", MODES)
@pytest_twisted.ensureDeferred
async def test_somebodys_rebase_is_left_alone(world: World, update: str) -> None:
    """P68: one that waits for its person to resolve a conflict."""
    world.commit("app.py", "mine\n")
    world.origin.push({"app.py": "two\n"})
    world.git("fetch", "--quiet")
    begin_a_rebase(world)
    at, status = world.head, world.git("status", "--porcelain=v2")
    with pytest.raises(StepFailed, match="somebody's rebase is under way"):
        await world.deploy(update)
    assert (world.head, world.git("status", "--porcelain=v2")) == (at, status)
    assert (world.path / ".git" / "rebase-merge").is_dir()


@pytest_twisted.ensureDeferred
async def test_somebodys_rebase_is_left_alone_also_where_one_of_ours_was_cut_off_before(world: World) -> None:
    """hookdeploy was killed when its rebase was over but not yet written off; then a person began another."""
    marker = world.directory / "under-way"
    world.directory.mkdir(parents=True)
    tip = world.origin.push({"app.py": "two\n"})
    await world.deploy()
    marker.write_text(f"{world.head} {tip}\n")
    world.commit("app.py", "mine\n")
    world.origin.push({"app.py": "three\n"})
    world.git("fetch", "--quiet")
    begin_a_rebase(world)
    with pytest.raises(StepFailed, match="somebody's rebase is under way"):
        await world.deploy()
    assert (world.path / ".git" / "rebase-merge").is_dir()


@pytest_twisted.ensureDeferred
async def test_a_rebase_of_ours_that_was_killed_is_taken_back_the_next_time(world: World) -> None:
    """P68, P83: hookdeploy and its git are killed in the middle of a rebase."""
    world.commit("first.py", "mine\n", "first")
    world.commit("notes", "a\nb\nmine\nd\ne\nf\ng\nh\n", "second")
    before = world.head
    world.origin.push({"notes": "a\nb\nc\nd\ne\nf\ng\ntheirs\n"})
    started = world.origin.directory / "started"
    world.git("config", "merge.slow.driver", f"echo > '{started}'; sleep 1000")
    (world.path / ".git" / "info").mkdir(exist_ok=True)
    world.write(".git/info/attributes", "notes merge=slow\n")
    with pytest.raises(Killed):
        await deploy(world.clone(), KilledWhen(started.exists))
    assert (world.path / ".git" / "rebase-merge").is_dir()
    assert (world.path / ".git" / "index.lock").exists()
    assert world.head != before
    world.write(".git/info/attributes", "")
    await world.deploy()
    assert world.git("log", "--format=%s").splitlines() == ["second", "first", "change", "first"]
    assert world.read("notes") == "a\nb\nmine\nd\ne\nf\ng\ntheirs\n"
    assert list(world.directory.glob("under-way*")) == []


@pytest.mark.parametrize("update", MODES)
@pytest_twisted.ensureDeferred
async def test_a_lock_that_a_killed_git_has_left_is_removed(world: World, update: str) -> None:
    """P67."""
    revision = world.origin.push({"app.py": "two\n"})
    (world.path / ".git" / "index.lock").touch()
    assert (await world.deploy(update)).commit.revision == revision
    assert not (world.path / ".git" / "index.lock").exists()


LOCKS = ("HEAD", "ORIG_HEAD", "refs/heads/main", "refs/remotes/origin/main", "packed-refs", "shallow")


@pytest.mark.parametrize("name", [f"{name}.lock" for name in LOCKS])
@pytest.mark.parametrize("update", MODES)
@pytest_twisted.ensureDeferred
async def test_the_lock_of_a_ref_that_a_killed_git_has_left_is_removed(world: World, update: str, name: str) -> None:
    """P67."""
    revision = world.origin.push({"app.py": "two\n"})
    lock = world.path / ".git" / name
    halves = [world.path / ".git" / "objects" / "pack" / f"tmp_pack_{number}" for number in range(3)]
    for file in (lock, *halves):
        file.touch()
    assert (await world.deploy(update)).commit.revision == revision
    assert not [file for file in (lock, *halves) if file.exists()]


@pytest_twisted.ensureDeferred
async def test_the_locks_of_a_linked_work_tree_are_removed(world: World) -> None:
    """P67: its HEAD and index stand elsewhere than the branches."""
    linked = world.path.parent / "linked"
    world.git("worktree", "add", "--quiet", "-b", "live", str(linked), "origin/main")
    world.origin.push({"app.py": "two\n"}, branch="HEAD:live")
    private, shared = world.path / ".git" / "worktrees" / "linked", world.path / ".git"
    locks = (private / "index.lock", private / "HEAD.lock", shared / "refs/heads/live.lock")
    for lock in locks:
        lock.touch()
    await replace(world, path=linked).deploy(branch="live")
    assert (linked / "app.py").read_text() == "two\n"
    assert not any(lock.exists() for lock in locks)


@pytest.mark.parametrize("by_name", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_lock_is_left_alone_while_a_git_runs_in_the_clone(world: World, by_name: bool) -> None:
    """P67: a person's ``git commit`` with its editor open, or a ``git --git-dir`` from elsewhere."""
    world.origin.push({"app.py": "two\n"})
    left = [world.path / ".git" / name for name in ("index.lock", "objects/pack/tmp_pack_x")]
    for file in left:
        file.touch()
    with git_at_work(world.path, by_name=by_name) as git:
        with pytest.raises(StepFailed, match="another git command holds a lock"):
            await world.deploy()
        assert all(file.exists() for file in left)
        assert git.poll() is None
    await world.deploy()


@pytest_twisted.ensureDeferred
async def test_our_own_look_at_the_remote_keeps_no_lock_alive(world: World) -> None:
    """P67: after a start the remote is looked at while the deployment that was cut off is taken up."""
    revision = world.origin.push({"app.py": "two\n"})
    (world.path / ".git" / "index.lock").touch()
    pipe = world.path.parent / "pipe"
    os.mkfifo(pipe)
    looking = Command("git hash-object", ("git", "-C", str(world.path), "hash-object", str(pipe)), dict(os.environ))
    running = Deferred.fromCoroutine(SpawningRunner(reactor).run(looking))
    ends: list[int] = []

    def is_read() -> bool:
        with contextlib.suppress(OSError):  # as long as nobody has opened it to read
            ends.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(ends)

    await become(is_read, "git")
    assert (await world.deploy()).commit.revision == revision
    os.close(*ends)
    assert (await running).ok


# The way back from a deployment that failed.


@pytest.mark.parametrize("update", MODES)
@pytest_twisted.ensureDeferred
async def test_a_clone_goes_back_to_the_commit_that_serves(world: World, update: str) -> None:
    """P81: a worker that gunicorn starts again loads what is on disk."""
    before = world.everything()
    world.origin.push({"app.py": "broken\n", "new.py": "broken\n", "notes": None})
    tree = await world.deploy(update)
    await world.clone(update).discard(SpawningRunner(reactor), tree, ())
    assert world.everything() == before


@pytest.mark.parametrize("update", ["rebase", "reset"])
@pytest_twisted.ensureDeferred
async def test_a_clone_goes_back_to_its_local_commits(world: World, update: str) -> None:
    world.commit("local.py", "mine\n")
    before = world.everything()
    world.origin.push({"app.py": "broken\n"})
    tree = await world.deploy(update)
    await world.clone(update).discard(SpawningRunner(reactor), tree, ())
    assert world.everything() == before


@pytest.mark.parametrize("update", MODES)
@pytest_twisted.ensureDeferred
async def test_the_next_good_push_is_taken_after_a_way_back(world: World, update: str) -> None:
    world.origin.push({"app.py": "broken\n"})
    clone = world.clone(update)
    await clone.discard(SpawningRunner(reactor), await deploy(clone), ())
    tip = world.origin.push({"app.py": "good\n"})
    assert (await world.deploy(update)).commit.revision == tip
    assert world.read("app.py") == "good\n"


@pytest.mark.parametrize("update", MODES)
@pytest.mark.parametrize("name", ["app.py", "notes"])
@pytest_twisted.ensureDeferred
async def test_a_way_back_over_what_a_step_has_made_is_refused(world: World, update: str, name: str) -> None:
    """One file is tracked, the other one is not any more."""
    tip = world.origin.push({"app.py": "two\n", "notes": None})
    tree = await world.deploy(update)
    world.write(name, "made by a step\n")
    with pytest.raises(StepFailed, match="could not be put back to"):
        await world.clone(update).discard(SpawningRunner(reactor), tree, ())
    assert world.read(name) == "made by a step\n"
    assert world.head == tip


@pytest_twisted.ensureDeferred
async def test_a_way_back_leaves_what_is_not_in_its_way(world: World) -> None:
    world.origin.push({"app.py": "two\n"})
    tree = await world.deploy()
    world.write("notes", "made by a step\n")
    world.write("static/all.css", "made by a step\n")
    await world.clone().discard(SpawningRunner(reactor), tree, ())
    assert world.read("app.py") == "one\n"
    assert (world.read("notes"), world.read("static/all.css")) == ("made by a step\n",) * 2


@pytest_twisted.ensureDeferred
async def test_a_way_back_forgets_the_bytecode_of_what_it_changes(world: World) -> None:
    world.origin.push({"wsgi.py": "SAY = 1\n", "same.py": "SAY = 1\n"})
    await world.clone().keep(SpawningRunner(reactor), await world.deploy())
    world.origin.push({"wsgi.py": "SAY = 2\n"})
    tree = await world.deploy()
    compiled = [Path(py_compile.compile(str(world.path / name))) for name in ("wsgi.py", "same.py")]  # type: ignore[arg-type]
    await world.clone().discard(SpawningRunner(reactor), tree, ())
    assert world.read("wsgi.py") == "SAY = 1\n"
    assert [bytecode.exists() for bytecode in compiled] == [False, True]


@pytest_twisted.ensureDeferred
async def test_what_is_kept_has_no_way_back(world: World) -> None:
    tip = world.origin.push({"app.py": "two\n"})
    clone, run = world.clone(), SpawningRunner(reactor)
    tree = await deploy(clone)
    await clone.keep(run, tree)
    await clone.discard(run, tree, ())
    assert (world.head, world.read("app.py")) == (tip, "two\n")


@pytest_twisted.ensureDeferred
async def test_what_serves_still_after_hookdeploy_died_is_gone_back_to(world: World) -> None:
    """P81, P83: it is adopted, and kept for the current tree once more."""
    clone, run = world.clone(), SpawningRunner(reactor)
    serving = await clone.current(run)
    assert serving is not None
    before = world.everything()
    world.origin.push({"app.py": "two\n"})
    await deploy(clone)
    await clone.keep(run, serving)
    assert world.everything() == before


@pytest_twisted.ensureDeferred
async def test_there_is_no_way_back_from_where_nothing_was_changed(world: World) -> None:
    tree = await world.deploy()
    before = world.everything()
    await world.clone().discard(SpawningRunner(reactor), tree, ())
    assert world.everything() == before


@pytest.mark.parametrize("update", MODES)
@pytest_twisted.ensureDeferred
async def test_a_start_goes_back_to_what_served_before_a_deployment_that_was_cut_off(world: World, update: str) -> None:
    """P83: the machine lost its power, and what is on disk was never found good."""
    world.commit("local.py", "mine\n") if update == "rebase" else None
    before = world.everything()
    world.origin.push({"app.py": "two\n"})
    await world.deploy(update)
    tree = await world.clone(update).recover(SpawningRunner(reactor), None)
    assert tree is not None
    assert tree.commit.revision == world.head
    assert world.everything() == before


@pytest_twisted.ensureDeferred
async def test_a_start_that_cannot_go_back_serves_what_is_there_and_the_next_failure_goes_back(world: World) -> None:
    good, run = world.head, SpawningRunner(reactor)
    tip = world.origin.push({"app.py": "two\n"})
    await world.deploy()
    world.write("app.py", "made by a step\n")
    tree = await world.clone().recover(run, None)
    assert tree is not None
    assert tree.commit.revision == tip
    world.git("checkout", "--quiet", "app.py")
    await world.clone().discard(run, await world.deploy(), ())
    assert world.head == good


@pytest_twisted.ensureDeferred
async def test_what_serves_after_a_start_is_the_way_back_from_the_next_failure(world: World) -> None:
    """P83: hookdeploy died between the swap and its being written down."""
    run = SpawningRunner(reactor)
    world.origin.push({"app.py": "two\n"})
    second = await world.deploy()
    assert await world.clone().recover(run, second) == second
    world.origin.push({"app.py": "three\n"})
    await world.clone().discard(run, await world.deploy(), ())
    assert world.head == second.commit.revision


@pytest_twisted.ensureDeferred
async def test_the_second_failure_in_a_row_goes_back_as_far_as_the_first_could_not(world: World) -> None:
    """P81: a step of the first one had made something that was in the way."""
    good, run = world.head, SpawningRunner(reactor)
    world.origin.push({"app.py": "two\n"})
    tree = await world.deploy()
    world.write("app.py", "made by a step\n")
    with pytest.raises(StepFailed):
        await world.clone().discard(run, tree, ())
    world.git("checkout", "--quiet", "app.py")
    world.origin.push({"app.py": "three\n"})
    await world.clone().discard(run, await world.deploy(), ())
    assert world.head == good


@pytest.mark.parametrize("update", CAREFUL)
@pytest_twisted.ensureDeferred
async def test_what_a_person_commits_after_a_refusal_is_never_taken_back(world: World, update: str) -> None:
    run = SpawningRunner(reactor)
    world.write("app.py", "mine\n")
    world.origin.push({"notes": "two\n"})
    with pytest.raises(StepFailed, match="has local changes"):
        await world.deploy(update)
    mine = world.commit("app.py", "mine\n")
    await world.clone(update).recover(run, None)
    assert world.head == mine
    if update == "rebase":
        await world.clone(update).discard(run, await world.deploy(update), ())
        assert world.head == mine


@pytest_twisted.ensureDeferred
async def test_what_a_person_commits_after_a_push_that_changed_nothing_is_never_taken_back(world: World) -> None:
    run = SpawningRunner(reactor)
    await world.clone().discard(run, await world.deploy(), ())
    mine = world.commit("local.py", "mine\n")
    world.origin.push({"app.py": "broken\n"})
    await world.clone().discard(run, await world.deploy(), ())
    assert world.head == mine


@pytest_twisted.ensureDeferred
async def test_what_a_person_commits_while_hookdeploy_is_dead_is_never_taken_back(world: World) -> None:
    """It died after it had written down from where it went, and before it went."""
    world.origin.push({"app.py": "two\n"})
    clone = world.clone()
    await clone.fetch(SpawningRunner(reactor))
    clone.directory.mkdir(parents=True, exist_ok=True)
    (clone.directory / "before").write_text(f"{world.head}\n")
    mine = world.commit("local.py", "mine\n")
    await clone.recover(SpawningRunner(reactor), None)
    assert world.head == mine


@pytest.mark.parametrize("update", MODES)
@pytest_twisted.ensureDeferred
async def test_what_is_given_up_while_it_is_taken_leaves_the_clone_as_it_was(world: World, update: str) -> None:
    """Its last command asks which files differ: the clone is at the new commit by then."""
    before, clone, run = world.everything(), world.clone(update), SpawningRunner(reactor)
    world.origin.push({"app.py": "two\n"})
    tip = await clone.fetch(run)

    class GivenUp:
        async def run(self, command: Command, *, output: Callable[[bytes], None] | None = None) -> CommandResult:
            if "*.py" in command.argv and world.head == tip.revision:
                raise CancelledError
            return await run.run(command, output=output)

    with pytest.raises(CancelledError):
        await clone.take(GivenUp(), tip)
    assert world.everything() == before
    assert not (clone.directory / "before").exists()


async def served_twice(world: World, update: str = "rebase") -> tuple[Clone, Tree, Tree]:
    """The clone as it was found and served, and a first deployment that serves now."""
    clone, run = world.clone(update), SpawningRunner(reactor)
    world.origin.push({"app.py": "two\n", "new.py": "SAY = 2\n"})
    second = await deploy(clone)
    await clone.keep(run, second)
    first = (await clone.kept(run))[-1]
    return clone, first, second


@pytest.mark.parametrize("update", MODES)
@pytest_twisted.ensureDeferred
async def test_what_has_served_can_be_put_back(world: World, update: str) -> None:
    """Also what served before the first deployment; and what is put back can be taken back, and kept."""
    before = world.everything()
    clone, first, second = await served_twice(world, update)
    run = SpawningRunner(reactor)
    assert await clone.kept(run) == [second, first]
    await clone.put_back(run, first)
    assert world.everything() == before
    assert await clone.current(run) == first
    await clone.discard(run, first, ())
    assert await clone.current(run) == second
    await clone.put_back(run, first)
    await clone.keep(run, first)
    await clone.discard(run, first, ())
    assert await clone.current(run) == first
    assert await clone.kept(run) == [second, first]
    await clone.retire(run, ())
    assert (await world.deploy(update)).commit == second.commit


@pytest_twisted.ensureDeferred
async def test_local_commits_can_be_had_again_after_a_rollback(world: World) -> None:
    clone, first, _ = await served_twice(world)
    mine = world.commit("local.py", "mine\n")
    await clone.put_back(SpawningRunner(reactor), first)
    assert (world.head, world.kept()) == (first.commit.revision, [mine])


@pytest.mark.parametrize("update", CAREFUL)
@pytest_twisted.ensureDeferred
async def test_a_rollback_over_local_changes_is_refused(world: World, update: str) -> None:
    """P68. What is not in the way stays."""
    clone, first, _ = await served_twice(world, update)
    run = SpawningRunner(reactor)
    world.write("notes", "my notes\n")
    await clone.put_back(run, first)
    assert world.read("notes") == "my notes\n"
    await clone.discard(run, first, ())
    world.write("app.py", "my edit\n")
    before = world.everything()
    with pytest.raises(StepFailed, match=": local changes are in the way"):
        await clone.put_back(run, first)
    assert world.everything() == before


@pytest_twisted.ensureDeferred
async def test_a_rollback_by_reset_keeps_a_copy_of_what_it_overwrites(world: World) -> None:
    clone, first, _ = await served_twice(world, "reset")
    world.write("app.py", "my edit\n")
    await clone.put_back(SpawningRunner(reactor), first)
    assert (world.read("app.py"), world.saved()) == ("one\n", {"app.py": "my edit\n"})


@pytest_twisted.ensureDeferred
async def test_a_rollback_of_a_clone_on_another_branch_is_refused(world: World) -> None:
    clone, first, second = await served_twice(world)
    world.git("switch", "--quiet", "--create", "feature")
    with pytest.raises(StepFailed, match="is on feature, not on main"):
        await clone.put_back(SpawningRunner(reactor), first)
    assert world.head == second.commit.revision


@pytest.mark.parametrize("update", ["rebase", "reset"])
@pytest_twisted.ensureDeferred
async def test_a_rollback_forgets_the_bytecode_of_what_it_changes(world: World, update: str) -> None:
    world.origin.push({"wsgi.py": "SAY = 1\n"})
    await world.clone(update).keep(SpawningRunner(reactor), await world.deploy(update))
    world.origin.push({"wsgi.py": "SAY = 2\n"})
    clone, _, _ = await served_twice(world, update)
    _, first, *_ = await clone.kept(SpawningRunner(reactor))
    bytecode = Path(py_compile.compile(str(world.path / "wsgi.py")))  # type: ignore[arg-type]
    await clone.put_back(SpawningRunner(reactor), first)
    assert (world.read("wsgi.py"), bytecode.exists()) == ("SAY = 1\n", False)


@pytest_twisted.ensureDeferred
async def test_only_the_last_commits_that_have_served_are_remembered(world: World) -> None:
    clone, run = world.clone(), SpawningRunner(reactor)
    for number in range(MOST_SERVED + 2):
        world.origin.push({"app.py": f"{number}\n"}, f"Say {number}")
        await clone.keep(run, await deploy(clone))
    kept = await clone.kept(run)
    assert [tree.commit.subject for tree in kept] == [f"Say {n}" for n in range(MOST_SERVED + 1, 1, -1)]
    assert {tree.path for tree in kept} == {world.path}


@pytest_twisted.ensureDeferred
async def test_a_commit_that_git_has_let_go_of_cannot_be_put_back(world: World) -> None:
    clone, _, second = await served_twice(world)
    (world.directory / "served").write_text(f"{'0' * 40}\n{second.commit.revision}\nnonsense\n--all\n")
    assert await clone.kept(SpawningRunner(reactor)) == [second]
    (world.directory / "served").write_text(f"{'0' * 40}\n")
    assert await clone.kept(SpawningRunner(reactor)) == []


@pytest_twisted.ensureDeferred
async def test_what_has_served_is_asked_of_git_at_once_and_none_of_it_is_lost(world: World) -> None:
    """P47: the subject of one is longer than what is read of all."""
    clone, run, asked = world.clone(), SpawningRunner(reactor), []

    class Noting:
        async def run(self, command: Command, *, output: Callable[[bytes], None] | None = None) -> CommandResult:
            asked.append(command.name)
            return await run.run(command, output=output)

    for number, letter in enumerate(("x", "日", "y")):
        (world.origin.directory / "message").write_text(letter * (200_000 if number == 1 else 20))
        world.origin.git("commit", "--quiet", "--allow-empty", "--file", str(world.origin.directory / "message"))
        world.origin.git("push", "--quiet", "origin", "HEAD")
        await clone.keep(run, await deploy(clone))
        if number == 0:
            kept = await clone.kept(Noting())
            assert [tree.commit.subject for tree in kept] == ["x" * 20, "first"]
            assert asked == ["git log"]
    kept = await clone.kept(run)
    assert [tree.commit.subject for tree in kept] == ["y" * 20, "日" * 500, "x" * 20, "first"]
    assert [tree.path for tree in kept] == [world.path] * 4


@pytest_twisted.ensureDeferred
async def test_in_place_no_revision_can_be_chosen(world: World) -> None:
    with pytest.raises(StepFailed, match="in place only the branch's tip can be deployed"):
        await world.clone().fetch(SpawningRunner(reactor), world.head)


@contextmanager
def git_at_work(path: Path, *, by_name: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """A git command of a person's that takes its time; ``by_name`` in another directory."""
    where = (f"--git-dir={path}/.git",) if by_name else ()
    words = ["git", *where, "cat-file", "--batch"]
    with subprocess.Popen(words, cwd=path.parent if by_name else path, stdin=subprocess.PIPE) as git:
        until(lambda: git.pid in told("cat-file"), "git")
        yield git
        git.kill()


@pytest.mark.parametrize("update", MODES)
@pytest_twisted.ensureDeferred
async def test_a_clone_on_another_branch_is_refused(world: World, update: str) -> None:
    world.git("switch", "--quiet", "--create", "feature")
    with pytest.raises(StepFailed, match="is on feature, not on main; switch it back"):
        await world.deploy(update)
    world.git("switch", "--quiet", "--detach")
    with pytest.raises(StepFailed, match="is on no branch, not on main"):
        await world.deploy(update)


@pytest_twisted.ensureDeferred
async def test_a_clone_without_an_origin_is_told_so(world: World) -> None:
    world.git("remote", "rename", "origin", "upstream")
    with pytest.raises(StepFailed, match=f"{world.path} has no remote origin"):
        await world.deploy()


@pytest_twisted.ensureDeferred
async def test_a_branch_that_the_origin_does_not_have_is_gone(world: World) -> None:
    """P66: deleted between the push and the fetch; created again, it deploys."""
    before = world.everything()
    world.origin.git("push", "--quiet", "origin", "HEAD:refs/heads/other")
    world.origin.git("symbolic-ref", "HEAD", "refs/heads/other", at=world.origin.bare)
    world.origin.git("push", "--quiet", "--delete", "origin", "main")
    with pytest.raises(StepFailed, match="branch main could not be fetched: ref gone"):
        await world.deploy()
    assert world.everything() == before
    revision = world.origin.push({"app.py": "two\n"}, branch="HEAD:refs/heads/main")
    assert (await world.deploy()).commit.revision == revision


@pytest_twisted.ensureDeferred
async def test_an_origin_that_is_not_there_is_told_so(world: World) -> None:
    world.git("remote", "set-url", "origin", "/no/such/origin.git")
    with pytest.raises(StepFailed, match="there is no git repository at the remote's address") as caught:
        await world.deploy()
    assert "/no/such/origin.git" in caught.value.tail


@pytest_twisted.ensureDeferred
async def test_a_clone_that_is_not_there_is_told_so(world: World) -> None:
    with pytest.raises(StepFailed, match="/no/such/clone"):
        await deploy(replace(world.clone(), path=Path("/no/such/clone")))


@pytest_twisted.ensureDeferred
async def test_a_remote_that_is_a_command_is_not_run(world: World) -> None:
    """P60."""
    pwn = world.origin.directory / "PWN"
    for protocol in ("ext", "file"):
        world.git("config", f"protocol.{protocol}.allow", "always")
    world.git("remote", "set-url", "origin", f"ext::sh -c 'touch {pwn}' ://x")
    with pytest.raises(StepFailed, match="a transport that is not allowed"):
        await world.deploy()
    assert not pwn.exists()


# update = "reset": it deploys, and what it overwrites can be had again.


@pytest_twisted.ensureDeferred
async def test_a_reset_keeps_a_copy_of_every_file_that_it_overwrites(world: World) -> None:
    """P68: changed, staged, untracked in the way, ignored in the way."""
    revision = world.origin.push(
        {"app.py": "two\n", "new.py": "theirs\n", "cache.bin": "theirs\n", ".gitignore": "*.bin\n"}
    )
    world.write(".git/info/exclude", "*.bin\n")
    world.write("app.py", "my edit\n")
    world.write("settings/dev", "my setting\n")
    world.write("staged.py", "my file\n")
    world.git("add", "staged.py")
    world.write("new.py", "mine\n")
    world.write("cache.bin", "ignored\n")
    world.write("elsewhere", "stays\n")
    (world.path / "notes").unlink()
    tree = await world.deploy("reset")
    assert tree.commit.revision == world.head == revision
    assert (world.read("app.py"), world.read("new.py"), world.read("elsewhere")) == ("two\n", "theirs\n", "stays\n")
    assert world.git("status", "--porcelain") == "?? elsewhere"
    assert world.saved() == {
        "app.py": "my edit\n",
        "settings/dev": "my setting\n",
        "staged.py": "my file\n",
        "new.py": "mine\n",
        "cache.bin": "ignored\n",
    }


@pytest.mark.parametrize(
    ("there", "coming"),
    [
        ("package", "package/deep/new.py"),  # a file where a directory is to be
        ("data/deep/photo", "data"),  # a directory where a file is to be
        ("settings/mine", "settings"),  # the same, with tracked files beside it
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_reset_keeps_a_copy_of_what_has_the_place_of_another_kind(
    world: World, there: str, coming: str
) -> None:
    """P68: ``git reset --hard`` removes untracked files and whole directories that are in its way."""
    if coming == "settings":
        (world.origin.work / "settings" / "dev").unlink()
        (world.origin.work / "settings").rmdir()
    world.origin.push({coming: "theirs\n"})
    world.write(there, "mine\n")
    await world.deploy("reset")
    assert world.read(coming) == "theirs\n"
    assert world.saved()[there] == "mine\n"


@pytest_twisted.ensureDeferred
async def test_a_reset_keeps_a_copy_of_a_link(world: World) -> None:
    world.origin.push({"media/logo": "theirs\n"})
    (world.path / "media").symlink_to("/mnt/media")
    await world.deploy("reset")
    assert world.read("media/logo") == "theirs\n"
    (copies,) = (world.directory / "saved").iterdir()
    assert (copies / "media").readlink() == Path("/mnt/media")


@pytest_twisted.ensureDeferred
async def test_a_reset_keeps_copies_of_files_with_odd_names(world: World) -> None:
    """Names with spaces, newlines, and bytes that are no UTF-8."""
    names = ["with space", "two\nlines", os.fsdecode(b"caf\xe9"), "--help", '"quoted"', "naïve"]
    world.origin.push(dict.fromkeys(names[1:], "theirs\n"))
    for name in names:
        world.write(name, "mine\n")
    world.git("add", "--", *names[:3])
    await world.deploy("reset")
    assert world.saved() == dict.fromkeys([*names], "mine\n")


@pytest_twisted.ensureDeferred
async def test_a_reset_keeps_a_copy_also_among_very_many_files(world: World) -> None:
    """A tree whose names alone are longer than the 256 KiB of output that a command's result holds."""
    directory = "a/directory/with/a/long/name/" + "x" * 150
    world.origin.push({f"{directory}/{number}": "theirs\n" for number in range(1600)} | {"zzz": "theirs\n"})
    world.write("zzz", "mine\n")
    await world.deploy("reset")
    assert world.saved() == {"zzz": "mine\n"}


@pytest_twisted.ensureDeferred
async def test_a_reset_is_refused_if_the_changes_are_more_than_can_be_listed(world: World) -> None:
    directory = "a/directory/with/a/long/name/" + "x" * 150
    world.origin.push({f"{directory}/{number}": "theirs\n" for number in range(1600)})
    await world.deploy("reset")
    for number in range(1600):
        world.write(f"{directory}/{number}", "mine\n")
    world.origin.push({"app.py": "two\n"})
    with pytest.raises(StepFailed, match="more local changes than"):
        await world.deploy("reset")
    assert world.read(f"{directory}/1599") == "mine\n"


@pytest_twisted.ensureDeferred
async def test_a_reset_keeps_local_commits_under_a_ref(world: World) -> None:
    """P68."""
    mine = world.commit("local.py", "mine\n")
    revision = world.origin.push({"app.py": "two\n"})
    await world.deploy("reset")
    assert (world.head, world.kept()) == (revision, [mine])
    assert world.git("show", f"{mine}:local.py") == "mine"


@pytest_twisted.ensureDeferred
async def test_every_reset_keeps_what_it_overwrites_apart(world: World) -> None:
    """Also two in the same second."""
    world.times = (START + n / 100 for n in count())
    kept = []
    for number in range(3):
        kept.append(world.commit("local.py", f"commit {number}\n"))
        world.write("app.py", f"edit {number}\n")
        world.origin.push({"other.py": f"{number}\n"})
        await world.deploy("reset")
    assert sorted(world.kept()) == sorted(kept)
    copies = [copy.read_text() for copy in sorted((world.directory / "saved").glob("*/app.py"))]
    assert copies == ["edit 0\n", "edit 1\n", "edit 2\n"]


# What git must not run on its way.


@pytest.mark.parametrize("update", MODES)
@pytest_twisted.ensureDeferred
async def test_no_hook_and_no_monitor_of_the_clone_is_run(world: World, update: str) -> None:
    """P61, T20: hooks in the clone, and commands in its configuration and in that of its user."""
    pwn, home = world.origin.directory / "PWN", world.origin.directory
    world.commit("local.py", "mine\n") if update != "ff-only" else None
    world.origin.push({"app.py": "two\n"})
    plant_hooks(world.path / ".git" / "hooks", pwn)
    plant_hooks(home / "hooks", pwn)
    (home / ".gitconfig").write_text(f"[core]\n\thooksPath = {home / 'hooks'}\n\tfsmonitor = touch {pwn}\n")
    for key, value in (
        ("core.fsmonitor", f"touch {pwn}"),
        ("core.pager", f"touch {pwn}"),
        ("core.sshCommand", f"touch {pwn}"),
        ("core.editor", f"touch {pwn}"),
        ("sequence.editor", f"touch {pwn}"),
        ("diff.external", f"touch {pwn}"),
        ("gpg.program", f"touch {pwn}"),
    ):
        world.git("config", key, value)
    world.git("config", "commit.gpgSign", "true")
    world.git("config", "log.showSignature", "true")
    await world.deploy(update)
    assert not pwn.exists(), pwn.read_text()


@pytest.mark.parametrize("update", MODES)
@pytest_twisted.ensureDeferred
async def test_a_hostile_environment_changes_nothing(
    world: World, update: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P62."""
    revision = world.origin.push({"app.py": "two\n"})
    pwn = set_hostile_environment(monkeypatch, world.origin.directory)
    tree = await deploy(replace(world.clone(update), ambient=Ambient.from_environ(os.environ)))
    assert tree.commit.revision == revision
    assert not pwn.exists()


class StatusTests(SynchronousTestCase):
    def test_all_kinds_of_changes_are_read(self) -> None:
        """Records of git documentation's git-status, Porcelain Format Version 2."""
        h = "0" * 40
        status = parse_status(
            "\0".join(
                [
                    f"# branch.oid {h}",
                    "# branch.head feature/x",
                    "# branch.upstream origin/feature/x",
                    "# branch.ab +1 -2",
                    f"1 .M N... 100644 100644 100644 {h} {h} with space",
                    f"2 R. N... 100644 100644 100644 {h} {h} R100 new name",
                    "old name",
                    f"u UU N... 100644 100644 100644 100644 {h} {h} {h} both",
                    "",
                ]
            )
        )
        self.assertEqual(status.branch, "feature/x")
        self.assertEqual(status.changed, ("with space", "new name", "old name", "both"))

    def test_a_detached_head_is_on_no_branch(self) -> None:
        self.assertEqual(parse_status("# branch.oid (initial)\0# branch.head (detached)\0").branch, None)

    def test_names_that_look_like_records_are_names(self) -> None:
        h = "0" * 40
        status = parse_status(f"2 R. N... 100644 100644 100644 {h} {h} R100 # branch.head x\0" + "1 a\0")
        self.assertEqual((status.branch, status.changed), (None, ("# branch.head x", "1 a")))
