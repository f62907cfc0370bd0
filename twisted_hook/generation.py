"""One generation of an app's server: one gunicorn master, or one other program, in a session of its own.

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
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_hook import polling, serverrecords, supervision
from twisted_hook.leftovers import start_time
from twisted_hook.model import Launch, Phase
from twisted_hook.once import Once
from twisted_hook.process import CouldNotStart, Reactor, group_exists, held_back, let_begin, signal_group, spawn
from twisted_hook.redaction import clean
from twisted_hook.serverlog import ServerLog
from twisted_hook.serverrecords import State
from twisted_hook.sockets import BACKLOG

LISTENER, REPORTS, LIFELINE, GATE = 3, 4, 5, serverrecords.GATE
"""The descriptors that a generation inherits; ``gate.py`` knows the same numbers."""
LONGEST_REPORT = 64 * 1024
SHOWN_REPORT = 200
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
    asks_as: str
    """The User-Agent under which we ask for its health while it serves."""
    errors: int
    """How many answers of 500 and above each worker reports; more would be of no use to anybody."""
    user: str | None = None
    """The account that it runs as, if not ours."""
    gated: bool = True
    """It is a gunicorn under ``gate.py``. Any other program has the listening socket, and tells us nothing."""
    settle: float = 2.0
    """Seconds after which one without a gate, of which we cannot see that it waits for connections, must do so."""
    to_be_proven: bool = False
    """Another one serves beside it until it is chosen: it ends by itself if we die before that."""


class ServerProcess(ProcessProtocol):
    """A gunicorn master, or the program that serves in its place: the hands of its ``supervision.Life``."""

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
        self._output = ServerLog(orders.log)
        self._retired: set[int] = set()
        """Workers that end by themselves and in order, such as after gunicorn's ``max_requests``."""
        self._patience = orders.drain_limit
        self._look: IDelayedCall | None = None
        self.pid: int | None = None
        self.ready: Once[str | None] = Once()
        """It serves (None), or it failed (why)."""
        self.judged: Once[str | None] = Once()
        """Its probation is over: it is proven (None), or found wanting (why)."""
        self.over: Once[str] = Once()
        """Its process has exited, and how."""
        self.swept: Once[None] = Once()
        """Nothing of its family is left."""

    # What its owner asks of it.

    def start(self) -> None:
        """Start it. Never raises: what cannot start has failed."""
        if self._orders.gated:
            self._life.spawned()
        else:
            self._life.spawned_without_gate()
        self._entered(Phase.STARTING)
        try:
            self._spawn()
            self._write_record(State.CANDIDATE)
        except (CouldNotStart, OSError) as error:
            self._life.unfit(str(error))
            if self.pid is None:
                self._end("it never ran")
                self._sweep(0.0)
        else:
            if not self._orders.gated:
                self._wake()
                self._entered(Phase.SWAPPING)
                listener = os.fstat(self._orders.listener.fileno()).st_ino
                self._look_for_service(listener, self._reactor.seconds() + self._orders.settle)

    @property
    def release(self) -> str:
        return self._orders.launch.tree.release

    def watch(self, terms: supervision.Terms) -> None:
        """Put it, which serves, on probation; ``judged`` tells how that ends."""
        with suppress(OSError):  # to the next hookdeploy it says no more than that this one was never chosen
            self._write_record(State.PROBATION)
        self._life.watch(terms)

    def end_probation(self) -> None:
        """It has proven itself, because it is needed now."""
        self._life.watched_enough()

    def chosen(self) -> None:
        """Have it on disk that this is the one that serves. Raises ``OSError``."""
        if self._gate is not None and not self._gate.closed:
            self._gate.write(b", chosen")  # before the record: who is recorded to serve must not end if we die now
        self._write_record(State.SERVING)

    def drain(self) -> None:
        """Let it finish its requests and end; within the drain limit it is gone."""
        self._life.drain()

    def was_started_by(self, orders: Orders) -> bool:
        """Whether these orders would start it as it was started."""
        mine = self._orders
        return (mine.argv, mine.bind, mine.user) == (orders.argv, orders.bind, orders.user)

    def last_words(self) -> str:
        """The last lines that it wrote."""
        return self._output.last_words()

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
        self._end(how_it_ended(reason))

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
            self._write_record(State.DRAINING)
        self._signal("TERM")

    def kill(self) -> None:
        self._patience = 0.0
        with suppress(OSError):
            self._write_record(State.DRAINING)  # else the next hookdeploy, if it comes at once, may take it for good
        if self.pid is not None:
            signal_group(self.pid, signal.SIGKILL)
            self._signal("KILL")  # in its first moments it has no group of its own yet

    def checking(self) -> None:
        self._entered(Phase.CHECKING)

    def serving(self) -> None:
        self.ready.happen(None)

    def failed(self, reason: str) -> None:
        self.ready.happen(reason)

    def proven(self) -> None:
        self.judged.happen(None)

    def wanting(self, reason: str) -> None:
        self.judged.happen(reason)

    def gone(self, how: str) -> None:
        self.over.happen(how)

    # How it is done.

    def _spawn(self) -> None:
        orders = self._orders
        with ExitStack() as opened:
            null = os.open(os.devnull, os.O_RDONLY)
            opened.callback(os.close, null)
            log = self._output.open()
            opened.callback(os.close, log)
            fds: dict[int, int | str] = {0: null, 1: log, 2: log, LISTENER: orders.listener.fileno()}
            through: tuple[str, ...] = ()
            if orders.gated:
                # Without a name: nothing stale can open it, and workers that have become another user may look at it.
                self._gate = os.fdopen(os.memfd_create(serverrecords.GATE_NAME), "wb", buffering=0)
                fds |= {REPORTS: "r", LIFELINE: "w", GATE: self._gate.fileno()}
            else:
                # Nobody would find it if we died before it is written down.
                through = held_back(LIFELINE)
                fds |= {LIFELINE: "w"}
            spawn(
                self._reactor,
                self,
                argv=orders.argv,
                env=self._env(),
                cwd=orders.launch.tree.path,
                fds=fds,
                user=orders.user,
                through=through,
            )

    def _look_for_service(self, listener: int, settled_at: float) -> None:
        """Have it serve as soon as it waits for connections, or can be believed to."""
        if self.pid is None or self.ready.happened or self.over.happened:
            return
        if self._reactor.seconds() >= settled_at or polling.waits_for(self.pid, listener):
            self._accepts(self.pid)
        else:
            self._look = self._reactor.callLater(polling.LOOK, self._look_for_service, listener, settled_at)

    def _accepts(self, pid: int) -> None:
        with suppress(OSError):  # we have let go of the socket
            self._orders.listener.listen(BACKLOG)  # asyncio has just called listen(100) on it, for all who share it
        self._life.worker_booted(pid)

    def _wake(self) -> None:
        """Have every worker look at the gate now, or a program begin: a line on the lifeline.

        No worker reads it.
        """
        if self.transport is not None:
            let_begin(self.transport, LIFELINE)

    def _env(self) -> dict[str, str]:
        """gunicorn believes its variable more than its configuration file, so it does not get it."""
        if not self._orders.gated:
            return dict(self._orders.launch.env)
        env = {name: value for name, value in self._orders.launch.env.items() if name != "GUNICORN_CMD_ARGS"}
        return {**env, "HOOKDEPLOY_GATE": self._gate_orders()}

    def _signal(self, name: str) -> None:
        if self.transport is not None:
            with suppress(ProcessExitedAlready):
                self.transport.signalProcess(name)

    def _end(self, how: str) -> None:
        if self._gate is not None:
            self._gate.close()
        if self._look is not None and self._look.active():
            self._look.cancel()
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

    def _write_record(self, state: State) -> None:
        orders = self._orders
        if self.pid is None or (started := start_time(self.pid)) is None:
            return
        record = serverrecords.Record(self.pid, started, orders.argv, orders.bind, orders.launch, state, orders.user)
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
            case {"event": "not loaded", "pid": int(pid), "problem": str(problem)}:
                self._life.worker_not_loaded(pid, clean(problem))
            case {"event": "booted", "pid": int(pid)}:
                self._accepts(pid)
            case {"event": "retires", "pid": int(pid)}:
                self._retired.add(pid)
            case {"event": "worker_exited", "pid": int(pid)}:
                self._worker_exited(pid)
            case {"event": "error"}:
                self._life.error_answered()
            case _:
                shown = str(said)[:SHOWN_REPORT]
                self._log.warn("an unknown report came from server {pid}: {said!r}", pid=self.pid, said=shown)

    def _worker_exited(self, pid: int) -> None:
        """One that retires is replaced by gunicorn, and no harm is done; but before it has served it must not."""
        if pid in self._retired and self.ready.happened:
            self._retired.discard(pid)
        else:
            self._life.worker_exited(pid)

    def _gate_orders(self) -> str:
        user = self._orders.launch.tree.path / "gunicorn.conf.py"
        return json.dumps(
            {
                "health": self._orders.health,
                "asks_as": self._orders.asks_as,
                "errors": self._orders.errors,
                "to_be_proven": self._orders.to_be_proven,
                "user_configuration": str(user) if user.is_file() else None,
            }
        )


def how_it_ended(reason: Failure) -> str:
    """A process's end in a few words."""
    ended = reason.value
    if isinstance(ended, ProcessTerminated):
        return f"signal {ended.signal}" if ended.signal is not None else f"exit {ended.exitCode}"
    return "exit 0"
