"""The dashboard's port of the installed program: who has the token is let in, across reloads, upgrades and stops."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.installed import RELEASE, Hookdeploy, free_port, is_listened_on
from tests.waiting import until

DASHBOARD = '[dashboard]\nlisten = ["tcp:PORT:interface=127.0.0.1"]\n'


def _listening(release: Hookdeploy) -> httpx.Client:
    """A client of the port that is configured now; it knows no token yet."""
    port = free_port()
    release.configure(RELEASE + DASHBOARD.replace("PORT", str(port)))
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60)


def _bearer(release: Hookdeploy) -> dict[str, str]:
    return {"Authorization": f"Bearer {(release.state / 'token').read_text().strip()}"}


def _status(client: httpx.Client, headers: dict[str, str]) -> int | None:
    try:
        return client.get("/api/v1/apps", headers=headers).status_code
    except httpx.TransportError:
        return None


def test_the_token_opens_the_port_and_a_new_one_ends_the_old(release: Hookdeploy) -> None:
    with _listening(release) as client:
        release.start()
        release.first()
        token = release.state / "token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        old = _bearer(release)
        assert _status(client, {}) == 401
        assert _status(client, old) == 200
        assert client.get("/login", params={"token": token.read_text().strip()}).status_code == 303
        assert client.get("/").status_code == 200
        assert release.api("/server")["dashboard"] == [f"{client.base_url}".rstrip("/") + "/"]
        assert token.read_text().strip() not in release.log
        with client.stream("GET", "/api/v1/events", headers=old) as events:
            lines = events.iter_lines()
            assert next(lines) == "retry: 2000"
            token.unlink()
            release.configure("state = 1\n")  # whose fault is no reason to go on believing the old one
            _signal(release, signal.SIGHUP)
            until(lambda: _status(client, {**old, "Cookie": ""}) == 401, "end of the old token")
            _drain(lines)
        assert _status(client, _bearer(release)) == 200
        assert client.get("/", headers={"Accept": "text/html"}).status_code == 401
        release.wait_for_log("the configuration stays as it was")
        assert "the API's token is another one now" in release.log


def test_who_starts_it_at_a_terminal_is_shown_the_link_that_logs_in(release: Hookdeploy) -> None:
    leader, terminal = pty.openpty()
    with _listening(release) as client, os.fdopen(leader, "rb", buffering=0) as shown:
        release.terminal = terminal
        release.start()
        os.close(terminal)
        release.first()
        link = next(line for line in shown if b"Log in to the dashboard: " in line).split()[-1].decode()
        assert client.get(link).status_code == 303
        release.terminal = None
        release.stop()


def test_a_reload_opens_and_closes_the_port_and_an_upgrade_keeps_it(release: Hookdeploy) -> None:
    release.start()
    release.first()
    with _listening(release) as client:
        _signal(release, signal.SIGHUP)
        until(lambda: _status(client, _bearer(release)) == 200, "answer at the new port")
        with client.stream("GET", "/api/v1/events", headers=_bearer(release)) as events:
            assert next(events.iter_lines()) == "retry: 2000"
            _signal(release, signal.SIGUSR2)
            release.wait_for_log("the dashboard is at")  # it was not at the first start
            until(lambda: _status(client, _bearer(release)) == 200, "answer after the upgrade")
        assert "took longer than" not in release.log
        with client.stream("GET", "/api/v1/events", headers=_bearer(release)) as events:
            lines = events.iter_lines()
            assert next(lines) == "retry: 2000"
            release.configure(RELEASE)
            _signal(release, signal.SIGHUP)
            _drain(lines)
        port = int(str(client.base_url).rpartition(":")[2].strip("/"))
        until(lambda: not is_listened_on(port), "end of the port")


def test_a_token_that_others_can_read_keeps_it_from_starting(release: Hookdeploy, tmp_path: Path) -> None:
    """T45."""
    release.state.mkdir(mode=0o700)
    (release.state / "token").write_text("a-token-that-everybody-can-read")
    (release.state / "token").chmod(0o644)
    done = release.run()
    assert done.returncode == 1
    assert "chmod 600" in done.stderr + done.stdout
    assert "everybody" not in done.stderr + done.stdout


def _drain(lines: Iterator[str]) -> None:
    """Read until who was told is sent away, and not by a time limit."""
    with contextlib.suppress(httpx.RemoteProtocolError):  # the answer has no end of its own
        for line in lines:
            assert not line.startswith(":"), "it goes on"


def _signal(release: Hookdeploy, number: signal.Signals) -> None:
    os.kill(release.pid, number)
