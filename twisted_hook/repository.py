"""Asks git about one repository and explains its failures in words.

Touches one repository through a ``CommandRunner``. Which commit is to be had, and where it goes, others decide.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from errno import EDQUOT, ENOSPC
from pathlib import Path

from twisted_hook.boundaries import CommandRunner
from twisted_hook.commands import Git, differing, reading, says_disk_is_full
from twisted_hook.model import CommandResult, Commit, NoRoom, StepFailed
from twisted_hook.process import STDOUT_CAP
from twisted_hook.redaction import clean
from twisted_hook.refs import SKIPPING, SORTING, asked_for, listing, read_refs, searching

_COMMIT = "--format=%H%x00%an%x00%s"
ASKING_TIMEOUT = 60.0
"""Seconds that a remote has to tell its refs: many are asked in turn, and some transports wait minutes for nothing."""
LONGEST_SUBJECT = 500
"""Characters of a commit's subject, and of its author, that are shown to people."""

_EXPLANATIONS = (
    ("permission denied (publickey", "the remote refused the deploy key"),
    (
        "host key verification failed",
        "the remote's host key is not in known_hosts; add it with ssh-keyscan and compare it",
    ),
    ("terminal prompts disabled", "authentication: the remote wants a user name and a password, and none are set"),
    ("authentication failed", "authentication: the remote refused the credentials"),
    ("the requested url returned error: 40", "authentication: the remote refused, or there is no such repository"),
    ("could not resolve host", "the remote's name could not be resolved"),
    ("couldn't find remote ref", "ref gone: the remote has no such branch or tag"),
    ("does not appear to be a git repository", "there is no git repository at the remote's address"),
    ("repository not found", "there is no such repository, or the key may not read it"),
    ("/' not found", "there is no such repository, or it is private: then the remote wants a key or a password"),
    ("connection refused", "the remote refused the connection"),
    ("connection timed out", "the remote did not answer"),
    ("operation too slow", "the remote answered too slowly"),
    ("' not allowed", "the remote uses a transport that is not allowed"),
    ("no space left on device", "the remote's disk is full"),
    ("disk quota exceeded", "the remote's disk is full"),
    ("would be overwritten", "files in the clone are in the way"),
    ("would lose untracked files", "files in the clone are in the way"),
    ("' not uptodate. cannot merge", "local changes are in the way"),
    ("not possible to fast-forward", "the clone and the remote have gone different ways"),
    ("exists; cannot create", "a branch that is gone is in the way there: git remote prune origin takes it away"),
    (".lock': file exists", "another git command holds a lock there"),
    ("conflict (", "its local commits conflict with those of the remote"),
)


_DAMAGE = (
    "is corrupt",
    "object file ",
    "is far too short",
    "does not match index",
    "bad object",
    "bad tree object",
    "failed to unpack tree object",
    "invalid object",
    "unable to read tree",
    "unable to read sha1",
    "failed to read object",
    "missing blob",
    "missing tree",
    "could not parse",
    "data stream error",
    "unresolved delta",
    "did not send all necessary objects",
    "not a git repository",
    "bad config line",
    "bad signature",
    "bad shallow line",
    " config value '",
    "expected git repo version",
    "unknown repository extension",
    "unexpected line in",
    "unknown object type",
    "did not receive expected object",
    "multiple updates for",
)
"""What git says of a repository in which something is missing or not as it was written."""


_WRITES_FAIL = ("error: unable to write file ", "write error. Out of diskspace", "unable to write new index file")
"""What git says where a file could be made and its content found no room, without the system's own words."""


