"""How long a push takes to become a page: through hookdeploy, by a shell script, and by ``git pull`` and ``--reload``.

python -m benchmarks.push_to_page --rounds 10
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from benchmarks import rig

MODES = ("release", "in-place")
GOALS = {"release": 1.2, "in-place": 1.15}
LOOK_EVERY = 0.01
"""Seconds between two looks at the page: often enough to see it, and seldom enough to leave the cores alone."""


class Contestant(Protocol):
    """One way from a push to a page."""

    @property
    def project(self) -> rig.Project: ...

    @property
    def port(self) -> int:
        """Where its page is."""

    def deploy(self, revision: str) -> None:
        """Set off, without waiting for the page."""

    def settle(self) -> None:
        """Wait until nothing of the last deployment is under way, and the old server is gone."""


@dataclass
class ThroughHookdeploy:
    """A push, and the hook that a forge would send."""

    project: rig.Project
    port: int
    server: rig.Hookdeploy
    app: str
    ended: list[dict[str, Any]] = field(default_factory=list)
    """Each deployment as the API tells it, and the moment at which its hook was sent."""

    def deploy(self, revision: str) -> None:
        self._sent = time.time()
        self._deployment = self.server.deliver(self.project, revision)

    def settle(self) -> None:
        self.ended.append({**self.server.deployed(self._deployment), "sent": self._sent})
        self.server.settle(self.app)


@dataclass
class ByHand:
    """A push, and a script that is started instead of a hook."""

    project: rig.Project
    script: Path
    place: Path
    listener: socket.socket

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def deploy(self, revision: str) -> None:
        self._old = self._server()
        descriptor = self.listener.fileno()
        with (self.place / "script.log").open("ab") as log:
            self._process = subprocess.Popen(
                ("bash", self.script, self.place, str(descriptor)),
                stdout=log,
                stderr=log,
                cwd=self.place,
                env={**os.environ, "PYTHON": sys.executable},
                pass_fds=[descriptor],
                start_new_session=True,
            )

    def settle(self) -> None:
        if self._process.wait(rig.PATIENCE):
            said = "\n".join(rig.tail(self.place / f"{log}.log") for log in ("script", "server"))
            raise rig.NotMeasured(f"{self.script.name} ended with {self._process.returncode}:\n{said}")
        if self._old is not None:
            old = self._old
            rig.wait_until(lambda: not rig.alive(old), "the end of the old server", every=0.05)

    def _server(self) -> int | None:
        file = self.place / "server.pid"
        return int(file.read_text()) if file.exists() else None


@dataclass
class Reloading:
    """A push, and a ``git pull`` under a gunicorn that looks after its files itself."""

    project: rig.Project
    port: int
    clone: Path
    master: int

    def deploy(self, revision: str) -> None:
        self._old = self._workers()
        with (self.clone.parent / "pull.log").open("ab") as log:
            self._pull = subprocess.Popen(
                ("git", "pull", "--quiet", "--rebase"), stdout=log, stderr=log, cwd=self.clone, start_new_session=True
            )

    def settle(self) -> None:
        if self._pull.wait(rig.PATIENCE):
            raise rig.NotMeasured(f"git pull ended with {self._pull.returncode}")
        rig.wait_until(lambda: self._old.isdisjoint(self._workers()), "the end of the old workers", every=0.05)

    def _workers(self) -> set[str]:
        return set(Path(f"/proc/{self.master}/task/{self.master}/children").read_text().split())


@dataclass
class Timings:
    """Seconds until the page was new, one of each a round."""

    from_hook: list[float] = field(default_factory=list)
    from_push: list[float] = field(default_factory=list)


def run_round(contestant: Contestant, version: str, timings: Timings) -> None:
    revision = contestant.project.commit({"version": version})
    pushing = time.perf_counter()
    contestant.project.push()
    pushed = time.perf_counter()
    contestant.deploy(revision)
    rig.wait_until(lambda: rig.page(contestant.port) == version, f"the page {version!r}", every=LOOK_EVERY)
    new = time.perf_counter()
    timings.from_hook.append(new - pushed)
    timings.from_push.append(new - pushing)
    contestant.settle()


# --- the contestants


@contextlib.contextmanager
def through_hookdeploy(directory: Path) -> Iterator[dict[str, ThroughHookdeploy]]:
    """Both modes, as two apps of one hookdeploy, with their first version served."""
    directory.mkdir()
    projects = {mode: rig.Project.with_app(directory, mode) for mode in MODES}
    ports = {mode: rig.free_port() for mode in MODES}
    where: Mapping[str, Mapping[str, object]] = {
        "release": {"repository": str(projects["release"].origin)},
        "in-place": {"mode": "in-place", "path": str(projects["in-place"].clone(directory / "clone"))},
    }
    apps = {
        mode: {
            "wsgi": "wsgi:application",
            "workers": 2,
            "bind": f"127.0.0.1:{ports[mode]}",
            "health": "/healthz",
            "probation": "0s",  # it begins with the new page, and would only make the rounds longer
            **where[mode],
        }
        for mode in MODES
    }
    port = rig.free_port()
    with rig.hookdeploy(rig.configure(directory, port, apps), port) as server:
        for mode in MODES:
            rig.wait_for_page(ports[mode], "first")
            server.settle(mode)
        yield {mode: ThroughHookdeploy(projects[mode], ports[mode], server, mode) for mode in MODES}


@contextlib.contextmanager
def by_hand(directory: Path) -> Iterator[dict[str, ByHand]]:
    """Both modes, each with its own script, with their first version served."""
    directory.mkdir()
    with contextlib.ExitStack() as listeners:
        contestants = {}
        for mode in MODES:
            place = directory / mode
            place.mkdir()
            project = rig.Project.with_app(directory, mode)
            if mode == "release":
                rig.git("clone", "--quiet", "--bare", str(project.origin), str(place / "mirror.git"))
            else:
                project.clone(place / "clone")
            script = rig.BY_HAND / f"{mode.replace('-', '_')}.sh"
            listener = listeners.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2048))
            contestant = contestants[mode] = ByHand(project, script, place, listener)
            contestant.deploy("first")
            contestant.settle()
            rig.wait_for_page(contestant.port, "first")
        yield contestants


@contextlib.contextmanager
def reloading(directory: Path) -> Iterator[Reloading]:
    """A clone under ``gunicorn --reload``, with its first version served. The app reads one file that is not Python."""
    directory.mkdir()
    project = rig.Project.with_app(directory, "reloading")
    clone = project.clone(directory / "clone")
    port = rig.free_port()
    words = ["--workers", "2", "--bind", f"127.0.0.1:{port}", "--no-control-socket", "--reload"]
    extra = ["--reload-extra-file", str(clone / "version")]
    command = [sys.executable, "-m", "gunicorn", *words, *extra, "wsgi:application"]
    with rig.running(command, directory / "server.log", cwd=clone) as process:
        rig.wait_for_page(port, "first")
        yield Reloading(project, port, clone, process.pid)


# --- the figures


def show_result(timings: Mapping[str, Mapping[str, Timings]], rounds: int) -> None:
    starts: list[tuple[str, Callable[[Timings], list[float]]]] = [
        ("from the hook", lambda times: times.from_hook),
        ("from the start of git push", lambda times: times.from_push),
    ]
    rows = []
    for mode, sides in timings.items():
        for words, of in starts:
            ours, theirs = of(sides["hookdeploy"]), of(sides["by hand"])
            ratio = median(ours) / median(theirs)
            goal = rig.verdict(ratio, GOALS[mode]) if words == "from the hook" else ""
            rows.append([f"{mode}, {words}", _figures(ours), _figures(theirs), f"{ratio:.2f}", goal])
    head = ["median (least-most), s", "hookdeploy", "by hand", "ratio", "goal"]
    rig.show(f"From a push to the new page, {rounds} rounds of each", head, rows)


def show_reloading(ours: Timings, theirs: Timings) -> None:
    rows = [
        [words, _figures(a), _figures(b), f"{median(a) / median(b):.2f}"]
        for words, a, b in (
            ("from the hook, or the start of git pull", ours.from_hook, theirs.from_hook),
            ("from the start of git push", ours.from_push, theirs.from_push),
        )
    ]
    head = ["median (least-most), s", "hookdeploy, release", "--reload", "ratio"]
    rig.show("The same beside git pull under gunicorn --reload", head, rows)


def _figures(seconds: list[float]) -> str:
    return f"{median(seconds):.3f} ({min(seconds):.3f}-{max(seconds):.3f})"


def show_phases(contestants: Mapping[str, ThroughHookdeploy]) -> None:
    """Where hookdeploy's time goes, as its own journal tells it."""
    phases = [phase["phase"] for phase in contestants["release"].ended[0]["phases"]]
    rows = [
        [mode, *(_since_the_hook(contestant.ended, phase) for phase in phases)]
        for mode, contestant in contestants.items()
    ]
    rig.show("hookdeploy's phases begin so many ms after the hook was sent (median)", ["", *phases], rows)


