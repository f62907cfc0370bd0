"""Puts one app together: its checkout, its environments, its server, its story and its lane.

The wiring of one app; ``tap`` wires the process.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_hook.accounts import Account, NeedsRoot, NoSuchAccount, to_become
from twisted_hook.appserver import SocketServer
from twisted_hook.boundaries import Checkout, CommandRunner, DeploymentLog, Environments, Journal
from twisted_hook.builders import Builders
from twisted_hook.candidate import Trials
from twisted_hook.changes import Kind
from twisted_hook.clone import Clone
from twisted_hook.commands import GIT_TIMEOUT, Ambient
from twisted_hook.config import AppConfig, ConfigError, least_free
from twisted_hook.configfile import SHORTEST_REDACTED, read_env_file
from twisted_hook.deploymentlog import FileLog
from twisted_hook.environments import KeyedEnvironments, OwnEnvironments
from twisted_hook.lanes import Lane
from twisted_hook.model import Deployment, JournalUnavailable, NoRoom, Refused, Steering, StepFailed, Tree, Trigger
from twisted_hook.process import Reactor
from twisted_hook.redaction import Redactor
from twisted_hook.releases import Releases, mirror_name
from twisted_hook.story import Story

COMMANDS = "commands"
"""The directory in the state directory in which running commands are written down."""
CORES = len(os.sched_getaffinity(0))
"""Those that we may use; as many builds run at a time unless the configuration says otherwise."""
LOGS_KEPT = 1000
"""Logs of deployments, of all apps together."""


@dataclass
class Tools:
    """What all apps share."""

    reactor: Reactor
    journal: Journal
    runner: CommandRunner
    state: Path
    ambient: Ambient
    now: Callable[[], float]
    redactor: Redactor
    min_free: int | None = None
    """Bytes; see ``ServerConfig``."""
    publish: Callable[[Kind, str], None] = lambda kind, name: None
    """Tells those who watch that something has changed."""
    drained: Callable[[str, float], None] = lambda name, seconds: None
    """Is told the app whose former server has ended, and how many seconds after it was asked to."""
    look: Callable[[Collection[str]], None] = lambda apps: None
    """Has the remotes of these apps looked at, until that has succeeded."""
    builders: Builders = field(default_factory=lambda: Builders(CORES))
    locks: defaultdict[str, DeferredLock] = field(default_factory=lambda: defaultdict(DeferredLock))
    """One for each repository."""

    def shown(self, text: str) -> str:
        """Text from outside with its secrets masked and its control characters made harmless."""
        return self.redactor.text(text)

    def ask_for_room(self) -> None:
        """Raises ``NoRoom`` if less is free on the state directory's disk than a deployment may begin with."""
        disk = shutil.disk_usage(self.state)
        floor = least_free(self.min_free, disk.total)
        if disk.free < floor:
            raise NoRoom(
                f"the disk of {self.state} is nearly full: {_mebibytes(disk.free)} are free, and server.min_free "
                f"asks for {_mebibytes(floor)}; make room, and what was pushed is tried again"
            )

    def open_log(self, deployment: str) -> DeploymentLog:
        logs = sorted((self.state / "logs").glob("[0-9]*.log"))  # their names are ids, which sort by time
        for old in logs[:-LOGS_KEPT]:
            old.unlink(missing_ok=True)
        grown = partial(self.publish, Kind.LOG, deployment)
        return FileLog(self.state / "logs" / f"{deployment}.log", self.redactor, self.now, grown)


