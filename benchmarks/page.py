"""How much a page of the dashboard weighs, and when a browser shows it, beside a bare Twisted Site of the same bytes.

python -m benchmarks.page --rounds 20
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import rig
from benchmarks.browsing import chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

WEIGHT, PAINT = 60.0, 200.0
"""The goals: kB over the wire, and milliseconds to the first paint, of a browser that has never been there."""
PAGES = {"overview": "/", "an app": "/apps/blog"}
TIMES = """() => new Promise(tell => {
  const seen = () => {
    const [paint] = performance.getEntriesByName("first-contentful-paint");
    if (!paint) return requestAnimationFrame(seen);
    const [load] = performance.getEntriesByType("navigation");
    tell([load.responseEnd, paint.startTime, load.domContentLoadedEventEnd]);
  };
  seen();
})"""
Cookies = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Load:
    """One load of a page. Times are milliseconds since it was asked for."""

    requests: int
    """Those that went over the wire; the one that never ends, for what changes later, is none of them."""
    kilobytes: float
    answered: float
    paint: float
    ready: float
    """The end of DOMContentLoaded: the script has run."""


def load(context: BrowserContext, url: str) -> Load:
    """Load a page in a tab of its own."""
    page = context.new_page()
    session = context.new_cdp_session(page)
    sizes: dict[str, float] = {}
    session.on("Network.loadingFinished", lambda told: sizes.update({told["requestId"]: told["encodedDataLength"]}))
    session.on("Network.requestServedFromCache", lambda told: sizes.update({told["requestId"]: 0}))
    session.send("Network.enable")
    page.goto(url, wait_until="load")
    times = page.evaluate(TIMES)
    page.close()
    sent = [size for size in sizes.values() if size]
    return Load(len(sent), sum(sent) / 1000, *times)


@dataclass(frozen=True, slots=True)
class Side:
    """Somebody who serves the pages."""

    words: str
    root: str
    cookies: Cookies = ()

    def loads(self, browser: Browser, path: str) -> dict[str, Load]:
        """One by a browser that has never been there, and one when it has its files."""
        with browser.new_context() as context:
            context.add_cookies(self.cookies)
            return {cache: load(context, self.root + path) for cache in ("cold", "warm")}


# --- both sides


def fill(server: rig.Hookdeploy, project: rig.Project, deployments: int) -> None:
    """Deploy so often that the lists of the pages are as long as they get."""
    for number in range(deployments):
        revision = project.commit({"version": f"number {number}"})
        project.push()
        server.deployed(server.deliver(project, revision))
    server.settle("blog")


def logged_in(browser: Browser, root: str, token: str) -> Side:
    with browser.new_context() as context:
        context.new_page().goto(f"{root}/login?token={token}")
        return Side("hookdeploy", root, context.cookies())


@contextmanager
def bare(browser: Browser, ours: Side, directory: Path) -> Iterator[Side]:
    """The same bytes as files. Its pages do not ask for what changes: a bare Site has nothing to tell."""
    for path, body in _copied(browser, ours).items():
        file = directory / (path.strip("/") or "index.html")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(body.replace(b'<meta name="live"', b'<meta name="dead"'))
    port = rig.free_port()
    command = rig.twistd("web", "--path", str(directory), "--listen", f"tcp:{port}:interface=127.0.0.1")
    with rig.running(command, directory.with_suffix(".log"), cwd=directory.parent):
        rig.wait_until(lambda: rig.page(port), "an answer of the bare site")
        yield Side("bare Site", f"http://127.0.0.1:{port}")


def _copied(browser: Browser, side: Side) -> Mapping[str, bytes]:
    found = {}
    with browser.new_context() as context:
        context.add_cookies(side.cookies)
        page = context.new_page()
        page.on("requestfinished", lambda request: paths.append(request.url.removeprefix(side.root)))
        for path in PAGES.values():
            paths: list[str] = []
            page.goto(side.root + path, wait_until="load")
            found.update({each: context.request.get(side.root + each).body() for each in {path, *paths}})
    return found


Found = dict[tuple[str, str, str], list[Load]]
"""The loads, by page, cache and side."""


def measure(directory: Path, given: argparse.Namespace) -> Found:
    project = rig.Project.with_app(directory, "blog")
    door, port, dashboard = rig.free_port(), rig.free_port(), rig.free_port()
    app = {"repository": str(project.origin), "wsgi": "wsgi:application", "bind": f"127.0.0.1:{port}", "workers": 1}
    file = rig.configure(directory, door, {"blog": {**app, "probation": "0s"}}, dashboard=dashboard)
    found: Found = {}
    with rig.hookdeploy(file, door) as server, chromium() as browser:
        rig.wait_for_page(port, "first")
        fill(server, project, given.deployments)
        ours = logged_in(browser, f"http://127.0.0.1:{dashboard}", server.token)
        with bare(browser, ours, directory / "copy") as theirs:
            for _ in range(given.rounds):
                for words, path in PAGES.items():
                    for side in (theirs, ours):
                        for cache, one in side.loads(browser, path).items():
                            found.setdefault((words, cache, side.words), []).append(one)
    return found


# --- the figures


def show_result(found: Found, given: argparse.Namespace) -> None:
    head = ["", "requests", "kB", "answered", "first paint", "script has run", "ratio of paint", "kB", "paint"]
    rows = [row for words in PAGES for cache in ("cold", "warm") for row in pair(found, words, cache)]
    rig.show(f"Pages of {given.deployments} deployments, medians of {given.rounds} loads; ms", head, rows)


def pair(found: Found, words: str, cache: str) -> Iterator[list[str]]:
    base = _median(found[words, cache, "bare Site"])
    for side in ("bare Site", "hookdeploy"):
        one = _median(found[words, cache, side])
        goals = ["", ""]
        if side == "hookdeploy":
            goals = [rig.verdict(one.kilobytes, WEIGHT), rig.verdict(one.paint, PAINT)]
        times = [f"{each:.0f}" for each in (one.answered, one.paint, one.ready)]
        ratio = f"{one.paint / base.paint:.2f}"
        yield [f"{words}, {cache}: {side}", f"{one.requests:g}", f"{one.kilobytes:.1f}", *times, ratio, *goals]


def _median(loads: Sequence[Load]) -> Load:
    names = ("requests", "kilobytes", "answered", "paint", "ready")
    return Load(*(statistics.median(getattr(each, name) for each in loads) for name in names))


def main() -> None:
    parser = rig.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="loads of each page, by each of the two")
    parser.add_argument("--deployments", type=int, default=30, help="how many the pages tell of")
    given = parser.parse_args()
    with rig.workplace(given.state) as directory:
        show_result(measure(directory, given), given)


if __name__ == "__main__":
    main()
