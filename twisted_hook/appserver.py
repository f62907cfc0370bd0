"""The server of one app: owns the listening socket, puts generations of gunicorn on it, and revives what dies.

In gunicorn's place there may be any program that takes the socket.

Touches one app's server. It never lets go of the socket while it runs: between two generations connections wait in its
backlog. It never builds and never looks into git.
"""

from __future__ import annotations

import importlib.util
import re
import secrets
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_hook import commands, serverrecords
from twisted_hook.adoption import AdoptedServer
from twisted_hook.boundaries import AppServer
from twisted_hook.config import AppConfig
from twisted_hook.generation import LISTENER, Orders, ServerProcess
from twisted_hook.healthprobe import HealthProbe
from twisted_hook.model import Environment, Launch, Phase, ProbationFailed, ServerStatus, StepFailed
from twisted_hook.process import Reactor, signal_group
from twisted_hook.supervision import Terms

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
STEADY = 60.0
"""Seconds of service after which earlier deaths are forgiven."""
KEEPS_DYING = 5
"""Deaths in a row after which the log says so, and whoever wants to know is told."""
GOOD_GUNICORN = (27, 0, 1)
"""Before it, gthread workers lose requests when they stop (benoitc/gunicorn#3821)."""
SETTLE = 2.0
"""Seconds until a program that lives is believed to serve, where that cannot be seen; more after a longer trial."""
FOR_WSGI = frozenset({"sync", "gthread", "gevent", "gevent_wsgi", "gevent_pywsgi", "eventlet", "tornado"})
"""The names of gunicorn's own worker classes that are for WSGI apps."""
TryOut: TypeAlias = Callable[[Orders], Coroutine[Any, Any, float]]
"""Tries a server out where no user can reach it; the seconds until it was ready. Raises ``StepFailed``."""
GATE = Path(__file__).with_name("gate.py")


