"""Secrets of the app are in no file and no answer of the running program, whoever prints them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.installed import RELEASE, Hookdeploy, Origin, put_away, site
from tests.waiting import until

FROM_FILE, ROTATED, FROM_COMMAND = "canary-of-the-env-file", "canary-after-a-rotation", "canary-of-the-command-line"
TOKEN = "canary-of-the-forge"
CONFIG = f"""{RELEASE}
env_file = "web.env"
env = {{ API_TOKEN = "{FROM_COMMAND}" }}
build = ["sh DIRECTORY/build.sh {FROM_COMMAND}"]
"""
BUILD = """
echo "file: $DATABASE_PASSWORD, command: $1"
printf '%s' "$DATABASE_PASSWORD" >&2
test ! -e DIRECTORY/broken
"""
SAYS_IT_AND_DIES = """
import os, sys
print("boot:", os.environ["DATABASE_PASSWORD"], file=sys.stderr, flush=True)
raise RuntimeError(os.environ["DATABASE_PASSWORD"] + os.environ["API_TOKEN"])
"""


TELLS_WHEN_ASKED = """
import os, signal, sys
def application(environ, start_response):
    print("last words:", os.environ["DATABASE_PASSWORD"], file=sys.stderr, flush=True)
    os.kill(os.getppid(), signal.SIGKILL)
    os._exit(1)