class App:
    """One app at work."""

    _log = Logger()

    def __init__(self, tools: Tools, config: AppConfig, listener: socket.socket | None) -> None:
        self._tools = tools
        self.config = config
        self.server: SocketServer | None = None
        self._turn = DeferredLock()  # of two who steer at once, the second must see what the first has changed
        self._trials = Trials(tools.reactor, tools.state / COMMANDS)
        changed = partial(tools.publish, Kind.APP, config.name)
        if listener is not None:
            self.server = SocketServer(
                tools.reactor,
                app=config,
                listener=listener,
                records=servers_of(tools.state, config.name),
                log=tools.state / "logs" / f"{config.name}.server.log",
                now=tools.now,
                shown=tools.shown,
                changed=changed,
                drained=partial(tools.drained, config.name),
                gave_up=self._put_back,
                try_out=self._trials.try_out,
            )
        self._story = story = self._new_story()
        self.lane = Lane(
            tools.reactor,
            story=story,
            lock=self._lock(story),
            journal=tools.journal,
            now=tools.now,
            changed=changed,
        )

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def branch(self) -> str | None:
        return self.config.branch

    @property
    def tag(self) -> str | None:
        return self.config.tag

    @property
    def repository(self) -> str | None:
        return self.config.repository

    @property
    def poll(self) -> float:
        return self.config.poll

    @property
    def story(self) -> Story:
        """What the next deployment works with."""
        return self._story

    @property
    def bind(self) -> str | None:
        return self.config.bind if self.server else None

    def configure(self, config: AppConfig, listener: socket.socket | None) -> None:
        """Work by another configuration from the next deployment on; the current tree is served anew by it."""
        self.config = config
        if self.server is not None and listener is not None:
            self.server.configure(config, listener)
        self._story = story = self._new_story()
        self.lane.configure(story, self._lock(story))
        self.lane.resume()

    # What a person asks for.

    async def steering(self) -> Steering:
        """How a person holds it back."""
        return await self._tools.journal.steering(self.name)

    async def kept(self) -> Sequence[Tree]:
        """The releases that can be put back, the newest first. Raises ``StepFailed``."""
        return await self._story.checkout.kept(self._tools.runner)

    async def deploy(self, revision: str | None = None) -> Deployment:
        """Deploy the branch's tip, or the commit with this id; also what runs already, or was put back."""
        deployment = await self._tools.journal.enqueue(self.name, Trigger.MANUAL, revision)
        self.lane.submit(deployment)
        return deployment

    async def roll_back(self, release: str | None = None) -> Deployment:
        """Put this kept release back, or the good one before the current; what is being deployed is given up.

        Raises ``Refused`` if there is no such release.
        """
        try:
            tree = await self._story.way_back(release)
        except StepFailed as failed:
            raise Refused(409, failed.reason) from failed
        if tree is None and release is not None:
            raise Refused(404, f"{self.name} keeps no release {release}")
        if tree is None:
            raise Refused(409, f"{self.name} keeps no good release from before the one that it serves")
        deployment = await self._tools.journal.enqueue(self.name, Trigger.ROLLBACK, tree.release)
        self.lane.cancel("a rollback took its place")
        self.lane.submit(deployment)
        return deployment

    async def cancel(self, deployment: str) -> bool:
        """Give this deployment up; False if it is too late, or is none of this app's."""
        return self.lane.cancel("somebody cancelled it", deployment)

    async def pin(self) -> None:
        """Keep what serves: what arrives from now on is not deployed."""
        await self._steer(pinned=True)

    async def unpin(self) -> None:
        """Deploy what arrives from now on."""
        await self._steer(pinned=False)

    async def pause(self) -> None:
        """Let what arrives wait."""
        await self._steer(paused=True)
        self.lane.pause()

    async def resume(self) -> None:
        """Deploy the newest of what has waited, and what arrives."""
        await self._steer(paused=False)
        self.lane.unpause()

    async def _steer(self, **changed: bool) -> None:
        async with self._turn:
            await self._tools.journal.steer(self.name, replace(await self.steering(), **changed))

    def _put_back(self, reason: str) -> None:
        """The server keeps dying: serve the good release before it, unless something newer comes anyway."""
        if not self.lane.is_busy:
            Deferred.fromCoroutine(self.roll_back()).addErrback(self._cannot_put_back)

    def _cannot_put_back(self, failure: Failure) -> None:
        if failure.check(Refused, JournalUnavailable) is None:
            self._log.failure("{app}: putting the release before back", failure, app=self.name)
        else:
            self._log.error("{app}: nothing is put back: {reason}", app=self.name, reason=str(failure.value))

    async def leave(self) -> None:
        """End what is being deployed, and leave what serves to the next hookdeploy."""
        await self.lane.stop()
        if self.server is not None:
            self.server.leave()
        await self._trials.over()

    async def stop(self) -> None:
        await self.lane.stop()
        if self.server is not None:
            await self.server.stop()
        await self._trials.over()

    def _new_story(self) -> Story:
        tools, config = self._tools, self.config
        return Story(
            app=config,
            journal=tools.journal,
            runner=tools.runner,
            checkout=self._checkout(),
            environments=self._environments(),
            server=self.server,
            open_log=self._open_log,
            declared=self._declared,
            ambient=tools.ambient,
            now=tools.now,
            shown=tools.shown,
            ask_for_room=tools.ask_for_room,
            turn_to_build=tools.builders.turn,
            try_again_later=lambda: tools.look([config.name]),
            home=self._account.home if self._account else None,
        )

    def _open_log(self, deployment: str) -> DeploymentLog:
        with suppress(StepFailed):  # it will be said when the deployment wants them
            self._declared()
        return self._tools.open_log(deployment)

    @property
    def _account(self) -> Account | None:
        """The account as which steps and server run, if it is not ours."""
        try:
            return to_become(self.config.user)
        except (NoSuchAccount, NeedsRoot):  # it was there when the configuration was read: what runs as it will say so
            return None

    def _lock(self, story: Story) -> DeferredLock:
        return self._tools.locks[story.checkout.repository]

    def _checkout(self) -> Checkout:
        tools, config = self._tools, self.config
        directory = tools.state / "apps" / config.name
        timeout = min(config.step_timeout, GIT_TIMEOUT)
        ambient = replace(tools.ambient, deploy_key=config.deploy_key)
        if config.path is not None:
            return Clone(
                path=config.path,
                branch=config.branch or "",  # the loader has read the clone's own where none is configured
                update=config.update,
                directory=directory,
                ambient=ambient,
                now=tools.now,
                timeout=timeout,
            )
        url = config.repository or ""
        return Releases(
            app=config.name,
            url=url,
            branch=config.branch,
            tag=config.tag,
            directory=directory,
            mirror=tools.state / "mirrors" / mirror_name(url),
            keep_newest=config.keep,
            ambient=ambient,
            now=tools.now,
            timeout=timeout,
            shared=config.shared,
            owner=(self._account.uid, self._account.gid) if self._account else None,
        )

    def _environments(self) -> Environments:
        interpreter = Path(sys.executable)
        if self.config.build != "auto":
            return OwnEnvironments(interpreter)
        return KeyedEnvironments(
            directory=self._tools.state / "apps" / self.config.name / "environments",
            interpreter=interpreter,
            version=sys.version,
            path=self._tools.ambient.path,
            timeout=self.config.step_timeout,
            keep_newest=self.config.keep,
            user=self.config.user,
            nice=self.config.nice,
        )

    def _declared(self) -> Mapping[str, str]:
        config = self.config
        if config.env_file is None:
            return config.env
        try:
            read = read_env_file(config.env_file)
        except ConfigError as error:
            raise StepFailed(f"env_file: {error}") from error
        self._tools.redactor = self._tools.redactor.knowing(
            value for value in read.values() if len(value) >= SHORTEST_REDACTED
        )
        return {**config.env, **read}


def _mebibytes(size: int) -> str:
    return f"{size / 1024**2:.0f} MiB"


def servers_of(state: Path, app: str) -> Path:
    """Where an app's running servers are written down."""
    return state / "apps" / app / "servers"
