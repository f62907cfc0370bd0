"""One generation of an app's server: one gunicorn master in a session of its own, and what is known of it.

Touches that one process. Whether it may serve is decided by the machine in ``supervision``, whose hands this is.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from twisted.internet.error import ProcessExitedAlready, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_hook import serverrecords, supervision
from twisted_hook.leftovers import start_time
from twisted_hook.model import Launch, Phase
from twisted_hook.once import Once
from twisted_hook.process import CouldNotStart, Reactor, group_exists, last_lines, signal_group, spawn
from twisted_hook.redaction import clean
from twisted_hook.sockets import BACKLOG

LISTENER, REPORTS, LIFELINE, GATE = 3, 4, 5, serverrecords.GATE
"""The descriptors that a generation inherits; ``gate.py`` knows the same numbers."""
LONGEST_REPORT = 64 * 1024
SHOWN_REPORT = 200
LOG_CAP = 10 * 1024 * 1024
LOG_TAIL = 16 * 1024
SWEEP_INTERVAL = 0.05
SWEEP_PATIENCE = 5.0
"""Seconds after SIGKILL: in a container without an init a zombie is never reaped, and nothing more can be done."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What a generation is started with."""

    argv: tuple[str, ...]
    launch: Launch
    bind: str
    listener: socket.socket
    records: Path
    """The directory in which running servers are written down."""
    log: Path
    """The file to which the server's output is appended; a pipe of ours would block it when we are gone."""
    health: str | None
    boot_limit: float
    drain_limit: float


