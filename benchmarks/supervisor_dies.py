"""What it costs the visitors when hookdeploy itself is killed or upgraded: at rest, and at each point of a deployment.

python -m benchmarks.supervisor_dies --rounds 10 --times 3
"""

from __future__ import annotations

import argparse
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import rig
from benchmarks.visitors import Load, visiting

WORK = "sleep 0.2"
"""A step that lasts long enough to be met."""
PHASES = ("fetching", "building", "migrating", "starting", "checking", "swapping", "probation")
BEFORE, AFTER = "queued", "draining"
"""Behind another deployment, and with the outcome written while the old generation finishes its requests."""
SOON = 30.0
"""Seconds within which all but one generation have to be gone."""


class Supervised:
    """One site, and one hookdeploy after the other on the same state directory."""

    def __init__(self, directory: Path, given: argparse.Namespace) -> None:
        self.directory = directory
        self._given = given
        self._life = ExitStack()
        self._pushed = 0
        self.version = "first"
        self.door, self.port = rig.free_port(), rig.free_port()
        source = f"{rig.WSGI}\ntime.sleep({given.import_seconds})\n"
        self._project = rig.Project.make(directory, "blog", {"wsgi.py": source, "version": self.version})
        self._configuration = rig.configure(directory, self.door, {"blog": self._app()})

    def _app(self) -> dict[str, object]:
        given = self._given
        return {
            "repository": str(self._project.origin),
            "build": [WORK],
            "wsgi": "wsgi:application",
            "workers": 2,
            "gunicorn": ["--threads", "4"],
            "bind": f"127.0.0.1:{self.port}",
            "health": "/healthz",
            "probation": f"{round(1000 * given.probation)}ms",
            **({"migrate": [WORK]} if given.migrate else {}),
        }

    # --- its lives

    def start(self) -> None:
        self.server = self._life.enter_context(rig.hookdeploy(self._configuration, self.door))

    def end(self) -> None:
        self._life.close()

    def kill(self) -> None:
        self.server.process.kill()
        self.server.process.wait()
        self._life.pop_all().close()

    def kill_and_start(self) -> None:
        self.kill()
        self.start_again()

    def start_again(self) -> None:
        time.sleep(self._given.down)
        self.start()

    def kill_at_its_start(self, after: float) -> None:
        """One more life, of so many seconds."""
        command = rig.twistd("hookdeploy", "--config", str(self._configuration))
        with rig.running(command, self.directory / "hookdeploy.log", cwd=self.directory) as process:
            time.sleep(after)
            process.kill()
            process.wait()

    def upgrade(self) -> None:
        begun = self._beginnings()
        self.server.process.send_signal(signal.SIGUSR2)
        rig.wait_until(lambda: self._beginnings() > begun, "hookdeploy's new beginning")

    def _beginnings(self) -> int:
        return (self.directory / "hookdeploy.log").read_bytes().count(b"takes hooks on")

    # --- its deployments

    def push(self) -> str:
        """Push a new version and send the hook; the deployment's id."""
        self._pushed += 1
        self.version = f"version {self._pushed}"
        revision = self._project.commit({"version": self.version})
        self._project.push()
        return self.server.deliver(self._project, revision)

    def deploy(self) -> None:
        """A whole deployment, to its new page."""
        self.server.deployed(self.push())
        rig.wait_for_page(self.port, self.version)

    def wait_for(self, deployment: str, phase: str) -> None:
        """Until its log has this heading, which is written before the phase begins."""
        heading = b" deployed\n" if phase == AFTER else f" -- {phase}\n".encode()
        log = self._log_of(deployment)
        rig.wait_until(lambda: log.exists() and heading in log.read_bytes(), f"{phase} in {log.name}", every=0.0005)

    def phase_of(self, deployment: str) -> str:
        """The last that a deployment has written of itself."""
        log = self._log_of(deployment)
        if not log.exists():
            return BEFORE
        lines = log.read_text().splitlines()
        if any(line.endswith(" deployed") for line in lines):
            return AFTER
        return next((line.split(" -- ")[1] for line in reversed(lines) if " -- " in line), BEFORE)

    def _log_of(self, deployment: str) -> Path:
        return self.directory / "state" / "logs" / f"{deployment}.log"

    def generations_left(self) -> int:
        """How many run when those that should go have had the time for it."""
        deadline = time.monotonic() + SOON
        while len(rig.generations(self.directory)) != 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        return len(rig.generations(self.directory))


