"""Releases are complete trees, one beside the other, and ``current`` always names one of them."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tests.gitorigin import NOBODY, Killed, KilledWhen, Origin, ambient, by_root
from tests.test_commands import plant_hooks, set_hostile_environment
from twisted_hook.boundaries import CommandRunner
from twisted_hook.commands import Ambient
from twisted_hook.model import Command, CommandResult, Commit, StepFailed, Tree
from twisted_hook.process import SpawningRunner
from twisted_hook.releases import Releases, mirror_name
from twisted_hook.repository import failed

START = 1_790_000_000.0


@dataclass
class World:
    """An origin, and the state directory of a hookdeploy."""

    origin: Origin
    state: Path
    times: Iterator[float]

    def releases(self, app: str = "blog", *, branch: str | None = "main", keep: int = 5) -> Releases:
        return Releases(
            app=app,
            url=self.origin.url,
            branch=branch,
            directory=self.directory(app),
            mirror=self.state / "mirrors" / mirror_name(self.origin.url),
            keep_newest=keep,
            ambient=ambient(self.origin.directory),
            now=lambda: next(self.times),
        )

    def directory(self, app: str = "blog") -> Path:
        return self.state / "apps" / app

    def kept(self, app: str = "blog") -> list[str]:
        return sorted(path.name for path in (self.directory(app) / "releases").iterdir())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Origin.create(tmp_path, {"app.py": "one\n"}), tmp_path / "state", (START + n for n in count()))


@pytest.fixture
def run() -> SpawningRunner:
    return SpawningRunner(reactor)


async def take(run: CommandRunner, releases: Releases) -> Tree:
    return await releases.take(run, await releases.fetch(run))


async def deploy(run: SpawningRunner, releases: Releases) -> Tree:
    tree = await take(run, releases)
    await releases.keep(run, tree)
    await releases.retire(run, ())
    return tree


def files(tree: Path) -> set[str]:
    return {str(path.relative_to(tree)) for path in tree.rglob("*") if not path.is_dir() or path.is_symlink()}


# Fetching.


@pytest_twisted.ensureDeferred
async def test_the_tip_of_the_branch_is_found(world: World, run: SpawningRunner) -> None:
    revision = world.origin.push({"app.py": "two\n"}, "Say two")
    assert await world.releases().fetch(run) == Commit(revision, "Say two", "Ada Pusher")


@pytest_twisted.ensureDeferred
async def test_without_a_branch_the_remotes_head_is_followed(world: World, run: SpawningRunner) -> None:
    releases = world.releases(branch=None)
    first = await releases.fetch(run)
    other = world.origin.push({"app.py": "other\n"}, branch="HEAD:refs/heads/trunk")
    assert (await releases.fetch(run)).revision == first.revision
    world.origin.git("symbolic-ref", "HEAD", "refs/heads/trunk", at=world.origin.bare)
    assert (await releases.fetch(run)).revision == other


@pytest_twisted.ensureDeferred
async def test_a_remote_whose_head_names_no_branch_is_told_so(world: World, run: SpawningRunner) -> None:
    world.origin.git("symbolic-ref", "HEAD", "refs/heads/none", at=world.origin.bare)
    with pytest.raises(StepFailed, match='names no branch; name one: branch = "…"'):
        await world.releases(branch=None).fetch(run)


@pytest_twisted.ensureDeferred
async def test_a_forced_push_deploys_the_new_tip(world: World, run: SpawningRunner) -> None:
    """P56: an unrelated history."""
    releases = world.releases()
    await deploy(run, releases)
    world.origin.git("checkout", "--quiet", "--orphan", "unrelated")
    revision = world.origin.push({"app.py": "unrelated\n"}, branch="HEAD:refs/heads/main")
    tree = await deploy(run, releases)
    assert (tree.commit.revision, (tree.path / "app.py").read_text()) == (revision, "unrelated\n")


@pytest_twisted.ensureDeferred
async def test_a_branch_may_be_replaced_by_one_below_its_name(world: World, run: SpawningRunner) -> None:
    """P65: ``a`` becomes ``a/b``, a tag is moved, and main forced to an unrelated history, all at once."""
    world.origin.git("push", "--quiet", "origin", "HEAD:refs/heads/a", "HEAD:refs/tags/v1")
    tagged = replace(world.releases("tagged"), tag="v*")
    for releases in (world.releases(branch="a"), tagged, world.releases("main")):
        await releases.fetch(run)
    world.origin.git("push", "--quiet", "--delete", "origin", "a")
    world.origin.git("checkout", "--quiet", "--orphan", "unrelated")
    revision = world.origin.push({"app.py": "two\n"}, branch="HEAD:refs/heads/a/b")
    world.origin.git("push", "--quiet", "--force", "origin", "HEAD:refs/tags/v1", "HEAD:refs/heads/main")
    for releases in (world.releases(branch="a/b"), tagged, world.releases("main")):
        assert (await releases.fetch(run)).revision == revision


@pytest_twisted.ensureDeferred
async def test_a_branch_that_is_gone_is_told_so_and_may_come_back(world: World, run: SpawningRunner) -> None:
    """P66."""
    releases = world.releases()
    tree = await deploy(run, releases)
    world.origin.git("push", "--quiet", "origin", "HEAD:refs/heads/other")
    world.origin.git("symbolic-ref", "HEAD", "refs/heads/other", at=world.origin.bare)
    world.origin.git("push", "--quiet", "--delete", "origin", "main")
    with pytest.raises(StepFailed, match="branch main could not be fetched: ref gone"):
        await releases.fetch(run)
    assert await releases.current(run) == tree
    world.origin.git("push", "--quiet", "origin", "HEAD:refs/heads/main")
    assert (await releases.fetch(run)).revision == tree.commit.revision


@pytest.mark.parametrize(
    "branch", ["--upload-pack=touch PWN", "--help", "-x", "HEAD", "@", "$(touch PWN)", "a;touch PWN", "é", "#1"]
)
@pytest_twisted.ensureDeferred
async def test_odd_names_of_branches_are_harmless(world: World, run: SpawningRunner, branch: str) -> None:
    """P59."""
    branch = branch.replace(" ", "${IFS}")
    pwn = world.origin.directory / "PWN"
    branch = branch.replace("PWN", str(pwn))
    revision = world.origin.commit({"app.py": "odd\n"})
    world.origin.git("push", "--quiet", "origin", "HEAD:refs/heads/carrier")
    world.origin.git("update-ref", f"refs/heads/{branch}", revision, at=world.origin.bare)
    tree = await deploy(run, world.releases(branch=branch))
    assert tree.commit.revision == revision
    assert not pwn.exists()
    assert not (ROOT / "PWN").exists()


@pytest_twisted.ensureDeferred
async def test_an_origin_that_is_not_there_is_told_so(world: World, run: SpawningRunner) -> None:
    for branch in ("main", None):
        with pytest.raises(StepFailed, match="there is no git repository at the remote's address"):
            await replace(world.releases(branch=branch), url="/no/such/origin.git").fetch(run)


@by_root
@pytest.mark.parametrize("as_url", [str, "file://{}".format, "{}/".format])
@pytest_twisted.ensureDeferred
async def test_an_origin_on_this_machine_may_belong_to_somebody_else(
    tmp_path: Path, run: SpawningRunner, as_url: Callable[[Path], str]
) -> None:
    """As a ``git`` user's does. Its path may have characters that mean something to a shell."""
    origin = Origin.create(tmp_path / "it's; a $(name)")
    world = World(origin, tmp_path / "state", (START + n for n in count()))
    origin.give_away()
    for branch in (None, "main"):
        tree = await deploy(run, replace(world.releases(branch=branch), url=as_url(origin.bare)))
        assert files(tree.path) == {"README"}


