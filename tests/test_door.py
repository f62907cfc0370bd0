"""The door's endpoints over real sockets: TLS, the PROXY protocol, and what stays when they are exchanged."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ClientEndpoint
from twisted.internet.interfaces import IListeningPort
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.web.resource import Resource
from twisted.web.server import Request
from zope.interface import implementer

from tests.certs import Authority, replace
from tests.test_proxyheader import binary, line, packed
from tests.waiting import PATIENCE, become
from tests.wire import Wire, connect, connect_through, head, patient, post
from twisted_hook import entrance
from twisted_hook.door import Door, kept_name
from twisted_hook.entrance import Entrance, plan_of
from twisted_hook.keeping import Keeper
from twisted_hook.peers import Trust
from twisted_hook.proxyheader import LONGEST_LINE, SIGNATURE
from twisted_hook.site import GuardedRequest, GuardedSite, Limits
from twisted_hook.sockets import CannotListen


class Teller(Resource):
    """Says from whom a request came."""

    isLeaf = True  # noqa: N815 - Twisted's name

    def render(self, request: Request) -> bytes:
        assert isinstance(request, GuardedRequest)
        return request.answer(f"{request.sender} {request.isSecure()}".encode())


class Holding:
    """A keeper within us."""

    def __init__(self) -> None:
        self.held: dict[str, socket.socket] = {}

    def take(self, name: str) -> socket.socket | None:
        held = self.held.get(name)
        return None if held is None else held.dup()

    def hold(self, name: str, listener: socket.socket) -> None:
        self.held[name] = listener.dup()

    def let_go(self) -> None:
        for listener in self.held.values():
            listener.close()


TRUSTED = Trust.in_words(["127.0.0.1/32", "unix"])


def make(holding: Holding | None = None, **limits: Any) -> Door:
    return Door(
        reactor,
        keeper=cast("Keeper", holding or Holding()),
        screen=lambda request: None,
        limits=patient(trusted=TRUSTED, **limits),
    )


def ports(door: Door) -> list[IListeningPort]:
    return [each.port for each in door._listened.values()]


@asynccontextmanager
async def opened(door: Door, *descriptions: str) -> AsyncIterator[int]:
    """The port of the first of them; at the end the door is closed and empty."""
    door.take(descriptions)
    try:
        door.open(Teller())
        host = ports(door)[0].getHost()
        yield getattr(host, "port", 0)
    finally:
        await door.keep_only(())
        await become(lambda: not (door.site.connected or door.site.turned_away))


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def said() -> Iterator[list[str]]:
    """The text of all that was logged."""
    lines: list[str] = []

    @implementer(ILogObserver)
    def note(event: LogEvent) -> None:
        text = formatEvent(event)
        if "factory" not in text:  # of clients
            lines.append(text)

    globalLogPublisher.addObserver(note)
    yield lines
    globalLogPublisher.removeObserver(note)


def ssl_at(directory: Path, port: int = 0) -> str:
    return f"ssl:port={port}:interface=127.0.0.1:privateKey={directory}/privkey.pem:certKey={directory}/fullchain.pem"


def tls_at(directory: Path) -> str:
    return f"tls:path={directory}:port=0:interface=127.0.0.1"


async def served(authority: Authority, port: int, name: str | None = "localhost") -> tuple[int, str | None, str | None]:
    """The serial number of the certificate, the version and the protocol that a client which trusts us ends up with."""

    def look() -> tuple[int, str | None, str | None]:
        context = authority.client()
        if name is None:
            context.check_hostname = False
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE) as raw,
            context.wrap_socket(raw, server_hostname=name) as client,
        ):
            certificate = client.getpeercert()
            assert certificate is not None
            return int(str(certificate["serialNumber"]), 16), client.version(), client.selected_alpn_protocol()

    found: tuple[int, str | None, str | None] = await deferToThread(look)
    return found


def tls_client(port: int, source: str = "127.0.0.1") -> SSL4ClientEndpoint:
    return SSL4ClientEndpoint(reactor, "127.0.0.1", port, CertificateOptions(), bindAddress=(source, 0))


def client_hello(name: bytes) -> bytes:
    """What a client begins with that asks for a name, whatever bytes that is."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    stand_in = "x" * len(name)
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=stand_in)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read().replace(stand_in.encode(), name)


