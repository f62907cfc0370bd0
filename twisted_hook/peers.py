"""Who sends a request: the other end of its connection, or the one for whom a trusted proxy there speaks.

Pure. It decides nothing by what it finds, and no bytes make it raise anything.

``X-Forwarded-For`` and ``Forwarded`` (RFC 7239) are lists to which each proxy appends whom it heard. So they are read
from the right, and only as far as the proxies are trusted: what stands further left, the sender may have written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address, ip_network
from itertools import islice

from twisted_hook.hooks import Address, Headers, Network

FORWARDING = (b"x-forwarded-for", b"forwarded")
HERE = IPv4Address("127.0.0.1")
MOST_HOPS = 32
"""How many proxies may stand in a row."""

_NODE = re.compile(rb"(?:([0-9.]{7,15})|\[([0-9A-Fa-f:.]{2,45})\])(?::[0-9]{1,5})?|([0-9A-Fa-f:.]{2,45})")
"""An IPv4 address, or an IPv6 one in brackets, each perhaps with a port; or an IPv6 one without either."""
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PAIR = rb'[ \t]*(%b)=(?:(%b)|"((?:[^"\\]|\\.)*)")[ \t]*' % (_TOKEN, _TOKEN)
_PAIRS = re.compile(_PAIR)
_ELEMENT = re.compile(rb"%b(?:;%b)*" % (_PAIR, _PAIR))


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose word on where a request comes from is believed."""

    networks: tuple[Network, ...] = ()
    unix: bool = False
    """Whoever connects to a unix socket."""

    @classmethod
    def in_words(cls, words: Sequence[str]) -> Trust:
        """From networks, e.g. ``127.0.0.1/32``, and the word ``unix``. Raises ``ValueError`` for any others."""
        return cls(tuple(ip_network(word) for word in words if word != "unix"), unix="unix" in words)

    def covers(self, address: Address | None) -> bool:
        """Whether who connects from there is trusted; None is the other end of a unix socket."""
        return self.unix if address is None else any(address in network for network in self.networks)


def connected_from(host: object) -> Address | None:
    """The address of the other end of a connection, as Twisted's ``host`` tells it; None for a unix socket's."""
    return _plain(ip_address(host)) if isinstance(host, str) else None


def senders_of(connected: Address | None, header: Headers, trust: Trust) -> set[Address | None]:
    """Who may have sent a request over a connection from there; None is a unix socket whose other end is not trusted.

    Two, if the two headers of a proxy disagree: proxies pass on the one that they do not set, and the sender may have
    forged it. A proxy whose word cannot be read stands for whomever it heard, and the trusted end of a unix socket for
    the loopback address: no address at all would be nothing to judge by.
    """
    if not trust.covers(connected):
        return {connected}
    nearest = connected or HERE
    return {_trace(nearest, name, lines, trust) for name in FORWARDING if (lines := header(name))} or {nearest}


def sender_of(connected: Address | None, senders: set[Address | None]) -> Address | None:
    """Who sends it, if that is certain; else the trusted one at the other end, who stands for those of that doubt."""
    return next(iter(senders)) if len(senders) == 1 else connected or HERE


def share_of(address: Address | None) -> bytes:
    """Tells one peer from another: an IPv4 address, or the /64 of an IPv6 one, which one machine owns whole."""
    if address is None:
        return b""
    return address.packed if isinstance(address, IPv4Address) else address.packed[:8]


def _trace(nearest: Address, name: bytes, lines: Sequence[bytes], trust: Trust) -> Address:
    """The first that is not trusted, or the last trusted one, who does not tell whom it heard."""
    read = _node if name == b"x-forwarded-for" else _forwarded
    for hop in islice(_hops(lines), MOST_HOPS):
        told = read(hop)
        if told is None:
            return nearest
        nearest = told
        if not trust.covers(nearest):
            return nearest
    return nearest


def _hops(lines: Sequence[bytes]) -> Iterator[bytes]:
    """What the proxies appended, the last one first. What is left of the hops that count stays in one piece.

    A comma in a quoted string parts too. No address has one, and read in this way a quote that the sender has opened
    cannot swallow what a proxy appends to it.
    """
    for line in reversed(lines):
        yield from reversed(line.rsplit(b",", MOST_HOPS))


def _forwarded(element: bytes) -> Address | None:
    """What an element of ``Forwarded`` names with ``for``; None where it names no address, or is malformed."""
    if not _ELEMENT.fullmatch(element):
        return None
    named = [token or quoted for name, token, quoted in _PAIRS.findall(element) if name.lower() == b"for"]
    return _node(re.sub(rb"\\(.)", rb"\1", named[0])) if len(named) == 1 else None


def _node(node: bytes) -> Address | None:
    found = _NODE.fullmatch(node.strip(b" \t"))
    if found is None:
        return None
    try:
        return _plain(ip_address(found[found.lastindex or 0].decode("ascii")))
    except ValueError:
        return None


def _plain(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, or the address itself."""
    return getattr(address, "ipv4_mapped", None) or address
