"""A burst of different pushes to one repository, with a build of one second: how many builds, and until when.

python -m benchmarks.burst --pushes 1000 --seconds 2
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks import rig
from benchmarks.durable_throughput import Side, tutorial, webhook

MOST_BUILDS = 3
TICK = 0.02


@dataclass
class Target:
    """One side, and where it leaves what it has built."""

    side: Side
    builds: Path
    """A line for each build: what it has built."""
    at_rest: Callable[[], bool]
    """Whether nothing is left to be done."""


@dataclass
class Result:
    """What came of the burst."""

    words: str
    answers: Counter[str]
    builds: int
    live: float | None
    """Seconds from the last push to the end of the first build of it; None if there was none in time."""
    over: float | None
    """Seconds from the last push to the end of all work; None if that did not come in time."""


def run(target: Target, project: rig.Project, given: argparse.Namespace) -> Result:
    """Push, send one delivery for each push, and wait until all is done, or for as long as one may wait."""
    before = len(built(target))
    commits = [f"commit {number}" for number in range(given.pushes)]
    tips = history(project, commits)
    options = ["--path", target.side.path, "--repository", project.name, "--ref", rig.BRANCH, "--name", "burst"]
    pace = ["--rate", str(given.pushes / given.seconds), "--seconds", str(given.seconds)]
    command = rig.module("load", "deliveries", str(target.side.port), *options, *pace)
    over = threading.Event()
    pusher = threading.Thread(target=push_on, args=(project, tips, given.seconds, over))
    with subprocess.Popen(command, cwd=rig.ROOT, stdout=subprocess.PIPE) as load:
        pusher.start()
        over.wait()
        began = time.monotonic()
        newest = wait(lambda: commits[-1] in built(target)[before:], began, given.patience)
        rest = wait(target.at_rest, began, given.patience)
        pusher.join()
        said = load.communicate()[0]
    return Result(target.side.words, Counter(json.loads(said)["answers"]), len(built(target)) - before, newest, rest)


def built(target: Target) -> list[str]:
    return target.builds.read_text().splitlines() if target.builds.exists() else []


def history(project: rig.Project, contents: list[str]) -> list[str]:
    """Make a commit of each content on top of the last, unpushed; their ids. One git process makes them all."""
    tip = rig.git("-C", str(project.work), "rev-parse", "HEAD")
    stream = []
    for number, text in enumerate(contents):
        above = f"from {tip}\n" if number == 0 else ""
        data = f"data {len(text)}\n{text}\n"
        committer = f"committer Mona <mona@example.com> {1700000000 + number} +0000\n"
        stream.append(f"commit refs/heads/burst\n{committer}{data}{above}M 100644 inline version\n{data}")
    command = ["git", "-C", str(project.work), "fast-import", "--quiet", "--force"]
    subprocess.run(command, input="".join(stream).encode(), check=True)
    return rig.git("-C", str(project.work), "rev-list", "--reverse", f"{tip}..refs/heads/burst").split()


def push_on(project: rig.Project, tips: list[str], seconds: float, over: threading.Event) -> None:
    """Move the branch on through all of these, evenly, a few at a time: a ``git push`` each would take longer."""
    rig.git("-C", str(project.work), "push", "--quiet", "origin", "refs/heads/burst:refs/heads/incoming")
    time.sleep(1)  # so long the load generator takes to begin
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        move(project, tips[min(len(tips) - 1, int(len(tips) * passed / seconds))])
        time.sleep(TICK)
    move(project, tips[-1])
    over.set()


def move(project: rig.Project, tip: str) -> None:
    rig.git("-C", str(project.origin), "update-ref", rig.BRANCH, tip)


def wait(condition: Callable[[], bool], began: float, patience: float) -> float | None:
    """The seconds until something is so; None if it is not in time."""
    while not condition():
        if time.monotonic() > began + patience:
            return None
        time.sleep(TICK)
    return time.monotonic() - began


# --- the sides


@contextlib.contextmanager
def by_tutorial(directory: Path, project: rig.Project, build: str) -> Iterator[Target]:
    directory.mkdir()
    builds, clone = directory / "builds", project.clone(directory / "clone")
    with tutorial(directory, "tutorial, 1 worker", clone=clone, build=f"{build} >> {builds}") as side:
        yield Target(side, builds, children_are_gone(side))


@contextlib.contextmanager
def by_webhook(directory: Path, project: rig.Project, build: str) -> Iterator[Target]:
    directory.mkdir()
    builds, clone = directory / "builds", project.clone(directory / "clone")
    script = directory / "deploy.sh"
    script.write_text(f"#!/bin/sh\ncd {clone} && git pull --quiet --rebase && {build} >> {builds}\n")
    script.chmod(0o700)
    with webhook(directory, str(script)) as side:
        side.words = "webhook, pull and build"
        yield Target(side, builds, children_are_gone(side))


@contextlib.contextmanager
def by_hookdeploy(directory: Path, project: rig.Project, build: str) -> Iterator[Target]:
    directory.mkdir()
    port, builds = rig.free_port(), directory / "builds"
    command = ["sh", "-c", f"{build} >> {builds}"]
    app = {"repository": str(project.origin), "build": [command]}
    with rig.hookdeploy(rig.configure(directory, port, {"busy": app}), port) as server:

        def at_rest() -> bool:
            asked = server.ask("/apps/busy")
            return asked["running"] is None and not asked["waiting"] and asked["revision"] is not None

        rig.wait_until(at_rest, "the first deployment", every=0.1)
        side = Side("hookdeploy", port, "/hooks/github", server.process.pid)
        yield Target(side, builds, at_rest)


def children_are_gone(side: Side) -> Callable[[], bool]:
    """Whether a server has had no process but those of its start for a quarter of a second."""
    own = len(rig.members(side.session))
    seen = deque([own + 1] * 12, maxlen=12)

    def gone() -> bool:
        seen.append(len(rig.members(side.session)))
        return max(seen) <= own

    return gone


def main() -> None:
    parser = rig.arguments(__doc__)
    parser.add_argument("--pushes", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=2, help="within which all pushes happen")
    parser.add_argument("--patience", type=float, default=30, help="seconds that each side has after the last push")
    given = parser.parse_args()
    if find_spec("flask") is None:
        parser.error("the tutorial needs Flask: install it beside hookdeploy")
    build = "sleep 1 && cat version && echo"
    results = []
    with rig.workplace(given.state) as directory:
        for side in sides():
            place = directory / side.__name__
            project = rig.Project.make(directory / f"of_{side.__name__}", "busy", {"version": "first"})
            with side(place, project, f"({build})") as target:
                results.append(run(target, project, given))
    show(results, given)


def sides() -> Iterator[Callable[[Path, rig.Project, str], contextlib.AbstractContextManager[Target]]]:
    yield by_tutorial
    if shutil.which("webhook"):
        yield by_webhook
    else:
        print("webhook is not installed, and left out: Debian has it in the package of that name\n")
    yield by_hookdeploy


def show(results: list[Result], given: argparse.Namespace) -> None:
    def in_time(seconds: float | None) -> str:
        return f"not within {given.patience:g} s" if seconds is None else f"{seconds:.2f} s"

    rows = []
    for each in results:
        answers = ", ".join(f"{kind} ({count})" for kind, count in each.answers.most_common())
        goal = rig.verdict(each.builds, MOST_BUILDS) if each.words == "hookdeploy" else ""
        rows.append([each.words, answers, str(each.builds), in_time(each.live), in_time(each.over), goal])
    head = ["", "answers", "builds", "newest is live after", "all work is over after", "goal for builds"]
    rig.show(f"{given.pushes} pushes to one repository within {given.seconds:g} s, a build takes 1 s", head, rows)


if __name__ == "__main__":
    main()
