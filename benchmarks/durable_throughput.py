"""How many signed deliveries a second are taken in, hookdeploy's each on disk before its answer; and on a slow disk.

python -m benchmarks.durable_throughput --rounds 3 --seconds 3
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import shutil
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from benchmarks import rig
from benchmarks.door_latency import bare_site
from tests import payloads

REPOSITORY = "acme/busy"
CONNECTIONS = (16, 64)
SLOW_P99, SLOW_STALL = 250.0, 50.0
"""Milliseconds: the goals on a slow disk."""
PROBE_EVERY = 0.02


@dataclass
class Side:
    """One server that takes deliveries."""

    words: str
    port: int
    path: str
    session: int
    goal: float | None = None
    """How many times as many deliveries as this one hookdeploy is to take in."""


@dataclass
class Slice:
    """What became of the deliveries of one turn of one side."""

    name: str
    """How their ids begin."""
    sent: int
    answers: Counter[str]
    milliseconds: list[float]
    rate: float
    """Answers a second."""
    cpu: float
    """Seconds of the server's processor time."""
    own_cpu: float
    """The load generator's share of one core."""


def run_slice(side: Side, name: str, connections: int, given: argparse.Namespace) -> Slice:
    """Let the load generator deliver to one side, and wait until that side has done all that it led to."""
    options = ["--path", side.path, "--connections", str(connections), "--repository", REPOSITORY, "--name", name]
    bounds = ["--requests", str(given.requests), "--seconds", str(given.seconds)]
    before = rig.come_to_rest(side.session)
    command = rig.module("barrage", str(side.port), *options, *bounds)
    found = json.loads(subprocess.run(command, cwd=rig.ROOT, stdout=subprocess.PIPE, check=True).stdout)
    cpu = rig.come_to_rest(side.session) - before
    seconds, answers = found["seconds"], Counter(found["answers"])
    return Slice(
        name, found["sent"], answers, found["milliseconds"], answers.total() / seconds, cpu, found["cpu"] / seconds
    )


# --- the sides


@contextlib.contextmanager
def tutorial(
    directory: Path,
    words: str,
    *,
    workers: int = 1,
    clone: Path | None = None,
    build: str = "",
    goal: float | None = None,
    app: str = "application",
) -> Iterator[Side]:
    """The tutorial's handler on gunicorn's sync workers, with the pull if there is a clone to pull into."""
    port, log = rig.free_port(), directory / "tutorial.log"
    options = ["--workers", str(workers), "--bind", f"127.0.0.1:{port}", "--pythonpath", str(rig.BY_HAND)]
    command = [sys.executable, "-m", "gunicorn", "--no-control-socket", *options, f"tutorial:{app}"]
    env = {"SECRET": payloads.SECRET.decode(), "CLONE": str(clone or ""), "BUILD": build}
    with rig.running(command, log, cwd=directory, env=env) as process:
        rig.wait_for_page(port, "ok")
        yield Side(words, port, "/github", process.pid, goal)


@contextlib.contextmanager
def webhook(directory: Path, command: str, goal: float | None = None) -> Iterator[Side]:
    """Debian's ``webhook`` with a signed trigger rule; it answers, and then runs the command."""
    port = rig.free_port()
    signature = {"source": "header", "name": "X-Hub-Signature-256"}
    rule = {"match": {"type": "payload-hmac-sha256", "secret": payloads.SECRET.decode(), "parameter": signature}}
    hook = {"id": "github", "execute-command": command, "success-http-response-code": 202, "trigger-rule": rule}
    file = directory / "webhook.json"
    file.write_text(json.dumps([hook]))
    argv = ["webhook", "-hooks", str(file), "-ip", "127.0.0.1", "-port", str(port)]
    with rig.running(argv, directory / "webhook.log", cwd=directory) as process:
        rig.wait_for_page(port, "OK")
        yield Side(f"webhook, {command}", port, "/hooks/github", process.pid, goal)


