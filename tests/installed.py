"""hookdeploy as its users have it: ``twistd hookdeploy`` as a process of its own, a real origin, and signed hooks.

Whatever is waited for is a condition; nothing sleeps for a fixed time but between two looks at one.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx

from tests import payloads
from tests.proctable import command_lines, within
from tests.waiting import PATIENCE, until

_PORTS = 20_000 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "4"))
"""How many each of the processes has that run the tests side by side."""
_first = 12_000 + _PORTS * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
_ports = cycle(range(_first + os.getpid() % _PORTS, _first + _PORTS))
SECRET = payloads.SECRET
NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Who is trusted over TLS, which nothing speaks here: to read all the world's certificates costs a fifth of a start."""
TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")

RELEASE = """
state = "state"

[server]
listen = ["tcp:HOOK_PORT:interface=127.0.0.1"]

[hooks.github]
secrets = [{ file = "hook.secret" }]

[apps.web]
hook = "github"
repository = "origin.git"
names = ["acme/web"]
wsgi = "wsgi:application"
bind = "127.0.0.1:APP_PORT"
workers = 1
drain = "30s"
probation = "0s"
poll = "0"
"""
IN_PLACE = RELEASE.replace('repository = "origin.git"', 'mode = "in-place"\npath = "clone"')


def free_port() -> int:
    """One below those that the kernel gives to clients, and of this process alone: it is taken a moment later."""
    while True:
        port = next(_ports)
        if not is_listened_on(port):
            with suppress(OSError), socket.create_server(("127.0.0.1", port)):
                return port


