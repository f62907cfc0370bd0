"""The guard at a public door: it refuses by headers alone, caps bodies and connections, and gives senders a deadline.

It parses no body, knows no hook and no forge, and never lets a request through whose framing is in doubt. HTTP/1.1 only
(and 1.0, which older proxies speak). Some names of ``HTTPChannel`` that it builds on are private to Twisted: the tests
over real sockets are what holds them in place.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from io import BytesIO
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

from msgspec.json import encode
from twisted.internet.interfaces import IAddress, IDelayedCall, IHalfCloseableProtocol, IReactorTime, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.http import HTTPChannel
from twisted.web.resource import IResource
from twisted.web.server import Request, Site
from zope.interface import implementer

from twisted_hook.model import Refused

ERRORS = {
    400: "malformed request",
    401: "no valid signature",
    403: "this hook does not serve that repository",
    404: "not found",
    405: "method not allowed",
    408: "too slow",
    413: "too large",
    415: "unsupported content type or encoding; send Content-Type: application/json",
    429: "too many connections",
    500: "internal error",
    503: "try again later",
}
BODIES = {status: encode({"error": text}) for status, text in ERRORS.items()}
"""What a refusal says: one constant body a status, whatever the cause, without a word of the request."""

RETRY_AFTER = b"30"
TINY_CHUNK = 64
"""A chunked body whose chunks are smaller than this on average is an attack on the parser: 6 bytes cost it 3 µs."""
FREE_CHUNKS = 1_000

_LABEL = rb"[A-Za-z0-9_-]{1,63}"
_HOST = re.compile(rb"(?:%b(?:\.%b)*\.?|\[[0-9A-Fa-f:.]+\])?(?::[0-9]{1,5})?" % (_LABEL, _LABEL))


@dataclass(frozen=True, slots=True)
class Limits:
    """What one door bears. Sizes are bytes, times are seconds."""

    max_body: int = 26_214_400
    """GitHub sends no payload over 25 MB."""
    in_flight: int = 67_108_864
    """All bodies together, beyond the ``small_body`` of each."""
    small_body: int = 65_536
    """How much of a body does not count for ``in_flight``, so that large ones cannot shut out an ordinary push."""
    request_deadline: float = 10.0
    """From the first byte of a request to the last of its body."""
    idle: float = 15.0
    connections: int = 512
    connections_per_peer: int = 64
    """How many one address, or one /64 of IPv6, may hold; there is no such limit for ``trusted`` and unix sockets."""
    linger: float = 0.5
    """How long a sender who was refused may go on sending: one who is cut off at once sees a reset, not the answer."""
    linger_bytes: int = 1_048_576
    trusted: tuple[IPv4Network | IPv6Network, ...] = ()


class Tally:
    """Counts what a door answered, and says so at most once a second: one line for one delivery, and one for a flood.

    A line for each delivery would cost 34 µs, a tenth of all that a delivery costs.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self._pause: IDelayedCall | None = None
        self._open = False

    def open(self) -> None:
        self._open = True

    def close(self) -> None:
        """Say what is still unsaid; from now on nothing is put off."""
        self._open = False
        if self._pause is not None:
            self._pause.cancel()
            self._say()

    def note(self, what: str) -> None:
        """One more of these. It is logged as it is: no word of it may come from outside unchecked."""
        self._counts[what] += 1
        if self._pause is None:
            self._say()

    def _say(self) -> None:
        self._pause = None
        if not self._counts:
            return
        what = ", ".join(f"{what} ({count})" for what, count in self._counts.most_common())
        self.log.info("Requests answered: {what}", what=what, counts=dict(self._counts))
        self._counts.clear()
        if self._open:
            self._pause = self._clock.callLater(1.0, self._say)


