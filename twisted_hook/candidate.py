"""Tries a server out where no user can reach it: on a private socket, before one like it gets the app's own.

Touches one process, from its start until nothing of its family is left, and the private socket. It never touches the
socket that users know, and what was tried out never serves them: it is ended, whatever came of it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from twisted_hook import leftovers, sockets
from twisted_hook.generation import SWEEP_INTERVAL, SWEEP_PATIENCE, Orders, how_it_ended
from twisted_hook.model import Launch, StepFailed
from twisted_hook.once import Once
from twisted_hook.process import CouldNotStart, Reactor, group_exists, held_back, let_begin, signal_group, spawn
from twisted_hook.questions import NoAnswer, Questions
from twisted_hook.serverlog import ServerLog

LISTENER, LIFELINE = 3, 4
"""The descriptors that a candidate inherits: the listening socket, systemd's first (sd_listen_fds(3)), and our word."""
GUNICORN_ON_TRIAL = ("--workers", "1", "--bind", f"fd://{LISTENER}")
"""Stands behind all other arguments, because gunicorn takes the last of a repeated option."""
REQUESTS = 3
"""How often the health path is asked, each time on a connection of its own."""
AFTERMATH = 0.2
"""Seconds that a candidate must outlive its answers: many a server dies of its first requests."""
STEADY = 2.0
"""Seconds that a candidate must live after it has accepted, where there is no health path to ask for."""
GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL. No user's request is inside."""
LOOK = 0.05
"""Seconds between two looks at whether a candidate accepts."""
WITNESS = 0.5
"""Seconds in which a broken connection may be explained by an exit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What is tried out, and what it must do."""

    argv: tuple[str, ...]
    """``{fd}`` in it stands for the number of the inherited listening socket."""
    env: Mapping[str, str]
    """The whole environment."""
    cwd: Path
    bind: str
    """The app's own address, as ``sockets.listen`` takes it."""
    log: Path
    """The file to which its output is appended."""
    records: Path
    """The directory in which commands are written down while they run (``leftovers``)."""
    health: str | None
    limit: float
    """Seconds until it must be ready (``health_timeout``)."""
    user: str | None = None
    """The account that it runs as, if not ours."""


