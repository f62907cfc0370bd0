"""Whether a delivery that was acknowledged is ever lost: hookdeploy is killed under load, again and again.

python -m benchmarks.kills --kills 200
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import random
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import rig

LEAST_ACKNOWLEDGED = 10_000
SLOWEST_START = 3.0
"""Seconds: the goal for the p99 from a start to the first answer."""
LIMIT = 10.0
"""Seconds that a forge waits for an answer."""

# Counts the builds, and those that met another one; the lock dies with its holder.
BUILD = """
exec 9> DIRECTORY/building
flock --nonblock 9 || echo >> DIRECTORY/overlaps
echo >> DIRECTORY/builds
sleep 0.2
"""

_LOST_ITS_WAY = """
WITH RECURSIVE covering (first, id) AS (
    SELECT id, superseded_by FROM deployments WHERE outcome = 'superseded'
    UNION
    SELECT covering.first, deployments.superseded_by FROM covering JOIN deployments USING (id)
    WHERE deployments.outcome = 'superseded'
)
SELECT count(*) FROM deployments WHERE outcome = 'superseded' AND id NOT IN (
    SELECT first FROM covering JOIN deployments USING (id) WHERE outcome IN ('deployed', 'unchanged')
)
"""
"""How many superseded deployments have nothing deployed at the end of what they were superseded by."""


# --- the load


@dataclass
class Ledger:
    """What the senders know of their deliveries."""

    acknowledged: set[str] = field(default_factory=set)
    answers: Counter[str] = field(default_factory=Counter)
    over: threading.Event = field(default_factory=threading.Event)


class Sender:
    """Sends one signed push after the other; one that gets no answer is sent again until it gets one."""

    def __init__(self, port: int, repository: str, name: str, ledger: Ledger, pause: float) -> None:
        self._port = port
        self._repository = repository
        self._name = name
        self._ledger = ledger
        self._pause = pause
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)

    def send_until_over(self) -> None:
        for number in itertools.count():
            guid = f"{self._name}-{number}"
            headers, body = rig.signed_push(self._repository, rig.BRANCH, f"{number + 1:040x}", guid)
            while not self._ledger.over.is_set() and not self._is_answered(guid, headers, body):
                pass
            if self._ledger.over.wait(random.uniform(0.5, 1.5) * self._pause):  # noqa: S311 - it decides about pauses
                self._connection.close()
                return

    def _is_answered(self, guid: str, headers: dict[bytes, bytes], body: bytes) -> bool:
        try:
            self._connection.request("POST", "/hooks/github", body, {k.decode(): v for k, v in headers.items()})
            answer = self._connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            self._ledger.answers["none"] += 1
            time.sleep(0.01)  # where nobody listens, a refusal costs nothing
            return False
        kind = "duplicate" if b'"duplicate"' in said else "accepted"
        self._ledger.answers[f"{answer.status} {kind}" if answer.status == 202 else str(answer.status)] += 1
        if answer.status == http.client.ACCEPTED:
            self._ledger.acknowledged.add(guid)
        return answer.status == http.client.ACCEPTED


@contextlib.contextmanager
def loaded(given: argparse.Namespace, port: int, repository: str) -> Iterator[Ledger]:
    """Senders at work for as long as the block lasts."""
    ledger, pause = Ledger(), given.connections / given.rate
    senders = [Sender(port, repository, f"sender-{number}", ledger, pause) for number in range(given.connections)]
    threads = [threading.Thread(target=sender.send_until_over) for sender in senders]
    for thread in threads:
        thread.start()
    try:
        yield ledger
    finally:
        ledger.over.set()
        for thread in threads:
            thread.join()


# --- the lives


class Mortal:
    """One site, and one hookdeploy after the other on the same state directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.door, self.port = rig.free_port(), rig.free_port()
        self.version = "first"
        self.project = rig.Project.with_app(directory, "blog")
        script = directory / "build.sh"
        script.write_text(BUILD.replace("DIRECTORY", str(directory)))
        app = {
            "repository": str(self.project.origin),
            "build": [f"sh {script}"],
            "wsgi": "wsgi:application",
            "bind": f"127.0.0.1:{self.port}",
            "workers": 1,
            "probation": "0s",
        }
        self._configuration = rig.configure(directory, self.door, {"blog": app})
        text = self._configuration.read_text()  # nothing may be pruned: all of it is counted
        self._configuration.write_text(text.replace("[server]\n", "[server]\nhistory_rows = 10000000\n"))
        self._life = contextlib.ExitStack()

    def start(self) -> subprocess.Popen[bytes]:
        command = rig.twistd("hookdeploy", "--config", str(self._configuration))
        log = self.directory / "hookdeploy.log"
        return self._life.enter_context(rig.running(command, log, cwd=self.directory))

    def start_to_ready(self) -> tuple[subprocess.Popen[bytes], float]:
        """A life that answers, and how many seconds that has taken."""
        begun = time.perf_counter()
        process = self.start()
        rig.wait_until(lambda: rig.page(self.door, "/healthz") == "ok", "an answer of hookdeploy", every=0.002)
        return process, time.perf_counter() - begun

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is not None:
            raise rig.NotMeasured(f"hookdeploy has ended by itself, with {process.returncode}")
        process.kill()
        process.wait()
        self._life.pop_all().close()

    def end(self) -> None:
        self._life.close()

    def push(self) -> None:
        """A new tip; the senders tell of it."""
        self.version = f"version {time.time_ns()}"
        self.project.commit({"version": self.version})
        self.project.push()

    def count(self, name: str) -> int:
        """How often the builds have written this down."""
        file = self.directory / name
        return len(file.read_text()) if file.exists() else 0

    @contextlib.contextmanager
    def journal(self) -> Iterator[sqlite3.Connection]:
        path = self.directory / "state" / "journal.sqlite3"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            yield connection

    def open_deployments(self) -> int:
        with self.journal() as journal:
            return int(journal.execute("SELECT count(*) FROM deployments WHERE outcome IS NULL").fetchone()[0])


