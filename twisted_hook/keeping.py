"""Speaks to the keeper, the process that holds the listening sockets while hookdeploy is not there.

Touches that process only. Calls are short messages on a unix socket and block for as long as it takes to answer one. If
the keeper is killed, a new one is started and given everything again: at once if it is watched, else at the next call.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from math import inf
from pathlib import Path

from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_hook.process import Reactor
from twisted_hook.sockets import unix_address

PROGRAM = Path(__file__).with_name("keeper.py")
PATIENCE = 20.0
"""Seconds that the keeper may take to start, or to answer; less than systemd's watchdog has for us."""
LOOK = 0.01
"""Seconds between two looks whether one that replaces another has started."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a keeper that keeps dying is replaced once more."""
STEADY = 300.0
"""Seconds after a death in which the next one is one too many."""
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
        self._starting: subprocess.Popen[bytes] | None = None
        """A keeper that was started and has not answered yet."""
        self._calling: socket.socket | None = None
        """Our call to that one."""
        self._watch: _Watch | None = None

    def reach(self) -> None:
        """Connect to the keeper, or start one. Raises ``NoKeeper``."""
        self._give_up_starting()  # it serves one client at a time, and that is our earlier call
        try:
            self._work_with(self._call())
        except OSError:  # there is none, or the one that took the call was already dying
            self._start()

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
        with suppress(NoKeeper):  # then nobody holds anything, and whoever comes is given these only
            self._do("keep only", *sorted(names))

    def watch(self, reactor: Reactor) -> None:
        """Replace it from now on as soon as it dies: if we died before its next call, nobody would hold the sockets."""
        self._watch = _Watch(reactor, start=self._launch, reached=self._reached)
        if self._connection is not None:
            self._watch.begin(self._connection)

    def leave(self) -> None:
        """Watch it no longer; it goes on holding what it holds."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def end(self) -> None:
        """Nobody needs it any more: the sockets close with it."""
        self.leave()
        self._give_up_starting()
        for name in list(self._held):
            os.close(self._held.pop(name))
        if self._connection is not None:
            with suppress(OSError):  # it has died before us
                self._connection.sendall(json.dumps({"do": "end"}).encode())
            self._connection.close()
            self._connection = None

    def _reached(self) -> bool:
        """Whether the one that was started answers by now; it is then given everything. Raises ``OSError``."""
        if self._calling is None or not _readable(self._calling):
            return False
        self._work_with(self._calling)
        return True

    def _work_with(self, call: socket.socket) -> None:
        if self._watch is not None:
            self._watch.stop()
        if self._connection is not None:
            self._connection.close()
        self._connection = call
        _answer(call)
        for name, listener in self._held.items():
            _ask(call, "hold", [name], listener)
        self._starting = self._calling = None
        if self._watch is not None:
            self._watch.begin(call)

    def _remember(self, name: str, listener: socket.socket) -> None:
        if name in self._held:
            os.close(self._held[name])
        self._held[name] = os.dup(listener.fileno())

    def _do(self, what: str, *names: str, listener: int | None = None) -> socket.socket | None:
        """Raises ``NoKeeper``."""
        if self._connection is None:
            raise NoKeeper("it was never reached")
        try:
            return _ask(self._connection, what, names, listener)
        except OSError:
            self._log.warn("the keeper of the sockets has died; a new one is started")
            self.reach()
        try:
            return _ask(self._connection, what, names, listener)
        except OSError as error:
            raise NoKeeper(f"the keeper of the sockets has died again: {error}") from error

    @cached_property
    def _address(self) -> str:
        """Asked for once, as it may cost a descriptor."""
        return unix_address(self._path)

    def _call(self) -> socket.socket:
        """A connection to it, with a first question: one that is dying may still take a call, but answers nothing."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(PATIENCE)
        try:
            connection.connect(self._address)
            _say(connection, "take", [])
        except OSError:
            connection.close()
            raise
        return connection

    def _start(self) -> None:
        """Start one, and give it everything. Raises ``NoKeeper``."""
        try:
            self._work_with(self._launch())
        except OSError as error:
            raise NoKeeper(f"the keeper of the sockets did not start: {error}") from error

    def _launch(self) -> socket.socket:
        """Start one, and do not wait for it; gives a call that it will answer. Raises ``NoKeeper``.

        Its door is made and called at here, before it runs. So it learns of our death however early that comes, and
        whoever is started after us finds it before it has begun.
        """
        self._give_up_starting()
        try:
            self._path.unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
                door.bind(self._address)
                self._path.chmod(0o600)
                door.listen(8)
                self._calling = self._call()
                self._starting = self._run(door)
        except OSError as error:
            self._give_up_starting()
            raise NoKeeper(f"the keeper of the sockets could not be started: {error}") from error
        return self._calling

    def _run(self, door: socket.socket) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(PROGRAM), str(self._path)],
            stdin=door.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            env={"INODE": str(self._path.stat().st_ino)},
        )

    def _give_up_starting(self) -> None:
        """There must not be two: the first would remove the name of the second when it ends."""
        if self._starting is not None:
            self._starting.kill()
            self._starting.wait()
            self._starting = None
        if self._calling is not None:
            self._calling.close()
            self._calling = None
            self._path.unlink(missing_ok=True)


