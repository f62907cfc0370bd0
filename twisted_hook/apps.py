"""Puts one app together: its checkout, its environments, its server, its story and its lane.

The wiring of one app; ``tap`` wires the process.
"""

from __future__ import annotations

import socket
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from twisted.internet.defer import DeferredLock

from twisted_hook.appserver import GunicornServer
from twisted_hook.boundaries import Checkout, CommandRunner, DeploymentLog, Environments, Journal
from twisted_hook.clone import Clone
from twisted_hook.commands import Ambient
from twisted_hook.config import AppConfig, ConfigError
from twisted_hook.configfile import SHORTEST_REDACTED, read_env_file
from twisted_hook.deploy import Story
from twisted_hook.deploymentlog import FileLog
from twisted_hook.environments import KeyedEnvironments, OwnEnvironments
from twisted_hook.lanes import Lane
from twisted_hook.model import StepFailed
from twisted_hook.process import Reactor
from twisted_hook.redaction import Redactor
from twisted_hook.releases import Releases, mirror_name

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
    locks: defaultdict[str, DeferredLock] = field(default_factory=lambda: defaultdict(DeferredLock))
    """One for each repository."""

    def shown(self, text: str) -> str:
        """Text from outside with its secrets masked and its control characters made harmless."""
        return self.redactor.text(text)

    def open_log(self, deployment: str) -> DeploymentLog:
        logs = sorted((self.state / "logs").glob("[0-9]*.log"))  # their names are ids, which sort by time
        for old in logs[:-LOGS_KEPT]:
            old.unlink(missing_ok=True)
        return FileLog(self.state / "logs" / f"{deployment}.log", self.redactor, self.now)


class App:
    """One app at work."""

    def __init__(self, tools: Tools, config: AppConfig, listener: socket.socket | None) -> None:
        self._tools = tools
        self.config = config
        self.server: GunicornServer | None = None
        if listener is not None:
            self.server = GunicornServer(
                tools.reactor,
                app=config,
                listener=listener,
                records=servers_of(tools.state, config.name),
                log=tools.state / "logs" / f"{config.name}.server.log",
                now=tools.now,
                shown=tools.shown,
            )
        story = self._story()
        self.lane = Lane(tools.reactor, story=story, lock=self._lock(story), journal=tools.journal, now=tools.now)

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def branch(self) -> str | None:
        return self.config.branch

    @property
    def bind(self) -> str | None:
        return self.config.bind if self.server else None

    def configure(self, config: AppConfig, listener: socket.socket | None) -> None:
        """Work by another configuration from the next deployment on; the current tree is served anew by it."""
        self.config = config
        if self.server is not None and listener is not None:
            self.server.configure(config, listener)
        story = self._story()
        self.lane.configure(story, self._lock(story))
        self.lane.resume()

    async def leave(self) -> None:
        """End what is being deployed, and leave what serves to the next hookdeploy."""
        await self.lane.stop()
        if self.server is not None:
            self.server.leave()

    async def stop(self) -> None:
        await self.lane.stop()
        if self.server is not None:
            await self.server.stop()

    def _story(self) -> Story:
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
        )

    def _open_log(self, deployment: str) -> DeploymentLog:
        with suppress(StepFailed):  # it will be said when the deployment wants them
            self._declared()
        return self._tools.open_log(deployment)

    def _lock(self, story: Story) -> DeferredLock:
        return self._tools.locks[story.checkout.repository]

    def _checkout(self) -> Checkout:
        tools, config = self._tools, self.config
        directory = tools.state / "apps" / config.name
        if config.path is not None:
            return Clone(
                path=config.path,
                branch=config.branch or "",  # the loader has read the clone's own where none is configured
                update=config.update,
                directory=directory,
                ambient=tools.ambient,
                now=tools.now,
            )
        url = config.repository or ""
        return Releases(
            app=config.name,
            url=url,
            branch=config.branch,
            directory=directory,
            mirror=tools.state / "mirrors" / mirror_name(url),
            keep_newest=config.keep,
            ambient=tools.ambient,
            now=tools.now,
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


def servers_of(state: Path, app: str) -> Path:
    """Where an app's running servers are written down."""
    return state / "apps" / app / "servers"
