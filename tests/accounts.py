"""What the tests of other accounts need: one that every machine has, and a directory that it may enter."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

NOBODY = pwd.getpwnam("nobody")
NEEDS_ROOT = "" if os.geteuid() == 0 else "only root can become another account"
"""Why a test that becomes another account is skipped, if it is."""


def open_the_way(directory: Path) -> None:
    """Let any account enter a directory of pytest's, and those above it."""
    for place in (directory, *directory.parents):
        if place.is_relative_to(gettempdir()) and place != Path(gettempdir()):
            place.chmod(0o755)


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that any account may enter: pytest's own are for one account alone."""
    with TemporaryDirectory() as name:
        directory = Path(name).resolve()
        directory.chmod(0o755)
        yield directory
