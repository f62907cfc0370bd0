"""The log as journald reads it from our standard output: a priority before every line, and no time of ours.

Writes to the stream that it is given only. Where nobody has chosen another log, ``logformat`` chooses this one, if it
is systemd's journal that reads us.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from typing import TextIO

from twisted.logger import ILogObserver, LogEvent, LogLevel, eventAsText
from zope.interface import implementer

PRIORITIES = {LogLevel.debug: 7, LogLevel.info: 6, LogLevel.warn: 4, LogLevel.error: 3, LogLevel.critical: 2}
"""sd-daemon(3)."""
_CONTINUED = re.compile("\n(?!\n|\\Z)")


def reads(descriptor: int, environ: Mapping[str, str]) -> bool:
    """Whether what is written to this descriptor goes to the journal (``$JOURNAL_STREAM`` in systemd.exec(5))."""
    try:
        there = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{there.st_dev}:{there.st_ino}"


def marked(text: str, level: object = LogLevel.error) -> str:
    """Every line of a text with its priority: journald makes an entry of each."""
    mark = f"<{PRIORITIES.get(level, 6)}>"
    return "\n".join(mark + line for line in text.split("\n") if line)


def observer() -> ILogObserver:
    """The log on our standard output."""
    return Observer(sys.stdout)


@implementer(ILogObserver)
class Observer:
    """Writes each event at once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, event: LogEvent) -> None:
        text = eventAsText(event, includeTimestamp=False, includeSystem=False)
        if text:
            # What begins at the margin is said by us, as in a log file: nobody's text passes for an event of ours.
            written = (
                marked(_CONTINUED.sub("\n\t", text), event.get("log_level"))
                .encode("utf-8", "backslashreplace")
                .decode()
            )
            self._stream.write(written + "\n")
            self._stream.flush()
