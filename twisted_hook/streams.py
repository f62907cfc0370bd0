"""Server-sent events: what has changed, told at once to whoever follows it, and no faster than it is read.

A reader holds no queue: it knows its place among the changes, and is told what changed since whenever it has room. What
a change looks like is rendered once for all readers. It knows neither the API nor the pages, whose renderings it tells.
The format: https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.json import encode
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_hook.changes import Change, Changes
from twisted_hook.model import JournalUnavailable, Refused
from twisted_hook.once import Once
from twisted_hook.site import GuardedRequest

MOST = 256
"""So many may follow at a time, whatever they follow."""
COALESCING = 0.02
"""Seconds for which changes are gathered: a phase, its step and its app change together."""
MOMENT = 0.06
"""Seconds at least between two times that the same readers are told: a thousand pushes are told together."""
HEARTBEAT = 15.0
"""Seconds between two lines that say nothing, so that no proxy takes the connection for a dead one."""
STALL = 60.0
"""Seconds after which one who takes nothing is cut off; it may come back to its place."""
READERS_A_TURN = 25
"""So many readers are told in one turn of the reactor: the door has its turns in between."""
CHANGES_A_TURN = 20
"""So many changes are told to one reader at once."""
PIECE = 65_536
"""Bytes of a log that are told at once."""
_CUT = re.compile(rb"(?:\x1b[^m]{0,72}|[\xc0-\xff][\x80-\xbf]{0,2})\Z")
"""At the end of a piece: a colour or a character that may go on after it."""
RENDERED = 256
"""So many renderings are remembered."""

Render = Callable[..., Coroutine[Any, Any, bytes | None]]
"""What is to be told of a change, or of several that are told together, as ``event`` makes it; None if nothing is."""


def event(name: str, data: object) -> bytes:
    """An event without its end: ``data`` as JSON, which stands on one line."""
    return b"event: %b\ndata: %b\n" % (name.encode(), encode(data))


def asked_place(request: GuardedRequest) -> str | None:
    """From where on a reader wants to be told: the ``Last-Event-ID`` of one who comes back, or ``?since=``."""
    given = [*request.header(b"last-event-id"), *request.args.get(b"since", [])]
    return given[0].decode("utf-8", "replace") if given else None


def _announce(request: GuardedRequest) -> bytes:
    """Say in the headers what comes; nothing of it has come yet."""
    request.setHeader(b"Content-Type", b"text/event-stream; charset=utf-8")
    request.setHeader(b"Cache-Control", b"no-store")
    request.setHeader(b"X-Accel-Buffering", b"no")  # nginx would gather it all
    return b""


@implementer(IPushProducer)
class Stream:
    """The answer to one reader, which goes on until one of the two ends it."""

    def __init__(self, request: GuardedRequest, clock: IReactorTime, roomy: Callable[[], None]) -> None:
        self._request = request
        self._roomy = roomy
        self._clock = clock
        self._open = True
        self._room: Once[None] = Once()
        self._stall: IDelayedCall | None = None

    def begin(self) -> None:
        _announce(self._request)
        self.resumeProducing()
        self._request.registerProducer(self, True)  # Twisted has no name for it: it pushes
        self.tell(b"retry: 2000\n\n")

    @property
    def has_room(self) -> bool:
        return self._room.happened

    def room(self) -> Deferred[None]:
        """Fires when more of it would be sent."""
        return self._room.wait()

    def tell(self, data: bytes) -> None:
        if self._open and not self._request.gone:
            self._request.write(data)

    def beat(self) -> None:
        if self.has_room:
            self.tell(b":\n\n")

    def cut(self) -> None:
        """End it at once; the reader comes back, to us or to the next of us."""
        self._request.channel.loseConnection()

    def close(self) -> None:
        """Nothing is told any more."""
        self._open = False
        self._disarm()
        if not self._request.gone:
            self._request.unregisterProducer()

    def pauseProducing(self) -> None:
        if self.has_room:
            self._room = Once()
        self._disarm()
        self._stall = self._clock.callLater(STALL, self._give_up)

    def resumeProducing(self) -> None:
        self._disarm()
        self._room.happen(None)
        self._roomy()

    def stopProducing(self) -> None:
        self._disarm()

    def _give_up(self) -> None:
        self._request.site.tally.note("closed: a reader of events who takes none")
        self._request.channel.transport.abortConnection()

    def _disarm(self) -> None:
        if self._stall is not None and self._stall.active():
            self._stall.cancel()
        self._stall = None


class Readers:
    """All who follow something, up to a limit."""

    def __init__(self, clock: IReactorTime) -> None:
        self.clock = clock
        self._streams: dict[Stream, None] = {}
        self._beat: IDelayedCall | None = None

    @property
    def number(self) -> int:
        return len(self._streams)

    def enter(self, request: GuardedRequest, roomy: Callable[[], None] = lambda: None) -> Stream:
        """Begin an answer, and say each time that it has room again: ``roomy``. Whoever enters is to ``leave``.

        Raises ``Refused`` if there are too many.
        """
        if len(self._streams) >= MOST:
            raise Refused(503, f"{MOST} readers follow events already")
        stream = Stream(request, self.clock, roomy)
        self._streams[stream] = None
        if self._beat is None:
            self._beat = self.clock.callLater(HEARTBEAT, self._beat_all)
        stream.begin()
        return stream

    def leave(self, stream: Stream) -> None:
        self._streams.pop(stream, None)
        stream.close()
        if not self._streams and self._beat is not None:
            self._beat.cancel()
            self._beat = None

    def end(self) -> None:
        """Send all of them away."""
        for stream in tuple(self._streams):
            stream.cut()

    def _beat_all(self) -> None:
        self._beat = self.clock.callLater(HEARTBEAT, self._beat_all)
        for stream in tuple(self._streams):
            stream.beat()


class Gate:
    """Lets the one who waits go on soon after something has changed, and not too often."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._opened_at = -MOMENT
        self._opened: Once[None] = Once()
        self._opening: IDelayedCall | None = None

    def open(self) -> None:
        """Something has changed."""
        if self._opening is None:
            still = self._opened_at + MOMENT - self._clock.seconds()
            soon = max(COALESCING, min(still, MOMENT))  # the clock may have been set back
            self._opening = self._clock.callLater(soon, self._let_through)

    async def wait(self) -> None:
        """Return when it has opened since the last time: nothing that changes meanwhile is missed."""
        await self._opened.wait()
        self._opened = Once()

    def close(self) -> None:
        """Nobody waits here any more."""
        if self._opening is not None:
            self._opening.cancel()
        self._opening, self._opened = None, Once()

    def _let_through(self) -> None:
        self._opened_at = self._clock.seconds()
        self._opening = None
        self._opened.happen(None)


