"""How tests wait for something of the world outside, where nothing tells that it has happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from twisted.internet import reactor
from twisted.internet.task import deferLater

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds after which what does not happen fails its test."""
FIRST = 0.01
"""Seconds between the first looks."""


def until(look: Callable[[], T | None], what: str) -> T:
    """What a look gives as soon as it gives something."""
    for pause in _pauses(what):
        if found := look():
            return found
        time.sleep(pause)
    raise AssertionError


async def become(condition: Callable[[], object], what: str = "") -> None:
    """Let the reactor turn until something is so."""
    for pause in _pauses(what or str(condition)):
        if condition():
            return
        await deferLater(reactor, pause)
    raise AssertionError


def _pauses(what: str) -> Iterator[float]:
    """Seconds, as long as there is patience; the longer it takes, the more seldom is it worth the cost of a look.

    After the time is up there is one more look: we may have stood still for all of it.
    """
    begun, waited = time.monotonic(), 0.0
    while waited < PATIENCE:
        waited = time.monotonic() - begun
        yield max(FIRST, waited / 5)
    raise AssertionError(f"waited {PATIENCE:g} s in vain for {what}")
