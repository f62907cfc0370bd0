"""A real origin, and a work tree from which to push to it: everything under one directory, with git's own commands.

And how to kill a hookdeploy together with the git that it runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import pytest

from twisted_hook.commands import Ambient
from twisted_hook.model import Command, CommandResult
from twisted_hook.process import last_lines

NOBODY = 65534
SETTINGS = Path(__file__).with_name("gitconfig")
by_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


def ambient(home: Path) -> Ambient:
    """What hookdeploy would take from its own environment, with a home of the test's own."""
    return Ambient(path=os.environ["PATH"], home=str(home), lang="C.UTF-8", ssh_auth_sock=None, proxies={})


@dataclass(frozen=True)
class Origin:
    """``<directory>/origin.git``, and the pusher's ``<directory>/work``."""

    directory: Path

    @classmethod
    def create(cls, directory: Path, files: Mapping[str, str] | None = None, *, branch: str = "main") -> Origin:
        """An origin with one commit."""
        directory.mkdir(parents=True, exist_ok=True)
        origin, files = cls(directory), {"README": "first\n"} if files is None else files
        kind = (branch, *files.items())
        if kind in _MADE:
            for name, content in _MADE[kind].items():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                (directory / name).write_bytes(content)
            origin.git("reset", "--quiet")
            return origin
        origin.git("init", "--quiet", "--bare", f"--initial-branch={branch}", str(origin.bare), at=directory)
        origin.git("init", "--quiet", f"--initial-branch={branch}", str(origin.work), at=directory)
        origin.git("remote", "add", "origin", "../origin.git")
        origin.push(files, "first")
        made = [path for top in (origin.bare, origin.work) for path in top.rglob("*") if path.is_file()]
        _MADE[kind] = {str(path.relative_to(directory)): path.read_bytes() for path in made if path.name != "index"}
        return origin

    @property
    def bare(self) -> Path:
        return self.directory / "origin.git"

    @property
    def work(self) -> Path:
        return self.directory / "work"

    @property
    def url(self) -> str:
        return str(self.bare)

    def git(self, *arguments: str, at: Path | None = None) -> str:
        """What git prints; run in the work tree, or elsewhere. Raises if it fails."""
        done = subprocess.run(
            ["git", "-C", str(at or self.work), *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @property
    def environment(self) -> dict[str, str]:
        who = {f"GIT_{role}_{what}": said for role in ("AUTHOR", "COMMITTER") for what, said in _PUSHER.items()}
        nothing_else = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": str(SETTINGS), "GIT_EDITOR": "true"}
        return {"PATH": os.environ["PATH"], "HOME": str(self.directory), "LC_ALL": "C", **who, **nothing_else}

    def commit(self, files: Mapping[str, str | None], message: str = "change", *, at: Path | None = None) -> str:
        """Commit these files, None for one that is deleted, and give the revision."""
        tree = at or self.work
        for name, content in files.items():
            if content is None:
                (tree / name).unlink()
            else:
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                (tree / name).write_text(content)
        self.git("add", "--all", "--force", "--", *files, at=tree)
        self.git("commit", "--quiet", "--allow-empty", "--message", message, at=tree)
        return self.git("rev-parse", "HEAD", at=tree)

    def push(self, files: Mapping[str, str | None], message: str = "change", *, branch: str = "HEAD") -> str:
        """Commit these files and push them, be it by force, and give the revision."""
        revision = self.commit(files, message)
        self.git("push", "--quiet", "--force", "origin", branch)
        return revision

    def give_away(self) -> None:
        """Let the bare repository belong to another user."""
        for path in (self.bare, *self.bare.rglob("*")):
            os.chown(path, NOBODY, NOBODY)

    def clone(self, name: str = "clone") -> Path:
        """A clone as a user would make it."""
        self.git("clone", "--quiet", self.url, str(self.directory / name), at=self.directory)
        return self.directory / name


class Killed(Exception):
    """hookdeploy is no more: nothing of it catches this, and so nothing of it is done after this."""


@dataclass(frozen=True)
class KilledWhen:
    """Runs commands until something has happened, and then kills git, and hookdeploy with it."""

    happened: Callable[[], object]
    pause: float = 0.002
    """Seconds between two looks."""

    async def run(self, command: Command, *, output: Callable[[bytes], None] | None = None) -> CommandResult:
        return self._run(command)

    def _run(self, command: Command) -> CommandResult:
        with TemporaryFile() as said, self._started(command, said) as process:
            while not self.happened() and process.poll() is None:
                time.sleep(self.pause)
            if self.happened():
                with suppress(ProcessLookupError):  # it was done
                    os.killpg(process.pid, signal.SIGKILL)
                raise Killed
            said.seek(0)
            printed = said.read()
        return CommandResult(command, process.returncode, None, False, 0.0, printed, last_lines(printed))

    def _started(self, command: Command, said: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command.argv,
            env=dict(command.env),
            cwd=command.cwd,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


_PUSHER = {"NAME": "Ada Pusher", "EMAIL": "ada@example.com"}

_MADE: dict[tuple[object, ...], dict[str, bytes]] = {}
"""The files of each kind of origin that was made: the next one is written at once, and not by a dozen gits."""
