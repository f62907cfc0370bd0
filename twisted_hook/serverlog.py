"""The file to which a server writes what it has to say.

Touches that file. It is a file and never a pipe of ours, which would block the server when we are gone.
"""

from __future__ import annotations

import os
from pathlib import Path

from twisted_hook.process import last_lines

LONGEST = 10 * 1024 * 1024
TAIL = 16 * 1024


class ServerLog:
    """One server's part of the file, which earlier servers have begun."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = 0

    def open(self) -> int:
        """A descriptor that appends; what has become too long is put aside. Raises ``OSError``."""
        if self._path.exists() and self._path.stat().st_size > LONGEST:
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        log = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._start = os.lseek(log, 0, os.SEEK_END)
        return log

    def last_words(self) -> str:
        """The last lines that were written since it was opened."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = self._start if self._start <= size else 0  # somebody has cut it off
                file.seek(max(start, size - TAIL))
                return last_lines(file.read())
        except OSError:  # somebody has taken it away
            return ""