def _since_the_hook(ended: list[dict[str, Any]], wanted: str) -> str:
    return f"{median(1000 * (_seconds(_begun(each, wanted)) - each['sent']) for each in ended):.0f}"


def _begun(deployment: dict[str, Any], wanted: str) -> str:
    return str(next(phase["at"] for phase in deployment["phases"] if phase["phase"] == wanted))


def _seconds(time_of_day: str) -> float:
    return datetime.fromisoformat(time_of_day).timestamp()


def main() -> None:
    parser = rig.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="how often each of the five is measured")
    given = parser.parse_args()
    timings = {mode: {"hookdeploy": Timings(), "by hand": Timings()} for mode in MODES}
    reloaded = Timings()
    with (
        rig.workplace(given.state) as directory,
        through_hookdeploy(directory / "a") as ours,
        by_hand(directory / "b") as theirs,
        reloading(directory / "c") as reloader,
    ):
        for number in range(given.rounds):
            for mode in MODES:
                sides: list[tuple[str, Contestant]] = [("hookdeploy", ours[mode]), ("by hand", theirs[mode])]
                for side, contestant in sides if number % 2 else reversed(sides):  # none is always the first
                    run_round(contestant, f"version {number}", timings[mode][side])
            run_round(reloader, f"version {number}", reloaded)
        show_result(timings, given.rounds)
        show_reloading(timings["release"]["hookdeploy"], reloaded)
        show_phases(ours)


if __name__ == "__main__":
    main()
