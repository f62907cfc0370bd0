"""What the benchmarks share: projects to push to, hookdeploy as a process of its own, signed hooks, and an end to all.

It measures nothing. Whatever happens, it leaves no process and no file behind.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests import payloads

ROOT = Path(__file__).resolve().parent.parent
BY_HAND = Path(__file__).resolve().parent / "by_hand"
PATIENCE = 60.0
"""Seconds after which a benchmark gives up on something that should have happened."""
BRANCH = "refs/heads/main"

WSGI = '''\
"""The app of the benchmarks: one page, which says the version, and a slow one."""

import time
from pathlib import Path

PAGE = Path(__file__).with_name("version").read_bytes()


def application(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(1)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(PAGE)))])
    return [PAGE]
'''

# None of the settings of whoever runs the benchmarks, for both sides of each comparison.
_GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Mona Lisa",
    "GIT_AUTHOR_EMAIL": "mona@example.com",
    "GIT_COMMITTER_NAME": "Mona Lisa",
    "GIT_COMMITTER_EMAIL": "mona@example.com",
}


class NotMeasured(Exception):
    """What was to be measured did not happen."""


# --- the place, and its end


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A command line with what every benchmark understands."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--state",
        type=Path,
        default=ROOT / "benchmarks",
        metavar="DIR",
        help="the disk to work on: everything, the journal too, is in a temporary directory here",
    )
    return parser


@contextlib.contextmanager
def workplace(parent: Path) -> Iterator[Path]:
    """A directory that goes in the end, and with it every process that works inside it. ``NotMeasured`` ends it too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=".rig-", dir=parent.resolve()))
    (directory / ".gitignore").write_text("*\n")
    print(f"working in {directory} ({filesystem_of(directory)}), load average {os.getloadavg()[0]:.1f}\n", flush=True)
    try:
        yield directory
    except NotMeasured as error:
        raise SystemExit(f"not measured: {error}") from None
    finally:
        _end_all_inside(directory)
        shutil.rmtree(directory, ignore_errors=True)


def filesystem_of(path: Path) -> str:
    """The type of the file system on which a path lies, e.g. ``ext4``: on ``tmpfs`` a commit costs nothing."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, details = line.partition(" - ")
        found[mount.split()[4]] = details.split()[0]
    return next(found[str(parent)] for parent in (path, *path.parents) if str(parent) in found)


def _end_all_inside(directory: Path) -> None:
    """What lost its parent, such as a gunicorn whose supervisor was killed, is still known by where it works."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink().is_relative_to(directory):
                os.kill(int(process.name), signal.SIGKILL)


def wait_until(condition: Callable[[], object], what: str, *, every: float = 0.01) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise NotMeasured(f"{what}: not within {PATIENCE:g} s")
        time.sleep(every)


# --- processes


@contextlib.contextmanager
def running(
    argv: Sequence[str | Path], log: Path, *, cwd: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own. When something goes wrong meanwhile, its last words are shown."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd,
            env={**os.environ, **_GIT, **(env or {})},
            start_new_session=True,
        )
    try:
        yield process
    except Exception:
        sys.stderr.write(f"--- the end of {log.name}:\n{tail(log)}\n")
        raise
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def tail(file: Path) -> str:
    return "\n".join(file.read_text("utf-8", "replace").splitlines()[-25:])


def module(name: str, *words: str) -> list[str]:
    """The command that runs a module of this directory under the same interpreter, from the root of the checkout."""
    return [sys.executable, "-m", f"benchmarks.{name}", *words]