# --- TLS


@pytest.mark.parametrize("describe", [ssl_at, tls_at])
@pytest_twisted.ensureDeferred
async def test_a_client_that_trusts_the_authority_is_served_with_the_whole_chain(
    tmp_path: Path, authority: Authority, describe: Callable[[Path], str]
) -> None:
    authority.write(tmp_path, 10, "localhost")
    async with opened(make(), describe(tmp_path)) as port:
        assert await served(authority, port) == (10, "TLSv1.3", "http/1.1")
        wire = await connect_through(tls_client(port))
        wire.send(head("GET /"))
        assert (await wire.answer()).body == b"127.0.0.1 True"
        await wire.close()


@pytest_twisted.ensureDeferred
async def test_each_name_is_served_its_own_certificate_and_a_stranger_the_first(
    tmp_path: Path, authority: Authority, said: list[str]
) -> None:
    authority.write(tmp_path / "a", 20, "localhost", "one.example")
    authority.write(tmp_path / "b", 21, "two.example", "*.two.example")
    async with opened(make(), tls_at(tmp_path)) as port:
        for name, serial in (("one.example", 20), ("two.example", 21), ("x.TWO.example", 21)):
            assert (await served(authority, port, name))[0] == serial
        assert (await served(authority, port, "two.example"))[2] == "http/1.1"
        assert (await served(authority, port, None))[0] == 20
    assert not [text for text in said if "certificate" in text]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the versions that are refused
@pytest_twisted.ensureDeferred
async def test_nothing_older_than_tls_1_2_is_spoken(tmp_path: Path, authority: Authority) -> None:
    authority.write(tmp_path, 10, "localhost")

    def speak(port: int, version: ssl.TLSVersion) -> str | None:
        context = authority.client()
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as client,
        ):
            return client.version()

    async with opened(make(), ssl_at(tmp_path)) as port:
        assert await deferToThread(speak, port, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            with pytest.raises(ssl.SSLError, match=r"(?i)version"):
                await deferToThread(speak, port, version)


@pytest_twisted.ensureDeferred
async def test_who_sends_a_large_body_over_tls_reads_why_it_was_refused(tmp_path: Path, authority: Authority) -> None:
    authority.write(tmp_path, 10, "localhost")
    async with opened(make(max_body=1000, linger=0.5), ssl_at(tmp_path)) as port:
        wire = await connect_through(tls_client(port))
        wire.send(post("/", {}, b"x" * 500_000))
        assert (await wire.last_answer()).status == 413


@pytest.mark.parametrize("begun", [b"", b"half", b"trickle"])
@pytest_twisted.ensureDeferred
async def test_a_handshake_that_does_not_come_to_its_end_is_cut_off(
    tmp_path: Path, authority: Authority, begun: bytes
) -> None:
    """P23 on TLS: the limit is absolute, and no byte of a handshake puts it off."""
    authority.write(tmp_path, 10, "localhost")
    door = make(idle=0.2)
    hello = client_hello(b"localhost")
    async with opened(door, ssl_at(tmp_path)) as port:
        wire = await connect(port)
        if begun == b"half":
            wire.send(hello[:100])
        for byte in hello if begun == b"trickle" else b"":
            wire.send(bytes([byte]))
            await deferLater(reactor, 0.02)
            if wire.lost is not None:
                break
        assert begun != b"trickle" or wire.lost is not None, "each byte put the deadline off"
        await wire.closed()
        assert not door.site.connected


@pytest.mark.parametrize("describe", [ssl_at, tls_at])
@pytest_twisted.ensureDeferred
async def test_no_garbage_on_a_tls_port_makes_a_line_in_the_log(
    tmp_path: Path, authority: Authority, said: list[str], describe: Callable[[Path], str]
) -> None:
    """T05: a handshake that fails is the sender's affair."""
    authority.write(tmp_path, 10, "localhost")
    hello = client_hello(b"localhost")
    door = make(idle=0.2)
    async with opened(door, describe(tmp_path)) as port:
        before = len(said)
        for garbage in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"\0" * 5000,
            os.urandom(2000),
            hello + os.urandom(500),
            hello[:50] + os.urandom(400),
            client_hello(b"\xff\xfe\xfd"),
            client_hello(b"no.such.name"),
            client_hello(b"localhost\n[error]"),
            b"\x15\x03\x03\x00\x02\x02\x28",
            b"\x16\x03\x01\xff\xff" + b"\1" * 100,
            SIGNATURE,
        ):
            wire = await connect(port)
            wire.send(garbage)
            await wire.closed()
        door.site.timeOut = PATIENCE  # for who means well
        assert (await served(authority, port))[0] == 10
        assert said[before:] == []


