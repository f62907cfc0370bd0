"""The installed program after the worst: killed at any moment, on a full disk, with a journal that is no journal.

What was answered 202 is there and done, nothing is done twice, and nobody has to help.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests import payloads
from tests.installed import RELEASE, Hookdeploy, Origin, processes_of, put_away, site
from tests.test_twistd import is_alone, server_of
from tests.waiting import PATIENCE, until

MIB = 1 << 20

# Says whether two of them ever ran at once, and dies with its lock.
BUILD = """
exec 9> DIRECTORY/building
flock --nonblock 9 || echo >> DIRECTORY/overlaps
echo >> DIRECTORY/built
while [ -e DIRECTORY/hold ]; do sleep 0.02; done
"""
# A slow request is held for as long as a start takes, which on a busy machine is more than a few seconds.
BUILT = RELEASE.replace('drain = "30s"', 'drain = "300s"') + 'build = ["sh DIRECTORY/build.sh"]\n'
SLOW = """
import os, time
def application(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        open({hold!r} + ".met", "w").close()
        while os.path.exists({hold!r}):
            time.sleep(0.02)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [{text!r}.encode()]
"""


# --- killed at any moment


class Cut:
    """A hookdeploy whose builds, and whose slow requests, last for as long as they are held."""

    def __init__(self, hookdeploy: Hookdeploy, origin: Origin) -> None:
        self.hookdeploy = hookdeploy
        self._origin = origin
        self._hold = {name: hookdeploy.directory / name for name in ("hold", "hold-request")}
        (hookdeploy.directory / "build.sh").write_text(BUILD.replace("DIRECTORY", str(hookdeploy.directory)))
        hookdeploy.configure(BUILT)

    def count(self, name: str) -> int:
        """How often the builds have written this down."""
        file = self.hookdeploy.directory / name
        return len(file.read_text()) if file.exists() else 0

    def push(self, text: str) -> str:
        return self._origin.push({"wsgi.py": SLOW.format(hold=str(self._hold["hold-request"]), text=text)})

    def has_entered(self, deployment: str, phase: str) -> bool:
        entered = self.hookdeploy.api(f"/deployments/{deployment}")["phases"]
        return phase in [each["phase"] for each in entered]

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        self._hold[name].touch()
        try:
            yield
        finally:
            self.let_go(name)

    def let_go(self, name: str) -> None:
        self._hold[name].unlink(missing_ok=True)

    def meets(self, name: str) -> bool:
        """Whether something is held by it."""
        return self._hold[name].with_suffix(".met").exists()


@pytest.fixture
def cut(release: Hookdeploy, origin: Origin) -> Cut:
    """One that serves its first page."""
    made = Cut(release, origin)
    made.push("one")
    release.start()
    assert release.first()["outcome"] == "deployed"
    return made


def kill_and_start(hookdeploy: Hookdeploy) -> None:
    """Kill it, and start another one."""
    assert hookdeploy.stop(signal.SIGKILL) == -signal.SIGKILL
    hookdeploy.start()


def assert_nothing_was_lost(cut: Cut, deployments: list[str], tip: str, text: str) -> None:
    """I1 to I4 and I9."""
    hookdeploy = cut.hookdeploy
    told = {each for row in hookdeploy.api("/deliveries") for each in row["deployments"]}
    assert set(deployments) <= told
    assert cut.count("overlaps") == 0
    current = (hookdeploy.state / "apps" / "web" / "current").resolve()
    assert text in (current / "wsgi.py").read_text()
    assert hookdeploy.api("/apps/web")["revision"] == tip
    hookdeploy.wait_for_page(text)
    assert all(row["outcome"] for row in hookdeploy.api("/deployments"))
    until(lambda: is_alone(hookdeploy, server_of(hookdeploy)), "end of all servers but one")


@pytest.mark.parametrize("moment", ["the answer", "fetching", "building", "starting", "swapping"])
def test_what_a_kill_has_cut_off_is_done_soon_after_the_next_start(cut: Cut, moment: str) -> None:
    """P83: nothing that was answered is missing, no two builders met, and the newest tip is what serves."""
    hookdeploy = cut.hookdeploy
    first = hookdeploy.announce(cut.push("two"))
    if moment == "building":
        with cut.held("hold"):
            until(lambda: cut.count("built") == 2, "build that is held")
            second = hookdeploy.announce(tip := cut.push("three"))
            kill_and_start(hookdeploy)
            until(lambda: cut.count("built") == 3, "build that is held again")
    else:
        if moment != "the answer":
            until(lambda: cut.has_entered(first, moment), moment)
        second = hookdeploy.announce(tip := cut.push("three"))
        kill_and_start(hookdeploy)
    ended = [hookdeploy.ended(each) for each in (first, second)]
    assert {each["outcome"] for each in ended} <= {"deployed", "superseded", "unchanged"}
    assert_nothing_was_lost(cut, [first, second], tip, "three")


def test_a_kill_while_the_old_server_drains_costs_neither_its_last_request_nor_the_next_push(cut: Cut) -> None:
    """P83, I6: what was asked of the old release is answered by it, and the new one stays."""
    hookdeploy = cut.hookdeploy
    url = f"http://127.0.0.1:{hookdeploy.app_port}/slow"
    with ThreadPoolExecutor(1) as visitors, cut.held("hold-request"):
        old = server_of(hookdeploy)
        answer = visitors.submit(httpx.get, url, timeout=PATIENCE, trust_env=False)
        until(lambda: cut.meets("hold-request"), "worker that is busy with the slow request")
        tip = cut.push("two")
        deployment = hookdeploy.announce(tip)
        assert hookdeploy.ended(deployment)["outcome"] == "deployed"
        kill_and_start(hookdeploy)
        assert old in processes_of(hookdeploy.directory)
        cut.let_go("hold-request")
        assert (answer.result().status_code, answer.result().text) == (200, "one")
    assert_nothing_was_lost(cut, [deployment], tip, "two")
    assert hookdeploy.ended(hookdeploy.announce(cut.push("three")))["outcome"] == "deployed"


# --- killed in the midst of a fetch


class SlowForge(BaseHTTPRequestHandler):
    """Serves a repository as a forge does; while it is held, it stops in the midst of each pack."""

    server: SlowServer

    def do_GET(self) -> None:
        self.answer(b"")

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        environ = {
            **{name: os.environ[name] for name in ("PATH",)},
            "GIT_PROJECT_ROOT": str(self.server.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        said = subprocess.run(("git", "http-backend"), input=body, env=environ, capture_output=True, check=True).stdout
        head, _, content = said.partition(b"\r\n\r\n")
        self.send_response(200)
        for line in head.decode().splitlines():
            self.send_header(*line.split(": ", 1))
        self.end_headers()
        if b"PACK" in content and self.server.held.is_set():
            self.wfile.write(content[: len(content) // 2])
            self.server.stalled.set()
            self.server.over.wait(PATIENCE)
            return
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing to say."""


class SlowServer(ThreadingHTTPServer):
    """Its state, and where its repositories are."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), SlowForge)
        self.root = root
        self.held, self.stalled, self.over = threading.Event(), threading.Event(), threading.Event()


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[SlowServer]:
    server = SlowServer(tmp_path)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_what_git_has_left_of_a_fetch_that_was_killed_is_gone_after_the_next_start(
    release: Hookdeploy, origin: Origin, slow: SlowServer
) -> None:
    """P67, P83: its processes, which outlive us and hang at a slow origin; its locks; and its half packs."""
    release.configure(RELEASE.replace('"origin.git"', f'"http://127.0.0.1:{slow.server_port}/origin.git"'))
    release.start()
    assert release.first()["outcome"] == "deployed"
    noise = {f"noise-{n}": os.urandom(MIB // 2).hex() for n in range(4)}
    slow.held.set()
    deployment = release.announce(tip := origin.push({**site("two"), **noise}))
    assert slow.stalled.wait(PATIENCE)
    [mirror] = (release.state / "mirrors").glob("*.git")
    until(lambda: litter(mirror), "half a pack")
    release.stop(signal.SIGKILL)
    orphans = gits(release)
    assert orphans
    (mirror / "shallow.lock").touch()
    slow.held.clear()
    release.start()
    done = release.ended(deployment)
    assert (done["outcome"], done["revision"]) == ("deployed", tip)
    release.wait_for_page("two")
    release.wait_until_idle()
    assert not orphans & gits(release)
    assert litter(mirror) == []


def gits(hookdeploy: Hookdeploy) -> set[int]:
    """The processes of git that work for it."""
    return {pid for pid, words in processes_of(hookdeploy.directory).items() if "git" in Path(words.split()[0]).name}


def litter(mirror: Path) -> list[Path]:
    """What only a git that was killed leaves."""
    return [*mirror.glob("**/*.lock"), *mirror.glob("objects/**/tmp_*"), *mirror.glob("objects/**/incoming-*")]


# --- a full disk


@contextmanager
def mounted(directory: Path, size: int) -> Iterator[Path]:
    """A disk of so many bytes at this place."""
    directory.mkdir(mode=0o700)
    words = ("mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(directory))
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        problem = done.stderr.strip()
    except OSError as error:
        problem = str(error)
    if problem:
        if os.environ.get("HOOKDEPLOY_ALL_TESTS") and os.geteuid() == 0:
            pytest.fail(problem)
        pytest.skip(f"no disk of our own can be mounted here: {problem}")
    try:
        yield directory
    finally:
        subprocess.run(("umount", "--lazy", str(directory)), check=True)


@pytest.fixture
def small(tmp_path: Path, origin: Origin) -> Iterator[Hookdeploy]:
    """One whose state directory is a disk of 40 MiB, and that serves its first page."""
    with mounted(tmp_path / "state", 40 * MIB), put_away(Hookdeploy(tmp_path, config=RELEASE)) as hookdeploy:
        hookdeploy.configure(
            RELEASE.replace("[server]\n", "[server]\nmin_free = 0\n").replace('poll = "0"', 'poll = "5s"')
        )
        hookdeploy.start()
        assert hookdeploy.first()["outcome"] == "deployed"
        hookdeploy.wait_until_idle()
        yield hookdeploy


@contextmanager
def filled(directory: Path, *, but: int = 0) -> Iterator[None]:
    """The disk of a directory with so many bytes left."""
    filler = directory / "filler"
    fill(filler, but=but)
    try:
        yield
    finally:
        filler.unlink()


def fill(file: Path, *, but: int) -> None:
    """Make it so large that so many bytes are left on its disk."""
    with file.open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(MIB // 4))
        except OSError:
            filler.truncate(max(0, filler.tell() - but))


def trees(hookdeploy: Hookdeploy) -> list[str]:
    """The releases on the disk that are kept, or half made."""
    return sorted(path.name for path in (hookdeploy.state / "apps" / "web" / "releases").iterdir())


@pytest.mark.parametrize("left", [MIB, 7 * MIB], ids=["no room to fetch", "no room for the tree"])
def test_a_deployment_that_finds_the_disk_full_fails_and_the_next_needs_nobody(
    small: Hookdeploy, origin: Origin, left: int
) -> None:
    """P84: the old release serves, no half one is left; when there is room again it is deployed, and the next too."""
    noise = {f"noise-{n}": os.urandom(MIB // 2).hex() for n in range(8)}
    before = trees(small)
    with filled(small.state, but=left):
        failed = small.ended(small.announce(origin.push({**site("two"), **noise})))
        assert failed["outcome"] == "failed"
        assert "the disk is full" in failed["reason"]
        assert small.page() == "one"
        until(lambda: trees(small) == before, "end of what was half made")
    small.wait_for_page("two")
    small.announce(origin.push(site("three")))
    small.wait_for_page("three")


def test_half_a_pack_that_a_kill_has_left_on_a_full_disk_is_gone_with_the_next_start(
    small: Hookdeploy, origin: Origin
) -> None:
    """P67, P84: with less room than a deployment may begin with, nothing would be fetched, and so nothing tidied."""
    small.configure(RELEASE.replace("[server]\n", f"[server]\nmin_free = {8 * MIB}\n"))
    small.stop(signal.SIGKILL)
    [mirror] = (small.state / "mirrors").glob("*.git")
    fill(mirror / "objects" / "pack" / "tmp_pack_x", but=2 * MIB)
    small.start()
    done = small.ended(small.announce(origin.push(site("two"))))
    assert (done["outcome"], done["reason"]) == ("deployed", "")
    small.wait_for_page("two")


def test_while_the_journal_has_no_room_nothing_is_acknowledged_and_then_all_is_well(
    small: Hookdeploy, origin: Origin
) -> None:
    """P85, I1: 503 with Retry-After, the page stays up; what was answered 202 is there, also after a kill."""
    acknowledged: list[str] = []
    with filled(small.state):
        refused = until(lambda: refused_by(small, acknowledged), "answer other than 202")
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) > 0
        assert small.page() == "one"
        assert small.ask("GET", "/healthz").status_code == 200
    tip = origin.push(site("two"))
    assert small.ended(small.announce(tip))["revision"] == tip  # by the look that was quicker, perhaps
    kill_and_start(small)
    small.wait_for_page("two")
    kept = {row["guid"] for row in small.api("/deliveries", limit=1000)}
    assert {*acknowledged, f"guid-{tip}"} <= kept


def refused_by(hookdeploy: Hookdeploy, acknowledged: list[str]) -> httpx.Response | None:
    """Send one more delivery; the answer, if it is not acknowledged. Each is large, and for no app of ours."""
    guid = f"full-{len(acknowledged)}"
    body = payloads.encoded(payloads.push("refs/heads/dev", number=guid))
    headers = payloads.headers(body, x_github_delivery=guid.encode())
    answer = hookdeploy.ask("POST", hookdeploy.hook_path, content=body, headers=list(headers.items()))
    if answer.status_code == 202:
        acknowledged.append(guid)
        return None
    return answer


# --- a journal that is no journal


@pytest.mark.parametrize("damage", ["overwritten", "emptied", "torn"])
def test_a_damaged_journal_is_put_aside_and_what_nobody_told_of_is_found(
    release: Hookdeploy, origin: Origin, damage: str
) -> None:
    """The app serves on, the door opens, and a branch that has moved meanwhile is deployed without a hook.

    ``poll`` is off: it is the lost journal that makes hookdeploy look.
    """
    release.start()
    release.first()
    server = server_of(release)
    release.stop(signal.SIGQUIT)
    tip = origin.push(site("two"))
    spoil(release.state / "journal.sqlite3", damage)
    assert release.page() == "one"
    release.start()
    release.wait_for_page("two")
    [aside] = release.state.glob("journal.sqlite3.damaged-*Z")
    assert str(aside) in release.log
    [moved] = [row for row in release.api("/deployments") if row["revision"] == tip]
    assert (moved["trigger"], moved["reason"]) == ("poll", "branch moved, no hook came")
    until(lambda: is_alone(release, server_of(release)), "end of the server from before")
    assert server_of(release) != server
    assert release.ended(release.announce(origin.push(site("three"))))["outcome"] == "deployed"


def spoil(journal: Path, damage: str) -> None:
    content = journal.read_bytes()
    assert len(content) > 8192  # not all in its log
    match damage:
        case "overwritten":
            journal.write_bytes(os.urandom(len(content)))
        case "emptied":
            journal.write_bytes(b"no journal\n")
        case _:
            journal.write_bytes(content[: len(content) // 2])
