"""A door in memory that is held to its laws: whatever is sent to it, it answers well or hangs up, and keeps its books.

The site, the intake, the forges and the journal are the real ones, and so is the journal's file. The transport is in
memory and the clock stands still until it is moved, so that 200,000 conversations take minutes and the same ones can be
had again.
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from tempfile import mkdtemp
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.mutation import Attempt, End, attempt
from tests.seeds import HOOKS, NOW, corpus
from twisted_hook.intake import Intake
from twisted_hook.journal import SqliteJournal
from twisted_hook.model import Deployment, NewDelivery, Push, Receipt
from twisted_hook.site import GuardedChannel, GuardedRequest, GuardedSite, Limits

PATIENCE = 60.0
"""Seconds that a commit may take before a test gives up."""
READ = 65_536
"""How much a reactor takes from a socket at a time."""
LIMITS = Limits(small_body=64, linger_bytes=4096)
"""As a door's are, but that nearly every body counts for what all bodies may hold."""

CONTINUE = 100
ANSWERS = frozenset({200, 202, 400, 401, 403, 404, 405, 408, 413, 415, 429})
"""What a door may say while nothing is wrong on its side."""

_HEAD = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2}) [ -~]*\r\n((?:[A-Za-z0-9-]+: [ -~]*\r\n)*)\r\n")
_LENGTH = re.compile(rb"\r\nContent-Length: ([0-9]+)\r\n", re.IGNORECASE)
_ACCEPTED = re.compile(rb"HTTP/1\.[01] 202 ")


class Malformed(Exception):
    """What came is no answer of HTTP."""


def answers(data: bytes, *, bodiless: bool = False) -> list[tuple[int, bytes]]:
    """The statuses and bodies in what a door has said. An answer to HEAD, if there may be one, tells a length alone."""
    found = []
    while data:
        head = _HEAD.match(data)
        if head is None:
            raise Malformed(data[:200])
        status, data = int(head[1]), data[head.end() :]
        length = _LENGTH.search(b"\r\n" + head[2])
        if length is None and status != 100:
            raise Malformed(head[0])
        size = 0 if length is None or (bodiless and data[:7] in (b"", b"HTTP/1.")) else int(length[1])
        if len(data) < size:
            raise Malformed(data[:200])
        found.append((status, data[:size]))
        data = data[size:]
    return found


class Line(StringTransport):
    """A connection in memory, which ends only when the reactor would have its turn."""

    half_closed = False

    def __init__(self, wrote: Callable[[bytes], None]) -> None:
        super().__init__(lenient=True)
        self._wrote = wrote

    def write(self, data: bytes) -> None:
        if self.connected and not self.half_closed:
            super().write(data)
            self._wrote(data)

    def writeSequence(self, data: Sequence[bytes]) -> None:
        self.write(b"".join(data))

    def loseWriteConnection(self) -> None:
        self.half_closed = True


class WatchedJournal:
    """A journal, and what was asked of it."""

    def __init__(self, path: Path, call_in_reactor: Callable[..., object]) -> None:
        self._journal = SqliteJournal.open(path, call_in_reactor, lambda: NOW)
        self.asked = 0
        self.told: list[tuple[NewDelivery, Receipt]] = []

    async def accept(self, delivery: NewDelivery) -> Receipt:
        self.asked += 1
        try:
            receipt = await self._journal.accept(delivery)
        finally:
            self.asked -= 1
        self.told.append((delivery, receipt))
        return receipt

    async def close(self) -> None:
        await self._journal.close()