@pytest_twisted.ensureDeferred
async def test_a_connection_that_is_cut_off_in_the_middle_of_a_body_is_nobodys_fault(
    tmp_path: Path, authority: Authority, said: list[str]
) -> None:
    """P28 on TLS, with and without a farewell."""
    authority.write(tmp_path, 10, "localhost")
    door = make()
    async with opened(door, ssl_at(tmp_path)) as port:
        before = len(said)
        for end in (Wire.close, Wire.abort):
            wire = await connect_through(tls_client(port))
            wire.send(head("POST /", length=500), b"x" * 100)
            await become(lambda: door.site.in_flight == 0 and door.site.connected == 1)
            await end(wire)
            await become(lambda: not door.site.connected)
        assert said[before:] == []


@pytest_twisted.ensureDeferred
async def test_a_full_house_turns_away_over_tls_too(tmp_path: Path, authority: Authority) -> None:
    """One more than those who are still told why is closed at once, and nothing of it is a bug."""
    authority.write(tmp_path, 10, "localhost")
    async with opened(make(connections=8, connections_per_peer=1), ssl_at(tmp_path)) as port:
        first, told, closed = [await connect(port, source="127.0.0.2") for _ in range(3)]
        await closed.closed()
        await first.close()
        await told.close()


@pytest_twisted.ensureDeferred
async def test_who_leaves_a_farewell_over_tls_unanswered_makes_room_all_the_same(
    tmp_path: Path, authority: Authority
) -> None:
    """Each may take ``idle`` for it: meanwhile they would fill the house, with nobody in it who could be hung up on."""

    def refused(port: int) -> ssl.SSLSocket:
        """A connection that was answered for good, and whose other end never says goodbye."""
        raw = socket.create_connection(("127.0.0.1", port), PATIENCE)
        client = authority.client().wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False)
        client.sendall(b"rubbish\r\n\r\n")
        while client.recv(4096):
            pass
        return client

    authority.write(tmp_path, 10, "localhost")
    door = make(connections=4, linger=0.0)
    async with opened(door, ssl_at(tmp_path)) as port:
        stubborn = [await deferToThread(refused, port) for _ in range(12)]
        await become(lambda: door.site.connected <= 4)
        wire = await connect_through(tls_client(port))
        wire.send(head("GET /"))
        assert (await wire.answer()).status == 200
        await wire.close()
        for client in stubborn:
            client.close()


# --- certificates that are renewed


