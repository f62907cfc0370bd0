"""What hookdeploy's door costs above a bare Twisted Site that checks the same signature.

python -m benchmarks.door_overhead --rounds 5 --seconds 2
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from benchmarks import rig
from benchmarks.door_latency import bare_site
from benchmarks.durable_throughput import Side, ours
from benchmarks.refusals import SOURCES, Turn, run_turn

GOAL = 1.35
SIZES = {"7 kB": ("10", 1), "256 kB": ("400", 5)}
"""How many commits a body tells of, and by how much fewer requests a turn has, all of which are made beforehand."""
KINDS = {"wrong signature": "wrong", "accepted": "genuine"}
SITE, PLAIN, DOOR, HOOKDEPLOY = "Site()", "plain: parses no forms", "the door alone", "hookdeploy"
MOST = "50"
"""Requests after which a connection is made anew, before one address has been refused too often."""


@contextmanager
def bare(directory: Path, words: str, *options: str) -> Iterator[Side]:
    with bare_site(directory, *options) as (port, process):
        yield Side(words, port, "/hooks/github", process.pid)


@contextmanager
def door(directory: Path) -> Iterator[Side]:
    port = rig.free_port()
    with rig.running(rig.module("memory_door", str(port)), directory / "memory_door.log", cwd=rig.ROOT) as process:
        rig.wait_for_page(port, "ok", "/healthz")
        yield Side(DOOR, port, "/hooks/github", process.pid)


def all_sides(directory: Path) -> Iterator[AbstractContextManager[Side]]:
    """What is compared, the baseline first."""
    yield bare(directory, SITE)
    yield bare(directory, PLAIN, "--plain")
    yield door(directory)
    yield ours(directory / "ours", rig.Project.make(directory, "busy", {"version": "first"}))


Found = dict[tuple[str, str, str], list[Turn]]
"""The turns, by size, kind and side."""


def compare(sides: Sequence[Side], given: argparse.Namespace) -> Found:
    found: Found = {}
    for turn in range(given.rounds):
        for size, (commits, fewer) in SIZES.items():
            for kind, load in KINDS.items():
                for side in sides:
                    one = run_turn(
                        side,
                        f"{load}-{commits}-{turn}",
                        ("--kind", load, "--commits", commits, "--most", MOST),
                        sources=SOURCES,
                        connections=given.connections,
                        requests=given.requests // fewer,
                        seconds=given.seconds,
                    )
                    found.setdefault((size, kind, side.words), []).append(one)
    return found


def show_result(found: Found, given: argparse.Namespace) -> None:
    ratios = ["CPU / Site()", "CPU / plain", "goal for CPU / Site()"]
    head = ["", "answers", "a second", "CPU µs each", "load's core", *ratios]
    for size in SIZES:
        for kind in KINDS:
            rows = [row(found, size, kind, words) for words in (SITE, PLAIN, DOOR, HOOKDEPLOY)]
            rig.show(f"Deliveries of {size} over {given.connections} connections, {kind}", head, rows)


def row(found: Found, size: str, kind: str, words: str) -> list[str]:
    turns = found[size, kind, words]
    answers = sum((turn.answers for turn in turns), Counter[str]())
    kinds = ", ".join(f"{kind} ({count})" for kind, count in answers.most_common())
    rate, cpu = (statistics.median(values) for values in zip(*((turn.rate, turn.cpu) for turn in turns), strict=True))
    core = f"{max(turn.own_cpu for turn in turns):.0%}"
    ratios = [
        statistics.median(one.cpu / base.cpu for one, base in zip(turns, found[size, kind, other], strict=True))
        for other in (SITE, PLAIN)
    ]
    judged = words == DOOR or (words == HOOKDEPLOY and kind != "accepted")  # the journal is no part of the door
    goal = rig.verdict(ratios[0], GOAL) if judged else ""
    return [words, kinds, f"{rate:.0f}", f"{cpu:.0f}", core, *(f"{ratio:.2f}" for ratio in ratios), goal]


def main() -> None:
    parser = rig.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--seconds", type=float, default=2, help="how long a turn lasts at most")
    parser.add_argument("--requests", type=int, default=6_000, help="how many requests a turn has at most")
    parser.add_argument("--connections", type=int, default=16)
    given = parser.parse_args()
    with rig.workplace(given.state) as directory:
        with ExitStack() as started:
            found = compare([started.enter_context(side) for side in all_sides(directory)], given)
        show_result(found, given)


if __name__ == "__main__":
    main()