@pytest_twisted.ensureDeferred
async def test_a_remote_that_is_a_command_is_not_run(world: World, run: SpawningRunner) -> None:
    """P60."""
    pwn = world.origin.directory / "PWN"
    for url in (f"ext::sh -c 'touch {pwn}' ://x", f"ext::sh -c touch% {pwn}", f"--upload-pack=touch {pwn};"):
        for branch in ("main", None):
            with pytest.raises(StepFailed):
                await replace(world.releases(branch=branch), url=url).fetch(run)
    assert not pwn.exists()


@pytest_twisted.ensureDeferred
async def test_two_apps_share_one_mirror_and_nothing_else(world: World, run: SpawningRunner) -> None:
    world.origin.git("push", "--quiet", "origin", "HEAD:refs/heads/live")
    main = world.origin.push({"app.py": "two\n"}, branch="main")
    blog, live = world.releases("blog"), world.releases("live", branch="live")
    assert blog.repository == live.repository
    first, second = await deploy(run, blog), await deploy(run, live)
    assert (first.commit.revision, (second.path / "app.py").read_text()) == (main, "one\n")
    assert len(list((world.state / "mirrors").iterdir())) == 1
    assert (world.kept("blog"), world.kept("live")) == ([first.release], [second.release])


@pytest_twisted.ensureDeferred
async def test_what_a_killed_git_left_in_the_mirror_is_removed(world: World, run: SpawningRunner) -> None:
    """P67, P73: locks that would be in the way for ever, and halves of packs that fill the disk."""
    releases = world.releases()
    await releases.fetch(run)
    locks = ("shallow.lock", "packed-refs.lock", "config.lock", "refs/hookdeploy/blog.lock", "HEAD.lock")
    names = (*locks, "packed-refs.new", "objects/pack/pack-0123.keep")
    packs = (f"objects/pack/tmp_pack_{number}" for number in range(3))
    joined = ".tmp-4711-pack-0123.pack"  # by git repack
    planted = [releases.mirror / name for name in (*names, *packs, f"objects/pack/{joined}")]
    for file in planted:
        file.touch()
    revision = world.origin.push({"app.py": "two\n"})
    assert (await releases.fetch(run)).revision == revision
    assert not [file for file in planted if file.exists()]


@pytest_twisted.ensureDeferred
async def test_a_mirror_that_was_only_begun_is_made(world: World, run: SpawningRunner) -> None:
    releases = world.releases()
    releases.mirror.mkdir(parents=True)
    (releases.mirror / "HEAD").write_text("ref: refs/heads/main\n")
    await releases.fetch(run)


@pytest_twisted.ensureDeferred
async def test_a_fetch_that_was_cut_short_changes_nothing_and_the_next_succeeds(
    world: World, run: SpawningRunner
) -> None:
    """P73, P84: the pack is larger than the disk."""
    releases = world.releases()
    first = await deploy(run, releases)
    (world.origin.work / "noise").write_bytes(os.urandom(200_000))
    revision = world.origin.push({})
    for _ in range(3):
        with pytest.raises(StepFailed, match="branch main could not be fetched"):
            await releases.fetch(Limited(run, "git fetch", "--fsize=100000"))
        assert not list(releases.mirror.glob("objects/pack/tmp_*"))
    assert await releases.current(run) == first
    assert (await releases.fetch(run)).revision == revision


