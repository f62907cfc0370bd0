"""A bare mirror of a remote: what all releases of a repository are checked out from.

Touches one directory that is ours alone. What is damaged there is never mended, but made anew from the remote.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from twisted_hook.boundaries import CommandRunner
from twisted_hook.commands import GIT_TIMEOUT, Ambient, Git, protocols_of, reading, removal
from twisted_hook.model import Commit, NoRoom, StepFailed
from twisted_hook.refs import HEAD, HEADS, TAGS, followed
from twisted_hook.repository import Repository, explained, failed, is_damage

_LEFT_BY_A_KILLED_GIT = (
    *("*.lock", "refs/**/*.lock", "packed-refs.new"),  # in the way for ever
    *("objects/pack/tmp_*", "objects/pack/.tmp-*", "objects/*/tmp_obj_*"),  # hold the disk for two weeks (git-gc)
    "objects/pack/*.keep",  # says of a whole pack that it is never to be joined with others
)

_NOWHERE = Path("/dev/null")
"""In the place of a repository: a remote can be asked before there is a mirror, and while it is damaged."""

MOST_PACKS = 50

_log = Logger()


@dataclass(frozen=True, slots=True)
class Mirror:
    """The mirror of ``url`` in ``directory``; see ``Releases`` for ``branch`` and ``tag``."""

    url: str
    branch: str | None
    tag: str | None
    directory: Path
    tip: str
    """The full name of our ref that follows the branch or the tags."""
    ambient: Ambient
    timeout: float = GIT_TIMEOUT
    """Seconds for one git command."""

    @property
    def repository(self) -> Repository:
        return self._repository(self.directory)

    def _repository(self, directory: Path) -> Repository:
        return Repository(Git(self.ambient, directory, protocols_of(self.url), timeout=self.timeout))

    @property
    def follows(self) -> str:
        """What it wants to know of the remote's refs; see ``Checkout.follows``."""
        if self.tag is not None:
            return f"{TAGS}{self.tag}"
        return f"{HEADS}{self.branch}" if self.branch else HEAD

    async def advertised(self, run: CommandRunner, patterns: Collection[str]) -> Mapping[str, str]:
        """See ``Checkout.advertised``. It touches nothing, and needs no mirror."""
        return await self._repository(_NOWHERE).advertised(run, self.url, self.url, patterns)

    async def fetch(self, run: CommandRunner) -> Commit:
        """The tip. A mirror that is damaged, or of the wrong kind, is made anew. Raises ``StepFailed``."""
        await self._prepare(run)
        for _ in range(2):  # the kind is known only when the remote is asked: one damaged, then one of the wrong kind
            try:
                return await self._fetch(run)
            except StepFailed as problem:
                object_format = _object_format_instead(problem)
                if object_format is None:
                    self.remove_leftovers()  # half a pack may be the very room that everything else lacks
                    raise
                _log.warn("{mirror} is made anew: {reason}", mirror=str(self.directory), reason=problem.reason)
                await self._renew(run, object_format)
        return await self._fetch(run)

    async def check_out(self, run: CommandRunner, commit: Commit, tree: Path, index: Path) -> None:
        """The whole of a commit in an empty directory, and the index of that. Raises ``StepFailed``."""
        try:
            await self._check_out(run, commit, tree, index)
        except StepFailed as problem:
            if not is_damage(problem):
                raise
            _log.warn("{mirror} is made anew: {reason}", mirror=str(self.directory), reason=problem.reason)
            await self._renew(run)
            await self.fetch(run)
            await self._check_out(run, commit, tree, index)

    async def _check_out(self, run: CommandRunner, commit: Commit, tree: Path, index: Path) -> None:
        failing = f"{commit.revision[:7]} could not be checked out"
        await self.at_work_on(run, tree, index, "read-tree", "--reset", "-u", commit.revision, failing=failing)

    async def at_work_on(
        self,
        run: CommandRunner,
        tree: Path,
        index: Path,
        *arguments: str,
        failing: str,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Run git on a tree with an index of its own. Raises ``StepFailed``."""
        settings = {"GIT_INDEX_FILE": str(index), **(env or {})}
        await self.repository.ask(run, f"--work-tree={tree}", *arguments, env=settings, failing=failing)

    async def tidy(self, run: CommandRunner) -> None:
        """Join small packs: each fetch leaves one, and git looks for an object in all of them. Loses no object.

        It needs no lock. A fetch that takes its half of a pack for a killed git's makes it fail, and that is no harm.
        """
        if len(list(self.directory.glob("objects/pack/*.pack"))) > MOST_PACKS:
            result = await self.repository.run(run, "repack", "--geometric=2", "-d", "--quiet")  # git 2.32
            if not result.ok:
                _log.info("{mirror} was not repacked: {reason}", mirror=str(self.directory), reason=result.tail)

    def remove_leftovers(self) -> None:
        """Remove what a git has left that was killed or found the disk full, as far as it can be; the lock is held."""
        with suppress(StepFailed):
            self._sweep()

    async def _prepare(self, run: CommandRunner) -> None:
        """Make the mirror if there is none, or tidy it up: its lock is held, so that no other git is at work in it."""
        if not (self.directory / "objects" / "info").is_dir():  # which git init makes last
            await self._begin(run)
        self._sweep()

    def _sweep(self) -> None:
        with explained(f"what a killed git has left in {self.directory} could not be removed"):
            for pattern in _LEFT_BY_A_KILLED_GIT:
                for leftover in self.directory.glob(pattern):
                    leftover.unlink(missing_ok=True)

    async def _begin(self, run: CommandRunner) -> None:
        """What is there in its place may not even be a directory."""
        try:
            await self._init(run)
        except NoRoom:
            raise
        except StepFailed as problem:
            _log.warn("{mirror} is made anew: {reason}", mirror=str(self.directory), reason=problem.reason)
            await self._renew(run)

    async def _init(self, run: CommandRunner, object_format: str = "sha1") -> None:
        failing = "the mirror could not be made"
        with explained(failing):
            self.directory.parent.mkdir(parents=True, exist_ok=True)
        kind = () if object_format == "sha1" else (f"--object-format={object_format}",)
        await self.repository.ask(run, "init", "--bare", "--quiet", *kind, failing=failing)

    async def _renew(self, run: CommandRunner, object_format: str = "sha1") -> None:
        result = await run.run(removal(self.ambient.path, self.directory))
        if not result.ok:
            raise failed(f"{self.directory} is damaged and could not be removed", result)
        await self._init(run, object_format)

    async def _fetch(self, run: CommandRunner) -> Commit:
        ref = await self._source(run)
        try:
            await self.repository.ask(
                run,
                "fetch",
                "--no-tags",
                "--no-write-fetch-head",
                "--update-shallow",  # the tip of a shallow remote would be passed over, and that with status 0
                *reading(self.url),
                "--end-of-options",
                self.url,
                f"+{ref}:{self.tip}",
                failing=f"{_in_words(ref)} could not be fetched",
            )
        except (StepFailed, CancelledError):
            self._sweep()  # half of a pack may be what fills the disk, and git leaves it there
            raise
        return await self.repository.commit(run, self.tip)

    async def _source(self, run: CommandRunner) -> str:
        """The full name of the remote's ref to fetch."""
        if self.follows.startswith(HEADS):
            return self.follows
        ref = followed(await self.advertised(run, (self.follows,)), self.follows)
        if ref is None and self.tag is not None:
            raise StepFailed(f"the remote has no tag that matches {self.tag}")
        if ref is None:
            raise StepFailed('the remote\'s HEAD names no branch; name one: branch = "…"')
        return ref


def _in_words(ref: str) -> str:
    return f"tag {ref.removeprefix(TAGS)}" if ref.startswith(TAGS) else f"branch {ref.removeprefix(HEADS)}"


def _object_format_instead(problem: StepFailed) -> str | None:
    """The format for a new mirror, if a new one may help."""
    mismatch = re.search("mismatched algorithms: client [a-z0-9]+; server (sha1|sha256)", problem.tail)
    if mismatch is not None:
        return mismatch[1]
    return "sha1" if is_damage(problem) else None
