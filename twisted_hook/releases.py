"""Trees of their own: a bare mirror of the remote, a directory for each release, and ``current``.

Touches one app's directory and one mirror. ``current`` is changed by rename only and always names a complete tree that
has passed its check. The trees contain no ``.git``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from twisted.logger import Logger

from twisted_hook.boundaries import Checkout, CommandRunner
from twisted_hook.commands import Ambient, Git, protocols_of, reading, removal
from twisted_hook.model import Commit, StepFailed, Tree
from twisted_hook.repository import Repository, failed

_LEFT_BY_A_KILLED_GIT = ("*.lock", "refs/**/*.lock", "objects/pack/tmp_*", "objects/*/tmp_obj_*")
"""In a mirror: the locks are in the way for ever, and the halves of packs hold the disk for two weeks (git-gc)."""

_log = Logger()


@dataclass(frozen=True, slots=True)
class Releases:
    """The releases of one app. ``branch`` None is the remote's HEAD."""

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

    @property
    def repository(self) -> str:
        return str(self.mirror)

    @property
    def _git(self) -> Repository:
        return Repository(Git(self.ambient, self.mirror, protocols_of(self.url)))

    @property
    def _tip(self) -> str:
        """Where the branch is kept in the mirror: flat, so that no branch name is in the way of another."""
        return f"refs/hookdeploy/{self.app}"

    async def fetch(self, run: CommandRunner) -> Commit:
        await self._prepare_mirror(run)
        branch = self.branch or await self._remote_head(run)
        await self._git.ask(
            run,
            "fetch",
            "--no-tags",
            "--no-write-fetch-head",
            *reading(self.url),
            "--end-of-options",
            self.url,
            f"+refs/heads/{branch}:{self._tip}",
            failing=f"branch {branch} could not be fetched",
        )
        return await self._git.commit(run, self._tip)

    async def _prepare_mirror(self, run: CommandRunner) -> None:
        """Make the mirror if there is none, or tidy it up: its lock is held, so that no other git is at work in it."""
        if not (self.mirror / "objects" / "info").is_dir():  # which git init makes last
            with _explained("the mirror could not be made"):
                self.mirror.parent.mkdir(parents=True, exist_ok=True)
            await self._git.ask(run, "init", "--bare", "--quiet", failing="the mirror could not be made")
        for pattern in _LEFT_BY_A_KILLED_GIT:
            for leftover in self.mirror.glob(pattern):
                leftover.unlink(missing_ok=True)

    async def _remote_head(self, run: CommandRunner) -> str:
        asking = ("ls-remote", "--symref", *reading(self.url), "--end-of-options", self.url, "HEAD")
        said = await self._git.ask(run, *asking, failing="the remote could not be asked")
        found = re.match("ref: refs/heads/([^\t\n]+)\tHEAD", said)
        if found is None:
            raise StepFailed('the remote\'s HEAD names no branch; name one: branch = "…"')
        return found[1]

    async def take(self, run: CommandRunner, commit: Commit) -> Tree:
        """Check the commit out into a directory that gets its name only when it is complete."""
        self._refuse_a_real_current()
        preparing = self.directory / "preparing"
        await self._remove(run, preparing)
        try:
            with _explained(f"{commit.revision[:7]} could not be checked out"):
                (preparing / "tree").mkdir(parents=True)
                await self._check_out(run, commit, preparing)
                return self._name(preparing, commit)
        except StepFailed:
            await self._remove(run, preparing)  # it may be what fills the disk
            raise

    async def _check_out(self, run: CommandRunner, commit: Commit, preparing: Path) -> None:
        await self._git.ask(
            run,
            f"--work-tree={preparing / 'tree'}",
            *("read-tree", "--reset", "-u", commit.revision),
            env={"GIT_INDEX_FILE": str(preparing / "index")},
            failing=f"{commit.revision[:7]} could not be checked out",
        )

    def _name(self, preparing: Path, commit: Commit) -> Tree:
        release = self._new_id(commit)
        tree = Tree(self._releases / release, commit, release)
        self._releases.mkdir(exist_ok=True)
        self._record(release).parent.mkdir(exist_ok=True)
        self._record(release).write_text(json.dumps(asdict(commit)))
        (preparing / "tree").rename(tree.path)
        (preparing / "index").unlink()
        preparing.rmdir()
        return tree

    async def keep(self, run: CommandRunner, tree: Tree) -> None:
        self._refuse_a_real_current()
        previous = self._current_release()
        with _explained(f"{self._link} could not be changed"):
            new = self.directory / "current.new"
            new.unlink(missing_ok=True)
            new.symlink_to(Path("releases") / tree.release)
            new.replace(self._link)
        await self._retire(run, {tree.release, previous})

    async def discard(self, run: CommandRunner, tree: Tree) -> None:
        if tree.release != self._current_release():
            await self._remove(run, tree.path, self._record(tree.release))

    async def current(self, run: CommandRunner) -> Tree | None:
        release = self._current_release()
        if release is None or not (self._releases / release).is_dir():
            return None
        return Tree(self._releases / release, await self._commit_of(run, release), release)

    async def _commit_of(self, run: CommandRunner, release: str) -> Commit:
        try:
            return Commit(**json.loads(self._record(release).read_text()))
        except (OSError, ValueError, TypeError):  # a crash of the machine, or somebody's tidying up
            return await self._git.commit(run, release.rpartition("-")[2])

    async def _retire(self, run: CommandRunner, wanted: set[str | None]) -> None:
        """Remove old releases. One that cannot be removed is no failure: the next time may be luckier."""
        names = sorted(path.name for path in self._releases.iterdir())
        for name in names[: -self.keep_newest]:
            if name not in wanted:
                try:
                    await self._remove(run, self._releases / name, self._record(name))
                except StepFailed as problem:
                    _log.warn("{app}: {reason}", app=self.app, reason=problem.reason)

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

    def _record(self, release: str) -> Path:
        return self.directory / "commits" / release

    @property
    def _link(self) -> Path:
        return self.directory / "current"

    @property
    def _releases(self) -> Path:
        return self.directory / "releases"


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns what the disk refuses into a failure of the deployment."""
    try:
        yield
    except OSError as error:
        raise StepFailed(f"{what}: {error.strerror}: {error.filename}") from error


def mirror_name(url: str) -> str:
    """The directory name of a URL's mirror: readable, and never that of another URL."""
    readable = re.sub("[^A-Za-z0-9]+", "-", url.removesuffix(".git").rpartition("://")[2]).strip("-")[-48:]
    return f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:8]}.git"


_: type[Checkout] = Releases
