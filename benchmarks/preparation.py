"""What preparing a release costs: ten changed files in a repository of 100 files, and in one of 100 000.

python -m benchmarks.preparation --rounds 5
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from benchmarks import rig
from twisted_hook.commands import Ambient
from twisted_hook.model import StepFailed, Tree
from twisted_hook.process import SpawningRunner
from twisted_hook.releases import Releases, mirror_name

SIZES = (100, 10_000, 100_000)
CHANGED = 10
IN_A_DIRECTORY = 100
GOAL = 3.0


@dataclass
class Timings:
    """Seconds that ``take`` needed, one for each round."""

    fresh: list[float] = field(default_factory=list)
    forward: list[float] = field(default_factory=list)
    retiring: list[float] = field(default_factory=list)
    """Seconds that it took afterwards to make the next spare, when nobody waits."""


@dataclass
class Preparation:
    """An app whose releases come from a repository of so many files; only two of them are kept."""

    origin: Path
    size: int
    releases: Releases
    run: SpawningRunner
    timings: Timings = field(default_factory=Timings)

    async def deploy(self) -> tuple[Tree, float, float]:
        """The release, the seconds to take it, and those to retire what is too many then."""
        commit = await self.releases.fetch(self.run)
        begun = time.perf_counter()
        tree = await self.releases.take(self.run, commit)
        taken = time.perf_counter()
        await self.releases.keep(self.run, tree)
        kept = time.perf_counter()
        await self.releases.retire(self.run, ())
        return tree, taken - begun, time.perf_counter() - kept

    async def warm_up(self) -> None:
        """Three fresh checkouts; then the first of them is the spare."""
        for number in range(3):
            self.change(f"warm {number}")
            _, taking, _ = await self.deploy()
            self.timings.fresh.append(taking)

    async def run_round(self, number: int) -> None:
        self.change(f"round {number}")
        spare = self.releases.directory / "spare" / "tree"
        inode = spare.stat().st_ino
        tree, taking, retiring = await self.deploy()
        if tree.path.stat().st_ino != inode:
            raise rig.NotMeasured("the spare was not brought forward")
        self.timings.forward.append(taking)
        self.timings.retiring.append(retiring)

    def change(self, text: str) -> None:
        """Ten files, far from each other."""
        commit(self.origin, {name(number): text for number in range(0, self.size, self.size // CHANGED)})


def name(number: int) -> str:
    directory = number // IN_A_DIRECTORY
    return f"part{directory // IN_A_DIRECTORY}/section{directory % IN_A_DIRECTORY}/module{number}.py"


def commit(origin: Path, files: Mapping[str, str]) -> None:
    """Commit these files to the origin's main. Without a work tree: 100 000 files of one would take minutes."""
    lines = ["commit refs/heads/main", "committer Mona Lisa <mona@example.com> now", "data 6", "change"]
    if (origin / "refs" / "heads" / "main").exists():
        lines.append("from refs/heads/main^0")
    for path, text in files.items():
        lines += [f"M 100644 inline {path}", f"data {len(text)}", text]
    command = ("git", f"--git-dir={origin}", "fast-import", "--quiet", "--date-format=now")
    subprocess.run(command, input="\n".join([*lines, ""]), text=True, check=True)


def prepared(directory: Path, size: int, run: SpawningRunner) -> Preparation:
    origin = directory / f"files-{size}.git"
    rig.git("init", "--quiet", "--bare", "--initial-branch=main", str(origin))
    commit(origin, {name(number): f"NUMBER = {number}\n" * 20 for number in range(size)})
    state = directory / "state"
    times = count(time.time())
    releases = Releases(
        app=f"files-{size}",
        url=str(origin),
        branch="main",
        directory=state / "apps" / f"files-{size}",
        mirror=state / "mirrors" / mirror_name(str(origin)),
        keep_newest=2,
        ambient=Ambient.from_environ(os.environ),
        now=lambda: next(times),
        least_index=0,
    )
    return Preparation(origin, size, releases, run)


def show_result(timings: Mapping[int, Timings], rounds: int) -> None:
    smallest = timings[SIZES[0]]
    rows = []
    for size, times in timings.items():
        ratio = median(times.forward) / median(smallest.forward)
        rows.append(
            [
                f"{size} files",
                _figures(times.fresh),
                f"{median(times.fresh) / median(smallest.fresh):.1f}",
                _figures(times.forward),
                f"{ratio:.2f}",
                rig.verdict(ratio, GOAL) if size == SIZES[-1] else "",
                _figures(times.retiring),
            ]
        )
    head = ["median (least-most), ms", "fresh checkout", "ratio", "brought forward", "ratio", "goal", "made a spare"]
    rig.show(f"Taking a release with {CHANGED} changed files, {rounds} rounds", head, rows)


def _figures(seconds: list[float]) -> str:
    return f"{median(seconds) * 1000:.1f} ({min(seconds) * 1000:.1f}-{max(seconds) * 1000:.1f})"


async def measure(reactor: Any, directory: Path, rounds: int) -> None:
    run = SpawningRunner(reactor)
    try:
        sizes = {size: prepared(directory, size, run) for size in SIZES}
        for preparation in sizes.values():
            await preparation.warm_up()
        for number in range(rounds):
            for preparation in sizes.values():
                await preparation.run_round(number)
    except (rig.NotMeasured, StepFailed) as error:
        raise SystemExit(f"not measured: {error}") from error
    show_result({size: preparation.timings for size, preparation in sizes.items()}, rounds)


def main() -> None:
    parser = rig.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each size is measured")
    given = parser.parse_args()
    with rig.workplace(given.state) as directory:
        react(lambda reactor: Deferred.fromCoroutine(measure(reactor, directory, given.rounds)))


if __name__ == "__main__":
    main()