class GuardedRequest(Request):
    """A request whose headers are judged before its body is read, and whose body stays in memory, within limits."""

    channel: GuardedChannel
    site: GuardedSite
    content: BytesIO
    defaultContentType = None  # noqa: N815 (Twisted's name)
    length: int | None = 0
    """The length of the body as the headers tell it; None for a chunked one."""
    _received = 0
    _counted = 0
    _chunks = 0

    def header(self, name: bytes) -> Sequence[bytes]:
        """Every value of a header, in the order in which they came."""
        return self.requestHeaders.getRawHeaders(name) or []

    @property
    def body(self) -> bytes:
        return self.content.getvalue()

    @property
    def gone(self) -> bool:
        """Whether there is nobody left to answer."""
        return bool(self._disconnected)

    def gotLength(self, length: int | None) -> None:
        """All headers are here, no byte of the body is, and ``100 Continue`` is not sent yet: the moment to refuse."""
        self.site = self.channel.site
        self.method, self.uri, self.clientproto = self.channel.request_line
        self.path = self.uri.partition(b"?")[0]
        self.length = length
        self.content = BytesIO()
        self._check_framing()
        oversized = length is not None and length > self.site.limits.max_body
        try:
            self.site.screen(self)
        except Refused as refused:
            # Where and how are asked before how much: an unknown path is 404, however long its body.
            if refused.status in (404, 405) or not oversized:
                raise
        if oversized:
            raise Refused(413, "a body over the limit")

    def handleContentChunk(self, data: bytes) -> None:
        self._received += len(data)
        self._chunks += 1
        if self._received > self.site.limits.max_body:
            raise Refused(413, "a body over the limit")
        if self.length is None and self._chunks > FREE_CHUNKS and self._received < self._chunks * TINY_CHUNK:
            raise Refused(400, "a body in tiny chunks")
        self._count(self._received - self.site.limits.small_body)
        self.content.write(data)

    def refuse(self, refused: Refused) -> bytes:
        """Make a refusal the answer to a request that is here in full, and give the answer's body."""
        self.setResponseCode(refused.status)
        return self.answer(self._refusal(refused))

    def answer(self, body: bytes, content_type: bytes = b"application/json") -> bytes:
        """Set the headers that belong to a body, and give it."""
        self.setHeader(b"Content-Type", content_type)
        self.setHeader(b"Content-Length", b"%d" % len(body))
        return body

    def refusal(self, refused: Refused) -> bytes:
        """The whole answer to a request that is not here in full, headers and all; the connection ends with it."""
        code, body = refused.status, self.answer(self._refusal(refused))
        self.setHeader(b"Server", b"hookdeploy")
        self.setHeader(b"Date", http.datetimeToString())
        self.setHeader(b"Connection", b"close")
        lines = [b"HTTP/1.1 %d %b" % (code, HTTPStatus(code).phrase.encode())]
        lines += [b"%b: %b" % (name, value) for name, [value] in self.responseHeaders.getAllRawHeaders()]
        return b"\r\n".join((*lines, b"", b"" if self.method == b"HEAD" else body))

    def forget(self) -> None:
        """Let go of the body."""
        if self._counted:
            self._count(0)
        self.content = BytesIO()

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        self.forget()

    def write(self, data: bytes) -> None:
        if not self.startedWriting:
            self.setHeader(b"Server", b"hookdeploy")
        super().write(data)

    def processingFailed(self, reason: Failure) -> Failure:
        """A bug: logged in full, and told to the sender as no more than that."""
        self._log.failure("A bug in a door", failure=reason)
        body = self.refuse(Refused(500, "a bug"))
        if not self.gone:
            self.write(body)
            self.finish()
        return reason

    def _check_framing(self) -> None:
        """Refuse what Twisted lets pass and a proxy in front might read in another way."""
        codings = self.header(b"transfer-encoding")
        if codings and (self.length is not None or len(codings) > 1 or self.clientproto != b"HTTP/1.1"):
            raise Refused(400, "a doubtful transfer encoding")
        hosts = self.header(b"host")
        if len(hosts) > 1 or (hosts and not _HOST.fullmatch(hosts[0])):
            raise Refused(400, "a malformed host")

    def _refusal(self, refused: Refused) -> bytes:
        if refused.status in (429, 503):
            self.setHeader(b"Retry-After", RETRY_AFTER)
        self.site.tally.note(f"{refused.status} {refused.reason}")
        return BODIES[refused.status]

    def _count(self, size: int) -> None:
        """Let this much of the body count for what all bodies may hold."""
        more = max(0, size) - self._counted
        if more > 0 and self.site.in_flight + more > self.site.limits.in_flight:
            raise Refused(503, "too many large bodies at once")
        self.site.in_flight += more
        self._counted += more


