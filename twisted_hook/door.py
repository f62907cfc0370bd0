"""The listeners of the public door: taken early, so that a port in use is found at once, and opened last.

Until it is opened, deliveries wait in the backlog.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IReactorSocket, IStreamServerEndpoint
from twisted.internet.tcp import Port
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource

from twisted_hook.keeping import Keeper
from twisted_hook.process import Reactor
from twisted_hook.site import GuardedSite, Limits, Screen
from twisted_hook.sockets import CannotListen

KEPT = ("tcp:", "tcp6:", "unix:")
"""Endpoints that are a listening socket and nothing else; one with TLS is opened anew by each hookdeploy."""

if TYPE_CHECKING:

    class DoorReactor(Reactor, IReactorSocket, Protocol):  # type: ignore[misc]
        """What the door needs of the reactor; see ``process.Reactor``."""
else:
    DoorReactor = IReactorSocket


class Door:
    """One guarded site on any number of Twisted endpoints."""

    def __init__(self, reactor: DoorReactor, *, keeper: Keeper, screen: Screen, limits: Limits) -> None:
        self._reactor = reactor
        self._keeper = keeper
        self._ports: dict[str, IListeningPort] = {}
        self._open = False
        self.site = GuardedSite(Resource(), screen=screen, reactor=reactor, limits=limits)

    def take(self, descriptions: Iterable[str]) -> None:
        """Listen on the endpoints that it does not listen on yet. Raises ``CannotListen``, and took nothing then."""
        taken: dict[str, IListeningPort] = {}
        for description in descriptions:
            if description not in self._ports:
                try:
                    taken[description] = self._listen(description)
                except CannotListen:
                    for port in taken.values():
                        port.stopListening()
                    raise
        self._ports.update(taken)

    def hand_over(self) -> None:
        """Have the keeper hold what it can, so that it outlives us."""
        for description, port in self._ports.items():
            if description.startswith(KEPT) and isinstance(port, Port):
                with socket.socket(fileno=os.dup(port.fileno())) as listener:
                    self._keeper.hold(kept_name(description), listener)

    def open(self, resource: IResource) -> None:
        """Answer from now on."""
        self._open = True
        self.site.resource = resource
        for port in self._ports.values():
            if isinstance(port, Port):
                port.startReading()

    def leave(self) -> None:
        """Accept nobody any more. A port is not closed: Twisted would shut down its socket for all who hold it."""
        for port in self._ports.values():
            if isinstance(port, Port):
                port.stopReading()

    async def keep_only(self, descriptions: Iterable[str]) -> None:
        """Stop listening on every endpoint but these."""
        for description in set(self._ports) - set(descriptions):
            await maybeDeferred(self._ports.pop(description).stopListening)

    def _listen(self, description: str) -> IListeningPort:
        results: list[IListeningPort | Failure] = []
        try:
            # Every endpoint of Twisted's listens at once; each has its own ways of refusing a description.
            self._endpoint(description).listen(self.site).addBoth(results.append)
        except Exception as error:
            raise CannotListen(f"cannot listen on {description}: {error}") from error
        [result] = results
        if isinstance(result, Failure):
            raise CannotListen(f"cannot listen on {description}: {_why(result)}")
        if isinstance(result, Port) and not self._open:
            result.stopReading()
        return result

    def _endpoint(self, description: str) -> IStreamServerEndpoint:
        """The endpoint of a description; on the socket itself, if it has outlived an earlier hookdeploy."""
        if description.startswith(KEPT):
            listener = self._keeper.take(kept_name(description))
            if listener is not None:
                family = listener.family
                return AdoptedStreamServerEndpoint(self._reactor, listener.detach(), family)
        endpoint: IStreamServerEndpoint = serverFromString(self._reactor, description)
        return endpoint


def kept_name(description: str) -> str:
    """The name under which the keeper holds the socket of an endpoint."""
    return f"door {description}"


def _why(failure: Failure) -> str:
    error = failure.value
    if isinstance(error, CannotListenError):
        return str(getattr(error.socketError, "strerror", None) or error.socketError)
    return failure.getErrorMessage()
