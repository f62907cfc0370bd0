"""Who may deliver, through the installed program: GitHub is asked where it delivers from, and others are refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.githubapi import meta
from tests.installed import RELEASE, Hookdeploy
from tests.test_reload import hang_up, ping
from tests.waiting import until


class GitHub(ThreadingHTTPServer):
    """Tells from where it delivers, or is broken."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.broken = False
        self.asked: list[str] = []

    @property
    def listed(self) -> str:
        """A configuration whose hook takes from there alone."""
        wish = f'only_from = ["github", "192.0.2.0/24"]\napi = "http://127.0.0.1:{self.server_port}"\n[apps.web]'
        return RELEASE.replace("[apps.web]", wish)


class Asked(BaseHTTPRequestHandler):
    server: GitHub

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = b"<html>" if self.server.broken else json.dumps(meta()).encode()
        self.send_response(500 if self.server.broken else 200)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the requests are noted."""


@pytest.fixture
def github() -> Iterator[GitHub]:
    with GitHub() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.02,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_a_list_of_senders_is_kept_to_for_as_long_as_the_configuration_says(
    release: Hookdeploy, github: GitHub
) -> None:
    """Here everybody comes from 127.0.0.1, which GitHub does not."""
    release.configure(github.listed)
    release.start()
    release.wait_for_log("127.0.0.1 delivers from 192.30.252.0/22")
    assert ping(release, "/hooks/github") == 403
    assert ping(release, "/nowhere") == 404
    hang_up(release, RELEASE)
    assert ping(release, "/hooks/github") == 202
    hang_up(release, github.listed)
    until(lambda: len(github.asked) > 1, "question after the reload")
    until(lambda: ping(release, "/hooks/github") == 403, "refusal after the reload")
    assert release.stop() == -15
    assert set(github.asked) == {"/meta"}
    assert "Traceback" not in release.log


def test_nobody_is_shut_out_when_github_cannot_tell(release: Hookdeploy, github: GitHub) -> None:
    github.broken = True
    release.configure(github.listed)
    release.start()
    release.wait_for_log("from where it delivers cannot be asked")
    assert ping(release, "/hooks/github") == 202
