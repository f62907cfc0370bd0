"""How many requests are lost, or answered by a broken release, while good and broken ones are deployed under load.

python -m benchmarks.unbreakable --deployments 30 --broken 8 --requests 50000
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks import rig
from benchmarks.breakages import BEFORE, GOOD, ON_PROBATION
from benchmarks.visitors import Load, visiting

BROKEN = "broken"
"""How each page of a broken release begins."""
AFTERMATH = 1.0
"""Seconds after the end of a failed probation in which a connection that its workers took may still be found closed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One deployment to come."""

    version: str
    """What its pages say."""
    breakage: str | None
    """A key of ``breakages``; None for a good release."""

    @property
    def files(self) -> dict[str, str]:
        changed = {**BEFORE, **ON_PROBATION}[self.breakage] if self.breakage else {}
        return {**GOOD, **changed, "version": self.version}


@dataclass(frozen=True, slots=True)
class Told:
    """What became of one. Times are seconds since the epoch."""

    plan: Plan
    outcome: str
    reason: str
    began: float
    ended: float
    served: str
    """The page right after its end."""
    expected: str
    """What that page should have been."""

    @property
    def as_expected(self) -> bool:
        return (self.outcome == "deployed") == (self.plan.breakage is None) and self.served == self.expected


def plans(deployments: int, broken: int, *, probation: bool) -> Iterator[Plan]:
    """Good ones, and broken ones spread evenly between them; the first one is good."""
    kinds = itertools.cycle([*(ON_PROBATION if probation else ()), *BEFORE])
    for number in range(deployments):
        if number * broken // deployments == (number + 1) * broken // deployments:
            yield Plan(f"good {number}", None)
        else:
            kind = next(kinds)
            yield Plan(f"{BROKEN} {number} ({kind})", kind)


def deploy_all(
    server: rig.Hookdeploy, project: rig.Project, port: int, given: argparse.Namespace
) -> tuple[Load, list[Told]]:
    """All of them under load, evenly spread over the time that so many requests take."""
    seconds = (
        1.1 * given.requests / given.rate
    )  # clients that wait for an answer ask a little less than they are told to
    told: list[Told] = []
    expected = "first"
    with visiting(port, given.rate) as load:
        start = time.monotonic()
        for number, plan in enumerate(plans(given.deployments, given.broken, probation=given.probation > 0)):
            time.sleep(max(0.0, start + number * seconds / given.deployments - time.monotonic()))
            began = time.time()
            revision = project.commit(plan.files)
            project.push()
            ended = server.ended(server.deliver(project, revision))
            expected = plan.version if plan.breakage is None else expected
            told.append(_told(plan, ended, began, rig.page(port), expected))
        time.sleep(max(0.0, start + seconds - time.monotonic()))
    return load, told


def _told(plan: Plan, ended: dict[str, Any], began: float, served: str, expected: str) -> Told:
    reason = next(iter(ended["reason"].splitlines()), "")
    return Told(plan, ended["outcome"], reason, began, time.time(), served, expected)


@dataclass
class Verdict:
    """What became of requests that met a broken release or got no good answer, by what is wrong with the release."""

    failed: list[tuple[float, str]] = field(default_factory=list)
    """What no broken release explains."""
    bad: Counter[str] = field(default_factory=Counter)
    """Answers other than 200 whose body is a broken release's."""
    good: Counter[str] = field(default_factory=Counter)
    """Pages, complete and with 200, of a release that broke later."""
    cut_off: Counter[str] = field(default_factory=Counter)
    """Connections that ended without an answer while a release was on probation that ends them."""

    @property
    def from_unproven(self) -> int:
        """Answers of releases that had to be refused before they met anybody."""
        return sum((self.bad + self.good)[kind] for kind in BEFORE)


def judge(load: Load, told: list[Told]) -> Verdict:
    verdict = Verdict()
    kinds = {each.plan.version: each.plan.breakage for each in told if each.plan.breakage is not None}
    for page, count in load.found["pages"].items():
        if page in kinds:
            verdict.good[kinds[page]] += count
    for at, words in load.failures:
        status, _, body = words.partition(": ")
        if body in kinds:
            verdict.bad[kinds[body]] += 1
        elif not status.startswith("status") and (kind := _on_probation(at, told)):
            verdict.cut_off[kind] += 1
        else:
            verdict.failed.append((at, words))
    return verdict


