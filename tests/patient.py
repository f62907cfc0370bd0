"""A reactor on which the time of a command is up not after some seconds, but when something has happened.

So a slow machine cannot let it be up before the command has come to where the test wants it.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall

from twisted_hook.process import Reactor

LOOK = 0.01
"""Seconds between two looks."""


def up_when(happened: Callable[[], object], timeout: float) -> Reactor:
    """The reactor, but for calls that are to be made after exactly ``timeout`` seconds: they wait for that."""
    return cast("Reactor", _Patient(happened, timeout))


def is_called(listener: socket.socket) -> bool:
    """Whether somebody waits to be accepted."""
    return bool(select.select([listener], [], [], 0)[0])


class _Patient:
    def __init__(self, happened: Callable[[], object], timeout: float) -> None:
        self._happened = happened
        self._timeout = timeout

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)

    def callLater(self, delay: float, call: Callable[..., object], *arguments: object) -> IDelayedCall:
        if delay != self._timeout:
            return reactor.callLater(delay, call, *arguments)
        return cast("IDelayedCall", _Call(self._happened, lambda: call(*arguments)))


class _Call:
    """What is not made yet."""

    def __init__(self, happened: Callable[[], object], call: Callable[[], object]) -> None:
        self._happened = happened
        self._call = call
        self._looks = LoopingCall(self._look)
        self._looks.clock = reactor
        self._looks.start(LOOK, now=False)

    def _look(self) -> None:
        if self._happened():
            self._looks.stop()
            self._call()

    def active(self) -> bool:
        return self._looks.running

    def cancel(self) -> None:
        self._looks.stop()