@implementer(IHalfCloseableProtocol)
class GuardedChannel(HTTPChannel):
    """A connection that ends when its sender is refused, late or silent. What refuses raises ``Refused``."""

    site: GuardedSite
    transport: ITCPTransport  # a TLS one gives the methods in use here too
    requestFactory = GuardedRequest  # noqa: N815 (Twisted's name)
    peer: bytes | None = None
    """Whose cap it counts for; None where there is no cap."""
    unwelcome: Refused | None = None
    """Why this connection is answered before it has said a word."""
    _deaf = False
    """Answered for good: whatever still comes is read, so that the sender gets to the answer, and forgotten."""
    _drained = 0
    _ended = False
    """The sender has closed its half: what is here in full is still answered."""
    _alarm: IDelayedCall | None = None
    """The one thing that time will do here: a deadline, the next request's turn, or the end."""

    @property
    def request_line(self) -> tuple[bytes, bytes, bytes]:
        return self._command, self._path, self._version

    def connectionMade(self) -> None:
        super().connectionMade()
        self.site.entered(self)
        if self.unwelcome is not None:
            self.refuse(self.unwelcome)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._disarm()
        self.site.left(self)
        super().connectionLost(reason)

    def dataReceived(self, data: bytes) -> None:
        if self._deaf:
            self._drain(data)
            return
        try:
            super().dataReceived(data)
        except Refused as refused:
            self.refuse(refused)
        self._settle()

    def headerReceived(self, line: bytes) -> bool:
        try:
            return bool(super().headerReceived(line))
        except ValueError:  # Python reads no integer of more than 4300 digits
            raise Refused(400, "an absurd content length") from None

    def lineLengthExceeded(self, line: bytes) -> None:
        raise Refused(400, "an overlong header")

    def _respondToBadRequestAndDisconnect(self) -> None:
        raise Refused(400, "malformed HTTP")

    def allContentReceived(self) -> None:
        self._disarm()
        self.site.waiting.pop(self, None)
        super().allContentReceived()

    def requestDone(self, request: GuardedRequest) -> None:
        """One request a connection and turn of the reactor: 2,600 in one read would hold it for 0.5 s."""
        request.forget()
        if self.persistent and (self._buffer or any(self._dataBuffer)):
            self._arm(0, partial(self._next, request))
        else:
            self._next(request)

    def _next(self, request: GuardedRequest) -> None:
        self.site.waiting[self] = None
        super().requestDone(request)
        self._settle()

    def _settle(self) -> None:
        """Hold the sender of a request that is here in part to the deadline."""
        if self._deaf or self._handlingRequest:
            return
        if self._ended:
            self.loseConnection()
        elif (self.requests or self._buffer) and not self._armed():
            self._arm(self.site.limits.request_deadline, self._late)

    def _late(self) -> None:
        self.refuse(Refused(408, "a request that took too long"))

    def refuse(self, refused: Refused) -> None:
        """Answer now, take nothing more from this connection, and close it when the sender has had time to read."""
        self._turn_deaf()
        request = self.requests[-1] if self.requests else self.requestFactory(self)
        request.site = self.site
        self.transport.write(request.refusal(refused))
        request.forget()
        if not self.isSecure():  # TLS has a farewell of its own, which must come before the end of the stream
            self.transport.loseWriteConnection()
        self._arm(self.site.limits.linger, self.loseConnection)

    def timeoutConnection(self) -> None:
        self.loseConnection()

    def loseConnection(self) -> None:
        """Close; who takes no more bytes, or leaves a TLS farewell unanswered, is cut off in the end."""
        self._turn_deaf()
        self.site.waiting.pop(self, None)
        self._arm(self.site.limits.idle, self.transport.abortConnection)
        self.transport.loseConnection()

    def _turn_deaf(self) -> None:
        if self._deaf:
            return
        self._deaf = True
        self.setTimeout(None)
        self.clearLineBuffer()
        self._networkProducer.unregisterProducer()  # type: ignore[attr-defined]  # else it could pause us, and not close

    def _drain(self, data: bytes) -> None:
        self._drained += len(data)
        if self._drained > self.site.limits.linger_bytes:
            self.transport.abortConnection()

    def readConnectionLost(self) -> None:
        """The sender has closed its half: what is here in full is answered, but nothing is streamed to nobody."""
        self._ended = True
        if self._deaf or any(request.startedWriting and not request.finished for request in self.requests):
            self.loseConnection()
        self._settle()

    def writeConnectionLost(self) -> None:
        """Our own doing."""

    def _armed(self) -> bool:
        return self._alarm is not None and self._alarm.active()

    def _arm(self, seconds: float, act: Callable[[], object]) -> None:
        self._disarm()
        self._alarm = self.callLater(seconds, act)

    def _disarm(self) -> None:
        if self._alarm is not None and self._alarm.active():
            self._alarm.cancel()
        self._alarm = None