@pytest_twisted.ensureDeferred
async def test_certificates_of_a_directory_are_renewed_by_themselves_and_broken_ones_are_not_taken(
    tmp_path: Path, authority: Authority, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entrance, "LOOK", 0.0)
    authority.write(tmp_path, 30, "localhost")
    async with opened(make(), tls_at(tmp_path)) as port:
        old = await connect_through(tls_client(port))
        old.send(head("GET /"))
        await old.answer()
        authority.write(tmp_path, 31, "localhost")
        assert (await served(authority, port))[0] == 31
        assert said[-1].startswith("new certificates from")
        replace(tmp_path / "fullchain.pem", b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
        before = len(said)
        assert [(await served(authority, port))[0] for _ in range(3)] == [31, 31, 31]
        [complaint] = said[before:]
        assert complaint == (
            f"the certificates stay as they were: {tmp_path}/fullchain.pem holds no certificate in PEM format"
        )
        authority.write(tmp_path, 32, "localhost")
        assert (await served(authority, port))[0] == 32
        old.send(head("GET /"))
        assert (await old.answer()).status == 200
        await old.close()


@pytest_twisted.ensureDeferred
async def test_a_directory_is_looked_at_no_more_often_than_once_in_a_while(
    tmp_path: Path, authority: Authority
) -> None:
    authority.write(tmp_path, 30, "localhost")
    clock = Clock()
    site = GuardedSite(Resource(), screen=lambda request: None, reactor=clock, limits=Limits())
    door = Entrance(site, plan_of(tls_at(tmp_path)), reactor=clock)
    first = door._factory
    authority.write(tmp_path, 31, "localhost")
    door._renew()
    assert door._factory is first
    clock.advance(entrance.LOOK)
    door._renew()
    assert door._factory is not first


@pytest_twisted.ensureDeferred
async def test_certificates_are_exchanged_when_all_of_a_reload_is_good_and_not_before(
    tmp_path: Path, authority: Authority
) -> None:
    authority.write(tmp_path, 40, "localhost")
    door = make()
    description = ssl_at(tmp_path)
    async with opened(door, description) as port:
        kept = await connect_through(tls_client(port))
        authority.write(tmp_path, 41, "localhost")
        door.take([description])
        assert (await served(authority, port))[0] == 40
        door.renew()
        assert (await served(authority, port))[0] == 41
        Authority().write(tmp_path / "foreign", 42, "localhost")
        shutil.copy(tmp_path / "foreign/privkey.pem", tmp_path)
        with pytest.raises(CannotListen, match=r"privkey\.pem is not the key of the certificate in .*fullchain\.pem"):
            door.take([description])
        door.renew()
        assert (await served(authority, port))[0] == 41
        kept.send(head("GET /"))
        assert (await kept.answer()).status == 200
        await kept.close()


@pytest_twisted.ensureDeferred
async def test_other_files_and_another_protocol_on_the_same_socket_do_not_close_it(
    tmp_path: Path, authority: Authority
) -> None:
    authority.write(tmp_path / "a", 50, "localhost")
    authority.write(tmp_path / "b", 51, "localhost")
    door = make()
    async with opened(door, ssl_at(tmp_path / "a")) as port:
        [listening] = ports(door)
        for description in (ssl_at(tmp_path / "b"), "tcp:0:interface=127.0.0.1"):
            door.take([description])
            door.renew()
            await door.keep_only([description])
            assert ports(door) == [listening]
        wire = await connect(port)
        wire.send(head("GET /"))
        assert (await wire.answer()).body == b"127.0.0.1 False"
        await wire.close()


@pytest_twisted.ensureDeferred
async def test_two_endpoints_on_one_socket_are_refused_also_where_it_is_listened_on_already() -> None:
    """A reload would take the last of them, and the next start neither."""
    door = make()
    async with opened(door, "tcp:0:interface=127.0.0.1") as port:
        with pytest.raises(CannotListen, match="another endpoint has the same socket"):
            door.take(["tcp:0:interface=127.0.0.1", claims()])
        door.renew()
        wire = await connect(port)
        wire.send(head("GET /"))
        assert (await wire.answer()).status == 200
        await wire.close()


def broken(tmp_path: Path, authority: Authority, how: str) -> str:
    """A description of files that are not what they should be; gives what is said of them."""
    authority.write(tmp_path, 60, "localhost")
    key, chain = tmp_path / "privkey.pem", tmp_path / "fullchain.pem"
    match how:
        case "no key":
            key.unlink()
            return f"{key} cannot be read: No such file or directory"
        case "a directory":
            chain.unlink()
            chain.mkdir()
            return f"{chain} cannot be read: Is a directory"
        case "no certificate":
            chain.write_bytes(key.read_bytes())
            return f"{chain} holds no certificate in PEM format"
        case "a certificate for a key":
            key.write_bytes(chain.read_bytes())
            return f"{key} holds no private key in PEM format"
        case "a foreign curve":
            der = ssl.PEM_cert_to_DER_cert(chain.read_text().partition("-----END CERTIFICATE-----")[0] + ssl.PEM_FOOTER)
            curve = bytes.fromhex("06082a8648ce3d0301")
            assert curve + b"\7" in der
            chain.write_text(ssl.DER_cert_to_PEM_cert(der.replace(curve + b"\7", curve + b"\x63")))
            return f"{chain} holds a certificate for a key of a kind that is not known here"
        case _:
            chain.write_bytes(chain.read_bytes()[:300])
            return f"{chain} holds no certificate in PEM format"


@pytest.mark.parametrize(
    "how", ["no key", "a directory", "no certificate", "a certificate for a key", "a foreign curve", "half of one"]
)
def test_files_that_cannot_be_served_are_named(tmp_path: Path, authority: Authority, how: str) -> None:
    fault = broken(tmp_path, authority, how)
    with pytest.raises(CannotListen) as caught:
        make().take([ssl_at(tmp_path)])
    assert str(caught.value) == f"{ssl_at(tmp_path)}: {fault}"


def test_a_directory_without_a_pair_is_refused(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(CannotListen, match="is no directory with"):
        make().take([tls_at(tmp_path / "nowhere")])
    authority.write(tmp_path, 60, "localhost")
    (tmp_path / "privkey.pem").unlink()
    with pytest.raises(CannotListen, match="holds no certificate together with its private key"):
        make().take([tls_at(tmp_path)])


# --- the PROXY protocol


def claims(port: int = 0) -> str:
    return f"haproxy:tcp:{port}:interface=127.0.0.1"


@pytest.mark.parametrize(
    ("header", "sender"),
    [
        (line("192.0.2.7", 4711), b"192.0.2.7"),
        (line("2001:db8::7", 4711, "TCP6"), b"2001:db8::7"),
        (b"PROXY UNKNOWN\r\n", b"127.0.0.1"),
        (binary(packed("192.0.2.7", 4711)), b"192.0.2.7"),
        (binary(packed("2001:db8::7", 4711) + b"\4\0\3abc", kind=0x21), b"2001:db8::7"),
        (binary(b"", command=0x20, kind=0), b"127.0.0.1"),
    ],
)
@pytest.mark.parametrize("pieces", ["whole", "single bytes"])
@pytest_twisted.ensureDeferred
async def test_a_request_comes_from_where_the_proxy_says(header: bytes, sender: bytes, pieces: str) -> None:
    async with opened(make(), claims()) as port:
        wire = await connect(port)
        wire.transport.setTcpNoDelay(True)
        for number in range(len(header)) if pieces == "single bytes" else ():
            wire.send(header[number : number + 1])
            await deferLater(reactor, 0)
        wire.send(b"" if pieces == "single bytes" else header, head("GET /"))
        assert (await wire.answer()).body == sender + b" False"
        await wire.close()


@pytest_twisted.ensureDeferred
async def test_who_is_no_trusted_proxy_is_closed_at_once(said: list[str]) -> None:
    async with opened(make(), claims()) as port:
        wire = await connect(port, source="127.0.0.2")
        await wire.closed()
        assert not wire.received
    assert any("from no trusted proxy" in text for text in said)


@pytest_twisted.ensureDeferred
async def test_each_address_that_a_proxy_speaks_for_has_its_share() -> None:
    door = make(connections_per_peer=2)
    async with opened(door, claims()) as port:
        wires = [await connect(port) for _ in range(3)]
        for number, wire in enumerate(wires[:2], 1):
            wire.send(line("192.0.2.7", 1))
            await become(lambda number=number: door.site.connected == number)  # type: ignore[misc]
        wires[2].send(line("192.0.2.7", 1))
        assert (await wires[2].last_answer()).status == 429
        other = await connect(port)
        other.send(line("192.0.2.8", 1), head("GET /"))
        assert (await other.answer()).status == 200
        for wire in (*wires[:2], other):
            await wire.close()


@pytest_twisted.ensureDeferred
async def test_of_too_many_without_a_header_the_one_that_waits_longest_is_cut_off() -> None:
    """They count for no other limit: nothing behind the header knows of them yet."""
    door = make(connections=6)
    async with opened(door, claims()) as port:
        wires = [await connect(port) for _ in range(3)]
        wires[0].send(line("192.0.2.7", 1), head("GET /"))
        assert (await wires[0].answer()).status == 200
        wires += [await connect(port) for _ in range(2)]
        await wires[1].closed()
        wires[4].send(line("192.0.2.7", 1), head("GET /"))
        assert (await wires[4].answer()).status == 200
        for wire in (wires[0], *wires[2:]):
            assert wire.lost is None
            await wire.close()


@pytest.mark.parametrize("begun", [b"", b"PROXY TCP4 192.0.2.7", SIGNATURE[:5], binary(b"", length=4000)])
@pytest_twisted.ensureDeferred
async def test_a_header_that_does_not_come_to_its_end_is_cut_off(begun: bytes) -> None:
    """P23 in front of HTTP: the deadline is absolute, and no byte puts it off."""
    async with opened(make(request_deadline=0.2), claims()) as port:
        began = reactor.seconds()
        wire = await connect(port)
        wire.send(begun)
        for _ in range(3000 if begun.startswith(SIGNATURE) else 0):
            if wire.lost is None:
                wire.send(b"\0")
                await deferLater(reactor, 0.01)
        assert wire.lost or not begun.startswith(SIGNATURE), "each byte put the deadline off"
        await wire.closed()
        assert reactor.seconds() - began > 0.1


@pytest.mark.parametrize(
    "header",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4 x x 1 2\r\n",
        b"PROXY TCP6 " + b"1" * LONGEST_LINE,
        b"PROXY TCP4 \xff.0.0.1 10.0.0.1 1 2\r\n",
        binary(packed("10.0.0.1", 1), kind=0xFF),
        binary(packed("10.0.0.1", 1), kind=0x13),
        binary(packed("10.0.0.1", 1)[:5]),
        binary(b"", length=65535),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_malformed_header_closes_the_connection_and_nothing_else(header: bytes) -> None:
    async with opened(make(), claims()) as port:
        wire = await connect(port)
        wire.send(header, head("GET /"))
        await wire.closed()
        assert not wire.received
        good = await connect(port)
        good.send(line("192.0.2.7", 1), head("GET /"))
        assert (await good.answer()).status == 200
        await good.close()


@pytest_twisted.ensureDeferred
async def test_behind_a_proxy_header_a_sender_may_half_close_and_a_refused_one_reads_its_answer() -> None:
    async with opened(make(max_body=1000), claims()) as port:
        half = await connect(port)
        half.send(line("192.0.2.7", 1), head("GET /"))
        half.half_close()
        assert (await half.last_answer()).status == 200
        refused = await connect(port)
        refused.send(line("192.0.2.7", 1), post("/", {}, b"x" * 500_000))
        assert (await refused.last_answer()).status == 413
        gone = await connect(port)
        gone.send(b"PROXY")
        gone.half_close()
        await gone.closed()


@pytest_twisted.ensureDeferred
async def test_tls_may_come_behind_a_proxy_header(tmp_path: Path, authority: Authority) -> None:
    """A proxy that passes TLS on says for whom in clear, before the handshake."""
    authority.write(tmp_path, 70, "localhost")

    def ask(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as raw:
            raw.sendall(line("192.0.2.7", 1))
            with authority.client().wrap_socket(raw, server_hostname="localhost") as client:
                client.sendall(head("GET /", {b"Connection": b"close"}))
                with client.makefile("rb") as answer:
                    return answer.read()

    async with opened(make(), f"haproxy:{ssl_at(tmp_path)}") as port:
        assert (await deferToThread(ask, port)).endswith(b"192.0.2.7 True")


@pytest.mark.parametrize("begun", [b"", b"\x16", b"hello"])
@pytest_twisted.ensureDeferred
async def test_who_half_closes_a_tls_connection_behind_a_proxy_header_is_let_go_without_a_word(
    tmp_path: Path, authority: Authority, said: list[str], begun: bytes
) -> None:
    """T05: each of them was an error of a thousand frames in the log."""
    authority.write(tmp_path, 71, "localhost")
    door = make()
    async with opened(door, f"haproxy:{ssl_at(tmp_path)}") as port:
        before = len(said)
        wire = await connect(port)
        wire.send(line("192.0.2.7", 1), client_hello(b"localhost") if begun == b"hello" else begun)
        await become(lambda: door.site.connected == 1)
        wire.half_close()
        await wire.closed()
        await become(lambda: not door.site.connected)
        assert said[before:] == []


@pytest_twisted.ensureDeferred
async def test_a_unix_socket_may_take_a_proxys_word(tmp_path: Path) -> None:
    path = tmp_path / "door.sock"

    def ask() -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(line("192.0.2.7", 1) + head("GET /", {b"Connection": b"close"}))
            with client.makefile("rb") as answer:
                return answer.read()

    async with opened(make(), f"haproxy:unix:{path}"):
        assert (await deferToThread(ask)).endswith(b"192.0.2.7 False")


# --- sockets that outlive us


@pytest_twisted.ensureDeferred
async def test_who_is_being_heard_when_we_leave_is_answered_though_we_stood_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What has come meanwhile waits to be read, and the time for it must not be up before it is."""
    monkeypatch.setattr("twisted_hook.door.FAREWELL", 0.3)
    door = make()
    async with opened(door, "tcp:0:interface=127.0.0.1") as port:
        wire = await connect(port)
        await become(lambda: door.site.connected == 1)
        leaving = Deferred.fromCoroutine(door.leave())
        wire.send(head("GET /", {b"Connection": b"close"}))
        time.sleep(0.4)  # noqa: ASYNC251 - so that nobody has a turn
        await leaving
        assert not door.site.connected
        assert (await wire.last_answer()).status == 200


@pytest.mark.parametrize("describe", [ssl_at, tls_at, lambda _: claims()])
@pytest_twisted.ensureDeferred
async def test_who_connects_while_nobody_accepts_is_served_by_the_next_one(
    tmp_path: Path, authority: Authority, describe: Callable[[Path], str]
) -> None:
    authority.write(tmp_path, 80, "localhost")
    description, holding = describe(tmp_path), Holding()
    first, second = make(holding), make(holding)
    try:
        async with opened(first, description) as port:
            first.hand_over()
            assert list(holding.held) == [kept_name(description)]
            await first.leave()
            waiting = await connect_through(tls_client(port)) if "haproxy" not in description else await connect(port)
            async with opened(second, description) as again:
                assert again == port
                waiting.send(b"" if "haproxy" not in description else line("192.0.2.7", 1), head("GET /"))
                assert (await waiting.answer()).status == 200
                await waiting.close()
    finally:
        holding.let_go()
