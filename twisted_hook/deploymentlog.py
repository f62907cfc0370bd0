"""The log file of one deployment: what its commands printed, capped, with secrets masked and control bytes harmless.

Colours stay, as escape sequences: whoever shows it where those are not understood takes them out (``colourless``).

Touches that file only. It never fails a deployment: a log that cannot be written is given up, and says so once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from twisted.logger import Logger

from twisted_hook.boundaries import DeploymentLog
from twisted_hook.redaction import CleaningStream, Redactor, clean_but_colours

CAP = 4 * 1024 * 1024
"""Bytes that the log of one deployment may have before its output is cut; after that only the headings are kept."""

_PLAIN = b"\x1b[0m"
"""After the output of a command that has coloured something: the next one begins without its colours."""
_BEGUN_COLOUR = re.compile(rb"\x1b[^m]*\Z")


class FileLog:
    """Appends to ``<state>/logs/<deployment>.log``."""

    _log = Logger()

    def __init__(
        self, path: Path, redactor: Redactor, now: Callable[[], float], grown: Callable[[], None] = lambda: None
    ) -> None:
        """``grown`` is told that more of it can be read."""
        self._path = path
        self._grown = grown
        self._redactor = redactor
        self._masking, self._masking_again = redactor.stream(), redactor.stream()
        self._cleaning = CleaningStream(clean_but_colours)
        self._now = now
        self._file: BinaryIO | None = None
        self._size = 0
        self._lost = 0
        self._in_line = False
        self._coloured = False
        self._broken = False

    def heading(self, text: str) -> None:
        self._end_output()
        at = datetime.fromtimestamp(self._now(), UTC)
        self._append(f"{at:%H:%M:%S} {self._redactor.text(text)}\n".encode())

    def write(self, data: bytes) -> None:
        if self._broken or self._lost or self._size >= CAP:
            self._lost += len(data)
        else:
            self._show(self._masking_again.feed(self._cleaning.feed(self._masking.feed(data)).encode()))

    def close(self) -> None:
        self._end_output()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _end_output(self) -> None:
        """Show what is held back of a command's output, and begin a new line."""
        rest = self._cleaning.feed(self._masking.flush()) + self._cleaning.flush()
        self._show(self._masking_again.feed(rest.encode()) + self._masking_again.flush())
        if self._coloured:
            self._append(_PLAIN)
            self._coloured = False
        if self._in_line:
            self._append(b"\n")
        if self._lost:
            self._append(f"[truncated: {self._lost} bytes more]\n".encode())
            self._lost = 0

    def _show(self, data: bytes) -> None:
        """Append output as far as there is room for it, and never half a character, or half a colour."""
        shown = data[: max(0, CAP - self._size)].decode("utf-8", "ignore").encode()
        if len(shown) < len(data):
            shown = _BEGUN_COLOUR.sub(b"", shown)
        self._lost += len(data) - len(shown)
        self._append(shown)
        self._coloured = self._coloured or b"\x1b" in shown

    def _append(self, data: bytes) -> None:
        if self._broken or not data:
            return
        try:
            if self._file is None:
                descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
                self._file = os.fdopen(descriptor, "ab", buffering=0)
                self._size = self._file.tell()  # an earlier attempt may have written to it
            self._file.write(data)
            self._size += len(data)
            self._in_line = not data.endswith(b"\n") if data != _PLAIN else self._in_line
            self._grown()
        except OSError as error:
            self._broken = True
            self._log.error("the log {path} cannot be written: {error}", path=str(self._path), error=str(error))


def text_of(path: Path) -> str:
    """All that is in the log so far, with its colours; nothing where there is none yet."""
    return path.read_bytes().decode("utf-8", "replace") if path.exists() else ""


_: type[DeploymentLog] = FileLog