class Candidate(ProcessProtocol):
    """A server on trial."""

    def __init__(self, reactor: Reactor, trial: Trial) -> None:
        self._reactor = reactor
        self._trial = trial
        self._log = ServerLog(trial.log)
        self._private = ExitStack()
        """The private socket, while anything of the family is left: gunicorn removes a unix socket when it ends."""
        self._verdict: Once[str | None] = Once()
        """It is ready (None), or what is wrong with it. The first word counts."""
        self.pid: int | None = None
        self.over: Once[str] = Once()
        """Its process has exited, and how."""
        self.swept: Once[None] = Once()
        """Nothing of its family is left."""

    async def try_out(self) -> float:
        """Start it, see that it is ready, and have it end; the seconds until it was ready. Raises ``StepFailed``.

        Ready is what has answered the health path three times with 2xx or 3xx, each time on a new connection, and
        is alive a moment later.

        Without a health path no request is made, because any path may do anything. Ready is then what has accepted a
        connection and lives two seconds later. A connection that was there before the server tells that without a
        word: as long as nobody has accepted it, the listening socket, which we hold too, is readable. uvicorn,
        hypercorn, daphne and gunicorn (27, asgi) accept only when they have loaded the app.

        The answer does not wait for the end, which goes on until ``swept``; but a cancelled caller gets its
        ``CancelledError`` only when nothing is left.
        """
        began = self._reactor.seconds()
        try:
            problem = await self._judge(self._private.enter_context(private_socket(self._trial.bind)))
        except (CouldNotStart, sockets.CannotListen, OSError) as error:
            problem = str(error)
        except CancelledError:
            self._end(grace=0.0)
            await self._until_swept()
            raise
        seconds = self._reactor.seconds() - began
        self._end(grace=GRACE)
        if problem is not None:
            raise StepFailed(f"the new server did not pass its trial: {problem}", tail=self._log.last_words())
        return seconds

    # What Twisted tells of it.

    def connectionMade(self) -> None:
        if self.transport is not None:
            self.pid = int(self.transport.pid)  # here, because it may have ended before spawnProcess returns

    def processExited(self, reason: Failure) -> None:
        if self.transport is not None:
            self.transport.closeChildFD(LIFELINE)
        how = how_it_ended(reason)
        self.over.happen(how)
        self._verdict.happen(f"it ended before it was ready: {how}")

    # How it is judged.

    async def _judge(self, listener: socket.socket) -> str | None:
        with ExitStack() as meanwhile:
            first = None if self._trial.health else meanwhile.enter_context(_first_connection(listener))
            self._start(listener)
            limit = self._reactor.callLater(self._trial.limit, self._too_slow)
            meanwhile.callback(_cancel, limit)
            proof = Deferred.fromCoroutine(self._settles(listener, limit) if first else self._answers(listener))
            proof.addCallback(self._verdict.happen)
            proof.addErrback(lambda failure: failure.trap(CancelledError))
            meanwhile.callback(proof.cancel)
            meanwhile.callback(self._verdict.happen, "nobody waits any more")
            return await self._verdict.wait()

    def _too_slow(self) -> None:
        self._verdict.happen(f"it was not ready after {self._trial.limit:g} s (health_timeout)")

    async def _answers(self, listener: socket.socket) -> str | None:
        questions = Questions(self._reactor, listener)
        for _ in range(REQUESTS):
            problem = await self._ask(questions, self._trial.health or "/")
            if problem is not None:
                return problem
        await deferLater(self._reactor, AFTERMATH)
        return None

    async def _ask(self, questions: Questions, path: str) -> str | None:
        try:
            status = await questions.status(path)
        except NoAnswer as reason:
            await self._until_exit()
            return f"{path} gave no complete answer: {reason}"
        return None if 200 <= status < 400 else f"{path} answered {status}"

    async def _until_exit(self) -> None:
        """An exit says more than the connection that it has broken, and comes a little later."""
        if not self._verdict.happened:  # a request that is given up has failed, too
            await deferLater(self._reactor, WITNESS)

    async def _settles(self, listener: socket.socket, limit: IDelayedCall) -> None:
        while _somebody_waits(listener):
            await deferLater(self._reactor, LOOK)
        limit.delay(STEADY)
        await deferLater(self._reactor, STEADY)

    # How it starts and ends.

    def _start(self, listener: socket.socket) -> None:
        trial = self._trial
        with ExitStack() as opened:
            null = os.open(os.devnull, os.O_RDONLY)
            opened.callback(os.close, null)
            log = self._log.open()
            opened.callback(os.close, log)
            argv = tuple(word.replace("{fd}", str(LISTENER)) for word in trial.argv)
            fds: dict[int, int | str] = {0: null, 1: log, 2: log, LISTENER: listener.fileno(), LIFELINE: "w"}
            spawn(
                self._reactor,
                self,
                argv=argv,
                env=trial.env,
                cwd=trial.cwd,
                fds=fds,
                user=trial.user,
                through=held_back(LIFELINE),
            )
        if self.pid is not None:
            with suppress(OSError):  # as with every command, a full disk is no reason not to run it
                leftovers.record(self._record(self.pid), self.pid)
        if self.transport is not None:
            let_begin(self.transport, LIFELINE)

    def _record(self, pid: int) -> Path:
        return self._trial.records / f"{pid}.pid"

    def _end(self, *, grace: float) -> None:
        if self.pid is not None and grace > 0:
            signal_group(self.pid, signal.SIGTERM)
        self._sweep(grace)

    def _sweep(self, left: float) -> None:
        """See its family gone; kill what is left of it when the ``left`` seconds are over."""
        gone = self.pid is None or (self.over.happened and not group_exists(self.pid))
        if gone or left < -SWEEP_PATIENCE:
            self._forget()
            return
        if self.pid is not None and left <= 0:
            signal_group(self.pid, signal.SIGKILL)  # again and again: in its first moments it has no group of its own
        self._reactor.callLater(SWEEP_INTERVAL, self._sweep, left - SWEEP_INTERVAL)

    def _forget(self) -> None:
        if self.pid is not None:
            self._record(self.pid).unlink(missing_ok=True)
        self._private.close()
        self.swept.happen(None)

    async def _until_swept(self) -> None:
        while not self.swept.happened:
            with suppress(CancelledError):  # again
                await self.swept.wait()


