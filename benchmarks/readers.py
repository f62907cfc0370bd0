"""What many readers of events cost the door and the memory, half of whom never read what they are sent.

python -m benchmarks.readers --rounds 3 --seconds 20
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import rig
from benchmarks.door_latency import Result, measure
from benchmarks.durable_throughput import builds
from benchmarks.stalls import Child

GOAL = 40.0
"""MB that the readers may cost at most."""
EVENTS = "/api/v1/events"


@dataclass(frozen=True, slots=True)
class Part:
    """The same deliveries, with readers or without."""

    result: Result
    cpu: float
    """Milliseconds of the server's processor time for each delivery, with all that it changes."""
    grown: float
    """MB: the peak of its memory, above what it held before the readers came."""
    left: float
    """MB that it holds when they have gone, above what it held before they came."""
    told: str
    """How many kB those who read were told: the least and the most of them."""


def run(server: rig.Hookdeploy, project: rig.Project, readers: Readers, name: str, given: argparse.Namespace) -> Part:
    """Deliver at an even rate while the readers, if any, follow. No connection of theirs may be left in the end."""
    pid = server.process.pid
    rig.come_to_rest(pid)
    files, before = open_files(pid), rig.resident(pid)
    rig.forget_peak(pid)
    with readers() as told:
        cpu = rig.come_to_rest(pid)
        result = measure(name, server.port, given, repository=project.name, ref=rig.BRANCH)
        spent = rig.come_to_rest(pid) - cpu
        peak = rig.resident(pid, "VmHWM")
    rig.wait_until(lambda: open_files(pid) <= files, "the end of the readers' connections")
    rig.come_to_rest(pid)
    return Part(
        result,
        1000 * spent / result.answers.total(),
        peak - before,
        rig.resident(pid) - before,
        f"{told['least'] / 1000:.0f}-{told['most'] / 1000:.0f}" if told else "",
    )


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


Readers = Callable[[], Any]
"""A context manager that gives, when it is over, what the readers have found."""


@contextmanager
def nobody() -> Iterator[dict[str, int]]:
    yield {}


def many(port: int, token: str, given: argparse.Namespace) -> Readers:
    idle = given.readers // 2
    words = ["--token", token, "--reading", str(given.readers - idle), "--idle", str(idle)]

    @contextmanager
    def following() -> Iterator[dict[str, int]]:
        found: dict[str, int] = {}
        with Child("followers", str(port), EVENTS, *words) as child:
            yield found
            found.update(child.end())

    return following


def compare(directory: Path, given: argparse.Namespace) -> Iterator[tuple[Part, Part]]:
    """In each round the part without readers and the part with them."""
    project = rig.Project.make(directory, "busy", {"version": "first"})
    door, dashboard = rig.free_port(), rig.free_port()
    app = {"repository": str(project.origin), "build": [["sleep", "3599"]]}
    with rig.hookdeploy(rig.configure(directory, door, {"busy": app}, dashboard=dashboard), door) as server:
        rig.wait_until(lambda: builds(server), "the build")
        readers = many(dashboard, server.token, given)
        run(server, project, nobody, "warm", given)
        for number in range(given.rounds):
            yield (
                run(server, project, nobody, f"alone-{number}", given),
                run(server, project, readers, f"followed-{number}", given),
            )


# --- the figures


def show_result(found: Sequence[tuple[Part, Part]], given: argparse.Namespace) -> None:
    alone, followed = zip(*found, strict=True)
    half = given.readers // 2
    title = f"{given.rate:g} deliveries a second for {given.seconds:g} s, medians of {given.rounds} rounds"
    latency = ["", "answers", "p50 ms", "p99 ms", "ratio of p50", "ratio of p99", "CPU ms each"]
    rows = [row("nobody follows", alone, alone), row(f"{given.readers} follow, {half} never read", followed, alone)]
    rig.show(title, latency, rows)
    head = ["", "grown MB", "goal", "left MB", "told each reader, kB"]
    rig.show("What the server holds", head, [memory("nobody follows", alone), memory("followed", followed)])


def row(words: str, parts: Sequence[Part], base: Sequence[Part]) -> list[str]:
    answers = sum((part.result.answers for part in parts), Counter[str]())
    kinds = ", ".join(f"{kind} ({count})" for kind, count in answers.most_common())
    percentiles = [statistics.median(part.result.percentile(each) for part in parts) for each in (50, 99)]
    ratios = [
        statistics.median(
            a.result.percentile(each) / b.result.percentile(each) for a, b in zip(parts, base, strict=True)
        )
        for each in (50, 99)
    ]
    cpu = statistics.median(part.cpu for part in parts)
    return [words, kinds, *(f"{each:.1f}" for each in percentiles), *(f"{each:.2f}" for each in ratios), f"{cpu:.1f}"]


def memory(words: str, parts: Sequence[Part]) -> list[str]:
    grown = max(part.grown for part in parts)
    goal = rig.verdict(grown, GOAL) if parts[0].told else ""
    return [words, f"{grown:.1f}", goal, f"{parts[-1].left:.1f}", parts[-1].told]


def main() -> None:
    parser = rig.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="turns without readers, and with them")
    parser.add_argument("--seconds", type=float, default=20, help="how long each turn lasts")
    parser.add_argument("--rate", type=float, default=20, help="deliveries a second")
    parser.add_argument("--readers", type=int, default=200, help="how many follow; half of them never read")
    given = parser.parse_args()
    given.keep = False
    with rig.workplace(given.state) as directory:
        show_result(list(compare(directory, given)), given)


if __name__ == "__main__":
    main()