class Feed:
    """Every change, as one rendering shows it."""

    _log = Logger()

    def __init__(
        self,
        changes: Changes,
        render: Render,
        readers: Readers,
        *,
        remembered: int = RENDERED,
        together: bool = False,
    ) -> None:
        """``remembered`` renderings are kept for those who read later than others.

        Changes are rendered one by one, or all ``together`` that have come since the last time.
        """
        self._changes = changes
        self._render = render
        self._readers = readers
        self._remembered = remembered
        self._together = together
        self._gate = Gate(readers.clock)
        self._rendered: OrderedDict[tuple[tuple[Change, ...], str], bytes] = OrderedDict()
        self._places: dict[Stream, str] = {}
        """How far each reader has been told."""
        self._over: Once[None] = Once()
        """Those who follow now can be told nothing more."""
        self._telling: Deferred[None] | None = None
        self._leave: Callable[[], None] = lambda: None

    async def follow(self, request: GuardedRequest) -> bytes:
        """Answer with the changes since the place that is asked for, or from now on, until one of us ends it.

        An event ``reset`` says that the place is not known any more: what the reader knows may be out of date.
        Raises ``Refused`` if there are too many readers.
        """
        if request.method == b"HEAD":
            return _announce(request)
        stream = self._readers.enter(request, self._gate.open)
        try:
            self._enter(stream, asked_place(request))
            await self._over.wait()
        finally:
            self._exit(stream)
            self._readers.leave(stream)
        return b""

    def _enter(self, stream: Stream, place: str | None) -> None:
        if place is None:
            place = self._changes.place
            stream.tell(f"id: {place}\n\n".encode())
        self._places[stream] = place
        self._gate.open()
        if self._telling is None:
            self._leave = self._changes.watch(lambda _: self._gate.open())
            self._telling = Deferred.fromCoroutine(self._tell_all())
            self._telling.addErrback(self._send_away)

    def _exit(self, stream: Stream) -> None:
        del self._places[stream]
        if not self._places and self._telling is not None:
            self._leave()
            self._telling.cancel()
            self._telling = None
            self._gate.close()

    def _send_away(self, failure: Failure) -> None:
        """They come back to their places in two seconds."""
        if failure.check(CancelledError):  # they have gone
            return
        if failure.check(JournalUnavailable):
            self._log.warn("events are not told any more: the journal: {problem}", problem=str(failure.value))
        else:  # a bug; the answers have begun, so that they can only end
            self._log.failure("telling what has changed", failure)
        over, self._over = self._over, Once()
        over.happen(None)

    async def _tell_all(self) -> None:
        while True:
            await self._gate.wait()
            while await self._tell_a_part():
                pass

    async def _tell_a_part(self) -> bool:
        """Tell each who is behind and has room a part of what it has missed, and give whether there is more of it."""
        more = False
        for place, streams in self._behind().items():
            newest = self._changes.place
            told, reached = await self._part(place)
            more = more or reached != newest
            for start in range(0, len(streams), READERS_A_TURN):
                self._tell(streams[start : start + READERS_A_TURN], told, reached)
                await deferLater(self._readers.clock, 0)
        return more

    def _behind(self) -> dict[str, list[Stream]]:
        """Those who are to be told something and have room for it, by the place at which they are."""
        found: dict[str, list[Stream]] = {}
        for stream, place in self._places.items():
            if stream.has_room and place != self._changes.place:
                found.setdefault(place, []).append(stream)
        return found

    def _tell(self, streams: Sequence[Stream], told: bytes, reached: str) -> None:
        for stream in streams:
            if stream.has_room and stream in self._places:
                self._places[stream] = reached
                stream.tell(told)

    async def _part(self, place: str) -> tuple[bytes, str]:
        """What is told to whoever is at this place now, and how far that is."""
        now = self._changes.place
        found = self._changes.since(place)
        if found is None:
            return event("reset", {}) + f"id: {now}\n\n".encode(), now
        if self._together:
            return await self._block(tuple(found), now), now
        places = [(change, self._changes.place_of(change) or now) for change in found[:CHANGES_A_TURN]]
        told = [await self._block((change,), at) for change, at in places]
        return b"".join(told), places[-1][1] if len(found) > CHANGES_A_TURN else now

    async def _block(self, changes: tuple[Change, ...], place: str) -> bytes:
        """What is told of changes; it is rendered once, unless it is asked for after many others."""
        key = (changes, place)
        if key not in self._rendered:
            told = await self._render(*changes)
            self._rendered[key] = b"" if told is None else told + f"id: {place}\n\n".encode()
            if len(self._rendered) > self._remembered:
                self._rendered.popitem(last=False)
        return self._rendered[key]


