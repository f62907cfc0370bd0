"""What git is doing to a clone: it is on disk before it begins, so that what a killed one leaves can be healed.

Touches that clone, and never while another git is at work in it. What a person has changed or begun there is theirs.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from twisted_hook.boundaries import CommandRunner
from twisted_hook.copies import stamped
from twisted_hook.halftree import HalfTree
from twisted_hook.model import StepFailed
from twisted_hook.repository import Repository, explained, git_runs_in

_log = Logger()


@dataclass(frozen=True, slots=True)
class UnderWay:
    """What is under way in one clone."""

    clone: Repository
    branch: str
    """The full name of the branch that is ours to move."""
    tip: str
    """The full name of the ref by which the remote's branch is known."""
    directory: Path
    """Where the note is, and the copies go."""
    now: Callable[[], float]

    @asynccontextmanager
    async def between(self, run: CommandRunner, start: str, end: str) -> AsyncIterator[None]:
        """While git brings the tree from one commit to another: what it leaves half done is healed, now or later."""
        if self._file.exists():
            await self.heal(run)
        write_note(self._file, f"{start} {end}\n")
        try:
            yield
        except (StepFailed, CancelledError):
            with suppress(StepFailed):
                await self.heal(run)
            raise
        self.over()

    def over(self) -> None:
        """Nothing is left to be healed."""
        self._file.unlink(missing_ok=True)

    async def heal(self, run: CommandRunner) -> None:
        """Take away what a git of ours has left that was killed or has failed; what is a person's is left alone."""
        said = await self.clone.ask(
            run,
            "rev-parse",
            "--path-format=absolute",
            *("--git-path", "rebase-merge", "--git-path", "rebase-apply"),
            *("--git-path", "objects/pack"),
            *(word for lock in self._locks for word in ("--git-path", lock)),
            failing=f"{self._path} could not be examined",
        )
        merge, apply, packs, *locks = map(Path, said.splitlines())
        left = [lock for lock in locks if lock.exists()] + list(packs.glob("tmp_*"))
        under_way = noted(self._file).split()
        somebody_is_at_work = bool(left or under_way) and git_runs_in(self._path)
        if not somebody_is_at_work:
            for file in left:
                file.unlink(missing_ok=True)  # of a killed git: a lock is in the way for ever, half a pack holds space
        if apply.exists() or (merge.exists() and not _is_between(merge, under_way)):
            raise StepFailed(f"somebody's rebase is under way in {self._path}; finish it or abort it")
        if under_way:
            with explained(f"{self._path} is half written"):
                await self._take_back(run, *under_way, rebasing=merge.exists(), touching=not somebody_is_at_work)
        self.over()

    async def _take_back(self, run: CommandRunner, start: str, end: str, *, rebasing: bool, touching: bool) -> None:
        """Unless HEAD is elsewhere than where we began: git was done then, or a person has gone on from there."""
        at = (await self.clone.commit(run, "HEAD")).revision
        half = HalfTree(self.clone, (start, end, at), self._file.stat().st_mtime_ns, self.directory / "names")
        if not touching:
            if rebasing or (at == start and await half.is_there(run)):
                raise StepFailed(f"{self._path} is half written, and another git command is at work there")
            return
        failing = f"a rebase in {self._path} could not be aborted"
        if rebasing:  # as git rebase --abort, which would throw away what a person has changed since
            await self.clone.ask(run, "symbolic-ref", "HEAD", self.branch, failing=failing)
        if (await self.clone.commit(run, "HEAD")).revision == start:
            copies = self.directory / "saved" / stamped(self.now())
            await half.take_back(run, copies)
            if copies.exists():
                _log.warn("{path} was half written; what was there is in {copies}", path=self._path, copies=copies)
        if rebasing:
            await self.clone.ask(run, "rebase", "--quit", failing=failing)

    @property
    def _locks(self) -> tuple[str, ...]:
        """The locks that our commands take."""
        of_refs = ("HEAD", "ORIG_HEAD", "REBASE_HEAD", self.branch, self.tip, "packed-refs")
        return ("index.lock", "shallow.lock", "packed-refs.new", *(f"{ref}.lock" for ref in of_refs))

    @property
    def _path(self) -> Path:
        return self.clone.git.directory

    @property
    def _file(self) -> Path:
        """From which commit, to which."""
        return self.directory / "under-way"


def noted(file: Path) -> str:
    """Empty if there is no such note."""
    return file.read_text() if file.is_file() else ""


def write_note(file: Path, text: str) -> None:
    """On disk, whole, before anything is done that it speaks of. Raises ``StepFailed``."""
    new = file.with_suffix(".new")
    with explained("nothing was begun"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with new.open("w") as note:
            note.write(text)
            note.flush()
            os.fsync(note.fileno())
        new.replace(file)


def _is_between(rebase: Path, commits: Sequence[str]) -> bool:
    """Whether it has begun at the one and leads to the other, as far as git had come to write that down."""
    said = [noted(rebase / name).strip() for name in ("orig-head", "onto")]
    return bool(commits) and all(found in ("", commit) for found, commit in zip(said, commits, strict=True))