class Trials:
    """Tries one app's servers out, and knows which of them are still on their way out."""

    def __init__(self, reactor: Reactor, records: Path) -> None:
        """``records`` is the directory in which commands are written down while they run."""
        self._reactor = reactor
        self._records = records
        self._there: set[Candidate] = set()

    async def try_out(self, orders: Orders) -> float:
        """As ``Candidate.try_out``, for a server that is to be started by these orders."""
        candidate = Candidate(self._reactor, self._trial(orders))
        self._there.add(candidate)
        candidate.swept.wait().addCallback(lambda _: self._there.discard(candidate))
        return await candidate.try_out()

    async def over(self) -> None:
        """Wait until nothing is left of any."""
        for candidate in list(self._there):
            await candidate.swept.wait()

    def _trial(self, orders: Orders) -> Trial:
        *words, app = orders.argv
        return Trial(
            argv=(*words, *GUNICORN_ON_TRIAL, app) if orders.gated else orders.argv,
            env=ungated(orders.launch) if orders.gated else orders.launch.env,
            cwd=orders.launch.tree.path,
            bind=orders.bind,
            log=orders.log,
            records=self._records,
            health=orders.health,
            limit=orders.boot_limit,
            user=orders.user,
        )


def ungated(launch: Launch) -> dict[str, str]:
    """The environment of a gunicorn on trial: ``gate.py`` then only takes back what would break supervision."""
    user = launch.tree.path / "gunicorn.conf.py"
    orders = {"gated": False, "errors": 0, "user_configuration": str(user) if user.is_file() else None}
    env = {name: value for name, value in launch.env.items() if name != "GUNICORN_CMD_ARGS"}
    return {**env, "HOOKDEPLOY_GATE": json.dumps(orders)}


@contextmanager
def private_socket(bind: str) -> Iterator[socket.socket]:
    """A listening socket of the same family as ``bind``, that nobody knows. Raises ``CannotListen``.

    The same, because a server may take any descriptor for that of a TCP socket (``daphne --fd``), and because on a unix
    socket an app finds no address of its client. A port of the loopback device can be found by those who have an
    account on this machine; nobody's proxy leads there.
    """
    if not bind.startswith("unix:"):
        with sockets.listen("[::1]:0" if bind.startswith("[") else "127.0.0.1:0") as listener:
            yield listener
        return
    # Not in the state directory, whose path may be too long for a socket.
    with (
        tempfile.TemporaryDirectory(prefix="hookdeploy-", ignore_cleanup_errors=True) as directory,
        sockets.listen(f"unix:{directory}/socket") as listener,
    ):
        yield listener


@contextmanager
def _first_connection(listener: socket.socket) -> Iterator[socket.socket]:
    """A connection that waits in the listener's backlog, so that the listener is readable."""
    with socket.socket(listener.family, socket.SOCK_STREAM) as client:
        client.settimeout(WITNESS)
        client.connect(listener.getsockname())
        if not _somebody_waits(listener, WITNESS):  # the kernel completes a connection in its own time
            raise OSError("the private socket cannot be reached")
        yield client


def _somebody_waits(listener: socket.socket, patience: float = 0.0) -> bool:
    poll = select.poll()  # unlike select, for descriptors of any number
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(1000 * patience))


def _cancel(call: IDelayedCall) -> None:
    if call.active():
        call.cancel()
