"""The listeners of the public door: taken early, so that a port in use is found at once, and opened last.

Until it is opened, deliveries wait in the backlog. The socket of an endpoint outlives us in the keeper, with or without
TLS; certificates are read anew.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IReactorSocket, IStreamServerEndpoint
from twisted.internet.task import deferLater
from twisted.internet.tcp import Port
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource

from twisted_hook import given
from twisted_hook.certificates import BadCertificate
from twisted_hook.entrance import Entrance, Plan, plan_of
from twisted_hook.keeping import Keeper
from twisted_hook.model import Refused
from twisted_hook.process import Reactor
from twisted_hook.site import GuardedSite, Limits, Screen, constant
from twisted_hook.sockets import CannotListen

KEPT = ("tcp:", "tcp6:", "unix:")
"""Sockets that the keeper holds; systemd keeps its own."""

FAREWELL = 2.0
"""Seconds for a handshake and a request that are under way when we leave; who connects meanwhile waits for the next."""
LOOK = 0.01
"""Seconds between two looks whether they are done."""

if TYPE_CHECKING:

    class DoorReactor(Reactor, IReactorSocket, Protocol):  # type: ignore[misc]
        """What the door needs of the reactor; see ``process.Reactor``."""
else:
    DoorReactor = IReactorSocket


@dataclass
class _Listened:
    """A listening socket, and who receives there."""

    port: IListeningPort
    entrance: Entrance


class Door:
    """One guarded site on any number of Twisted endpoints."""

    def __init__(
        self,
        reactor: DoorReactor,
        *,
        keeper: Keeper,
        screen: Screen,
        limits: Limits,
        says: Callable[[Refused], bytes] = constant,
    ) -> None:
        self._reactor = reactor
        self._keeper = keeper
        self._listened: dict[str, _Listened] = {}
        """By the socket's own description, whatever is spoken there."""
        self._prepared: list[Callable[[], None]] = []
        self._open = False
        self.site = GuardedSite(Resource(), screen=screen, reactor=reactor, limits=limits, says=says)

    def take(self, descriptions: Iterable[str]) -> None:
        """Listen on the endpoints that it does not listen on yet, and read every certificate, which serves as soon as
        ``renew`` is called. Raises ``CannotListen``, and took nothing then.
        """
        taken: dict[str, _Listened] = {}
        self._prepared = []
        try:
            for description, plan in _plans(descriptions):
                if plan.socket in self._listened:
                    self._prepare(description, plan)
                else:
                    taken[plan.socket] = self._listen(description, plan)
        except CannotListen:
            self._prepared = []
            for name, listened in taken.items():
                _stop_listening(name, listened)
            raise
        self._listened.update(taken)

    def renew(self) -> None:
        """Receive whoever connects from now on as the endpoints that were taken last say."""
        for adopt in self._prepared:
            adopt()
        self._prepared = []

    def hand_over(self) -> None:
        """Have the keeper hold what it can, so that it outlives us."""
        for name, listened in self._listened.items():
            if name.startswith(KEPT) and isinstance(listened.port, Port):
                with socket.socket(fileno=os.dup(listened.port.fileno())) as listener:
                    self._keeper.hold(_held_name(name), listener)

    def open(self, resource: IResource) -> None:
        """Answer from now on."""
        self._open = True
        self.site.resource = resource
        for port in self._ports():
            port.startReading()

    async def leave(self) -> None:
        """Accept nobody any more, and let those finish who are here, if they do so at once.

        A port is not closed: Twisted would shut down its socket for all who hold it.
        """
        for port in self._ports():
            port.stopReading()
        for _ in range(round(FAREWELL / LOOK)):  # and not for a time, of which we may lose all by standing still
            if not self.site.connected:
                return
            await deferLater(self._reactor, LOOK)

    async def keep_only(self, descriptions: Iterable[str]) -> None:
        """Stop listening on every endpoint but these."""
        for name in self._listened.keys() - {plan_of(description).socket for description in descriptions}:
            await maybeDeferred(_stop_listening, name, self._listened.pop(name))

    def _ports(self) -> list[Port]:
        return [each.port for each in self._listened.values() if isinstance(each.port, Port)]

    def _prepare(self, description: str, plan: Plan) -> None:
        try:
            self._prepared.append(self._listened[plan.socket].entrance.prepare(plan))
        except BadCertificate as error:
            raise CannotListen(f"{description}: {error}") from error

    def _listen(self, description: str, plan: Plan) -> _Listened:
        results: list[IListeningPort | Failure] = []
        try:
            entrance = Entrance(self.site, plan, reactor=self._reactor)
            # Every endpoint of Twisted's listens at once; each has its own ways of refusing a description.
            self._endpoint(plan.socket).listen(entrance).addBoth(results.append)
        except BadCertificate as error:
            raise CannotListen(f"{description}: {error}") from error
        except Exception as error:
            why = given.NOT_GIVEN if isinstance(error, LookupError) and given.is_given(plan.socket) else error
            raise CannotListen(f"cannot listen on {description}: {why}") from error
        [result] = results
        if isinstance(result, Failure):
            raise CannotListen(f"cannot listen on {description}: {_why(result)}")
        if isinstance(result, Port) and not self._open:
            result.stopReading()
        return _Listened(result, entrance)

    def _endpoint(self, name: str) -> IStreamServerEndpoint:
        """The endpoint of a socket; on the socket itself, if it has outlived an earlier hookdeploy."""
        if name.startswith(KEPT):
            listener = self._keeper.take(_held_name(name))
            if listener is not None:
                family = listener.family
                return AdoptedStreamServerEndpoint(self._reactor, listener.detach(), family)
        endpoint: IStreamServerEndpoint = serverFromString(self._reactor, name)
        if isinstance(endpoint, AdoptedStreamServerEndpoint):
            listener = given.copy_of(endpoint.fileno, endpoint.addressFamily)
            return AdoptedStreamServerEndpoint(self._reactor, listener.detach(), endpoint.addressFamily)
        return endpoint


def _stop_listening(name: str, listened: _Listened) -> object:
    if not given.is_given(name) or not isinstance(listened.port, Port):
        return listened.port.stopListening()
    # Twisted would shut the socket down, and remove its path, for all who hold it: systemd goes on listening there.
    listened.port.stopReading()
    listened.port.socket.close()
    listened.entrance.doStop()
    return None


def kept_name(description: str) -> str:
    """The name under which the keeper holds the socket of an endpoint."""
    return _held_name(plan_of(description).socket)


def _held_name(name: str) -> str:
    return f"door {name}"


def _plans(descriptions: Iterable[str]) -> Iterator[tuple[str, Plan]]:
    """The descriptions with their plans; a socket has one of them."""
    asked: set[str] = set()
    for description in descriptions:
        try:
            plan = plan_of(description)
        except ValueError as error:
            raise CannotListen(f"cannot listen on {description}: {error}") from error
        if plan.socket in asked:
            raise CannotListen(f"cannot listen on {description}: another endpoint has the same socket")
        asked.add(plan.socket)
        yield description, plan


def _why(failure: Failure) -> str:
    error = failure.value
    if isinstance(error, CannotListenError):
        return str(getattr(error.socketError, "strerror", None) or error.socketError)
    return failure.getErrorMessage()
