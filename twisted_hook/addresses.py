"""Where hookdeploy and its apps listen: Twisted's endpoint strings and ``bind``, read and compared as text.

Pure: nothing is listened on and no name is looked up; Twisted's own reading of an endpoint comes later.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from twisted_hook.configvalues import is_loopback, line, path, shown

LONGEST_SOCKET_PATH = 107  # bytes; sun_path of unix(7) has 108 with the final zero

_ENDPOINTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tcp": ("port", "interface", "backlog"),
        "tcp6": ("port", "backlog", "interface"),
        "unix": ("address", "mode", "backlog", "lockfile"),
        "ssl": ("port", "privateKey", "certKey", "sslmethod", "interface", "backlog", "extraCertChain", "dhParameters"),
        "tls": ("path", "port", "backlog", "interface"),
        "systemd": ("domain", "index", "name"),
    }
)
_CLAIMED = "haproxy:"
"""Before any other endpoint: each connection begins with the PROXY protocol, which claims where it comes from."""
_ENDPOINT_PATHS = frozenset({"address", "privateKey", "certKey", "extraCertChain", "dhParameters", "path"})


def _port(value: str) -> int | None:
    return int(value) if re.fullmatch(r"[0-9]{1,5}", value) and int(value) <= 65535 else None


def _split(value: str, separator: str, most: int = -1) -> list[str]:
    """Split where no backslash stands before the separator; the backslashes stay."""
    pieces = [""]
    letters = iter(value)
    for letter in letters:
        if letter == "\\":
            pieces[-1] += letter + next(letters, "")
        elif letter == separator and most != 0:
            pieces.append("")
            most -= 1
        else:
            pieces[-1] += letter
    return pieces


def endpoint_arguments(value: str) -> tuple[str, dict[str, str]]:
    """The kind of an endpoint and its arguments by name, as Twisted reads them."""
    kind, *pieces = _split(line(value), ":")
    names = _ENDPOINTS.get(kind)
    if names is None or not pieces:
        kinds = ", ".join((*(f"{known}:" for known in _ENDPOINTS), _CLAIMED))
        raise ValueError(f'must be a Twisted endpoint such as "tcp:8000" (one of {kinds}), not {shown(value)}')
    arguments: dict[str, str] = {}
    positions = iter(names)
    for piece in pieces:
        first, *rest = _split(piece, "=", most=1)
        key = first if rest else next(positions, None)
        if key is None:
            raise ValueError(f"has too many arguments for {kind}: {shown(value)}")
        if key not in names:
            raise ValueError(f"{kind}: knows no argument {shown(key)}; it knows {', '.join(names)}")
        arguments[key] = re.sub(r"\\(.)", r"\1", rest[0] if rest else first)
    return kind, arguments


def endpoint(value: str, start: Path) -> str:
    """A Twisted endpoint string of the right shape; its relative paths begin at ``start``."""
    if is_claimed(value):
        return _CLAIMED + endpoint(_inner(value), start)
    kind, arguments = endpoint_arguments(value)
    if kind in {"tcp", "tcp6", "ssl"} or "port" in arguments:
        if _port(arguments.get("port", "")) is None:
            raise ValueError(f'needs a port from 0 to 65535, as in "{kind}:8000": {shown(value)}')
    elif kind == "systemd" and ("domain" not in arguments or ("index" in arguments) == ("name" in arguments)):
        raise ValueError('must be like "systemd:domain=INET:index=0", with an index or a name')
    if kind in {"unix", "tls"} and not arguments.get("address", arguments.get("path")):
        raise ValueError(f'needs a path, as in "{kind}:/path": {shown(value)}')
    for key in _ENDPOINT_PATHS & arguments.keys():
        arguments[key] = str(start / arguments[key])
    if not _ENDPOINT_PATHS & arguments.keys():
        return value
    return ":".join((kind, *(f"{key}={_quoted(argument)}" for key, argument in arguments.items())))


def is_claimed(value: str) -> bool:
    """Whether who connects to this endpoint claims, by the PROXY protocol, where it comes from."""
    return value.startswith(_CLAIMED)


def _inner(value: str) -> str:
    """The endpoint without the PROXY protocol, which cannot be spoken twice."""
    return value.removeprefix(_CLAIMED)


def is_open_and_plain(value: str) -> bool:
    """Whether an endpoint without TLS may be reached from outside: it is on a public address, or on all there are."""
    address = endpoint_address(value)
    if address is None or _inner(value).partition(":")[0] not in ("tcp", "tcp6"):
        return False
    try:
        host = ipaddress.ip_address(address[0])
    except ValueError:  # all addresses, or a name that is not looked up here
        return True
    return ((host.ipv4_mapped if host.version == 6 else None) or host).is_global


def is_of_this_machine(value: str) -> bool:
    """Whether only programs of this machine reach an endpoint, and none that claims to speak for others."""
    if is_claimed(value):
        return False
    if value.startswith("unix:"):
        return True
    host, _ = endpoint_address(value) or ("", 0)
    return is_loopback(host)


def _quoted(argument: str) -> str:
    return re.sub(r"([\\:=])", r"\\\1", argument)


def bind(value: str, start: Path) -> str:
    """Where an app's server listens: ``host:port``, ``[v6]:port`` or ``unix:/path``."""
    if value.startswith("unix:"):
        socket_path = str(path(value.removeprefix("unix:"), start))
        if len(os.fsencode(socket_path)) > LONGEST_SOCKET_PATH:
            raise ValueError(f"is too long for a unix socket: {LONGEST_SOCKET_PATH} bytes at most")
        return f"unix:{socket_path}"
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):([0-9]+)", value)
    if match is None or not _is_host(match[1], match[2]):
        raise ValueError(f'must be like "127.0.0.1:8080", "[::1]:8080" or "unix:/path", not {shown(value)}')
    if _port(match[3]) is None:
        raise ValueError(f"needs a port from 0 to 65535: {shown(value)}")
    return value


