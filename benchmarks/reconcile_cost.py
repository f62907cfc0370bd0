"""What it costs to see that nothing has moved: a look at 100 remotes, and `git ls-remote` by hand for each of them.

python -m benchmarks.reconcile_cost --rounds 5
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react

from benchmarks import rig
from twisted_hook.apps import COMMANDS, App, Tools
from twisted_hook.commands import Ambient
from twisted_hook.config import AppConfig
from twisted_hook.journal import SqliteJournal
from twisted_hook.model import Command, CommandResult, Deployment, StepFailed
from twisted_hook.process import SpawningRunner
from twisted_hook.reconcile import Reconcile
from twisted_hook.redaction import Redactor

AT_ONCE = 4
BY_HAND, AT_ONCE_BY_HAND = "by hand, one after the other", f"by hand, {AT_ONCE} at a time"


@dataclass
class Figures:
    """Of each round: processes that we have started, seconds, and seconds of CPU, ours and the children's."""

    processes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    children: list[float] = field(default_factory=list)


class CountingRunner(SpawningRunner):
    """Knows how many commands it has run, and when the last of them ended."""

    begun = ended = 0
    first = last = 0.0

    def count_anew(self) -> None:
        self.begun = self.ended = 0

    async def run(self, command: Command, *, output: Callable[[bytes], None] | None = None) -> CommandResult:
        if not self.begun:
            self.first = time.perf_counter()
        self.begun += 1
        result = await super().run(command, output=output)
        self.ended += 1
        self.last = time.perf_counter()
        return result


class Watch:
    """CPU since it was made, in seconds: this process, and its children that have ended."""

    def __init__(self) -> None:
        self._before = _cpu()

    def note(self, figures: Figures, *, processes: int, seconds: float) -> None:
        ours, children = (after - before for before, after in zip(self._before, _cpu(), strict=True))
        figures.processes.append(processes)
        figures.seconds.append(seconds)
        figures.ours.append(ours)
        figures.children.append(children)


def _cpu() -> tuple[float, float]:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    ours, children = (each.ru_utime + each.ru_stime for each in used)
    return ours, children


def made(directory: Path, number: int) -> list[Path]:
    """So many origins."""
    model = rig.Project.make(directory, "model", {"version": "first"}).origin
    origins = [directory / "origins" / f"app{each}.git" for each in range(number)]
    for origin in origins:
        rig.git("clone", "--quiet", "--bare", str(model), str(origin))
    return origins


class Remotes:
    """An app for each origin, that has its tip."""

    def __init__(self, reactor: Any, directory: Path, origins: Sequence[Path]) -> None:
        self._reactor = reactor
        self._origins = origins
        state = directory / "state"
        (state / COMMANDS).mkdir(parents=True)
        self.runner = CountingRunner(reactor, records=state / COMMANDS)
        self.journal = SqliteJournal.open(state / "journal.sqlite3", reactor.callFromThread)
        tools = Tools(
            reactor=reactor,
            journal=self.journal,
            runner=self.runner,
            state=state,
            ambient=Ambient.from_environ(os.environ),
            now=time.time,
            redactor=Redactor(()),
        )
        configs = [
            AppConfig(name=origin.stem, hook="github", repository=str(origin), branch="main") for origin in origins
        ]
        self.apps = [App(tools, config, None) for config in configs]

    async def deploy(self) -> None:
        """Have each app serve the tip, as far as that matters here."""
        for app in self.apps:
            checkout = app.story.checkout
            commit = await checkout.fetch(self.runner)
            await checkout.keep(self.runner, await checkout.take(self.runner, commit))

    def _submit(self, deployment: Deployment) -> None:
        raise AssertionError(f"nothing has moved, and {deployment.app} is to be deployed")

    async def look(self, figures: Figures) -> None:
        """Look at all of them once, as at a start; what comes before and after a look is none of the seconds."""
        reconcile = Reconcile(self._reactor, lambda: self.apps, self._submit, at_once=AT_ONCE)
        self.runner.count_anew()
        watch, deadline = Watch(), time.monotonic() + rig.PATIENCE
        reconcile.start()
        while self.runner.ended < len(self.apps):
            await deferLater(self._reactor, 0.05)
            if time.monotonic() > deadline:
                raise rig.NotMeasured(f"only {self.runner.ended} remotes were asked within {rig.PATIENCE:g} s")
        await deferLater(self._reactor, 0.2)
        watch.note(figures, processes=self.runner.begun, seconds=self.runner.last - self.runner.first)
        await reconcile.stop()
        if await self.journal.deployments():
            raise rig.NotMeasured("something seems to have moved")

    def by_hand(self, figures: Figures, at_once: int) -> None:
        watch, begun = Watch(), time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            asked = list(pool.map(_ls_remote, self._origins))
        watch.note(figures, processes=len(asked), seconds=time.perf_counter() - begun)


def _ls_remote(origin: Path) -> None:
    command = ("git", "ls-remote", str(origin), rig.BRANCH)
    answer = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    if not answer.endswith(f"\t{rig.BRANCH}\n".encode()):
        raise rig.NotMeasured(f"{origin} was asked for its branch and said {answer!r}")


