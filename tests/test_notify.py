"""What systemd is told: in its own words, as often as it wants to hear it, and nothing where there is no systemd."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twisted_hook.notify import PAUSE, Systemd


class Listener:
    """A stand-in for systemd's end of the socket."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.setblocking(False)

    def heard(self) -> list[dict[str, str]]:
        """What has arrived since the last look."""
        found: list[dict[str, str]] = []
        while True:
            try:
                text = self._socket.recv(4096).decode()
            except BlockingIOError:
                return found
            found.append(dict(line.split("=", 1) for line in text.split("\n")))

    def close(self) -> None:
        self._socket.close()


class ToldToSystemd(SynchronousTestCase):
    """With a listener on a path, and one in the abstract name space."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = str(Path(directory.name) / "notify")
        self.listener = self.listen(self.path)
        self.clock = Clock()
        self.does = "serves web"

    def listen(self, address: str) -> Listener:
        listener = Listener(address)
        self.addCleanup(listener.close)
        return listener

    def systemd(self, **environ: str) -> Systemd:
        return Systemd.from_environ(self.clock, {"NOTIFY_SOCKET": self.path, **environ}, lambda: self.does)

    def test_it_is_ready_with_its_pid_and_what_it_does(self) -> None:
        self.systemd().ready()
        self.assertEqual(self.listener.heard(), [{"READY": "1", "MAINPID": str(os.getpid()), "STATUS": "serves web"}])

    def test_an_abstract_address_is_understood(self) -> None:
        address = f"@hookdeploy-test-{os.getpid()}"
        listener = self.listen(address)
        self.systemd(NOTIFY_SOCKET=address).ready()
        self.assertEqual(len(listener.heard()), 1)

    def test_a_reload_tells_its_time_and_ends_with_ready(self) -> None:
        systemd = self.systemd()
        systemd.reloading("reads")
        systemd.ready()
        [reloading, ready] = self.listener.heard()
        self.assertEqual((reloading["RELOADING"], reloading["STATUS"]), ("1", "reads"))
        self.assertGreater(int(reloading["MONOTONIC_USEC"]), 0)
        self.assertEqual(ready["READY"], "1")

    def test_the_status_is_told_when_it_is_another_and_not_more_than_once_in_a_while(self) -> None:
        systemd = self.systemd()
        systemd.ready()
        self.listener.heard()
        for number in range(100):
            self.does = f"deploys web, {number}"
            systemd.changed()
        self.assertEqual(self.listener.heard(), [])
        self.clock.advance(PAUSE)
        self.assertEqual(self.listener.heard(), [{"STATUS": "deploys web, 99"}])
        systemd.changed()
        self.clock.advance(PAUSE)
        self.assertEqual(self.listener.heard(), [])

    def test_the_watchdog_hears_from_it_twice_in_its_time(self) -> None:
        systemd = self.systemd(WATCHDOG_USEC="10000000", WATCHDOG_PID=str(os.getpid()))
        self.assertTrue(systemd.watches)
        systemd.start()
        self.assertEqual(self.listener.heard(), [{"WATCHDOG": "1"}])
        self.clock.pump([1.0] * 10)
        self.assertEqual(self.listener.heard(), [{"WATCHDOG": "1"}] * 2)
        systemd.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_watchdog_that_is_somebody_elses_hears_nothing(self) -> None:
        for environ in ({"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": ""}, {"WATCHDOG_USEC": "soon"}):
            systemd = self.systemd(**{"WATCHDOG_USEC": "10000000", **environ})
            systemd.start()
            self.assertFalse(systemd.watches)
        self.assertEqual((self.listener.heard(), self.clock.getDelayedCalls()), ([], []))

    def test_who_stops_tells_how_long_that_takes_and_is_never_ready_again(self) -> None:
        systemd = self.systemd()
        systemd.changed()
        systemd.stopping("stops")
        systemd.takes(40)
        systemd.ready()
        systemd.reloading("reads")
        systemd.changed()
        self.clock.advance(PAUSE)
        self.assertEqual(
            self.listener.heard(), [{"STOPPING": "1", "STATUS": "stops"}, {"EXTEND_TIMEOUT_USEC": "45000000"}]
        )
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_without_systemd_nothing_happens(self) -> None:
        for address in ("", "vsock:2:1234", "nonsense"):
            systemd = self.systemd(NOTIFY_SOCKET=address, WATCHDOG_USEC="10000000")
            systemd.start()
            systemd.ready()
            systemd.changed()
            self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.listener.heard(), [])

    def test_one_that_has_gone_is_no_reason_to_fail(self) -> None:
        self.systemd(NOTIFY_SOCKET=f"{self.path}.gone").ready()
