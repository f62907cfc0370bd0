"""What systemd is told of us: that we are ready, reload or stop, what serves, and that we are not stuck (sd_notify(3)).

Touches the datagram socket of ``$NOTIFY_SOCKET`` only, and nothing where there is none. It never fails: what cannot be
told is logged. Ours, as what there is (sdnotify; systemd-python and cysystemd, which need a compiler) does no
more than ``_tell``.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

PAUSE = 1.0
"""Seconds between two status lines, at least."""
MARGIN = 5.0
"""Seconds in which systemd has patience beyond a limit of ours, so that it is ours that strikes."""
PATIENCE = 1.0
"""Seconds for a systemd that is too busy to take a message; to lose READY=1 would end us."""


class Systemd:
    """The service manager that has started us, if one has."""

    _log = Logger()

    def __init__(
        self, reactor: IReactorTime, *, address: str = "", watchdog: float = 0.0, describe: Callable[[], str] = str
    ) -> None:
        """``address`` as in ``$NOTIFY_SOCKET``; ``watchdog`` in seconds; ``describe`` gives one line on what we do."""
        self._reactor = reactor
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._period = watchdog / 2
        self._describe = describe
        self._described = ""
        self._later: IDelayedCall | None = None
        self._stops = False
        self._pings = LoopingCall(self._tell, "WATCHDOG=1")
        self._pings.clock = reactor

    @classmethod
    def from_environ(cls, reactor: IReactorTime, environ: Mapping[str, str], describe: Callable[[], str]) -> Systemd:
        """As sd_notify(3) and sd_watchdog_enabled(3) read it. It stays there for when we execute ourselves again."""
        address, wait = environ.get("NOTIFY_SOCKET", ""), environ.get("WATCHDOG_USEC", "")
        if not address.startswith(("/", "@")):
            address = ""
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watchdog = int(wait) / 1e6 if address and ours and wait.isascii() and wait.isdigit() else 0.0
        return cls(reactor, address=address, watchdog=watchdog, describe=describe)

    @property
    def watches(self) -> bool:
        """Whether it ends us if we are stuck."""
        return self._period > 0

    def start(self) -> None:
        """Let it know from now on that we are not stuck."""
        if self.watches:
            self._pings.start(self._period)

    def ready(self) -> None:
        """All is up, or has been read again, or was refused and is as it was."""
        if not self._stops:
            self._described = self._describe()
            self._tell("READY=1", f"MAINPID={os.getpid()}", f"STATUS={self._described}")

    def reloading(self, status: str) -> None:
        """What was asked for just now is being done; ``ready`` ends it. systemd (253 and later) compares the time."""
        if not self._stops:
            now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            self._tell("RELOADING=1", f"MONOTONIC_USEC={now}", f"STATUS={status}")

    def changed(self, *_: object) -> None:
        """There may be something else to say of what we do; it is said soon."""
        if self._address and self._later is None and not self._stops:
            self._later = self._reactor.callLater(PAUSE, self._tell_status)

    def stopping(self, status: str) -> None:
        self._stops = True
        self._forget_status()
        self._tell("STOPPING=1", f"STATUS={status}")

    def takes(self, seconds: float) -> None:
        """What begins now may take so long."""
        self._tell(f"EXTEND_TIMEOUT_USEC={int((seconds + MARGIN) * 1e6)}")

    def close(self) -> None:
        """Say nothing any more."""
        self._forget_status()
        if self._pings.running:
            self._pings.stop()

    def _forget_status(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None

    def _tell_status(self) -> None:
        self._later = None
        status = self._describe()
        if status != self._described:
            self._described = status
            self._tell(f"STATUS={status}")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as teller:
                teller.settimeout(PATIENCE)
                teller.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            self._log.warn("systemd was not told {what}: {error}", what=lines[0], error=str(error))
