"""A tree that git was writing when it was killed: what it has written is taken back.

Touches one clone, and there only the files in which the two commits differ between which git was on its way. What is
not as git writes it may be a person's, and is copied before it goes.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from twisted_hook.boundaries import CommandRunner
from twisted_hook.copies import in_the_place_of, save
from twisted_hook.repository import Repository

_SUBMODULE = "160000"
_AT_ONCE = 1024 * 1024
"""Bytes of a file that are held in memory."""


@dataclass(frozen=True, slots=True)
class HalfTree:
    """The tree of a clone whose HEAD is at the first of some commits."""

    clone: Repository
    commits: Sequence[str]
    """The others are those whose files git may have begun to write."""
    since: int
    """When it may have begun, in nanoseconds."""
    scratch: Path
    """For lists of names that are too long for a command."""

    async def is_there(self, run: CommandRunner) -> bool:
        """Whether any of the files was written since then, or is gone. Nothing is changed."""
        versions = await self._versions(run)
        words = ("diff-index", "-z", "--name-only", "--diff-filter=D", self.commits[0])
        gone = await self.clone.listed(run, self.scratch, *words)
        return any(map(self._was_written, versions)) or not versions.keys().isdisjoint(gone)

    async def take_back(self, run: CommandRunner, copies: Path) -> None:
        """Bring these files, and what the index says of them, back to the first commit.

        Raises ``StepFailed``, and ``OSError`` as it comes; it can be repeated then.
        """
        path, versions = self._path, await self._versions(run)
        written = [name for name in versions if self._was_written(name)]
        strange = [name for name in written if _blob(path / name, versions[name]) not in versions[name]]
        for name in set(written).difference(strange):  # first, since the disk may be full
            _remove(path, name)
        save(path, strange, copies)
        for name in strange:
            _remove(path, name)
        await self._with_names(run, ("reset", "--quiet"), versions)
        gone = await self.clone.listed(run, self.scratch, "diff-files", "-z", "--name-only", "--diff-filter=D")
        missing = versions.keys() & gone
        save(path, missing, copies)  # a person may have put something else there
        await self._with_names(run, ("restore", "--worktree"), missing)

    @property
    def _path(self) -> Path:
        return self.clone.git.directory

    async def _versions(self, run: CommandRunner) -> Mapping[str, set[str]]:
        """The files that differ, and the ids of all their contents."""
        start, *others = self.commits
        versions: dict[str, set[str]] = {}
        for other in others:
            words = ("diff-tree", "-r", "-z", "--raw", "--no-abbrev", "--no-renames", start, other)
            fields = await self.clone.listed(run, self.scratch, *words)
            for told, name in zip(fields[::2], fields[1::2], strict=True):
                old_mode, new_mode, *ids, _ = told.removeprefix(":").split(" ")
                if _SUBMODULE not in (old_mode, new_mode):
                    versions.setdefault(name, set()).update(ids)
        return versions

    def _was_written(self, name: str) -> bool:
        """Whether there is such a file, not by way of a link, which has changed in any way since then."""
        if in_the_place_of(self._path, name) != Path(name):
            return False
        found = (self._path / name).lstat()
        return not stat.S_ISDIR(found.st_mode) and found.st_ctime_ns >= self.since

    async def _with_names(self, run: CommandRunner, words: tuple[str, ...], names: Collection[str]) -> None:
        if not names:  # which git would take for all
            return
        self.scratch.parent.mkdir(parents=True, exist_ok=True)
        self.scratch.write_bytes(b"".join(os.fsencode(name) + b"\0" for name in names))
        from_file = (f"--pathspec-from-file={self.scratch}", "--pathspec-file-nul")
        failing = f"{self._path} could not be put back"
        await self.clone.ask(run, "--literal-pathspecs", *words, *from_file, failing=failing)
        self.scratch.unlink()


def _blob(file: Path, ids: Iterable[str]) -> str:
    """The id that git gives to this content (gitformat-loose), of the kind of the others."""
    digest = hashlib.new("sha1" if len(next(iter(ids))) == 40 else "sha256", usedforsecurity=False)
    if file.is_symlink():
        target = os.fsencode(file.readlink())
        digest.update(b"blob %d\0%b" % (len(target), target))
        return digest.hexdigest()
    with file.open("rb") as content:
        digest.update(b"blob %d\0" % os.fstat(content.fileno()).st_size)
        while part := content.read(_AT_ONCE):
            digest.update(part)
    return digest.hexdigest()


def _remove(clone: Path, name: str) -> None:
    """The file, and as git does the directories that are empty then."""
    (clone / name).unlink()
    with suppress(OSError):
        for above in Path(name).parents[:-1]:
            (clone / above).rmdir()
