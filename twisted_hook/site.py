"""The guard at a public door: it refuses by headers alone, caps bodies and connections, and gives senders a deadline.

It parses no body, knows no hook and no forge, and never lets a request through whose framing is in doubt. HTTP/1.1 only
(and 1.0, which older proxies speak). Some names of ``HTTPChannel`` that it builds on are private to Twisted: the tests
over real sockets are what holds them in place.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from http import HTTPStatus
from io import BytesIO

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

from twisted_hook.hooks import Address
from twisted_hook.model import Refused
from twisted_hook.peers import FORWARDING, Trust, connected_from, sender_of, senders_of, share_of
from twisted_hook.rates import Acquaintances, Rate, Refusals
from twisted_hook.sessions import Session

ERRORS = {
    400: "malformed request",
    401: "no valid signature",
    403: "this hook does not serve that repository, or not from this address",
    404: "not found",
    405: "method not allowed",
    408: "too slow",
    413: "too large",
    415: "unsupported content type or encoding; send Content-Type: application/json",
    429: "too many connections or refused requests",
    500: "internal error",
    503: "try again later",
}
BODIES = {status: encode({"error": text}) for status, text in ERRORS.items()}
"""What a refusal says: one constant body a status, whatever the cause, without a word of the request."""

LARGE = 1_048_576
"""Bytes of a body that waits for its turn: to hash one of 25 MiB, twice, and to read it holds the reactor for 40 ms."""
AS_SENT = frozenset({b"x-gitlab-token"})
"""Headers that are a secret themselves: one that was pasted with a space at its end is another one."""
STAYING = frozenset({401, 403, 404, 405, 415})
"""Refusals of a request whose framing is beyond doubt: the sender may send the next one."""
RETRY_AFTER = b"30"
QUIET = 60.0
"""Seconds between two warnings of senders who are refused too often: there may be thousands of them."""
MOST_TOLD = 50
"""So many refusals one line of the log tells apart."""
PROXY_HINT = (
    "; if many senders share that address, name the proxy in server.trusted_proxies, and each will count for itself"
)
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
    refusals: Rate | None = Rate(burst=200, per_second=20)  # noqa: RUF009 (it is frozen)
    """How often one sender may be refused; who is not, may send as often as it likes."""
    trusted: Trust = Trust()  # noqa: RUF009 (likewise)


class Tally:
    """Counts what a door answered, and says so at most once a second: one line for one delivery, and one for a flood.

    A line for each delivery would cost 34 µs, a tenth of all that a delivery costs.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self.verdicts: Counter[tuple[str, str]] = Counter()
        """Genuine deliveries since the start, by hook and verdict."""
        self.refusals: Counter[int] = Counter()
        """Refusals since the start, by status."""
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

    def refuse(self, refused: Refused) -> None:
        """One more refusal, told apart from others by its reason as far as there is room: it may name an address."""
        what, most = f"{refused.status} {refused.reason}", len(self._counts) >= MOST_TOLD
        self.note(f"{refused.status} and others" if most and what not in self._counts else what)
        self.refusals[refused.status] += 1

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
    limited = True
    """Whether it may be refused because others were, too often; a screen may say no."""
    visitor: Session | None = None
    """Who has logged in, where people do; a screen may say so."""
    answered = False
    """Refused by its headers, and told so; what comes of its body is nobody's."""
    _received = 0
    _counted = 0
    _chunks = 0

    def header(self, name: bytes) -> Sequence[bytes]:
        """Every value of a header, in the order in which they came."""
        return self.requestHeaders.getRawHeaders(name) or []

    @property
    def body(self) -> bytes:
        return self.content.getvalue()

    @cached_property
    def _connected(self) -> Address | None:
        return connected_from(getattr(self.client, "host", None))

    @cached_property
    def senders(self) -> set[Address | None]:
        """Who may have sent it: more than one where a forged header stands beside that of a trusted proxy."""
        return senders_of(self._connected, self.header, self.site.limits.trusted)

    @property
    def sender(self) -> Address | None:
        """Who sends it; None for a unix socket whose other end is not trusted."""
        return sender_of(self._connected, self.senders)

    @cached_property
    def share(self) -> bytes:
        """For whom it counts."""
        return share_of(self.sender)

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
        try:
            self._judge_headers()
        except Refused as refused:
            self.site.spare_refusal(self)
            if not self._may_stay(refused):
                raise
            self.answered = True
            self.channel.transport.write(self.refusal(refused))
        else:
            self.site.spare_stranger(self)

    def handleContentChunk(self, data: bytes) -> None:
        if self.answered:
            return
        self._received += len(data)
        self._chunks += 1
        if self._received > self.site.limits.max_body:
            raise Refused(413, "a body over the limit")
        if self.length is None and self._chunks > FREE_CHUNKS and self._received < self._chunks * TINY_CHUNK:
            raise Refused(400, "a body in tiny chunks")
        self._count(self._received - self.site.limits.small_body)
        self.content.write(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if self.answered:
            self.finished = 1
            self._cleanup()
        elif self._received < LARGE:
            super().requestReceived(command, path, version)
        else:
            self.site.in_turn(partial(self._receive, command, path, version))

    def _receive(self, command: bytes, path: bytes, version: bytes) -> None:
        if not self.gone:
            super().requestReceived(command, path, version)

    def accept(self, verdict: str, event: str, hook: str) -> None:
        """Note that it was genuine: its sender is known from now on."""
        self.site.tally.note(f"{http.ACCEPTED} {verdict}: {event} on {hook}")
        self.site.tally.verdicts[hook, verdict] += 1
        self.site.known.add(self.share)

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
        """The whole answer to a request that is not here in full, headers and all."""
        code, body = refused.status, self.answer(self._refusal(refused))
        self.setHeader(b"Server", b"hookdeploy")
        self.setHeader(b"Date", http.datetimeToString())
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

    def _judge_headers(self) -> None:
        self._check_framing()
        oversized = self.length is not None and self.length > self.site.limits.max_body
        try:
            self.site.screen(self)
        except Refused as refused:
            # Where and how are asked before how much: an unknown path is 404, however long its body.
            if refused.status in (404, 405) or not oversized:
                raise
        if oversized:
            raise Refused(413, "a body over the limit")

    def _may_stay(self, refused: Refused) -> bool:
        """Whether to forget its body, as far as it still comes, is easier for both than a new connection."""
        return (
            refused.status in STAYING
            and self.length is not None
            and self.length <= self.site.limits.small_body
            and bool(self.channel.persistent)
            and not self.header(b"expect")
        )

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
        elif refused.status < 500:
            self.site.count_refusal(self)
        self.site.tally.refuse(refused)
        return self.site.says(refused)

    def _count(self, size: int) -> None:
        """Let this much of the body count for what all bodies may hold."""
        more = max(0, size) - self._counted
        if more > 0 and self.site.in_flight + more > self.site.limits.in_flight:
            raise Refused(503, "too many large bodies at once")
        self.site.in_flight += more
        self._counted += more


@implementer(IHalfCloseableProtocol)
class GuardedChannel(HTTPChannel):
    """A connection that ends when its sender is late, silent, or refused for good. What refuses raises ``Refused``."""

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
            received = bool(super().headerReceived(line))
        except ValueError:  # Python reads no integer of more than 4300 digits
            raise Refused(400, "an absurd content length") from None
        if received and line[-1:] in (b" ", b"\t") and line.partition(b":")[0].lower() in AS_SENT:
            self._keep_the_end_of(line)
        return received

    def _keep_the_end_of(self, line: bytes) -> None:
        """Twisted takes white space around a value away, as it is no part of one (RFC 9110, 5.5)."""
        headers, (name, _, value) = self.requests[-1].requestHeaders, line.partition(b":")
        if len(headers.getRawHeaders(name) or []) == 1:  # of several none counts, and to set all again takes its time
            headers.setRawHeaders(name, [value.lstrip(b" \t")])

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
        request = self.requests[-1] if self.requests else self.requestFactory(self)
        if request.answered:
            self.loseConnection()
            return
        self._turn_deaf()
        request.site = self.site
        request.setHeader(b"Connection", b"close")
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


def constant(refused: Refused) -> bytes:
    return BODIES[refused.status]


class GuardedSite(Site):
    """A door: a resource behind the guard."""

    noisy = False  # the log names the endpoints, which says more than an object's address
    protocol = GuardedChannel  # type: ignore[assignment]  # Twisted's own puts HTTP/2 beside it
    requestFactory = GuardedRequest  # noqa: N815 (Twisted's name)
    warnings = Logger()

    def __init__(
        self,
        resource: IResource,
        *,
        screen: Screen,
        reactor: IReactorTime,
        limits: Limits,
        says: Callable[[Refused], bytes] = constant,
    ) -> None:
        """``says`` gives the body of a refusal."""
        super().__init__(resource, timeout=limits.idle, reactor=reactor, parsePOSTFormSubmission=False)
        self.says = says
        self.screen = screen
        self.limits = limits
        """May be exchanged at any time; ``idle`` and ``refusals`` stay what they were at first."""
        self.tally = Tally(reactor)
        self.known = Acquaintances()
        self._refusals = Refusals(limits.refusals) if limits.refusals else None
        self._clock = reactor
        self._quiet_until = 0.0
        self.in_flight = 0
        self.connected = 0
        self.turned_away = 0
        self.peers: Counter[bytes | None] = Counter()
        self._turns: deque[Callable[[], None]] = deque()
        self.waiting: dict[GuardedChannel, None] = {}
        """The connections that wait for their sender, or for him to close, the one that waits longest first."""

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
        peer = self._share(connected_from(getattr(addr, "host", None)))
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

    def in_turn(self, act: Callable[[], None]) -> None:
        """Do it after those that asked before, one in each turn of the reactor."""
        self._turns.append(act)
        if len(self._turns) == 1:
            self._clock.callLater(0, self._take_turn)

    def _take_turn(self) -> None:
        act = self._turns[0]
        try:
            act()
        finally:
            self._turns.popleft()
            if self._turns:
                self._clock.callLater(0, self._take_turn)

    def _full(self, peer: bytes | None) -> Refused | None:
        """Why there is no room for one more connection of this peer; a full house makes room where it can."""
        if peer is not None and self.peers[peer] >= self.limits.connections_per_peer:
            return Refused(429, "too many connections from one address")
        if self.connected < self.limits.connections:
            return None
        if not self.waiting:
            return Refused(503, "too many connections")
        longest = next(iter(self.waiting))
        del self.waiting[longest]
        longest.transport.abortConnection()  # who is asked to close may take seconds, over TLS or with an unread answer
        return None

    def _share(self, address: Address | None) -> bytes | None:
        """For whom a connection counts; None where there is no limit."""
        return None if address is None or self.limits.trusted.covers(address) else share_of(address)

    def spare_refusal(self, request: GuardedRequest) -> None:
        """Raise ``Refused(429)`` if the sender was refused too often to be told once more what is wrong."""
        if self._refusals is not None and self._refusals.exhausted(request.share, self._clock.seconds()):
            raise Refused(429, "too many refused requests from one address")

    def spare_stranger(self, request: GuardedRequest) -> None:
        """The same for one that could be genuine, unless there was something genuine from that sender before.

        Senders may share an address, a proxy's for one: a flood does not keep the forge out that comes from there too.
        """
        if request.limited and request.share not in self.known:
            self.spare_refusal(request)

    def count_refusal(self, request: GuardedRequest) -> None:
        now = self._clock.seconds()
        if self._refusals is None or not self._refusals.count(request.share, now):
            return
        if now >= self._quiet_until:
            self._quiet_until = now + QUIET
            self._warn(request)

    def _warn(self, request: GuardedRequest) -> None:
        sender = request.sender
        shared = sender is None or sender.is_private or any(request.header(name) for name in FORWARDING)
        hint = PROXY_HINT if shared and not self.limits.trusted.covers(sender) else ""
        self.warnings.warn(
            "Requests from {sender} are refused too often, so that more of them are answered with 429{hint}",
            sender="a unix socket" if sender is None else str(sender),
            hint=hint,
        )
