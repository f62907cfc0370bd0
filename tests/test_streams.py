"""Who follows events misses nothing that still holds, and who does not read them costs next to nothing."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, ClassVar, cast

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import MemoryJournal
from tests.steered import SteeredApp, api_of, deliver
from tests.waiting import become
from tests.wire import Wire, connect, head, listening
from twisted_hook import streams
from twisted_hook.announced import AnnouncedJournal
from twisted_hook.api import LIMITS, Api
from twisted_hook.changes import Change, Changes, Kind
from twisted_hook.model import Deployment, JournalUnavailable, Outcome, Trigger
from twisted_hook.site import GuardedRequest, GuardedSite
from twisted_hook.streams import PIECE, READERS_A_TURN, Feed, Gate, Readers, Stream


class Reader:
    """Follows something, and takes apart what it is told."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    @property
    def head(self) -> str:
        return self.wire.received.partition(b"\r\n\r\n")[0].decode()

    @property
    def blocks(self) -> list[dict[str, str]]:
        """Each whole block of fields."""
        told = self.wire.received.partition(b"\r\n\r\n")[2].decode("utf-8", "ignore")
        whole = told.rpartition("\n\n")[0].split("\n\n")
        return [dict(line.split(": ", 1) for line in block.split("\n") if ": " in line) for block in whole]

    @property
    def events(self) -> list[dict[str, str]]:
        return [block for block in self.blocks if "event" in block]

    @property
    def place(self) -> str:
        return [block["id"] for block in self.blocks if "id" in block][-1]

    @property
    def text(self) -> str:
        return "".join(json.loads(each["data"]) for each in self.events if each["event"] == "log")

    async def begun(self) -> Reader:
        await become(lambda: "retry" in str(self.blocks))
        return self

    async def reaches(self, place: str) -> None:
        """Wait for what is told last, but for heartbeats, and forget all that was told."""
        await become(lambda: f"\nid: {place}\n\n".encode() in self.wire.received[-1000:])
        self.wire.received = b""

    async def told(self, number: int) -> list[dict[str, str]]:
        """The first events, when there are so many."""
        await become(lambda: len(self.events) >= number)
        return self.events[:number]


@dataclass
class Served:
    """An API with one app, of which every change is told."""

    port: int
    changes: Changes
    readers: Readers
    journal: AnnouncedJournal
    stored: MemoryJournal
    app: SteeredApp
    logs: Path
    followed: list[Reader] = field(default_factory=list)

    async def follow(self, path: str = "/events", *headers: str) -> Reader:
        """Without chunks, and so without keeping the connection."""
        wire = await connect(self.port)
        lines = (f"GET /api/v1{path} HTTP/1.0", "Host: localhost", *headers, "", "")
        wire.send("\r\n".join(lines).encode())
        self.followed.append(Reader(wire))
        return await self.followed[-1].begun()

    async def get(self, path: str) -> Any:
        wire = await connect(self.port)
        wire.send(head(f"GET /api/v1{path}"))
        answer = await wire.answer()
        await wire.close()
        return json.loads(answer.body)

    async def deployment(self) -> Deployment:
        return await self.journal.enqueue("web", Trigger.MANUAL)

    def print(self, deployment: str, data: bytes) -> None:
        with (self.logs / f"{deployment}.log").open("ab") as file:
            file.write(data)
        self.changes.publish(Kind.LOG, deployment)


@asynccontextmanager
async def served(state: Path) -> AsyncIterator[Served]:
    stored, changes, readers = MemoryJournal(), Changes("life"), Readers(reactor)
    journal = AnnouncedJournal(stored, changes.publish)
    app, logs = SteeredApp(stored), state / "logs"
    logs.mkdir()
    api = api_of(journal, [app], state, changes=changes, readers=readers)
    site = GuardedSite(api.app.resource(), screen=Api.screen, reactor=reactor, limits=LIMITS)
    async with listening(site) as port:
        made = Served(port, changes, readers, journal, stored, app, logs)
        try:
            yield made
        finally:
            readers.end()
            for reader in made.followed:
                await reader.wire.closed()
    assert not readers.number
    assert not changes._watchers


# --- events


