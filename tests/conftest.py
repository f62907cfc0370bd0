"""Gives pytest-twisted the eyes that trial has: a swallowed failure or a leftover in the reactor fails its test.

And what the tests of the installed program begin with.
"""

from __future__ import annotations

import compileall
import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import _signals, reactor
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

import twisted_hook
from tests.installed import IN_PLACE, RELEASE, Hookdeploy, Origin, git, put_away, site

# Without typing's protocols, of which nothing can be asked to be an instance.
WAKERS = tuple(
    value for value in vars(_signals).values() if isinstance(value, type) and not getattr(value, "_is_protocol", False)
)
PORTION = 500
"""How many mutated requests one door gets."""


@implementer(ILogObserver)
class FailureCollector:
    """Keeps the log events that carry a failure."""

    def __init__(self) -> None:
        self.found: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        # What a protocol raises into the reactor is logged in the old way, under the other name.
        failure = event.get("log_failure") or event.get("failure")
        if failure is not None:
            self.found.append({**event, "log_failure": failure})


@pytest.fixture(autouse=True)
def logged_failures() -> Iterator[list[LogEvent]]:
    """Failures that were logged during the test; one that expects some clears the list."""
    collector = FailureCollector()
    globalLogPublisher.addObserver(collector)
    try:
        yield collector.found
        gc.collect()  # an unobserved Deferred speaks only when it is collected
        gc.freeze()  # pytest keeps what a TestCase has made, and it would be looked through after every other test
    finally:
        globalLogPublisher.removeObserver(collector)
    assert not collector.found, [event["log_failure"].getTraceback() for event in collector.found]


def pytest_configure(config: pytest.Config) -> None:
    """Whatever the environment, the tests have the same one.

    Who runs tests in the background of a script has them ignore SIGINT, and so all that they start. Where Python is
    told to keep no bytecode (``PYTHONDONTWRITEBYTECODE``), each of some hundred starts would compile the program anew.
    """
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(twisted_hook.__path__[0], quiet=2)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # What a machine asks all programs for is not asked of these: colours, and its proxy for what is on itself.
    os.environ.pop("FORCE_COLOR", None)
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    os.environ["no_proxy"] = ",".join(filter(None, (direct, "127.0.0.1", "localhost")))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--histories", type=int, default=200, help="how many random histories test_history.py looks at")
    parser.addoption("--first-seed", type=int, default=0, help="the seed of the first of them, and of all requests")
    parser.addoption("--requests", type=int, default=2000, help="how many mutated requests test_fuzz.py sends")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What takes ``seeds`` or ``numbers`` runs once for each portion of them, so that the cores share them."""
    if "seeds" in metafunc.fixturenames:
        first, number = metafunc.config.getoption("first_seed"), metafunc.config.getoption("histories")
        scores = [range(seed, min(seed + 20, first + number)) for seed in range(first, first + number, 20)]
        metafunc.parametrize("seeds", scores, ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
    if "numbers" in metafunc.fixturenames:
        number = metafunc.config.getoption("requests")
        portions = [range(start, min(start + PORTION, number)) for start in range(0, number, PORTION)]
        metafunc.parametrize("numbers", portions, ids=lambda numbers: f"{numbers.start}-{numbers.stop - 1}")


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
    if _leftovers() - before:
        # As trial does: what is due in the very turn of the reactor in which the test ends gets its turn.
        for _ in range(2):
            pytest_twisted.blockon(deferLater(reactor, 0))
    left = _leftovers() - before
    for item in left:
        if hasattr(item, "cancel"):
            item.cancel()
    assert not left


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    made = Origin(tmp_path)
    made.push(site("one"))
    return made


@pytest.fixture
def release(tmp_path: Path, origin: Origin) -> Iterator[Hookdeploy]:
    """A hookdeploy with a configuration file and one app in release mode; not started yet."""
    with put_away(Hookdeploy(tmp_path, config=RELEASE)) as hookdeploy:
        yield hookdeploy


@pytest.fixture
def in_place(tmp_path: Path, origin: Origin) -> Iterator[Hookdeploy]:
    """A hookdeploy with a configuration file and a clone of the origin; not started yet."""
    git(tmp_path, "clone", "--quiet", str(origin.path), "clone")
    with put_away(Hookdeploy(tmp_path, config=IN_PLACE)) as hookdeploy:
        yield hookdeploy
