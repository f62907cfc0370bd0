"""Gives pytest-twisted the eyes that trial has: a swallowed failure or a leftover in the reactor fails its test."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from twisted.internet import _signals, reactor
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

# Without typing's protocols, of which nothing can be asked to be an instance.
WAKERS = tuple(
    value for value in vars(_signals).values() if isinstance(value, type) and not getattr(value, "_is_protocol", False)
)


@implementer(ILogObserver)
class FailureCollector:
    """Keeps the log events that carry a failure."""

    def __init__(self) -> None:
        self.found: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_failure") is not None:
            self.found.append(event)


@pytest.fixture(autouse=True)
def logged_failures() -> Iterator[list[LogEvent]]:
    """Failures that were logged during the test; one that expects some clears the list."""
    collector = FailureCollector()
    globalLogPublisher.addObserver(collector)
    try:
        yield collector.found
        gc.collect()  # an unobserved Deferred speaks only when it is collected
    finally:
        globalLogPublisher.removeObserver(collector)
    assert not collector.found, [event["log_failure"].getTraceback() for event in collector.found]


def pytest_collection_finish() -> None:
    """What has been imported by now stays: looking through it again after every test would be most of their time."""
    gc.collect()
    gc.freeze()


def _leftovers() -> set[object]:
    pollable = [*reactor.getReaders(), *reactor.getWriters()]
    return {*reactor.getDelayedCalls(), *(item for item in pollable if not isinstance(item, WAKERS))}


@pytest.fixture(autouse=True)
def clean_reactor() -> Iterator[None]:
    """Nothing that a test put into the reactor stays there: no timer, no port, no connection."""
    before = _leftovers()
    yield
    left = _leftovers() - before
    for item in left:
        if hasattr(item, "cancel"):
            item.cancel()
    assert not left
