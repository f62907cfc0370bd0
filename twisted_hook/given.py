"""The listening sockets that systemd has opened for us (sd_listen_fds(3)).

Touches inherited descriptors only. Those stay open at their numbers for as long as we live, so that they can be used
once more after a reload and be passed on when we execute ourselves again. It never shuts one down: they are systemd's.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

FIRST = 3
"""The number of the first descriptor that systemd gives (``SD_LISTEN_FDS_START``)."""
NOT_GIVEN = "systemd has given us no such socket (is it the .socket unit that starts us?)"


def is_given(description: str) -> bool:
    """Whether it is the endpoint of one of systemd's sockets."""
    return description.startswith("systemd:")


def copy_of(descriptor: int, family: int) -> socket.socket:
    """A descriptor of our own for a socket that was given. Raises ``ValueError`` if nobody could connect there."""
    os.set_inheritable(descriptor, False)
    listener = socket.socket(fileno=os.dup(descriptor))
    try:
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError("that socket does not listen (ListenStream= and Accept=no are what is wanted)")
        if listener.family != family:
            raise ValueError(f"that socket is of the domain {listener.family.name.removeprefix('AF_')}")
    except BaseException:
        listener.close()
        raise
    return listener


def pass_on(environ: MutableMapping[str, str]) -> None:
    """Have whoever this process becomes by executing itself find the sockets that it was given itself.

    Twisted takes ``LISTEN_PID`` and ``LISTEN_FDS`` out of the environment if they were meant for us, and leaves
    ``LISTEN_FDNAMES``, which names as many sockets.
    """
    names = environ.get("LISTEN_FDNAMES")
    if not names or "LISTEN_FDS" in environ:
        return
    count = len(names.split(":"))
    for descriptor in range(FIRST, FIRST + count):
        os.set_inheritable(descriptor, True)
    environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count))
