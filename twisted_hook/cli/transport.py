"""The way of HTTP over a socket file."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx

from twisted_hook.sockets import unix_address


def over_socket(path: Path) -> httpx.HTTPTransport:
    """A transport to whoever listens there, however long the path is. Raises ``FileNotFoundError``
    if a long one has no directory.

    TLS is not spoken there, and to read all the world's certificates takes longer than to be answered.
    """
    return httpx.HTTPTransport(uds=unix_address(path), verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