@contextlib.contextmanager
def bare(directory: Path, goal: float) -> Iterator[Side]:
    with bare_site(directory) as (port, process):
        yield Side("bare Twisted Site, HMAC only", port, "/", process.pid, goal)


@contextlib.contextmanager
def ours(directory: Path, project: rig.Project, *, env: dict[str, str] | None = None) -> Iterator[Side]:
    """hookdeploy with an app that is being built, so that what arrives is queued, and superseded by what comes next."""
    directory.mkdir()
    port = rig.free_port()
    app = {"repository": str(project.origin), "build": [["sleep", "899"]]}
    with rig.hookdeploy(rig.configure(directory, port, {"busy": app}), port, env=env) as server:
        rig.wait_until(lambda: builds(server), "the build")
        yield Side("hookdeploy", port, "/hooks/github", server.process.pid)
        if not builds(server):
            raise rig.NotMeasured("the build was over too early")


def builds(server: rig.Hookdeploy) -> bool:
    running = server.ask("/apps/busy")["running"]
    return running is not None and server.ask(f"/deployments/{running}")["phase"] == "building"


def check_journal(directory: Path, slices: Sequence[Slice]) -> str:
    """See that the journal holds each delivery that was answered, accepted and with its deployment."""
    sql = """SELECT guid FROM deliveries JOIN deployments ON deployments.delivery = deliveries.id
        WHERE verdict = 'accepted'"""
    with contextlib.closing(sqlite3.connect(directory / "state" / "journal.sqlite3")) as journal:
        held = Counter(guid for (guid,) in journal.execute(sql))
    sent = Counter(f"{each.name}-{number}" for each in slices for number in range(each.sent))
    if held != sent or any(set(each.answers) != {"202"} for each in slices):
        raise rig.NotMeasured(f"{len(sent)} deliveries were sent, and the journal holds {len(sent & held)} of them")
    return f"the journal holds each of the {len(held)} deliveries, with one deployment each\n"


# --- in turns


def compare(sides: Sequence[Side], given: argparse.Namespace) -> dict[tuple[int, str], list[Slice]]:
    """Each side's slices, by the number of connections and the side's words."""
    found: dict[tuple[int, str], list[Slice]] = {}
    for connections in CONNECTIONS:
        for turn in range(given.rounds):
            for place, side in enumerate(sides):
                name = f"{place}-{connections}-{turn}"
                slices = found.setdefault((connections, side.words), [])
                slices.append(run_slice(side, name, connections, given))
    return found


def show_comparison(sides: Sequence[Side], found: dict[tuple[int, str], list[Slice]]) -> None:
    head = ["", "sent", "answers", "a second", "least", "most", "p50 ms", "p99 ms", "CPU µs each", "load's core"]
    for connections in CONNECTIONS:
        our_slices = found[connections, sides[-1].words]
        rows = []
        for side in sides:
            slices = found[connections, side.words]
            factor = statistics.median(a.rate / b.rate for a, b in zip(our_slices, slices, strict=True))
            goal = "" if side.goal is None else rig.verdict_at_least(factor, side.goal)
            rows.append([side.words, *cells(slices), f"{factor:.2f} times", goal])
        rig.show(f"Signed deliveries of 7 kB over {connections} connections", [*head, "hookdeploy is", "goal"], rows)


def cells(slices: Sequence[Slice]) -> list[str]:
    rates = [each.rate for each in slices]
    milliseconds = [value for each in slices for value in each.milliseconds]
    answers = sum((each.answers for each in slices), Counter[str]())
    return [
        str(sum(each.sent for each in slices)),
        ", ".join(f"{kind} ({count})" for kind, count in answers.most_common()),
        *(f"{rate:.0f}" for rate in (statistics.median(rates), min(rates), max(rates))),
        *(f"{rig.percentile(milliseconds, percent):.1f}" for percent in (50, 99)),
        f"{1e6 * sum(each.cpu for each in slices) / answers.total():.0f}",
        f"{max(each.own_cpu for each in slices):.0%}",
    ]


# --- on a slow disk


