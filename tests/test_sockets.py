"""The sockets on which apps are served are bound, or it is told which cannot be had and why."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.installed import free_port
from twisted_hook.sockets import CannotListen, listen, unix_address


def has_v6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def open_sockets() -> set[str]:
    """Those of this process. Of its other descriptors some may come and go that are nobody's affair here."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # of the listing itself
            found.add(str(descriptor.readlink()))
    return {each for each in found if each.startswith("socket:")}


class ListenTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "app.sock"
        self.bind = f"unix:{self.path}"

    def listen(self, bind: str) -> socket.socket:
        listener = listen(bind)
        self.addCleanup(listener.close)
        return listener

    def assert_refused(self, bind: str, *words: str) -> None:
        """It cannot be had; the reason names the address, and no socket is left open."""
        before = open_sockets()
        error = self.assertRaises(CannotListen, listen, bind)
        for word in (f"cannot listen on {bind}: ", *words):
            self.assertIn(word, str(error))
        self.assertEqual(open_sockets() - before, set())

    def assert_serves(self, listener: socket.socket, family: socket.AddressFamily) -> None:
        """Whoever connects gets through to it; and it never blocks."""
        self.assertEqual((listener.family, listener.gettimeout()), (family, 0.0))
        with socket.socket(family) as client:
            client.connect(listener.getsockname())
            accepted, _ = listener.accept()
            accepted.close()
        self.assertRaises(BlockingIOError, listener.accept)

    # TCP

    def test_an_address_of_version_4_is_bound(self) -> None:
        listener = self.listen("127.0.0.1:0")
        self.assertEqual(listener.getsockname()[0], "127.0.0.1")
        self.assert_serves(listener, socket.AF_INET)

    def test_an_answer_does_not_wait_for_an_acknowledgement(self) -> None:
        """Even if the server takes the socket for a unix one, as uvicorn does."""
        listener = self.listen("127.0.0.1:0")
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                self.assertTrue(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def test_an_address_of_version_6_is_bound(self) -> None:
        if not has_v6() and not os.environ.get("HOOKDEPLOY_ALL_TESTS"):
            raise SkipTest("this machine has no IPv6")
        listener = self.listen("[::1]:0")
        self.assertEqual(listener.getsockname()[0], "::1")
        self.assert_serves(listener, socket.AF_INET6)

    def test_a_name_is_bound(self) -> None:
        self.assertIn(self.listen("localhost:0").getsockname()[0], {"127.0.0.1", "::1"})

    def test_all_addresses_are_bound(self) -> None:
        self.assertEqual(self.listen("0.0.0.0:0").getsockname()[0], "0.0.0.0")

    def test_a_port_in_use_is_refused(self) -> None:
        port = self.listen("127.0.0.1:0").getsockname()[1]
        self.assert_refused(f"127.0.0.1:{port}", "Address already in use")

    def test_a_port_that_was_closed_can_be_bound_again_at_once(self) -> None:
        """Connections of the server before it, which linger for a minute, are not in the way."""
        first = self.listen(f"127.0.0.1:{free_port()}")
        address = first.getsockname()
        with socket.create_connection(address):
            accepted, _ = first.accept()
            accepted.close()
        first.close()
        self.assertEqual(self.listen(f"127.0.0.1:{address[1]}").getsockname(), address)

    def test_an_address_of_another_machine_is_refused(self) -> None:
        self.assert_refused("192.0.2.1:8080", "Cannot assign requested address")

    def test_a_name_that_nobody_knows_is_refused(self) -> None:
        self.assert_refused("no-such-host.invalid:8080")

    # Unix

    def test_a_path_is_bound_and_open_to_the_proxy(self) -> None:
        listener = self.listen(self.bind)
        self.assert_serves(listener, socket.AF_UNIX)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o666)

    def test_a_socket_of_somebody_who_has_gone_is_replaced(self) -> None:
        self.listen(self.bind).close()
        self.assertTrue(self.path.is_socket())
        self.assert_serves(self.listen(self.bind), socket.AF_UNIX)

    def test_a_socket_on_which_somebody_listens_is_refused(self) -> None:
        living = self.listen(self.bind)
        self.assert_refused(self.bind, "Address already in use")
        living.accept()[0].close()  # the question whether somebody listens
        self.assert_serves(living, socket.AF_UNIX)

    def test_a_socket_whose_owner_is_too_busy_to_accept_is_refused(self) -> None:
        """Its queue is full: whoever connects is told to come again, or waits for ever."""
        with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as clients:
            busy.bind(str(self.path))
            busy.listen(0)
            for _ in range(3):
                client = clients.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect_ex(str(self.path))
            self.assert_refused(self.bind, "Address already in use")
            self.assertTrue(self.path.is_socket())

    def test_a_socket_of_another_kind_is_refused(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(str(self.path))
            self.assert_refused(self.bind, "Address already in use")
            self.assertTrue(self.path.is_socket())

    def test_a_file_at_the_path_is_refused_and_stays(self) -> None:
        self.path.write_text("precious")
        self.assert_refused(self.bind, "Address already in use")
        self.assertEqual(self.path.read_text(), "precious")

    def test_a_directory_at_the_path_is_refused_and_stays(self) -> None:
        self.path.mkdir()
        self.assert_refused(self.bind, "Address already in use")
        self.assertTrue(self.path.is_dir())

    def test_a_link_at_the_path_is_refused_and_stays(self) -> None:
        """Also one to a socket that nobody uses."""
        target = self.path.with_name("target")
        self.listen(f"unix:{target}").close()
        self.path.symlink_to(target)
        self.assert_refused(self.bind, "Address already in use")
        self.assertTrue(self.path.is_symlink())
        self.assertTrue(target.is_socket())

    def test_a_path_in_a_directory_that_is_not_there_is_refused(self) -> None:
        self.assert_refused(f"unix:{self.path.parent}/none/app.sock", "No such file or directory")

    def test_a_path_that_is_too_long_is_refused(self) -> None:
        self.assert_refused(f"unix:{self.path.parent}/{'x' * 120}", "path too long")

    def test_a_socket_of_our_own_has_an_address_however_deep_it_lies(self) -> None:
        """The user has chosen the directory, and knows of no limit."""
        for name in ("short", "x" * 120):
            path = self.path.with_name(name) / "api.sock"
            path.parent.mkdir()
            with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
                listener.bind(unix_address(path))
                listener.listen()
                self.assertTrue(path.is_socket())
                client.connect(unix_address(path))
