"""How long pushes that all come at once keep the door waiting, while many look at pages that they change.

python -m benchmarks.storm --rounds 3 --pushes 1000
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import rig
from benchmarks.stalls import Child

GOAL = 100.0
"""Milliseconds that the door may be kept waiting at most."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one storm did."""

    stall: float
    """ms: the longest answer to ``/healthz`` from when it was due."""
    p99: float
    answers: Counter[str]
    """What the pushes were answered."""
    seconds: float
    """How long the storm took."""


def storm(door: int, project: rig.Project, name: str, given: argparse.Namespace) -> Part:
    words = ["--path", "/hooks/github", "--connections", "16", "--requests", str(given.pushes), "--seconds", "60"]
    command = rig.module("barrage", str(door), *words, "--repository", project.name, "--name", name)
    with Child("onlooker", str(door), "probe") as probe:
        probe.begin()
        began = time.monotonic()
        said = subprocess.run(command, cwd=rig.ROOT, stdout=subprocess.PIPE, check=True).stdout
        seconds = time.monotonic() - began
        time.sleep(2)  # what is still to be told
        probed = probe.end()["milliseconds"]
    return Part(max(probed), rig.percentile(probed, 99), Counter(json.loads(said)["answers"]), seconds)


def measure(directory: Path, given: argparse.Namespace) -> Iterator[tuple[Part, Part]]:
    """In each round a storm that nobody looks at, and one that many do."""
    project = rig.Project.make(directory, "busy", {"version": "first"})
    door, dashboard = rig.free_port(), rig.free_port()
    app = {"repository": str(project.origin), "build": [["sleep", "3599"]]}
    names = [f"app{number}" for number in range(given.apps)]
    with rig.hookdeploy(rig.configure(directory, door, dict.fromkeys(names, app), dashboard=dashboard), door) as server:
        rig.come_to_rest(server.process.pid)
        pages = ["/", "/deliveries", *(f"/apps/{name}" for name in names)]
        for number in range(given.rounds):
            alone = storm(door, project, f"alone-{number}", given)
            with ExitStack() as looking:
                for page in pages[: given.pages]:
                    words = (f"/live?page={page}", "--token", server.token, "--reading", "1")
                    looking.enter_context(Child("followers", str(dashboard), *words))
                rig.come_to_rest(server.process.pid)
                yield alone, storm(door, project, f"seen-{number}", given)


def show_result(found: list[tuple[Part, Part]], given: argparse.Namespace) -> None:
    rows = []
    for words, parts in zip(("nobody looks", f"{given.pages} pages"), zip(*found, strict=True), strict=True):
        answers = sum((part.answers for part in parts), Counter[str]())
        stall, p99 = (statistics.median(values) for values in zip(*((p.stall, p.p99) for p in parts), strict=True))
        kinds = ", ".join(f"{kind} ({count})" for kind, count in answers.most_common())
        seconds = statistics.median(part.seconds for part in parts)
        rows.append([words, kinds, f"{seconds:.1f}", f"{p99:.0f}", f"{stall:.0f}", rig.verdict(stall, GOAL)])
    head = ["", "answers", "storm s", "p99 ms", "longest ms", "goal"]
    rig.show(f"{given.pushes} pushes to {given.apps} apps: how long /healthz takes", head, rows)


def main() -> None:
    parser = rig.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="storms without and with pages")
    parser.add_argument("--pushes", type=int, default=1000, help="deliveries, sixteen at a time")
    parser.add_argument("--apps", type=int, default=50, help="apps of the one repository")
    parser.add_argument("--pages", type=int, default=50, help="how many pages are looked at, each by one")
    given = parser.parse_args()
    with rig.workplace(given.state) as directory:
        show_result(list(measure(directory, given)), given)


if __name__ == "__main__":
    main()