def _is_host(v6: str | None, other: str | None) -> bool:
    try:
        if v6 is not None:
            ipaddress.IPv6Address(v6)
        elif re.fullmatch(r"[0-9.]+", other or ""):
            ipaddress.IPv4Address(other)
    except ValueError:
        return False
    return True


Address = tuple[str, int]
"""Host and port; the host is empty for all addresses of the machine."""


def bound_address(value: str) -> Address | None:
    """The address of a well formed ``bind`` on a network, or None."""
    host, _, port = value.rpartition(":")
    number = None if value.startswith("unix:") else _port(port)
    return None if number is None else (_plain_host(host.strip("[]")), number)


def endpoint_address(value: str) -> Address | None:
    """The address of a well formed endpoint on a network, or None."""
    try:
        kind, arguments = endpoint_arguments(_inner(value))
    except ValueError:
        return None
    number = _port(arguments.get("port", "443" if kind == "tls" else ""))
    return None if number is None else (_plain_host(arguments.get("interface", "")), number)


def web_address(value: str) -> str:
    """What to type into a browser on this machine for an endpoint; the endpoint itself where there is no such thing."""
    address = endpoint_address(value)
    if address is None or not address[1]:
        return value
    host, port = address[0] or "localhost", address[1]
    scheme = "https" if _inner(value).partition(":")[0] in ("ssl", "tls") else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/"


def _plain_host(host: str) -> str:
    return {"0.0.0.0": "", "::": "", "localhost": "127.0.0.1"}.get(host, host)  # noqa: S104 - recognised, not bound


def collide(one: Address, other: Address) -> bool:
    """Whether the two cannot both be listened on. Port 0 is a new port each time."""
    return one[1] == other[1] != 0 and (one[0] == other[0] or not one[0] or not other[0])
