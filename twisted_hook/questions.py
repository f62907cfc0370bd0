"""Asks what listens on one socket, and waits for the whole answer.

Touches that socket only, whatever an address may say, and keeps nothing of what it is answered.
"""

from __future__ import annotations

import socket

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IResponse
from zope.interface import implementer

from twisted_hook.redaction import clean

LONGEST_ANSWER = 1024 * 1024
"""Bytes of an answer that are read; a longer one is as good."""
PATIENCE = 5.0
"""Seconds until a connection is given up that nobody takes."""
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing listens here


class NoAnswer(Exception):
    """No complete answer has come; the text says why."""


class Questions:
    """Asks one server, each time on a connection of its own."""

    def __init__(self, reactor: object, listener: socket.socket) -> None:
        self._agent = Agent.usingEndpointFactory(reactor, _OneDoor(way_to(reactor, listener)))

    async def status(self, path: str) -> int:
        """What it answers a GET with, once the answer is here as a whole, or long enough. Raises ``NoAnswer``."""
        headers = Headers({b"User-Agent": [b"hookdeploy-health"]})
        try:
            response = await self._agent.request(b"GET", f"http://localhost{path}".encode(), headers)
            await _whole(response)
        except CancelledError:
            raise
        except Exception as error:
            raise NoAnswer(_cause(error)) from error
        return int(response.code)


def way_to(reactor: object, listener: socket.socket) -> IStreamClientEndpoint:
    """How to connect to a listening socket of this machine."""
    address = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return _Quiet(UNIXClientEndpoint(reactor, address, timeout=PATIENCE))
    host = _ANYWHERE.get(address[0], address[0])
    kind = TCP6ClientEndpoint if listener.family == socket.AF_INET6 else TCP4ClientEndpoint
    return _Quiet(kind(reactor, host, address[1], timeout=PATIENCE))


@implementer(IStreamClientEndpoint)
class _Quiet:
    """Says nothing of each connection: three questions a second would fill the log."""

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        if isinstance(protocolFactory, Factory):
            protocolFactory.noisy = False
        return self._endpoint.connect(protocolFactory)


@implementer(IAgentEndpointFactory)
class _OneDoor:
    """Leads every request to the one socket that there is."""

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        return self._endpoint


class _Body(Protocol):
    """Reads an answer, and keeps nothing of it."""

    def __init__(self) -> None:
        self.whole: Deferred[None] = Deferred(lambda _: self._drop())
        self._length = 0

    def dataReceived(self, data: bytes) -> None:
        self._length += len(data)
        if self._length > LONGEST_ANSWER:
            self._tell(None)
            self._drop()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        # PotentialDataLoss: its end is that of the connection, as before HTTP/1.1
        self._tell(None if reason.check(ResponseDone, PotentialDataLoss) else reason)

    def _tell(self, result: Failure | None) -> None:
        if not self.whole.called:
            self.whole.callback(result)

    def _drop(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()


def _whole(response: IResponse) -> Deferred[None]:
    """Fires when the answer is complete, or long enough; fails if it breaks off."""
    body = _Body()
    response.deliverBody(body)
    return body.whole


def _cause(error: Exception) -> str:
    """The last of the reasons that a client's failure has collected."""
    reasons = error.reasons if isinstance(error, ResponseFailed) else []
    return clean(str(reasons[-1].value if reasons else error))
