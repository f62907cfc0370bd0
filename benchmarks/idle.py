"""How long hookdeploy takes to listen, and how much memory it holds when nothing happens; `twistd web` is the baseline.

python -m benchmarks.idle --rounds 5
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from subprocess import Popen

from benchmarks import rig

GOAL_START = 1.5
"""Seconds."""
GOAL_MEMORY = 90.0
"""MB of VmRSS."""


@dataclass
class Figures:
    """Of each round: seconds from the start to the first answer, and MB of memory when idle."""

    start: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)
    proportional: list[float] = field(default_factory=list)


def measure(
    process: Callable[[], AbstractContextManager[Popen[bytes]]], port: int, ready: Callable[[], None], idle: float
) -> tuple[float, float, float]:
    """Start it, wait for the first answer, then until it is ready, then leave it alone, and look at its memory."""
    started = time.perf_counter()
    with process() as running:
        rig.wait_until(lambda: rig.page(port, "/healthz") == "ok", "the first answer", every=0.002)
        seconds = time.perf_counter() - started
        ready()
        time.sleep(idle)
        return seconds, memory(running.pid, "status", "VmRSS"), memory(running.pid, "smaps_rollup", "Pss")


def memory(pid: int, file: str, name: str) -> float:
    """MB of one line of a file in /proc: ``VmRSS``, or ``Pss``, which shares out what several processes have."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def show_result(ours: Figures, theirs: Figures, rounds: int) -> None:
    rows = [
        _row("start to first answer, s", ours.start, theirs.start, GOAL_START),
        _row("resident (VmRSS), MB", ours.resident, theirs.resident, GOAL_MEMORY),
        _row("proportional (Pss), MB", ours.proportional, theirs.proportional, None),
    ]
    head = [f"median of {rounds} (least-most)", "hookdeploy", "twistd web", "ratio", "goal"]
    rig.show("Idle, with one app served", head, rows)


def _row(words: str, ours: list[float], theirs: list[float], goal: float | None) -> list[str]:
    figures = [f"{median(side):.2f} ({min(side):.2f}-{max(side):.2f})" for side in (ours, theirs)]
    judged = "" if goal is None else rig.verdict(median(ours), goal)
    return [words, *figures, f"{median(ours) / median(theirs):.2f}", judged]


def main() -> None:
    parser = rig.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each is started")
    parser.add_argument("--seconds", type=float, default=5, help="how long it is left alone before its memory is read")
    given = parser.parse_args()
    with rig.workplace(given.state) as directory:
        project = rig.Project.with_app(directory, "blog")
        door, port, web = rig.free_port(), rig.free_port(), rig.free_port()
        app = {"repository": str(project.origin), "wsgi": "wsgi:application", "bind": f"127.0.0.1:{port}"}
        file = rig.configure(directory, door, {"blog": app})
        with rig.hookdeploy(file, door):  # the first deployment is none of what is measured
            rig.wait_for_page(port, "first")
        public = directory / "public"
        public.mkdir()
        (public / "healthz").write_text("ok")

        def hookdeploy() -> AbstractContextManager[Popen[bytes]]:
            command = rig.twistd("hookdeploy", "--config", str(file))
            return rig.running(command, directory / "hookdeploy.log", cwd=directory)

        def twistd_web() -> AbstractContextManager[Popen[bytes]]:
            command = rig.twistd("web", "--path", str(public), "--listen", f"tcp:{web}:interface=127.0.0.1")
            return rig.running(command, directory / "web.log", cwd=directory)

        ours, theirs = Figures(), Figures()
        for _ in range(given.rounds):
            for figures, process, its_port, ready in (
                (ours, hookdeploy, door, lambda: rig.wait_for_page(port, "first")),
                (theirs, twistd_web, web, lambda: None),
            ):
                seconds, resident, proportional = measure(process, its_port, ready, given.seconds)
                figures.start.append(seconds)
                figures.resident.append(resident)
                figures.proportional.append(proportional)
        show_result(ours, theirs, given.rounds)


if __name__ == "__main__":
    main()