@implementer(ILogObserver)
class Door:
    """A door, and what it has done wrong."""

    def __init__(self, path: Path) -> None:
        self.statuses: Counter[int] = Counter()
        self.said = b""
        """What it has answered to the last one."""
        self.recorded = 0
        """How many deliveries the journal has taken in, those included that it had already."""
        self.made = 0
        """How many of them were new to it."""
        self._newest = 0
        self._accepted = 0
        """How many times it has begun to say 202 in this conversation."""
        self._problems: list[str] = []
        self._requests = 0
        self._turns: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self._clock = Clock()
        self._deployed: list[Deployment] = []
        self._journal = WatchedJournal(path, lambda *call: self._turns.put(call))
        self._disk = sqlite3.connect(path)
        intake = Intake(self._journal, self._deployed.append, HOOKS, lambda: NOW)  # type: ignore[arg-type]  # all it asks
        self.site = GuardedSite(intake.resource(), screen=intake.screen, reactor=self._clock, limits=LIMITS)
        self.site.requestFactory = self._begin  # type: ignore[assignment]
        self.site.startFactory()

    def close(self) -> None:
        self.site.stopFactory()
        self._disk.close()
        closed = Deferred.fromCoroutine(self._journal.close())
        while not closed.called:
            self._turn()

    def serve(self, one: Attempt) -> list[str]:
        """What breaks a law in this conversation; nothing, if all is well."""
        self._problems, self._requests, self._accepted, self._journal.told = [], 0, 0, []
        self._deployed.clear()
        globalLogPublisher.addObserver(self)
        try:
            self.said = self._converse(one)
        finally:
            globalLogPublisher.removeObserver(self)
        self._judge_answers(one)
        self._judge_deliveries(one)
        self._judge_books()
        return self._problems

    def count_rows(self) -> int:
        """How many deliveries are on disk."""
        (rows,) = self._disk.execute("SELECT count(*) FROM deliveries").fetchone()
        return int(rows)

    # --- the conversation

    def _converse(self, one: Attempt) -> bytes:
        channel = self.site.buildProtocol(IPv4Address("TCP", f"192.0.2.{one.number % 250 + 1}", 54321))
        if channel is None:
            return b""
        line = Line(self._watch)
        channel.makeConnection(line)
        pieces = [piece[start : start + READ] for piece in one.pieces for start in range(0, len(piece), READ)]
        self._settle(channel, line)
        while pieces and self._hears(line):
            self._call(channel.dataReceived, pieces.pop(0))
            self._settle(channel, line)
        if line.connected and one.end is End.SHUTS and not line.disconnecting:
            self._call(channel.readConnectionLost)
        if line.connected and one.end in (End.LEAVES, End.BREAKS_OFF):
            self._lose(channel, line)
        for _ in range(20):
            self._settle(channel, line)
            if not line.connected:
                break
            self._clock.advance(5)
        else:
            self._problems.append("a connection that never ends")
            self._lose(channel, line)
        self._settle(channel, line)
        self._clock.pump([30, 30])
        return bytes(line.value())

    def _hears(self, line: Line) -> bool:
        return bool(line.connected) and not line.disconnecting and line.producerState == "producing"

    def _settle(self, channel: GuardedChannel, line: Line) -> None:
        """Let everybody have their turn, until nobody has anything to do but to wait for the sender or for the time."""
        while True:
            while self._journal.asked or not self._turns.empty():
                self._turn()
            if line.disconnecting and line.connected:
                self._lose(channel, line)
            due = [call for call in self._clock.getDelayedCalls() if call.getTime() <= self._clock.seconds()]
            if not due:
                return
            self._clock.advance(0)

    def _turn(self) -> None:
        function, *arguments = self._turns.get(timeout=PATIENCE)
        function(*arguments)

    def _lose(self, channel: GuardedChannel, line: Line) -> None:
        line.connected = False
        self._call(channel.connectionLost, Failure(ConnectionDone()))

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        """As the reactor does: what is raised there ends up in the log, and ends the connection."""
        try:
            function(*arguments)
        except Exception as error:  # noqa: BLE001
            self._problems.append(f"raised into the reactor: {error!r}")

    # --- the laws

    def _begin(self, *arguments: Any, **named: Any) -> GuardedRequest:
        self._requests += 1
        return GuardedRequest(*arguments, **named)

    def _watch(self, data: bytes) -> None:
        if _ACCEPTED.match(data):
            self._accepted += 1
            if self._accepted > len(self._journal.told):
                self._problems.append("202 before the journal had it")

    def __call__(self, event: LogEvent) -> None:
        """A line of the log."""
        failure = event.get("log_failure")
        if failure is not None or event["log_level"] >= LogLevel.error:
            self._problems.append(f"logged: {failure.getTraceback() if failure else event.get('log_format')}")

    def _judge_answers(self, one: Attempt) -> None:
        try:
            found = answers(self.said, bodiless=b"HEAD" in one.data)
        except Malformed as malformed:
            self._problems.append(f"no answer of HTTP: {malformed}")
            return
        statuses = [status for status, _ in found if status != CONTINUE]
        self.statuses.update(statuses)
        self._problems += [f"an answer {status}" for status in statuses if status not in ANSWERS]
        if len(statuses) > self._requests:
            self._problems.append(f"{len(statuses)} answers to {self._requests} requests")

    def _judge_deliveries(self, one: Attempt) -> None:
        told = self._journal.told
        if self._accepted > len(told) or (self._accepted < len(told) and one.end in (End.WAITS, End.SHUTS)):
            self._problems.append(f"{self._accepted} answers 202, and {len(told)} deliveries in the journal")
        self.recorded += len(told)
        for _, receipt in told:
            key = int(receipt.delivery, 16)
            self.made += key > self._newest
            self._newest = max(self._newest, key)
            if self._disk.execute("SELECT 1 FROM deliveries WHERE id = ?", (key,)).fetchone() is None:
                self._problems.append("202, and no row on disk")
        wanted = {app for new, _ in told for push in new.message.pushes for app in _wanted_by(push, new.hook)}
        if others := {deployment.app for deployment in self._deployed} - wanted:
            self._problems.append(f"a deployment that nobody has asked for: {others}")

    def _judge_books(self) -> None:
        site = self.site
        left = {
            "connections counted": site.connected,
            "bytes counted": site.in_flight,
            "turned away": site.turned_away,
            "peers": dict(site.peers),
            "waiting": list(site.waiting),
            "calls to come": self._clock.getDelayedCalls(),
        }
        self._problems += [f"left behind: {what} {found}" for what, found in left.items() if found]


