"""A server that an earlier hookdeploy has started and that still serves: no child of ours, but ours to keep.

Touches that one process, through a descriptor of it (pidfd_open(2)), so that no other can ever be meant.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_hook import supervision
from twisted_hook.generation import Orders, ServerProcess
from twisted_hook.process import Reactor


@implementer(IReadDescriptor)
class AdoptedServer(ServerProcess):
    """A gunicorn master that serves already; the reports of its workers are lost with the pipe they go to."""

    def __init__(self, reactor: Reactor, orders: Orders, pid: int) -> None:
        """Raises ``ProcessLookupError`` if it has just gone."""
        self._descriptor = os.pidfd_open(pid)
        super().__init__(reactor, orders, lambda phase: None, state=supervision.serving)
        self.pid = pid
        self.ready.happen(None)
        reactor.addReader(self)

    def fileno(self) -> int:
        return self._descriptor

    def doRead(self) -> None:
        """It has exited (pidfd_open(2): readable at the end)."""
        self._reactor.removeReader(self)
        with suppress(ChildProcessError):  # it is a child of ours only if we have executed ourselves again
            os.waitpid(self.pid or 0, os.WNOHANG)
        os.close(self._descriptor)
        self._descriptor = -1
        self._end("nobody knows how")
        self._sweep(self._patience)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor lets go of everything at its end."""

    def logPrefix(self) -> str:
        return "AdoptedServer"

    def _signal(self, name: str) -> None:
        if self._descriptor >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.Signals[f"SIG{name}"])
