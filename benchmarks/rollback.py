"""How long a rollback takes, from the request to the page of before; beside gunicorn's own start of the same app.

python -m benchmarks.rollback --rounds 10
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks import rig

GOAL = 2.0
"""Seconds beyond gunicorn's own start."""
LOOK_EVERY = 0.01
VERSIONS = ("one", "two")


@dataclass
class Figures:
    """Seconds, one of each a round."""

    to_page: list[float] = field(default_factory=list)
    """From the request for a rollback to the first page of before."""
    to_end: list[float] = field(default_factory=list)
    """From the request to the end of its deployment."""
    boot: list[float] = field(default_factory=list)
    """From gunicorn's start to its first page."""


def deploy(server: rig.Hookdeploy, project: rig.Project, port: int, version: str) -> str:
    """Deploy this; the release that it became."""
    revision = project.commit({"version": version})
    project.push()
    release = server.deployed(server.deliver(project, revision))["release"]
    rig.wait_for_page(port, version)
    server.settle("blog")
    return str(release)


def roll_back(server: rig.Hookdeploy, port: int, version: str, to: str | None, figures: Figures) -> None:
    start = time.perf_counter()
    deployment = server.act("/apps/blog/rollback", **({} if to is None else {"to": to}))
    rig.wait_until(lambda: rig.page(port) == version, f"the page {version!r}", every=LOOK_EVERY)
    figures.to_page.append(time.perf_counter() - start)
    ended = server.ended(deployment["id"])
    figures.to_end.append(time.perf_counter() - start)
    if ended["outcome"] not in ("deployed", "rolled_back"):
        raise rig.NotMeasured(f"the rollback {ended['outcome']}: {ended['reason']}")
    server.settle("blog")


def boot(tree: Path, log: Path, version: str, figures: Figures) -> None:
    """gunicorn by itself, with the same app and as many workers."""
    port = rig.free_port()
    words = ["--workers", "2", "--bind", f"127.0.0.1:{port}", "--no-control-socket", "wsgi:application"]
    start = time.perf_counter()
    with rig.running([sys.executable, "-m", "gunicorn", *words], log, cwd=tree):
        rig.wait_until(lambda: rig.page(port) == version, f"gunicorn's page {version!r}", every=LOOK_EVERY)
        figures.boot.append(time.perf_counter() - start)


def measure(directory: Path, given: argparse.Namespace) -> Figures:
    source = f"{rig.WSGI}\ntime.sleep({given.import_seconds})\n"
    project = rig.Project.make(directory, "blog", {"wsgi.py": source, "version": "first"})
    door, port = rig.free_port(), rig.free_port()
    app = {
        "repository": str(project.origin),
        "wsgi": "wsgi:application",
        "workers": 2,
        "bind": f"127.0.0.1:{port}",
        "health": "/healthz",
        "probation": f"{round(1000 * given.probation)}ms",
    }
    figures = Figures()
    with rig.hookdeploy(rig.configure(directory, door, {"blog": app}), door) as server:
        rig.wait_for_page(port, "first")
        releases = {version: deploy(server, project, port, version) for version in VERSIONS}
        roll_back(server, port, VERSIONS[0], None, figures)
        for number in range(1, given.rounds):
            version = VERSIONS[number % 2]
            roll_back(server, port, version, releases[version], figures)
        for _ in range(given.rounds):
            boot(project.work, directory / "gunicorn.log", VERSIONS[-1], figures)
    return figures


def show_result(figures: Figures, given: argparse.Namespace) -> None:
    booted = median(figures.boot)
    rows = [
        ["rollback, to the page", *_cells(figures.to_page), f"{median(figures.to_page) - booted:+.3f}", ""],
        ["rollback, to its end", *_cells(figures.to_end), f"{median(figures.to_end) - booted:+.3f}", ""],
        ["gunicorn by itself", *_cells(figures.boot), "", ""],
    ]
    rows[0][-1] = rig.verdict(median(figures.to_page) - booted, GOAL)
    title = f"{given.rounds} rollbacks, an app that imports for {given.import_seconds:g} s"
    if given.probation:
        title += f", probation {given.probation:g} s"
    rig.show(title, ["s", "median", "least", "most", "beyond gunicorn", "goal"], rows)


def _cells(seconds: list[float]) -> list[str]:
    return [f"{value:.3f}" for value in (median(seconds), min(seconds), max(seconds))]


def main() -> None:
    parser = rig.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="how many rollbacks, and starts of gunicorn")
    parser.add_argument("--import-seconds", type=float, default=0.5, help="how long the app takes to import")
    parser.add_argument("--probation", type=float, default=0, help="seconds of it")
    given = parser.parse_args()
    with rig.workplace(given.state) as directory:
        show_result(measure(directory, given), given)


if __name__ == "__main__":
    main()