Screen = Callable[[GuardedRequest], None]
"""Raises ``Refused`` for what it can judge by the request line and the headers.

Response headers that it has set go out with the refusal.
"""


class GuardedSite(Site):
    """A door: a resource behind the guard."""

    noisy = False  # the log names the endpoints, which says more than an object's address
    protocol = GuardedChannel  # type: ignore[assignment]  # Twisted's own puts HTTP/2 beside it
    requestFactory = GuardedRequest  # noqa: N815 (Twisted's name)

    def __init__(self, resource: IResource, *, screen: Screen, reactor: IReactorTime, limits: Limits) -> None:
        super().__init__(resource, timeout=limits.idle, reactor=reactor, parsePOSTFormSubmission=False)
        self.screen = screen
        self.limits = limits
        self.tally = Tally(reactor)
        self.in_flight = 0
        self.connected = 0
        self.turned_away = 0
        self.peers: Counter[bytes | None] = Counter()
        self.waiting: dict[GuardedChannel, None] = {}
        """The connections that wait for their sender, the one that waits longest first."""

    def startFactory(self) -> None:
        """No access log, so none of the things that Twisted sets up for it."""
        self.tally.open()

    def stopFactory(self) -> None:
        self.tally.close()

    def log(self, request: http.Request) -> None:
        """No line for each request: ``tally`` counts them, and a health check is not worth one."""

    def acceptableProtocols(self) -> list[bytes]:
        """What to offer over TLS. Not HTTP/2, even where it is installed: the guard does not know it."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: IAddress | None) -> GuardedChannel | None:  # type: ignore[override]  # as above
        peer = _peer(addr, self.limits.trusted)
        unwelcome = self._full(peer)
        if unwelcome is not None and self.turned_away >= self.limits.connections // 8:
            return None
        channel: GuardedChannel = super().buildProtocol(addr)
        channel.peer = peer
        channel.unwelcome = unwelcome
        return channel

    def entered(self, channel: GuardedChannel) -> None:
        if channel.unwelcome is not None:
            self.turned_away += 1
            return
        self.connected += 1
        self.peers[channel.peer] += 1
        self.waiting[channel] = None

    def left(self, channel: GuardedChannel) -> None:
        if channel.unwelcome is not None:
            self.turned_away -= 1
            return
        self.connected -= 1
        self.waiting.pop(channel, None)
        self.peers[channel.peer] -= 1
        if not self.peers[channel.peer]:
            del self.peers[channel.peer]

    def _full(self, peer: bytes | None) -> Refused | None:
        """Why there is no room for one more connection of this peer; a full house makes room where it can."""
        if peer is not None and self.peers[peer] >= self.limits.connections_per_peer:
            return Refused(429, "too many connections from one address")
        if self.connected < self.limits.connections:
            return None
        if not self.waiting:
            return Refused(503, "too many connections")
        next(iter(self.waiting)).loseConnection()
        return None


def _peer(addr: IAddress | None, trusted: Sequence[IPv4Network | IPv6Network]) -> bytes | None:
    """What tells one peer from another: an IPv4 address, or the /64 of an IPv6 one, which one machine owns whole."""
    host = getattr(addr, "host", None)
    if host is None:
        return None
    ip = ip_address(host)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if any(ip in network for network in trusted):
        return None
    return ip.packed if isinstance(ip, IPv4Address) else ip.packed[:8]
