"""The guard refuses early, answers so that the sender can read it, and outlasts senders who mean harm."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock, LoopingCall, deferLater
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.logger import LogEvent, LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from twisted.web import http
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from tests.waiting import become
from tests.wire import Answer, Wire, connect, head, listening, patient, post
from twisted_hook.model import Refused
from twisted_hook.peers import Trust
from twisted_hook.rates import Rate
from twisted_hook.site import BODIES, LARGE, QUIET, GuardedChannel, GuardedRequest, GuardedSite, Limits, Tally

MIB = 1_048_576
NO_HEADERS: dict[bytes, bytes] = {}


class Counting(Resource):
    """Answers with the length of what it was sent, and keeps what it was asked."""

    isLeaf = True  # noqa: N815 (Twisted's name)

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bytes] = []
        self.largest = 0

    def render_GET(self, request: GuardedRequest) -> bytes:
        self.asked.append(request.path)
        return b"got"

    def render_POST(self, request: GuardedRequest) -> bytes:
        self.asked.append(request.path)
        return b"%d" % len(request.body)


class Pending(Resource):
    """Answers when it is told to."""

    isLeaf = True  # noqa: N815 (Twisted's name)

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[GuardedRequest] = []

    def render_POST(self, request: GuardedRequest) -> int:
        self.requests.append(request)
        return NOT_DONE_YET

    def answer(self) -> None:
        request = self.requests.pop(0)
        request.write(request.answer(b"done"))
        request.finish()


class Broken(Resource):
    isLeaf = True  # noqa: N815 (Twisted's name)

    def render_GET(self, request: GuardedRequest) -> bytes:
        raise RuntimeError("the canary of a bug")


def anybody(request: GuardedRequest) -> None:
    """A screen that lets everything through."""


def nobody(request: GuardedRequest) -> None:
    """A screen that refuses for a cause that has nothing to do with sizes."""
    raise Refused(401, "no signature")


class Line(StringTransportWithDisconnection):
    """A connection in memory."""

    protocol: GuardedChannel
    half_closed = False
    aborted = False

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def loseConnection(self) -> None:
        if self.connected:
            super().loseConnection()

    def abortConnection(self) -> None:
        self.aborted = True
        self.loseConnection()


class Door:
    """A door in memory, whose clock stands still."""

    def __init__(
        self, resource: Resource | None = None, screen: Callable[[GuardedRequest], None] = anybody, **limits: Any
    ) -> None:
        self.clock = Clock()
        self.resource = resource or Counting()
        self.site = GuardedSite(self.resource, screen=screen, reactor=self.clock, limits=Limits(**limits))

    def connect(self, peer: IAddress | None = None, *, line: Line | None = None) -> Line:
        peer = peer or IPv4Address("TCP", "192.0.2.1", 54321)
        channel = self.site.buildProtocol(peer)
        assert channel is not None
        line = line or Line(peerAddress=peer)
        line.protocol = channel
        channel.makeConnection(line)
        return line

    def drip(self, line: Line, data: bytes, *, each: float) -> float:
        """Send one byte at a time, and tell after how many seconds the connection was closed."""
        start = self.clock.seconds()
        for byte in data:
            if not line.connected:
                break
            line.protocol.dataReceived(bytes([byte]))
            self.clock.advance(each)
        return self.clock.seconds() - start


class DeadlineTests(SynchronousTestCase):
    """Nobody holds a connection for ever."""

    def test_slow_headers_are_ended_by_the_deadline(self) -> None:
        """P23."""
        door = Door()
        line = door.connect()
        self.assertLessEqual(door.drip(line, b"GET / HTTP/1.1\r\nX: " + b"y" * 1000, each=0.5), 11)
        self.assertFalse(line.connected)
        self.assertTrue(line.value().startswith(b"HTTP/1.1 408 "))

    def test_a_slow_body_is_ended_by_the_deadline(self) -> None:
        """P23."""
        door = Door()
        line = door.connect()
        line.protocol.dataReceived(head("POST /", length=1000))
        self.assertLessEqual(door.drip(line, b"y" * 1000, each=0.5), 11)
        self.assertFalse(line.connected)
        self.assertTrue(line.value().startswith(b"HTTP/1.1 408 "))

    def test_who_connects_and_says_nothing_is_hung_up_on(self) -> None:
        """P23."""
        door = Door()
        line = door.connect()
        door.clock.advance(14.9)
        self.assertTrue(line.connected)
        door.clock.advance(0.2)
        self.assertFalse(line.connected)
        self.assertEqual(line.value(), b"")

    def test_a_connection_that_is_kept_alive_for_nothing_is_hung_up_on(self) -> None:
        door = Door()
        line = door.connect()
        door.clock.advance(14)
        line.protocol.dataReceived(head("GET /"))
        door.clock.advance(14.9)
        self.assertTrue(line.connected)
        door.clock.advance(0.2)
        self.assertFalse(line.connected)

    def test_no_deadline_runs_while_a_whole_request_is_worked_on(self) -> None:
        pending = Pending()
        door = Door(pending)
        line = door.connect()
        line.protocol.dataReceived(head("POST /", length=4) + b"bo")
        door.clock.advance(9)
        line.protocol.dataReceived(b"dy")
        door.clock.advance(3600)
        self.assertTrue(line.connected)
        pending.answer()
        self.assertTrue(line.value().endswith(b"done"))

    def test_the_next_request_on_a_connection_has_a_deadline_of_its_own(self) -> None:
        door = Door()
        line = door.connect()
        for _ in range(3):
            line.protocol.dataReceived(head("POST /", length=4) + b"bo")
            door.clock.advance(9)
            line.protocol.dataReceived(b"dy")
        self.assertEqual(line.value().count(b"HTTP/1.1 200 OK"), 3)
        line.protocol.dataReceived(b"P")
        door.clock.advance(10)
        self.assertIn(b"HTTP/1.1 408 ", line.value())

    def test_a_request_that_waited_behind_another_has_a_deadline_from_its_turn_on(self) -> None:
        pending = Pending()
        door = Door(pending)
        line = door.connect()
        line.protocol.dataReceived(head("POST /", length=0) + b"POST / HT")
        door.clock.advance(60)
        pending.answer()
        door.clock.advance(0)
        door.clock.advance(9.9)
        self.assertNotIn(b"408", line.value())
        door.clock.advance(0.1)
        self.assertIn(b"408", line.value())

    def test_who_does_not_take_the_farewell_is_cut_off(self) -> None:
        """Over TLS a connection ends when both sides have said so; what comes until then changes nothing."""

        class Stubborn(Line):
            def loseConnection(self) -> None:
                if self.aborted:
                    super().loseConnection()

        door = Door(linger_bytes=10)
        line = door.connect(line=Stubborn())
        door.clock.advance(15)
        for _ in range(10):
            self.assertTrue(line.connected)
            line.protocol.dataReceived(b"x")
            door.clock.advance(1.5)
        self.assertTrue(line.aborted)
        self.assertEqual(door.site.connected, 0)

        line = door.connect(line=Stubborn())
        door.clock.advance(15)
        line.protocol.dataReceived(b"x" * 11)
        self.assertTrue(line.aborted)


class RefusalTests(SynchronousTestCase):
    """How a connection ends whose sender was refused."""

    def test_a_refusal_is_answered_at_once_and_nothing_after_it_is_executed(self) -> None:
        counting = Counting()
        door = Door(counting)
        line = door.connect()
        line.protocol.dataReceived(head("GET /", {b"bad header": b"x"}) + head("GET /second"))
        line.protocol.dataReceived(head("GET /third"))
        door.clock.advance(0)
        self.assertEqual(line.value().count(b"HTTP/1.1"), 1)
        self.assertEqual(counting.asked, [])
        self.assertTrue(line.half_closed)

    def test_a_refusal_is_one_constant_body_a_status_and_names_no_software(self) -> None:
        line = Door(screen=nobody, small_body=9).connect()
        line.protocol.dataReceived(head("POST /", length=10))
        headers, _, body = line.value().partition(b"\r\n\r\n")
        self.assertEqual(body, BODIES[401])
        self.assertIn(b"\r\nConnection: close", headers)
        self.assertIn(b"\r\nContent-Type: application/json", headers)
        self.assertIn(b"\r\nContent-Length: %d" % len(body), headers)
        self.assertIn(b"\r\nServer: hookdeploy", headers)
        self.assertNotIn(b"Twisted", headers)

    def test_a_refused_head_request_gets_no_body(self) -> None:
        line = Door(screen=nobody).connect()
        line.protocol.dataReceived(head("HEAD /"))
        self.assertTrue(line.value().startswith(b"HTTP/1.1 401 Unauthorized\r\n"))
        self.assertTrue(line.value().endswith(b"\r\n\r\n"))

    def test_what_the_screen_has_set_goes_out_with_the_refusal(self) -> None:
        def screen(request: GuardedRequest) -> None:
            request.setHeader(b"Allow", b"POST")
            raise Refused(405, "a method other than POST")

        line = Door(screen=screen).connect()
        line.protocol.dataReceived(head("PUT /"))
        self.assertIn(b"\r\nAllow: POST\r\n", line.value())

    def test_who_sends_on_is_heard_for_a_while_and_then_cut_off(self) -> None:
        door = Door(screen=nobody)
        line = door.connect()
        line.protocol.dataReceived(head("POST /", length=20 * MIB))
        for _ in range(16):
            line.protocol.dataReceived(b"x" * 65_536)
            self.assertTrue(line.connected)
        line.protocol.dataReceived(b"x")
        self.assertFalse(line.connected)

    def test_who_was_refused_and_stays_is_hung_up_on(self) -> None:
        door = Door(screen=nobody, small_body=9)
        line = door.connect()
        line.protocol.dataReceived(head("POST /", length=10))
        door.clock.advance(0.4)
        self.assertTrue(line.connected)
        door.clock.advance(0.2)
        self.assertFalse(line.connected)

    def test_where_and_how_are_asked_before_how_much(self) -> None:
        for status, answered in ((404, b"404"), (405, b"405"), (401, b"413"), (415, b"413")):

            def screen(request: GuardedRequest, status: int = status) -> None:
                raise Refused(status, "for the sake of it")

            line = Door(screen=screen, max_body=10).connect()
            line.protocol.dataReceived(head("POST /", length=11))
            self.assertEqual(line.value().split()[1], answered)

    def test_a_doubtful_framing_is_refused(self) -> None:
        """P24: what Twisted itself lets pass."""
        chunked = {b"Transfer-Encoding": b"chunked"}
        for request in (
            head("POST /", {b"Transfer-Encoding": b"identity"}, length=2) + b"{}",
            head("POST /", {b"Transfer-Encoding": b"identity"}),
            head("POST /", {**chunked, b"transfer-encoding": b"identity"}) + b"0\r\n\r\n",
            head("POST /", chunked).replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n",
        ):
            line = Door().connect()
            line.protocol.dataReceived(request)
            self.assertTrue(line.value().startswith(b"HTTP/1.1 400 "), request)

    def test_a_malformed_host_is_refused(self) -> None:
        """P26."""
        for host in (
            b"a..b:99999",
            b"a" * 70,
            b"a" * 70 + b".example.com",
            b"a:b",
            b"a/b",
            b"\xe9.example.com",
            b"[::1",
        ):
            line = Door().connect()
            line.protocol.dataReceived(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
            self.assertTrue(line.value().startswith(b"HTTP/1.1 400 "), host)
        line = Door().connect()
        line.protocol.dataReceived(b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n")
        self.assertTrue(line.value().startswith(b"HTTP/1.1 400 "))

    def test_an_ordinary_host_is_let_in(self) -> None:
        for host in (
            b"example.com",
            b"example.com.",
            b"a_b.example:8000",
            b"127.0.0.1:8000",
            b"[::1]:8000",
            b"xn--bcher-kva.ch",
            b"",
        ):
            line = Door().connect()
            line.protocol.dataReceived(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
            self.assertTrue(line.value().startswith(b"HTTP/1.1 200 "), host)
        line = Door().connect()
        line.protocol.dataReceived(b"GET / HTTP/1.0\r\n\r\n")
        self.assertTrue(line.value().startswith(b"HTTP/1.0 200 "))


class StayTests(SynchronousTestCase):
    """Who was refused for a small request of plain framing goes on over the same connection."""

    def only_get(self, request: GuardedRequest) -> None:
        if request.method != b"GET":
            raise Refused(401, "no signature")

    def answers(self, line: Line) -> list[bytes]:
        """The statuses of all answers, in order."""
        return [part[:3] for part in line.value().split(b"HTTP/1.1 ")[1:]]

    def test_the_answer_comes_before_the_body_and_the_body_is_kept_nowhere(self) -> None:
        counting = Counting()
        door = Door(counting, screen=self.only_get, small_body=10)
        line = door.connect()
        line.protocol.dataReceived(head("POST /", length=10))
        headers, _, body = line.value().partition(b"\r\n\r\n")
        self.assertEqual((self.answers(line), body), ([b"401"], BODIES[401]))
        self.assertNotIn(b"Connection:", headers)
        [request] = line.protocol.requests
        line.protocol.dataReceived(b"GET / HTT")
        self.assertEqual(request.body, b"")
        line.protocol.dataReceived(b"P")
        self.assertEqual(line.protocol.requests, [])
        line.protocol.dataReceived(head("GET /next"))
        self.assertEqual(self.answers(line), [b"401", b"200"])
        self.assertEqual((counting.asked, door.site.in_flight), ([b"/next"], 0))

    def test_every_request_of_a_queue_gets_its_own_answer_in_order(self) -> None:
        """T04: the body of a refused request is never taken for a request."""
        counting = Counting()
        inner = head("GET /smuggled")
        whole = (post("/", NO_HEADERS, inner) + head("GET /1") + head("PUT /") + head("GET /2")) * 3
        for size in (1, 7, len(inner), len(whole)):
            counting.asked.clear()
            door = Door(counting, screen=self.only_get)
            line = door.connect()
            for start in range(0, len(whole), size):
                line.protocol.dataReceived(whole[start : start + size])
                door.clock.advance(0)
            self.assertEqual(self.answers(line), [b"401", b"200", b"401", b"200"] * 3)
            self.assertEqual(counting.asked, [b"/1", b"/2"] * 3)

    def test_a_refused_head_request_leaves_the_next_answer_in_its_place(self) -> None:
        line = Door(screen=self.only_get).connect()
        line.protocol.dataReceived(head("HEAD /"))
        self.assertTrue(line.value().endswith(b"\r\n\r\n"))
        line.protocol.dataReceived(head("GET /"))
        self.assertEqual(self.answers(line), [b"401", b"200"])

    def test_who_keeps_the_rest_of_a_body_back_is_hung_up_on_without_a_second_answer(self) -> None:
        for leave in (lambda door, line: door.clock.advance(10), lambda door, line: line.protocol.readConnectionLost()):
            door = Door(screen=nobody)
            line = door.connect()
            line.protocol.dataReceived(head("POST /", length=10) + b"x" * 9)
            door.clock.advance(9.9)
            self.assertTrue(line.connected)
            leave(door, line)
            self.assertFalse(line.connected)
            self.assertEqual(self.answers(line), [b"401"])
            self.assertEqual(door.clock.getDelayedCalls(), [])

    def test_who_half_closes_after_a_refused_request_is_let_go(self) -> None:
        door = Door(screen=nobody)
        line = door.connect()
        line.protocol.dataReceived(post("/", NO_HEADERS, b"body"))
        line.protocol.readConnectionLost()
        self.assertFalse(line.connected)

    def test_who_hangs_up_in_the_middle_leaves_nothing_behind(self) -> None:
        door = Door(screen=nobody)
        line = door.connect()
        line.protocol.dataReceived(head("POST /", length=10) + b"x")
        line.loseConnection()
        self.assertEqual((door.site.connected, door.clock.getDelayedCalls()), (0, []))

    def test_a_body_that_is_large_or_of_unknown_length_ends_the_connection(self) -> None:
        for request in (
            head("POST /", length=11),
            head("POST /", {b"Transfer-Encoding": b"chunked"}),
            head("POST /", {b"Expect": b"100-continue"}, length=1),
            head("POST /", {b"Connection": b"close"}, length=1),
            head("POST /", length=1).replace(b"HTTP/1.1", b"HTTP/1.0"),
        ):
            line = Door(screen=nobody, small_body=10).connect()
            line.protocol.dataReceived(request)
            self.assertEqual(self.answers(line), [b"401"], request)
            self.assertIn(b"\r\nConnection: close\r\n", line.value())
            self.assertTrue(line.half_closed)

    def test_an_answer_that_says_try_again_or_malformed_ends_the_connection(self) -> None:
        for status in (400, 408, 413, 429, 503):

            def screen(request: GuardedRequest, status: int = status) -> None:
                raise Refused(status, "for the sake of it")

            line = Door(screen=screen).connect()
            line.protocol.dataReceived(head("POST /", length=1))
            self.assertTrue(line.half_closed)


class BodyTests(SynchronousTestCase):
    """How much of a body is taken in."""

    def test_the_limit_is_exact(self) -> None:
        line = Door(max_body=10).connect()
        line.protocol.dataReceived(head("POST /", length=10) + b"x" * 10)
        self.assertTrue(line.value().endswith(b"10"))
        line = Door(max_body=10).connect()
        line.protocol.dataReceived(head("POST /", length=11))
        self.assertTrue(line.value().startswith(b"HTTP/1.1 413 "))

    def test_the_limit_is_exact_for_a_chunked_body(self) -> None:
        for size, status in ((10, b"200"), (11, b"413")):
            line = Door(max_body=10).connect()
            line.protocol.dataReceived(head("POST /", {b"Transfer-Encoding": b"chunked"}))
            line.protocol.dataReceived(b"6\r\nxxxxxx\r\n%x\r\n%b\r\n0\r\n\r\n" % (size - 6, b"x" * (size - 6)))
            self.assertEqual(line.value().split()[1], status)

    def test_a_chunk_that_promises_more_than_the_limit_waits_no_longer_than_the_deadline(self) -> None:
        door = Door()
        line = door.connect()
        line.protocol.dataReceived(head("POST /", {b"Transfer-Encoding": b"chunked"}) + b"f" * 17 + b"\r\nxx")
        door.clock.advance(10)
        self.assertTrue(line.value().startswith(b"HTTP/1.1 408 "))

    def test_tiny_chunks_are_refused(self) -> None:
        """T03: an hour of them fits under any limit of bytes."""
        door = Door()
        line = door.connect()
        line.protocol.dataReceived(head("POST /", {b"Transfer-Encoding": b"chunked"}) + b"1\r\nx\r\n" * 2000)
        self.assertTrue(line.value().startswith(b"HTTP/1.1 400 "))

    def test_small_chunks_are_taken_in(self) -> None:
        door = Door()
        line = door.connect()
        line.protocol.dataReceived(head("POST /", {b"Transfer-Encoding": b"chunked"}))
        line.protocol.dataReceived((b"80\r\n" + b"x" * 128 + b"\r\n") * 2000 + b"0\r\n\r\n")
        self.assertTrue(line.value().endswith(b"256000"))

    def test_all_bodies_together_have_a_limit(self) -> None:
        door = Door(in_flight=100, small_body=10)
        one, two = door.connect(), door.connect()
        one.protocol.dataReceived(head("POST /", length=200) + b"x" * 90)
        two.protocol.dataReceived(head("POST /", length=200) + b"x" * 30)
        self.assertEqual(door.site.in_flight, 100)
        two.protocol.dataReceived(b"x")
        self.assertTrue(two.value().startswith(b"HTTP/1.1 503 "))
        self.assertIn(b"\r\nRetry-After: ", two.value())
        self.assertEqual(door.site.in_flight, 80)

    def test_large_bodies_do_not_shut_out_a_small_one(self) -> None:
        door = Door(in_flight=100, small_body=10)
        door.connect().protocol.dataReceived(head("POST /", length=200) + b"x" * 110)
        small = door.connect()
        small.protocol.dataReceived(head("POST /", length=10) + b"x" * 10)
        self.assertTrue(small.value().startswith(b"HTTP/1.1 200 "))

    def test_what_a_body_held_is_given_back(self) -> None:
        """Whether the request was answered, refused, given up by its sender, or late."""
        pending = Pending()
        door = Door(pending, small_body=0, max_body=100)
        answered, refused, hung_up, late = (door.connect() for _ in range(4))
        answered.protocol.dataReceived(head("POST /", length=50) + b"x" * 50)
        refused.protocol.dataReceived(head("POST /", {b"Transfer-Encoding": b"chunked"}) + b"32\r\n" + b"x" * 50)
        hung_up.protocol.dataReceived(head("POST /", length=50) + b"x" * 49)
        late.protocol.dataReceived(head("POST /", length=50) + b"x" * 49)
        self.assertEqual(door.site.in_flight, 198)
        pending.answer()
        refused.protocol.dataReceived(b"\r\n33\r\n" + b"x" * 51)
        hung_up.loseConnection()
        door.clock.advance(10)
        self.assertEqual(door.site.in_flight, 0)

    def test_what_the_body_of_a_pending_request_held_is_given_back_when_its_sender_hangs_up(self) -> None:
        pending = Pending()
        door = Door(pending, small_body=0)
        line = door.connect()
        line.protocol.dataReceived(head("POST /", length=50) + b"x" * 50)
        line.loseConnection()
        self.assertEqual(door.site.in_flight, 0)
        self.assertTrue(pending.requests[0].gone)


class LargeBodyTests(SynchronousTestCase):
    """Bodies that take long to judge."""

    def sent(self, door: Door, times: int) -> list[Line]:
        lines = [door.connect() for _ in range(times)]
        for line in lines:
            line.protocol.dataReceived(post("/", NO_HEADERS, b"x" * LARGE) + head("GET /next"))
        return lines

    def test_somebody_else_has_a_turn_between_two_and_what_follows_waits(self) -> None:
        class Asking(Counting):
            def render_POST(self, request: GuardedRequest) -> bytes:
                front.clock.callLater(0, self.asked.append, b"somebody else")
                return super().render_POST(request)

        asking = Asking()
        front = Door(asking)
        lines = self.sent(front, 3)
        self.assertEqual(asking.asked, [])
        front.clock.advance(0)
        self.assertEqual([path for path in asking.asked if path != b"/next"], [b"/", b"somebody else"] * 3)
        self.assertEqual([line.value().count(b"HTTP/1.1 200 OK") for line in lines], [2, 2, 2])

    def test_who_hangs_up_before_its_turn_is_not_judged_and_holds_nobody_up(self) -> None:
        counting = Counting()
        door = Door(counting)
        lines = self.sent(door, 2)
        lines[0].loseConnection()
        door.clock.advance(0)
        door.clock.advance(0)
        self.assertEqual(counting.asked, [b"/", b"/next"])
        self.assertEqual(door.site.in_flight, 0)


class CrowdTests(SynchronousTestCase):
    """How many connections a door bears, and of whom."""

    def assert_turned_away(self, line: Line, status: int) -> None:
        self.assertTrue(line.value().startswith(b"HTTP/1.1 %d " % status))
        self.assertIn(b"\r\nRetry-After: ", line.value())
        self.assertTrue(line.half_closed)

    def test_one_address_has_no_more_than_its_share(self) -> None:
        door = Door(connections_per_peer=2)
        here, there = (IPv4Address("TCP", host, 1) for host in ("192.0.2.1", "192.0.2.2"))
        lines = [door.connect(here), door.connect(here)]
        self.assert_turned_away(door.connect(here), 429)
        self.assertEqual(door.connect(there).value(), b"")
        lines[0].loseConnection()
        self.assertEqual(door.connect(here).value(), b"")

    def test_one_network_of_ipv6_counts_as_one_address(self) -> None:
        door = Door(connections_per_peer=1)
        door.connect(IPv6Address("TCP", "2001:db8::1", 1))
        self.assert_turned_away(door.connect(IPv6Address("TCP", "2001:db8::2", 1)), 429)
        self.assertEqual(door.connect(IPv6Address("TCP", "2001:db8:0:1::1", 1)).value(), b"")

    def test_an_ipv4_address_is_the_same_when_it_comes_over_ipv6(self) -> None:
        door = Door(connections_per_peer=1)
        door.connect(IPv4Address("TCP", "192.0.2.1", 1))
        self.assert_turned_away(door.connect(IPv6Address("TCP", "::ffff:192.0.2.1", 1)), 429)

    def test_a_trusted_proxy_and_a_unix_socket_have_no_share(self) -> None:
        door = Door(connections_per_peer=1, trusted=Trust.in_words(["127.0.0.0/8", "::1/128"]))
        for peer in (IPv4Address("TCP", "127.0.0.1", 1), IPv6Address("TCP", "::1", 1), UNIXAddress(None)):
            self.assertEqual([door.connect(peer).value() for _ in range(3)], [b""] * 3)

    def test_a_full_house_hangs_up_on_who_keeps_it_waiting_longest(self) -> None:
        door = Door(connections=3)
        first, second, third = (door.connect() for _ in range(3))
        first.protocol.dataReceived(head("GET /"))  # who was served has not waited
        fourth = door.connect()
        self.assertEqual([line.connected for line in (first, second, third, fourth)], [True, False, True, True])
        fourth.protocol.dataReceived(head("GET /"))
        self.assertTrue(fourth.value().startswith(b"HTTP/1.1 200 "))

    def test_a_house_full_of_work_turns_away(self) -> None:
        door = Door(Pending(), connections=16)
        for _ in range(16):
            door.connect().protocol.dataReceived(head("POST /", length=0))
        turned_away = [door.connect(), door.connect()]
        for line in turned_away:
            self.assert_turned_away(line, 503)
        self.assertIsNone(door.site.buildProtocol(None))
        door.clock.advance(1)
        self.assertFalse(turned_away[0].connected)
        self.assertEqual(door.site.turned_away, 0)

    def test_nothing_is_kept_of_a_peer_who_left(self) -> None:
        door = Door()
        for n in range(5):
            door.connect(IPv4Address("TCP", f"192.0.2.{n}", 1)).loseConnection()
        self.assertEqual((door.site.connected, len(door.site.peers), len(door.site.waiting)), (0, 0, 0))


class SenderTests(SynchronousTestCase):
    """Who sends a request, as those see it who judge it."""

    def senders(self, *peers: IAddress, trusted: Sequence[str] = ()) -> list[str]:
        """Of a request with ``X-Forwarded-For``, over a connection from each of the peers."""
        seen: list[str] = []
        door = Door(screen=lambda request: seen.append(str(request.sender)), trusted=Trust.in_words(trusted))
        for peer in peers:
            door.connect(peer).protocol.dataReceived(head("GET /", {b"X-Forwarded-For": b"198.51.100.1, 192.0.2.7"}))
        return seen

    def test_only_a_trusted_proxy_speaks_for_others(self) -> None:
        """T12."""
        proxy, stranger, unix = (
            IPv4Address("TCP", "127.0.0.1", 1),
            IPv6Address("TCP", "2001:db8::1", 1),
            UNIXAddress(None),
        )
        self.assertEqual(self.senders(proxy, stranger, unix), ["127.0.0.1", "2001:db8::1", "None"])
        trusted = self.senders(proxy, stranger, unix, trusted=["127.0.0.0/8", "unix"])
        self.assertEqual(trusted, ["192.0.2.7", "2001:db8::1", "192.0.2.7"])


class Genuine(Counting):
    """Believes whoever signs with the word itself, and says so to the door."""

    def render_POST(self, request: GuardedRequest) -> bytes:
        self.asked.append(request.path)
        if request.header(b"signature") != [b"genuine"]:
            return request.refuse(Refused(401, "a wrong signature"))
        request.accept("accepted", "push", "github")
        return request.answer(b"welcome")


class RefusalRateTests(SynchronousTestCase):
    """T11, P36: how often one sender may be refused."""

    HERE = IPv4Address("TCP", "192.0.2.1", 1)
    THERE = IPv4Address("TCP", "192.0.2.2", 1)

    def screen(self, request: GuardedRequest) -> None:
        if request.path == b"/healthz":
            request.limited = False
        elif not request.header(b"signature"):
            raise Refused(401, "no signature")

    def door(self, genuine: Genuine | None = None, **limits: Any) -> Door:
        return Door(genuine or Genuine(), screen=self.screen, **{"refusals": Rate(burst=3, per_second=1), **limits})

    def answers(self, door: Door, peer: IAddress, request: bytes, times: int = 1) -> list[bytes]:
        """The statuses of the answers to so many requests, each over a connection of its own."""
        statuses = []
        for _ in range(times):
            line = door.connect(peer)
            line.protocol.dataReceived(request)
            line.loseConnection()
            statuses.append(line.value().split()[1])
        return statuses

    def test_who_is_refused_too_often_is_told_to_wait(self) -> None:
        door = self.door()
        unsigned = post("/", NO_HEADERS, b"body")
        self.assertEqual(self.answers(door, self.HERE, unsigned, 5), [b"401"] * 3 + [b"429"] * 2)
        self.assertEqual(self.answers(door, self.THERE, unsigned), [b"401"])
        door.clock.advance(1)
        self.assertEqual(self.answers(door, self.HERE, unsigned, 2), [b"401", b"429"])
        line = door.connect(self.HERE)
        line.protocol.dataReceived(unsigned)
        self.assertIn(b"\r\nRetry-After: ", line.value())
        self.assertTrue(line.half_closed)

    def test_what_is_refused_by_its_body_counts_too(self) -> None:
        genuine = Genuine()
        door = self.door(genuine)
        forged = post("/", {b"Signature": b"forged"}, b"body")
        self.assertEqual(self.answers(door, self.HERE, forged, 5), [b"401"] * 3 + [b"429"] * 2)
        self.assertEqual(len(genuine.asked), 3)

    def test_a_stranger_who_was_refused_too_often_is_not_heard_out(self) -> None:
        door = self.door()
        self.answers(door, self.HERE, post("/", NO_HEADERS, b""), 3)
        line = door.connect(self.HERE)
        line.protocol.dataReceived(head("POST /", {b"Signature": b"genuine"}, length=4))
        self.assertTrue(line.value().startswith(b"HTTP/1.1 429 "))

    def test_who_was_believed_before_is_judged_whatever_else_comes_from_there(self) -> None:
        door = self.door()
        genuine = post("/", {b"Signature": b"genuine"}, b"body")
        self.answers(door, self.HERE, genuine)
        self.answers(door, self.HERE, post("/", NO_HEADERS, b""), 10)
        self.assertEqual(self.answers(door, self.HERE, genuine, 5), [b"200"] * 5)
        self.assertEqual(self.answers(door, self.HERE, post("/", NO_HEADERS, b"")), [b"429"])

    def test_what_is_accepted_never_counts(self) -> None:
        door = self.door()
        genuine = post("/", {b"Signature": b"genuine"}, b"body")
        self.assertEqual(self.answers(door, self.HERE, genuine, 20), [b"200"] * 20)

    def test_a_health_check_is_neither_limited_nor_counted(self) -> None:
        door = self.door()
        self.assertEqual(self.answers(door, self.HERE, head("GET /healthz"), 10), [b"200"] * 10)
        self.assertEqual(self.answers(door, self.HERE, post("/", NO_HEADERS, b""), 4), [b"401"] * 3 + [b"429"])
        self.assertEqual(self.answers(door, self.HERE, head("GET /healthz"), 10), [b"200"] * 10)

    def test_malformed_and_late_requests_count_too(self) -> None:
        door = self.door()
        self.answers(door, self.HERE, b"rubbish\r\n\r\n", 2)
        door.connect(self.HERE).protocol.dataReceived(b"POST")
        door.clock.advance(door.site.limits.request_deadline)
        self.assertEqual(self.answers(door, self.HERE, b"rubbish\r\n\r\n"), [b"400"])

    def test_what_is_nobodys_fault_does_not_count(self) -> None:
        for status in (500, 503):

            def screen(request: GuardedRequest, status: int = status) -> None:
                raise Refused(status, "for the sake of it")

            door = Door(screen=screen, refusals=Rate(burst=3, per_second=1))
            self.assertEqual(self.answers(door, self.HERE, head("GET /"), 10), [b"%d" % status] * 10)

    def test_a_door_may_have_no_such_limit(self) -> None:
        door = self.door(refusals=None)
        self.assertEqual(self.answers(door, self.HERE, head("GET /"), 250), [b"401"] * 250)

    def test_behind_a_trusted_proxy_each_sender_counts_for_itself(self) -> None:
        """T12."""
        door = self.door(trusted=Trust.in_words(["192.0.2.1"]))

        def said(sender: bytes) -> list[bytes]:
            return self.answers(door, self.HERE, head("GET /", {b"X-Forwarded-For": b"198.51.100.9, " + sender}), 4)

        self.assertEqual(said(b"192.0.2.7"), [b"401"] * 3 + [b"429"])
        self.assertEqual(said(b"192.0.2.8"), [b"401"] * 3 + [b"429"])

    def test_a_header_of_somebody_untrusted_gives_no_fresh_start(self) -> None:
        """T12."""
        door = self.door()
        answers = [
            self.answers(door, self.HERE, head("GET /", {b"X-Forwarded-For": b"198.51.100.%d" % n})) for n in range(4)
        ]
        self.assertEqual(answers, [[b"401"]] * 3 + [[b"429"]])


class RefusalWarningTests(SynchronousTestCase):
    """What the log says of senders who are refused too often."""

    def warned(self, door: Door, peer: IAddress, headers: dict[bytes, bytes] = NO_HEADERS, times: int = 9) -> list[str]:
        with capturedLogs() as events:
            for _ in range(times):
                line = door.connect(peer)
                line.protocol.dataReceived(head("POST /", headers, length=0))
                line.loseConnection()
        return [formatEvent(event) for event in events if event["log_level"] is LogLevel.warn]

    def door(self, *trusted: str) -> Door:
        return Door(screen=nobody, refusals=Rate(burst=3, per_second=1), trusted=Trust.in_words(trusted))

    def test_an_episode_is_warned_of_once(self) -> None:
        door = self.door()
        [warning] = self.warned(door, IPv4Address("TCP", "9.9.9.9", 1))
        self.assertIn("9.9.9.9", warning)
        self.assertNotIn("trusted_proxies", warning)
        door.clock.advance(QUIET)
        self.assertEqual(len(self.warned(door, IPv4Address("TCP", "9.9.9.9", 1))), 1)

    def test_a_crowd_is_no_crowd_of_warnings(self) -> None:
        door = self.door()
        warnings = [self.warned(door, IPv6Address("TCP", f"2001:db8:0:{n}::1", 1)) for n in range(20)]
        self.assertEqual(sum(map(len, warnings)), 1)

    def test_what_looks_like_a_proxy_is_pointed_out(self) -> None:
        forwarded = {b"X-Forwarded-For": b"canary"}
        for peer, headers, said in (
            (IPv4Address("TCP", "127.0.0.1", 1), NO_HEADERS, "127.0.0.1"),
            (IPv6Address("TCP", "::ffff:10.0.0.1", 1), NO_HEADERS, "10.0.0.1"),
            (IPv4Address("TCP", "9.9.9.9", 1), forwarded, "9.9.9.9"),
            (UNIXAddress(None), NO_HEADERS, "a unix socket"),
        ):
            [warning] = self.warned(self.door(), peer, headers)
            self.assertIn(f"from {said} ", warning)
            self.assertIn("trusted_proxies", warning)
            self.assertNotIn("canary", warning)

    def test_a_proxy_that_is_trusted_is_not_pointed_out(self) -> None:
        [warning] = self.warned(self.door("127.0.0.1"), IPv4Address("TCP", "127.0.0.1", 1))
        self.assertNotIn("trusted_proxies", warning)


class PipelineTests(SynchronousTestCase):
    """Several requests in one write."""

    def test_each_turn_of_the_reactor_serves_one_request_of_a_connection(self) -> None:
        door = Door()
        line = door.connect()
        line.protocol.dataReceived(head("GET /") * 3)
        self.assertEqual(line.value().count(b"HTTP/1.1 200 OK"), 1)
        door.clock.advance(0)  # a Clock takes all turns at once
        self.assertEqual(line.value().count(b"HTTP/1.1 200 OK"), 3)

    def test_who_hangs_up_takes_the_rest_of_the_queue_along(self) -> None:
        counting = Counting()
        door = Door(counting)
        line = door.connect()
        line.protocol.dataReceived(head("GET /") * 3)
        line.loseConnection()
        door.clock.advance(0)
        self.assertEqual(len(counting.asked), 1)
        self.assertEqual(door.clock.getDelayedCalls(), [])

    def test_who_has_said_all_is_still_answered_in_full(self) -> None:
        """P35: a half-close."""
        pending = Pending()
        door = Door(pending)
        line = door.connect()
        line.protocol.dataReceived(head("POST /", length=0) * 2 + b"POST / HT")
        line.protocol.readConnectionLost()
        pending.answer()
        door.clock.advance(0)
        pending.answer()
        door.clock.advance(0)
        self.assertEqual(line.value().count(b"done"), 2)
        self.assertFalse(line.connected)

    def test_who_hangs_up_on_a_stream_ends_it(self) -> None:
        pending = Pending()
        line = Door(pending).connect()
        line.protocol.dataReceived(head("POST /", length=0))
        [request] = pending.requests
        request.write(b"data: 1\n\n")
        finished = request.notifyFinish()
        line.protocol.readConnectionLost()
        self.failureResultOf(finished)
        self.assertFalse(line.connected)


class TallyTests(SynchronousTestCase):
    """What a door says of itself."""

    def said(self, events: Sequence[LogEvent]) -> list[dict[str, int]]:
        return [event["counts"] for event in events if "counts" in event]

    def test_a_flood_is_one_line_a_second(self) -> None:
        """P36: 200 unsigned requests a second for 20 seconds are no 4000 lines."""
        clock = Clock()
        tally = Tally(clock)
        tally.open()
        with capturedLogs() as events:
            for _ in range(4000):
                tally.note("401 no signature")
                clock.advance(0.005)
            tally.close()
        said = self.said(events)
        self.assertLessEqual(len(said), 22)
        self.assertEqual(sum(counts["401 no signature"] for counts in said), 4000)

    def test_a_single_one_is_said_at_once(self) -> None:
        clock = Clock()
        tally = Tally(clock)
        tally.open()
        with capturedLogs() as events:
            tally.note("401 no signature")
        self.assertEqual(self.said(events), [{"401 no signature": 1}])
        clock.advance(1)
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_a_flood_from_everywhere_is_a_short_line_too(self) -> None:
        """What is told apart may name addresses, of which a sender has as many as it likes."""
        tally = Tally(Clock())
        tally.open()
        with capturedLogs() as events:
            for number in range(2000):
                tally.refuse(Refused(403, f"2001:db8::{number:x} is not welcome"))
            tally.note("202 accepted: push on github")
            tally.close()
        first, rest = self.said(events)
        self.assertEqual((sum(first.values()), sum(rest.values())), (1, 2000))
        self.assertEqual((len(rest), rest["403 and others"]), (52, 1949))
        self.assertEqual(rest["202 accepted: push on github"], 1)
        self.assertEqual(tally.refusals, {403: 2000})

    def test_a_closed_one_leaves_nothing_unsaid_and_no_timer(self) -> None:
        clock = Clock()
        tally = Tally(clock)
        tally.open()
        with capturedLogs() as events:
            for _ in range(3):
                tally.note("404 no such path")
            tally.close()
            tally.note("404 no such path")
        self.assertEqual(self.said(events), [{"404 no such path": n} for n in (1, 2, 1)])
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_a_line_of_a_refusal_holds_no_word_of_the_request(self) -> None:
        door = Door()
        with capturedLogs() as events:
            for request in (
                head("GET /canary", {b"can ary": b"x"}),
                b"CANARY / canary\r\n\r\n",
                head("GET /", {b"Host": b"canary"}),
            ):
                door.connect().protocol.dataReceived(request)
        self.assertEqual(len(self.said(events)), 3)
        self.assertNotIn("canary", repr(self.said(events)).lower())


def test_a_bug_is_logged_and_told_as_no_more_than_that(logged_failures: list[LogEvent]) -> None:
    door = Door(Broken())
    line = door.connect()
    line.protocol.dataReceived(head("GET /"))
    assert line.value().startswith(b"HTTP/1.1 500 ")
    assert line.value().endswith(BODIES[500])
    [event] = logged_failures
    assert event["log_failure"].check(RuntimeError)
    logged_failures.clear()


# Over real sockets.


def door(resource: Resource, screen: Callable[[GuardedRequest], None] = anybody, **limits: Any) -> GuardedSite:
    return GuardedSite(resource, screen=screen, reactor=reactor, limits=patient(**limits))


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twisted may make no temporary file."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a temporary file")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)


async def asked(port: int, *parts: bytes) -> Answer:
    """The only answer to these bytes, after which the connection is closed."""
    wire = await connect(port)
    wire.send(*parts)
    return await wire.last_answer()


@pytest_twisted.ensureDeferred
async def test_a_declared_length_over_the_limit_is_refused_before_the_body(no_files: None) -> None:
    """P20."""
    async with listening(door(Counting())) as port:
        answer = await asked(port, head("POST /", length=26_214_401))
        assert (answer.status, answer.headers["connection"]) == (413, "close")


@pytest_twisted.ensureDeferred
async def test_who_asks_whether_to_continue_is_not_told_to_continue(no_files: None) -> None:
    """P21."""
    async with listening(door(Counting())) as port:
        answer = await asked(port, head("POST /", {b"Expect": b"100-continue"}, length=26_214_401))
        assert answer.status == 413


@pytest_twisted.ensureDeferred
async def test_who_may_continue_is_told_so() -> None:
    async with listening(door(Counting())) as port:
        wire = await connect(port)
        wire.send(head("POST /", {b"Expect": b"100-continue"}, length=4))
        assert (await wire.answer()).status == 100
        wire.send(b"body")
        assert (await wire.answer()).body == b"4"
        await wire.close()


@pytest_twisted.ensureDeferred
async def test_a_chunked_body_is_counted(no_files: None) -> None:
    """P22: no more than the limit is ever held, all of it is let go, and the sender may read the answer."""
    site = door(Counting(), max_body=4 * MIB, small_body=0)
    async with listening(site) as port:
        wire = await connect(port)
        wire.send(head("POST /", {b"Transfer-Encoding": b"chunked"}))
        chunk = b"100000\r\n" + b"x" * MIB + b"\r\n"
        for _ in range(6):
            wire.send(chunk)
        answer = await wire.last_answer()
        assert answer.status == 413
        assert site.in_flight == 0


@pytest_twisted.ensureDeferred
async def test_a_chunked_body_without_end_is_cut_off(no_files: None) -> None:
    """P22: 60 chunks of 1 MiB, by a sender who does not listen; whatever is held, counts."""
    site = door(Counting(), max_body=4 * MIB)
    async with listening(site) as port:
        wire = await connect(port)
        wire.send(head("POST /", {b"Transfer-Encoding": b"chunked"}))
        held, left = [], 60
        while wire.lost is None:
            wire.send(b"100000\r\n" + b"x" * MIB + b"\r\n" if left > 0 else b"")
            left -= 1
            await deferLater(reactor, 0)
            held.append(site.in_flight + site.limits.small_body)
        assert not wire.received or wire.received.startswith(b"HTTP/1.1 413 ")
        assert MIB < max(held) <= site.limits.max_body
        await become(lambda: not site.connected)
        assert site.in_flight == 0


@pytest_twisted.ensureDeferred
async def test_a_refused_sender_goes_on_over_the_same_connection() -> None:
    """T04: 50 refused requests in a row, in writes that end anywhere."""

    def signed(request: GuardedRequest) -> None:
        if not request.header(b"signature"):
            raise Refused(401, "no signature")

    counting = Counting()
    async with listening(door(counting, signed, refusals=None)) as port:
        wire = await connect(port)
        smuggled = post("/smuggled", {b"Signature": b"x"}, b"")
        everything = (post("/", NO_HEADERS, smuggled) + post("/genuine", {b"Signature": b"x"}, b"body")) * 50
        for start in range(0, len(everything), 1000):
            wire.send(everything[start : start + 1000])
            await deferLater(reactor, 0)
        for _ in range(50):
            assert (await wire.answer()).status == 401
            answer = await wire.answer()
            assert (answer.status, answer.body) == (200, b"4")
        await wire.close()
    assert counting.asked == [b"/genuine"] * 50


@pytest_twisted.ensureDeferred
async def test_who_sends_a_large_body_reads_why_it_was_refused() -> None:
    """The answer is read though a megabyte is still under way: a close at once would be a reset."""
    async with listening(door(Counting(), nobody)) as port:
        answer = await asked(port, head("POST /", length=20 * MIB), b"x" * (MIB * 3 // 4))
        assert answer.status == 401


FRAMINGS = {
    "a length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked",
    "two lengths that agree": b"Content-Length: 5\r\nContent-Length: 5",
    "two lengths that differ": b"Content-Length: 5\r\nContent-Length: 6",
    "a signed length": b"Content-Length: +5",
    "a hexadecimal length": b"Content-Length: 0x5",
    "a negative length": b"Content-Length: -1",
    "a space before the colon": b"Transfer-Encoding : chunked",
    "an absurd length": b"Content-Length: " + b"9" * 5000,
    "two codings": b"Transfer-Encoding: gzip, chunked",
    "an unknown coding": b"Transfer-Encoding: xchunked",
    "a header of 17,000 bytes": b"X: " + b"y" * 17_000,
    "501 headers": b"\r\n".join([b"X: y"] * 501),
    "many headers of 20,000 bytes together": b"\r\n".join([b"X: " + b"y" * 97] * 200),
    "a NUL": b"X: \0",
}


@pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS)
@pytest_twisted.ensureDeferred
async def test_malformed_framing_is_refused_and_nothing_behind_it_is_executed(framing: bytes) -> None:
    """P24, P25, P27."""
    counting = Counting()
    async with listening(door(counting)) as port:
        answer = await asked(
            port, b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n0\r\n\r\n" + head("GET /second")
        )
        assert answer.status == 400
        assert answer.body == BODIES[400]
    assert counting.asked == []


REQUEST_LINES = [
    b"GET /",
    b"GET / HTTP/0.9",
    b"GET / HTTP/2.0",
    b"\x16\x03\x01\x02",
    b"GET  / HTTP/1.1",
    b"G(T / HTTP/1.1",
]


@pytest.mark.parametrize("line", REQUEST_LINES)
@pytest_twisted.ensureDeferred
async def test_a_malformed_request_line_is_refused(line: bytes) -> None:
    async with listening(door(Counting())) as port:
        assert (await asked(port, line, b"\r\n\r\n")).status == 400


@pytest_twisted.ensureDeferred
async def test_a_malformed_chunk_is_refused_and_nothing_behind_it_is_executed() -> None:
    """P24."""
    counting = Counting()
    async with listening(door(counting)) as port:
        chunked = head("POST /", {b"Transfer-Encoding": b"chunked"})
        for chunks in (b"0x5\r\nhello\r\n", b"5\r\nhelloworld\r\n", b"-1\r\n", b"5 \r\nhello\r\n", b"5" * 2000):
            assert (await asked(port, chunked, chunks, b"0\r\n\r\n", head("GET /second"))).status == 400
    assert counting.asked == []


@pytest_twisted.ensureDeferred
async def test_real_slow_senders_meet_real_deadlines() -> None:
    """P23, with shorter times."""
    async with listening(door(Counting(), request_deadline=0.2)) as port:
        assert (await asked(port, b"GET / HT")).status == 408
    async with listening(door(Counting(), idle=0.2)) as port:
        silent = await connect(port)
        await silent.closed()
        assert silent.received == b""


@pytest_twisted.ensureDeferred
async def test_a_body_that_ends_early_is_never_handed_on() -> None:
    """P28."""
    counting = Counting()
    async with listening(door(counting)) as port:
        for leave in (Wire.close, Wire.abort):
            wire = await connect(port)
            wire.send(head("POST /", length=500), b"x" * 100)
            await leave(wire)
    assert counting.asked == []


@pytest_twisted.ensureDeferred
async def test_no_form_is_ever_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """P32, P33: 24 MiB of ``a&a&`` hold a bare Site for 12.8 seconds."""

    def parse(*args: object) -> None:
        raise AssertionError("a form was parsed")

    monkeypatch.setattr(http, "parse_qs", parse)
    monkeypatch.setattr(http, "_getMultiPartArgs", parse)
    async with listening(door(Counting())) as port:
        for kind in (b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x"):
            wire = await connect(port)
            wire.send(post("/", {b"Content-Type": kind}, b"a&" * MIB))
            assert (await wire.answer()).body == b"%d" % (2 * MIB)
            await wire.close()


@pytest_twisted.ensureDeferred
async def test_a_flood_of_pipelined_requests_leaves_turns_to_others() -> None:
    """T03: between any two of 200 requests of one write everybody else gets a turn."""
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1

    turning = LoopingCall(turn)
    async with listening(door(Counting())) as port:
        wire = await connect(port)
        done = turning.start(0)
        wire.send(head("GET /") * 200)
        for _ in range(200):
            assert (await wire.answer()).status == 200
        turning.stop()
        await done
        await wire.close()
    assert turns >= 199
