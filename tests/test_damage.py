"""A mirror in which something is missing or not as it was written is made anew from its remote, by itself.

As after a crash of the machine, whose file system has lost what was written last, or after somebody's tidying up.
"""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import pytest_twisted

from tests.test_releases import World, deploy, files, run, world
from twisted_hook.process import SpawningRunner

__all__ = ["run", "world"]  # fixtures
GARBAGE = b"\0\1\2 garbage\n"
OURS = "refs/hookdeploy/blog"
Damage = Callable[[Path], None]
Change = Callable[[Path], None]


def write(content: bytes) -> Change:
    """Write this to another file of the name: git makes some of its files read-only."""

    def change(path: Path) -> None:
        remove(path)
        path.write_bytes(content)

    return change


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def halve(file: Path) -> None:
    write(file.read_bytes()[: file.stat().st_size // 2])(file)


def blank(file: Path) -> None:
    """What stands between head and end is lost."""
    whole = file.read_bytes()
    write(whole[:20] + bytes(max(0, len(whole) - 40)) + whole[-20:])(file)


def make_directory(path: Path) -> None:
    remove(path)
    path.mkdir(parents=True)


def link_to_nowhere(path: Path) -> None:
    remove(path)
    path.symlink_to("/no/such/mirror.git")


def one(name: str, change: Change) -> Damage:
    return lambda mirror: change(mirror / name)


def each(pattern: str, change: Change) -> Damage:
    def damage(mirror: Path) -> None:
        for file in [file for file in mirror.glob(pattern) if file.is_file()]:
            change(file)

    return damage


def both(first: Damage, second: Damage) -> Damage:
    def damage(mirror: Path) -> None:
        first(mirror)
        second(mirror)

    return damage


def config(text: str) -> Damage:
    return one("config", write(text.encode()))


DAMAGES: dict[str, Damage] = {
    "objects that are gone": each("objects/*/*", remove),
    "empty objects": each("objects/*/*", write(b"")),
    "objects of something else": each("objects/*/*", write(b"x" * 99)),
    "half a pack": each("objects/pack/*.pack", halve),
    "a pack of which the middle is lost": each("objects/pack/*.pack", blank),
    "half an index of a pack": each("objects/pack/*.idx", halve),
    "an index of which the middle is lost": each("objects/pack/*.idx", blank),
    "packs without an index": each("objects/pack/*.idx", remove),
    "indexes without a pack": each("objects/pack/*.pack", remove),
    "garbage in the index of all packs": one("objects/pack/multi-pack-index", write(b"MIDX" + GARBAGE)),
    "garbage in the graph of commits": one("objects/info/commit-graph", write(b"CGPH" + GARBAGE)),
    "alternates that are not there": one("objects/info/alternates", write(b"/none\n")),
    "a file for objects": one("objects", write(b"")),
    "no objects": one("objects", remove),
    "no HEAD": one("HEAD", remove),
    "an empty HEAD": one("HEAD", write(b"")),
    "garbage in HEAD": one("HEAD", write(GARBAGE)),
    "a directory for HEAD": one("HEAD", make_directory),
    "no config": one("config", remove),
    "an empty config": config(""),
    "half a config": config("[core\n"),
    "garbage in the config": one("config", write(GARBAGE)),
    "a config with nonsense": config("[core]\nbare = perhaps\n"),
    "a config of a work tree": config("[core]\nbare = false\nworktree = /none\n"),
    "a config of the future": config("[core]\nrepositoryformatversion = 99\n"),
    "a config of an unknown kind": config("[core]\nrepositoryformatversion = 1\n[extensions]\nx = y\n"),
    "no refs": one("refs", remove),
    "a file for refs": one("refs", write(b"")),
    "an empty ref": one(OURS, write(b"")),
    "garbage in a ref": one(OURS, write(GARBAGE)),
    "a ref to nothing": one(OURS, write(b"1" * 40 + b"\n")),
    "a ref to itself": one(OURS, write(f"ref: {OURS}\n".encode())),
    "a directory for a ref": both(one(OURS, make_directory), one(f"{OURS}/x", make_directory)),
    "a ref below the name of ours": both(one(OURS, make_directory), one(f"{OURS}/x", write(b"1" * 40 + b"\n"))),
    "garbage in packed-refs": one("packed-refs", write(GARBAGE)),
    "garbage in shallow": one("shallow", write(GARBAGE)),
    "shallow at what is not there": one("shallow", write(b"1" * 40 + b"\n")),
    "a file for all": one("", write(b"")),
    "a link to nowhere for all": one("", link_to_nowhere),
    "nothing but empty directories": each("**/*", remove),
    "nothing but empty files": each("**/*", write(b"")),
}
UNPACKED = (
    *("objects that are gone", "empty objects", "objects of something else", "no objects", "no refs"),
    *("nothing but empty directories", "nothing but empty files"),
)
"""Those that meet other files where nothing has been packed yet."""


@pytest.mark.parametrize(
    ("damage", "packed"), [*((damage, True) for damage in DAMAGES), *((damage, False) for damage in UNPACKED)]
)
@pytest_twisted.ensureDeferred
async def test_a_damaged_mirror_is_made_anew_by_itself(
    world: World, run: SpawningRunner, damage: str, packed: bool
) -> None:
    releases = world.releases()
    first = await deploy(run, releases)
    if packed:
        world.origin.git("gc", "--quiet", at=releases.mirror)
    DAMAGES[damage](releases.mirror)
    revision = world.origin.push({"other.py": "two\n"})
    tree = await deploy(run, releases)
    assert (tree.commit.revision, files(tree.path)) == (revision, {"app.py", "other.py"})
    assert (first.path / "app.py").read_text() == "one\n"


def unpack(mirror: Path) -> None:
    [pack] = mirror.glob("objects/pack/*.pack")
    with pack.rename(mirror / "unpacking").open("rb") as unpacking:
        subprocess.run(["git", f"--git-dir={mirror}", "unpack-objects", "-q"], stdin=unpacking, check=True)
    pack.with_suffix(".idx").unlink()


@pytest.mark.parametrize("lost", ["HEAD", "HEAD^{tree}", "HEAD:app.py"])
@pytest_twisted.ensureDeferred
async def test_a_mirror_that_loses_an_object_between_fetch_and_checkout_is_made_anew(
    world: World, run: SpawningRunner, lost: str
) -> None:
    releases = world.releases()
    commit = await releases.fetch(run)
    unpack(releases.mirror)
    name = world.origin.git("rev-parse", lost)
    (releases.mirror / "objects" / name[:2] / name[2:]).unlink()
    assert files((await releases.take(run, commit)).path) == {"app.py"}
