"""Who sends a request is told by the proxies that are trusted, and by nobody in front of them."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, ip_address
from time import thread_time

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_hook.hooks import Address
from twisted_hook.peers import MOST_HOPS, Trust, connected_from, sender_of, senders_of, share_of

TRUST = Trust.in_words(["127.0.0.0/8", "2001:db8:ffff::/48", "unix"])
PROXY = IPv4Address("127.0.0.1")
STRANGER = ip_address("192.0.2.7")

PIECES = st.binary(max_size=60) | st.text('for="[]\\,;:. 01279afunknow_', max_size=60).map(str.encode)
LINES = st.lists(PIECES, max_size=4)
STRANGERS = st.ip_addresses().filter(lambda ip: not TRUST.covers(connected_from(str(ip))) and "%" not in str(ip))


def sender(
    forwarded_for: Sequence[bytes] = (),
    forwarded: Sequence[bytes] = (),
    *,
    connected: Address | None = PROXY,
    trust: Trust = TRUST,
) -> str:
    """Who sends a request with these headers."""
    headers = {b"x-forwarded-for": forwarded_for, b"forwarded": forwarded}
    return str(sender_of(connected, senders_of(connected, headers.__getitem__, trust)))


class TrustTests(SynchronousTestCase):
    """Whose word counts."""

    def test_nobody_is_trusted_who_is_not_named(self) -> None:
        """T12."""
        for connected in (STRANGER, PROXY, ip_address("::1"), None):
            told = sender([b"198.51.100.1"], [b"for=198.51.100.1"], connected=connected, trust=Trust())
            self.assertEqual(told, str(connected))

    def test_a_trusted_network_or_unix_socket_is_believed(self) -> None:
        for connected in (PROXY, ip_address("2001:db8:ffff::1"), None):
            self.assertEqual(sender([b"192.0.2.7"], connected=connected), "192.0.2.7")

    def test_a_proxy_that_names_nobody_stands_for_itself(self) -> None:
        self.assertEqual(sender(), "127.0.0.1")
        self.assertEqual(sender(connected=ip_address("2001:db8:ffff::1")), "2001:db8:ffff::1")

    def test_the_trusted_end_of_a_unix_socket_is_this_machine(self) -> None:
        """Otherwise a sender could have no address by choice, and slip through a list of those who may deliver."""
        self.assertEqual(sender(connected=None), "127.0.0.1")
        self.assertEqual(sender([b"192.0.2.7"], [b"for=192.0.2.8"], connected=None), "127.0.0.1")

    def test_a_word_that_is_no_network_is_an_error(self) -> None:
        self.assertEqual(Trust.in_words([]), Trust())
        with self.assertRaises(ValueError):
            Trust.in_words(["unix", "anybody"])


class HopTests(SynchronousTestCase):
    """What the headers say, from the right."""

    def test_the_first_who_is_not_trusted_sent_it(self) -> None:
        """T12: what stands further left is the sender's own."""
        for lines in (
            [b"192.0.2.7"],
            [b"198.51.100.1, 192.0.2.7"],
            [b"198.51.100.1,192.0.2.7 ,127.0.0.1"],
            [b"198.51.100.1", b"192.0.2.7, 127.0.0.1", b"127.0.0.2"],
            [b"rubbish,,\xff, 192.0.2.7, 2001:db8:ffff::1"],
        ):
            self.assertEqual(sender(lines), "192.0.2.7", lines)

    def test_where_all_are_trusted_the_first_of_them_sent_it(self) -> None:
        self.assertEqual(sender([b"127.0.0.3, 127.0.0.2"]), "127.0.0.3")

    def test_who_cannot_be_read_is_stood_for_by_the_proxy_that_told(self) -> None:
        for rubbish in (
            b"unknown",
            b"_hidden",
            b"",
            b"192.0.2",
            b"192.0.2.7:",
            b"192.0.2.007",
            b"fe80::1%eth0",
            b"::g",
        ):
            self.assertEqual(sender([rubbish]), "127.0.0.1", rubbish)
            self.assertEqual(sender([b"192.0.2.7, " + rubbish + b", 127.0.0.9"]), "127.0.0.9", rubbish)

    def test_an_address_may_have_a_port_and_brackets(self) -> None:
        for node, address in (
            (b"192.0.2.7:4711", "192.0.2.7"),
            (b"[2001:db8::1]:4711", "2001:db8::1"),
            (b"[2001:DB8::1]", "2001:db8::1"),
            (b"2001:db8:0::1", "2001:db8::1"),
            (b"::ffff:192.0.2.7", "192.0.2.7"),
        ):
            self.assertEqual(sender([node]), address)
            self.assertEqual(sender([], [b'for="' + node + b'"']), address)

    def test_the_elements_of_rfc_7239_are_read(self) -> None:
        for element, address in (
            (b"for=192.0.2.7", "192.0.2.7"),
            (b"For=192.0.2.7;Proto=http;by=203.0.113.43", "192.0.2.7"),
            (b"proto=https; for=192.0.2.7", "192.0.2.7"),
            (b'for="[2001:db8:cafe::17]:4711"', "2001:db8:cafe::17"),
            (b'for=192.0.2.7;host="a;for=x=\\"y"', "192.0.2.7"),
            (b'for="\\1\\92.0.2.7"', "192.0.2.7"),
            (b"for=_gazonk", "127.0.0.1"),
            (b"for=unknown", "127.0.0.1"),
            (b"by=192.0.2.7", "127.0.0.1"),
            (b"for=192.0.2.7;for=192.0.2.8", "127.0.0.1"),
            (b"for=192.0.2.7;", "127.0.0.1"),
            (b"for=192.0.2.7:4711", "127.0.0.1"),
            (b'for="192.0.2.7', "127.0.0.1"),
            (b'for=192.0.2.7;host="a,b"', "127.0.0.1"),
            (b"192.0.2.7", "127.0.0.1"),
        ):
            self.assertEqual(sender([], [element]), address, element)

    def test_a_quote_that_the_sender_opens_swallows_nothing(self) -> None:
        self.assertEqual(sender([], [b'for=198.51.100.1;x=", for=192.0.2.7']), "192.0.2.7")

    def test_two_headers_that_disagree_are_both_not_believed(self) -> None:
        self.assertEqual(sender([b"192.0.2.7"], [b"for=192.0.2.7"]), "192.0.2.7")
        self.assertEqual(sender([b"192.0.2.7"], [b"for=192.0.2.8"]), "127.0.0.1")
        self.assertEqual(sender([b"192.0.2.7"], [b"rubbish"]), "127.0.0.1")

    def test_a_row_without_end_is_not_followed(self) -> None:
        hops = [f"127.0.0.{n}" for n in range(100, 100 + 2 * MOST_HOPS)]
        for lines in ([", ".join(hops).encode()], [hop.encode() for hop in hops]):
            self.assertEqual(sender(lines), hops[-MOST_HOPS])

    def test_headers_made_to_be_slow_are_not(self) -> None:
        """T03: the longest that a request can bring, and what regular expressions stumble over."""
        for text in (b",", b"127.0.0.1,", b"a=b;", b'a="\\"', b"a=", b'"', b" ", b"for=127.0.0.1;a=b,"):
            line = text * (16_384 // len(text))
            started = thread_time()
            for _ in range(10):
                sender([line], [line])
            self.assertLess(thread_time() - started, 1.0, text)  # ten take 10 ms at most here


class AnythingTests(SynchronousTestCase):
    """What holds for any bytes."""

    @given(LINES, LINES, st.sampled_from([PROXY, STRANGER, None]))
    def test_no_bytes_raise_anything(
        self, forwarded_for: list[bytes], forwarded: list[bytes], connected: Address | None
    ) -> None:
        sender(forwarded_for, forwarded, connected=connected)

    @given(LINES, STRANGERS, st.booleans())
    @example([b'for="'], ip_address("192.0.2.7"), True)
    def test_nothing_that_a_sender_puts_in_front_changes_who_it_is(
        self, front: list[bytes], stranger: Address, joined: bool
    ) -> None:
        """T12."""
        element = f'for="[{stranger}]"' if stranger.version == 6 else f"for={stranger}"
        for_, forwarded = ([*front, appended.encode()] for appended in (str(stranger), element))
        if joined:
            for_, forwarded = [b", ".join(for_)], [b", ".join(forwarded)]
        for told in (sender(for_), sender([], forwarded)):
            self.assertEqual(told, str(connected_from(str(stranger))))

    @given(LINES, STRANGERS)
    def test_a_header_that_the_proxy_does_not_set_makes_nobody_else_of_a_sender(
        self, forged: list[bytes], stranger: Address
    ) -> None:
        """T12: at most it is counted as the proxy."""
        self.assertIn(sender([str(stranger).encode()], forged), (str(connected_from(str(stranger))), str(PROXY)))


class ShareTests(SynchronousTestCase):
    """Who counts as one."""

    def test_one_machine_counts_once(self) -> None:
        one, same, other, mapped = map(
            connected_from, ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "::ffff:192.0.2.1")
        )
        self.assertEqual(share_of(one), share_of(same))
        self.assertNotEqual(share_of(one), share_of(other))
        self.assertEqual(share_of(mapped), share_of(connected_from("192.0.2.1")))
        self.assertEqual(share_of(connected_from(None)), b"")