@pytest_twisted.ensureDeferred
async def test_a_revision_may_be_chosen_by_the_beginning_of_its_id(world: World, run: SpawningRunner) -> None:
    releases = world.releases()
    first = await releases.fetch(run)
    chosen = world.origin.push({"app.py": "two\n"}, "Say two")
    world.origin.push({"app.py": "three\n"}, "Say three")
    for name in (chosen, chosen[:7]):
        commit = await releases.fetch(run, name)
        assert (commit.revision, commit.subject) == (chosen, "Say two")
    assert ((await releases.take(run, commit)).path / "app.py").read_text() == "two\n"
    assert await releases.fetch(run, first.revision) == first


@pytest.mark.parametrize("name", ["abcdef0", "f" * 40, "main", "HEAD", "--all", "", "refs/hookdeploy/blog"])
@pytest_twisted.ensureDeferred
async def test_a_revision_that_is_not_there_is_told_so(world: World, run: SpawningRunner, name: str) -> None:
    with pytest.raises(StepFailed, match=f"there is no commit {name} in the repository"):
        await world.releases().fetch(run, name)


@pytest_twisted.ensureDeferred
async def test_a_blob_is_no_commit(world: World, run: SpawningRunner) -> None:
    blob = world.origin.git("rev-parse", "HEAD:app.py")
    with pytest.raises(StepFailed, match="there is no commit"):
        await world.releases().fetch(run, blob)


@pytest.mark.parametrize("branch", ["main", None])
@pytest_twisted.ensureDeferred
async def test_an_origin_with_other_object_ids_is_deployed(
    world: World, run: SpawningRunner, branch: str | None
) -> None:
    """P74: SHA-256; and the origin at the same address may change its mind, and change it back."""
    releases = world.releases(branch=branch)
    first = await deploy(run, releases)
    for object_format, digits in (("sha256", 64), ("sha1", 40)):
        shutil.rmtree(world.origin.bare)
        shutil.rmtree(world.origin.work)
        for place, bare in ((world.origin.bare, ["--bare"]), (world.origin.work, [])):
            words = ("init", "--quiet", "--initial-branch=main", f"--object-format={object_format}", *bare, str(place))
            world.origin.git(*words, at=world.origin.directory)
        world.origin.git("remote", "add", "origin", str(world.origin.bare))
        revision = world.origin.push({"app.py": f"{object_format}\n"})
        tree = await deploy(run, releases)
        assert (len(revision), tree.commit.revision) == (digits, revision)
        assert (tree.path / "app.py").read_text() == f"{object_format}\n"
        assert (await releases.fetch(run, revision[:9])).revision == revision
    assert (first.path / "app.py").read_text() == "one\n"


@pytest_twisted.ensureDeferred
async def test_a_shallow_origin_is_deployed_also_after_a_forced_push(world: World, run: SpawningRunner) -> None:
    """P74: git passes over the tip of a shallow origin, and says that all went well."""
    world.origin.push({"app.py": "two\n"})
    shallow = world.origin.directory / "shallow.git"
    words = ("clone", "--quiet", "--bare", "--depth=1", f"file://{world.origin.bare}", str(shallow))
    world.origin.git(*words, at=world.origin.directory)
    releases = replace(world.releases(), url=str(shallow))
    assert ((await deploy(run, releases)).path / "app.py").read_text() == "two\n"
    world.origin.git("checkout", "--quiet", "--orphan", "unrelated")
    world.origin.push({"app.py": "unrelated\n"}, branch="HEAD:refs/heads/main")
    world.origin.git("fetch", "--quiet", "--depth=1", str(world.origin.bare), "+main:main", at=shallow)
    assert ((await deploy(run, releases)).path / "app.py").read_text() == "unrelated\n"


@pytest_twisted.ensureDeferred
async def test_a_mirror_is_not_made_anew_for_a_trouble_of_the_remotes(world: World, run: SpawningRunner) -> None:
    releases = world.releases()
    await deploy(run, releases)
    (releases.mirror / "still the same").touch()
    for url in ("/no/such/origin.git", "http://127.0.0.1:9/x.git"):
        with pytest.raises(StepFailed):
            await replace(releases, url=url).fetch(run)
    with pytest.raises(StepFailed):
        await replace(releases, branch="none").fetch(run)
    assert (releases.mirror / "still the same").exists()