@dataclass
class Part:
    """One kind of death, some times over, under load."""

    words: str
    times: int = 0
    load: Load = field(default_factory=Load)
    met: Counter[str] = field(default_factory=Counter)
    """The phases in which a deployment was when it happened."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """What became of those deployments."""
    left: Counter[int] = field(default_factory=Counter)
    """Generations that were left, each time."""
    moments: list[tuple[float, str]] = field(default_factory=list)
    """What was done and when, in seconds since the epoch."""

    def note(self, words: str) -> None:
        self.moments.append((time.time(), words))


Blow = Callable[[Supervised, Part], None]


def run_part(site: Supervised, part: Part, times: int, given: argparse.Namespace, blow: Blow) -> Part:
    """Each time: the blow, then a deployment that has to go well, and one generation that is left."""
    with visiting(site.port, given.rate) as part.load:
        for _ in range(times):
            blow(site, part)
            part.note("the next deployment")
            site.deploy()
            part.left[site.generations_left()] += 1
            part.times += 1
    show_failures(part)
    return part


def kill_at_rest(site: Supervised, part: Part) -> None:
    part.note("SIGKILL")
    site.kill_and_start()


def upgrade_at_rest(site: Supervised, part: Part) -> None:
    part.note("SIGUSR2")
    site.upgrade()


def kill_while_it_starts(site: Supervised, part: Part) -> None:
    """Killed three times before it answers, at moments of its start that chance decides."""
    site.kill()
    for _ in range(3):
        after = random.uniform(0.2, 1.0)  # noqa: S311 - it decides about moments
        part.note(f"a life of {after:.2f} s")
        site.kill_at_its_start(after)
    site.start()


def in_a_deployment(phase: str | None, end: str, spread: float) -> Blow:
    """``end`` is SIGKILL or SIGUSR2. Without a phase it comes at any moment of ``spread`` seconds from the hook."""

    def blow(site: Supervised, part: Part) -> None:
        before = site.version
        if phase == BEFORE:
            site.push()
        deployment = site.push()
        if phase not in (None, BEFORE):
            site.wait_for(deployment, str(phase))
        time.sleep(random.uniform(0, spread))  # noqa: S311
        part.note(f"{end} while {site.phase_of(deployment)}")
        if end == "SIGKILL":
            site.kill()
            met = site.phase_of(deployment)
            site.start_again()
        else:
            met = site.phase_of(deployment)
            site.upgrade()
        part.met[met] += 1
        part.outcomes[see_through(site, deployment, before)] += 1
        part.left[site.generations_left()] += 1

    return blow


def see_through(site: Supervised, deployment: str, before: str) -> str:
    """Wait for the end of what was cut off and see that the page is as it should be; the outcome.

    A migration that was cut off is run again by a person only: until then the site is what it was ``before``.
    """
    ended = site.server.ended(deployment)
    match ended["outcome"]:
        case "deployed":
            rig.wait_for_page(site.port, site.version)
        case "interrupted" if ended["phase"] == "migrating":
            rig.wait_for_page(site.port, before)
        case _:
            raise rig.NotMeasured(f"the deployment {ended['outcome']}: {ended['reason']}")
    return str(ended["outcome"])


def blows(given: argparse.Namespace) -> Iterator[tuple[str, int, Blow]]:
    """What it is, how often, and what is done."""
    yield "SIGKILL, start", given.rounds, kill_at_rest
    yield "SIGKILL while it starts", given.times, kill_while_it_starts
    yield "SIGUSR2", given.rounds, upgrade_at_rest
    left_out = {*(() if given.probation else ("probation",)), *(() if given.migrate else ("migrating",))}
    for end in ("SIGKILL", "SIGUSR2"):
        for phase in (BEFORE, *(name for name in PHASES if name not in left_out), AFTER):
            yield f"{end} while {phase}", given.times, in_a_deployment(phase, end, given.spread)
        length = 0.6 + given.probation + given.import_seconds
        yield f"{end} at any moment", given.rounds, in_a_deployment(None, end, length)


def parts(site: Supervised, given: argparse.Namespace) -> Iterator[Part]:
    for words, times, blow in blows(given):
        if given.only in words:
            yield run_part(site, Part(words), times, given, blow)


# --- the figures


def show_failures(part: Part) -> None:
    for at, words in part.load.failures:
        before = [(moment, what) for moment, what in part.moments if moment <= at]
        where = f"{at - before[-1][0]:.3f} s after {before[-1][1]}" if before else "before anything was done"
        print(f"failed during {part.words!r}: {words}; {where}", flush=True)


def show_result(done: list[Part], given: argparse.Namespace) -> None:
    rows = [
        [
            part.words,
            str(part.times),
            str(part.load.found["asked"]),
            str(part.load.failed),
            " ".join(str(count) for count in sorted(part.left)),
            _counts(part.met),
            _counts(part.outcomes),
        ]
        for part in done
    ]
    head = ["", "times", "requests", "failed", "generations left", "met in", "that deployment"]
    rig.show(f"About {given.rate:g} requests a second; after each the next deployment went well", head, rows)
    requests = sum(part.load.found["asked"] for part in done)
    failed = sum(part.load.failed for part in done)
    print(f"requests: {requests}; failed: {failed}, goal {rig.verdict(failed, 0)}")
    lonely = bool(done) and all(set(part.left) == {1} for part in done)
    print(f"exactly one generation left each time: {'met' if lonely else 'missed'}")


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())


def main() -> None:
    parser = rig.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="how often at rest, and how often at any moment")
    parser.add_argument("--times", type=int, default=3, help="how often in each phase of a deployment")
    parser.add_argument("--only", default="", metavar="WORDS", help="leave out the parts without these words")
    parser.add_argument("--rate", type=float, default=250, help="requests a second, about")
    parser.add_argument("--down", type=float, default=0.3, help="seconds between a SIGKILL and the next start")
    parser.add_argument("--spread", type=float, default=0.02, help="seconds from the start of a phase, at most")
    parser.add_argument("--import-seconds", type=float, default=0.2, help="how long the app takes to import")
    parser.add_argument("--probation", type=float, default=1, help="seconds of it; 0 leaves the phase out")
    parser.add_argument("--migrate", action=argparse.BooleanOptionalAction, default=True, help="have that phase")
    given = parser.parse_args()
    with rig.workplace(given.state) as directory:
        site = Supervised(directory, given)
        done: list[Part] = []
        site.start()
        try:
            rig.wait_for_page(site.port, "first")
            done.extend(parts(site, given))  # one by one: those before a failure are shown
        finally:
            show_result(done, given)
            site.end()


if __name__ == "__main__":
    main()
