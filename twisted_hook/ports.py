"""Every socket on which others are listened for: those of the apps, and those of the two doors.

All of them are taken before anything answers; the keeper has each too, so that it outlives this process. Who serves on
an app's socket, and what is answered at a door, is not decided here.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection
from dataclasses import replace

from twisted.logger import Logger
from twisted.web.resource import IResource

from twisted_hook import console, serverrecords, sockets
from twisted_hook.apps import servers_of
from twisted_hook.config import AppConfig, Config
from twisted_hook.door import Door, DoorReactor, kept_name
from twisted_hook.keeping import Keeper
from twisted_hook.peers import Trust
from twisted_hook.site import Limits, Screen
from twisted_hook.sockets import CannotListen

PATIENCE = 15.0
"""Seconds for a server that is to end, on top of those that its requests have."""


class Ports:
    """The listening sockets of one hookdeploy."""

    _log = Logger()

    def __init__(self, reactor: DoorReactor, config: Config, *, hooks: Screen, pages: Screen) -> None:
        """``hooks`` judges a request at the public door before its body is read, ``pages`` one at the dashboard's."""
        self._reactor = reactor
        self._keeper = Keeper(config.state / "keeper.sock")
        self._state = config.state
        self._listeners: dict[str, socket.socket] = {}
        """Those of the apps, by their addresses."""
        self.door = Door(reactor, keeper=self._keeper, screen=hooks, limits=_limits(config))
        self.dashboard = Door(
            reactor, keeper=self._keeper, screen=pages, limits=_dashboard_limits(config), says=console.explained
        )

    def reach_keeper(self) -> None:
        """Raises ``NoKeeper``."""
        self._keeper.reach()

    def take(self, config: Config, *, held: Callable[[str], socket.socket | None] | None = None) -> None:
        """Bind what is not bound yet; all of it, or nothing and ``CannotListen`` with a line for each fault.

        ``held`` gives the socket of an address that an app of ours was to leave and has not left. Without it we have
        only begun, and a server that an earlier hookdeploy has left may be ended for its address.
        """
        problems: list[str] = []
        taken: dict[str, socket.socket] = {}
        for app in config.apps.values():
            if app.served and app.bind not in self._listeners:
                try:
                    kept = self._keeper.take(_kept_name(app.bind)) or (held(app.bind) if held else None)
                    taken[app.bind] = kept or (sockets.listen(app.bind) if held else self._listen_first(app))
                except CannotListen as error:
                    problems.append(f"apps.{app.name}.bind: {error}")
        for key, door, endpoints in (
            ("server.listen", self.door, config.server.listen),
            ("dashboard.listen", self.dashboard, config.dashboard.listen),
        ):
            try:
                door.take(endpoints)
            except CannotListen as error:
                problems.append(f"{key}: {error}")
        if problems:
            for listener in taken.values():
                listener.close()
            raise CannotListen("\n".join(problems))
        self._listeners.update(taken)

    def hand_over(self) -> None:
        """Have the keeper hold every socket, so that they outlive us."""
        for bind, listener in self._listeners.items():
            self._keeper.hold(_kept_name(bind), listener)
        self.door.hand_over()
        self.dashboard.hand_over()

    def of(self, app: AppConfig) -> socket.socket | None:
        """The app's own hold on the socket on which it is served: ours outlasts an app that is exchanged."""
        return self._listeners[app.bind].dup() if app.served else None

    def watch_keeper(self) -> None:
        """Replace it from now on as soon as it dies."""
        self._keeper.watch(self._reactor)

    def open(self, hooks: IResource, pages: IResource) -> None:
        """Answer at both doors from now on."""
        self.door.open(hooks)
        self.dashboard.open(pages)

    def renew(self, config: Config) -> None:
        """Receive whoever comes from now on as this configuration, whose sockets were taken, says."""
        for door, limits in ((self.door, _limits(config)), (self.dashboard, _dashboard_limits(config))):
            door.site.limits = limits
            door.renew()

    async def keep_only(self, config: Config) -> None:
        """Let go of the sockets that are not in this configuration."""
        self._close_listeners(keep={app.bind for app in config.apps.values() if app.served})
        await self.door.keep_only(config.server.listen)
        await self.dashboard.keep_only(config.dashboard.listen)
        endpoints = (*config.server.listen, *config.dashboard.listen)
        self._keeper.keep_only({_kept_name(bind) for bind in self._listeners} | {kept_name(each) for each in endpoints})

    def leave(self) -> None:
        """Let the keeper hold the sockets, for the hookdeploy that is started next."""
        self._close_listeners()
        self._keeper.leave()

    def close(self) -> None:
        """Nobody is served any more."""
        self._close_listeners()
        self._keeper.end()

    def _close_listeners(self, *, keep: Collection[str] = ()) -> None:
        for bind in self._listeners.keys() - keep:
            self._listeners.pop(bind).close()

    def _listen_first(self, app: AppConfig) -> socket.socket:
        """A new listening socket. Raises ``CannotListen``.

        If the keeper was killed together with an earlier hookdeploy, nobody but that one's server has the old socket:
        it is asked to finish its requests and to end.
        """
        servers = servers_of(self._state, app.name)
        try:
            return sockets.listen(app.bind)
        except CannotListen:
            if all(record.bind != app.bind for record in serverrecords.alive(servers)):
                raise
        self._log.warn(
            "the keeper of the sockets was killed together with hookdeploy: the server of {app} is ended, "
            "as nobody else has the socket of {bind}",
            app=app.name,
            bind=app.bind,
        )
        serverrecords.end_all(servers, patience=app.drain + PATIENCE)
        return sockets.listen(app.bind)


def _kept_name(bind: str) -> str:
    """The name under which the keeper holds an app's socket."""
    return f"app {bind}"


def _limits(config: Config) -> Limits:
    return Limits(max_body=config.server.max_body, trusted=Trust.in_words(config.server.trusted_proxies))


def _dashboard_limits(config: Config) -> Limits:
    return replace(console.LIMITS, trusted=Trust.in_words(config.server.trusted_proxies))