@pytest_twisted.ensureDeferred
async def test_every_change_is_told_as_the_api_shows_it(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        reader = await api.follow()
        assert "text/event-stream" in reader.head
        made = await api.deployment()
        delivery = await deliver(api.stored, "guid-1", ("acme/web", "refs/heads/main", None))
        api.changes.publish(Kind.DELIVERY, delivery)
        await api.journal.steer("web", await api.journal.steering("web"))
        told = await reader.told(3)
        assert [each["event"] for each in told] == ["deployment", "delivery", "app"]
        assert [each["id"] for each in told] == ["life-1", "life-2", "life-3"]
        assert json.loads(told[0]["data"]) == await api.get(f"/deployments/{made.id}")
        assert json.loads(told[1]["data"]) == await api.get(f"/deliveries/{delivery}")
        assert [json.loads(told[2]["data"])] == await api.get("/apps")


@pytest_twisted.ensureDeferred
async def test_text_from_outside_is_json_in_an_event(tmp_path: Path) -> None:
    """P87."""
    async with served(tmp_path) as api:
        reader = await api.follow()
        made = await api.deployment()
        await api.journal.finish(made.id, Outcome.FAILED, 1.0, reason="<script>\nevent: reset\n\ndata: x\r\n\r\n")
        [told] = await reader.told(1)
        assert json.loads(told["data"])["reason"] == "<script>\nevent: reset\n\ndata: x\r\n\r\n"


@pytest_twisted.ensureDeferred
async def test_who_comes_back_is_told_what_it_has_missed(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        reader = await api.follow()
        first = await api.deployment()
        await reader.told(1)
        await reader.wire.close()
        second, third = await api.deployment(), await api.deployment()
        for again in (
            await api.follow("/events", f"Last-Event-ID: {reader.place}"),
            await api.follow(f"/events?since={reader.place}"),
        ):
            told = await again.told(2)
            assert [json.loads(each["data"])["id"] for each in told] == [second.id, third.id]
        assert first.id not in str(told)


@pytest_twisted.ensureDeferred
async def test_who_was_away_for_too_long_begins_anew(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        for place in ("another-1", "life-99", "life--1", "x", "%ff"):
            reader = await api.follow(f"/events?since={place}")
            assert await reader.told(1) == [{"event": "reset", "data": "{}", "id": "life-0"}]


@pytest_twisted.ensureDeferred
async def test_a_place_is_known_before_anything_has_changed(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        reader = await api.follow()
        await become(lambda: len(reader.blocks) == 2)
        assert reader.place == "life-0" == (await api.get("/server"))["place"]


@pytest_twisted.ensureDeferred
async def test_more_changes_than_one_turn_takes_come_in_their_order(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        made = [await api.deployment() for _ in range(3 * streams.CHANGES_A_TURN)]
        reader = await api.follow("/events?since=life-0")
        told = await reader.told(len(made))
        assert [json.loads(each["data"])["id"] for each in told] == [each.id for each in made]


@pytest_twisted.ensureDeferred
async def test_no_more_than_a_number_follow_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MOST", 2)
    async with served(tmp_path) as api:
        await api.follow()
        second = await api.follow()
        wire = await connect(api.port)
        wire.send(head("GET /api/v1/events"))
        answer = await wire.answer()
        assert (answer.status, "retry-after" in answer.headers) == (503, True)
        await wire.close()
        await second.wire.close()
        await become(lambda: api.readers.number == 1)
        await api.follow()


@pytest_twisted.ensureDeferred
async def test_a_stream_says_from_time_to_time_that_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT", 0.01)
    async with served(tmp_path) as api:
        reader = await api.follow()
        await become(lambda: reader.wire.received.count(b"\n:\n") >= 3)
        assert reader.events == []


@pytest_twisted.ensureDeferred
async def test_who_closes_its_half_is_not_told_any_more(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        reader = await api.follow()
        reader.wire.half_close()
        await reader.wire.closed()
        await become(lambda: not api.readers.number)


@pytest_twisted.ensureDeferred
async def test_who_asks_for_the_head_of_a_stream_gets_that_and_holds_no_place(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        made = await api.deployment()
        for path in ("/events", f"/deployments/{made.id}/log?follow=1"):
            wire = await connect(api.port, bodiless=True)
            wire.send(b"HEAD /api/v1%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
            answer = await wire.answer()
            assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
            await become(lambda: not api.readers.number)
            await wire.close()


@pytest_twisted.ensureDeferred
async def test_all_of_them_are_sent_away_at_a_stop(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        made = await api.deployment()
        followed = [await api.follow(), await api.follow(f"/deployments/{made.id}/log?follow=1")]
        api.readers.end()
        for reader in followed:
            await reader.wire.closed()


@pytest_twisted.ensureDeferred
async def test_a_journal_that_fails_ends_the_stream_and_a_bug_does_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path) as api:
        reader = await api.follow()
        monkeypatch.setattr(api.stored, "deployment", _unavailable)
        await api.deployment()
        await reader.wire.closed()
        assert reader.events == []
        monkeypatch.undo()
        again = await api.follow("/events", f"Last-Event-ID: {reader.place}")
        assert [each["event"] for each in await again.told(1)] == ["deployment"]


async def _unavailable(_: str) -> None:
    raise JournalUnavailable("no disk")


# --- those who do not read


@pytest_twisted.ensureDeferred
async def test_who_does_not_read_costs_a_buffer_and_others_are_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T42."""
    monkeypatch.setattr(streams, "MOMENT", 0.0)
    monkeypatch.setattr(streams, "STALL", 3600.0)
    big = b"event: app\ndata: " + b"x" * 200_000 + b"\n"
    changes, rendered = Changes("life"), 0
    readers, connections = Readers(reactor), []

    async def render(_: Change) -> bytes:
        nonlocal rendered
        rendered += 1
        return big

    feed = Feed(changes, render, readers)
    async with listening(_site_of(feed)) as port:
        followed = [Reader(await connect(port)) for _ in range(6)]
        for reader in followed:
            reader.wire.send(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            await reader.begun()
        deaf, awake = followed[:3], followed[3:]
        for reader in deaf:
            reader.wire.transport.pauseProducing()  # type: ignore[attr-defined]
        connections = [stream._request.channel.transport for stream in list(readers._streams)[:3]]
        published = unchanged = 0
        held: list[int] = []
        while unchanged < 10:  # the kernel may find room once more; in the end nothing is queued for who does not read
            changes.publish(Kind.APP, f"app{published}")
            published += 1
            for reader in awake:
                await reader.reaches(changes.place)
            before, held = held, [_buffered(each) for each in connections]
            unchanged = unchanged + 1 if held == before and all(held) else 0
        assert rendered == published, "each change is rendered once, for whoever wants it"
        assert max(held) < 2 * len(big)
        for reader in deaf:
            reader.wire.transport.resumeProducing()  # type: ignore[attr-defined]
            await reader.reaches(changes.place)
        readers.end()
        for reader in followed:
            await reader.wire.closed()


@pytest_twisted.ensureDeferred
async def test_who_takes_nothing_for_a_while_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T42."""
    monkeypatch.setattr(streams, "STALL", 0.5)
    monkeypatch.setattr(streams, "MOMENT", 0.0)

    async def render(_: Change) -> bytes:
        return b"event: app\ndata: " + b"x" * 100_000 + b"\n"

    changes, readers = Changes("life"), Readers(reactor)
    async with listening(_site_of(Feed(changes, render, readers))) as port:
        reader = Reader(await connect(port))
        reader.wire.send(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        await reader.begun()
        reader.wire.transport.pauseProducing()  # type: ignore[attr-defined]
        while readers.number:
            changes.publish(Kind.APP, "web")
            await deferLater(reactor, 0.001)
        reader.wire.transport.resumeProducing()  # type: ignore[attr-defined]
        await reader.wire.closed()


def _buffered(transport: Any) -> int:
    return len(transport.dataBuffer) - int(transport.offset) + sum(map(len, transport._tempDataBuffer))


def _site_of(feed: Feed) -> GuardedSite:
    from klein import Klein

    app = Klein()

    @app.route("/")
    async def follow(request: GuardedRequest) -> bytes:
        return await feed.follow(request)

    return GuardedSite(app.resource(), screen=lambda _: None, reactor=reactor, limits=LIMITS)


# --- logs


@pytest_twisted.ensureDeferred
async def test_a_log_is_followed_to_its_end(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        made = await api.deployment()
        api.print(made.id, b"one\n")
        reader = await api.follow(f"/deployments/{made.id}/log?follow=1")
        await become(lambda: reader.text == "one\n")
        api.print(made.id, b"\x1b[31mzw\xc3\xb6lf\x1b[0m\n")
        await become(lambda: reader.text == "one\nzwölf\n")
        api.print(made.id, b"the end\n")
        await api.journal.finish(made.id, Outcome.FAILED, 2.0, reason="make: exit 1")
        await reader.wire.closed()
        assert reader.text == "one\nzwölf\nthe end\n"
        assert json.loads(reader.events[-1]["data"]) == {"outcome": "failed", "reason": "make: exit 1"}
        assert reader.place == str((tmp_path / "logs" / f"{made.id}.log").stat().st_size)


@pytest_twisted.ensureDeferred
async def test_who_comes_back_to_a_log_goes_on_where_it_was(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        made = await api.deployment()
        api.print(made.id, b"one\ntwo\n")
        await api.journal.finish(made.id, Outcome.DEPLOYED, 2.0)
        path = f"/deployments/{made.id}/log?follow=1"
        for place, text in (
            ("4", "two\n"),
            ("0", "one\ntwo\n"),
            ("x", "one\ntwo\n"),
            ("99", ""),
            ("9" * 30, "one\ntwo\n"),
        ):
            reader = await api.follow(path, f"Last-Event-ID: {place}")
            await reader.wire.closed()
            assert (reader.text, reader.events[-1]["event"]) == (text, "end")


@pytest_twisted.ensureDeferred
async def test_a_long_log_comes_in_pieces_that_cut_nothing_in_two(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        made = await api.deployment()
        text = "x" * (PIECE - 2) + "€" * PIECE + "\x1b[1;31mred\x1b[0m" * 10_000
        api.print(made.id, text.encode())
        await api.journal.finish(made.id, Outcome.DEPLOYED, 2.0)
        reader = await api.follow(f"/deployments/{made.id}/log?follow=1&colour=1")
        await reader.wire.closed()
        assert reader.text == text
        plain = await api.follow(f"/deployments/{made.id}/log?follow=1")
        await plain.wire.closed()
        assert "\x1b" not in plain.text
        assert "red" * 10_000 in plain.text


@pytest_twisted.ensureDeferred
async def test_a_log_has_its_colours_for_who_asks_for_them(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        made = await api.deployment()
        api.print(made.id, b"\x1b[31mred\x1b[0m\n")
        for option, body in (("", b"red\n"), ("?colour=0", b"red\n"), ("?colour=1", b"\x1b[31mred\x1b[0m\n")):
            wire = await connect(api.port)
            wire.send(head(f"GET /api/v1/deployments/{made.id}/log{option}"))
            assert (await wire.answer()).body == body
            await wire.close()


class Turns(Clock):
    """A reactor each of whose turns takes a millisecond."""

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> IDelayedCall:
        return super().callLater(max(delay, 0.001), callable, *args, **kw)


class Asked:
    """A request of one who follows and reads all at once."""

    method = b"GET"
    args: ClassVar[dict[bytes, list[bytes]]] = {}
    gone = False

    def __init__(self) -> None:
        self.told = b""

    def write(self, data: bytes) -> None:
        self.told += data

    def header(self, _: bytes) -> list[bytes]:
        return []

    def setHeader(self, *_: object) -> None: ...

    def registerProducer(self, *_: object) -> None: ...

    def unregisterProducer(self) -> None: ...


class FeedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Turns()
        self.changes = Changes("life")
        self.feed = Feed(self.changes, self.render, Readers(self.clock))
        self.asked: list[Asked] = []
        self.failing = False
        self.following: list[Deferred[bytes]] = []
        self.addCleanup(self.leave)

    async def render(self, change: Change) -> bytes:
        if self.failing:
            raise JournalUnavailable("no disk")
        return f"event: {change.id}\n".encode()

    def follow(self, number: int) -> None:
        for _ in range(number):
            self.asked.append(Asked())
            request = cast("GuardedRequest", self.asked[-1])
            self.following.append(Deferred.fromCoroutine(self.feed.follow(request)))
        self.clock.pump([1.0, 1.0])

    def follow_with_room(self) -> Fickle:
        reader = Fickle(None)
        self.asked.append(reader)
        self.following.append(Deferred.fromCoroutine(self.feed.follow(cast("GuardedRequest", reader))))
        reader.producer.resumeProducing()
        self.clock.pump([1.0, 1.0])
        return reader

    def leave(self) -> None:
        for each in self.following:
            each.cancel()
            self.failureResultOf(each, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def told(self, name: str) -> int:
        return sum(each.told.count(f"event: {name}\n".encode()) for each in self.asked)

    def test_changes_are_gathered_and_many_are_told_in_turns(self) -> None:
        self.follow(2 * READERS_A_TURN + 1)
        for name in ("one", "two"):
            self.changes.publish(Kind.APP, name)
        self.assertEqual(self.told("one"), 0)
        self.clock.advance(streams.COALESCING)
        for number in (1, 2):
            self.assertEqual((self.told("one"), self.told("two")), (number * READERS_A_TURN,) * 2)
            self.clock.advance(0.001)
        self.assertEqual((self.told("one"), self.told("two")), (len(self.asked),) * 2)

    def test_what_changes_while_some_are_told_is_told_to_each_once_a_moment_later(self) -> None:
        self.follow(READERS_A_TURN + 1)
        self.changes.publish(Kind.APP, "one")
        self.clock.advance(streams.COALESCING)
        self.changes.publish(Kind.APP, "two")  # while the last waits for his turn
        self.clock.pump([0.001] * 5)
        self.assertEqual((self.told("one"), self.told("two")), (len(self.asked), 0))
        self.clock.pump([streams.MOMENT, 0.001, 0.001])
        self.assertEqual((self.told("one"), self.told("two")), (len(self.asked),) * 2)

    def test_more_than_one_turn_takes_is_told_without_another_change(self) -> None:
        self.follow(1)
        for number in range(3 * streams.CHANGES_A_TURN):
            self.changes.publish(Kind.APP, f"app{number}")
        self.clock.pump([streams.COALESCING, 0.001, 0.001, 0.001])
        self.assertEqual(self.asked[0].told.count(b"event: app"), 3 * streams.CHANGES_A_TURN)

    def test_when_the_telling_fails_all_end_and_who_comes_back_is_told(self) -> None:
        self.follow(2)
        self.failing = True
        self.changes.publish(Kind.APP, "one")
        self.clock.advance(streams.COALESCING)
        for each in self.following:
            self.successResultOf(each)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.following, self.failing = [], False
        self.follow(1)
        self.changes.publish(Kind.APP, "two")
        self.clock.advance(streams.COALESCING)
        self.assertEqual(self.told("two"), 1)

    def test_who_loses_its_room_before_its_turn_is_told_when_it_has_room_again(self) -> None:
        self.follow(READERS_A_TURN)
        reader = self.follow_with_room()
        self.changes.publish(Kind.APP, "one")
        self.clock.advance(streams.COALESCING)
        reader.producer.pauseProducing()
        self.clock.pump([0.001] * 5)
        self.assertNotIn(b"one", reader.told)
        reader.producer.resumeProducing()
        self.clock.pump([streams.MOMENT, 0.001])
        self.assertIn(b"one", reader.told)

    def test_nothing_turns_for_one_without_room_however_much_it_misses(self) -> None:
        reader = self.follow_with_room()
        reader.producer.pauseProducing()
        for number in range(3 * streams.CHANGES_A_TURN):
            self.changes.publish(Kind.APP, f"app{number}")
        self.clock.pump([streams.MOMENT, 0.001, 0.001])
        self.assertEqual(len(self.clock.getDelayedCalls()), 2, "the next heartbeat, and the end of patience")

    def test_who_goes_while_others_are_told_is_told_nothing_and_disturbs_nobody(self) -> None:
        self.follow(READERS_A_TURN + 2)
        self.changes.publish(Kind.APP, "one")
        self.clock.advance(streams.COALESCING)
        self.following[-2].cancel()
        self.clock.pump([0.001] * 3)
        self.assertEqual([b"one" in each.told for each in self.asked[-2:]], [False, True])

    def test_when_all_have_gone_in_the_midst_nothing_is_left_and_others_may_come(self) -> None:
        self.follow(READERS_A_TURN + 1)
        self.changes.publish(Kind.APP, "one")
        self.clock.advance(streams.COALESCING)
        for each in self.following:
            each.cancel()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.follow(1)
        self.changes.publish(Kind.APP, "two")
        self.clock.advance(streams.COALESCING)
        self.assertEqual(self.told("two"), 1)


class Fickle(Asked):
    """One who follows from a place and does not always read; its connection has room for one piece at a time."""

    def __init__(self, place: str | None) -> None:
        super().__init__()
        self.place, self.producer = place, cast("Stream", None)
        self.most, self.flooded = 0, False

    def header(self, _: bytes) -> list[bytes]:
        return [self.place.encode()] if self.place else []

    def registerProducer(self, *given: object) -> None:
        self.producer = cast("Stream", given[0])

    def write(self, data: bytes) -> None:
        super().write(data)
        self.most = max(self.most, data.count(b"id: "))
        self.flooded = self.flooded or (b"event: " in data and not self.producer.has_room)
        self.producer.pauseProducing()

    @property
    def reached(self) -> str:
        return str(re.findall(rb"id: (.*)\n", self.told)[-1], "ascii")


class EveryFeedTests(SynchronousTestCase):
    def test_whatever_happens_who_stays_and_reads_is_told_the_last_of_everything(self) -> None:
        for seed in range(60):
            Story(self, Random(seed)).run()  # noqa: S311 - a story


class Story:
    """Readers come, go and stall while things change and the telling of it takes its time."""

    def __init__(self, test: SynchronousTestCase, chance: Random) -> None:
        self.test, self.chance = test, chance
        self.clock, self.changes = Turns(), Changes("life")
        self.readers = Readers(self.clock)
        self.feed = Feed(self.changes, self.render, self.readers, together=chance.random() < 0.3, remembered=4)
        self.following: dict[Fickle, Deferred[bytes]] = {}
        self.slow = True

    async def render(self, *changes: Change) -> bytes:
        if self.slow and self.chance.random() < 0.3:
            await deferLater(cast("Any", self.clock), self.chance.random() / 10)
        return "".join(f"event: {change.id}\n" for change in changes).encode()

    def run(self) -> None:
        for _ in range(60):
            self.chance.choice([self.come, self.go, self.read, self.change, self.change, self.pass_time])()
        self.slow = False  # in the end nothing changes any more, and all read
        for _ in range(100):
            self.read()
            self.clock.advance(0.03)
        for reader in self.following:
            self.test.assertEqual((reader.reached, reader.flooded), (self.changes.place, False))
            self.test.assertLessEqual(reader.most, streams.CHANGES_A_TURN)
            missed = self.changes.since(reader.place) if reader.place else []
            for change in missed or ():
                self.test.assertIn(f"event: {change.id}\n".encode(), reader.told)
            self.test.assertEqual(b"event: reset" in reader.told, missed is None)
        while self.following:
            self.go()
        self.test.assertEqual((self.clock.getDelayedCalls(), self.changes._watchers), ([], {}))

    def come(self) -> None:
        reader = Fickle(self.chance.choice([None, "life-0", "old-1"]))
        following = Deferred.fromCoroutine(self.feed.follow(cast("GuardedRequest", reader)))
        self.following[reader] = following

    def go(self) -> None:
        if self.following:
            following = self.following.pop(self.chance.choice([*self.following]))
            following.cancel()
            self.test.failureResultOf(following, CancelledError)

    def read(self) -> None:
        for reader in self.following:
            if self.chance.random() < 0.5:
                reader.producer.resumeProducing()

    def change(self) -> None:
        for _ in range(self.chance.choice([1, 2, 3 * streams.CHANGES_A_TURN])):
            self.changes.publish(Kind.APP, f"app{self.chance.randrange(100)}")

    def pass_time(self) -> None:
        self.clock.pump([self.chance.choice([0.001, 0.02, 0.1])] * 3)


class GateTests(SynchronousTestCase):
    def test_a_clock_that_is_set_back_closes_it_for_no_longer(self) -> None:
        clock = Clock()
        gate = Gate(clock)
        clock.advance(3600)
        gate.open()
        clock.advance(streams.COALESCING)
        self.successResultOf(Deferred.fromCoroutine(gate.wait()))
        clock.rightNow -= 3600
        gate.open()
        clock.advance(streams.MOMENT)
        self.successResultOf(Deferred.fromCoroutine(gate.wait()))

    def test_it_opens_soon_after_a_change_and_not_too_often(self) -> None:
        clock, passed = Clock(), list[float]()
        gate = Gate(clock)

        async def pass_again_and_again() -> None:
            while True:
                await gate.wait()
                passed.append(clock.seconds())

        passing = Deferred.fromCoroutine(pass_again_and_again())
        for _ in range(16):
            gate.open()
            clock.advance(1 / 64)
        self.assertEqual(passed, [1 / 32, 3 / 32, 5 / 32, 7 / 32])
        passing.cancel()
        self.failureResultOf(passing, CancelledError)
        gate.close()
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_it_opens_for_who_comes_after_the_change(self) -> None:
        clock = Clock()
        gate = Gate(clock)
        gate.open()
        clock.advance(streams.COALESCING)
        self.successResultOf(Deferred.fromCoroutine(gate.wait()))
        again = Deferred.fromCoroutine(gate.wait())
        self.assertNoResult(again)
        gate.open()
        clock.advance(streams.MOMENT)
        self.successResultOf(again)
