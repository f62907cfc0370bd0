"""How long one hostile request keeps all others waiting: at hookdeploy's door, and at a bare one.

python -m benchmarks.stalls --rounds 3 --seconds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks import rig
from benchmarks.door_latency import bare_site
from benchmarks.durable_throughput import Side, ours

STALL, GENUINE, GENUINE_BESIDE_LARGE = 100.0, 250.0, 1000.0
"""Milliseconds: the goals."""
IDLE = "nothing"
ATTACKS = {
    IDLE: (),
    "24 MB form, unsigned": ("form", "unsigned"),
    "24 MB form, wrong signature": ("form", "wrong"),
    "24 MB form, signed": ("form", "signed"),
    "200 000 parts, wrong signature": ("multipart", "wrong"),
    "1 000 000 keys, wrong signature": ("keys", "wrong"),
    "1 000 000 keys, signed": ("keys", "signed"),
    "100 000 deep, signed": ("deep", "signed"),
    "20 bodies of 25 MB, unsigned": ("large", "unsigned"),
    "20 bodies of 25 MB, wrong signature": ("large", "wrong"),
    "20 bodies of 25 MB, signed": ("large", "signed"),
    "400 slow connections": ("slow", "wrong"),
}
"""By their words, what ``assault`` is to do."""


class Child:
    """A module of this directory that waits for the word, and prints what it has found."""

    def __init__(self, name: str, *words: str) -> None:
        command = rig.module(name, *words)
        self._process = subprocess.Popen(command, cwd=rig.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._told, self._said = self._process.stdin, self._process.stdout

    def __enter__(self) -> Self:
        if self._said.readline() != b"ready\n":
            raise rig.NotMeasured("a part of the benchmark does not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def begin(self) -> None:
        self._told.write(b"\n")
        self._told.flush()

    def wait(self) -> Any:
        """What it has found, when it has ended by itself."""
        return json.loads(self._said.read())

    def end(self) -> Any:
        """Tell it to end, and what it has found."""
        self._told.close()
        return self.wait()


@dataclass
class Seen:
    """What one attack did to the users of one side. Times are milliseconds, the longest of each."""

    stall: float
    floor: float
    """Of the server beside it, which nobody attacks: what the machine itself does."""
    genuine: float
    failed: int
    """How many of the others' requests got another answer than they should have."""
    answers: Counter[str]
    """What the attackers got."""
    grown: float
    """MB: the peak of what it held, above what it held before all attacks."""


def attack(side: Side, beside: int, words: str, idle: float, given: argparse.Namespace) -> Seen:
    """Let the onlookers look and the attackers attack."""
    with ExitStack() as children:
        probes = [children.enter_context(Child("onlooker", str(port), "probe")) for port in (side.port, beside)]
        genuine = children.enter_context(
            Child("onlooker", str(side.port), "deliver", "--name", f"genuine-{time.time_ns()}")
        )
        seconds = str(given.seconds)
        assault = [
            children.enter_context(Child("assault", str(side.port), *what, "--seconds", seconds))
            for what in ([ATTACKS[words]] if ATTACKS[words] else [])
        ]
        rig.forget_peak(side.session)
        for child in (*probes, genuine, *assault):
            child.begin()
        time.sleep(given.seconds if not assault else 0)
        answers: Counter[str] = sum((Counter(child.wait()) for child in assault), Counter())
        time.sleep(1)  # what is still on its way
        probed, floor, delivered = (child.end() for child in (*probes, genuine))
    return Seen(
        stall=max(probed["milliseconds"]),
        floor=max(floor["milliseconds"]),
        genuine=max(delivered["milliseconds"]),
        failed=sum(probed["answers"].values())
        - probed["answers"].get("200", 0)
        + sum(delivered["answers"].values())
        - delivered["answers"].get("202", 0),
        answers=answers,
        grown=rig.resident(side.session, "VmHWM") - idle,
    )


def together(rounds: Sequence[Seen]) -> Seen:
    """What several rounds of one attack come to: the medians of the longest times, the sums, and the highest peak."""
    return Seen(
        stall=statistics.median(seen.stall for seen in rounds),
        floor=statistics.median(seen.floor for seen in rounds),
        genuine=statistics.median(seen.genuine for seen in rounds),
        failed=sum(seen.failed for seen in rounds),
        answers=sum((seen.answers for seen in rounds), Counter[str]()),
        grown=max(seen.grown for seen in rounds),
    )


@contextmanager
def bare(directory: Path) -> Iterator[Side]:
    with bare_site(directory) as (port, process):
        yield Side("bare Site", port, "/", process.pid)


def measure(directory: Path, given: argparse.Namespace) -> Iterator[tuple[str, list[Seen]]]:
    """Each attack by its words, and what it did to the bare site and to hookdeploy."""
    project = rig.Project.make(directory, "busy", {"version": "first"})
    with bare(directory) as theirs, ours(directory / "ours", project) as our_side, bare_site(directory) as (beside, _):
        sides = (theirs, our_side)
        idle = [rig.resident(side.session) for side in sides]
        for words in ATTACKS:
            if words == IDLE or not given.only or any(part in words for part in given.only):
                rounds = [
                    [attack(side, beside, words, held, given) for side, held in zip(sides, idle, strict=True)]
                    for _ in range(given.rounds)
                ]
                yield words, [together(of_side) for of_side in zip(*rounds, strict=True)]


# --- the figures


def rows(words: str, theirs: Seen, found: Seen) -> Iterator[list[str]]:
    patience = GENUINE_BESIDE_LARGE if "25 MB" in words else GENUINE
    for side, seen in (("bare Site", theirs), ("hookdeploy", found)):
        figures = [f"{figure:.0f}" for figure in (seen.stall, seen.floor, seen.genuine)]
        kinds = ", ".join(f"{kind} ({count})" for kind, count in seen.answers.most_common())
        goals = [""] * 3
        if seen is found:
            ratio = f"{theirs.stall / found.stall:.1f} times"
            goals = [ratio, rig.verdict(found.stall, STALL), rig.verdict(found.genuine, patience)]
        yield [f"{words}: {side}", *figures, str(seen.failed), f"{seen.grown:.0f}", kinds, *goals]


def show_result(found: Sequence[tuple[str, list[Seen]]]) -> None:
    head = ["attack", "stall", "beside", "genuine", "failed", "+ MB", "attackers got", "less", "stall", "genuine"]
    table = [row for words, seen in found for row in rows(words, *seen)]
    rig.show("The longest answer to /healthz, and to a genuine delivery, while others attack; ms", head, table)


def main() -> None:
    parser = rig.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side, for each attack")
    parser.add_argument("--seconds", type=float, default=3, help="how long each attack goes on, at least")
    parser.add_argument("--only", nargs="*", metavar="WORD", help="only the attacks whose words have one of these")
    given = parser.parse_args()
    with rig.workplace(given.state) as directory:
        show_result(list(measure(directory, given)))


if __name__ == "__main__":
    main()