@dataclass(frozen=True, slots=True)
class Repository:
    """One repository: a bare mirror of ours, or an existing clone."""

    git: Git

    async def run(self, run: CommandRunner, *arguments: str, env: Mapping[str, str] | None = None) -> CommandResult:
        """Run git, whatever comes of it."""
        return await run.run(self.git.command(*arguments, env=env))

    async def ask(self, run: CommandRunner, *arguments: str, failing: str, env: Mapping[str, str] | None = None) -> str:
        """What git prints. Raises ``StepFailed``, which begins with ``failing``."""
        result = await self.run(run, *arguments, env=env)
        if not result.ok:
            raise failed(failing, result)
        return result.stdout.decode("utf-8", "replace")

    async def listed(self, run: CommandRunner, scratch: Path, *words: str) -> list[str]:
        """What a command of git's diffs lists with ``-z``; by way of a file where a result cannot hold it."""
        failing = f"{self.git.directory} could not be examined"
        result = await self.run(run, *words)
        said = result.stdout
        if not result.ok:
            raise failed(failing, result)
        if len(said) >= STDOUT_CAP:
            scratch.parent.mkdir(parents=True, exist_ok=True)
            await self.ask(run, words[0], f"--output={scratch}", *words[1:], failing=failing)
            said = scratch.read_bytes()
            scratch.unlink()
        return os.fsdecode(said).split("\0")[:-1]

    async def commit(self, run: CommandRunner, ref: str, *, failing: str | None = None) -> Commit:
        """The commit of a full ref name, of ``HEAD``, or of an id or the beginning of one."""
        words = ("log", "-1", "--no-show-signature", _COMMIT, "--end-of-options", f"{ref}^{{commit}}", "--")
        result = await run.run(self.git.command(*words), output=_unheard)  # a subject may be larger than any log
        if not result.ok:
            raise failed(failing or f"{ref} names no commit", result)
        commit = _commit(result.stdout.decode("utf-8", "replace").rstrip("\n"))
        if re.fullmatch("[0-9a-f]{40}(?:[0-9a-f]{24})?", commit.revision) is None:
            raise StepFailed(f"git gave no commit id for {ref}")
        return commit

    async def with_skips(self, run: CommandRunner, commit: Commit) -> Commit:
        """The commit, with the words of its message that ask that it not be deployed."""
        if await self._says(run, commit, SKIPPING):
            first, *others = SKIPPING
            return replace(commit, skips=first if await self._says(run, commit, (first,)) else others[0])
        return commit

    async def _says(self, run: CommandRunner, commit: Commit, words: Collection[str]) -> bool:
        found = await self.run(run, "log", "--no-walk", "--format=%H", *searching(words), commit.revision, "--")
        return found.ok and bool(found.stdout)

    async def differ(self, run: CommandRunner, old: str, new: str, patterns: Sequence[str]) -> bool:
        """Whether a file of these patterns differs between two commits; True where git cannot tell."""
        return not (await self.run(run, *differing(old, new, patterns))).ok

    async def commits(self, run: CommandRunner, revisions: Sequence[str]) -> list[Commit]:
        """The commits with these ids, in this order, without those that git does not have."""
        if not revisions:
            return []
        words = ("log", "--no-walk=unsorted", "--ignore-missing", "--no-show-signature", _COMMIT, "--end-of-options")
        result = await self.run(run, *words, *revisions, "--")
        if result.ok and len(result.stdout) < STDOUT_CAP:
            found = map(_commit, result.stdout.decode("utf-8", "replace").split("\n"))
            return [commit for commit in found if commit.revision]
        found_alone = []
        for revision in revisions:  # one of them has too much to say, or is damaged
            with suppress(StepFailed):
                found_alone.append(await self.commit(run, revision))
        return found_alone

    async def advertised(
        self, run: CommandRunner, remote: str, url: str, patterns: Collection[str]
    ) -> Mapping[str, str]:
        """The refs of a remote; see ``Checkout.advertised``. ``remote`` is how this repository calls ``url``."""
        words = ("ls-remote", *listing(patterns), *reading(url), "--end-of-options", remote, *asked_for(patterns))
        timeout = min(ASKING_TIMEOUT, self.git.timeout)
        result = await run.run(self.git.command(*words, env=SORTING, timeout=timeout))
        if not result.ok:
            raise failed("the remote could not be asked", result)
        if len(result.stdout) >= STDOUT_CAP:
            raise StepFailed(f"the remote has more refs than hookdeploy can read that match {', '.join(patterns)}")
        return read_refs(result.stdout.decode("utf-8", "replace"), patterns)


def _unheard(data: bytes) -> None:
    """Where output goes that nobody is to read."""


def _commit(said: str) -> Commit:
    revision, author, subject, *_ = (*said.split("\0"), "", "")
    return Commit(revision, clean(subject[:LONGEST_SUBJECT].rstrip()), clean(author[:LONGEST_SUBJECT].rstrip()))


def git_runs_in(directory: Path) -> bool:
    """Whether somebody's git may be at work on this repository (proc_pid_cwd(5)).

    Ours are not meant: those that write do it one after the other, and those that read are in nobody's way.
    """
    place = directory.resolve()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (
                (process / "comm").read_bytes().startswith(b"git")
                and _is_about(process, place)
                and not _is_ours(process)
            ):
                return True
        except PermissionError:
            return True  # somebody else's
        except OSError:
            continue  # gone by now
    return False


def _is_about(process: Path, place: Path) -> bool:
    """Whether it runs there, or names the place, as ``--git-dir`` does."""
    if (process / "cwd").readlink().is_relative_to(place):
        return True
    return re.search(re.escape(os.fsencode(place)) + rb"[/\0]", (process / "cmdline").read_bytes()) is not None


def _is_ours(process: Path) -> bool:
    """Whether the leader of its session is a child of this process, as every command of ours is."""
    session = _stat(process)[3]
    try:
        return int(_stat(process.with_name(session))[1]) == os.getpid()
    except OSError:  # the leader has gone
        return False


def _stat(process: Path) -> list[str]:
    """State, parent, process group, session and so on (proc_pid_stat(5)); the name before them may be any bytes."""
    return (process / "stat").read_bytes().rpartition(b")")[2].decode("ascii").split()


def failed(what: str, result: CommandResult) -> StepFailed:
    """The failure of a git command, explained where its words are known."""
    pointer = re.search("fatal: (.+): smudge filter lfs failed", result.tail)
    if pointer is not None:
        return StepFailed(f"{what}: {pointer[1]} is kept in Git LFS, which hookdeploy does not fetch", tail=result.tail)
    if says_disk_is_full(_ours(result.tail)) or any(sign in result.tail for sign in _WRITES_FAIL):
        return NoRoom(f"{what}: the disk is full", tail=result.tail)
    if "error: unable to write file " in result.tail:  # git tells no cause of this one (its entry.c)
        return NoRoom(f"{what}: the disk is full, or broken", tail=result.tail)
    said = result.tail.lower()
    explanation = next((words for sign, words in _EXPLANATIONS if sign in said), result.verdict)
    return StepFailed(f"{what}: {explanation}", tail=result.tail)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns what the disk refuses into a failure of the deployment."""
    try:
        yield
    except OSError as error:
        kind = NoRoom if error.errno in (ENOSPC, EDQUOT) else StepFailed
        raise kind(f"{what}: {error.strerror}: {error.filename}") from error


def is_damage(problem: StepFailed) -> bool:
    """Whether a git command failed since its own repository is damaged; the remote's troubles are its own."""
    return not isinstance(problem, NoRoom) and any(sign in _ours(problem.tail).lower() for sign in _DAMAGE)


def _ours(said: str) -> str:
    return "\n".join(line for line in said.splitlines() if not line.startswith("remote:"))