async def measure(reactor: Any, directory: Path, origins: Sequence[Path], rounds: int) -> None:
    remotes = Remotes(reactor, directory, origins)
    ours, one, several = Figures(), Figures(), Figures()
    try:
        await remotes.deploy()
        for _ in range(rounds):
            await remotes.look(ours)
            remotes.by_hand(one, 1)
            remotes.by_hand(several, AT_ONCE)
    except (rig.NotMeasured, StepFailed) as error:
        raise SystemExit(f"not measured: {error}") from error
    finally:
        await remotes.journal.close()
    rows = [_row("hookdeploy", ours, one), _row(BY_HAND, one, one), _row(AT_ONCE_BY_HAND, several, one)]
    head = [f"median of {rounds} (least-most)", "processes", "s", "ratio", "CPU, s", "ratio", "its own", "of git"]
    rig.show(f"Seeing that nothing has moved in {len(origins)} repositories", head, rows)


class Installed:
    """``twistd hookdeploy`` with an app for each origin, which has deployed it before."""

    def __init__(self, directory: Path, origins: Sequence[Path]) -> None:
        self._directory = directory
        self._origins = origins
        self._port = rig.free_port()
        self._git_log = directory / "git.log"
        self._counting = directory / "counting"
        self._counting.mkdir()
        git = self._counting / "git"
        git.write_text(f'#!/bin/sh\necho "$@" >>{self._git_log}\nexec {shutil.which("git")} "$@"\n')
        git.chmod(0o755)

    def configured(self, poll: str) -> Path:
        apps = {origin.stem: {"repository": str(origin), "poll": poll} for origin in self._origins}
        return rig.configure(self._directory, self._port, apps)

    def deploy(self) -> None:
        with rig.hookdeploy(self.configured("0"), self._port) as server:
            rig.wait_until(lambda: all(app["release"] for app in server.ask("/apps")), "the first releases")

    def cpu(self, poll: str, seconds: float) -> tuple[float, float]:
        """What a start and so many seconds afterwards cost: CPU of its own, and of its children."""
        with rig.hookdeploy(self.configured(poll), self._port) as server:
            time.sleep(seconds)
            stat = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
            user, system, of_children, of_their_system = (int(tick) / os.sysconf("SC_CLK_TCK") for tick in stat[11:15])
            return user + system, of_children + of_their_system

    def commands(self, poll: str, seconds: float) -> list[str]:
        """The git commands of a start and of so many seconds afterwards; to write them down costs, too."""
        self._git_log.write_text("")
        command = rig.twistd("hookdeploy", "--config", str(self.configured(poll)))
        env = {"PATH": f"{self._counting}:{os.environ['PATH']}"}
        with rig.running(command, self._directory / "counted.log", cwd=self._directory, env=env):
            rig.wait_until(lambda: rig.page(self._port, "/healthz") == "ok", "an answer of hookdeploy")
            time.sleep(seconds)
        return self._git_log.read_text().splitlines()


def measure_installed(directory: Path, origins: Sequence[Path], rounds: int, seconds: float) -> None:
    installed = Installed(directory, origins)
    installed.deploy()
    polls = {"without a look": "0", "with a look": "1h"}
    figures: dict[str, list[tuple[float, float]]] = {words: [] for words in polls}
    for _ in range(rounds):
        for words, poll in polls.items():
            figures[words].append(installed.cpu(poll, seconds))
    rows = []
    for words, poll in polls.items():
        commands = installed.commands(poll, seconds)
        asking = sum("ls-remote" in command for command in commands)
        ours, children = zip(*figures[words], strict=True)
        rows.append([words, f"{len(commands)}", f"{asking}", _figures(ours), _figures(children)])
    head = [f"median of {rounds} (least-most)", "git commands", "ls-remote", "CPU of its own, s", "of its children, s"]
    rig.show(f"twistd hookdeploy: its start and {seconds:g} s, with {len(origins)} apps", head, rows)


def _row(words: str, figures: Figures, baseline: Figures) -> list[str]:
    cpu, its = _sums(figures), _sums(baseline)
    return [
        words,
        f"{median(figures.processes):g}",
        _figures(figures.seconds),
        f"{median(figures.seconds) / median(baseline.seconds):.2f}",
        _figures(cpu),
        f"{median(cpu) / median(its):.2f}",
        f"{median(figures.ours):.2f}",
        f"{median(figures.children):.2f}",
    ]


def _sums(figures: Figures) -> list[float]:
    return [ours + children for ours, children in zip(figures.ours, figures.children, strict=True)]


def _figures(seconds: Sequence[float]) -> str:
    return f"{median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"


def main() -> None:
    parser = rig.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument("--remotes", type=int, default=100, help="how many repositories there are")
    parser.add_argument("--seconds", type=float, default=5, help="how long the installed program runs each time")
    given = parser.parse_args()
    with rig.workplace(given.state) as directory:
        origins = made(directory, given.remotes)
        measure_installed(directory, origins, given.rounds, given.seconds)
        react(lambda reactor: Deferred.fromCoroutine(measure(reactor, directory / "bare", origins, given.rounds)))


if __name__ == "__main__":
    main()