"""


@pytest.fixture
def hookdeploy(tmp_path: Path, origin: Origin) -> Iterator[Hookdeploy]:
    """One whose build prints every secret that it knows, and fails while there is a file ``broken``; not started."""
    (tmp_path / "build.sh").write_text(BUILD.replace("DIRECTORY", str(tmp_path)))
    declare(tmp_path, FROM_FILE)
    with put_away(Hookdeploy(tmp_path, config=CONFIG)) as made:
        yield made


LISTS = ("/deployments", "/apps", "/deliveries", "/parked", "/server")


def declare(directory: Path, password: str) -> None:
    file = directory / "web.env"
    file.touch(mode=0o600)
    file.write_text(f"DATABASE_PASSWORD={password}\n")


def shown(hookdeploy: Hookdeploy, *deployments: str) -> dict[str, bytes]:
    """All that a person can come to see: every answer of the API, the metrics, twistd's log, every file of the state.

    But for the servers' own logs, into which gunicorn itself writes, and for the records of running servers, which
    hold their environment: the next hookdeploy starts them again with it. Nobody else can read either.
    """
    hookdeploy.wait_until_idle()
    until(lambda: is_settled(hookdeploy), "server that serves, or none")
    answers = {path: json.dumps(hookdeploy.api(path)) for path in LISTS}
    answers |= {f"/deployments/{each}": json.dumps(hookdeploy.api(f"/deployments/{each}")) for each in deployments}
    answers |= {f"/deployments/{each}/log": hookdeploy.log_of(each) for each in deployments}
    answers["the metrics"] = hookdeploy.metrics()
    answers["twistd's log"] = hookdeploy.log
    found = {file for file in hookdeploy.state.rglob("*") if file.is_file()}
    own = {*hookdeploy.state.glob("logs/*.server.log"), *hookdeploy.state.glob("apps/*/servers/*")}
    assert {file.stat().st_mode & 0o777 for file in own} <= {0o600}
    files = {str(file): file.read_bytes() for file in found - own}
    return {name: said.encode() for name, said in answers.items()} | files


def is_settled(hookdeploy: Hookdeploy) -> bool:
    """Whether no file of a server is about to come or go."""
    [app] = hookdeploy.api("/apps")
    records = list(hookdeploy.state.glob("apps/*/servers/*"))
    return len(records) == {"serving": 1, "down": 0}.get(app["server"]["state"])


def leaks(hookdeploy: Hookdeploy, *deployments: str) -> list[str]:
    said = shown(hookdeploy, *deployments)
    assert any("journal.sqlite3" in name for name in said)
    canaries = (FROM_FILE, ROTATED, FROM_COMMAND, TOKEN)
    return [f"{canary} in {name}" for name, data in said.items() for canary in canaries if canary.encode() in data]


def test_what_a_failing_build_prints_is_masked_everywhere(hookdeploy: Hookdeploy) -> None:
    """P80, P75: one secret is in the env_file, the other one on the command line. In the other log see those below."""
    hookdeploy.change_environ({"HOOKDEPLOY_LOG_FORMAT": "json"})
    (hookdeploy.directory / "broken").touch()
    hookdeploy.start()
    done = hookdeploy.first()
    assert done["outcome"] == "failed"
    assert "file: [secret], command: [secret]" in done["reason"]
    assert "file: [secret], command: [secret]" in hookdeploy.log_of(done["id"])
    assert done["steps"][0]["command"] == f"sh {hookdeploy.directory}/build.sh [secret]"
    assert leaks(hookdeploy, done["id"]) == []


def test_what_an_app_says_as_it_dies_is_masked_everywhere(hookdeploy: Hookdeploy, origin: Origin) -> None:
    """P75, P81."""
    origin.push({"wsgi.py": SAYS_IT_AND_DIES})
    hookdeploy.start()
    done = hookdeploy.first()
    assert done["outcome"] == "failed"
    assert "RuntimeError: [secret][secret]" in done["reason"]
    assert leaks(hookdeploy, done["id"]) == []


def test_a_secret_that_was_changed_is_masked_in_the_next_deployment(hookdeploy: Hookdeploy, origin: Origin) -> None:
    """P80: the env_file is read at every deployment, without a word to hookdeploy."""
    hookdeploy.start()
    first = hookdeploy.first()
    assert first["outcome"] == "deployed"
    declare(hookdeploy.directory, ROTATED)
    second = hookdeploy.ended(hookdeploy.announce(origin.push(site("two"))))
    assert second["outcome"] == "deployed"
    (hookdeploy.directory / "broken").touch()
    third = hookdeploy.ended(hookdeploy.announce(origin.push(site("three"))))
    assert third["outcome"] == "failed"
    for deployment in (first, second, third):
        assert "file: [secret], command: [secret]" in hookdeploy.log_of(deployment["id"])
    assert leaks(hookdeploy, *(each["id"] for each in (first, second, third))) == []


def test_what_a_server_says_as_it_dies_is_masked_after_a_reload_too(hookdeploy: Hookdeploy, origin: Origin) -> None:
    """P80: it still has the secret that has been changed since."""
    origin.push({"wsgi.py": TELLS_WHEN_ASKED})
    hookdeploy.start()
    assert hookdeploy.first()["outcome"] == "deployed"
    declare(hookdeploy.directory, ROTATED)
    os.kill(hookdeploy.pid, signal.SIGHUP)
    hookdeploy.wait_for_log("the configuration was read again")
    hookdeploy.page()
    hookdeploy.wait_for_log("the server ended by itself")
    hookdeploy.wait_for_log("last words: [secret]")
    assert leaks(hookdeploy) == []


class Telltale(BaseHTTPRequestHandler):
    """A forge that is not well, and says aloud what it was told in confidence."""

    def do_GET(self) -> None:
        told = self.headers["Authorization"] or ""
        assert isinstance(self.server, Forge)
        body = json.dumps({"message": f"nobody may enter with {told}"}).encode()
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.server.told.append(told)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: what it would say goes to the test's own output."""


class Forge(HTTPServer):
    """It listens on a port of its own, and remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Telltale)
        self.told: list[str] = []


@pytest.fixture
def forge() -> Iterator[Forge]:
    with Forge() as forge:
        thread = Thread(target=forge.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield forge
        forge.shutdown()
        thread.join()


def test_the_token_reaches_its_forge_and_nobody_else(hookdeploy: Hookdeploy, forge: Forge) -> None:
    """T45: not even by way of what the forge says."""
    token = hookdeploy.directory / "github.token"
    token.touch(mode=0o600)
    token.write_text(f"{TOKEN}\n")
    lines = f'token = {{ file = "github.token" }}\napi = "http://127.0.0.1:{forge.server_port}"\n'
    hookdeploy.configure(CONFIG.replace("[apps.web]", f"{lines}[apps.web]"))
    hookdeploy.start()
    assert hookdeploy.first()["outcome"] == "deployed"
    until(lambda: TOKEN in str(forge.told), "question that the forge was asked")
    hookdeploy.wait_for_log("nobody may enter with")
    assert leaks(hookdeploy) == []
