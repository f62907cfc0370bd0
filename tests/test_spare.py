"""A retired release that is brought forward is, to the last byte, what a fresh checkout would be."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from random import Random

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from tests.gitorigin import NOBODY, Origin, by_root
from tests.test_releases import START, World, assert_nothing_is_left_over
from twisted_hook.model import Command, CommandResult, StepFailed, Tree
from twisted_hook.process import SpawningRunner
from twisted_hook.releases import LEAST_INDEX, Releases
from twisted_hook.spare import Change, parse_changes


@dataclass
class Noting:
    """Runs commands, and notes what they are called."""

    run_: SpawningRunner = field(default_factory=lambda: SpawningRunner(reactor))
    names: list[str] = field(default_factory=list)
    before: Callable[[Command], Command] = lambda command: command

    async def run(self, command: Command, *, output: Callable[[bytes], None] | None = None) -> CommandResult:
        self.names.append(command.name)
        return await self.run_.run(self.before(command), output=output)


@dataclass
class App:
    """An app whose releases retire at once, so that the fourth is brought forward."""

    world: World
    releases: Releases
    run: Noting = field(default_factory=Noting)

    async def prepare(self) -> Tree:
        """Take the tip; what it is has to be the same as that of an app that has never been deployed."""
        commit = await self.releases.fetch(self.run)
        self.run.names.clear()
        tree = await self.releases.take(self.run, commit)
        self.was_brought_forward = "git read-tree" not in self.run.names
        fresh = replace(self.releases, directory=self.world.directory("fresh"))
        assert picture(tree.path) == picture((await fresh.take(SpawningRunner(reactor), commit)).path)
        shutil.rmtree(fresh.directory)
        return tree

    async def deploy(self) -> Tree:
        tree = await self.prepare()
        await self.releases.keep(self.run, tree)
        await self.releases.retire(self.run, ())
        return tree

    async def warm_up(self) -> list[Tree]:
        """Deploy until there is a spare, which is the first tree."""
        trees = []
        for number in range(3):
            self.world.origin.push({"number": f"{number}\n"})
            trees.append(await self.deploy())
        assert self.spare.is_dir()
        return trees

    @property
    def spare(self) -> Path:
        return self.releases.directory / "spare"


def picture(tree: Path) -> dict[bytes, tuple[int, bytes]]:
    """All that can be seen of a tree: the mode of each path, and what it holds or where it leads."""
    seen = {}
    for path in everything_in(tree):
        mode, name = path.lstat().st_mode, os.fsencode(path.relative_to(tree))
        if path.is_symlink():
            seen[name] = (mode, os.fsencode(path.readlink()))
        else:
            seen[name] = (mode, path.read_bytes() if path.is_file() else b"")
    return seen


def everything_in(tree: Path) -> list[Path]:
    """Also what has an odd name; links are not followed."""
    return sorted(Path(where) / name for where, names, others in os.walk(tree) for name in names + others)


@pytest.fixture
def app(tmp_path: Path) -> App:
    files = {"app.py": "one\n", "package/deep/module.py": "x = 1\n", "static/logo": "logo\n"}
    world = World(Origin.create(tmp_path, files), tmp_path / "state", (START + n for n in count()))
    return App(world, replace(world.releases(keep=1), least_index=0))


# Any history.

NAMES = ("a", "b", "a b", "-rf", "--help", '"q"', "two\nlines", ":(top)x", "*", os.fsdecode(b"caf\xe9"), "naïve", ".x")
SOIL = (
    lambda rng, file: file.write_text("changed by the app\n"),
    lambda rng, file: file.unlink(),
    lambda rng, file: replace_by(file, lambda: file.symlink_to("/no/such/place")),
    lambda rng, file: replace_by(file, lambda: (file / "__pycache__").mkdir(parents=True)),
    lambda rng, file: file.is_symlink() or file.chmod(rng.choice((0o600, 0o755))),
    lambda rng, file: file.parent.chmod(0o700),
    lambda rng, file: (file.parent / "made by the app").write_text("x\n"),
    lambda rng, file: replace_by(file.parent, lambda: file.parent.symlink_to("elsewhere")),
    lambda rng, file: move_away(file.parent),
)


def replace_by(place: Path, make: Callable[[], object]) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    make()


def move_away(directory: Path) -> None:
    """As an app does whose data is to outlive it: its place is taken by a link to the very same files."""
    directory.rename(directory.with_name("moved"))
    directory.symlink_to("moved")


def path_in(rng: Random, tree: Path) -> Path:
    return tree.joinpath(*(rng.choice(NAMES) for _ in range(rng.randint(1, 3))))


def scribble(rng: Random, work: Path) -> None:
    """Change a work tree: files, links and directories, also one in the place of another."""
    for _ in range(rng.randint(1, 12)):
        place = path_in(rng, work)
        for above in reversed(place.relative_to(work).parents[:-1]):
            if not (work / above).is_dir() or (work / above).is_symlink():
                replace_by(work / above, (work / above).mkdir)
        kind = rng.choice(("file", "file", "program", "link", "nothing"))
        replace_by(place, lambda: None)
        if kind == "link":
            place.symlink_to(rng.choice(("a", "../b", "/no/such/file", ".")))
        elif kind != "nothing":
            place.write_text(f"{rng.random()}\n")
            place.chmod(0o755 if kind == "program" else 0o644)


def soil(rng: Random, tree: Path) -> None:
    """What an app may do to its own tree."""
    for _ in range(rng.randint(0, 6)):
        inner = [file for file in everything_in(tree) if file.parent != tree and (file.is_file() or file.is_symlink())]
        if inner:
            with contextlib.suppress(OSError):  # a link to a directory is no file to write
                rng.choice(SOIL)(rng, rng.choice(inner))


@pytest.mark.parametrize("seed", range(3))
@pytest_twisted.ensureDeferred
async def test_any_history_gives_what_a_fresh_checkout_gives(app: App, seed: int) -> None:
    """Files, programs, links and directories, one in the place of another, under odd names; apps that make a mess."""
    rng = Random(seed)  # noqa: S311 (the same history each time)
    for round_ in range(10):
        scribble(rng, app.world.origin.work)
        push_all(app.world.origin)
        tree = await app.prepare()
        assert app.was_brought_forward is (round_ >= 3)
        await app.releases.keep(app.run, tree)
        soil(rng, tree.path)
        await app.releases.retire(app.run, ())


def push_all(origin: Origin) -> str:
    """Commit whatever the work tree holds."""
    origin.git("add", "--all", "--force")
    return origin.push({})


# What is left to a fresh checkout.


@pytest.mark.parametrize("name", [".gitattributes", "docs/.gitattributes"])
@pytest_twisted.ensureDeferred
async def test_attributes_change_files_that_have_not_changed(app: App, name: str) -> None:
    app.world.origin.push({"docs/page.txt": "a\nb\n"})
    await app.warm_up()
    app.world.origin.push({name: "*.txt text eol=crlf\n"})
    tree = await app.prepare()
    assert not app.was_brought_forward
    assert (tree.path / "docs/page.txt").read_bytes() == b"a\r\nb\r\n"


@pytest_twisted.ensureDeferred
async def test_unchanged_attributes_hold_for_what_is_brought_forward(app: App) -> None:
    app.world.origin.push({".gitattributes": "*.txt text eol=crlf\n", "docs/page.txt": "a\nb\n"})
    await app.warm_up()
    app.world.origin.push({"docs/page.txt": "c\n", "docs/other.txt": "d\n"})
    tree = await app.deploy()
    assert app.was_brought_forward
    assert (tree.path / "docs/page.txt").read_bytes() == b"c\r\n"


def push_submodule(origin: Origin, path: str) -> None:
    """With the addresses that a hostile repository would give it."""
    origin.git("update-index", "--add", "--cacheinfo", f"160000,{origin.git('rev-parse', 'HEAD')},{path}")
    modules = f'[submodule "a"]\n\tpath = {path}\n\turl = ext::touch {origin.directory}/PWN\n'
    origin.push({".gitmodules": modules + f'[submodule "b"]\n\tpath = b\n\turl = file://{origin.bare}\n'})


@pytest_twisted.ensureDeferred
async def test_submodules_are_empty_directories_in_every_release(app: App) -> None:
    """P69: nothing is fetched; and nothing that an app has put there comes into the next release."""
    await app.warm_up()
    push_submodule(app.world.origin, "library")
    for number in range(4):
        app.world.origin.push({"number": f"so {number}\n"})
        tree = await app.prepare()
        assert not app.was_brought_forward or number == 0
        assert (tree.path / "library").is_dir()
        assert list((tree.path / "library").iterdir()) == []
        (tree.path / "library" / "made by the app").touch()
        await app.releases.keep(app.run, tree)
        await app.releases.retire(app.run, ())
    assert not (app.world.origin.directory / "PWN").exists()


@pytest_twisted.ensureDeferred
async def test_more_changes_than_are_worth_it_are_checked_out(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    await app.warm_up()
    monkeypatch.setattr("twisted_hook.spare.MOST_CHANGES", 3)
    app.world.origin.push({f"new{number}": "x\n" for number in range(4)})
    await app.deploy()
    assert not app.was_brought_forward


@pytest_twisted.ensureDeferred
async def test_many_changes_are_written_in_portions(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    await app.warm_up()
    monkeypatch.setattr("twisted_hook.spare.CHANGES_AT_ONCE", 2)
    app.world.origin.push({f"new{number}": "x\n" for number in range(5)})
    await app.deploy()
    assert app.was_brought_forward
    assert app.run.names.count("git checkout") == 3


@pytest_twisted.ensureDeferred
async def test_the_same_commit_again_asks_git_only_what_differs(app: App) -> None:
    await app.warm_up()
    app.world.origin.push({"number": "0\n"})
    await app.prepare()
    assert app.run.names == ["git diff-tree"]


@pytest.mark.parametrize("name", ["git diff-tree", "git checkout"])
@pytest_twisted.ensureDeferred
async def test_what_cannot_be_brought_forward_is_checked_out(app: App, name: str) -> None:
    await app.warm_up()
    app.world.origin.push({"app.py": "two\n"})
    app.run.before = lambda command: replace(command, argv=("false",)) if command.name == name else command
    await app.deploy()
    assert not app.was_brought_forward


@pytest.mark.parametrize("damage", ["commit", "index", "tree/app.py", "tree"])
@pytest_twisted.ensureDeferred
async def test_a_spare_that_somebody_has_damaged_is_no_obstacle(app: App, damage: str) -> None:
    await app.warm_up()
    place = app.spare / damage
    shutil.rmtree(place) if damage == "tree" else place.unlink()
    app.world.origin.push({"app.py": None})
    await app.deploy()
    assert not app.was_brought_forward
    shutil.rmtree(app.spare)
    assert_nothing_is_left_over(app.world)


@pytest_twisted.ensureDeferred
async def test_a_full_disk_leaves_neither_a_release_nor_a_spare_that_is_half_done(app: App) -> None:
    """P84."""
    _, _, serving = await app.warm_up()
    app.world.origin.push({"large": "x" * 200_000})
    app.run.before = lambda command: replace(command, argv=("prlimit", "--fsize=100000", *command.argv))
    with pytest.raises(StepFailed, match="could not be checked out"):
        await app.prepare()
    assert_nothing_is_left_over(app.world)
    assert await app.releases.current(app.run) == serving
    app.run.before = lambda command: command
    await app.deploy()


# Making a spare.


@pytest_twisted.ensureDeferred
async def test_the_newest_that_retires_becomes_the_spare_and_the_others_go(app: App) -> None:
    releases = replace(app.releases, keep_newest=9)
    trees = []
    for number in range(5):
        app.world.origin.push({"number": f"{number}\n"})
        trees.append(await releases.take(app.run, await releases.fetch(app.run)))
        await releases.keep(app.run, trees[-1])
    await app.releases.retire(app.run, {trees[0].release, trees[2].release})
    assert app.world.kept() == [trees[number].release for number in (0, 2, 3, 4)]
    assert (app.spare / "commit").read_text() == trees[1].commit.revision
    await app.releases.retire(app.run, ())
    assert app.world.kept() == [trees[number].release for number in (3, 4)]
    assert (app.spare / "commit").read_text() == trees[2].commit.revision
    assert not list((app.releases.directory).glob("doomed/*"))
    assert sorted(app.releases.directory.glob("*/*/number")) == sorted(
        [app.spare / "tree" / "number", trees[3].path / "number", trees[4].path / "number"]
    )


@pytest_twisted.ensureDeferred
async def test_what_is_discarded_becomes_the_spare_again(app: App) -> None:
    """A commit that fails costs the next one nothing."""
    await app.warm_up()
    for number in range(3):
        app.world.origin.push({"app.py": f"broken {number}\n"})
        tree = await app.prepare()
        assert app.was_brought_forward
        await app.releases.discard(app.run, tree, ())
        assert len(app.world.kept()) == 2
    await app.releases.discard(app.run, tree, ())
    shutil.rmtree(app.spare)
    assert_nothing_is_left_over(app.world)


@pytest_twisted.ensureDeferred
async def test_a_small_tree_is_no_spare(app: App) -> None:
    app.releases = replace(app.releases, least_index=LEAST_INDEX)
    for number in range(4):
        app.world.origin.push({"number": f"{number}\n"})
        await app.deploy()
    assert not app.spare.exists()
    assert_nothing_is_left_over(app.world)


@pytest.mark.parametrize("name", ["git read-tree", "git clean", "git ls-files"])
@pytest_twisted.ensureDeferred
async def test_what_cannot_be_made_clean_is_removed(app: App, name: str) -> None:
    await app.warm_up()
    shutil.rmtree(app.spare)
    app.world.origin.push({"number": "again\n"})
    tree = await app.prepare()
    await app.releases.keep(app.run, tree)
    app.run.before = lambda command: replace(command, argv=("false",)) if command.name == name else command
    await app.releases.retire(app.run, ())
    assert not app.spare.exists()
    assert len(app.world.kept()) == 2
    assert_nothing_is_left_over(app.world)


@pytest.mark.parametrize("name", ["find", "git read-tree", "git clean", "git ls-files", "rm"])
@pytest_twisted.ensureDeferred
async def test_a_cleaning_that_is_cut_off_does_not_disturb_the_next(app: App, name: str) -> None:
    """P83: hookdeploy ends in the midst of it, so that nobody has tidied up."""
    await app.warm_up()
    app.world.origin.push({"number": "again\n"})
    await app.releases.keep(app.run, await app.prepare())

    def cut_off(command: Command) -> Command:
        if command.name == name:
            raise CancelledError
        return command

    app.run.before = cut_off
    with contextlib.suppress(CancelledError):
        await app.releases.retire(app.run, ())
    app.run.before = lambda command: command
    for number in range(4):
        app.world.origin.push({"number": f"then {number}\n"})
        await app.deploy()
    assert app.was_brought_forward
    shutil.rmtree(app.spare)
    await app.releases.retire(app.run, ())
    assert len(app.world.kept()) == 2
    assert_nothing_is_left_over(app.world)


@by_root
@pytest_twisted.ensureDeferred
async def test_what_was_another_users_is_never_brought_forward_for_ourselves(app: App) -> None:
    """The configuration has named one, and does not any more: its files would stay theirs."""
    ours = app.releases
    app.releases = replace(ours, owner=(NOBODY, NOBODY))
    for number in range(2):
        app.world.origin.push({"number": f"{number}\n"})
        tree = await app.releases.take(app.run, await app.releases.fetch(app.run))
        await app.releases.keep(app.run, tree)
        await app.releases.retire(app.run, ())
    app.releases = ours
    for number in range(2, 5):
        app.world.origin.push({"number": f"{number}\n"})
        tree = await app.deploy()
        assert {path.lstat().st_uid for path in everything_in(tree.path)} == {os.geteuid()}


@by_root
@pytest_twisted.ensureDeferred
async def test_the_trees_of_another_user_are_never_brought_forward(app: App) -> None:
    """Whose processes may change them at any moment, and might lead us elsewhere by a link."""
    app.releases = replace(app.releases, owner=(NOBODY, NOBODY))
    for number in range(5):
        app.world.origin.push({"number": f"{number}\n"})
        tree = await app.deploy()
        assert not app.was_brought_forward
        assert {path.lstat().st_uid for path in (tree.path, *tree.path.rglob("*"))} == {NOBODY}
    assert not app.spare.exists()


class ParseChangesTests(SynchronousTestCase):
    def test_all_kinds_of_changes_are_read(self) -> None:
        """Records of git documentation's git-diff-tree, Raw output format, with -z."""
        zero, one = "0" * 40, "1" * 40
        said = (
            f":100644 100755 {zero} {one} M\0with space\0:000000 120000 {zero} {one} A\0two\nlines\0"
            f":100644 000000 {one} {zero} D\0:100644 000000 {one} {zero} D\0"
        )
        self.assertEqual(
            list(parse_changes(said.encode())),
            [
                Change("100644", "100755", b"with space"),
                Change("000000", "120000", b"two\nlines"),
                Change("100644", "000000", f":100644 000000 {one} {zero} D".encode()),
            ],
        )
        self.assertEqual(list(parse_changes(b"")), [])

    def test_what_was_cut_off_is_an_error(self) -> None:
        with self.assertRaises(ValueError):
            list(parse_changes(f":100644 100755 {'0' * 40} {'1' * 40} M\0".encode()))

    def test_attributes_and_submodules_are_particular(self) -> None:
        for change, particular in (
            (Change("100644", "100644", b".gitattributes"), True),
            (Change("100644", "000000", b"a/.gitattributes"), True),
            (Change("100644", "160000", b"a"), True),
            (Change("160000", "000000", b"a"), True),
            (Change("100644", "120000", b"a.gitattributes"), False),
            (Change("000000", "100644", b".gitattributes/a"), False),
        ):
            self.assertEqual(change.is_particular, particular, change)