def _wanted_by(push: Push, hook: str) -> Iterator[str]:
    """The apps that this push is for: said once more, and in another way, than the hooks say it."""
    if not (push.after or "").strip("0") or push.repository.encode().lower() != b"acme/web":
        return
    if push.ref == "refs/heads/main":
        yield "web"
    if hook == "tags" and push.ref.startswith("refs/tags/v"):
        yield "tagged"


# --- many conversations


@dataclass
class Found:
    """What a door has answered to many, and what was wrong."""

    statuses: Counter[int]
    recorded: int
    """How many deliveries the journal was given, which is how many were answered 202."""
    made: int
    """How many of them were new to it."""
    rows: int
    """How many deliveries are on disk."""
    broken: tuple[Attempt, list[str]] | None
    """The first that breaks a law, and how."""


def run(directory: Path, seed: int, numbers: Iterable[int]) -> Found:
    """Have these conversations with one door, until one breaks a law."""
    seeds, broken = corpus(), None
    with opened(directory) as door:
        for number in numbers:
            one = attempt(seeds, seed, number, NOW)
            if problems := door.serve(one):
                broken = one, problems
                break
        rows = door.count_rows()
        if broken is None and rows != door.made:
            broken = one, [f"{rows} rows on disk, and {door.made} deliveries that were new"]
        return Found(door.statuses, door.recorded, door.made, rows, broken)


@contextmanager
def opened(directory: Path) -> Iterator[Door]:
    """A door whose journal is in a directory of its own below this one."""
    door = Door(Path(mkdtemp(dir=directory)) / "journal.db")
    try:
        yield door
    finally:
        door.close()


def shrunk(directory: Path, one: Attempt, problems: Sequence[str], *, tries: int = 400) -> str:
    """The fewest bytes of a conversation that are found to break the same laws at a new door, for a person to read."""
    laws = {problem.partition(":")[0] for problem in problems}

    def breaks(data: bytes) -> bool:
        with opened(directory) as door:
            found = door.serve(replace(one, pieces=(data,)))
        return bool(laws & {problem.partition(":")[0] for problem in found})

    data, told = one.data, f"seed {one.seed}, number {one.number}, once {one.origin}.http, its sender {one.end.value}"
    if breaks(data):
        size = len(data) // 2
        while size and tries > 0:
            for start in range(0, len(data), size):
                tries -= 1
                if tries > 0 and breaks(fewer := data[:start] + data[start + size :]):
                    data = fewer
                    break
            else:
                size //= 2
        told += f", cut down from {len(one.data)} bytes"
        shown = [data]
    else:
        shown = list(one.pieces)
    lines = "\n".join(repr(piece[:4000]) for piece in shown)
    return f"{told}:\n{lines}\n\n" + "\n".join(problems)
