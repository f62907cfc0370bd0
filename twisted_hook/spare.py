"""A retired release that becomes the next one: what has changed is written, and nothing else is touched.

Touches the trees of one app that nobody uses. Every walk through a whole tree happens when a release retires; bringing
the spare forward costs what has changed. What is not sure to come out like a fresh checkout is left to one.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from twisted.logger import Logger

from twisted_hook.boundaries import CommandRunner
from twisted_hook.mirror import Mirror
from twisted_hook.model import Command, Commit, StepFailed

MOST_CHANGES = 5000
"""Beyond them the removals, which happen in our own process, would hold the reactor up for more than a moment."""
CHANGES_AT_ONCE = 500
"""git compares every name with every path that it is given: 4000 at once took 3.1 s, in portions 0.5 s."""

_NOTHING, _SUBMODULE = "000000", "160000"

_log = Logger()


@dataclass(frozen=True, slots=True)
class Change:
    """A path that differs between two commits; the modes are git's, ``000000`` where there is nothing."""

    old_mode: str
    new_mode: str
    path: bytes

    @property
    def is_particular(self) -> bool:
        """Whether it has a say about other paths, or a place that is not git's alone."""
        return _SUBMODULE in (self.old_mode, self.new_mode) or self.path.rpartition(b"/")[2] == b".gitattributes"


@dataclass(frozen=True, slots=True)
class Spare:
    """The spare of an app: ``tree``, its ``index``, and the id of its ``commit``, in a directory."""

    mirror: Mirror
    directory: Path

    async def clean(self, run: CommandRunner, cleaning: Path, commit: Commit) -> bool:
        """Make the tree in the directory ``cleaning`` exactly what the commit is. False if it cannot be a spare."""
        tree, index = cleaning / "tree", cleaning / "index"
        mode = f"{stat.S_IMODE(cleaning.stat().st_mode):o}"  # of a directory made just now
        finding = ("find", str(tree), "-type", "d", "!", "-perm", mode, "-exec", "chmod", mode, "{}", "+")
        await run.run(Command("find", finding, {"PATH": self.mirror.ambient.path, "LC_ALL": "C"}))
        for words in (
            ("read-tree", "--reset", commit.revision),  # so that the next one knows what belongs there
            ("clean", "-ffdxq"),  # first: a link in the place of a directory might lead to the very same files
            ("read-tree", "--reset", "-u", commit.revision),
        ):
            await self.mirror.at_work_on(run, tree, index, *words, failing="an old release could not be made clean")
        if await self._has_submodules(run, index):
            return False  # git clean leaves alone what is in their directories
        (cleaning / "commit").write_text(commit.revision)
        return True

    async def _has_submodules(self, run: CommandRunner, index: Path) -> bool:
        """Asks for all names, which may be more than a command's result holds."""
        seen, end = False, b"\0"

        def look(data: bytes) -> None:
            nonlocal seen, end
            seen = seen or b"\x00160000 " in end + data
            end = (end + data)[-8:]

        listing = self.mirror.repository.git.command("ls-files", "--stage", "-z", env={"GIT_INDEX_FILE": str(index)})
        result = await run.run(listing, output=look)
        return seen or not result.ok

    async def bring_forward(self, run: CommandRunner, commit: Commit, preparing: Path) -> bool:
        """Move the spare to ``preparing``, a name that is free, and make a tree of this commit of it.

        False if there is none, or if it could not be done; what is in ``preparing`` is then good for nothing.
        """
        try:
            self.directory.rename(preparing)
        except FileNotFoundError:
            return False
        try:
            return await self._apply(run, commit, preparing)
        except (StepFailed, OSError, ValueError) as problem:
            _log.info("{spare} was not brought forward: {reason}", spare=str(self.directory), reason=str(problem))
            return False

    async def _apply(self, run: CommandRunner, commit: Commit, preparing: Path) -> bool:
        if not (preparing / "index").is_file():
            return False
        changes = await self._changes(run, (preparing / "commit").read_text(), commit.revision, preparing / "changes")
        if len(changes) > MOST_CHANGES or any(change.is_particular for change in changes):
            return False
        gone = [Path(os.fsdecode(one.path)) for one in changes if one.new_mode == _NOTHING]
        _remove(preparing / "tree", gone)
        written = [one.path for one in changes if one.new_mode != _NOTHING]
        for start in range(0, len(written), CHANGES_AT_ONCE):
            await self._write(run, commit, preparing, written[start : start + CHANGES_AT_ONCE])
        return True

    async def _changes(self, run: CommandRunner, old: str, new: str, file: Path) -> list[Change]:
        """By way of a file: the names may be more than a command's result holds."""
        if re.fullmatch("[0-9a-f]{40,64}", old) is None:
            raise ValueError("its commit is not known")
        options = ("-r", "-z", "--raw", "--no-renames", f"--output={file}")
        await self.mirror.repository.ask(run, "diff-tree", *options, old, new, failing="its changes are not known")
        return list(parse_changes(file.read_bytes()))

    async def _write(self, run: CommandRunner, commit: Commit, preparing: Path, paths: Sequence[bytes]) -> None:
        """By an index of these paths only: the one of the whole tree stays as it is, and is put right when cleaned."""
        names = preparing / "names"
        names.write_bytes(b"".join(path + b"\0" for path in paths))
        await self.mirror.at_work_on(
            run,
            preparing / "tree",
            preparing / "few",
            *("checkout", "--quiet", commit.revision, f"--pathspec-from-file={names}", "--pathspec-file-nul"),
            env={"GIT_LITERAL_PATHSPECS": "1"},
            failing="its changes could not be written",
        )


def parse_changes(said: bytes) -> Iterator[Change]:
    """Read ``git diff-tree --raw -z`` of two commits (git documentation, git-diff-tree, Raw output format)."""
    fields = iter(said.split(b"\0")[:-1])
    for modes, path in zip(fields, fields, strict=True):
        old_mode, new_mode, *_ = modes.decode("ascii").removeprefix(":").split(" ")
        yield Change(old_mode, new_mode, path)


def _remove(tree: Path, names: Sequence[Path]) -> None:
    """Remove files, and the directories that are empty then, as git does."""
    for name in names:
        (tree / name).unlink()
    for directory in {name.parent for name in names}:
        _remove_if_empty(tree, directory)


def _remove_if_empty(tree: Path, directory: Path) -> None:
    for place in (directory, *directory.parents):
        if place == Path():
            return
        try:
            (tree / place).rmdir()
        except FileNotFoundError:
            continue  # it went with one of its own directories
        except OSError:
            return
