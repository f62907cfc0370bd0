"""An existing clone, kept up to date in place.

Touches that clone. It never throws away what a person has changed there: it refuses, or with ``update = "reset"`` keeps
a copy first. A rebase that conflicts is taken back.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from twisted.internet.defer import CancelledError

from twisted_hook.boundaries import Checkout, CommandRunner
from twisted_hook.commands import GIT_TIMEOUT, Ambient, Git, protocols_of, reading
from twisted_hook.model import CommandResult, Commit, StepFailed, Tree
from twisted_hook.process import STDOUT_CAP
from twisted_hook.redaction import clean
from twisted_hook.repository import Repository, failed, git_runs_in
from twisted_hook.served import note_served, served, write_served

MOST_NAMES = 20
"""How many files a refusal names."""
MOST_SERVED = 10
"""How many commits that have served can be gone back to."""


@dataclass(frozen=True, slots=True)
class Status:
    """What ``git status`` says of a clone."""

    head: str
    """The commit that HEAD names; ``(initial)`` before there is one."""
    branch: str | None
    changed: tuple[str, ...]
    """Tracked files that differ from HEAD."""


@dataclass(frozen=True, slots=True)
class Clone:
    """One app's clone; ``update`` is ``rebase``, ``ff-only`` or ``reset``."""

    path: Path
    branch: str
    update: str
    directory: Path
    """``<state>/apps/<app>``, where copies of overwritten files go."""
    ambient: Ambient
    now: Callable[[], float]
    timeout: float = GIT_TIMEOUT
    """Seconds for one git command."""

    @property
    def repository(self) -> str:
        return str(self.path)

    def _git(self, protocols: str = "none") -> Repository:
        return Repository(Git(self.ambient, self.path, protocols, in_place=True, timeout=self.timeout))

    async def fetch(self, run: CommandRunner, revision: str | None = None) -> Commit:
        if revision is not None:
            raise StepFailed("in place only the branch's tip can be deployed")
        await self._tidy_up(run)
        url = await self._git().ask(run, "remote", "get-url", "origin", failing=f"{self.path} has no remote origin")
        git = self._git(protocols_of(url.strip()))
        await git.ask(
            run,
            "fetch",
            "--no-tags",
            "--prune",
            *reading(url.strip()),
            "--end-of-options",
            "origin",
            f"+refs/heads/{self.branch}:{self._tip}",
            failing=f"branch {self.branch} could not be fetched",
        )
        return await git.commit(run, self._tip)

    async def take(self, run: CommandRunner, commit: Commit) -> Tree:
        status = await self._own_status(run)
        before = Commit(status.head, "", "")
        self._note_before(before)
        try:
            after = await self._update(run, before, commit, status.changed) or await self._head(run)
            await self._forget_bytecode(run, before, after.commit)
        except (StepFailed, CancelledError):
            with suppress(StepFailed):
                await self._tidy_up(run)
                await self._go_back(run)
                self._before.unlink()  # what a person does next is not to be taken back
            raise
        return after

    async def _update(
        self, run: CommandRunner, before: Commit, commit: Commit, changed: tuple[str, ...]
    ) -> Tree | None:
        """The tree, where it is known without another look."""
        match self.update:
            case "rebase":
                _refuse_changes(self.path, changed)
                return await self._rebase(run, before, commit)
            case "ff-only":
                _refuse_changes(self.path, changed)
                await self._git().ask(
                    run, "merge", "--ff-only", commit.revision, failing=f"{self.path} could not be fast-forwarded"
                )
            case _:
                await self._reset(run, before, commit, changed)
        return None

    async def keep(self, run: CommandRunner, tree: Tree) -> None:
        """The clone is its own current tree: there is no way back to be remembered any more."""
        if _text(self._before).strip() == tree.commit.revision:  # hookdeploy died deploying, and this serves still
            await self._go_back(run)
        for revision in (*_text(self._before).split(), tree.commit.revision):
            note_served(self._served, revision)
        write_served(self._served, served(self._served)[-MOST_SERVED:])
        self._before.unlink(missing_ok=True)

    async def discard(self, run: CommandRunner, tree: Tree, in_use: Collection[str]) -> None:
        """Go back to the commit that serves: its workers load what is on disk whenever gunicorn starts one again."""
        if _text(self._before).strip() not in ("", tree.commit.revision):
            await self._go_back(run)
        self._before.unlink(missing_ok=True)

    async def retire(self, run: CommandRunner, in_use: Collection[str]) -> None:
        """There is one tree, and it stays."""

    async def kept(self, run: CommandRunner) -> Sequence[Tree]:
        """The commits that have served; one that git has let go of since is passed over."""
        found = []
        for revision in reversed(served(self._served)):
            with suppress(StepFailed):
                found.append(self._tree(await self._git().commit(run, revision)))
        return found

    async def put_back(self, run: CommandRunner, tree: Tree) -> None:
        """Local commits stay reachable; local changes stay, or are in the way, or go where ``update`` says."""
        await self._tidy_up(run)
        status = await self._own_status(run)
        before = Commit(status.head, "", "")
        self._note_before(before)
        if self.update == "reset":
            await self._reset(run, before, tree.commit, status.changed)
            await self._forget_bytecode(run, before, tree.commit)
            return
        await self._keep_local_commits(run, self._tip, f"refs/hookdeploy/saved/{self._stamp()}")
        await self._reset_to(run, tree.commit.revision)

    async def _go_back(self, run: CommandRunner) -> None:
        await self._reset_to(run, _text(self._before).strip())

    async def _reset_to(self, run: CommandRunner, revision: str) -> None:
        from_here = await self._git().commit(run, "HEAD")
        # --keep: what a step has changed in the clone is in the way of going back, and is not thrown away.
        await self._git().ask(
            run, "reset", "--keep", revision, failing=f"{self.path} could not be put back to {revision[:7]}"
        )
        await self._forget_bytecode(run, from_here, await self._git().commit(run, "HEAD"))

    async def recover(self, run: CommandRunner, serving: Tree | None) -> Tree | None:
        if self._rebasing.exists():  # hookdeploy died in the midst of it
            await self._tidy_up(run)
        if serving is not None:
            await self.keep(run, serving)
        elif self._before.exists():
            with suppress(StepFailed):  # what is there can be tried, and what served before stays noted
                if await self._was_moved_by_us(run):
                    await self._go_back(run)
                self._before.unlink()
        return await self._head(run)

    async def _was_moved_by_us(self, run: CommandRunner) -> bool:
        """Whether the clone has come to what was fetched since it was noted what served; else a person was here."""
        has_it = [
            (await self._git().run(run, "merge-base", "--is-ancestor", self._tip, revision)).ok
            for revision in ("HEAD", _text(self._before).strip())
        ]
        return has_it == [True, False]

    async def make_room(self, run: CommandRunner) -> None:
        """Nothing to do: what it writes is in the clone, or a copy for people."""

    async def current(self, run: CommandRunner) -> Tree | None:
        return await self._head(run)

    async def _head(self, run: CommandRunner) -> Tree:
        return self._tree(await self._git().commit(run, "HEAD"))

    def _tree(self, commit: Commit) -> Tree:
        return Tree(self.path, commit, commit.revision[:12])

    async def _forget_bytecode(self, run: CommandRunner, old: Commit, new: Commit) -> None:
        """Remove the bytecode of the modules that have changed.

        Python takes a module for unchanged that has the size and, in whole seconds, the time that its bytecode names
        (PEP 552): the second of two quick pushes would never be served.
        """
        for name in await self._differing(run, old, new, "--", "*.py"):
            module = self.path / name
            cache = module.parent / "__pycache__"
            if not cache.is_symlink():
                for bytecode in cache.glob(f"{glob.escape(module.stem)}.*.pyc"):
                    bytecode.unlink(missing_ok=True)

    async def _own_status(self, run: CommandRunner) -> Status:
        """Of a clone that is on the branch which is ours to move."""
        status = await self._status(run)
        if status.branch != self.branch:
            raise StepFailed(f"{self.path} is on {status.branch or 'no branch'}, not on {self.branch}; switch it back")
        return status

    async def _status(self, run: CommandRunner) -> Status:
        result = await self._git().run(
            run, "status", "--porcelain=v2", "--branch", "-z", "--untracked-files=no", "--ignore-submodules=dirty"
        )
        if not result.ok:
            raise failed(f"{self.path} could not be examined", result)
        if len(result.stdout) >= STDOUT_CAP:
            raise StepFailed(f"{self.path} has more local changes than hookdeploy can list; see git status there")
        return parse_status(os.fsdecode(result.stdout))

    async def _rebase(self, run: CommandRunner, before: Commit, commit: Commit) -> Tree | None:
        """The tree, where it is known without another look: HEAD is the commit itself after a fast-forward."""
        self._note(self._rebasing, f"{before.revision} {commit.revision}\n")
        forward = await self._fast_forward(run, commit)
        if forward.ok:
            self._rebasing.unlink()
            return self._tree(commit) if b"Fast-forward" in forward.stdout else None
        # --fork-point: what the origin has taken back by a forced push is no local commit.
        result = await self._git().run(run, "rebase", "--fork-point", "--onto", commit.revision, self._tip)
        if not result.ok:
            await self._tidy_up(run)
            raise failed(f"{self.path} could not be rebased and is as it was", result)
        self._rebasing.unlink()
        return None

    async def _fast_forward(self, run: CommandRunner, commit: Commit) -> CommandResult:
        """The usual case, and a quarter of what a rebase costs."""
        return await self._git().run(run, "merge", "--ff-only", "--no-stat", commit.revision)

    async def _tidy_up(self, run: CommandRunner) -> None:
        """Take back a rebase of ours that conflicts, or in which hookdeploy died; one of a person's is theirs."""
        said = await self._git().ask(
            run,
            "rev-parse",
            "--path-format=absolute",
            *("--git-path", "rebase-merge", "--git-path", "rebase-apply"),
            *(word for lock in self._locks for word in ("--git-path", lock)),
            failing=f"{self.path} could not be examined",
        )
        merge, apply, *locks = map(Path, said.splitlines())
        left = [lock for lock in locks if lock.exists()]
        if left and not git_runs_in(self.path):
            for lock in left:
                lock.unlink()  # a killed git has left it, and it would be in the way for ever
        for place in (merge, apply):
            if not place.exists():
                continue
            if not self._is_ours(place):
                raise StepFailed(f"somebody's rebase is under way in {self.path}; finish it or abort it")
            await self._git().ask(run, "rebase", "--abort", failing=f"a rebase in {self.path} could not be aborted")
        self._rebasing.unlink(missing_ok=True)

    def _is_ours(self, rebase: Path) -> bool:
        """Whether it has begun where ours began, and leads where ours leads."""
        noted = _text(self._rebasing).split()
        return noted == [_text(rebase / name).strip() for name in ("orig-head", "onto")]

    async def _reset(self, run: CommandRunner, before: Commit, commit: Commit, changed: Iterable[str]) -> None:
        stamp = self._stamp()
        coming = await self._differing(run, before, commit, "--diff-filter=A")
        try:
            self._save({*changed, *coming}, self.directory / "saved" / stamp)
        except OSError as error:
            raise StepFailed(f"{self.path} is as it was: a copy of its changes could not be kept: {error}") from error
        await self._keep_local_commits(run, commit.revision, f"refs/hookdeploy/saved/{stamp}")
        await self._git().ask(run, "reset", "--hard", commit.revision, failing=f"{self.path} could not be reset")

    async def _differing(self, run: CommandRunner, old: Commit, new: Commit, *which: str) -> list[str]:
        """The files that differ. By way of a file: their names may be more than a command's result holds."""
        self.directory.mkdir(parents=True, exist_ok=True)
        names = self.directory / "differing"
        options = ("-r", "-z", "--name-only", "--no-renames", f"--output={names}")
        failing = f"{self.path} could not be examined"
        await self._git().ask(run, "diff-tree", *options, old.revision, new.revision, *which, failing=failing)
        said = os.fsdecode(names.read_bytes())
        names.unlink()
        return said.split("\0")[:-1]

    def _save(self, names: Iterable[str], copies: Path) -> None:
        """Copy what stands in the place of these files, before they are written."""
        for place in {place for name in names if (place := self._in_the_place_of(name))}:
            copy = copies / place
            copy.parent.mkdir(parents=True, exist_ok=True)
            if (self.path / place).is_dir() and not (self.path / place).is_symlink():
                shutil.copytree(self.path / place, copy, symlinks=True)
            else:
                shutil.copy2(self.path / place, copy, follow_symlinks=False)

    def _in_the_place_of(self, name: str) -> Path | None:
        """The file, link or directory that has to go for a file of this name: it, or what is no directory above it."""
        above = reversed(Path(name).parents[:-1])
        for place in (*above, Path(name)):
            if (self.path / place).is_symlink() or (self.path / place).is_file():
                return place
        return Path(name) if (self.path / name).is_dir() else None

    def _stamp(self) -> str:
        return f"{datetime.fromtimestamp(self.now(), UTC):%Y%m%dT%H%M%S.%fZ}"

    async def _keep_local_commits(self, run: CommandRunner, theirs: str, ref: str) -> None:
        """Commits that only this clone has stay reachable under a ref of ours."""
        ours = await self._git().run(run, "merge-base", "--is-ancestor", "HEAD", theirs)
        if not ours.ok:
            await self._git().ask(run, "update-ref", ref, "HEAD", failing="local commits could not be kept")

    @property
    def _tip(self) -> str:
        return f"refs/remotes/origin/{self.branch}"

    @property
    def _locks(self) -> tuple[str, ...]:
        """The locks that our commands take."""
        return ("index.lock", "HEAD.lock", f"refs/heads/{self.branch}.lock", f"{self._tip}.lock")

    def _note_before(self, before: Commit) -> None:
        """Unless there is a way that could not be gone back yet: then what served is at its end."""
        if not self._before.exists():
            self._note(self._before, f"{before.revision}\n")

    def _note(self, file: Path, text: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    @property
    def _before(self) -> Path:
        """While a deployment is under way: the commit that served before it."""
        return self.directory / "before"

    @property
    def _served(self) -> Path:
        return self.directory / "served"

    @property
    def _rebasing(self) -> Path:
        """While a rebase that we began is under way: from which commit, onto which."""
        return self.directory / "rebasing"


def parse_status(said: str) -> Status:
    """Read ``git status --porcelain=v2 --branch -z`` (git documentation, git-status, Porcelain Format Version 2)."""
    head = "(initial)"
    branch: str | None = None
    changed: list[str] = []
    fields = iter(said.split("\0"))
    for field in fields:
        match field[:1]:
            case "#":
                if found := re.fullmatch("# branch.oid (.+)", field):
                    head = found[1]
                if found := re.fullmatch("# branch.head (.+)", field):
                    branch = None if found[1] == "(detached)" else found[1]
            case "1":
                changed.append(field.split(" ", 8)[8])
            case "2":
                changed += [field.split(" ", 9)[9], next(fields)]
            case "u":
                changed.append(field.split(" ", 10)[10])
    return Status(head, branch, tuple(changed))


def _refuse_changes(path: Path, changed: tuple[str, ...]) -> None:
    if not changed:
        return
    shown = (clean(os.fsencode(name).decode("utf-8", "replace")) for name in changed[:MOST_NAMES])
    names = ", ".join(shown) + (" …" if len(changed) > MOST_NAMES else "")
    raise StepFailed(
        f"{path} has local changes: {names}. Commit them, or put them away with git stash "
        '(update = "reset" in hookdeploy.toml overwrites them)'
    )


def _text(file: Path) -> str:
    return file.read_text() if file.is_file() else ""


_: type[Checkout] = Clone
