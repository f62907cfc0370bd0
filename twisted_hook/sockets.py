"""Binds the sockets on which apps are served.

Touches listening sockets only; who serves on them is not its affair.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from twisted_hook.addresses import LONGEST_SOCKET_PATH

BACKLOG = 2048


class CannotListen(Exception):
    """The address cannot be had; the text says which, and why."""


def listen(bind: str) -> socket.socket:
    """A listening socket for ``host:port``, ``[v6]:port`` or ``unix:/path``. Raises ``CannotListen``."""
    try:
        return _unix(Path(bind.removeprefix("unix:"))) if bind.startswith("unix:") else _tcp(bind)
    except OSError as error:
        raise CannotListen(f"cannot listen on {bind}: {error.strerror or error}") from error


def unix_address(path: Path) -> str:
    """What to bind or connect to for the socket at this path, however long the path is.

    A long one is spoken of through a descriptor of its directory, which stays open as long as this process lives.
    """
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        return str(path)
    return f"/proc/self/fd/{os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)}/{path.name}"


def _tcp(bind: str) -> socket.socket:
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    family, _, _, _, address = socket.getaddrinfo(
        host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    with _closed_on_error(listener):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Every connection inherits it. uvicorn takes an inherited socket for a unix one and would leave it out: its
        # answers on kept connections then take 44 ms instead of 2 (measured), the client's delayed acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
        _open(listener)
    return listener


def _unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _closed_on_error(listener):
        if _nobody_listens(path):
            path.unlink()
        listener.bind(str(path))
        path.chmod(0o666)  # as gunicorn does: the proxy in front of it runs as somebody else
        _open(listener)
    return listener


def _nobody_listens(path: Path) -> bool:
    """Whether the path is the socket of somebody who has gone. One who is only too busy to accept is still there."""
    if path.is_symlink() or not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(path)) == errno.ECONNREFUSED


def _open(listener: socket.socket) -> None:
    listener.listen(BACKLOG)
    listener.setblocking(False)  # shared by all who hold the socket: a worker must never hang in accept


@contextlib.contextmanager
def _closed_on_error(listener: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        listener.close()
        raise