def _on_probation(at: float, told: list[Told]) -> str | None:
    """The breakage of the release that was on probation then, and may have ended connections."""
    found = (each.plan.breakage for each in told if each.began <= at <= each.ended + AFTERMATH)
    return next((kind for kind in found if kind in ON_PROBATION), None)


def show_result(load: Load, told: list[Told], generations: int, given: argparse.Namespace) -> None:
    good = [each for each in told if each.plan.breakage is None]
    bad = [each for each in told if each.plan.breakage is not None]
    seen = sum(each.plan.version in load.found["pages"] for each in good)
    verdict = judge(load, told)
    print(
        f"{len(told)} deployments, {len(bad)} of them broken, probation {given.probation:g} s, "
        f"about {given.rate:g} requests a second"
    )
    print(f"requests: {load.found['asked']} (of at least {given.requests})")
    print(f"failed: {len(verdict.failed)}, goal {rig.verdict(len(verdict.failed), 0)}")
    print(f"answers from a broken release: {verdict.from_unproven}, goal {rig.verdict(verdict.from_unproven, 0)}")
    print(f"good releases deployed: {sum(each.as_expected for each in good)} of {len(good)}; seen by the load: {seen}")
    print(f"broken releases refused, the page as before: {sum(each.as_expected for each in bad)} of {len(bad)}")
    print(f"generations left: {generations}\n")
    rows = [[each.plan.version, each.outcome, f"{each.ended - each.began:.1f}", _short(each)] for each in bad]
    rig.show("The broken ones", ["", "outcome", "s", "reason"], rows)
    if given.probation:
        show_probations(verdict, bad)
    for each in told:
        if not each.as_expected:
            print(f"{each.plan.version}: {each.outcome} {each.reason}; served {each.served!r}, not {each.expected!r}")
    for at, words in verdict.failed:
        print(f"failed: {words}; {_meanwhile(at, told)}")


def show_probations(verdict: Verdict, bad: list[Told]) -> None:
    """What those that only a probation can find have cost."""
    times = Counter(each.plan.breakage for each in bad)
    rows = [
        [kind, *(str(of[kind]) for of in (times, verdict.bad, verdict.cut_off, verdict.good))]
        for kind in ON_PROBATION
        if times[kind]
    ]
    head = ["", "releases", "bad answers", "no answer", "good answers"]
    rig.show("Found on probation, by those who asked for their pages", head, rows)


def _short(told: Told) -> str:
    return told.reason if len(told.reason) <= 70 else f"{told.reason[:69]}…"


def _meanwhile(at: float, told: list[Told]) -> str:
    """Where in the run something happened."""
    last = max((each for each in told if each.began <= at), key=lambda each: each.began, default=None)
    if last is None:
        return "before the first deployment"
    return f"{at - last.began:.3f} s after the start of {last.plan.version}, {at - last.ended:+.3f} s from its end"


def main() -> None:
    parser = rig.arguments(__doc__)
    parser.add_argument("--deployments", type=int, default=30, help="how many, the broken ones included")
    parser.add_argument("--broken", type=int, default=8, help="how many of them are broken")
    parser.add_argument("--requests", type=int, default=50_000, help="how many requests there are to be, about")
    parser.add_argument("--rate", type=float, default=300, help="requests a second, about")
    parser.add_argument("--probation", type=float, default=1, help="seconds of it; 0 leaves out what only it can find")
    parser.add_argument("--worker-class", default="gthread", choices=["gthread", "sync"], help="of gunicorn")
    given = parser.parse_args()
    with rig.workplace(given.state) as directory:
        project = rig.Project.make(directory, "blog", {**GOOD, "version": "first"})
        door, port = rig.free_port(), rig.free_port()
        app = {
            "repository": str(project.origin),
            "build": ["sh build.sh"],
            "wsgi": "wsgi:application",
            "workers": 2,
            "gunicorn": ["--threads", "4"] if given.worker_class == "gthread" else [],
            "bind": f"127.0.0.1:{port}",
            "health": "/healthz",
            "health_timeout": "5s",
            "probation": f"{round(1000 * given.probation)}ms",
        }
        with rig.hookdeploy(rig.configure(directory, door, {"blog": app}), door) as server:
            rig.wait_for_page(port, "first")
            load, told = deploy_all(server, project, port, given)
            server.settle("blog")
            show_result(load, told, len(rig.generations(directory)), given)


if __name__ == "__main__":
    main()
