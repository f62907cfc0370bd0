"""How hookdeploy's own log is written: secrets masked in all of it, as text for people or as JSON for programs.

``Masking`` stands in front of whatever twistd or its user has chosen to write the log with. Nothing here ever raises:
an event that cannot be shown says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from twisted.python.failure import Failure
from twisted.scripts._twistd_unix import UnixAppLogger
from zope.interface import implementer

from twisted_hook import journald

FORMATS = ("text", "json")
DEEPEST = 6
"""Levels of a field's value; what lies below is shown as Python shows it."""
LARGEST = 14_000
"""Bits of a whole number that is written in decimal; Python refuses one of more than 4300 digits."""
STDOUT = 1
"""Its descriptor."""
_OWN = frozenset({"time", "level", "logger", "message", "traceback"})
_NOT_FIELDS = frozenset({"message", "isError", "system", "time", "format", "why", "failure"})
"""What Twisted's older log adds to events for its own observers."""
_CONSTANT = frozenset({"log_format", "log_logger", "log_source", "log_level", "log_time", "log_namespace", "log_trace"})


def chosen(format: str, twistd: Mapping[str, Any], environ: Mapping[str, str]) -> ILogObserver | None:
    """What writes the log, by the options of twistd; None where that is twistd's own choice, or its user's.

    JSON goes where text would go, and a file of it is rotated alike: when it is large, and by SIGUSR1. As text it is
    written for systemd's journal, if it is that which reads us.
    """
    if twistd.get("logger") or twistd.get("syslog"):
        return None
    if format == "json":
        return JsonLines(UnixAppLogger(twistd)._getLogObserver()._outFile)  # noqa: SLF001 - it opens it for itself alone
    return journald.observer() if not twistd.get("logfile") and journald.reads(STDOUT, environ) else None


class Shown(Failure):
    """A failure of which nothing is left but its traceback, as it may be shown."""

    def __init__(self, traceback: str) -> None:
        super().__init__(RuntimeError("shown"))
        self._shown = traceback

    def getTraceback(self, elideFrameworkCode: int = 0, detail: str = "default") -> str:
        return self._shown


@implementer(ILogObserver)
class Masking:
    """Makes each event fit to be written, for all observers that come after it.

    ``shown`` masks the secrets of a text and makes its control characters harmless; a new line stays one, and whoever
    writes text indents what follows it.
    """

    def __init__(self, shown: Callable[[str], str]) -> None:
        self._shown = shown

    def __call__(self, event: LogEvent) -> None:
        event.pop("log_flattened", None)
        for name in event.keys() - _CONSTANT:  # before they are put together: Python's repr() would hide a secret
            event[name] = self._value(event[name], DEEPEST)
        text = self._shown(formatEvent(event))  # and after that, as they may be one secret together
        if text:
            event["log_format"], event["log_text"] = "{log_text}", text

    def _value(self, value: Any, levels: int) -> Any:
        """The same value wherever there is nothing to mask in it."""
        match value:
            case None | bool() | int() | float():
                return value
            case Failure():
                return self._failure(value)
            case dict() if levels:
                return {self._value(key, 0): self._value(each, levels - 1) for key, each in value.items()}
            case list() | tuple() if levels and type(value) in (list, tuple):
                return type(value)(self._value(each, levels - 1) for each in value)
        text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else _text(value)
        shown = self._shown(text)
        return value if shown == text else shown

    def _failure(self, failure: Failure) -> Failure:
        try:
            traceback = failure.getTraceback()
        except Exception as error:  # noqa: BLE001 - the exception's own __str__, and whatever that does
            traceback = f"a traceback that cannot be shown ({type(error).__name__})"
        shown = self._shown(traceback)
        return failure if shown == traceback else Shown(shown)


@implementer(ILogObserver)
class JsonLines:
    """Writes each event as one line, a JSON object, at once.

    ``time`` is RFC 3339 in UTC, ``level`` and ``logger`` are Twisted's, ``message`` is the text for people, and the
    other keys are the event's own fields; one that has such a name already ends in an underscore. What failed has its
    ``traceback``.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, event: LogEvent) -> None:
        self._stream.write(as_json(event) + "\n")
        self._stream.flush()


def as_json(event: LogEvent) -> str:
    """One event on one line, in ASCII."""
    at, level = event.get("log_time"), event.get("log_level", LogLevel.info)
    line: dict[str, Any] = {
        "time": _rfc3339(at if isinstance(at, int | float) else 0.0),
        "level": getattr(level, "name", "info"),
        "logger": _text(event.get("log_namespace", "-")),
        "message": formatEvent(event),
    }
    for name, value in event.items():
        if not name.startswith("log_") and name not in _NOT_FIELDS:
            line[f"{name}_" if name in _OWN else name] = _plain(value, DEEPEST)
    failure = event.get("log_failure")
    if isinstance(failure, Failure):
        line["traceback"] = _text(failure, lambda failed: failed.getTraceback())
    return json.dumps(line)


def _rfc3339(at: float) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return "1970-01-01T00:00:00.000Z"


def _plain(value: Any, levels: int) -> Any:
    """What JSON can say of a value."""
    match value:
        case None | bool() | int() if (value or 0).bit_length() <= LARGEST:
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case str():
            return str(value)
        case dict() if levels:
            return {_text(key): _plain(each, levels - 1) for key, each in value.items()}
        case list() | tuple() | set() | frozenset() if levels:
            return [_plain(each, levels - 1) for each in value]
    return _text(value)


def _text(value: Any, show: Callable[[Any], str] = str) -> str:
    try:
        return str(show(value))
    except Exception:  # noqa: BLE001 - a field's own __str__ may do anything
        return f"what cannot be shown ({type(value).__name__})"
