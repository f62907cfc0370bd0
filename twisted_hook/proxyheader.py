"""The PROXY protocol, versions 1 and 2: what a proxy says of its client before it passes on what the client says.

Pure, and total: any bytes give a header, the wish for more, or ``ValueError``. The rules are those of HAProxy's
``doc/proxy-protocol.txt``. Twisted's own reader (26.10) takes any text for an address, and some bytes make it raise
``KeyError``; a header whose first bytes come one by one it refuses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address
from types import MappingProxyType

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
"""How version 2 begins."""
FIRST_WORD = b"PROXY "
"""How version 1 begins."""
LONGEST_LINE = 107
"""Bytes of version 1, its end included."""
LONGEST = 4096
"""Bytes of version 2 with all that it may tell; more than 536 is rare, as it may then come in pieces."""
_FIXED = 16
_PORT = re.compile("0|[1-9][0-9]{0,4}")

Address = IPv4Address | IPv6Address
_LINE_FAMILIES: Mapping[str, type[Address]] = MappingProxyType({"TCP4": IPv4Address, "TCP6": IPv6Address})
_LENGTHS = MappingProxyType({0x11: 4, 0x21: 16})
"""Bytes of an address over TCP, by its family and protocol."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a connection comes from."""

    address: Address
    port: int


@dataclass(frozen=True, slots=True)
class Header:
    """What was said, and how many bytes it took."""

    source: Source | None
    """None where the proxy speaks for itself, or for nobody who has an address."""
    size: int


def read(data: bytes) -> Header | None:
    """The header at the beginning of these bytes; None if it is not here in full. Raises ``ValueError``."""
    if data.startswith(SIGNATURE[: len(data)]):
        return _binary(data)
    if data.startswith(FIRST_WORD[: len(data)]):
        return _line(data)
    raise ValueError("no PROXY header")


def _line(data: bytes) -> Header | None:
    end = data.find(b"\r\n", 0, LONGEST_LINE)
    if end < 0:
        if len(data) >= LONGEST_LINE:
            raise ValueError("an overlong line")
        return None
    kind, *rest = data[len(FIRST_WORD) : end].decode("ascii").split(" ")
    if kind == "UNKNOWN":
        return Header(None, end + 2)
    family = _LINE_FAMILIES.get(kind)
    if family is None or len(rest) != 4:
        raise ValueError("a malformed line")
    source, destination = family(rest[0]), family(rest[1])
    if "%" in f"{source}{destination}":
        raise AddressValueError("a scope")
    ports = [_port(word) for word in rest[2:]]
    return Header(Source(source, ports[0]), end + 2)


def _port(word: str) -> int:
    if not _PORT.fullmatch(word) or int(word) > 65535:
        raise ValueError("no port")
    return int(word)


def _binary(data: bytes) -> Header | None:
    if len(data) < _FIXED:
        return None
    version, command = divmod(data[12], 16)
    size = _FIXED + int.from_bytes(data[14:_FIXED])
    if version != 2 or command > 1 or size > LONGEST:
        raise ValueError("a malformed header")
    if len(data) < size:
        return None
    return Header(_stream_source(data[13], data[_FIXED:size]) if command else None, size)


def _stream_source(kind: int, addresses: bytes) -> Source | None:
    """The first of the two addresses. What follows them is for those who want more."""
    if kind in (0x00, 0x31):  # unspecified, and a unix socket's
        return None
    length = _LENGTHS.get(kind)
    if length is None or len(addresses) < 2 * length + 4:
        raise ValueError("a foreign or incomplete address")
    return Source(ip_address(addresses[:length]), int.from_bytes(addresses[2 * length : 2 * length + 2]))
