"""A push that came while hookdeploy was down, through the whole of it: GitHub is asked for it, and delivers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests import payloads
from tests.githubapi import attempt, webhook
from tests.installed import RELEASE, Hookdeploy, Origin, put_away, site
from tests.waiting import until

TOKEN = "github_pat_11ABCDEFG0canary"
FIRST, SECOND = "72d3162e-cc78-11e3-81ab-4c9367dc0958", "0b989ba4-242f-11e5-81e1-c7b6966d2516"
ATTEMPTS = "/repos/acme/web/hooks/1/deliveries/{}/attempts"


class GitHub(ThreadingHTTPServer):
    """Tells of what it could not deliver, and delivers the commit when it is asked for the first."""

    def __init__(self, hookdeploy: Hookdeploy) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.hookdeploy = hookdeploy
        self.commit = ""
        self.failed = [FIRST]
        self.asked: list[tuple[str, str, str]] = []

    @property
    def orders(self) -> list[str]:
        return [path for method, path, _ in self.asked if method == "POST"]

    def deliver(self) -> None:
        push = payloads.push(after=self.commit, repository=payloads.repository("acme/web"))
        self.hookdeploy.send(push, guid=FIRST)


class Asked(BaseHTTPRequestHandler):
    """One request."""

    server: GitHub

    def do_GET(self) -> None:
        if self.path.startswith("/repos/acme/web/hooks?"):
            self._answer(200, [webhook(1, "https://deploy.example.com/hooks/github")])
        else:
            failed = enumerate(self.server.failed)
            self._answer(200, [attempt(number, guid, code=0, at=time.time()) for number, guid in failed][::-1])

    def do_POST(self) -> None:
        self._answer(202, {})
        if self.path == ATTEMPTS.format(0):
            self.server.deliver()

    def _answer(self, status: int, body: object) -> None:
        self.server.asked.append((self.command, self.path, self.headers["authorization"]))
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the requests are noted."""


@pytest.fixture
def hookdeploy(tmp_path: Path, origin: Origin) -> Iterator[Hookdeploy]:
    """One that never looks at its remote by itself."""
    with put_away(Hookdeploy(tmp_path, config=RELEASE)) as made:
        yield made


@pytest.fixture
def github(hookdeploy: Hookdeploy) -> Iterator[GitHub]:
    with GitHub(hookdeploy) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.02,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_a_push_that_came_while_it_was_down_is_asked_for_once(
    tmp_path: Path, origin: Origin, hookdeploy: Hookdeploy, github: GitHub
) -> None:
    hookdeploy.start()
    hookdeploy.first()
    hookdeploy.stop()

    github.commit = origin.push(site("two"))
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(f"{TOKEN}\n")
    asking = f'token = {{ file = "token" }}\napi = "http://127.0.0.1:{github.server_port}"\n[apps.web]'
    hookdeploy.configure(RELEASE.replace("[apps.web]", asking))
    hookdeploy.start()
    hookdeploy.wait_for_page("two")
    assert hookdeploy.api("/deployments", limit=1)[0]["trigger"] == "push"
    hookdeploy.stop()

    github.failed.append(SECOND)
    hookdeploy.start()
    until(lambda: ATTEMPTS.format(1) in github.orders, "look after the restart")
    hookdeploy.stop()
    assert github.orders == [ATTEMPTS.format(0), ATTEMPTS.format(1)]
    assert {right for _, _, right in github.asked} == {f"token {TOKEN}"}
    assert f"the webhook of acme/web at 127.0.0.1 is to deliver {FIRST} again" in hookdeploy.log
    state = [path.read_bytes() for path in hookdeploy.state.rglob("*") if path.is_file()]
    assert not [text for text in (hookdeploy.log.encode(), *state) if TOKEN.encode() in text]