@pytest_twisted.ensureDeferred
async def test_the_packs_of_many_fetches_are_made_one(
    world: World, run: SpawningRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fetch leaves one, and git looks for an object in all of them. What was pushed by force stays, too."""
    monkeypatch.setattr("twisted_hook.mirror.MOST_PACKS", 3)
    releases = world.releases()
    trees = []
    for number in range(5):
        world.origin.push({"app.py": f"{number}\n"})
        trees.append(await deploy(run, releases))
        world.origin.git("reset", "--quiet", "--hard", "HEAD~1")
    assert len(list(releases.mirror.glob("objects/pack/*.pack"))) <= 3
    for tree in trees:
        again = await releases.take(run, await releases.fetch(run, tree.commit.revision))
        assert (again.path / "app.py").read_bytes() == (tree.path / "app.py").read_bytes()


# Taking.


@pytest_twisted.ensureDeferred
async def test_a_release_is_the_complete_tree_and_nothing_else(world: World, run: SpawningRunner) -> None:
    """No ``.git`` lies in what is served."""
    contents = {"app.py": "two\n", "a/b/c.txt": "deep\n", ".hidden": "h\n", "naïve name": "x\n", ".gitignore": "*\n"}
    world.origin.push({**contents, "-rf": "x\n", "two\nlines": "y\n"})
    tree = await take(run, world.releases())
    assert files(tree.path) == {*contents, "-rf", "two\nlines"}
    assert (tree.path / "a/b/c.txt").read_text() == "deep\n"
    assert tree.path == world.directory() / "releases" / tree.release


@pytest_twisted.ensureDeferred
async def test_links_and_executables_stay_what_they_are(world: World, run: SpawningRunner) -> None:
    work = world.origin.work
    (work / "run").write_text("#!/bin/sh\n")
    (work / "run").chmod(0o755)
    (work / "link").symlink_to("app.py")
    (work / "dangling").symlink_to("/no/such/file")
    (work / "outside").symlink_to("../../../..")
    world.origin.push({})
    tree = await take(run, world.releases())
    assert os.access(tree.path / "run", os.X_OK)
    assert not os.access(tree.path / "app.py", os.X_OK)
    for name, target in (("link", "app.py"), ("dangling", "/no/such/file"), ("outside", "../../../..")):
        assert (tree.path / name).readlink() == Path(target)


@pytest_twisted.ensureDeferred
async def test_a_commit_without_files_is_an_empty_tree(world: World, run: SpawningRunner) -> None:
    world.origin.push({"app.py": None})
    tree = await take(run, world.releases())
    assert list(tree.path.iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_the_ids_of_releases_sort_by_time_and_end_in_the_short_revision(
    world: World, run: SpawningRunner
) -> None:
    world.times = iter([START, START + 0.001, START + 0.999, START + 1, START + 86400 * 365])
    trees = []
    for number in range(5):
        world.origin.push({"app.py": f"{number}\n"})
        trees.append(await take(run, world.releases()))
    ids = [tree.release for tree in trees]
    assert ids == sorted(ids)
    assert ids[0] == f"20260921T141320.000-{trees[0].commit.revision[:7]}"
    assert all(tree.release.endswith(f"-{tree.commit.revision[:7]}") for tree in trees)


@pytest_twisted.ensureDeferred
async def test_the_same_commit_may_be_taken_twice(world: World, run: SpawningRunner) -> None:
    releases = world.releases()
    first, second = await take(run, releases), await take(run, releases)
    assert first.commit == second.commit
    assert first.path != second.path


@pytest_twisted.ensureDeferred
async def test_two_releases_of_one_moment_do_not_collide(world: World, run: SpawningRunner) -> None:
    """A clock that stands still, or was put back."""
    world.times = iter([START] * 9)
    first, second = await take(run, world.releases()), await take(run, world.releases())
    assert first.path != second.path
    assert files(first.path) == files(second.path) == {"app.py"}


@pytest_twisted.ensureDeferred
async def test_a_take_whose_hookdeploy_was_killed_does_not_disturb_the_next(world: World, run: SpawningRunner) -> None:
    """P83: killed together with its git in the middle of writing the files, so that nobody has tidied up."""
    releases = world.releases()
    first = await deploy(run, releases)
    revision = world.origin.push({"slow.txt": "x\n", "zzz": "z\n", ".gitattributes": "slow.txt filter=slow\n"})
    started = world.origin.directory / "started"
    configure_filter(releases, f"echo > '{started}'; sleep 1000")
    with pytest.raises(Killed):
        await take(KilledWhen(started.exists), releases)
    assert (world.directory() / "preparing").is_dir()
    assert await releases.current(run) == first
    configure_filter(releases, "cat")
    second = await deploy(run, releases)
    assert second.commit.revision == revision
    assert files(second.path) == {"app.py", "slow.txt", "zzz", ".gitattributes"}
    assert world.kept() == [first.release, second.release]
    assert_nothing_is_left_over(world)


def configure_filter(releases: Releases, smudge: str) -> None:
    (releases.mirror / "config").open("a").write(f'[filter "slow"]\n\tsmudge = "{smudge}"\n\trequired = true\n')


def assert_nothing_is_left_over(world: World) -> None:
    """Besides the releases, their commits and the link there is nothing that holds space."""
    there = {path.name for path in world.directory().iterdir() if path.name != "preparing" or any(path.iterdir())}
    assert there <= {"commits", "current", "indexes", "releases", "served"}
    releases = set(world.kept()) if (world.directory() / "releases").exists() else set()
    assert {path.name for path in world.directory().glob("commits/*")} == releases
    assert {path.name for path in world.directory().glob("indexes/*")} <= releases


@pytest_twisted.ensureDeferred
async def test_a_take_for_which_the_disk_is_too_small_leaves_nothing(world: World, run: SpawningRunner) -> None:
    """P84: the tree cannot be written; when it can be again, nobody has to help."""
    releases = world.releases()
    first = await deploy(run, releases)
    world.origin.push({"aaa": "fits\n", "large": "x" * 200_000, "zzz": "fits\n"})
    commit = await releases.fetch(run)
    with pytest.raises(StepFailed, match="could not be checked out"):
        await releases.take(Limited(run, "git read-tree", "--fsize=100000"), commit)
    assert_nothing_is_left_over(world)
    assert (world.kept(), await releases.current(run)) == ([first.release], first)
    second = await releases.take(run, commit)
    assert files(second.path) == {"app.py", "aaa", "large", "zzz"}


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"


@pytest_twisted.ensureDeferred
async def test_a_tree_with_a_file_that_is_kept_in_lfs_is_refused_by_its_name(world: World, run: SpawningRunner) -> None:
    """P70: git alone would check out the pointer without a word."""
    releases = world.releases()
    first = await deploy(run, releases)
    world.origin.push({".gitattributes": "*.jpg filter=lfs -text\n", "a/large photo.jpg": POINTER})
    with pytest.raises(StepFailed, match=r"a/large photo\.jpg is kept in Git LFS, which hookdeploy does not fetch"):
        await take(run, releases)
    assert (world.kept(), await releases.current(run)) == ([first.release], first)
    assert_nothing_is_left_over(world)


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_kept_whole_despite_its_lfs_attribute_is_taken(world: World, run: SpawningRunner) -> None:
    """As one that was uploaded on a forge's page."""
    photo = b"\xff\xd8\0\n\0version\nno end of line"
    (world.origin.work / "photo.jpg").write_bytes(photo)
    world.origin.git("add", "photo.jpg")
    world.origin.push({})
    world.origin.push({".gitattributes": "*.jpg filter=lfs -text\n"})
    assert ((await take(run, world.releases())).path / "photo.jpg").read_bytes() == photo


# What all releases share, and to whom they belong.


@pytest_twisted.ensureDeferred
async def test_shared_paths_are_in_every_release(world: World, run: SpawningRunner) -> None:
    releases = replace(world.releases(keep=1), shared=("media", "var/db.sqlite3", "logs"), least_index=0)
    world.origin.push({"media/logo": "from the repository\n"})
    for number in range(6):
        world.origin.push({"media/logo": f"from the repository {number}\n", "number": f"{number}\n"})
        tree = await deploy(run, releases)
        assert (tree.path / "number").read_text() == f"{number}\n"
        assert (tree.path / "media" / "logo").read_text() == "from the repository 0\n"
        assert (tree.path / "logs").is_dir()
        if number:
            assert (tree.path / "var" / "db.sqlite3").read_text() == f"row {number - 1}\n"
            assert (tree.path / "media" / "upload").read_text() == "of a visitor\n"
        (tree.path / "var" / "db.sqlite3").write_text(f"row {number}\n")
        (tree.path / "media" / "upload").write_text("of a visitor\n")
        assert {path.name for path in world.directory().iterdir()} <= {
            *("commits", "current", "indexes", "releases", "served", "shared", "spare")
        }
    assert (world.directory() / "spare" / "tree" / "media" / "logo").is_file()
    assert not (world.directory() / "spare" / "tree" / "media").is_symlink()


@pytest_twisted.ensureDeferred
async def test_a_shared_path_below_a_link_of_the_repositorys_is_refused(world: World, run: SpawningRunner) -> None:
    """P72: the release is refused before anything is written outside it."""
    outside = world.origin.directory / "outside"
    outside.mkdir()
    (world.origin.work / "var").symlink_to(outside)
    world.origin.push({})
    with pytest.raises(StepFailed, match="var/media cannot be linked"):
        await take(run, replace(world.releases(), shared=("var/media",)))
    assert list(outside.iterdir()) == []
    assert not (world.directory() / "preparing").exists()


@by_root
@pytest_twisted.ensureDeferred
async def test_a_tree_is_given_to_its_user_with_what_is_shared(world: World, run: SpawningRunner) -> None:
    """Links too, and not what they lead to."""
    outside = world.origin.directory / "outside"
    outside.touch()
    (world.origin.work / "link").symlink_to(outside)
    world.origin.push({"deep/module.py": "x\n"})
    releases = replace(world.releases(), shared=("media", "var/logs"), owner=(NOBODY, NOBODY - 1))
    tree = await take(run, releases)
    shared = world.directory() / "shared"
    (shared / "media" / "by root").touch()  # which is a person's doing, and not looked for each time
    for path in (tree.path, *tree.path.rglob("*"), shared, shared / "media", shared / "var", shared / "var" / "logs"):
        assert (path.lstat().st_uid, path.lstat().st_gid) == (NOBODY, NOBODY - 1), path
    assert outside.stat().st_uid == os.geteuid()
    await take(run, releases)
    assert (shared / "media" / "by root").stat().st_uid == os.geteuid()


@by_root
@pytest_twisted.ensureDeferred
async def test_nothing_outside_is_given_to_the_user_through_a_link_of_theirs(world: World, run: SpawningRunner) -> None:
    """T35: what is shared is theirs, and so they can put links there."""
    releases = replace(world.releases(), shared=("var/logs",), owner=(NOBODY, NOBODY))
    await take(run, releases)
    outside = world.origin.directory / "outside"
    (outside / "logs").mkdir(parents=True)
    var = world.directory() / "shared" / "var"
    (var / "logs").rmdir()
    var.rmdir()
    var.symlink_to(outside)
    os.chown(var, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(StepFailed, match="var/logs cannot be shared, since var in"):
        await take(run, releases)
    assert (outside / "logs").stat().st_uid == os.geteuid()


@dataclass
class Limited:
    """Runs one kind of command under a limit of the system's."""

    run_: SpawningRunner
    name: str
    limit: str

    async def run(self, command: Command, *, output: Callable[[bytes], None] | None = None) -> CommandResult:
        if command.name == self.name:
            command = replace(command, argv=("prlimit", self.limit, *command.argv))
        return await self.run_.run(command, output=output)


@pytest_twisted.ensureDeferred
async def test_what_a_killed_hookdeploy_has_left_half_done_makes_room(world: World, run: SpawningRunner) -> None:
    """P84: a take that was cut off, a spare that was being cleaned, and a tree that was being removed."""
    releases = world.releases()
    tree = await deploy(run, releases)
    for place in ("preparing/tree", "cleaning/tree", f"doomed/{tree.release}"):
        (world.directory() / place).mkdir(parents=True)
        (world.directory() / place / "large").touch()
    await releases.make_room(run)
    assert_nothing_is_left_over(world)
    assert await releases.current(run) == tree


@pytest_twisted.ensureDeferred
async def test_a_take_that_is_cancelled_does_not_disturb_the_next(world: World, run: SpawningRunner) -> None:
    releases = world.releases()
    commit = await releases.fetch(run)
    taking = Deferred.fromCoroutine(releases.take(run, commit))
    taking.cancel()
    with pytest.raises(CancelledError):
        await taking
    assert files((await releases.take(run, commit)).path) == {"app.py"}
    assert_nothing_is_left_over(world)


@pytest.mark.parametrize("name", [".git", ".GIT", ".."])
@pytest_twisted.ensureDeferred
async def test_a_tree_that_would_write_elsewhere_is_not_even_fetched(
    world: World, run: SpawningRunner, name: str
) -> None:
    """P71."""
    releases = world.releases()
    first = await deploy(run, releases)
    origin = world.origin
    inner = origin.git("rev-parse", "HEAD^{tree}")
    (origin.directory / "tree").write_bytes(f"40000 {name}\0".encode() + bytes.fromhex(inner))
    tree = origin.git("hash-object", "-t", "tree", "-w", "--literally", str(origin.directory / "tree"))
    commit = origin.git("commit-tree", "-m", "evil", tree)
    origin.git("push", "--quiet", "--force", "origin", f"{commit}:refs/heads/main")
    with pytest.raises(StepFailed, match="branch main could not be fetched"):
        await deploy(run, releases)
    assert world.kept() == [first.release]


# Keeping, and letting go.


@pytest_twisted.ensureDeferred
async def test_there_is_no_current_tree_at_first(world: World, run: SpawningRunner) -> None:
    releases = world.releases()
    assert await releases.current(run) is None
    await take(run, releases)
    assert await releases.current(run) is None


@pytest_twisted.ensureDeferred
async def test_current_is_a_relative_link_to_what_was_kept(world: World, run: SpawningRunner) -> None:
    """So that the state directory can be moved."""
    releases = world.releases()
    for number in range(2):
        world.origin.push({"app.py": f"{number}\n"}, f"Say {number}")
        tree = await deploy(run, releases)
        assert (world.directory() / "current").readlink() == Path("releases") / tree.release
        assert await releases.current(run) == tree
    world.state.rename(world.state.with_name("moved"))
    assert (world.state.with_name("moved") / "apps/blog/current/app.py").read_text() == "1\n"


@pytest_twisted.ensureDeferred
async def test_a_link_to_a_release_that_is_gone_is_no_current_tree(world: World, run: SpawningRunner) -> None:
    releases = world.releases()
    tree = await deploy(run, releases)
    shutil.rmtree(tree.path)
    assert await releases.current(run) is None
    assert (await deploy(run, releases)).release != tree.release


@pytest_twisted.ensureDeferred
async def test_a_link_that_somebody_has_led_elsewhere_is_no_current_tree(world: World, run: SpawningRunner) -> None:
    releases = world.releases()
    await deploy(run, releases)
    (world.directory() / "current").unlink()
    (world.directory() / "current").symlink_to(world.origin.work)
    assert await releases.current(run) is None


@pytest_twisted.ensureDeferred
async def test_a_release_whose_record_is_lost_or_damaged_is_still_current(world: World, run: SpawningRunner) -> None:
    """After a crash of the machine, or a person's tidying up; the mirror knows the commit."""
    releases = world.releases()
    tree = await deploy(run, releases)
    record = world.directory() / "commits" / tree.release
    for damaged in (None, "", "{", "[]", '{"other": 1}'):
        record.unlink() if damaged is None else record.write_text(damaged)
        assert await releases.current(run) == tree


@pytest_twisted.ensureDeferred
async def test_current_can_be_resolved_at_every_moment(world: World, run: SpawningRunner) -> None:
    """P86: 200 changes, while another reads without a pause."""
    releases = world.releases(keep=1000)  # a reader that is held up may be two releases behind
    await releases.keep(run, made(world, 0))
    with reader(world.directory() / "current" / "app.py"):
        for number in range(1, 201):
            await releases.keep(run, made(world, number))
            await deferLater(reactor, 0.001)


def made(world: World, number: int) -> Tree:
    """A release, made without git."""
    release = f"20260921T133320.{number:03}-abcdef0"
    path = world.directory() / "releases" / release
    path.mkdir(parents=True)
    (path / "app.py").write_text(f"{number}\n")
    (world.directory() / "commits").mkdir(exist_ok=True)
    commit = Commit("abcdef0" + "0" * 33, "subject", "author")
    (world.directory() / "commits" / release).write_text(json.dumps(asdict(commit)))
    return Tree(path, commit, release)


@contextmanager
def reader(file: Path) -> Iterator[None]:
    """A process that reads the file all the time; it must never find it missing or empty."""
    script = """
import os, sys
print("begins", flush=True)
while not os.path.exists(sys.argv[2]):
    for _ in range(50):
        assert open(sys.argv[1]).read()
"""
    stop = file.parent.parent / "stop"
    with subprocess.Popen([sys.executable, "-c", script, str(file), str(stop)], stdout=subprocess.PIPE) as reading:
        try:
            assert reading.stdout is not None
            assert reading.stdout.readline() == b"begins\n"
            yield
        finally:
            stop.touch()
        assert reading.wait() == 0
    stop.unlink()


@pytest_twisted.ensureDeferred
async def test_a_real_directory_in_the_place_of_current_is_an_error_and_stays(
    world: World, run: SpawningRunner
) -> None:
    """P86: and it is one before anything is swapped."""
    releases = world.releases()
    tree = await take(run, releases)
    (world.directory() / "current").mkdir()
    (world.directory() / "current" / "precious").touch()
    with pytest.raises(StepFailed, match="current is a real directory"):
        await releases.keep(run, tree)
    with pytest.raises(StepFailed, match="current is a real directory"):
        await take(run, releases)
    assert (world.directory() / "current" / "precious").exists()


@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest_twisted.ensureDeferred
async def test_only_the_newest_releases_are_kept(world: World, run: SpawningRunner, keep: int) -> None:
    releases, trees = world.releases(keep=keep), []
    for number in range(5):
        trees.append(made(world, number))
        await releases.keep(run, trees[-1])
        await releases.retire(run, ())
    assert world.kept() == [tree.release for tree in trees[-max(2, keep) :]]  # never less than the previous one
    assert_nothing_is_left_over(world)


@pytest_twisted.ensureDeferred
async def test_neither_the_current_nor_the_previous_release_is_ever_retired(world: World, run: SpawningRunner) -> None:
    """Though both are older than others, by a clock that was ahead."""
    releases = world.releases(keep=1)
    newer, previous = made(world, 5), made(world, 4)
    await releases.keep(run, newer)
    await releases.keep(run, previous)
    current = made(world, 0)
    await releases.keep(run, current)
    await releases.retire(run, ())
    assert await releases.current(run) == current
    assert await releases.kept(run) == [current, previous]


@pytest_twisted.ensureDeferred
async def test_what_never_served_takes_nobodys_place(world: World, run: SpawningRunner) -> None:
    """P83: trees of deployments that were cut off, which are made once more under another name."""
    releases = world.releases(keep=3)
    served = [made(world, number) for number in range(3)]
    for tree in served:
        await releases.keep(run, tree)
    for number in range(3, 7):
        made(world, number)
    await releases.retire(run, ())
    assert world.kept() == [tree.release for tree in served]
    assert_nothing_is_left_over(world)


@pytest_twisted.ensureDeferred
async def test_what_an_older_hookdeploy_served_can_be_put_back(world: World, run: SpawningRunner) -> None:
    """It wrote down the current one alone."""
    releases = world.releases()
    old, new = made(world, 0), made(world, 1)
    await releases.keep(run, old)
    (world.directory() / "served").unlink()
    await releases.keep(run, new)
    await releases.retire(run, ())
    assert await releases.kept(run) == [new, old]


@pytest_twisted.ensureDeferred
async def test_what_is_discarded_is_gone(world: World, run: SpawningRunner) -> None:
    releases = world.releases()
    first, second = await deploy(run, releases), await take(run, releases)
    await releases.discard(run, second, ())
    assert world.kept() == [first.release]
    assert_nothing_is_left_over(world)
    await releases.discard(run, second, ())


@pytest_twisted.ensureDeferred
async def test_what_serves_is_never_discarded(world: World, run: SpawningRunner) -> None:
    """Something failed after it had become the current one."""
    releases = world.releases()
    tree = await deploy(run, releases)
    await releases.discard(run, tree, ())
    assert await releases.current(run) == tree
    assert files(tree.path) == {"app.py"}


@pytest_twisted.ensureDeferred
async def test_an_old_release_that_cannot_be_removed_fails_nothing(world: World, run: SpawningRunner) -> None:
    releases = world.releases(keep=1)
    with capturedLogs() as events:
        for number in range(4):
            tree = made(world, number)
            await releases.keep(run, tree)
            await releases.retire(Limited(run, "rm", "--no-such-option"), ())
            assert await releases.current(run) == tree
    assert len(list((world.directory() / "doomed").iterdir())) == 2
    assert any("could not be removed" in str(event.get("reason")) for event in events)
    await releases.retire(run, ())
    assert len(world.kept()) == 2
    assert_nothing_is_left_over(world)


@pytest_twisted.ensureDeferred
async def test_what_has_served_is_kept_and_can_be_put_back(world: World, run: SpawningRunner) -> None:
    """One that was only prepared is not among it, and neither is one that somebody has removed."""
    releases, trees = world.releases(), []
    assert await releases.kept(run) == []
    for number in range(3):
        world.origin.push({"app.py": f"{number}\n"}, f"Say {number}")
        trees.append(await deploy(run, releases))
    await take(run, releases)
    assert await releases.kept(run) == trees[::-1]
    await releases.put_back(run, trees[0])
    await releases.keep(run, trees[0])
    assert await releases.current(run) == trees[0]
    assert await releases.kept(run) == trees[::-1]
    shutil.rmtree(trees[1].path)
    with pytest.raises(StepFailed, match=f"release {trees[1].release} is not there any more"):
        await releases.put_back(run, trees[1])
    assert await releases.kept(run) == [trees[2], trees[0]]


@pytest_twisted.ensureDeferred
async def test_a_release_of_which_nobody_knows_any_more_what_it_is_of_is_passed_over(
    world: World, run: SpawningRunner
) -> None:
    """The machine lost its power, and a forced push has taken the commit from a mirror that was made anew."""
    releases = world.releases()
    await deploy(run, releases)
    unknown, last = made(world, 0), await take(run, releases)
    for tree in (unknown, last):
        await releases.keep(run, tree)
    (world.directory() / "commits" / unknown.release).write_text("")
    assert unknown not in await releases.kept(run)
    assert last in await releases.kept(run)


@pytest_twisted.ensureDeferred
async def test_after_a_rollback_the_good_one_before_it_stays(world: World, run: SpawningRunner) -> None:
    releases, trees = world.releases(keep=1), [made(world, number) for number in range(5)]
    for tree in trees:
        await releases.keep(run, tree)
    await releases.keep(run, trees[2])
    await releases.retire(run, {trees[0].release})
    assert world.kept() == [trees[number].release for number in (0, 1, 2, 4)]
    await releases.retire(run, ())
    assert await releases.kept(run) == [trees[4], trees[2], trees[1]]


@pytest_twisted.ensureDeferred
async def test_a_release_that_has_served_is_not_discarded(world: World, run: SpawningRunner) -> None:
    """A rollback that fails: what was to be put back may be wanted once more."""
    releases = world.releases()
    first, second = await deploy(run, releases), await deploy(run, releases)
    await releases.put_back(run, first)
    await releases.discard(run, first, ())
    assert await releases.kept(run) == [second, first]


# What git must not run on its way.


@pytest_twisted.ensureDeferred
async def test_no_hook_and_no_monitor_of_the_mirror_is_run(world: World, run: SpawningRunner) -> None:
    """P61: hooks in the mirror, and commands in the configuration of its user."""
    pwn, home = world.origin.directory / "PWN", world.origin.directory
    releases = world.releases()
    await deploy(run, releases)
    plant_hooks(releases.mirror / "hooks", pwn)
    plant_hooks(home / "hooks", pwn)
    (home / ".gitconfig").write_text(f"[core]\n\thooksPath = {home / 'hooks'}\n\tfsmonitor = touch {pwn}\n")
    world.origin.git("config", "core.fsmonitor", f"touch {pwn}", at=releases.mirror)
    world.origin.push({"app.py": "two\n"})
    await deploy(run, releases)
    assert not pwn.exists(), pwn.read_text()


@pytest_twisted.ensureDeferred
async def test_a_hostile_environment_changes_nothing(
    world: World, run: SpawningRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P62."""
    releases = world.releases(branch=None)
    pwn = set_hostile_environment(monkeypatch, world.origin.directory)
    tree = await deploy(run, replace(releases, ambient=Ambient.from_environ(os.environ)))
    assert files(tree.path) == {"app.py"}
    assert not pwn.exists()


class ExplanationTests(SynchronousTestCase):
    """What git says in many words, in few."""

    def explained(self, tail: str, *, timed_out: bool = False) -> str:
        command = Command("git fetch", ("git", "fetch"), {}, timeout=300)
        result = CommandResult(command, None if timed_out else 128, 15 if timed_out else None, timed_out, 1, b"", tail)
        problem = failed("main could not be fetched", result)
        self.assertEqual(problem.tail, tail)
        return problem.summary.removeprefix("main could not be fetched: ")

    def test_known_words_are_explained(self) -> None:
        """P63, P66 and their like, as git 2.39 and OpenSSH 9 say them."""
        for tail, words in (
            ("fatal: couldn't find remote ref refs/heads/main", "ref gone"),
            ("fatal: could not read Username for 'https://x': terminal prompts disabled", "authentication"),
            ("fatal: Authentication failed for 'https://x/y.git/'", "authentication"),
            ("fatal: unable to access 'https://x/': The requested URL returned error: 403", "authentication"),
            ("git@x: Permission denied (publickey,password).\nfatal: Could not read from remote", "deploy key"),
            ("Host key verification failed.\nfatal: Could not read from remote", "known_hosts"),
            ("fatal: unable to access 'https://x/': Could not resolve host: x", "could not be resolved"),
            ("ssh: Could not resolve hostname x: Name or service not known", "could not be resolved"),
            ("fatal: unable to access 'https://x/': Operation too slow.", "too slowly"),
            ("fatal: unable to access 'http://x/': Failed to connect to x port 80: Connection refused", "refused"),
            ("fatal: '/x' does not appear to be a git repository", "no git repository"),
            ("fatal: transport 'ext' not allowed", "transport"),
            ("fatal: write error: No space left on device", "disk is full"),
            ("fatal: unable to write loose object file: Disk quota exceeded", "disk is full"),
            ("error: Unable to create '/x/.git/index.lock': File exists.", "lock"),
            ("CONFLICT (modify/delete): app.py deleted in HEAD", "conflict"),
        ):
            self.assertIn(words, self.explained(tail))

    def test_other_words_are_left_to_the_reader(self) -> None:
        self.assertEqual(self.explained("fatal: something else"), "exit 128")
        self.assertEqual(self.explained("fatal: this is not allowed"), "exit 128")
        self.assertEqual(self.explained("Receiving objects: 10%", timed_out=True), "timeout after 300 s")


class MirrorNameTests(SynchronousTestCase):
    def test_a_name_can_be_recognised(self) -> None:
        self.assertRegex(mirror_name("https://github.com/acme/blog.git"), r"^github-com-acme-blog-[0-9a-f]{8}\.git$")
        self.assertRegex(mirror_name("git@github.com:acme/blog.git"), r"^git-github-com-acme-blog-[0-9a-f]{8}\.git$")

    def test_no_two_urls_share_a_mirror(self) -> None:
        urls = ["https://x/a/b", "https://x/a-b", "ssh://x/a/b", "https://x/a/b.git", "https://x/" + "y" * 99 + "/b"]
        self.assertEqual(len({mirror_name(url) for url in urls}), len(urls))

    @given(st.text(max_size=300))
    def test_a_name_is_one_harmless_component_of_a_path(self, url: str) -> None:
        self.assertRegex(mirror_name(url), r"^[A-Za-z0-9-]{1,60}\.git$")


ROOT = Path(__file__).parent.parent