@dataclass
class Killed:
    """What was seen of the kills."""

    kills: int = 0
    while_starting: int = 0
    ready: list[float] = field(default_factory=list)
    """Seconds from each start to its first answer."""
    at_rest: float = 0.0
    """Seconds from the last start until all had ended and the newest page was there."""


def kill_again_and_again(site: Mortal, given: argparse.Namespace) -> Killed:
    """Each life ends at a moment that chance decides, some before they answer; the last one does all that is left."""
    found = Killed()
    for number in range(given.kills):
        if number % given.early == given.early - 1:
            process = site.start()
            time.sleep(random.uniform(0, 0.5))  # noqa: S311 - it decides about moments
            found.while_starting += 1
        else:
            process, seconds = site.start_to_ready()
            found.ready.append(seconds)
            site.push()
            time.sleep(random.uniform(0, given.life))  # noqa: S311
        site.kill(process)
        found.kills += 1
    return found


def come_to_rest(site: Mortal, begun: float) -> float:
    """Wait for the end of every deployment, and for the newest page; the seconds since ``begun``."""
    rig.wait_until(lambda: site.open_deployments() == 0, "an end of all deployments", every=0.05)
    rig.wait_for_page(site.port, site.version)
    return time.perf_counter() - begun


# --- the figures


def show_result(site: Mortal, found: Killed, ledger: Ledger) -> None:
    with site.journal() as journal:
        (sound,) = journal.execute("PRAGMA integrity_check").fetchone()
        written = {guid for (guid,) in journal.execute("SELECT guid FROM deliveries")}
        outcomes = dict(journal.execute("SELECT outcome, count(*) FROM deployments GROUP BY outcome"))
        (astray,) = journal.execute(_LOST_ITS_WAY).fetchone()
    lost = ledger.acknowledged - written
    p50, p99 = (rig.percentile(found.ready, percent) for percent in (50, 99))
    rows = [
        ["kills", str(found.kills)],
        ["of these before the first answer", str(found.while_starting)],
        ["acknowledged deliveries", str(len(ledger.acknowledged))],
        ["written, and never acknowledged", str(len(written - ledger.acknowledged))],
        ["start to ready, p50", f"{p50:.2f} s"],
        ["start to ready, p99", f"{p99:.2f} s"],
        ["last start until all had ended", f"{found.at_rest:.2f} s"],
        ["builds", str(site.count("builds"))],
        ["the journal", str(sound)],
    ]
    rig.show("SIGKILL under load", ["", ""], rows)
    print(f"answers: {_counts(ledger.answers)}")
    print(f"deployments: {_counts(Counter(outcomes))}")
    acknowledged = len(ledger.acknowledged)
    print(f"acknowledged: {acknowledged}, goal {rig.verdict_at_least(acknowledged, LEAST_ACKNOWLEDGED)}")
    print(f"lost: {len(lost)}, goal {rig.verdict(len(lost), 0)} {' '.join(sorted(lost)[:10])}".rstrip())
    print(f"covered by nothing that was deployed: {astray}, goal {rig.verdict(astray, 0)}")
    print(f"builders that met another one: {site.count('overlaps')}, goal {rig.verdict(site.count('overlaps'), 0)}")
    print(f"start to ready, p99: {p99:.2f} s, goal {rig.verdict(p99, SLOWEST_START)}")


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())


def main() -> None:
    parser = rig.arguments(__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how often it is killed")
    parser.add_argument("--early", type=int, default=5, metavar="N", help="kill each Nth life before it may answer")
    parser.add_argument(
        "--life", type=float, default=1.0, help="seconds between a life's first push and its end, at most"
    )
    parser.add_argument("--rate", type=float, default=200, help="deliveries a second, about")
    parser.add_argument("--connections", type=int, default=8, help="senders at once")
    given = parser.parse_args()
    with rig.workplace(given.state) as directory:
        site = Mortal(directory)
        try:
            site.kill(site.start_to_ready()[0])  # from now on the keeper of its sockets has the door's
            with loaded(given, site.door, site.project.name) as ledger:
                found = kill_again_and_again(site, given)
                begun = time.perf_counter()
                _, seconds = site.start_to_ready()
                found.ready.append(seconds)
                rig.wait_until(lambda: bool(ledger.acknowledged), "an acknowledged delivery")
            try:
                found.at_rest = come_to_rest(site, begun)
            finally:
                show_result(site, found, ledger)  # of what never ends, too
        finally:
            site.end()


if __name__ == "__main__":
    main()
