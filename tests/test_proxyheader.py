"""The PROXY protocol's headers, read from any bytes."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, ip_address

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_hook.proxyheader import LONGEST, LONGEST_LINE, SIGNATURE, Header, Source, read

ADDRESSES = st.ip_addresses(v=4) | st.ip_addresses(v=6)
PORTS = st.integers(0, 65535)


def line(source: object, port: int, family: str = "TCP4") -> bytes:
    return f"PROXY {family} {source} {source} {port} 443\r\n".encode()


def binary(addresses: bytes, *, command: int = 0x21, kind: int = 0x11, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, kind, len(addresses) if length is None else length) + addresses


def packed(source: object, port: int) -> bytes:
    raw = ip_address(str(source)).packed
    return raw + raw + struct.pack("!HH", port, 443)


class HeaderTests(SynchronousTestCase):
    """What stands in one."""

    def test_a_proxy_that_speaks_for_itself_names_nobody(self) -> None:
        for header in (
            b"PROXY UNKNOWN\r\n",
            b"PROXY UNKNOWN ffff:f::1 ffff:f::1 65535 65535\r\n",
            binary(b"", command=0x20, kind=0),
            binary(packed("10.0.0.1", 1), command=0x20),
            binary(b"", kind=0),
            binary(b"\0" * 216, kind=0x31),
        ):
            self.assertEqual(read(header + b"GET"), Header(None, len(header)))

    def test_what_else_it_tells_is_passed_over(self) -> None:
        header = binary(packed("192.0.2.7", 5) + b"\x04\x00\x03abc\x20\x00\x01x")
        self.assertEqual(read(header + b"GET"), Header(Source(IPv4Address("192.0.2.7"), 5), len(header)))

    def test_malformed_headers_are_refused(self) -> None:
        for header in (
            b"GET / HTTP/1.1\r\n",
            b"\x16\x03\x01\x02\x00\x01",
            b"proxy TCP4 10.0.0.1 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 10.0.0.1 10.0.0.1 1\r\n",
            b"PROXY TCP4 10.0.0.1 10.0.0.1 1 2 3\r\n",
            b"PROXY TCP4  10.0.0.1 10.0.0.1 1\r\n",
            b"PROXY TCP4 010.0.0.1 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 localhost 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 10.0.0.1 10.0.0.1 +1 2\r\n",
            b"PROXY TCP4 10.0.0.1 10.0.0.1 65536 2\r\n",
            b"PROXY TCP4 \xff.0.0.1 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
            b"PROXY UDP4 10.0.0.1 10.0.0.1 1 2\r\n",
            b"PROXY \r\n",
            b"PROXY TCP6 " + b"1" * LONGEST_LINE,
            binary(packed("10.0.0.1", 1), command=0x11),
            binary(packed("10.0.0.1", 1), command=0x22),
            binary(packed("10.0.0.1", 1), kind=0x12),
            binary(packed("10.0.0.1", 1), kind=0xFF),
            binary(packed("10.0.0.1", 1)[:-1]),
            binary(packed("10.0.0.1", 1), kind=0x21),
            binary(b"", length=LONGEST),
            SIGNATURE + b"\x00\x00\x00\x00",
        ):
            with self.assertRaises(ValueError, msg=repr(header)):
                read(header)

    @given(ADDRESSES, PORTS, st.binary(max_size=40))
    def test_every_address_is_read_in_both_versions(self, source: object, port: int, rest: bytes) -> None:
        version = ip_address(str(source)).version
        for header in (
            line(source, port, f"TCP{version}"),
            binary(packed(source, port), kind=0x11 if version == 4 else 0x21),
        ):
            expected = Header(Source(ip_address(str(source)), port), len(header))
            self.assertEqual(read(header + rest), expected)
            self.assertEqual([read(header[:size]) for size in range(len(header))], [None] * len(header))

    @given(st.binary(max_size=300) | st.builds(lambda rest: SIGNATURE + b"\x21" + rest, st.binary(max_size=300)))
    @example(b"")
    def test_any_bytes_give_a_header_or_a_refusal(self, data: bytes) -> None:
        try:
            found = read(data)
        except ValueError:
            return
        self.assertTrue(found is None or 0 < found.size <= len(data))

    @given(st.binary(max_size=20))
    def test_nobody_is_waited_for_beyond_the_longest_header(self, begun: bytes) -> None:
        for beginning in (begun, b"PROXY " + begun, SIGNATURE + begun):
            try:
                self.assertIsNotNone(read(beginning.ljust(LONGEST, b"\xfe")))
            except ValueError:
                continue

    @given(st.text("PROXY TCP46UNKNOW0123456789.:abcdef\r\n% +-_", max_size=120))
    def test_any_line_gives_a_header_or_a_refusal(self, text: str) -> None:
        try:
            found = read(b"PROXY " + text.encode())
        except ValueError:
            return
        self.assertTrue(found is not None or len(text) < LONGEST_LINE)