class SocketServer:
    """What serves one app, on a socket that outlives each of its generations."""

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
        changed: Callable[[], None] = lambda: None,
        drained: Callable[[float], None] = lambda seconds: None,
        gave_up: Callable[[str], None] = lambda reason: None,
        try_out: TryOut | None = None,
    ) -> None:
        """``shown`` makes text from outside fit for the log, and ``changed`` is told that the status is another.

        ``drained`` is told how many seconds a server needed to end in whose place another one serves.
        ``gave_up`` is told, with each death in a row from ``KEEPS_DYING`` on, why there is little hope; it is tried
        again all the same.
        ``try_out`` sees beforehand whether a server would do whose app cannot be asked at the gate.
        """
        self._reactor = reactor
        self._app = app
        self._listener = listener
        self._abandoned: list[tuple[str, socket.socket]] = []
        """Listeners that the running generation may still need, and where they listen."""
        self._records = records
        self._log_file = log
        self._now = now
        self._shown = shown
        self._changed = changed
        self._drained = drained
        self._gave_up = gave_up
        self._try_out = try_out
        self._settle = SETTLE
        self._asks_as = f"hookdeploy-health/{secrets.token_hex(8)}"
        """Unknown to others: nobody else's question may end a probation."""
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

    @property
    def in_use(self) -> frozenset[str]:
        """The releases whose servers run, or are to run again; those that finish their last requests included."""
        alive = {process.release for process in self._alive}
        return frozenset(alive if self._launch is None else {*alive, self._launch.tree.release})

    def configure(self, app: AppConfig, listener: socket.socket) -> None:
        """What the next generation is started with; the running one is not touched."""
        self._abandoned.append((self._app.bind, self._listener))
        self._app = app
        self._listener = listener

    def still_held(self, bind: str) -> socket.socket | None:
        """A copy of the listener there, if it is one of those that nothing has taken the place of yet."""
        return next((listener.dup() for where, listener in self._abandoned if where == bind), None)

    async def swap(
        self,
        launch: Launch,
        entered: Callable[[Phase], None],
        *,
        probation: float = 0.0,
        keep: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        """Start a generation for ``launch``; when it has served well for so many seconds, drain the one before it.

        In between ``keep`` is awaited. Raises ``StepFailed``, ``ProbationFailed`` if the new one has met requests, or
        what ``keep`` raises; the old one then serves on.
        """
        entered = _each_once(entered)
        try:
            orders = await self._try(self._orders(launch), entered)  # what dies meanwhile is revived at once
        except StepFailed:
            if self._launch is None:
                self._do_without()
            raise
        async with self._turn:
            self._cancel_revival()
            self._deaths = 0  # somebody has done something about it
            try:
                if orders.listener is not self._listener:  # it was configured otherwise meanwhile
                    orders = await self._try(self._orders(launch), entered)
                await self._replace(orders, entered, probation=probation, keep=keep)
            finally:
                if self._serving is None:
                    self._do_without()

    def adopt(self) -> Launch | None:
        """Take over what an earlier hookdeploy has left running; what it serves, if it serves.

        The newest that served does so; all others drain, as they were about to. One that was on probation has not been
        chosen: it serves only if there is no other. One that was still at its gate has never met a request, and is
        killed.
        """
        found = self._take_over()
        chosen = serverrecords.to_serve([record for record, _ in found])
        if chosen is not None:
            [server] = [server for record, server in found if record is chosen]
            with suppress(OSError):  # it serves all the same
                server.chosen()
            self._serve_with(server, chosen.launch)
            self._log.info("{app}: server {pid} serves on", app=self._app.name, pid=chosen.pid)
        for record, server in found:
            if record is not chosen:
                server.drain()
        return self._launch

    def _take_over(self) -> list[tuple[serverrecords.Record, AdoptedServer]]:
        """What an earlier hookdeploy has left and we do not know yet, the oldest first."""
        found = []
        ours = {process.pid for process in self._alive}
        for record in serverrecords.alive(self._records):
            if record.pid in ours:
                continue
            if serverrecords.gate_is_shut(record.pid):
                signal_group(record.pid, signal.SIGKILL)
                serverrecords.forget(self._records, record.pid)  # nobody watches it
                continue
            with suppress(ProcessLookupError):  # it has just gone
                server = AdoptedServer(self._reactor, self._as_recorded(record), record.pid)
                self._watch(server)
                found.append((record, server))
        return found

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
        try:
            self._take_over()  # we may be stopped before it was our turn to adopt what was left to us
        except OSError as error:  # what we do know must end all the same
            self._log.error(
                "{app}: what an earlier hookdeploy has left cannot be ended: {problem}",
                app=self._app.name,
                problem=str(error),
            )
        for process in list(self._alive):
            process.drain()
        for process in list(self._alive):
            await process.swept.wait()
        self._close_listener()
        self._become("stopped")

    async def _try(self, orders: Orders, entered: Callable[[Phase], None]) -> Orders:
        """The same orders, fit to serve by. What has served before is not tried again: a revival is urgent."""
        if self._try_out is None or self._stopping:
            return orders
        if orders.gated and not _speaks_asgi(self._app.gunicorn, orders.launch.tree.path / "gunicorn.conf.py"):
            return orders
        entered(Phase.STARTING)
        entered(Phase.CHECKING)
        self._settle = max(SETTLE, 2 * await self._try_out(orders))
        return replace(orders, settle=min(self._settle, orders.boot_limit / 2))

    async def _replace(
        self,
        orders: Orders,
        entered: Callable[[Phase], None],
        *,
        probation: float = 0.0,
        keep: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        if self._stopping:
            raise StepFailed("hookdeploy is stopping")
        orders = replace(orders, to_be_proven=self._serving is not None and probation > 0)
        if orders.gated:
            self._tell_source(orders.launch.environment)
        candidate = ServerProcess(self._reactor, orders, entered)
        self._watch(candidate)
        if self._serving is None:
            self._become("starting")
        candidate.start()
        await self._until_serving(candidate)
        if orders.to_be_proven and self._serving is not None:
            terms = Terms(probation, deaths=self._app.probation_deaths, errors=self._app.probation_errors)
            with self._health_asked(orders):
                await self._until_proven(candidate, self._serving, terms, entered)
        self._choose(candidate)
        if keep is not None:
            await self._until_kept(candidate, keep)
        self._serve_with(candidate, orders.launch)
        self._close_abandoned(but=orders.listener)

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
            begun = self._reactor.seconds()
            old.swept.wait().addCallback(lambda _: self._drained(self._reactor.seconds() - begun))
            old.drain()

    def _choose(self, candidate: ServerProcess) -> None:
        """Have it on disk that the candidate serves, before the old one is asked to end."""
        try:
            candidate.chosen()
        except OSError as error:
            candidate.drain()
            raise StepFailed(f"the new server cannot be written down: {error}") from error

    async def _until_kept(self, candidate: ServerProcess, keep: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await keep()
        except BaseException:
            candidate.drain()
            raise
        if candidate.over.happened:
            raise StepFailed("the new server ended as soon as it was chosen", tail=candidate.last_words())

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

    async def _until_proven(
        self, candidate: ServerProcess, old: ServerProcess, terms: Terms, entered: Callable[[Phase], None]
    ) -> None:
        """Let both serve, and watch the candidate. It takes over at once if the old one dies."""
        candidate.watch(terms)
        alone = old.over.wait().addCallbacks(self._end_probation, _unneeded, callbackArgs=(candidate,))
        try:
            entered(Phase.PROBATION)
            problem = await candidate.judged.wait()
        except BaseException:
            candidate.drain()
            raise
        finally:
            alone.cancel()
        if problem is not None:
            raise ProbationFailed(f"the new server did not pass its probation: {problem}", tail=candidate.last_words())

    @contextmanager
    def _health_asked(self, orders: Orders) -> Iterator[None]:
        """Meanwhile the app is asked for its health, if it has a path for that."""
        if orders.health is None or not orders.gated:
            yield
            return
        probe = HealthProbe(self._reactor, orders.listener, path=orders.health, asks_as=orders.asks_as)
        probe.start()
        try:
            yield
        finally:
            probe.stop()

    def _end_probation(self, how: str, candidate: ServerProcess) -> None:
        self._log.warn("{app}: the old server has died; the new one takes over at once", app=self._app.name)
        candidate.end_probation()

    def _as_recorded(self, record: serverrecords.Record) -> Orders:
        return replace(self._orders(record.launch), argv=record.argv, bind=record.bind, user=record.user)

    def _orders(self, launch: Launch) -> Orders:
        app = self._app
        return Orders(
            argv=self._argv(launch.environment),
            launch=launch,
            bind=app.bind,
            listener=self._listener,
            records=self._records,
            log=self._log_file,
            health=app.health,
            boot_limit=app.health_timeout,
            drain_limit=app.drain + 5,  # gunicorn's own graceful timeout strikes first
            asks_as=self._asks_as,
            errors=app.probation_errors,
            user=app.user,
            gated=not app.command,
            settle=min(self._settle, app.health_timeout / 2),
        )

    def _argv(self, environment: Environment) -> tuple[str, ...]:
        app = self._app
        if app.command:
            return tuple(word.replace("{fd}", str(LISTENER)) for word in app.command)
        return commands.gunicorn(
            interpreter=environment.interpreter,
            borrowed_from=_our_gunicorn() if environment.directory and not environment.gunicorn else None,
            gate=GATE,
            name=app.name,
            workers=app.workers,
            graceful_timeout=app.drain,
            arguments=app.gunicorn,
            wsgi=app.wsgi or "",
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
        pause = 0.0 if self._deaths <= 1 else min(FIRST_PAUSE * 2.0 ** min(self._deaths - 2, 30), LONGEST_PAUSE)
        self._become("restarting", reason=reason)
        self._log.warn("{app}: the server starts again in {pause:g} s", app=self._app.name, pause=pause)
        self._cancel_revival()
        self._revival = self._reactor.callLater(pause, self._start_revival)
        if self._deaths >= KEEPS_DYING:
            self._log.error(
                "{app}: the server has died {deaths} times in a row; it needs a new commit or a person",
                app=self._app.name,
                deaths=self._deaths,
            )
            self._gave_up(f"the server has died {self._deaths} times in a row: {reason}")

    def _start_revival(self) -> None:
        Deferred.fromCoroutine(self._revive()).addErrback(
            lambda failure: self._log.failure("{app}: reviving the server", failure, app=self._app.name)
        )

    async def _revive(self) -> None:
        async with self._turn:
            if self._stopping or self._serving is not None or self._launch is None:
                return
            try:
                await self._replace(self._orders(self._launch), lambda phase: None)
            except StepFailed as failed:
                self._deaths += 1
                self._log.error("{app}: {reason}", app=self._app.name, reason=self._shown(failed.reason))
                self._revive_later(failed.summary)

    def _close_listener(self) -> None:
        self._abandoned.append((self._app.bind, self._listener))
        self._close_abandoned()

    def _close_abandoned(self, *, but: socket.socket | None = None) -> None:
        for _, listener in self._abandoned:
            if listener is not but:
                listener.close()
        self._abandoned = [held for held in self._abandoned if held[1] is but]

    def _cancel_revival(self) -> None:
        if self._revival is not None and self._revival.active():
            self._revival.cancel()

    def _become(self, state: str, process: ServerProcess | None = None, *, reason: str = "") -> None:
        self.status = ServerStatus(
            state, self._now(), pid=process.pid if process else None, deaths=self._deaths, reason=reason
        )
        self._changed()


def _each_once(entered: Callable[[Phase], None]) -> Callable[[Phase], None]:
    """What was tried out starts a second time, and is no news then."""
    seen: set[Phase] = set()

    def entered_first(phase: Phase) -> None:
        if phase not in seen:
            seen.add(phase)
            entered(phase)

    return entered_first


def _speaks_asgi(arguments: tuple[str, ...], configuration: Path) -> bool:
    """Whether a worker class for ASGI may be meant: the gate cannot ask such apps."""
    words = " ".join(arguments)
    with suppress(OSError):
        words += "\n" + configuration.read_text(errors="replace")
    named = re.findall(r"(?:worker_class|--worker-class|(?<!-)-k)[\s=]*[\"']?([\w.:#]+)", words)
    return "asgi" in words.lower() or "uvicorn" in words.lower() or not FOR_WSGI.issuperset(named)


def _unneeded(failure: Failure) -> None:
    """Whoever waited has given up."""
    failure.trap(CancelledError)


def _our_gunicorn() -> Path:
    found = importlib.util.find_spec("gunicorn")
    if found is None or found.origin is None:  # it is a dependency of ours: the installation is broken
        raise StepFailed("gunicorn is not installed, neither in the app's environment nor beside hookdeploy")
    return Path(found.origin).parent.parent


_: type[AppServer] = SocketServer
