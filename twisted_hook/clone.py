"""An existing clone, kept up to date in place.

Touches that clone. It never throws away what a person has changed there: it refuses, or with ``update = "reset"`` keeps
a copy first. A rebase that conflicts is taken back.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from twisted_hook.boundaries import Checkout, CommandRunner
from twisted_hook.commands import GIT_TIMEOUT, Ambient, Git, protocols_of, reading
from twisted_hook.copies import save, stamped
from twisted_hook.model import CommandResult, Commit, NoRoom, StepFailed, Tree
from twisted_hook.process import STDOUT_CAP
from twisted_hook.redaction import clean
from twisted_hook.refs import HEADS
from twisted_hook.repository import Repository, explained, failed
from twisted_hook.served import note_served, served, write_served
from twisted_hook.underway import UnderWay, noted, write_note

MOST_NAMES = 20
"""How many files a refusal names."""
MOST_SERVED = 10
"""How many commits that have served can be gone back to."""

_log = Logger()


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
    """``<state>/apps/<app>``: notes of what is under way, and copies of overwritten files."""
    ambient: Ambient
    now: Callable[[], float]
    timeout: float = GIT_TIMEOUT
    """Seconds for one git command."""

    @property
    def repository(self) -> str:
        return str(self.path)

    def _git(self, protocols: str = "none") -> Repository:
        return Repository(Git(self.ambient, self.path, protocols, in_place=True, timeout=self.timeout))

    @property
    def _under_way(self) -> UnderWay:
        return UnderWay(self._git(), self._followed, self._tip, self.directory, self.now)

    @property
    def remote(self) -> str:
        """Its own: what it calls origin, and with which credentials that is asked, stands in its configuration."""
        return str(self.path)

    @property
    def follows(self) -> tuple[str, ...]:
        return (self._followed,)

    async def advertised(self, run: CommandRunner, patterns: Collection[str]) -> Mapping[str, str]:
        url = await self._url(run)
        return await self._git(protocols_of(url)).advertised(run, "origin", url, patterns)

    def tip_of(self, advertised: Mapping[str, str]) -> str | None:
        return advertised.get(self._followed)

    async def has(self, run: CommandRunner, revision: str, at: str | None = None) -> bool:
        """A commit below HEAD is what the branch has gone back to, unless it was the tip when we last looked."""
        at = at or "HEAD"
        known = await self._git().run(run, "rev-parse", at, self._tip)
        head, *tip = known.stdout.decode("ascii", "replace").split()[:2] or [""]
        if revision == head:
            return True
        return tip == [revision] and (await self._git().run(run, "merge-base", "--is-ancestor", revision, at)).ok

    async def _url(self, run: CommandRunner) -> str:
        said = await self._git().ask(run, "remote", "get-url", "origin", failing=f"{self.path} has no remote origin")
        return said.strip()

    async def fetch(self, run: CommandRunner, revision: str | None = None) -> Commit:
        if revision is not None:
            raise StepFailed("in place only the branch's tip can be deployed")
        await self._under_way.heal(run)
        url = await self._url(run)
        git = self._git(protocols_of(url))
        await git.ask(
            run,
            "fetch",
            "--no-tags",
            "--prune",
            *reading(url),
            "--end-of-options",
            "origin",
            f"+{self._followed}:{self._tip}",
            failing=f"branch {self.branch} could not be fetched",
        )
        return await git.with_skips(run, await git.commit(run, self._tip))

    async def touches(self, run: CommandRunner, commit: Commit, patterns: Sequence[str]) -> bool:
        """Local commits that a rebase keeps are no difference: what the origin had below them is compared."""
        git, old = self._git(), noted(self._before).strip() or "HEAD"
        if self.update == "rebase":
            # --fork-point, as the rebase itself: what the origin has taken back by a forced push was there.
            forked = await git.run(run, "merge-base", "--fork-point", self._tip, old)
            old = forked.stdout.decode("ascii", "replace").strip() if forked.ok else old
        return await git.differ(run, old, commit.revision, patterns)

    async def take(self, run: CommandRunner, commit: Commit) -> Tree:
        status = await self._own_status(run)
        before = Commit(status.head, "", "")
        self._note_before(before)
        try:
            after = await self._update(run, before, commit, status.changed) or await self._head(run)
            await self._forget_bytecode(run, before, after.commit)
        except (StepFailed, CancelledError):
            with suppress(StepFailed):
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
                async with self._under_way.between(run, before.revision, commit.revision):
                    return await self._rebase(run, before, commit)
            case "ff-only":
                _refuse_changes(self.path, changed)
                async with self._under_way.between(run, before.revision, commit.revision):
                    forward = await self._fast_forward(run, commit)
                    if not forward.ok:
                        raise failed(f"{self.path} could not be fast-forwarded", forward)
            case _:
                await self._reset(run, before, commit, changed)
        return None

    async def keep(self, run: CommandRunner, tree: Tree) -> None:
        """The clone is its own current tree: there is no way back to be remembered any more."""
        if noted(self._before).strip() == tree.commit.revision:  # hookdeploy died deploying, and this serves still
            await self._go_back(run)
        for revision in (*noted(self._before).split(), tree.commit.revision):
            note_served(self._served, revision)
        write_served(self._served, served(self._served)[-MOST_SERVED:])
        self._before.unlink(missing_ok=True)

    async def discard(self, run: CommandRunner, tree: Tree, in_use: Collection[str]) -> None:
        """Go back to the commit that serves: its workers load what is on disk whenever gunicorn starts one again."""
        if noted(self._before).strip() not in ("", tree.commit.revision):
            await self._go_back(run)
        self._before.unlink(missing_ok=True)

    async def retire(self, run: CommandRunner, in_use: Collection[str]) -> None:
        """There is one tree, and it stays."""

    async def kept(self, run: CommandRunner) -> Sequence[Tree]:
        """The commits that have served; one that git has let go of since is passed over."""
        return [self._tree(commit) for commit in await self._git().commits(run, served(self._served)[::-1])]

    async def put_back(self, run: CommandRunner, tree: Tree) -> None:
        """Local commits stay reachable; local changes stay, or are in the way, or go where ``update`` says."""
        await self._under_way.heal(run)
        status = await self._own_status(run)
        before = Commit(status.head, "", "")
        self._note_before(before)
        if self.update == "reset":
            await self._reset(run, before, tree.commit, status.changed)
            await self._forget_bytecode(run, before, tree.commit)
            return
        await self._keep_local_commits(run, self._tip, f"refs/hookdeploy/saved/{stamped(self.now())}")
        await self._reset_to(run, tree.commit.revision)

    async def _go_back(self, run: CommandRunner) -> None:
        await self._reset_to(run, noted(self._before).strip())

    async def _reset_to(self, run: CommandRunner, revision: str) -> None:
        from_here = await self._git().commit(run, "HEAD")
        if from_here.revision == revision:
            return
        # --keep: what a step has changed in the clone is in the way of going back, and is not thrown away.
        async with self._under_way.between(run, from_here.revision, revision):
            await self._git().ask(
                run, "reset", "--keep", revision, failing=f"{self.path} could not be put back to {revision[:7]}"
            )
        await self._forget_bytecode(run, from_here, await self._git().commit(run, "HEAD"))

    async def recover(self, run: CommandRunner, serving: Tree | None) -> Tree | None:
        try:
            await self._under_way.heal(run)
        except StepFailed as problem:  # what is there can be tried, and the next deployment heals it first
            _log.warn("{reason}", reason=problem.reason)
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
            for revision in ("HEAD", noted(self._before).strip())
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
        forward = await self._fast_forward(run, commit)
        if forward.ok and b"Fast-forward" in forward.stdout:
            return self._tree(commit)
        if before.revision == commit.revision:
            return None
        full = failed(f"{self.path} could not be brought forward", forward)
        if forward.status is None or (not forward.ok and isinstance(full, NoRoom)):
            raise full  # half of the files is written, and would be in the way of a rebase
        # --fork-point: what the origin has taken back by a forced push is no local commit.
        result = await self._git().run(run, "rebase", "--merge", "--fork-point", "--onto", commit.revision, self._tip)
        if not result.ok:
            if "could not apply" in result.tail.lower() and (await self._git().run(run, "rebase", "--abort")).ok:
                self._under_way.over()
            raise failed(f"{self.path} could not be rebased and is as it was", result)
        return None

    async def _fast_forward(self, run: CommandRunner, commit: Commit) -> CommandResult:
        """The usual case, and a quarter of what a rebase costs."""
        return await self._git().run(run, "merge", "--ff-only", "--no-stat", commit.revision)

    async def _reset(self, run: CommandRunner, before: Commit, commit: Commit, changed: Iterable[str]) -> None:
        stamp = stamped(self.now())
        coming = await self._differing(run, before, commit, "--diff-filter=A")
        with explained(f"{self.path} is as it was: a copy of its changes could not be kept"):
            save(self.path, {*changed, *coming}, self.directory / "saved" / stamp)
        await self._keep_local_commits(run, commit.revision, f"refs/hookdeploy/saved/{stamp}")
        async with self._under_way.between(run, before.revision, commit.revision):
            await self._git().ask(run, "reset", "--hard", commit.revision, failing=f"{self.path} could not be reset")

    async def _differing(self, run: CommandRunner, old: Commit, new: Commit, *which: str) -> list[str]:
        words = ("diff-tree", "-r", "-z", "--name-only", "--no-renames", old.revision, new.revision, *which)
        return await self._git().listed(run, self._scratch, *words)

    async def _keep_local_commits(self, run: CommandRunner, theirs: str, ref: str) -> None:
        """Commits that only this clone has stay reachable under a ref of ours."""
        ours = await self._git().run(run, "merge-base", "--is-ancestor", "HEAD", theirs)
        if not ours.ok:
            await self._git().ask(run, "update-ref", ref, "HEAD", failing="local commits could not be kept")

    @property
    def _followed(self) -> str:
        return f"{HEADS}{self.branch}"

    @property
    def _tip(self) -> str:
        return f"refs/remotes/origin/{self.branch}"

    def _note_before(self, before: Commit) -> None:
        """Unless there is a way that could not be gone back yet: then what served is at its end."""
        if not self._before.exists():
            write_note(self._before, f"{before.revision}\n")

    @property
    def _before(self) -> Path:
        """While a deployment is under way: the commit that served before it."""
        return self.directory / "before"

    @property
    def _served(self) -> Path:
        return self.directory / "served"

    @property
    def _scratch(self) -> Path:
        return self.directory / "names"


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


_: type[Checkout] = Clone
