"""git on this machine: its version, and what an existing clone says of itself.

Asks git and waits for the answer, so it is for starting up and for the command line only. It changes nothing and
reaches no remote.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from twisted_hook.commands import Ambient, Git
from twisted_hook.redaction import clean

OLDEST_GIT = (2, 31)
_TIMEOUT = 10.0


class NotUsable(Exception):
    """git, or a clone, is not as it has to be; the text continues a sentence about it."""


@dataclass(frozen=True, slots=True)
class LocalClone:
    """What a clone says of itself."""

    top: Path
    origin: str | None = field(repr=False)
    """The URL of the remote ``origin``, as it is configured: it may hold a password."""
    branch: str | None
    """None where HEAD is detached."""

    @property
    def password(self) -> str | None:
        """What must never be shown of the origin's URL: the password, or the user name that stands for one."""
        try:
            parts = urlsplit(self.origin or "")
        except ValueError:
            return None
        return parts.password or (parts.username if parts.scheme in {"http", "https"} else None)


def check_git(ambient: Ambient) -> None:
    """Raises ``NotUsable`` if git is not there or too old."""
    if shutil.which("git", path=ambient.path) is None:
        raise NotUsable(f"is not installed: nothing named git on PATH ({ambient.path})")
    said = _ask(ambient, Path("/"), "version") or ""
    match = re.match(r"git version (\d+)\.(\d+)", said)
    if match and (int(match[1]), int(match[2])) < OLDEST_GIT:
        oldest = ".".join(map(str, OLDEST_GIT))
        raise NotUsable(f"is version {match[1]}.{match[2]}: hookdeploy needs {oldest} or newer")


def look_at_clone(ambient: Ambient, path: Path) -> LocalClone:
    """The clone whose top directory this is. Raises ``NotUsable``."""
    if not path.exists():
        raise NotUsable(f"{path} does not exist")
    if not path.is_dir():
        raise NotUsable(f"{path} is not a directory")
    clone = clone_around(ambient, path)
    if clone is None:
        said = clean(_run(ambient, path, "rev-parse", "--show-toplevel").stderr.decode("utf-8", "replace")).strip()
        raise NotUsable(f"{path} is not a git clone (git says {said.partition(chr(10))[0]!r})")
    if clone.top != path.resolve():
        raise NotUsable(f"{path} is inside the clone {clone.top}: name its top directory")
    return clone


def clone_around(ambient: Ambient, directory: Path) -> LocalClone | None:
    """The clone in whose working tree the directory lies, or None."""
    top = _ask(ambient, directory, "rev-parse", "--show-toplevel")
    if not top:
        return None
    head = _ask(ambient, directory, "symbolic-ref", "--quiet", "HEAD") or ""
    origin = _ask(ambient, directory, "remote", "get-url", "origin")
    return LocalClone(Path(top).resolve(), origin, head.removeprefix("refs/heads/") or None)


def _ask(ambient: Ambient, directory: Path, *arguments: str) -> str | None:
    """What git prints, without the newline; None if it fails."""
    result = _run(ambient, directory, *arguments)
    return result.stdout.decode("utf-8", "surrogateescape").removesuffix("\n") if result.returncode == 0 else None


def _run(ambient: Ambient, directory: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    # safe.directory, which the command sets, counts for the real path only.
    command = Git(ambient, directory.resolve(), "none", in_place=True).command(*arguments)
    try:
        return subprocess.run(
            command.argv,
            env=dict(command.env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NotUsable(f"git {arguments[0]} did not answer within {_TIMEOUT:g} s") from None
    except OSError as error:
        raise NotUsable(f"git could not be started: {error.strerror}") from None
