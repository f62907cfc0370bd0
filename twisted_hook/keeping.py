"""Speaks to the keeper, the process that holds the listening sockets while hookdeploy is not there.

Touches that process only. Calls are short messages on a unix socket and block for as long as it takes to answer one. If
the keeper is killed, a new one is started and given everything again.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from twisted.logger import Logger

from twisted_hook.sockets import unix_address

PROGRAM = Path(__file__).with_name("keeper.py")
PATIENCE = 5.0
"""Seconds that the keeper may take to start, or to answer."""
LONGEST = 65536


class NoKeeper(Exception):
    """There is no keeper, and none could be started."""


class Keeper:
    """The keeper of one state directory. Whoever calls holds that directory's lock."""

    _log = Logger()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: socket.socket | None = None
        self._held: dict[str, int] = {}
        """Descriptors of what a new keeper would be given.

        No socket objects: to duplicate one of those sets the mode of the socket itself, which all who hold it share.
        """

    def reach(self) -> None:
        """Connect to the keeper, or start one. Raises ``NoKeeper``."""
        try:
            self._work_with(self._connect() or self._start())
        except OSError:  # the one that answered the call was already dying
            self._work_with(self._start())

    def take(self, name: str) -> socket.socket | None:
        """A copy of the listening socket that is held under this name, if there is one."""
        listener = self._do("take", name)
        if listener is not None:
            listener.setblocking(False)
            self._remember(name, listener)
        return listener

    def hold(self, name: str, listener: socket.socket) -> None:
        """Hold a listening socket from now on."""
        self._remember(name, listener)
        self._do("hold", name, listener=listener.fileno())

    def keep_only(self, names: set[str]) -> None:
        """Let go of every socket but these."""
        for name in self._held.keys() - names:
            os.close(self._held.pop(name))
        self._do("keep only", *sorted(names))

    def end(self) -> None:
        """Nobody needs it any more: the sockets close with it."""
        for name in list(self._held):
            os.close(self._held.pop(name))
        if self._connection is not None:
            with suppress(OSError):  # it has died before us
                self._connection.sendall(json.dumps({"do": "end"}).encode())
            self._connection.close()
            self._connection = None

    def _work_with(self, connection: socket.socket) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = connection
        for name, listener in self._held.items():
            _ask(connection, "hold", [name], listener)

    def _remember(self, name: str, listener: socket.socket) -> None:
        if name in self._held:
            os.close(self._held[name])
        self._held[name] = os.dup(listener.fileno())

    def _do(self, what: str, *names: str, listener: int | None = None) -> socket.socket | None:
        if self._connection is None:
            raise NoKeeper("it was never reached")
        try:
            return _ask(self._connection, what, names, listener)
        except OSError:
            self._log.warn("the keeper of the sockets has died; a new one is started")
            self.reach()
            return _ask(self._connection, what, names, listener)

    def _connect(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(PATIENCE)
        try:
            connection.connect(unix_address(self._path))
        except OSError:
            connection.close()
            return None
        return connection

    def _start(self) -> socket.socket:
        self._path.unlink(missing_ok=True)
        subprocess.Popen(
            [sys.executable, "-I", "-S", str(PROGRAM), str(self._path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            env={},
        )
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            connection = self._connect()
            if connection is not None:
                return connection
            time.sleep(0.01)
        raise NoKeeper(f"the keeper of the sockets did not start within {PATIENCE:g} s")


def _ask(
    connection: socket.socket, what: str, names: Sequence[str], listener: int | None = None
) -> socket.socket | None:
    """Ask the keeper one thing; the socket that it gave, if it gave one. Raises ``OSError`` if it has gone."""
    given = [] if listener is None else [listener]
    socket.send_fds(connection, [json.dumps({"do": what, "names": names}).encode()], given)
    answer, descriptors, _, _ = socket.recv_fds(connection, LONGEST, 1)
    if not answer:
        raise ConnectionResetError("the keeper hung up")
    return socket.socket(fileno=descriptors[0]) if descriptors else None
