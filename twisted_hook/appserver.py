"""The server of one app: owns the listening socket, puts generations of gunicorn on it, and revives what dies.

Touches one app's server. It never lets go of the socket while it runs: between two generations connections wait in its
backlog. It never builds and never looks into git.
"""

from __future__ import annotations

import importlib.util
import re
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from twisted_hook import commands, serverrecords
from twisted_hook.adoption import AdoptedServer
from twisted_hook.boundaries import AppServer
from twisted_hook.config import AppConfig
from twisted_hook.generation import Orders, ServerProcess
from twisted_hook.model import Environment, Launch, Phase, ServerStatus, StepFailed
from twisted_hook.process import Reactor, signal_group

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
STEADY = 60.0
"""Seconds of service after which earlier deaths are forgiven."""
KEEPS_DYING = 5
"""Deaths in a row after which the log says so."""
GOOD_GUNICORN = (27, 0, 1)
"""Before it, gthread workers lose requests when they stop (benoitc/gunicorn#3821)."""
GATE = Path(__file__).with_name("gate.py")


class GunicornServer:
    """The gunicorn of one app."""

    _log = Logger()

    def __init__(
        self,
        reactor: Reactor,
        *,
        app: AppConfig,
        listener: socket.socket,
        records: Path,
        log: Path,
        now: Callable[[], float],
        shown: Callable[[str], str],
    ) -> None:
        """``shown`` makes text from outside fit for the log."""
        self._reactor = reactor
        self._app = app
        self._listener = listener
        self._abandoned: list[socket.socket] = []
        """Listeners that the running generation may still need."""
        self._records = records
        self._log_file = log
        self._now = now
        self._shown = shown
        self._turn = DeferredLock()  # two may want it: the lane, and a revival
        self._serving: ServerProcess | None = None
        self._launch: Launch | None = None
        self._alive: set[ServerProcess] = set()
        self._serving_since = 0.0
        self._deaths = 0
        self._revival: IDelayedCall | None = None
        self._stopping = False
        self.status = ServerStatus("down", now())

    @property
    def launch(self) -> Launch | None:
        """What serves, or is to serve again as soon as it can."""
        return self._launch

    def configure(self, app: AppConfig, listener: socket.socket) -> None:
        """What the next generation is started with; the running one is not touched."""
        self._app = app
        self._abandoned.append(self._listener)
        self._listener = listener

    async def swap(self, launch: Launch, entered: Callable[[Phase], None]) -> None:
        """Start a generation for ``launch``; when it serves, drain the one before it. Raises ``StepFailed``."""
        async with self._turn:
            self._cancel_revival()
            self._deaths = 0  # somebody has done something about it
            try:
                await self._replace(launch, entered)
            finally:
                if self._serving is None:
                    self._do_without()

    def adopt(self) -> Launch | None:
        """Take over what an earlier hookdeploy has left running; what it serves, if it serves.

        The newest that was let through its gate serves; older ones drain, as they were about to. One that was still at
        its gate has never met a request, and is killed.
        """
        for record in serverrecords.alive(self._records):
            if not serverrecords.gate_is_open(record.pid):
                signal_group(record.pid, signal.SIGKILL)
                serverrecords.forget(self._records, record.pid)  # nobody watches it
                continue
            try:
                server = AdoptedServer(self._reactor, self._as_recorded(record), record.pid)
            except ProcessLookupError:
                continue
            self._watch(server)
            if record.draining:
                server.drain()
            else:
                self._serve_with(server, record.launch)
                self._log.info("{app}: server {pid} serves on", app=self._app.name, pid=record.pid)
        return self._launch

    @property
    def outdated(self) -> bool:
        """Whether what serves was started otherwise than it would be started now."""
        if self._serving is None or self._launch is None:
            return True
        return not self._serving.was_started_by(self._orders(self._launch))

    async def start(self, launch: Launch) -> None:
        """Serve this, at once or as soon as it can be."""
        self._launch = launch
        await self._revive()

    def leave(self) -> None:
        """Leave whatever runs to the next hookdeploy."""
        self._stopping = True
        self._cancel_revival()
        self._close_listener()

    async def stop(self) -> None:
        """Drain whatever runs and close the socket; nothing is left when this returns."""
        self._stopping = True
        self._cancel_revival()
        for process in list(self._alive):
            process.drain()
        for process in list(self._alive):
            await process.swept.wait()
        self._close_listener()
        self._become("stopped")

    async def _replace(self, launch: Launch, entered: Callable[[Phase], None]) -> None:
        if self._stopping:
            raise StepFailed("hookdeploy is stopping")
        self._tell_source(launch.environment)
        candidate = ServerProcess(self._reactor, self._orders(launch), entered)
        self._watch(candidate)
        if self._serving is None:
            self._become("starting")
        candidate.start()
        await self._until_serving(candidate)
        self._serve_with(candidate, launch)
        self._close_abandoned()

    def _watch(self, process: ServerProcess) -> None:
        self._alive.add(process)
        process.over.wait().addCallback(self._ended, process)
        process.swept.wait().addCallback(lambda _: self._alive.discard(process))

    def _serve_with(self, process: ServerProcess, launch: Launch) -> None:
        old, self._serving, self._launch = self._serving, process, launch
        self._serving_since = self._reactor.seconds()
        self._become("serving", process)
        self._log.info(
            "{app}: serving {revision} on {bind}",
            app=self._app.name,
            revision=launch.tree.commit.revision[:7],
            bind=self._app.bind,
        )
        if old is not None:
            old.drain()

    def _do_without(self) -> None:
        """Nothing serves: go back to what has served, if there is such a thing."""
        if self._launch is not None:
            self._revive_later("the new one did not start either")
        elif not self._stopping:
            self._become("down", reason="the new server did not start")
            self._log.warn(
                "{app}: nothing is served on {bind} yet; connections wait", app=self._app.name, bind=self._app.bind
            )

    async def _until_serving(self, candidate: ServerProcess) -> None:
        try:
            problem = await candidate.ready.wait()
        except CancelledError:
            candidate.drain()
            raise
        if problem is None and candidate.over.happened:
            problem = "it ended as soon as it served"
        if problem is not None:
            raise StepFailed(f"the new server did not start: {problem}", tail=candidate.last_words())

    def _as_recorded(self, record: serverrecords.Record) -> Orders:
        return replace(self._orders(record.launch), argv=record.argv, bind=record.bind)

    def _orders(self, launch: Launch) -> Orders:
        app, environment = self._app, launch.environment
        return Orders(
            argv=commands.gunicorn(
                interpreter=environment.interpreter,
                borrowed_from=_our_gunicorn() if environment.directory and not environment.gunicorn else None,
                gate=GATE,
                name=app.name,
                workers=app.workers,
                graceful_timeout=app.drain,
                arguments=app.gunicorn,
                wsgi=app.wsgi or "",
            ),
            launch=launch,
            bind=app.bind,
            listener=self._listener,
            records=self._records,
            log=self._log_file,
            health=app.health,
            boot_limit=app.health_timeout,
            drain_limit=app.drain + 5,  # gunicorn's own graceful timeout strikes first
        )

    def _tell_source(self, environment: Environment) -> None:
        version = environment.gunicorn
        self._log.info(
            "{app}: gunicorn comes from {source}, Python is {interpreter}",
            app=self._app.name,
            source="hookdeploy" if version is None else f"the app's environment ({version})",
            interpreter=str(environment.interpreter),
        )
        if version is not None and tuple(int(part) for part in re.findall("[0-9]+", version)[:3]) < GOOD_GUNICORN:
            self._log.warn(
                "{app}: gunicorn {version} may lose requests at a swap; 27.0.1 and newer do not",
                app=self._app.name,
                version=version,
            )

    def _ended(self, how: str, process: ServerProcess) -> None:
        if process is not self._serving:
            return
        self._serving = None
        if self._stopping:
            return
        self._become("restarting", reason=how)
        served = self._reactor.seconds() - self._serving_since
        self._deaths = 1 if served >= STEADY else self._deaths + 1
        self._log.error(
            "{app}: the server ended by itself: {how}\n{words}",
            app=self._app.name,
            how=how,
            words=self._shown(process.last_words()),
        )
        if not self._turn.locked:
            self._revive_later(how)

    def _revive_later(self, reason: str) -> None:
        """The first death is answered at once; those that follow wait twice as long each time."""
        if self._stopping:
            return
        pause = 0.0 if self._deaths <= 1 else min(FIRST_PAUSE * 2 ** (self._deaths - 2), LONGEST_PAUSE)
        self._become("restarting", reason=reason)
        self._log.warn("{app}: the server starts again in {pause:g} s", app=self._app.name, pause=pause)
        if self._deaths >= KEEPS_DYING:
            self._log.error(
                "{app}: the server has died {deaths} times in a row; it needs a new commit or a person",
                app=self._app.name,
                deaths=self._deaths,
            )
        self._cancel_revival()
        self._revival = self._reactor.callLater(pause, self._start_revival)

    def _start_revival(self) -> None:
        Deferred.fromCoroutine(self._revive()).addErrback(
            lambda failure: self._log.failure("{app}: reviving the server", failure, app=self._app.name)
        )

    async def _revive(self) -> None:
        async with self._turn:
            if self._stopping or self._serving is not None or self._launch is None:
                return
            try:
                await self._replace(self._launch, lambda phase: None)
            except StepFailed as failed:
                self._deaths += 1
                self._log.error("{app}: {reason}", app=self._app.name, reason=self._shown(failed.reason))
                self._revive_later(failed.summary)

    def _close_listener(self) -> None:
        self._abandoned.append(self._listener)
        self._close_abandoned()

    def _close_abandoned(self) -> None:
        while self._abandoned:
            self._abandoned.pop().close()

    def _cancel_revival(self) -> None:
        if self._revival is not None and self._revival.active():
            self._revival.cancel()

    def _become(self, state: str, process: ServerProcess | None = None, *, reason: str = "") -> None:
        self.status = ServerStatus(
            state, self._now(), pid=process.pid if process else None, deaths=self._deaths, reason=reason
        )


def _our_gunicorn() -> Path:
    found = importlib.util.find_spec("gunicorn")
    if found is None or found.origin is None:  # it is a dependency of ours: the installation is broken
        raise StepFailed("gunicorn is not installed, neither in the app's environment nor beside hookdeploy")
    return Path(found.origin).parent.parent


_: type[AppServer] = GunicornServer
