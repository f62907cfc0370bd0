"""The stage of the demo: an origin, a clone to work in, a configuration, a server as its own process, and visitors.

Everything is real and lives in one directory. What is shown on it, and in which order, is told in ``demo``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
from itertools import islice
from pathlib import Path

import httpx

from twisted_hook import leftovers, serverrecords
from twisted_hook.commands import Ambient, Git
from twisted_hook.keeping import Keeper
from twisted_hook.redaction import clean

PATIENCE = 60.0
"""Seconds that any one thing may take: a slow machine is not a broken one."""
STOPPING = 30.0
LAST_LINES = 25
APP, BRANCH = "hello", "main"
PORTS = range(10_100, 12_000)
"""Below those that the kernel gives to clients, so that none is taken by chance before the server listens."""

CONFIG_NAME = "hookdeploy.toml"

WSGI = '''\
"""The whole site: what stands in greeting.txt, and which commit it is."""

import os
from pathlib import Path

GREETING = Path(__file__).with_name("greeting.txt").read_text().strip()
REVISION = os.environ["HOOKDEPLOY_REVISION"][:7]


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{GREETING} (commit {REVISION})\\n".encode()]
'''

CONFIG = """\
state = "state"

[server]
listen = ["tcp:{hook_port}:interface=127.0.0.1"]

[hooks.github]  # POST /hooks/github
secrets = [{{ file = "hook.secret" }}]

[apps.hello]
hook = "github"
repository = "origin.git"
names = ["you/hello"]
branch = "main"
wsgi = "wsgi:application"
bind = "127.0.0.1:{app_port}"
poll = "0"
health = "/"
probation = "500ms"  # usually longer: both answer meanwhile
"""


class StageFailed(Exception):
    """It did not go as it should; the text says what."""


class Visitors:
    """Those who look at the page, also while it is deployed."""

    def __init__(self, url: str) -> None:
        # A new connection for each, so that each may meet another server.
        self._client = httpx.Client(
            base_url=url, trust_env=False, timeout=PATIENCE, limits=httpx.Limits(max_keepalive_connections=0)
        )
        self.answered = 0
        self.failed: list[str] = []

    def look(self) -> str:
        """The page; empty if there was none to be had."""
        try:
            answer = self._client.get("/").raise_for_status()
        except httpx.HTTPError as error:
            self.failed.append(str(error) or type(error).__name__)
            return ""
        self.answered += 1
        return answer.text.strip()

    def close(self) -> None:
        self._client.close()


class Server:
    """``twistd hookdeploy`` as a process of its own, in the demo's directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._log = directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # Not the script `twistd`: it need not be on PATH, nor belong to this interpreter.
        program = "from twisted.scripts.twistd import run; run()"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", program, "-n", "--pidfile=", "hookdeploy", "--config", CONFIG_NAME],
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the demo, which then ends the server in order
            )

    def check(self, patience: float = 0.0) -> None:
        """Raises ``StageFailed`` if it does not run any more, or ends within so many seconds."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise StageFailed(f"the server ended by itself: exit {self._process.wait(patience)}")

    def close(self) -> None:
        """End it, and whatever it could not end itself."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOPPING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for servers in self._directory.glob("state/apps/*/servers"):
            serverrecords.end_all(servers, patience=STOPPING)
        self._end_keeper()
        leftovers.end_all(self._directory / "state" / "commands")

    def _end_keeper(self) -> None:
        """A server that was killed could not do it."""
        path = self._directory / "state" / "keeper.sock"
        if path.exists():
            keeper = Keeper(path)
            keeper.reach()
            keeper.end()

    def last_words(self) -> str:
        lines = self._log.read_text("utf-8", "replace").splitlines() if self._log.exists() else []
        return clean("\n".join(lines[-LAST_LINES:]))


class Workplace:
    """The demo's directory: the origin, the clone in which one works, the configuration and its secret."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.origin = directory / "origin.git"
        self.clone = directory / "clone"
        self.config = directory / CONFIG_NAME
        self.state = directory / "state"
        self.secret = secrets.token_hex(32)
        hook_port, app_port = _free_ports(2)
        self.page = f"http://127.0.0.1:{app_port}/"
        self.hook = f"http://127.0.0.1:{hook_port}/hooks/github"
        self._text = CONFIG.format(hook_port=hook_port, app_port=app_port)

    def make(self) -> None:
        self._git(self.directory, "init", "--quiet", "--bare", "--initial-branch=main", self.origin.name)
        self._git(self.directory, "clone", "--quiet", self.origin.name, self.clone.name)
        self._git(self.clone, "symbolic-ref", "HEAD", "refs/heads/main")
        # For those who commit by hand: a new machine knows nobody yet, and a key is not needed here.
        for name, value in {"user.name": "You", "user.email": "you@localhost", "commit.gpgSign": "false"}.items():
            self._git(self.clone, "config", name, value)
        (self.clone / "wsgi.py").write_text(WSGI)
        self.config.write_text(self._text)
        (self.directory / "hook.secret").touch(mode=0o600)
        (self.directory / "hook.secret").write_text(self.secret)

    def commit(self, greeting: str) -> str:
        """Change the page in the clone; gives the commit, which is not pushed yet."""
        (self.clone / "greeting.txt").write_text(f"{greeting}\n")
        self._git(self.clone, "add", "--all")
        self._git(self.clone, "commit", "--quiet", f"--message={greeting}")
        return self._git(self.clone, "rev-parse", "--verify", "HEAD")

    def push(self) -> None:
        self._git(self.clone, "push", "--quiet", "origin", "main")

    def _git(self, directory: Path, *arguments: str) -> str:
        ambient = Ambient.from_environ(os.environ)
        command = Git(ambient, directory, "file", in_place=True, timeout=PATIENCE).command(*arguments)
        try:
            done = subprocess.run(
                command.argv,
                env={**command.env, "GIT_AUTHOR_NAME": "You", "GIT_AUTHOR_EMAIL": "you@localhost"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=command.timeout,
                check=True,
                start_new_session=True,  # as for the server
            )
        except subprocess.CalledProcessError as error:
            raise StageFailed(f"{command.name}: {clean(error.stderr.decode('utf-8', 'replace')).strip()}") from None
        except subprocess.TimeoutExpired:
            raise StageFailed(f"{command.name} did not end within {PATIENCE:g} s") from None
        return done.stdout.decode().strip()


def _free_ports(count: int) -> list[int]:
    """Ports that are free now; where the search begins is told by the process, so that two demos begin apart."""
    first = os.getpid() * count % len(PORTS)
    return list(islice(filter(_is_free, (*PORTS[first:], *PORTS[:first])), count))


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False