def is_listened_on(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def processes_of(directory: Path) -> dict[int, str]:
    """The processes that work in a directory or name it on their command line, by pid; zombies are none.

    The keeper of the sockets is not among them unless it is all that is left.
    """
    lines = {pid: " ".join(words) for pid, words in command_lines()}
    here = within(directory)
    found = {pid: line for pid, line in lines.items() if pid in here or f"{directory}/" in line}
    keepers = {pid for pid, words in found.items() if "keeper.py" in words}
    return found if len(found) == len(keepers) else {pid: found[pid] for pid in found.keys() - keepers}


def is_over(directory: Path) -> bool:
    """Whether nothing works there but the keeper of the sockets, which is told to end and for which nobody waits."""
    return all("keeper.py" in words for words in processes_of(directory).values())


def site(text: str) -> dict[str, str]:
    """The files of an app whose page is this text."""
    return {
        "wsgi.py": f"""
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [{text!r}.encode()]
"""
    }


LEFT_ALONE = "[receive]\n\tautogc = false\n"
"""For a repository: newer versions of git tidy up behind a push, and go on when it has ended."""


class Origin:
    """A bare repository, and a clone of it in which somebody works."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "origin.git"
        self._work = directory / "work"
        directory.mkdir(parents=True, exist_ok=True)
        git(directory, "init", "--quiet", "--bare", "--initial-branch=main", self.path.name)
        with (self.path / "config").open("a") as config:
            config.write(LEFT_ALONE)
        git(directory, "init", "--quiet", "--initial-branch=main", self._work.name)

    def push(self, files: Mapping[str, str], message: str = "A change") -> str:
        """Commit these files and push them; gives the commit."""
        for name, text in files.items():
            (self._work / name).parent.mkdir(parents=True, exist_ok=True)
            (self._work / name).write_text(text)
        git(self._work, "add", "--all")
        git(self._work, "commit", "--quiet", "--allow-empty", f"--message={message}")
        git(self._work, "push", "--quiet", str(self.path), "HEAD:main")
        return git(self._work, "rev-parse", "HEAD")


def git(directory: Path, *arguments: str) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    identity = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.com", "-c", "maintenance.auto=false")
    done = subprocess.run(
        ("git", *identity, *arguments),
        cwd=directory,
        env={**environ, "GIT_CONFIG_GLOBAL": os.devnull},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Hookdeploy:
    """One hookdeploy with a directory of its own. Each start is a new process; all of them write one log."""

    def __init__(
        self,
        directory: Path,
        *,
        config: str | None = None,
        environ: Mapping[str, str] | None = None,
        state: Path | None = None,
        hook_path: str = "/hooks/github",
    ) -> None:
        self.directory = directory
        self.state = state or directory / "state"
        self.hook_path = hook_path
        self.hook_port, self.app_port, self.page_port = free_port(), free_port(), free_port()
        self.through: tuple[str, ...] = ()
        """The program, if any, that executes it."""
        self.options: tuple[str, ...] = ()
        """More of those for twistd."""
        self.terminal: int | None = None
        """The descriptor of one at which it is started; else what it says goes into its log."""
        self.given: tuple[int, ...] = ()
        """Descriptors that this program inherits."""
        self._environ = dict(environ or {})
        self._log = directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        anew = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(timeout=PATIENCE, trust_env=False, verify=NOBODY, limits=anew)
        uds = httpx.HTTPTransport(uds=str(self.state / "api.sock"), verify=NOBODY, limits=anew)
        self._api = httpx.Client(timeout=PATIENCE, base_url="http://localhost/api/v1", transport=uds)
        if config is not None:
            secret = directory / "hook.secret"
            secret.touch(mode=0o600)
            secret.write_bytes(SECRET)
            self.configure(config)

    def configure(self, config: str) -> None:
        """Write hookdeploy.toml; HOOK_PORT, APP_PORT, PAGE_PORT and DIRECTORY in it are this one's."""
        (self.directory / "hookdeploy.toml").write_text(self._filled(config))

    def _filled(self, text: str) -> str:
        ports = {"HOOK_PORT": self.hook_port, "APP_PORT": self.app_port, "PAGE_PORT": self.page_port}
        own = {**ports, "DIRECTORY": self.directory}
        for name, value in own.items():
            text = text.replace(name, str(value))
        return text

    def change_environ(self, environ: Mapping[str, str]) -> None:
        self._environ.update(environ)

    # --- the process

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, **{name: self._filled(value) for name, value in self._environ.items()}}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                (*self.through, *TWISTD, "-n", "--pidfile=", *self.options, "hookdeploy"),
                cwd=self.directory,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log if self.terminal is None else self.terminal,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=self.given,
            )
        until(self._answers, "answer at the door")

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Start it where it is expected to end at once: because it refuses, or goes into the background."""
        return subprocess.run(
            (*TWISTD, *(options or ("-n", "--pidfile=")), "hookdeploy"),
            cwd=self.directory,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and wait for the end; gives the exit status as ``subprocess`` tells it."""
        assert self._process is not None
        self._process.send_signal(number)
        status = self._process.wait(PATIENCE)
        self._process = None
        return status

    def end(self) -> None:
        """Stop it if it runs. Nothing of it may be left then; what is, is killed and complained about."""
        if self._process is not None:
            self.stop()
        self._http.close()
        self._api.close()
        if is_over(self.directory):
            until(lambda: not processes_of(self.directory), "end of the keeper")
        left = processes_of(self.directory)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not left, left

    def _answers(self) -> bool:
        assert self._process is None or self._process.poll() is None, self.log
        return is_listened_on(self.hook_port) and self.ask("GET", "/healthz").status_code == 200

    # --- what one sees of it

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def wait_for_log(self, text: str) -> None:
        until(lambda: text in self.log, f"{text!r} in the log")

    def ask(self, method: str, path: str, **given: Any) -> httpx.Response:
        """A request at the door."""
        return self._http.request(method, f"http://127.0.0.1:{self.hook_port}{path}", **given)

    def send(self, payload: Mapping[str, Any], *, guid: str, path: str = "", **replaced: bytes | None) -> Any:
        """Post a signed delivery; gives the decoded answer, with its HTTP status as ``code``."""
        body = payloads.encoded(payload)
        headers = payloads.headers(body, **{"x_github_delivery": guid.encode(), **replaced})
        answer = self.ask("POST", path or self.hook_path, content=body, headers=list(headers.items()))
        return {**answer.json(), "code": answer.status_code}

    def announce(self, commit: str, *, name: str = "acme/web") -> str:
        """Tell it of a push, as the forge does; gives the id of the deployment that this leads to."""
        told = self.send(payloads.push(after=commit, repository=payloads.repository(name)), guid=f"guid-{commit}")
        assert told["code"] == 202, told
        assert told["status"] == "accepted", told
        [deployment] = told["deployments"]
        return str(deployment)

    def api(self, path: str, **parameters: str | int) -> Any:
        """What the API says."""
        return self._api.get(path, params=parameters).json()

    def post(self, path: str, **wish: str) -> Any:
        """What the API answers to a wish that it grants."""
        answer = self._api.post(path, json=wish)
        assert answer.is_success, answer.text
        return answer.json()

    def log_of(self, deployment: str) -> str:
        """What the commands of a deployment have printed."""
        return self._api.get(f"/deployments/{deployment}/log").text

    def metrics(self, accept: str = "") -> str:
        """What Prometheus reads."""
        answer = self._api.get("http://localhost/metrics", headers={"Accept": accept})
        assert answer.status_code == 200, answer.text
        return answer.text

    def ended(self, deployment: str) -> Any:
        """A deployment, once it has ended."""

        def look() -> Any:
            found = self.api(f"/deployments/{deployment}")
            return found if found["outcome"] else None

        return until(look, "end of the deployment")

    def first(self) -> Any:
        """The first deployment of a new state directory, once it has ended."""
        newest = until(lambda: self.api("/deployments", limit=1), "first deployment")
        return self.ended(newest[0]["id"])

    def wait_until_idle(self) -> None:
        """A deployment that has ended is followed by its tidying up, in which files come and go."""
        until(lambda: all(app["running"] is None for app in self.api("/apps")), "end of what follows a deployment")

    def page(self) -> str:
        """What the app says; empty if nobody answers."""
        try:
            return self._http.get(f"http://127.0.0.1:{self.app_port}/").text
        except httpx.HTTPError:
            return ""

    def wait_for_page(self, text: str) -> None:
        """Until the app says so, and no former server is left that may still take a request instead."""
        until(lambda: self.page() == text and self.has_one_server(), f"page {text!r}")

    def has_one_server(self) -> bool:
        """Whether no app has two: one that is to finish its requests takes new ones until it has heard of it."""
        return all(len(list(servers.glob("*.json"))) < 2 for servers in self.state.glob("apps/*/servers"))


@contextmanager
def put_away(hookdeploy: Hookdeploy) -> Iterator[Hookdeploy]:
    """Ends it at the end, and shows its log to a test that fails."""
    try:
        yield hookdeploy
    finally:
        try:
            hookdeploy.end()
        finally:
            print(hookdeploy.log)