class ServerProcess(ProcessProtocol):
    """A gunicorn master: the hands of its ``supervision.Life``."""

    _log = Logger()

    def __init__(
        self,
        reactor: Reactor,
        orders: Orders,
        entered: Callable[[Phase], None],
        *,
        state: supervision.State = supervision.new,
    ) -> None:
        self._reactor = reactor
        self._orders = orders
        self._entered = entered
        self._gate: IO[bytes] | None = None
        self._life = supervision.live(
            supervision.Generation(self, reactor, boot_limit=orders.boot_limit, drain_limit=orders.drain_limit), state
        )
        self._unread = b""
        self._log_start = 0
        self._patience = orders.drain_limit
        self.pid: int | None = None
        self.ready: Once[str | None] = Once()
        """It serves (None), or it failed (why)."""
        self.over: Once[str] = Once()
        """Its process has exited, and how."""
        self.swept: Once[None] = Once()
        """Nothing of its family is left."""

    # What its owner asks of it.

    def start(self) -> None:
        """Start gunicorn. Never raises: what cannot start has failed."""
        self._life.spawned()
        self._entered(Phase.STARTING)
        try:
            self._spawn()
            self._write_record()
        except (CouldNotStart, OSError) as error:
            self._life.unfit(str(error))
            if self.pid is None:
                self._end("it never ran")
                self._sweep(0.0)

    def drain(self) -> None:
        """Let it finish its requests and end; within the drain limit it is gone."""
        self._life.drain()

    def was_started_by(self, orders: Orders) -> bool:
        """Whether these orders would start it as it was started."""
        return (self._orders.argv, self._orders.bind) == (orders.argv, orders.bind)

    def last_words(self) -> str:
        """The last lines that it wrote."""
        try:
            with self._orders.log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = self._log_start if self._log_start <= size else 0  # somebody has cut it off
                file.seek(max(start, size - LOG_TAIL))
                return last_lines(file.read())
        except OSError:  # somebody has taken it away
            return ""

    # What Twisted tells of it.

    def connectionMade(self) -> None:
        if self.transport is not None:
            self.pid = int(self.transport.pid)  # here, because it may have ended before spawnProcess returns

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        *lines, self._unread = (self._unread + data).split(b"\n")
        self._unread = self._unread[-LONGEST_REPORT:]
        for line in lines:
            self._read(line)

    def processExited(self, reason: Failure) -> None:
        if self.transport is not None:
            for ours in (REPORTS, LIFELINE):  # loseConnection() closes 0, 1 and 2 only
                self.transport.closeChildFD(ours)
        self._end(_how(reason))

    def processEnded(self, reason: Failure) -> None:
        """Our ends of its pipes are closed too; it may still have children."""
        self._sweep(self._patience)

    # What its machine decides.

    def open_gate(self) -> None:
        self._entered(Phase.SWAPPING)
        if self._gate is not None:
            self._gate.write(b"open")
            self._wake()

    def terminate(self) -> None:
        with suppress(OSError):  # a full disk must not keep it from draining
            self._write_record(draining=True)
        self._signal("TERM")

    def kill(self) -> None:
        self._patience = 0.0
        if self.pid is not None:
            signal_group(self.pid, signal.SIGKILL)
            self._signal("KILL")  # in its first moments it has no group of its own yet

    def checking(self) -> None:
        self._entered(Phase.CHECKING)

    def serving(self) -> None:
        # asyncio, under gunicorn's asgi worker, calls listen(100) on the shared socket; if it does so later, it wins.
        self._orders.listener.listen(BACKLOG)
        self.ready.happen(None)

    def failed(self, reason: str) -> None:
        self.ready.happen(reason)

    def gone(self, how: str) -> None:
        self.over.happen(how)

    # How it is done.

    def _spawn(self) -> None:
        orders = self._orders
        with ExitStack() as opened:
            null = os.open(os.devnull, os.O_RDONLY)
            opened.callback(os.close, null)
            log = self._open_log()
            opened.callback(os.close, log)
            # Without a name: nothing stale can open it, and workers that have become another user may look at it.
            self._gate = os.fdopen(os.memfd_create("gate"), "wb", buffering=0)
            fds: dict[int, int | str] = {0: null, 1: log, 2: log, REPORTS: "r", LIFELINE: "w"}
            fds |= {LISTENER: orders.listener.fileno(), GATE: self._gate.fileno()}
            spawn(self._reactor, self, argv=orders.argv, env=self._env(), cwd=orders.launch.tree.path, fds=fds)

    def _wake(self) -> None:
        """Have every worker look at the gate now: a byte on the lifeline, which none of them reads."""
        if self.transport is not None:
            with suppress(KeyError):  # it has just died, and the pipe with it
                self.transport.writeToChild(LIFELINE, b"!")

    def _env(self) -> dict[str, str]:
        """gunicorn believes its variable more than its configuration file, so it does not get it."""
        env = {name: value for name, value in self._orders.launch.env.items() if name != "GUNICORN_CMD_ARGS"}
        return {**env, "HOOKDEPLOY_GATE": self._gate_orders()}

    def _signal(self, name: str) -> None:
        if self.transport is not None:
            with suppress(ProcessExitedAlready):
                self.transport.signalProcess(name)

    def _end(self, how: str) -> None:
        if self._gate is not None:
            self._gate.close()
        self._life.exited(how)
        if self.pid is not None:
            signal_group(self.pid, signal.SIGTERM)

    def _sweep(self, left: float) -> None:
        """Workers that outlive a killed master may finish their requests, for the ``left`` seconds."""
        if self.pid is None or not group_exists(self.pid) or left < -SWEEP_PATIENCE:
            if self.pid is not None:
                serverrecords.forget(self._orders.records, self.pid)
            self.swept.happen(None)
            return
        if left <= 0:
            signal_group(self.pid, signal.SIGKILL)
        self._reactor.callLater(SWEEP_INTERVAL, self._sweep, left - SWEEP_INTERVAL)

    def _write_record(self, *, draining: bool = False) -> None:
        orders = self._orders
        if self.pid is None or (started := start_time(self.pid)) is None:
            return
        record = serverrecords.Record(self.pid, started, orders.argv, orders.bind, orders.launch, draining)
        serverrecords.write(orders.records, record)

    def _read(self, line: bytes) -> None:
        try:
            said: object = json.loads(line)
        except (ValueError, RecursionError):
            said = line
        match said:
            case {"event": "starting", "workers": int(workers)}:
                self._life.starting(workers)
            case {"event": "checked", "pid": int(pid), "problem": str() | None as problem}:
                self._life.worker_checked(pid, problem and clean(problem))
            case {"event": "booted", "pid": int(pid)}:
                self._life.worker_booted(pid)
            case {"event": "worker_exited", "pid": int(pid)}:
                self._life.worker_exited(pid)
            case _:
                shown = str(said)[:SHOWN_REPORT]
                self._log.warn("an unknown report came from server {pid}: {said!r}", pid=self.pid, said=shown)

    def _gate_orders(self) -> str:
        user = self._orders.launch.tree.path / "gunicorn.conf.py"
        return json.dumps(
            {
                "health": self._orders.health,
                "user_configuration": str(user) if user.is_file() else None,
            }
        )

    def _open_log(self) -> int:
        path = self._orders.log
        if path.exists() and path.stat().st_size > LOG_CAP:
            path.replace(path.with_name(f"{path.name}.1"))
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._log_start = os.lseek(log, 0, os.SEEK_END)
        return log


def _how(reason: Failure) -> str:
    ended = reason.value
    if isinstance(ended, ProcessTerminated):
        return f"signal {ended.signal}" if ended.signal is not None else f"exit {ended.exitCode}"
    return "exit 0"
