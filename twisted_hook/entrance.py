"""What stands between a listening socket and the door's site: the word of a proxy, TLS, or both, in that order.

It may be exchanged while the socket is listened on: who is connected keeps what he was received with. It answers
nobody, and it never believes who is not trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    ITCPTransport,
    ITransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer, providedBy

from twisted_hook import addresses, proxyheader
from twisted_hook.certificates import BadCertificate, Directory, Source, source_of
from twisted_hook.peers import connected_from
from twisted_hook.site import GuardedChannel, GuardedSite

LOOK = 5.0
"""Seconds between two looks whether the files of a ``tls:`` endpoint are others: at most one for each such time."""


@dataclass(frozen=True)
class Plan:
    """What an endpoint's description asks for."""

    socket: str
    """The description of an endpoint that is a listening socket and nothing else."""
    announced: bool
    """Each connection begins with the PROXY protocol."""
    certificates: Source | None


def plan_of(description: str) -> Plan:
    """Raises ``ValueError`` where a TLS endpoint is told what it cannot do."""
    inner = description.removeprefix("haproxy:")
    announced, certificates = inner != description, source_of(description)
    return Plan(inner if certificates is None else _socket(inner), announced, certificates)


def _socket(description: str) -> str:
    """The endpoint below TLS."""
    kind, given = addresses.endpoint_arguments(description)
    interface = given.get("interface", "::" if kind == "tls" else "").replace(":", "\\:")
    words = ["tcp6" if interface.count(":") else "tcp", given.get("port", "443")]
    words += [f"backlog={given['backlog']}"] if "backlog" in given else []
    return ":".join((*words, f"interface={interface}"))


class Entrance(Factory[Protocol]):
    """Receives who connects to one listening socket."""

    noisy = False
    _log = Logger()

    def __init__(self, site: GuardedSite, plan: Plan, *, reactor: IReactorTime) -> None:
        """Raises ``BadCertificate``."""
        self.site = site
        self.reactor = reactor
        self.unannounced: dict[Announced, None] = {}
        """The connections whose PROXY header is not here yet, the one that waits longest first."""
        self.prepare(plan)()

    def doStart(self) -> None:
        self.site.doStart()

    def doStop(self) -> None:
        self.site.doStop()

    def prepare(self, plan: Plan) -> Callable[[], None]:
        """Read the certificates; what it gives makes them, and the plan, the ones of whoever connects from then on.

        Raises ``BadCertificate``.
        """
        stamp = plan.certificates.stamp() if plan.certificates is not None else None
        return partial(self._adopt, plan, self._behind(plan), stamp)

    def _adopt(self, plan: Plan, behind: IProtocolFactory, stamp: object) -> None:
        self._plan, self._factory, self._stamp = plan, behind, stamp
        self._looked = self.reactor.seconds()

    def _behind(self, plan: Plan) -> IProtocolFactory:
        if plan.certificates is None:
            return self.site
        return TLSMemoryBIOFactory(
            plan.certificates.options(), isClient=False, wrappedFactory=self.site, clock=self.reactor
        )

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        self._renew()
        if not self._plan.announced:
            return self.receive(addr)  # type: ignore[return-value]  # Twisted's protocols are all of them
        if not self.site.limits.trusted.covers(connected_from(getattr(addr, "host", None))):
            self.site.tally.note("closed at once: from no trusted proxy, at an endpoint for them alone")
            return None
        if len(self.unannounced) >= self.site.limits.connections // 2:
            next(iter(self.unannounced)).end("too many connections without a PROXY header")
        return Announced(self)

    def receive(self, addr: IAddress | None) -> IProtocol | None:
        """The protocol for who comes from there, if there is room. One that wraps nothing means that there is none."""
        protocol: IProtocol | None = self._factory.buildProtocol(addr)  # type: ignore[arg-type]  # a unix socket's may be None
        return None if getattr(protocol, "wrappedProtocol", protocol) is None else protocol

    def _renew(self) -> None:
        """Take other certificates, if the files are others; broken ones are named once, and the old ones stay."""
        source = self._plan.certificates
        if not isinstance(source, Directory) or abs(self.reactor.seconds() - self._looked) < LOOK:
            return
        self._looked = self.reactor.seconds()
        stamp: object = None
        try:
            stamp = source.stamp()
            if stamp != self._stamp:
                self.prepare(self._plan)()
                self._log.info("new certificates from {path}", path=str(source.path))
        except BadCertificate as error:
            if self._stamp != (stamp, str(error)):
                self._log.error("the certificates stay as they were: {error}", error=str(error))
            self._stamp = stamp, str(error)


@implementer(IHalfCloseableProtocol)
class Announced(ProtocolWrapper):
    """A connection that begins with a PROXY header, which must be here in full within the deadline of a request.

    Only then is anything behind it told of the connection, and that it comes from where the header says.
    """

    transport: ITCPTransport
    _alarm: IDelayedCall | None = None
    _peer: IAddress | None = None

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance
        self._begun = b""
        self.wrappedProtocol: IProtocol | None = None  # type: ignore[assignment]  # nothing is behind it at first

    def makeConnection(self, transport: ITransport) -> None:
        directlyProvides(self, providedBy(transport))
        Protocol.makeConnection(self, transport)
        limit = self._entrance.site.limits.request_deadline
        self._alarm = self._entrance.reactor.callLater(limit, self.end, "a PROXY header that took too long")
        self._entrance.unannounced[self] = None

    def dataReceived(self, data: bytes) -> None:
        if self.wrappedProtocol is not None:
            self.wrappedProtocol.dataReceived(data)
            return
        self._begun += data
        try:
            header = proxyheader.read(self._begun)
        except ValueError:
            self.end("a malformed PROXY header")
            return
        if header is not None:
            self._disarm()
            self._receive(header.source, self._begun[header.size :])

    def _receive(self, source: proxyheader.Source | None, rest: bytes) -> None:
        self._begun = b""
        self._peer = self.transport.getPeer() if source is None else _address(source)
        self.wrappedProtocol = self._entrance.receive(self._peer)
        if self.wrappedProtocol is None:
            self.transport.abortConnection()
            return
        self.wrappedProtocol.makeConnection(self)  # type: ignore[arg-type]  # it has all of a transport
        if rest:
            self.wrappedProtocol.dataReceived(rest)

    def end(self, why: str) -> None:
        """Cut it off, and count that for the log."""
        self._disarm()
        self._entrance.site.tally.note(f"closed: {why}")
        self.transport.abortConnection()

    def _disarm(self) -> None:
        self._entrance.unannounced.pop(self, None)
        if self._alarm is not None and self._alarm.active():
            self._alarm.cancel()
        self._alarm = None

    def getPeer(self) -> IAddress:
        return self.transport.getPeer() if self._peer is None else self._peer

    def readConnectionLost(self) -> None:
        behind = self.wrappedProtocol
        if isinstance(behind, GuardedChannel):
            behind.readConnectionLost()
        else:  # TLS is not closed by halves, though Twisted's protocol for it provides whatever its transport does
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Our own doing."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._disarm()
        behind, self.wrappedProtocol = self.wrappedProtocol, None
        if behind is not None:
            behind.connectionLost(reason)


def _address(source: proxyheader.Source) -> IAddress:
    kind = IPv4Address if source.address.version == 4 else IPv6Address
    return kind("TCP", str(source.address), source.port)
