"""Asks an app for its health at its public address, again and again, while two generations serve it.

Touches that one address. What is answered is nothing to it: about half of the questions reach the other generation, and
only the server that has answered knows which one it is (see ``gate.py``).
"""

from __future__ import annotations

import socket
from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import connectProtocol
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint, ITCPTransport
from twisted.internet.protocol import Protocol
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from twisted_hook.questions import way_to

INTERVAL = 0.3
"""Seconds between two questions; each has a connection of its own, so that any worker may answer."""
MOST_AT_ONCE = 8
"""Questions without an answer; more would say no more."""


class HealthProbe:
    """Asks until it is told to stop."""

    def __init__(self, reactor: IReactorTime, listener: socket.socket, *, path: str, asks_as: str) -> None:
        """``path`` may have a query; ``asks_as`` is the User-Agent by which the server that answers knows us."""
        self._endpoint = way_to(reactor, listener)
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: {asks_as}\r\n"
            "Accept: */*\r\nConnection: close\r\n\r\n"
        ).encode()
        self._open: set[_Question] = set()
        self._asking = LoopingCall(self._ask)
        self._asking.clock = reactor

    def start(self) -> None:
        self._asking.start(INTERVAL)

    def stop(self) -> None:
        """Let go of every connection."""
        self._asking.stop()
        for question in list(self._open):
            question.give_up()

    def _ask(self) -> None:
        if len(self._open) < MOST_AT_ONCE:
            question = _Question(self._request, self._open)
            self._open.add(question)
            question.connect(self._endpoint)


class _Question(Protocol):
    def __init__(self, request: bytes, open_ones: set[_Question]) -> None:
        self._request = request
        self._open_ones = open_ones
        self._connecting: Deferred[_Question] = Deferred()

    def connect(self, endpoint: IStreamClientEndpoint) -> None:
        self._connecting = connectProtocol(endpoint, self)
        self._connecting.addErrback(self._not_taken)

    def connectionMade(self) -> None:
        if self.transport is not None:
            self.transport.write(self._request)

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._open_ones.discard(self)

    def give_up(self) -> None:
        if self.connected:
            cast("ITCPTransport", self.transport).abortConnection()
        else:
            self._connecting.cancel()

    def _not_taken(self, failure: Failure) -> None:
        """Nobody has taken it in time, or we want no answer any more."""
        self._open_ones.discard(self)
