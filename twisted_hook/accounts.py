"""The accounts of this machine, as which commands and servers may run.

Reads the account database only; it never changes who we are.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path


class NoSuchAccount(LookupError):
    """The text says which."""


class NeedsRoot(Exception):
    """Only root can become another account."""


@dataclass(frozen=True, slots=True)
class Account:
    """One account."""

    name: str
    uid: int
    gid: int
    """Of its primary group."""
    home: Path
    """Where its home is said to be; that of an account for a service often does not exist."""


def account_of(name: str) -> Account:
    """The account of this name. Raises ``NoSuchAccount``."""
    try:
        found = pwd.getpwnam(name)
    except (KeyError, ValueError):  # ValueError: a NUL or a lone surrogate in the name
        raise NoSuchAccount(f"there is no account {name!r} on this machine") from None
    return Account(found.pw_name, found.pw_uid, found.pw_gid, Path(found.pw_dir))


def to_become(name: str | None) -> Account | None:
    """The account that a child of ours has to change to; None where it is our own. Raises as ``account_of`` does.

    Raises ``NeedsRoot`` too.
    """
    if name is None:
        return None
    account = account_of(name)
    if account.uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise NeedsRoot(f"only root can run a command as {name}")
    return account
