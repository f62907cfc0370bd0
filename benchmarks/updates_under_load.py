"""How many requests are lost while an app is updated again and again under load; a plain restart is the baseline.

python -m benchmarks.updates_under_load --rounds 10
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks import rig
from benchmarks.visitors import Load, visiting


@dataclass
class Part:
    """One part of the measurement: what happened under the load, and what came of it."""

    words: str
    load: Load
    updates: int
    seen: int
    """How many of the updates' pages the load has seen."""


def run_updates(words: str, port: int, given: argparse.Namespace, update: Callable[[str], None]) -> Part:
    """Update so many times under load, with a pause in between."""
    versions = [f"{words} {number}" for number in range(given.rounds)]
    with visiting(port, given.rate) as load:
        for version in versions:
            update(version)
            time.sleep(given.pause)
    return Part(words, load, len(versions), sum(version in load.found["pages"] for version in versions))


def measure_hookdeploy(directory: Path, given: argparse.Namespace) -> Iterator[Part]:
    """First without an update, then with them."""
    directory.mkdir()
    project = rig.Project.with_app(directory, "blog")
    door, port = rig.free_port(), rig.free_port()
    app = {
        "repository": str(project.origin),
        "wsgi": "wsgi:application",
        "workers": 2,
        "gunicorn": ["--threads", "4"],
        "bind": f"127.0.0.1:{port}",
        "probation": "1s",
    }
    with rig.hookdeploy(rig.configure(directory, door, {"blog": app}), door) as server:
        rig.wait_for_page(port, "first")

        def update(version: str) -> None:
            revision = project.commit({"version": version})
            project.push()
            server.deployed(server.deliver(project, revision))

        with visiting(port, given.rate) as load:
            time.sleep(given.seconds)
        yield Part("no update", load, 0, 0)
        yield run_updates("updates by hookdeploy", port, given, update)


def measure_restarts(directory: Path, given: argparse.Namespace) -> Part:
    """The same updates by a pull and a restart."""
    directory.mkdir()
    project = rig.Project.with_app(directory, "blog")
    project.clone(directory / "clone")
    port = rig.free_port()
    with (directory / "script.log").open("ab") as log:
        restart(directory, port, log)

        def update(version: str) -> None:
            project.commit({"version": version})
            project.push()
            restart(directory, port, log)

        return run_updates("pull and restart", port, given, update)


def restart(directory: Path, port: int, log: IO[bytes]) -> None:
    subprocess.run(
        ("bash", rig.BY_HAND / "restart.sh", directory, str(port)),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=directory,
        env={**os.environ, "PYTHON": sys.executable},
        timeout=rig.PATIENCE,
        check=True,
    )


def show_result(parts: list[Part], given: argparse.Namespace) -> None:
    quiet = parts[0].load.p99
    goals = ["", rig.verdict(parts[1].load.failed, 0), ""]
    rows = [
        [part.words, f"{part.seen} of {part.updates}", *part.load.cells(), f"{part.load.p99 / quiet:.1f}", goal]
        for part, goal in zip(parts, goals, strict=True)
    ]
    head = [
        "",
        "updates seen",
        "requests",
        "failed",
        "p50, ms",
        "p99, ms",
        "max, ms",
        "ratio of p99",
        "goal for failed",
    ]
    title = f"About {given.rate:g} requests a second, half over kept connections, and always a slow one in flight"
    rig.show(title, head, rows)
    for part in parts:
        if part.load.failed:
            print(f"{part.words}: {part.load.failures_in_words()}")


def main() -> None:
    parser = rig.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="how many updates")
    parser.add_argument("--seconds", type=float, default=10, help="how long the part without an update lasts")
    parser.add_argument("--pause", type=float, default=1, help="seconds between two updates")
    parser.add_argument("--rate", type=float, default=300, help="requests a second, about")
    given = parser.parse_args()
    with rig.workplace(given.state) as directory:
        parts = [*measure_hookdeploy(directory / "a", given), measure_restarts(directory / "b", given)]
        show_result(parts, given)


if __name__ == "__main__":
    main()
