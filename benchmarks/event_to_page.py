"""How long it takes until a page that is looked at shows a deployment's next phase, while others look too.

python -m benchmarks.event_to_page --rounds 40 --readers 50
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from benchmarks import rig
from benchmarks.browsing import chromium
from benchmarks.stalls import Child

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

GOAL = 100.0
"""Milliseconds within which 99 of 100 changes are to be seen."""
ORDER = ("waiting", "fetching", "building", "starting", "checking", "swapping", "probation", "done", "deployed")
"""The words of the page in the order in which they pass; the last two come at the same time."""

# Both watch from within the page, and keep what they see with the clock that the server reads too.
WATCH_PHASES = """() => {
  window.seen = [];
  const known = new Map();
  const look = () => {
    const now = performance.timeOrigin + performance.now();
    for (const link of document.querySelectorAll('#newest-deployments a.what')) {
      const word = link.querySelector(".badge").lastChild.textContent.trim();
      const id = link.getAttribute("href").split("/").pop();
      if (known.get(id) !== word) { known.set(id, word); window.seen.push([id, word, now]); }
    }
  };
  new MutationObserver(look).observe(document.body, { subtree: true, childList: true, characterData: true });
}"""
WATCH_TIMES = """() => {
  window.seen = [];
  new MutationObserver(() => {
    const now = performance.timeOrigin + performance.now();
    window.seen.push(now - 1000 * Number(document.getElementById("said").textContent));
  }).observe(document.body, { subtree: true, childList: true, characterData: true });
}"""


@dataclass
class Seen:
    """Milliseconds from each change to the page, by phase for those of a deployment."""

    milliseconds: dict[str, list[float]] = field(default_factory=dict)
    passed_over: int = 0
    """Phases that were over before the page could show them: it showed the next one."""

    @property
    def all(self) -> list[float]:
        return [each for times in self.milliseconds.values() for each in times]


@contextmanager
def others(port: int, path: str, readers: int, token: str = "") -> Iterator[None]:
    """All readers but the page."""
    with Child("followers", str(port), path, "--token", token, "--reading", str(readers - 1)) as child:
        yield
        if child.end()["closed"]:
            raise rig.NotMeasured("a reader was sent away")


# --- both sides


def measure_bare(directory: Path, browser: Browser, given: argparse.Namespace) -> Seen:
    port = rig.free_port()
    command = rig.module("bare_events", str(port))
    with ExitStack() as running:
        running.enter_context(rig.running(command, directory / "bare_events.log", cwd=rig.ROOT))
        rig.wait_until(lambda: rig.page(port), "an answer of the bare server")
        running.enter_context(others(port, "/events", given.readers))
        page = running.enter_context(browser.new_context()).new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        page.evaluate(WATCH_TIMES)
        rig.wait_until(lambda: len(page.evaluate("seen")) >= given.rounds * 4, "the events", every=0.5)
        return Seen({"one line": page.evaluate("seen")})


def measure_hookdeploy(directory: Path, browser: Browser, given: argparse.Namespace) -> Seen:
    directory.mkdir()
    project = rig.Project.with_app(directory, "blog")
    door, port, dashboard = rig.free_port(), rig.free_port(), rig.free_port()
    app = {
        "repository": str(project.origin),
        "wsgi": "wsgi:application",
        "bind": f"127.0.0.1:{port}",
        "workers": 1,
        "probation": "1s",
        "build": [["sleep", "0.3"]],
    }
    file = rig.configure(directory, door, {"blog": app}, dashboard=dashboard)
    with rig.hookdeploy(file, door) as server, browser.new_context() as context, ExitStack() as running:
        rig.wait_for_page(port, "first")
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{dashboard}/login?token={quote(server.token)}")
        page.get_by_text("· live").wait_for()  # the policy of the page lets no function of ours wait there
        page.evaluate(WATCH_PHASES)
        running.enter_context(others(dashboard, "/live?page=/", given.readers, server.token))
        deployments = [deploy(server, project, number) for number in range(given.rounds)]
        time.sleep(1)  # what is still on its way
        return compared(deployments, page)


def deploy(server: rig.Hookdeploy, project: rig.Project, number: int) -> dict[str, Any]:
    revision = project.commit({"version": f"number {number}"})
    project.push()
    return server.deployed(server.deliver(project, revision))


def compared(deployments: Sequence[dict[str, Any]], page: Page) -> Seen:
    """When the page showed each phase of each deployment, or a later one."""
    shown: dict[str, list[tuple[int, float]]] = {}
    for name, word, at in page.evaluate("seen"):
        shown.setdefault(name, []).append((ORDER.index(word), at))
    found = Seen()
    for deployment in deployments:
        for phase, at in changes(deployment):
            place = ORDER.index(phase)
            later = [each for each in shown.get(deployment["id"], []) if each[0] >= place]
            if not later:
                raise rig.NotMeasured(f"the page never showed that {deployment['id']} was {phase}")
            found.passed_over += later[0][0] != place
            found.milliseconds.setdefault(phase, []).append(later[0][1] - 1000 * at)
    return found


def changes(deployment: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Each word and when it became true, in seconds since the epoch: before it was written down."""
    for each in deployment["phases"]:
        if each["phase"] in ORDER[1:-2]:
            yield each["phase"], moment(each["at"])
    yield "waiting", moment(deployment["queued_at"])
    yield "deployed", moment(deployment["finished_at"])


def moment(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()


# --- the figures


def show_result(floor: Seen, ours: Seen, given: argparse.Namespace) -> None:
    head = ["", "changes", "p50", "p99", "max", "ratio of p99", "goal for p99"]
    base, found = (rig.percentile(seen.all, 99) for seen in (floor, ours))
    rows = [
        ["bare server, one line", *figures(floor.all), "1.00", ""],
        ["hookdeploy, all changes", *figures(ours.all), f"{found / base:.2f}", rig.verdict(found, GOAL)],
        *([f"  {words}", *figures(ours.milliseconds[words]), "", ""] for words in ORDER if words in ours.milliseconds),
    ]
    rig.show(f"From a change to the page, one browser and {given.readers - 1} other readers; ms", head, rows)
    print(f"passed over: {ours.passed_over} phases, of which the page showed the next one\n")


def figures(values: Sequence[float]) -> list[str]:
    return [str(len(values)), *(f"{rig.percentile(values, percent):.1f}" for percent in (50, 99, 100))]


def main() -> None:
    parser = rig.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="deployments; four times as many events of the baseline")
    parser.add_argument("--readers", type=int, default=50, help="how many look, the browser's page among them")
    given = parser.parse_args()
    with rig.workplace(given.state) as directory:
        with chromium() as browser:
            floor, ours = measure_bare(directory, browser, given), measure_hookdeploy(directory / "b", browser, given)
        show_result(floor, ours, given)


if __name__ == "__main__":
    main()