@dataclass(frozen=True)
class Log:
    """What a deployment's commands print."""

    deployment: str
    path: Path
    end: Callable[[], Coroutine[Any, Any, object]]
    """What is told at its end, as JSON; None while it goes on."""
    shown: Callable[[str], str]
    """Makes it fit for whoever follows."""


class LogFeed:
    """A file that grows, told piece by piece until the one who writes it has ended."""

    _log = Logger()

    def __init__(self, changes: Changes, readers: Readers) -> None:
        self._changes = changes
        self._readers = readers

    async def follow(self, request: GuardedRequest, log: Log) -> bytes:
        """Answer with what is in the log from the byte on that is asked for, and what comes, and then how it ended.

        Raises ``Refused`` if there are too many readers.
        """
        if request.method == b"HEAD":
            return _announce(request)
        stream = self._readers.enter(request)
        gate = Gate(self._readers.clock)
        leave = self._changes.watch(lambda change: gate.open() if change.id == log.deployment else None)
        try:
            await self._tell(stream, gate, log, _offset(asked_place(request)))
        except (JournalUnavailable, OSError) as problem:
            self._log.warn("a log is not followed any more: {problem}", problem=str(problem))
        finally:
            leave()
            gate.close()
            self._readers.leave(stream)
        return b""

    async def _tell(self, stream: Stream, gate: Gate, log: Log, offset: int) -> None:
        while True:
            end = await log.end()  # asked for before the log is read: what was written until then is all there is
            while piece := _piece(log.path, offset):
                await stream.room()
                offset += len(piece)
                text = log.shown(piece.decode("utf-8", "replace"))
                stream.tell(event("log", text) + b"id: %d\n\n" % offset)
            if end is not None:
                stream.tell(event("end", end) + b"id: %d\n\n" % offset)
                return
            await gate.wait()


def _offset(place: str | None) -> int:
    fits = place is not None and place.isascii() and place.isdigit() and len(place) < 16
    return int(place or 0) if fits else 0


def _piece(path: Path, offset: int) -> bytes:
    """What stands there, up to a limit; no character and no colour is cut in two."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            found = file.read(PIECE)
    except FileNotFoundError:
        return b""
    return _CUT.sub(b"", found) or found if len(found) == PIECE else found
