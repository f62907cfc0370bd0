"""``twistd hookdeploy``: reads what it was told, takes what it needs, and starts and stops in order.

All that can be refused is refused in ``makeService``, before the process daemonises and before anything answers.
"""

from __future__ import annotations

import atexit
import faulthandler
import fcntl
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from twisted.application.service import Service
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, DeferredLock, gatherResults, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.interfaces import IListeningPort, IReactorCore, IReactorFromThreads
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, Logger, globalLogPublisher
from twisted.python import usage
from twisted.python.failure import Failure

from twisted_hook import (
    __version__,
    apitoken,
    configfile,
    given,
    journald,
    leftovers,
    logformat,
    serverrecords,
    sockets,
)
from twisted_hook.addresses import web_address
from twisted_hook.announced import AnnouncedJournal
from twisted_hook.api import LIMITS, Api
from twisted_hook.apitoken import BadToken
from twisted_hook.apps import COMMANDS, CORES, App, Tools, servers_of
from twisted_hook.boundaries import Redeliveries
from twisted_hook.builders import Builders
from twisted_hook.changes import Changes
from twisted_hook.commands import Ambient
from twisted_hook.config import AppConfig, Config, ConfigError
from twisted_hook.configfile import Settings
from twisted_hook.console import Console
from twisted_hook.door import DoorReactor
from twisted_hook.intake import Intake
from twisted_hook.journal import SqliteJournal
from twisted_hook.keeping import NoKeeper
from twisted_hook.logformat import FORMATS, Masking
from twisted_hook.metrics import Answered, Looks, Metrics, Sources
from twisted_hook.model import Deployment, JournalUnavailable, Outcome, Trigger
from twisted_hook.notify import Systemd
from twisted_hook.ports import Ports
from twisted_hook.process import SpawningRunner
from twisted_hook.reconcile import Reconcile
from twisted_hook.redaction import Redactor
from twisted_hook.redelivery import Redelivery
from twisted_hook.site import GuardedRequest, GuardedSite
from twisted_hook.sockets import CannotListen
from twisted_hook.streams import Readers

TWISTD_UMASK = 0o077
"""What twistd sets where nobody asks for another; it would hide a clone from the web server of its static files."""
PRUNING = 3600.0
"""Seconds between two times that the journal lets go of what is old."""
TERMINAL = 1
"""The descriptor of standard output: twistd makes something else of ``sys.stdout``."""
STEP_LIMIT = 15.0
"""Seconds for each step of stopping; an app has those of its drain on top."""
STDERR = 2
"""Its descriptor: twistd makes another thing of ``sys.stderr``."""


STOPS = {
    signal.SIGTERM: global_reactor.sigTerm,  # type: ignore[attr-defined]
    signal.SIGINT: global_reactor.sigInt,  # type: ignore[attr-defined]
}
"""What Twisted does on them."""


class Options(usage.Options):
    """The command line of the plugin."""

    synopsis = "[--config hookdeploy.toml]"
    longdesc = (
        "Deploys what is pushed. Without --config it reads ./hookdeploy.toml, and where there is none, the "
        "environment: GITHUB_SECRET, REPO_PATH and so on. The command `hookdeploy` makes a configuration and checks it."
    )
    optParameters = (  # noqa: N815 - Twisted's name
        ("config", "c", None, "The configuration file."),
        ("log-format", None, None, "How the log is written: text, or json (also HOOKDEPLOY_LOG_FORMAT)."),
    )

    def postOptions(self) -> None:
        """Raises ``UsageError`` for a format of the log that there is not."""
        self["log-format"] = self["log-format"] or os.environ.get("HOOKDEPLOY_LOG_FORMAT") or FORMATS[0]
        if self["log-format"] not in FORMATS:
            raise usage.UsageError(f"--log-format: must be one of {', '.join(FORMATS)}")

    def opt_version(self) -> None:
        """Print the version of hookdeploy and exit."""
        raise SystemExit(f"hookdeploy {__version__}")


if TYPE_CHECKING:
    from twisted_hook.outward.ranges import Ranges

    class WholeReactor(DoorReactor, IReactorCore, IReactorFromThreads, Protocol):  # type: ignore[misc]
        """What the whole process needs of the reactor; see ``process.Reactor``."""
