"""hookdeploy under systemd: what it tells, the sockets that it is given, and the lines that it logs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.installed import RELEASE, Hookdeploy, Origin, free_port, is_listened_on, put_away
from tests.test_notify import Listener
from tests.waiting import PATIENCE, until

GIVEN = RELEASE.replace("tcp:HOOK_PORT:interface=127.0.0.1", "systemd:domain=INET:index=0")
NAMED = RELEASE.replace("tcp:HOOK_PORT:interface=127.0.0.1", "systemd:domain=INET:name=hookdeploy.socket")


class Heard:
    """All that a stand-in for systemd has been told."""

    def __init__(self, path: Path) -> None:
        self._listener = Listener(str(path))
        self._all: list[dict[str, str]] = []

    def all(self) -> list[dict[str, str]]:
        self._all += self._listener.heard()
        return self._all

    def count(self, name: str) -> int:
        return sum(name in message for message in self.all())

    def wait_for(self, name: str, times: int = 1) -> None:
        until(lambda: self.count(name) >= times, f"{name} for the time {times}")

    def statuses(self) -> list[str]:
        return [message["STATUS"] for message in self.all() if "STATUS" in message]

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[Heard]:
    with closing(Heard(tmp_path / "notify")) as listening:
        yield listening


@pytest.fixture
def told(tmp_path: Path, origin: Origin, heard: Heard) -> Iterator[Hookdeploy]:
    """A hookdeploy with somebody to notify; not started yet."""
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
    with put_away(Hookdeploy(tmp_path, config=RELEASE, environ=environ)) as hookdeploy:
        yield hookdeploy


def test_systemd_hears_of_every_turn_in_its_life(told: Hookdeploy, heard: Heard, origin: Origin) -> None:
    told.start()
    heard.wait_for("READY")
    told.first()
    until(lambda: "serves web" in heard.statuses(), "a status that says what serves")
    assert {message.get("MAINPID") for message in heard.all() if "READY" in message} == {str(told.pid)}
    count = heard.count("WATCHDOG")
    heard.wait_for("WATCHDOG", count + 3)

    os.kill(told.pid, signal.SIGHUP)
    heard.wait_for("READY", 2)
    told.configure("nonsense = true")
    os.kill(told.pid, signal.SIGHUP)
    told.wait_for_log("the configuration stays as it was")
    heard.wait_for("READY", 3)
    assert heard.count("RELOADING") == 2

    told.configure(RELEASE)
    os.kill(told.pid, signal.SIGUSR2)
    heard.wait_for("READY", 4)
    assert (heard.count("RELOADING"), heard.count("STOPPING")) == (3, 0)

    told.stop()
    heard.wait_for("STOPPING")
    order = [name for message in heard.all() for name in message if name in ("READY", "RELOADING", "STOPPING")]
    assert order == ["READY", "RELOADING", "READY", "RELOADING", "READY", "RELOADING", "READY", "STOPPING"]
    assert heard.count("EXTEND_TIMEOUT_USEC") > 0


def test_what_systemd_tells_us_reaches_neither_a_step_nor_the_server(told: Hookdeploy, origin: Origin) -> None:
    """P80."""
    origin.push({
        "wsgi.py": "import os\n\ndef application(environ, start_response):\n"
        "    start_response('200 OK', [])\n    return [' '.join(sorted(os.environ)).encode()]\n"
    })  # fmt: skip
    told.change_environ({"LISTEN_PID": "1", "JOURNAL_STREAM": "1:2", "INVOCATION_ID": "3"})
    told.configure(RELEASE + 'build = ["env"]\n')
    told.start()
    printed = told.log_of(told.first()["id"])
    names = until(told.page, "page")
    assert "HOOKDEPLOY_APP=" in printed
    assert "HOOKDEPLOY_APP" in names
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_PID", "JOURNAL_STREAM", "INVOCATION_ID"):
        assert name not in printed + names


# --- sockets of systemd's

ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="hookdeploy.socket")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""What systemd does between the fork and the execution of a service."""


@pytest.fixture
def held(release: Hookdeploy) -> Iterator[socket.socket]:
    """The door's socket, as systemd holds it while a hookdeploy comes and goes."""
    with closing(socket.create_server(("127.0.0.1", release.hook_port), backlog=64)) as listener:
        release.through = (sys.executable, "-c", ACTIVATE, str(listener.fileno()))
        release.given = (listener.fileno(),)
        release.configure(NAMED)
        yield listener


def listens(listener: socket.socket) -> bool:
    return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def ping_waits(hookdeploy: Hookdeploy) -> socket.socket:
    """A request for the health page that is sent off, and not waited for."""
    visitor = socket.create_connection(("127.0.0.1", hookdeploy.hook_port), PATIENCE)
    visitor.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    return visitor


def status_of(visitor: socket.socket) -> bytes:
    with closing(visitor):
        return visitor.recv(65536).partition(b"\r\n")[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL])