def twistd(*words: str) -> list[str]:
    """The command that runs ``twistd`` in the foreground under the same interpreter."""
    return [sys.executable, str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", *words]


def alive(pid: int) -> bool:
    try:
        return _stat(pid)[0] != "Z"
    except OSError:
        return False


def _stat(pid: int) -> list[str]:
    """What proc_pid_stat(5) tells after the name: the state, the parent, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def members(session: int) -> list[list[str]]:
    """What proc_pid_stat(5) tells of each process of a session, as ``_stat`` gives it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = _stat(int(process.name))
            if int(stat[3]) == session:
                found.append(stat)
    return found


def cpu_seconds(session: int) -> float:
    """The processor time of all processes of a session, and of their children that have ended, so far."""
    ticks = sum(int(word) for stat in members(session) for word in stat[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def come_to_rest(session: int) -> float:
    """Wait until a session has used no processor for a third of a second; what it has used so far, in seconds."""
    seen = [-1.0]

    def rests() -> bool:
        seen.append(cpu_seconds(session))
        return seen[-1] == seen[-2]

    wait_until(rests, "an end of the work", every=0.3)
    return seen[-1]


def generations(directory: Path) -> list[int]:
    """The masters of the servers that hookdeploy has started in this directory and that still run."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            started_by_hookdeploy = b"HOOKDEPLOY_GATE=" in (process / "environ").read_bytes()
            if started_by_hookdeploy and (process / "cwd").readlink().is_relative_to(directory):
                parents[int(process.name)] = int(_stat(int(process.name))[1])
    return [pid for pid, parent in parents.items() if parent not in parents]


def resident(pid: int, name: str = "VmRSS") -> float:
    """MB that a process holds now, or, as ``VmHWM``, held at most since ``forget_peak``."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def forget_peak(pid: int) -> None:
    """Let the ``VmHWM`` of a process begin anew; see proc_pid_clear_refs(5)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


# --- pages


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def page(port: int, path: str = "/") -> str:
    """The body of one answer 200 over a connection of its own; empty if there is none yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode()
        return body if answer.status == 200 else ""
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def wait_for_page(port: int, wanted: str, path: str = "/") -> None:
    wait_until(lambda: page(port, path) == wanted, f"the page {wanted!r} on port {port}")


# --- projects


@dataclass(frozen=True, slots=True)
class Project:
    """A repository as a forge holds it, and the clone of somebody who pushes to it."""

    name: str
    """What the forge calls it, e.g. ``acme/blog``."""
    origin: Path
    work: Path

    @classmethod
    def make(cls, directory: Path, name: str, files: Mapping[str, str]) -> Project:
        """One whose ``main`` has these files and fifty others, so that a checkout is not for nothing."""
        project = cls(f"acme/{name}", directory / "acme" / f"{name}.git", directory / "work" / name)
        git("init", "--quiet", "--bare", "--initial-branch=main", str(project.origin))
        git("clone", "--quiet", str(project.origin), str(project.work))
        git("-C", str(project.work), "symbolic-ref", "HEAD", BRANCH)
        others = {f"docs/{number % 5}/page-{number}.txt": f"line {number}\n" * 200 for number in range(50)}
        project.commit({**others, **files})
        project.push()
        return project

    @classmethod
    def with_app(cls, directory: Path, name: str) -> Project:
        return cls.make(directory, name, {"wsgi.py": WSGI, "version": "first"})

    def commit(self, files: Mapping[str, str]) -> str:
        """Commit these files; the commit's id."""
        for path, text in files.items():
            file = self.work / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        git("-C", str(self.work), "add", "--all")
        git("-C", str(self.work), "commit", "--quiet", "--message", f"Change {', '.join(files)[:50]}")
        return git("-C", str(self.work), "rev-parse", "HEAD")

    def push(self) -> None:
        git("-C", str(self.work), "push", "--quiet", "origin", "HEAD:main")

    def clone(self, directory: Path) -> Path:
        git("clone", "--quiet", str(self.origin), str(directory))
        return directory


def git(*words: str) -> str:
    result = subprocess.run(
        ("git", *words), env={**os.environ, **_GIT}, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    if result.returncode:
        raise NotMeasured(f"git {' '.join(words)}: {result.stderr}")
    return result.stdout.strip()


# --- hooks


def signed_push(
    repository: str, ref: str, after: str, guid: str, *, commits: int = 10
) -> tuple[dict[bytes, bytes], bytes]:
    """The headers and the body of a push as GitHub sends it, about 7 kB; of 400 commits 256 kB."""
    told = [payloads.commit(message=f"Change number {number} of {guid}") for number in range(commits)]
    body = payloads.encoded(payloads.push(ref, after, repository=payloads.repository(repository), commits=told))
    return payloads.headers(body, x_github_delivery=guid.encode()), body


# --- hookdeploy


class Hookdeploy:
    """A hookdeploy that runs, seen from outside."""

    def __init__(self, state: Path, port: int, process: subprocess.Popen[bytes]) -> None:
        self.state = state
        self.port = port
        self.process = process
        self._door = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE)
        socket_file = httpx.HTTPTransport(uds=str(state / "api.sock"))
        self._api = httpx.Client(base_url="http://api/api/v1", transport=socket_file, timeout=PATIENCE)

    def deliver(self, project: Project, revision: str) -> str:
        """Send the hook of a push; the id of the one deployment that it led to."""
        headers, body = signed_push(project.name, BRANCH, revision, str(uuid.uuid4()))
        answer = self._door.post("/hooks/github", content=body, headers=list(headers.items()))
        if answer.status_code != 202 or answer.json()["status"] != "accepted":
            raise NotMeasured(f"the hook was answered {answer.status_code} {answer.text}")
        [deployment] = answer.json()["deployments"]
        return str(deployment)

    def ask(self, path: str) -> Any:
        """What the API says under ``/api/v1``."""
        return self._api.get(path).raise_for_status().json()

    def act(self, path: str, **words: str) -> Any:
        """Have the API do something; what it answers, which has to be a success."""
        answer = self._api.post(path, json=words)
        if not answer.is_success:
            raise NotMeasured(f"POST {path} was answered {answer.status_code} {answer.text}")
        return answer.json()

    @property
    def token(self) -> str:
        """What opens the dashboard and the API over TCP."""
        return (self.state / "token").read_text("ascii").strip()

    def ended(self, deployment: str) -> dict[str, Any]:
        """Wait until a deployment has ended, whatever its end."""
        path = f"/deployments/{deployment}"
        wait_until(lambda: self.ask(path)["outcome"] is not None, "the end of the deployment", every=0.05)
        found: dict[str, Any] = self.ask(path)
        return found

    def deployed(self, deployment: str) -> dict[str, Any]:
        """Wait until a deployment has ended, and see that it ended well."""
        ended = self.ended(deployment)
        if ended["outcome"] != "deployed":
            raise NotMeasured(f"the deployment {ended['outcome']}: {ended['reason']}")
        return ended

    def settle(self, app: str) -> None:
        """Wait until one server of an app is left, and no other is still on its way out."""
        servers = self.state / "apps" / app / "servers"
        wait_until(lambda: len([*servers.glob("*.json")]) == 1, f"the end of the old server of {app}", every=0.05)

    def close(self) -> None:
        self._door.close()
        self._api.close()


def configure(
    directory: Path, port: int, apps: Mapping[str, Mapping[str, object]], *, dashboard: int | None = None
) -> Path:
    """Write a hookdeploy.toml; its state directory is ``directory / "state"``, its dashboard at a port, if any."""
    secret = directory / "hook.secret"
    secret.write_bytes(payloads.SECRET)
    secret.chmod(0o600)
    lines = [
        'state = "state"',
        f'[server]\nlisten = ["tcp:{port}:interface=127.0.0.1"]',
        '[hooks.github]\nforge = "github"\nsecrets = [{ file = "hook.secret" }]',
    ]
    if dashboard is not None:
        lines.append(f'[dashboard]\nlisten = ["tcp:{dashboard}:interface=127.0.0.1"]')
    for name, app in apps.items():
        # No look at the remote of its own accord, which would come at any time.
        keys = "\n".join(f"{key} = {json.dumps(value)}" for key, value in {"poll": "0", **app}.items())
        lines.append(f'[apps.{name}]\nhook = "github"\nbranch = "main"\n{keys}')
    file = directory / "hookdeploy.toml"
    file.write_text("\n\n".join(lines) + "\n")
    return file


@contextlib.contextmanager
def hookdeploy(configuration: Path, port: int, *, env: Mapping[str, str] | None = None) -> Iterator[Hookdeploy]:
    """hookdeploy as a process, from the moment when it answers."""
    directory = configuration.parent
    command = twistd("hookdeploy", "--config", str(configuration))
    with running(command, directory / "hookdeploy.log", cwd=directory, env=env) as process:
        wait_until(lambda: process.poll() is not None or page(port, "/healthz") == "ok", "an answer of hookdeploy")
        if process.returncode is not None:
            raise NotMeasured("hookdeploy does not start")
        with contextlib.closing(Hookdeploy(directory / "state", port, process)) as server:
            yield server


# --- figures


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile."""
    if not values:
        raise NotMeasured("nothing was answered")
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a plain table; the first column is words, the others are figures."""
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    print(title)
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  " + "  ".join(cells).rstrip())
    print(flush=True)


def verdict(figure: float, goal: float) -> str:
    return f"≤ {goal:g}: {'met' if figure <= goal else 'missed'}"


def verdict_at_least(figure: float, goal: float) -> str:
    return f"≥ {goal:g}: {'met' if figure >= goal else 'missed'}"