else:
    WholeReactor = IReactorCore


class CannotStart(Exception):
    """It was not started; each line of the text says one reason."""


def makeService(options: Options) -> Hookdeploy:
    """What ``twistd`` runs. Exits with 1, and a line for each fault, if it cannot run."""
    path = options["config"]
    for number in STOPS:
        signal.signal(number, _stop_soon)
    try:
        pidfile = options.parent["pidfile"] if options.parent else ""
        service = Hookdeploy.take(global_reactor, Path(path).absolute() if path else None, os.environ, pidfile=pidfile)
        service.log_to(logformat.chosen(options["log-format"], options.parent or {}, os.environ))
        return service
    except (BadToken, CannotStart, CannotListen, ConfigError, JournalUnavailable, NoKeeper) as error:
        lines = "\n".join(f"hookdeploy: {line}" for line in str(error).splitlines())
        raise SystemExit(journald.marked(lines) if journald.reads(STDERR, os.environ) else lines) from None


class Hookdeploy(Service):
    """The whole of it, with its one order of starting and stopping."""

    name = "hookdeploy"
    _log = Logger()

    def __init__(
        self,
        reactor: WholeReactor,
        *,
        path: Path | None,
        settings: Settings,
        environ: Mapping[str, str],
        lock: IO[str],
        pidfile: str = "",
    ) -> None:
        self._reactor = reactor
        self._path = path
        self._settings = settings
        self._environ = environ
        self._lock = lock
        first = Redactor(settings.redact)
        self._known: Callable[[], Redactor] = lambda: first
        """What masks the secrets that are known by now."""
        self._log_observer: ILogObserver | None = None
        self._pidfile = pidfile
        self._token = ""
        self._leaving = False
        """The apps and the sockets are left to the next hookdeploy."""
        self._upgrading = False
        self._has_begun = False
        """The sockets are handed over, and what was left to us is ours."""
        self._systemd = Systemd.from_environ(reactor, environ, self._in_short)
        self._reloading = DeferredLock()
        self._reload_waits = False
        self._webhooks: Sequence[Redeliveries] = ()
        """Those of which failed deliveries are asked for."""
        self._ranges: Ranges | None = None
        """None until a hook wants to know from where GitHub delivers."""
        self._apps: dict[str, App] = {}
        self._changes = Changes(f"{time.time_ns():x}")
        self._metrics = Metrics(reactor, self._changes, now=time.time)
        self._homeless: list[Deployment] = []
        """Deployments of apps that a reload has stopped."""
        self._api_port: IListeningPort | None = None
        self._pruning = LoopingCall(lambda: Deferred.fromCoroutine(self._prune()))
        self._pruning.clock = reactor
        self._ports = Ports(
            reactor,
            settings.config,
            hooks=self._screen,
            pages=self._screen_pages,
        )
        self._readers = Readers(reactor)

    # --- the log

    def log_to(self, observer: ILogObserver | None) -> None:
        """Have this write the log, if not twistd's own; secrets are masked in front of whatever does."""
        self._log_observer = observer
        # Before twistd begins to log, and so before its observers.
        globalLogPublisher.addObserver(Masking(lambda text: self._known().text(text)))

    def setServiceParent(self, parent: Any) -> None:
        """It is the application: twistd asks it for what writes the log."""
        super().setServiceParent(parent)
        if self._log_observer is not None:
            parent.setComponent(ILogObserver, self._log_observer)

    # --- taking: all that can fail at once

    @classmethod
    def take(
        cls, reactor: WholeReactor, path: Path | None, environ: Mapping[str, str], *, pidfile: str = ""
    ) -> Hookdeploy:
        """Read the configuration and take the state directory and every port, or raise and leave nothing behind."""
        settings = configfile.load(path, environ)
        state = settings.config.state
        _prepare(settings.config)
        service = cls(
            reactor, path=settings.source, settings=settings, environ=environ, lock=_lock(state), pidfile=pidfile
        )
        SqliteJournal.probe(state / "journal.sqlite3")
        leftovers.end_all(state / COMMANDS)
        service._token = apitoken.token_of(state)
        service._end_strangers()
        service._ports.reach_keeper()
        service._ports.take(settings.config)
        return service

    def _end_strangers(self) -> None:
        """End the servers of apps that are no more; those of the others are adopted."""
        apps = self._settings.config.apps
        served = {name for name, app in apps.items() if app.served}
        for servers in self._settings.config.state.glob("apps/*/servers"):
            if servers.parent.name not in served:
                serverrecords.end_all(servers)

    def _still_held(self, bind: str) -> socket.socket | None:
        """The socket of an address that an app was to leave and has not left."""
        held = (app.server.still_held(bind) for app in self._apps.values() if app.server is not None)
        return next(filter(None, held), None)

    # --- starting

    def startService(self) -> None:
        super().startService()
        for number, stop in STOPS.items():
            signal.signal(number, stop)
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self.reload))
        signal.signal(signal.SIGUSR2, lambda *_: self._reactor.callFromThread(self.upgrade))
        signal.signal(signal.SIGQUIT, lambda *_: self._reactor.callFromThread(self.leave))
        given = os.umask(0o022)
        if given != TWISTD_UMASK:
            os.umask(given)
        if self._systemd.watches:
            faulthandler.enable(STDERR)  # when the watchdog's SIGABRT ends us, the log says where we were stuck
        self._systemd.start()
        self._changes.watch(self._systemd.changed)
        settings, state = self._settings, self._settings.config.state
        self._stored = SqliteJournal.open(
            state / "journal.sqlite3", self._reactor.callFromThread, renewed=lambda _: self._renewed()
        )
        self._journal = AnnouncedJournal(self._stored, self._changes.publish)
        self._tools = Tools(
            reactor=self._reactor,
            journal=self._journal,
            runner=SpawningRunner(self._reactor, records=state / COMMANDS),
            state=state,
            ambient=Ambient.from_environ(self._environ),
            now=time.time,
            publish=self._changes.publish,
            drained=self._metrics.drained,
            redactor=self._redactor(settings),
            min_free=settings.config.server.min_free,
            builders=Builders(_most_builds(settings)),
        )
        self._reconcile = Reconcile(self._reactor, self._apps.values, self._submit)
        self._tools.look = self._reconcile.look
        self._known = lambda: self._tools.redactor
        self._webhooks = self._webhooks_of(settings)
        self._redelivery = Redelivery(self._reactor, self._journal, lambda: self._webhooks, now=time.time)
        self._intake = Intake(
            self._journal,
            self._submit,
            settings.hooks,
            time.time,
            missed=self._missed,
            repeated=self._reconcile.look,
            published=lambda hook: self._ranges.of(hook) if self._ranges else None,
            shut_out=lambda hook: self._ranges.refused(hook) if self._ranges else None,
        )
        self._api = Api(
            self._journal,
            self._apps.values,
            state / "logs",
            source=settings.source,
            replay=self._intake.replay,
            hooks=lambda: self._settings.hooks,
            metrics=self._metrics.text,
            changes=self._changes,
            readers=self._readers,
            dashboard=self._dashboard_addresses,
        )
        self._metrics.start(self._measured())
        self._console = Console(self._api, self._token, now=time.time, hosts=self._hosts)
        self._show_pages(settings)
        self._ports.watch_keeper()
        self._warn(settings)
        for config in settings.config.apps.values():
            self._add(config)
        # A reload waits for its turn until all is begun.
        self._reloading.run(lambda: Deferred.fromCoroutine(self._begin())).addErrback(self._cannot_begin)

    async def _begin(self) -> None:
        unfinished = await self._journal.unfinished()
        for app in self._apps.values():  # before anything is put into a lane: what is held back is not to be replaced
            if (await app.steering()).paused:
                app.lane.pause()
        # Not before the reactor runs: a start that is cut off until here leaves no socket behind.
        self._ports.hand_over()
        self._has_begun = True
        # All of this in one turn of the reactor: a lane that began in between would deploy before it serves.
        homeless = [each for each in unfinished if each.app not in self._apps]
        for deployment in unfinished:
            if deployment not in homeless:
                self._apps[deployment.app].lane.take_up(deployment)
        for app in self._apps.values():
            app.lane.resume()
        self._homeless += homeless
        await self._house()
        await self._serve_api(self._settings.config.state / "api.sock")
        self._ports.open(self._intake.resource(), self._console.resource())
        self._pruning.start(PRUNING)
        self._reconcile.start()
        self._redelivery.start()
        self._ask_for_ranges(self._settings)
        self._systemd.ready()
        gc.collect()
        gc.freeze()  # what has been loaded stays: to look through it in each collection holds the door up
        self._log.info(
            "hookdeploy {version} takes hooks on {listen}: {paths}",
            version=__version__,
            listen=", ".join(self._settings.config.server.listen),
            paths=", ".join(hook.path for hook in self._settings.hooks),
        )
        if self._settings.config.dashboard.listen:
            self._log.info(
                "the dashboard is at {addresses}; `hookdeploy open` prints a link that logs in",
                addresses=", ".join(self._dashboard_addresses()),
            )
            self._show_login()

    def _show_login(self) -> None:
        """The link that logs in, for who sits at the terminal: not by way of the log, which masks it and is kept."""
        address = next((each for each in self._dashboard_addresses() if each.startswith("http")), None)
        if address is not None and os.isatty(TERMINAL):
            link = apitoken.login_link(address, self._token)
            os.write(TERMINAL, f"Log in to the dashboard: {link}\n".encode())

    def _measured(self) -> Sources:
        tally, looks = self._ports.door.site.tally, Looks(self._reconcile.looks, self._reconcile.failed_looks)
        return Sources(
            apps=self._apps.values,
            journal=self._journal,
            answered=Answered(tally.verdicts, tally.refusals),
            looks=looks,
            commits=self._stored.commit_times,
            rows=self._stored.rows,
            state=self._settings.config.state,
        )

    def _missed(self, apps: Collection[str]) -> None:
        """A delivery for these apps could not be taken."""
        self._reconcile.look(apps)
        self._redelivery.look()

    def _renewed(self) -> None:
        """The journal has lost its file: it may not know any more what was pushed."""
        self._reconcile.changed()
        self._reconcile.look()
        self._redelivery.look()

    def _webhooks_of(self, settings: Settings) -> Sequence[Redeliveries]:
        if not settings.tokens:
            return ()
        # Few have a token, and what it stands on would be a tenth of every start.
        from twisted_hook.outward.redeliveries import webhooks_of  # noqa: PLC0415

        return webhooks_of(settings.config, settings.tokens, self._reactor, now=time.time)

    def _ask_for_ranges(self, settings: Settings) -> None:
        """Know from where the hooks are delivered to that are delivered to from what GitHub publishes."""
        apis = {hook.name: hook.api for hook in settings.config.hooks}
        wanted = {hook.name: apis[hook.name] for hook in settings.hooks if hook.published}
        if wanted and self._ranges is None:
            # As for the redeliveries: few want it.
            from twisted_hook.outward.ranges import Ranges  # noqa: PLC0415

            self._ranges = Ranges(self._reactor, now=time.time)
        if self._ranges is not None:
            self._ranges.serve(wanted)

    def _show_pages(self, settings: Settings) -> None:
        if not settings.config.dashboard.listen or self._console.shows_pages:
            return
        # Not everybody has a dashboard, and what renders pages would be a tenth of every start.
        from twisted_hook.dashboard import Dashboard  # noqa: PLC0415

        pages = Dashboard(
            self._journal,
            self._apps.values,
            settings.config.state / "logs",
            replay=self._intake.replay,
            hooks=lambda: self._settings.hooks,
            changes=self._changes,
            readers=self._readers,
            now=time.time,
        )
        self._console.show(pages)

    async def _prune(self) -> None:
        server = self._settings.config.server
        try:
            await self._journal.prune(before=time.time() - server.history, rows=server.history_rows)
        except JournalUnavailable as problem:
            self._log.warn("the journal lets go of nothing: {problem}", problem=str(problem))
        except Exception:  # noqa: BLE001 - the next time may be luckier: whoever raises here is not asked again
            self._log.failure("letting go of old rows")

    def _cannot_begin(self, failure: Failure) -> None:
        self._log.failure("hookdeploy cannot start", failure)
        atexit.register(_exit_failed)
        if not self.running:  # it was told to stop meanwhile
            return
        if not self._has_begun:
            self._leaving = True  # what an earlier hookdeploy has left serves on, as after a crash
        self._reactor.stop()

    async def _take_up(self, deployment: Deployment) -> None:
        app = self._apps.get(deployment.app)
        if app is not None:
            app.lane.take_up(deployment)
            return
        reason = "the app is not configured any more"
        try:
            await self._journal.finish(deployment.id, Outcome.INTERRUPTED, time.time(), reason=reason)
        except JournalUnavailable as problem:  # it is as good as ended, and keeps nobody from a start or a reload
            self._log.error("{app}: the journal: {problem}", app=deployment.app, problem=str(problem))

    async def _house(self) -> None:
        """Put the deployments of apps that were stopped into the lanes of those that have their names now."""
        while self._homeless:
            await self._take_up(self._homeless.pop(0))

    async def _serve_api(self, path: Path) -> None:
        path.unlink(missing_ok=True)  # whoever left it is gone: the state directory's lock is ours
        site = GuardedSite(self._api.app.resource(), screen=Api.screen, reactor=self._reactor, limits=LIMITS)
        endpoint = UNIXServerEndpoint(self._reactor, sockets.unix_address(path), mode=0o600)
        self._api_port = await endpoint.listen(site)

    def _redactor(self, settings: Settings) -> Redactor:
        return Redactor((*settings.redact, self._token))

    def _dashboard_addresses(self) -> list[str]:
        return [web_address(each) for each in self._settings.config.dashboard.listen]

    def _hosts(self) -> set[str]:
        """The names under which the dashboard may be reached."""
        public = urlsplit(self._settings.config.server.public_url or "").hostname
        return {*self._settings.config.dashboard.hosts, *([public] if public else ())}

    def _screen(self, request: GuardedRequest) -> None:
        self._intake.screen(request)

    def _screen_pages(self, request: GuardedRequest) -> None:
        self._console.screen(request)

    def _submit(self, deployment: Deployment) -> None:
        app = self._apps.get(deployment.app)
        if app is not None:
            app.lane.submit(deployment)
            return
        self._homeless.append(deployment)  # its app is being exchanged for another one of that name, or has gone
        if len(self._homeless) == 1:
            self._reloading.run(lambda: Deferred.fromCoroutine(self._house())).addErrback(
                lambda failure: self._log.failure("what was pushed to an app that is exchanged", failure)
            )

    def _add(self, config: AppConfig) -> App:
        servers_of(self._settings.config.state, config.name).mkdir(mode=0o700, parents=True, exist_ok=True)
        app = self._apps[config.name] = App(self._tools, config, self._ports.of(config))
        return app

    # --- changing

    def reload(self) -> None:
        """Read the configuration again, as on SIGHUP: a good one takes effect, a bad one changes nothing."""
        self._systemd.reloading("reads the configuration again")
        if self._reload_waits:  # the file is read when its turn comes: one waiter is enough
            return
        self._reload_waits = True
        self._reloading.run(lambda: Deferred.fromCoroutine(self._reload())).addErrback(
            lambda failure: self._log.failure("reading the configuration again", failure)
        ).addBoth(lambda _: None if self._reload_waits else self._systemd.ready())

    async def _reload(self) -> None:
        self._reload_waits = False
        if not self.running:
            return
        self._admit_token()
        try:
            settings = configfile.load(self._path, self._environ)
            if settings.config.state != self._settings.config.state:
                raise CannotStart("state: another state directory needs a restart")
            _prepare(settings.config)
            self._ports.take(settings.config, held=self._still_held)
            self._ports.hand_over()
            begun = await self._begin_anew(settings)
        except (CannotStart, CannotListen, ConfigError, NoKeeper) as error:
            for line in str(error).splitlines():
                self._log.error("the configuration stays as it was: {fault}", fault=line)
            await self._ports.keep_only(self._settings.config)
            return
        self._warn(settings)
        self._show_pages(settings)
        listened = self._settings.config.dashboard.listen
        await self._apply(settings, begun)
        if listened != settings.config.dashboard.listen:
            self._readers.end()  # who followed events at what is closed; the others come back
        self._log.info("the configuration was read again")

    def _admit_token(self) -> None:
        """Believe the token in its file only, also of those who follow events already.

        Before the configuration, whose faults are none of its own: who has removed it takes the old one for void.
        """
        try:
            token = apitoken.token_of(self._settings.config.state)
        except BadToken as error:
            self._log.error("the API's token stays as it was: {fault}", fault=str(error))
            return
        if token == self._token:
            return
        self._token = token
        self._tools.redactor = self._tools.redactor.knowing((token,))
        self._console.admit(token)
        self._readers.end()
        self._log.info("the API's token is another one now; the old one, and every session that it began, have ended")

    def _warn(self, settings: Settings) -> None:
        for warning in settings.warnings:
            self._log.warn("{warning}", warning=warning)

    async def _begin_anew(self, settings: Settings) -> list[Deployment]:
        """Write down what is to be deployed for the new configuration itself, while nothing has changed yet."""
        begun: list[Deployment] = []
        try:
            for name, config in settings.config.apps.items():
                old = self._settings.config.apps.get(name)
                if old is not None and not _is_another(old, config) and _deploys_something_else(old, config):
                    begun.append(await self._journal.enqueue(name, Trigger.START))
        except JournalUnavailable as problem:
            for deployment in begun:
                self._submit(deployment)
            raise CannotStart(f"the journal: {problem}") from problem
        return begun

    async def _apply(self, settings: Settings, begun: Sequence[Deployment]) -> None:
        before, self._settings = self._settings.config, settings
        old, new = before.apps, settings.config.apps
        # What was a secret stays one: who runs still knows it, and may say it.
        self._tools.redactor = self._tools.redactor.knowing((*settings.redact, self._token))
        self._tools.min_free = settings.config.server.min_free
        if settings.config.server.max_builds != before.server.max_builds:
            self._tools.builders.allow(_most_builds(settings))
        self._ports.renew(settings.config)
        for name in [name for name in old if name not in new or _is_another(old[name], new[name])]:
            await self._let_go(name)
        if not self.running:  # it was told to stop meanwhile
            return
        for name, config in new.items():
            if name not in self._apps:
                self._add(config).lane.resume()
            elif config != old[name]:
                self._apps[name].configure(config, self._ports.of(config))
        for deployment in begun:
            self._submit(deployment)
        self._intake.replace(settings.hooks)
        await self._house()
        self._reconcile.changed()
        self._webhooks = self._webhooks_of(settings)
        self._ask_for_ranges(settings)
        await self._ports.keep_only(settings.config)

    async def _let_go(self, name: str) -> None:
        """Stop an app; what it has not finished is for the one that takes its name, if there is one."""
        app = self._apps.pop(name)
        self._homeless += app.lane.unfinished
        await app.stop()

    # --- stopping

    def upgrade(self) -> None:
        """Execute ourselves again, as on SIGUSR2, perhaps in a newer version; the apps serve on meanwhile."""
        self._leaving = self._upgrading = True
        self._systemd.reloading("is executed again")
        self._reactor.addSystemEventTrigger("after", "shutdown", _execute_again, self._pidfile)
        self._reactor.stop()

    def leave(self) -> None:
        """End, as on SIGQUIT, and leave the apps to the hookdeploy that is started next.

        The unit has systemd send that when it restarts us, and SIGTERM only when it stops us.
        """
        self._leaving = True
        self._reactor.stop()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._end())

    async def _end(self) -> None:
        """The door first, the journal last; a step that fails or is late does not keep the others from happening."""
        for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        drain = max((app.config.drain for app in self._apps.values()), default=0.0)
        what = "the apps serve on" if self._leaving else f"requests have {drain:g} s to finish"
        self._log.info("hookdeploy stops; {what}", what=what)
        if not self._upgrading:
            self._systemd.stopping(f"stops; {what}")
        self._readers.end()
        for door, what in ((self._ports.door, "the door"), (self._ports.dashboard, "the dashboard's door")):
            if self._leaving:
                await self._within(STEP_LIMIT, f"leaving {what}", door.leave())
            else:
                await self._within(STEP_LIMIT, f"closing {what}", door.keep_only(()))
        await self._within(STEP_LIMIT + drain, "ending a reload", self._end_reload())
        await self._within(STEP_LIMIT, "ending what is done now and then", self._end_what_recurs())
        await self._stop_apps(STEP_LIMIT + drain)
        await self._within(STEP_LIMIT, "letting go of the sockets", self._let_go_of_sockets())
        await self._within(STEP_LIMIT, "closing the API", self._close_api())
        await self._within(STEP_LIMIT, "closing the journal", self._stored.close())
        self._systemd.close()
        self._lock.close()

    def _in_short(self) -> str:
        """What serves and what is being deployed, in one line."""
        serving = [app.name for app in self._apps.values() if app.server and app.server.status.state == "serving"]
        deploying = [app.name for app in self._apps.values() if app.lane.is_busy]
        said = [f"{what} {', '.join(names)}" for what, names in (("serves", serving), ("deploys", deploying)) if names]
        return "; ".join(said) or "waits for a push"

    async def _end_reload(self) -> None:
        """Wait for a reload that is under way; one that still waits sees that we do not run any more."""
        await self._reloading.acquire()
        self._reloading.release()

    async def _end_what_recurs(self) -> None:
        self._metrics.stop()
        if self._pruning.running:
            self._pruning.stop()
        await self._reconcile.stop()
        await self._redelivery.stop()
        if self._ranges is not None:
            self._ranges.stop()

    async def _stop_apps(self, limit: float) -> None:
        """Each for itself: one that fails or is late keeps no other from being stopped in order."""
        ends = {app.name: app.leave() if self._leaving else app.stop() for app in self._apps.values()}
        steps = [self._within(limit, f"stopping {name}", end) for name, end in ends.items()]
        await gatherResults([Deferred.fromCoroutine(step) for step in steps])

    async def _let_go_of_sockets(self) -> None:
        if self._leaving:
            self._ports.leave()
        else:
            self._ports.close()

    async def _close_api(self) -> None:
        if self._api_port is not None:
            await maybeDeferred(self._api_port.stopListening)

    async def _within(self, limit: float, what: str, work: Coroutine[Any, Any, None]) -> None:
        self._systemd.takes(limit)
        stopping = Deferred.fromCoroutine(work)
        stopping.addTimeout(limit, self._reactor)
        try:
            await stopping
        except DeferredTimeout:
            self._log.error("{what} took longer than {limit} s", what=what, limit=limit)
        except Exception:  # noqa: BLE001 - what is left must still be stopped
            self._log.failure("{what}", what=what)


