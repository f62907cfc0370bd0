"""Whether refusing costs less than accepting: refused requests a second against accepted ones, at hookdeploy's door.

python -m benchmarks.refusals --rounds 5 --seconds 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import rig
from benchmarks.durable_throughput import REPOSITORY, Side, ours

GOAL = 1.5
SOURCES = 20_000
"""Addresses that take turns: no two connections of a turn are from the same, so that no limit for one peer is met."""
KEPT, FRESH = "kept connections", "a connection each"
MOST = {KEPT: "50", FRESH: "1"}
"""Requests after which a connection is made anew: kept ones too, before one address has asked too often."""
ACCEPTED, IGNORED = "accepted: to a deployed branch", "ignored: to another branch"
FLOOD = "refused: no signature, all from one address"
LOADS = {
    ACCEPTED: ("--kind", "genuine"),
    IGNORED: ("--kind", "genuine", "--ref", "refs/heads/topic"),
    "refused: no signature": ("--kind", "unsigned"),
    "refused: wrong signature": ("--kind", "wrong"),
    "refused: unknown path": ("--kind", "unknown"),
    FLOOD: ("--kind", "unsigned"),
}


@dataclass
class Turn:
    """What became of the requests of one turn."""

    answers: Counter[str]
    rate: float
    """Answers a second."""
    cpu: float
    """Microseconds of the server's processor time for each."""
    own_cpu: float
    """The load generator's share of one core."""


def run_turn(
    side: Side, name: str, load: Sequence[str], *, sources: int, connections: int, requests: int, seconds: float
) -> Turn:
    """Let the load generator ask, and wait until the server has done all that it led to."""
    options = ["--path", side.path, "--connections", str(connections), "--repository", REPOSITORY, "--name", name]
    bounds = ["--requests", str(requests), "--seconds", str(seconds), "--sources", str(sources)]
    before = rig.come_to_rest(side.session)
    command = rig.module("barrage", str(side.port), *options, *bounds, *load)
    found = json.loads(subprocess.run(command, cwd=rig.ROOT, stdout=subprocess.PIPE, check=True).stdout)
    cpu = rig.come_to_rest(side.session) - before
    answers = Counter(found["answers"])
    total = answers.total()
    return Turn(answers, total / found["seconds"], 1e6 * cpu / total, found["cpu"] / found["seconds"])


def compare(side: Side, given: argparse.Namespace) -> dict[tuple[str, str], list[Turn]]:
    """The turns of each load over each kind of connection."""
    found: dict[tuple[str, str], list[Turn]] = {}
    for turn in range(given.rounds):
        for way, most in MOST.items():
            for place, (words, load) in enumerate(LOADS.items()):
                sources = 1 if words == FLOOD else SOURCES
                name = f"{place}-{most}-{turn}"
                one = run_turn(
                    side,
                    name,
                    (*load, "--most", most),
                    sources=sources,
                    connections=given.connections,
                    requests=given.requests,
                    seconds=given.seconds,
                )
                found.setdefault((way, words), []).append(one)
    return found


# --- the figures


def times(turns: Sequence[Turn], others: Sequence[Turn]) -> tuple[float, float]:
    """How many times as many a second as the others, and how many times less processor time each."""
    pairs = list(zip(turns, others, strict=True))
    return (
        statistics.median(one.rate / other.rate for one, other in pairs),
        statistics.median(other.cpu / one.cpu for one, other in pairs),
    )


def show_result(found: dict[tuple[str, str], list[Turn]], given: argparse.Namespace) -> None:
    factors = ["times accepted", "by CPU", "times ignored", "by CPU", "goal for times accepted"]
    head = ["", "a second", "CPU µs each", "load's core", "answers", *factors]
    for way in MOST:
        rows = [[*row(found, way, words)] for words in LOADS]
        title = f"Requests of 7 kB over {given.connections} connections, {way}"
        rig.show(title, head, rows)


def row(found: dict[tuple[str, str], list[Turn]], way: str, words: str) -> list[str]:
    turns = found[way, words]
    answers = sum((turn.answers for turn in turns), Counter[str]())
    kinds = ", ".join(f"{kind} ({count})" for kind, count in answers.most_common())
    rate, cpu = (statistics.median(values) for values in zip(*((turn.rate, turn.cpu) for turn in turns), strict=True))
    factors = [factor for base in (ACCEPTED, IGNORED) for factor in times(turns, found[way, base])]
    goal = "" if words in (ACCEPTED, IGNORED) else rig.verdict_at_least(factors[0], GOAL)
    core = f"{max(turn.own_cpu for turn in turns):.0%}"
    return [words, f"{rate:.0f}", f"{cpu:.0f}", core, kinds, *(f"{factor:.2f}" for factor in factors), goal]


def main() -> None:
    parser = rig.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--seconds", type=float, default=2, help="how long a turn lasts at most")
    parser.add_argument("--requests", type=int, default=10_000, help="how many requests a turn has at most")
    parser.add_argument("--connections", type=int, default=16)
    given = parser.parse_args()
    with rig.workplace(given.state) as directory:
        project = rig.Project.make(directory, "busy", {"version": "first"})
        with ours(directory / "ours", project) as side:
            found = compare(side, given)
        show_result(found, given)


if __name__ == "__main__":
    main()
