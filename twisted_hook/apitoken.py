"""The token with which the API is spoken to over TCP: a file of the state directory, for its owner alone.

Touches that file only. It never says the token in an error, and never changes one that is there.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path
from urllib.parse import quote

NAME = "token"
_FIT = re.compile(r"[!-~]{16,512}")


class BadToken(Exception):
    """The file of the token cannot be used; the text says why, and what to do."""


def token_of(state: Path) -> str:
    """The token of this state directory, made if there is none. Raises ``BadToken``.

    The caller has the directory to itself.
    """
    path = state / NAME
    try:
        if not path.exists():
            _make(path)
        return read(path)
    except OSError as error:
        raise BadToken(f"the API's token {path}: {error.strerror}") from error


def read(path: Path) -> str:
    """What is in the file. Raises ``BadToken`` and ``OSError``."""
    with path.open("rb") as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise BadToken(
                f"the API's token {path} can be read by others: chmod 600 {path}, or remove it for a new one"
            )
        token = file.read(1024).decode("latin-1").strip()
    if not _FIT.fullmatch(token):
        raise BadToken(f"the API's token {path} is no line of 16 to 512 printable characters: remove it for a new one")
    return token


def login_link(address: str, token: str) -> str:
    """Where whoever has the token is logged in to the dashboard that is at this address."""
    return f"{address.rstrip('/')}/login?token={quote(token, safe='')}"


def _make(path: Path) -> None:
    """Write it in full before it has its name: a crash leaves no half token."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{secrets.token_urlsafe(32)}\n")
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