def _stop_soon(number: int, frame: FrameType | None) -> None:
    """Stop when the reactor runs: who dies before that leaves what an earlier hookdeploy has left to us.

    Told again, end at once: until then we may wait for an old server whose requests have minutes to finish.
    """
    signal.signal(number, signal.SIG_DFL)
    STOPS[signal.Signals(number)](number, frame)


def _exit_failed() -> None:
    """End the process with 1: twistd itself ends with 0 whenever the reactor was stopped in order."""
    sys.stdout.flush()
    os._exit(1)


def _execute_again(pidfile: str) -> None:
    """Become the hookdeploy that is installed now, with the same pid and the same arguments."""
    if pidfile:
        Path(pidfile).unlink(missing_ok=True)  # it names us, and twistd would not start beside us
    given.pass_on(os.environ)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - it is ourselves


def _prepare(config: Config) -> None:
    """Make the state directory, or raise ``CannotStart``."""
    try:
        configfile.prepare_state(config.state, config.apps.values())
        (config.state / COMMANDS).mkdir(mode=0o700, exist_ok=True)
    except (OSError, ValueError) as error:
        raise CannotStart(f"state: {error}") from error


def _lock(state: Path) -> IO[str]:
    """The state directory is ours for as long as this file is open."""
    file = (state / "lock").open("a")
    os.fchmod(file.fileno(), 0o600)  # who may read it may lock it too
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise CannotStart(
            f"another hookdeploy works in {state}; stop it, or give this one a state of its own"
        ) from None
    return file


def _most_builds(settings: Settings) -> int:
    return settings.config.server.max_builds or CORES


def _deploys_something_else(old: AppConfig, new: AppConfig) -> bool:
    """Whether the current tree is not what the new configuration would make of the remote."""
    keys = ("repository", "branch", "tag", "paths", "build", "shared", "user")
    return any(getattr(old, key) != getattr(new, key) for key in keys)


def _is_another(old: AppConfig, new: AppConfig) -> bool:
    """Whether an app has changed so much that only its name is the same."""
    return (old.mode, old.path, old.served) != (new.mode, new.path, new.served)
