"""How long a forge waits for the answer to a delivery, at an even rate: at hookdeploy's door, and at a bare one.

python -m benchmarks.door_latency --rate 50 --seconds 30
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import rig

GOAL = 50.0
"""Milliseconds within which 99 of 100 deliveries are to be answered."""

BUILD = '''\
"""Stands for a build: until its time is over it writes, compiles and removes modules, on one core."""

import compileall
import shutil
import time
from pathlib import Path

SOURCE = "\\n".join(f"def function_{number}(argument):\\n    return argument + {number}\\n" for number in range(100))
over = time.monotonic() + float(Path("seconds").read_text())
print("building", flush=True)
while time.monotonic() < over:
    modules = Path("modules")
    modules.mkdir(exist_ok=True)
    for number in range(50):
        (modules / f"module_{number}.py").write_text(SOURCE)
    compileall.compile_dir(modules, quiet=2)
    shutil.rmtree(modules)
'''


@dataclass
class Result:
    """One row: where the deliveries went, and how long the answers took."""

    words: str
    milliseconds: list[float]
    answers: Counter[str]

    def percentile(self, percent: float) -> float:
        return rig.percentile(self.milliseconds, percent)

    def cells(self) -> list[str]:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in self.answers.most_common())
        figures = [f"{self.percentile(percent):.1f}" for percent in (50, 99, 100)]
        return [self.words, str(self.answers.total()), kinds, *figures]


def measure(words: str, port: int, given: argparse.Namespace, *, repository: str, ref: str) -> Result:
    """Let the load generator deliver, each delivery a push of another commit."""
    options = ["--rate", str(given.rate), "--seconds", str(given.seconds), "--repository", repository, "--ref", ref]
    keep = ["--keep"] if given.keep else []
    command = rig.module("load", "deliveries", str(port), *options, "--name", words.replace(" ", "-"), *keep)
    said = subprocess.run(command, cwd=rig.ROOT, stdout=subprocess.PIPE, check=True).stdout
    found = json.loads(said)
    return Result(words, found["milliseconds"], Counter(found["answers"]))


# --- both sides


@contextlib.contextmanager
def bare_site(directory: Path, *options: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The baseline's port and its process."""
    port = rig.free_port()
    with rig.running(
        rig.module("bare_site", str(port), *options), directory / "bare_site.log", cwd=rig.ROOT
    ) as process:
        rig.wait_for_page(port, "ok")
        yield port, process


@contextlib.contextmanager
def building_by_hand(project: rig.Project, directory: Path) -> Iterator[None]:
    """The same build, beside the bare site."""
    clone = project.clone(directory / "build")
    log = directory / "build.log"
    with rig.running([sys.executable, "build.py"], log, cwd=clone) as build:
        rig.wait_until(lambda: "building" in log.read_text(), "the build")
        yield
        if build.poll() is not None:
            raise rig.NotMeasured("the build was over too early")


def start_build(server: rig.Hookdeploy, project: rig.Project) -> str:
    """Push a commit whose build lasts, and wait until it is being built; the deployment's id."""
    revision = project.commit({"seconds": "3600"})
    project.push()
    deployment = server.deliver(project, revision)
    log = server.state / "logs" / f"{deployment}.log"
    rig.wait_until(lambda: log.exists() and "building" in log.read_text().splitlines(), "the build")
    return deployment


def measure_bare(directory: Path, given: argparse.Namespace) -> Iterator[Result]:
    """The bare site alone, and beside the same build."""
    directory.mkdir()
    project = rig.Project.make(directory, "busy", {"build.py": BUILD, "seconds": "3600"})
    with bare_site(directory) as (port, _):
        yield measure("bare site", port, given, repository=project.name, ref=rig.BRANCH)
        with building_by_hand(project, directory):
            yield measure("bare site beside the same build", port, given, repository=project.name, ref=rig.BRANCH)


def measure_hookdeploy(directory: Path, given: argparse.Namespace) -> Iterator[Result]:
    """Pushes to a branch that nobody deploys, and pushes to one whose last push is being built."""
    directory.mkdir()
    project = rig.Project.make(directory, "busy", {"build.py": BUILD, "seconds": "0"})
    port = rig.free_port()
    apps = {"busy": {"repository": str(project.origin), "build": [[sys.executable, "build.py"]]}}
    with rig.hookdeploy(rig.configure(directory, port, apps), port) as server:
        rig.wait_until(lambda: _has_deployed(server), "the first deployment")
        yield measure("hookdeploy, branch not deployed", port, given, repository=project.name, ref="refs/heads/topic")
        building = start_build(server, project)
        yield measure("hookdeploy while it builds", port, given, repository=project.name, ref=rig.BRANCH)
        if server.ask("/apps/busy")["running"] != building:
            raise rig.NotMeasured("the build was over too early")


def _has_deployed(server: rig.Hookdeploy) -> bool:
    app = server.ask("/apps/busy")
    return app["revision"] is not None and app["running"] is None


# --- the figures


def show_result(pairs: Sequence[tuple[Result, Result]], given: argparse.Namespace) -> None:
    rows = []
    for baseline, ours in pairs:
        base, found = baseline.percentile(99), ours.percentile(99)
        rows.append([*baseline.cells(), "1.00", ""])
        rows.append([*ours.cells(), f"{found / base:.2f}", rig.verdict(found, GOAL)])
    connections = "kept connections" if given.keep else "a connection for each"
    title = f"Answers to signed deliveries, {given.rate:g} a second for {given.seconds:g} s, {connections}; ms"
    rig.show(title, ["", "sent", "answers", "p50", "p99", "max", "ratio of p99", "goal for p99"], rows)


def main() -> None:
    parser = rig.arguments(__doc__)
    parser.add_argument("--rate", type=float, default=50, help="deliveries a second")
    parser.add_argument("--seconds", type=float, default=30, help="how long each of the four parts lasts")
    parser.add_argument("--keep", action="store_true", help="keep connections instead of a fresh one for each delivery")
    given = parser.parse_args()
    with rig.workplace(given.state) as directory:
        pairs = list(zip(measure_bare(directory / "a", given), measure_hookdeploy(directory / "b", given), strict=True))
    show_result(pairs, given)


if __name__ == "__main__":
    main()
