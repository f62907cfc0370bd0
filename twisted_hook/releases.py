"""Trees of their own: a bare mirror of the remote, a directory for each release, and ``current``.

Touches one app's directory and one mirror. ``current`` is changed by rename only and always names a complete tree that
has passed its check. The trees contain no ``.git``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from twisted.logger import Logger

from twisted_hook.boundaries import Checkout, CommandRunner
from twisted_hook.commands import GIT_TIMEOUT, Ambient, handing_over, removal
from twisted_hook.mirror import Mirror
from twisted_hook.model import Commit, StepFailed, Tree
from twisted_hook.refs import followed
from twisted_hook.repository import explained, failed
from twisted_hook.served import note_served, served, write_served
from twisted_hook.shared import Shared, owner_of
from twisted_hook.spare import Spare

LEAST_INDEX = 10_000
"""Bytes of the index of a tree that is worth a spare, about 100 files: below, a checkout takes no longer (measured)."""

_log = Logger()


@dataclass(frozen=True, slots=True)
class Releases:
    """The releases of one app: of ``branch``, of the newest tag that matches ``tag``, or else of the remote's HEAD.

    A tag matches as with ``git tag --list``, and is newer than another by git's order of versions. The next one below
    is the newest when the newest is deleted.
    """

    app: str
    url: str
    branch: str | None
    directory: Path
    """``<state>/apps/<app>``."""
    mirror: Path
    """``<state>/mirrors/<name>.git``."""
    keep_newest: int
    ambient: Ambient
    now: Callable[[], float]
    tag: str | None = None
    shared: tuple[str, ...] = ()
    """Paths that all releases have in common; they are in ``<state>/apps/<app>/shared``."""
    owner: tuple[int, int] | None = None
    """The user and the group, by their ids, to whom the trees are given; None leaves them to us."""
    timeout: float = GIT_TIMEOUT
    """Seconds for one git command."""
    least_index: int = LEAST_INDEX

    @property
    def repository(self) -> str:
        return str(self.mirror)

    @property
    def remote(self) -> str:
        return self.url

    @property
    def follows(self) -> tuple[str, ...]:
        return (self._mirror.follows,)

    async def advertised(self, run: CommandRunner, patterns: Collection[str]) -> Mapping[str, str]:
        return await self._mirror.advertised(run, patterns)

    def tip_of(self, advertised: Mapping[str, str]) -> str | None:
        ref = followed(advertised, self._mirror.follows)
        return advertised.get(ref) if ref else None

    async def has(self, run: CommandRunner, revision: str, at: str | None = None) -> bool:
        if at is not None:
            return at == revision
        with suppress(StepFailed):  # nobody knows any more what the current release is of
            current = await self.current(run)
            return current is not None and current.commit.revision == revision
        return False

    async def fetch(self, run: CommandRunner, revision: str | None = None) -> Commit:
        repository, tip = self._mirror.repository, await self._mirror.fetch(run)
        if revision is None:
            return await repository.with_skips(run, tip)
        unknown = f"there is no commit {revision} in the repository"
        if re.fullmatch("[0-9a-f]{4,64}", revision) is None:
            raise StepFailed(unknown)
        return await repository.with_skips(run, await repository.commit(run, revision, failing=unknown))

    async def touches(self, run: CommandRunner, commit: Commit, patterns: Sequence[str]) -> bool:
        with suppress(StepFailed):  # nobody knows any more what the current release is of
            current = await self.current(run)
            if current is not None:
                old, new = current.commit.revision, commit.revision
                return await self._mirror.repository.differ(run, old, new, patterns)
        return True

    async def take(self, run: CommandRunner, commit: Commit) -> Tree:
        """Check the commit out into a directory that gets its name only when it is complete."""
        self._refuse_a_real_current()
        preparing = self.directory / "preparing"
        await self._remove(run, preparing)
        try:
            with explained(f"{commit.revision[:7]} could not be checked out"):
                if self.owner is not None or not await self._spare.bring_forward(run, commit, preparing):
                    await self._check_out(run, commit, preparing)
                self._shared.link_into(preparing / "tree", preparing / "replaced")
                await self._hand_over(run, preparing / "tree")
                tree = self._name(preparing, commit)
                await self._remove(run, preparing / "replaced")
                shutil.rmtree(preparing)  # which holds a few files at most
                return tree
        except StepFailed:
            await self._remove(run, preparing)  # it may be what fills the disk
            raise

    async def _check_out(self, run: CommandRunner, commit: Commit, preparing: Path) -> None:
        await self._remove(run, preparing)
        (preparing / "tree").mkdir(parents=True)
        await self._mirror.check_out(run, commit, preparing / "tree", preparing / "index")

    async def _hand_over(self, run: CommandRunner, tree: Path) -> None:
        """Give the tree to the app's own user, and what is shared if something of it is not theirs yet.

        That as a whole: it is reached by no directory of theirs, which they might exchange for a link.
        """
        if self.owner is None:
            return
        shared = self._shared
        places = [shared.directory, *shared.places] if self.shared else []
        is_new = any(owner_of(place) not in (None, self.owner) for place in places)
        result = await run.run(
            handing_over(self.ambient.path, self.owner, tree, *((shared.directory,) if is_new else ()))
        )
        if not result.ok:
            raise failed("the tree could not be given to the app's user", result)

    def _name(self, preparing: Path, commit: Commit) -> Tree:
        release = self._new_id(commit)
        tree = Tree(self._releases / release, commit, release)
        for directory in (self._releases, self._commits, self._indexes):
            directory.mkdir(exist_ok=True)
        (self._commits / release).write_text(json.dumps(asdict(commit)))
        (preparing / "index").rename(self._indexes / release)
        (preparing / "tree").rename(tree.path)
        return tree

    async def keep(self, run: CommandRunner, tree: Tree) -> None:
        self._refuse_a_real_current()
        with explained(f"{self._link} could not be changed"):
            # The current one too: an older hookdeploy did not write down what has served.
            for release in filter(None, (self._current_release(), tree.release)):
                note_served(self._served, release)
            new = self.directory / "current.new"
            new.unlink(missing_ok=True)
            new.symlink_to(Path("releases") / tree.release)
            new.replace(self._link)

    async def discard(self, run: CommandRunner, tree: Tree, in_use: Collection[str]) -> None:
        """One that has served is not discarded, but retired when its time has come; and so is one in use."""
        needed = (*served(self._served), self._current_release(), *in_use)
        if tree.release in needed or not tree.path.is_dir():
            return
        with explained(f"{tree.path} could not be removed"):
            if self._makes_a_spare(tree.release) and not self._spare.directory.exists():  # it may have been one
                await self._make_spare(run, tree.release)
            self._doom(tree.release)
        await self._remove(run, self._doomed)

    async def kept(self, run: CommandRunner) -> Sequence[Tree]:
        """In the order in which they began to serve, which is that of their ids unless a clock was put back.

        One of which nobody knows any more what it is of is passed over.
        """
        found = []
        for name in reversed(served(self._served)):
            if (self._releases / name).is_dir():
                with suppress(StepFailed):
                    found.append(Tree(self._releases / name, await self._commit_of(run, name), name))
        return found

    async def put_back(self, run: CommandRunner, tree: Tree) -> None:
        """It lies there as it was; only somebody's tidying up can be in the way."""
        if not tree.path.is_dir():
            raise StepFailed(f"release {tree.release} is not there any more: {tree.path}")

    async def recover(self, run: CommandRunner, serving: Tree | None) -> Tree | None:
        self._mirror.remove_leftovers()  # they may be why there is no room, and so nothing would be fetched
        if serving is not None:
            await self.keep(run, serving)  # it may have been cut off before it could be made the current one
        return await self.current(run)

    async def make_room(self, run: CommandRunner) -> None:
        try:
            await self._remove(run, self.directory / "preparing", self.directory / "cleaning", self._doomed)
        except StepFailed as problem:
            _log.warn("{app}: {reason}", app=self.app, reason=problem.reason)

    async def current(self, run: CommandRunner) -> Tree | None:
        release = self._current_release()
        if release is None or not (self._releases / release).is_dir():
            return None
        return Tree(self._releases / release, await self._commit_of(run, release), release)

    async def _commit_of(self, run: CommandRunner, release: str) -> Commit:
        try:
            return Commit(**json.loads((self._commits / release).read_text()))
        except (OSError, ValueError, TypeError):  # a crash of the machine, or somebody's tidying up
            return await self._mirror.repository.commit(run, release.rpartition("-")[2])

    async def retire(self, run: CommandRunner, in_use: Collection[str]) -> None:
        """Make a spare of the newest that nobody needs, and remove the others.

        What cannot be removed, or made clean, is no failure: the next time may be luckier.
        """
        try:
            with explained("old releases could not be retired"):
                names = self._unneeded(in_use)
                if names and self._makes_a_spare(names[-1]):
                    await self._make_spare(run, names.pop())
                for name in names:
                    self._doom(name)
                self._forget_those_gone()
            await self._remove(run, self._doomed)
            await self._mirror.tidy(run)
        except StepFailed as problem:
            _log.warn("{app}: {reason}", app=self.app, reason=problem.reason)

    def _unneeded(self, in_use: Collection[str]) -> list[str]:
        """The releases to retire, oldest first: neither current, nor the one that served before that, nor in use.

        Of the others the newest stay that have served; what has not was cut off, and is made anew.
        """
        names = sorted(path.name for path in self._releases.iterdir()) if self._releases.is_dir() else []
        current = self._current_release()
        good = [name for name in served(self._served) if name in names]
        previous = good[good.index(current) - 1 : good.index(current)] if current in good else good[-1:]
        wanted = {current, *previous, *in_use, *good[-self.keep_newest :]}
        return [name for name in names if name not in wanted]

    def _makes_a_spare(self, release: str) -> bool:
        """A small tree is sooner checked out than brought forward, and one of another user's may be being changed."""
        index, owner = self._indexes / release, owner_of(self._releases / release)
        is_ours = self.owner is None and owner is not None and owner[0] == os.geteuid()
        return is_ours and index.is_file() and index.stat().st_size >= self.least_index

    async def _make_spare(self, run: CommandRunner, release: str) -> None:
        """It is in the way of nobody under any of the names that it has until it is whole."""
        cleaning = self.directory / "cleaning"
        await self._remove(run, cleaning)
        commit = await self._commit_of(run, release)
        cleaning.mkdir()
        (self._releases / release).rename(cleaning / "tree")
        (self._indexes / release).rename(cleaning / "index")
        try:
            whole = await self._spare.clean(run, cleaning, commit)
        except StepFailed as problem:
            _log.info("{app}: {reason}", app=self.app, reason=problem.reason)
            whole = False
        self._doomed.mkdir(exist_ok=True)
        if not whole:
            cleaning.rename(self._doomed / release)
            return
        if self._spare.directory.exists():
            self._spare.directory.rename(self._doomed / f"spare-{release}")
        cleaning.rename(self._spare.directory)

    def _doom(self, release: str) -> None:
        """Take a release's name away first: half of a tree must never be found under it."""
        self._doomed.mkdir(exist_ok=True)
        if (self._releases / release).exists():
            (self._releases / release).rename(self._doomed / release)
        for directory in (self._commits, self._indexes):
            (directory / release).unlink(missing_ok=True)

    def _forget_those_gone(self) -> None:
        for directory in (self._commits, self._indexes):
            for file in directory.iterdir() if directory.is_dir() else ():
                if not (self._releases / file.name).exists():
                    file.unlink()
        there = [name for name in served(self._served) if (self._releases / name).exists()]
        if there != served(self._served):
            write_served(self._served, there)

    async def _remove(self, run: CommandRunner, *paths: Path) -> None:
        """Remove trees without holding the reactor up."""
        there = [path for path in paths if path.exists() or path.is_symlink()]
        if not there:
            return
        result = await run.run(removal(self.ambient.path, *there))
        if not result.ok:
            raise failed(f"{there[0]} could not be removed", result)

    def _new_id(self, commit: Commit) -> str:
        at = datetime.fromtimestamp(self.now(), UTC)
        while True:
            release = f"{at:%Y%m%dT%H%M%S}.{at.microsecond // 1000:03d}-{commit.revision[:7]}"
            if not (self._releases / release).exists():
                return release
            at += timedelta(milliseconds=1)

    def _current_release(self) -> str | None:
        return self._link.readlink().name if self._link.is_symlink() else None

    def _refuse_a_real_current(self) -> None:
        if self._link.exists() and not self._link.is_symlink():
            raise StepFailed(f"{self._link} is a real directory; hookdeploy needs that name for its link: move it away")

    @property
    def _mirror(self) -> Mirror:
        """The ref is flat, so that no branch name is in the way of another."""
        ref = f"refs/hookdeploy/{self.app}"
        return Mirror(self.url, self.branch, self.tag, self.mirror, ref, self.ambient, self.timeout)

    @property
    def _spare(self) -> Spare:
        return Spare(self._mirror, self.directory / "spare")

    @property
    def _shared(self) -> Shared:
        return Shared(self.directory / "shared", self.shared, guarded=self.owner is not None)

    @property
    def _link(self) -> Path:
        return self.directory / "current"

    @property
    def _releases(self) -> Path:
        return self.directory / "releases"

    @property
    def _commits(self) -> Path:
        """What each release is of."""
        return self.directory / "commits"

    @property
    def _indexes(self) -> Path:
        """git's index of each release: what its files were when they were written."""
        return self.directory / "indexes"

    @property
    def _served(self) -> Path:
        return self.directory / "served"

    @property
    def _doomed(self) -> Path:
        return self.directory / "doomed"


def mirror_name(url: str) -> str:
    """The directory name of a URL's mirror: readable, and never that of another URL."""
    readable = re.sub("[^A-Za-z0-9]+", "-", url.removesuffix(".git").rpartition("://")[2]).strip("-")[-48:]
    return f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:8]}.git"


_: type[Checkout] = Releases