def test_who_knocks_while_it_is_restarted_is_answered_by_the_next(
    release: Hookdeploy, held: socket.socket, number: signal.Signals
) -> None:
    release.start()
    release.first()
    release.stop(number)
    assert listens(held)
    visitor = ping_waits(release)
    release.start()
    assert status_of(visitor) == b"HTTP/1.1 200 OK"


def test_the_keeper_does_not_hold_what_is_systemds(release: Hookdeploy, held: socket.socket) -> None:
    release.start()
    release.first()
    release.stop(signal.SIGQUIT)
    held.close()
    release.through, release.given = (), ()
    assert not is_listened_on(release.hook_port)
    release.configure(RELEASE)
    release.start()


def test_an_upgrade_by_execution_keeps_the_given_socket(release: Hookdeploy, held: socket.socket) -> None:
    release.start()
    release.first()
    for times in (2, 3):
        os.kill(release.pid, signal.SIGUSR2)
        visitors = [ping_waits(release) for _ in range(10)]
        until(lambda times=times: release.log.count("takes hooks on") == times, "next beginning")  # type: ignore[misc]
        assert {status_of(visitor) for visitor in visitors} == {b"HTTP/1.1 200 OK"}
    assert "Traceback" not in release.log


def test_a_reload_leaves_a_given_socket_and_takes_it_up_again(release: Hookdeploy, held: socket.socket) -> None:
    release.start()
    release.first()
    other = free_port()
    with_other = NAMED.replace("listen = [", f'listen = ["tcp:{other}:interface=127.0.0.1", ')
    for times, config in enumerate((with_other, RELEASE.replace("HOOK_PORT", str(other)), with_other), start=1):
        release.configure(config)
        os.kill(release.pid, signal.SIGHUP)
        until(lambda times=times: release.log.count("was read again") == times, "reload")  # type: ignore[misc]
        assert listens(held)
    assert release.ask("GET", "/healthz").status_code == 200


def test_a_given_unix_socket_stays_where_it_is(release: Hookdeploy) -> None:
    path = release.directory / "door.sock"
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()
        release.through = (sys.executable, "-c", ACTIVATE, str(listener.fileno()))
        release.given = (listener.fileno(),)
        release.configure(RELEASE.replace("listen = [", 'listen = ["systemd:domain=UNIX:name=hookdeploy.socket", '))
        for _ in range(2):
            release.start()
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=PATIENCE) as visitor:
                assert visitor.get("http://localhost/healthz").status_code == 200
            release.first()
            release.stop()
            assert listens(listener)


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ("systemd:domain=INET:index=0", "systemd has given us no such socket"),
        ("systemd:domain=INET:name=web", "systemd has given us no such socket"),
    ],
)
def test_a_socket_that_was_not_given_is_no_start(release: Hookdeploy, listen: str, why: str) -> None:
    release.configure(RELEASE.replace("tcp:HOOK_PORT:interface=127.0.0.1", listen))
    done = release.run()
    assert done.returncode == 1
    assert why in done.stdout + done.stderr


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None and os.environ.get("HOOKDEPLOY_ALL_TESTS"):
        pytest.fail(f"{name} is not installed")
    return found or pytest.skip(f"{name} is not installed")


def test_systemd_socket_activate_starts_it_with_the_first_visitor(release: Hookdeploy) -> None:
    activate = program("systemd-socket-activate")
    release.through = (activate, f"--listen=127.0.0.1:{release.hook_port}", "--fdname=hookdeploy.socket")
    release.configure(GIVEN)
    release.start()
    release.first()
    release.wait_for_page("one")


# --- the journal


@pytest.fixture
def logged(release: Hookdeploy) -> Hookdeploy:
    """A hookdeploy whose standard output is the journal's, as far as it can tell; not started yet."""
    log = release.directory / "server.log"
    log.touch()
    there = log.stat()
    release.change_environ({"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"})
    return release


def test_the_journal_is_given_priorities_and_no_time(logged: Hookdeploy) -> None:
    logged.start()
    logged.first()
    logged.configure("nonsense = true")
    os.kill(logged.pid, signal.SIGHUP)
    logged.wait_for_log("nonsense: unknown key")
    logged.stop()
    lines = logged.log.splitlines()
    assert any(line.startswith("<3>the configuration stays as it was: ") for line in lines)
    assert {line[0] + line[2] for line in lines} == {"<>"}
    assert any(line.startswith("<6>hookdeploy ") and "takes hooks on" in line for line in lines)


def test_a_log_that_was_chosen_stays_the_chosen_one(logged: Hookdeploy) -> None:
    chosen = logged.directory / "chosen.log"
    logged.options = (f"--logfile={chosen}",)
    logged.start()
    logged.first()
    assert logged.log == ""
    assert "takes hooks on" in chosen.read_text()