@implementer(IReadDescriptor)
class _Watch:
    """Has a keeper that hangs up replaced, without waiting for it, and never in a hurry that would not end."""

    _log = Logger()

    def __init__(self, reactor: Reactor, *, start: Callable[[], object], reached: Callable[[], bool]) -> None:
        self._reactor = reactor
        self._start = start
        self._reached = reached
        self._connection: socket.socket | None = None
        self._timer: IDelayedCall | None = None
        self._last_death = -inf
        self._pause = 0.0

    def begin(self, connection: socket.socket) -> None:
        """This is the connection to look at."""
        self._connection = connection
        self._reactor.addReader(self)

    def stop(self) -> None:
        if self._connection is not None:
            self._reactor.removeReader(self)
            self._connection = None
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def logPrefix(self) -> str:
        return "keeper"

    def fileno(self) -> int:
        return -1 if self._connection is None else self._connection.fileno()

    def doRead(self) -> None:
        """The keeper says nothing without being asked: what there is to read is its end."""
        self._died("the keeper of the sockets has died")

    def connectionLost(self, reason: Failure) -> None:
        """The reactor ends; nothing is to be done about the keeper."""

    def _died(self, how: str) -> None:
        self.stop()
        now = self._reactor.seconds()
        again = now - self._last_death < STEADY
        self._pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * self._pause)) if again else 0.0
        self._last_death = now
        when = f"in {self._pause:g} s" if self._pause else "at once"
        self._log.warn("{how}; a new one is started {when}", how=how, when=when)
        self._timer = self._reactor.callLater(self._pause, self._replace)

    def _replace(self) -> None:
        try:
            self._start()
            self._look(self._reactor.seconds() + PATIENCE)
        except NoKeeper as error:
            self._died(str(error))

    def _look(self, deadline: float) -> None:
        try:
            if self._reached():
                self._log.info("a new keeper holds the sockets")
            elif self._reactor.seconds() < deadline:
                self._timer = self._reactor.callLater(LOOK, self._look, deadline)
            else:
                self._died(f"the keeper of the sockets did not start within {PATIENCE:g} s")
        except OSError:
            self._died("the keeper of the sockets has died while it was given them")


def _ask(
    connection: socket.socket, what: str, names: Sequence[str], listener: int | None = None
) -> socket.socket | None:
    """Ask the keeper one thing; the socket that it gave, if it gave one. Raises ``OSError`` if it has gone."""
    _say(connection, what, names, listener)
    return _answer(connection)


def _say(connection: socket.socket, what: str, names: Sequence[str], listener: int | None = None) -> None:
    given = [] if listener is None else [listener]
    socket.send_fds(connection, [json.dumps({"do": what, "names": names}).encode()], given)


def _answer(connection: socket.socket) -> socket.socket | None:
    answer, descriptors, _, _ = socket.recv_fds(connection, LONGEST, 1)
    if not answer:
        raise ConnectionResetError("the keeper hung up")
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptors[0]) if descriptors else None


def _readable(connection: socket.socket) -> bool:
    poll = select.poll()  # unlike select, for descriptors of any number
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))