class Probe:
    """Asks for ``/healthz`` every 20 ms over a kept connection: how long the reactor keeps somebody waiting."""

    def __init__(self, port: int) -> None:
        # From another address than the load's, which has as many connections as one address may.
        source = ("127.0.0.2", 0)
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=rig.PATIENCE, source_address=source)
        self._thread = threading.Thread(target=self._work)
        self._over = threading.Event()
        self.milliseconds: list[float] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._connection.close()

    def _work(self) -> None:
        while not self._over.wait(PROBE_EVERY):
            began = time.perf_counter()
            self._connection.request("GET", "/healthz")
            self._connection.getresponse().read()
            self.milliseconds.append(1000 * (time.perf_counter() - began))


def slow_disk(directory: Path, project: rig.Project, given: argparse.Namespace) -> None:
    """The same deliveries to a hookdeploy whose every fsync takes 20 ms longer."""
    library = directory / "slow_fsync.so"
    source = rig.BY_HAND / "slow_fsync.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True)
    rows, slices = [], []
    with ours(directory / "slow", project, env={"LD_PRELOAD": str(library)}) as side:
        for connections in CONNECTIONS:
            with Probe(side.port) as probe:
                found = run_slice(side, f"slow-{connections}", connections, given)
            slices.append(found)
            p50, p99, most = (rig.percentile(found.milliseconds, percent) for percent in (50, 99, 100))
            stall = max(probe.milliseconds)
            if min(found.milliseconds) < 20:
                raise rig.NotMeasured("a delivery was answered in less time than one fsync takes")
            figures = [f"{figure:.1f}" for figure in (p50, p99, most, rig.percentile(probe.milliseconds, 99), stall)]
            goals = [rig.verdict(p99, SLOW_P99), rig.verdict(stall, SLOW_STALL)]
            rows.append([f"{connections} connections", f"{found.rate:.0f}", *figures, *goals])
    head = ["hookdeploy", "a second", "p50", "p99", "max", "/healthz p99", "max", "goal for p99", "goal for /healthz"]
    rig.show("Each fsync made 20 ms slower; ms", head, rows)
    print(check_journal(directory / "slow", slices))


# --- the command


def main() -> None:
    parser = rig.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side, for each number of connections")
    parser.add_argument("--seconds", type=float, default=3, help="how long a turn lasts at most")
    parser.add_argument("--requests", type=int, default=6000, help="how many deliveries a turn has at most")
    given = parser.parse_args()
    if find_spec("flask") is None:
        parser.error("the tutorial needs Flask: install it beside hookdeploy")
    with rig.workplace(given.state) as directory:
        project = rig.Project.make(directory, "busy", {"version": "first"})
        with contextlib.ExitStack() as started:
            sides = [started.enter_context(side) for side in all_sides(directory, project)]
            found = compare(sides, given)
        show_comparison(sides, found)
        ours_alone = [each for (_, words), slices in found.items() if words == "hookdeploy" for each in slices]
        print(check_journal(directory / "ours", ours_alone))
        if shutil.which("gcc"):
            slow_disk(directory, project, given)
        else:
            print("no slow disk: gcc, which compiles what makes it slow, is not installed")


def all_sides(directory: Path, project: rig.Project) -> Iterator[contextlib.AbstractContextManager[Side]]:
    """What is compared, hookdeploy last."""
    clone = project.clone(directory / "clone")
    yield tutorial(directory, "tutorial, 1 worker", clone=clone, goal=20)
    yield tutorial(directory, "without the pull, 1 worker", goal=1.3)
    yield tutorial(directory, "without the pull, 2 workers", workers=2, goal=1)
    yield tutorial(directory, "and without Flask, 1 worker", app="plain")
    if shutil.which("webhook"):
        yield webhook(directory, "/bin/true", goal=1)
    else:
        print("webhook is not installed, and left out: Debian has it in the package of that name\n")
    yield bare(directory, goal=0.8)
    yield ours(directory / "ours", project)


if __name__ == "__main__":
    main()
