"""Asks git about one repository and explains its failures in words.

Touches one repository through a ``CommandRunner``. Which commit is to be had, and where it goes, others decide.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from twisted_hook.boundaries import CommandRunner
from twisted_hook.commands import Git
from twisted_hook.model import CommandResult, Commit, StepFailed
from twisted_hook.redaction import clean

_COMMIT = "--format=%H%x00%an%x00%s"
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
    ("couldn't find remote ref", "ref gone: the remote has no such branch"),
    ("does not appear to be a git repository", "there is no git repository at the remote's address"),
    ("repository not found", "there is no such repository, or the key may not read it"),
    ("/' not found", "there is no such repository, or it is private: then the remote wants a key or a password"),
    ("connection refused", "the remote refused the connection"),
    ("connection timed out", "the remote did not answer"),
    ("operation too slow", "the remote answered too slowly"),
    ("' not allowed", "the remote uses a transport that is not allowed"),
    ("no space left on device", "the disk is full"),
    ("disk quota exceeded", "the disk is full"),
    ("would be overwritten", "files in the clone are in the way"),
    ("would lose untracked files", "files in the clone are in the way"),
    ("' not uptodate. cannot merge", "local changes are in the way"),
    ("not possible to fast-forward", "the clone and the remote have gone different ways"),
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
)
"""What git says of a repository in which something is missing or not as it was written."""


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

    async def commit(self, run: CommandRunner, ref: str, *, failing: str | None = None) -> Commit:
        """The commit of a full ref name, of ``HEAD``, or of an id or the beginning of one."""
        said = await self.ask(
            run,
            "log",
            "-1",
            "--no-show-signature",
            _COMMIT,
            "--end-of-options",
            f"{ref}^{{commit}}",
            "--",
            failing=failing or f"{ref} names no commit",
        )
        revision, author, subject, *_ = (*said.rstrip("\n").split("\x00"), "", "")
        if re.fullmatch("[0-9a-f]{40}(?:[0-9a-f]{24})?", revision) is None:
            raise StepFailed(f"git gave no commit id for {ref}")
        return Commit(revision, clean(subject[:LONGEST_SUBJECT]), clean(author[:LONGEST_SUBJECT]))


def git_runs_in(directory: Path) -> bool:
    """Whether a git may be at work on this repository, be it ours or a person's (proc_pid_cwd(5))."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_git = (process / "comm").read_bytes().startswith(b"git")
            if is_git and (process / "cwd").readlink().is_relative_to(directory.resolve()):
                return True
        except PermissionError:
            return True  # somebody else's
        except OSError:
            continue  # gone by now
    return False


def failed(what: str, result: CommandResult) -> StepFailed:
    """The failure of a git command, explained where its words are known."""
    pointer = re.search("fatal: (.+): smudge filter lfs failed", result.tail)
    if pointer is not None:
        return StepFailed(f"{what}: {pointer[1]} is kept in Git LFS, which hookdeploy does not fetch", tail=result.tail)
    said = result.tail.lower()
    explanation = next((words for sign, words in _EXPLANATIONS if sign in said), result.verdict)
    return StepFailed(f"{what}: {explanation}", tail=result.tail)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns what the disk refuses into a failure of the deployment."""
    try:
        yield
    except OSError as error:
        raise StepFailed(f"{what}: {error.strerror}: {error.filename}") from error


def is_damage(problem: StepFailed) -> bool:
    """Whether a git command failed since its own repository is damaged; the remote's troubles are its own."""
    ours = [line for line in problem.tail.lower().splitlines() if not line.startswith("remote:")]
    return any(sign in line for line in ours for sign in _DAMAGE)
