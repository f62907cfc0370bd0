"""Doors on real sockets, and a client that speaks bytes: it sends what no honest client would, and sees what comes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IListeningPort, IStreamClientEndpoint, IStreamServerEndpoint, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from tests.waiting import PATIENCE, become
from twisted_hook.site import GuardedSite, Limits


@dataclass(frozen=True)
class Answer:
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire(Protocol):
    """One connection to a door."""

    transport: ITCPTransport

    def __init__(self, *, bodiless: bool = False) -> None:
        self.received = b""
        self.lost: Failure | None = None
        self._bodiless = bodiless
        self._waiting: list[Deferred[None]] = []

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason
        self._wake()

    def send(self, *parts: bytes) -> None:
        self.transport.write(b"".join(parts))

    def half_close(self) -> None:
        self.transport.loseWriteConnection()

    async def close(self) -> None:
        self.transport.loseConnection()
        await self.closed()

    async def abort(self) -> None:
        self.transport.abortConnection()
        await self.closed()

    async def closed(self) -> None:
        """Wait until the connection is gone."""
        while self.lost is None:
            await self._change()

    async def answer(self) -> Answer:
        """The next response."""
        while (found := self._answer()) is None:
            assert self.lost is None, f"the connection was closed after {self.received!r}: {self.lost}"
            await self._change()
        return found

    async def last_answer(self) -> Answer:
        """The next response, after which nothing else was said and the connection is closed, and not by a reset."""
        found = await self.answer()
        await self.closed()
        assert not self.received
        assert self.lost is not None
        assert self.lost.check(ConnectionDone)
        return found

    def _answer(self) -> Answer | None:
        head, end, rest = self.received.partition(b"\r\n\r\n")
        if not end:
            return None
        status, *lines = head.decode("ascii").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = 0 if self._bodiless else int(headers.get("content-length", 0))
        if len(rest) < length:
            return None
        self.received = rest[length:]
        return Answer(int(status.split()[1]), headers, rest[:length])

    async def _change(self) -> None:
        change: Deferred[None] = Deferred()
        self._waiting.append(change)
        await change.addTimeout(PATIENCE, reactor)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(None)


def patient(**limits: Any) -> Limits:
    """Limits of a door on real sockets: none in seconds but those that its test is about can hurry an honest sender.

    While this process stands still, nobody in it sends or reads, and the time of both is up all the same.
    """
    return Limits(**dict.fromkeys(("request_deadline", "idle", "linger"), 2 * PATIENCE) | limits)


@asynccontextmanager
async def listening(site: GuardedSite, endpoint: IStreamServerEndpoint | None = None) -> AsyncIterator[int]:
    """The port on which the door listens; at the end all its connections are gone, or the test fails."""
    endpoint = endpoint or TCP4ServerEndpoint(reactor, 0, interface="0.0.0.0")
    port: IListeningPort = await endpoint.listen(site)
    try:
        yield int(port.getHost().port)  # type: ignore[attr-defined]  # an address of TCP
    finally:
        await maybeDeferred(port.stopListening)
        await become(lambda: not (site.connected or site.turned_away))


async def connect(port: int, *, source: str = "127.0.0.1", bodiless: bool = False) -> Wire:
    """A connection to a port of this machine, from one of its loopback addresses."""
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port, bindAddress=(source, 0))
    return await connect_through(endpoint, bodiless=bodiless)


async def connect_through(endpoint: IStreamClientEndpoint, *, bodiless: bool = False) -> Wire:
    wire: Wire = await connectProtocol(endpoint, Wire(bodiless=bodiless))
    return wire


def head(line: str, headers: Mapping[bytes, bytes] | None = None, *, length: int | None = None) -> bytes:
    """A request line, ``Host``, the headers, and the end of them."""
    lines = [f"{line} HTTP/1.1".encode(), b"Host: deploy.example.com"]
    lines += [name + b": " + value for name, value in (headers or {}).items()]
    if length is not None:
        lines.append(b"Content-Length: %d" % length)
    return b"\r\n".join((*lines, b"", b""))


def post(path: str, headers: Mapping[bytes, bytes], body: bytes) -> bytes:
    """A whole request."""
    return head(f"POST {path}", headers, length=len(body)) + body
