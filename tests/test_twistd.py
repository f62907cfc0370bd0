"""``twistd hookdeploy`` as a process: what it does from a push to a new page, and at every kind of start and end."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests import payloads
from tests.installed import (
    RELEASE,
    SECRET,
    TWISTD,
    Hookdeploy,
    Origin,
    free_port,
    git,
    is_listened_on,
    is_over,
    processes_of,
    put_away,
    site,
)
from tests.proctable import is_stopped, told
from tests.waiting import PATIENCE, until
from twisted_hook import configfile
from twisted_hook.cli.client import Api
from twisted_hook.cli.send import send
from twisted_hook.config import ConfigError

HELD = RELEASE + 'build = ["sh DIRECTORY/build.sh"]\n'
BUILD = "echo >> DIRECTORY/built; while [ -e DIRECTORY/hold ]; do sleep 0.05; done"

STOPPED = """
import os, signal
from twisted_hook import tap
def taken(*arguments, take=tap.Hookdeploy.take, **given):
    service = take(*arguments, **given)
    os.kill(os.getpid(), signal.SIGTERM)
    return service
tap.Hookdeploy.take = taken
"""

FAILS_WHEN_IT_HAS_STOPPED = """
from twisted_hook import apps
stop = apps.App.stop
async def stopped(app):
    await stop(app)
    raise RuntimeError("lost its way")
apps.App.stop = stopped
"""

NEXT_VISIT = 0.01
"""Seconds until a visitor comes back: one that never rests takes the time that everybody else needs."""
PHASES = ["fetching", "building", "starting", "checking", "swapping", "done"]


@pytest.fixture
def by_environment(tmp_path: Path, origin: Origin) -> Iterator[Hookdeploy]:
    """A hookdeploy that is told by its environment to keep a clone up to date; not started yet."""
    git(tmp_path, "clone", "--quiet", str(origin.path), "clone")
    environ = {
        "GITHUB_SECRET": SECRET.decode(),
        "REPO_PATH": str(tmp_path / "clone"),
        "APP_BIND": "127.0.0.1:APP_PORT",
        "HOOK_LISTEN": "tcp:HOOK_PORT:interface=127.0.0.1",
        "APP_POLL": "0",
    }
    state = tmp_path / ".hookdeploy-clone"
    with put_away(Hookdeploy(tmp_path, environ=environ, state=state, hook_path="/github")) as hookdeploy:
        yield hookdeploy


class Held:
    """A hookdeploy whose builds last for as long as they are held, and are counted."""

    def __init__(self, hookdeploy: Hookdeploy) -> None:
        self.hookdeploy = hookdeploy
        self._hold, self._built = hookdeploy.directory / "hold", hookdeploy.directory / "built"
        (hookdeploy.directory / "build.sh").write_text(BUILD.replace("DIRECTORY", str(hookdeploy.directory)))
        hookdeploy.configure(HELD)

    @property
    def builds(self) -> int:
        return len(self._built.read_text()) if self._built.exists() else 0

    def hold(self) -> None:
        self._hold.touch()

    def let_go(self) -> None:
        self._hold.unlink()


@pytest.fixture
def held(release: Hookdeploy) -> Held:
    """One that has deployed for the first time, and whose next build is held."""
    made = Held(release)
    release.start()
    assert release.first()["outcome"] == "deployed"
    made.hold()
    return made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- from a push to a new page


def test_an_existing_clone_is_kept_up_to_date_and_served(by_environment: Hookdeploy, origin: Origin) -> None:
    by_environment.start()
    by_environment.wait_for_page("one")
    assert by_environment.api("/deployments") == []
    tip = origin.push(site("two"))
    done = by_environment.ended(by_environment.announce(tip))
    assert (done["outcome"], done["trigger"], done["revision"]) == ("deployed", "push", tip)
    by_environment.wait_for_page("two")
    assert f"Repository updated with commit {tip[:6]}" in by_environment.log
    assert git(by_environment.directory / "clone", "rev-parse", "HEAD") == tip


def test_pushes_in_quick_succession_are_all_served_in_place(in_place: Hookdeploy, origin: Origin) -> None:
    """Python takes a file for unchanged that has the size and, in whole seconds, the time of its bytecode."""
    in_place.start()
    in_place.wait_for_page("one")
    for page in ("two", "six", "ten", "one"):
        done = in_place.ended(in_place.announce(origin.push(site(page))))
        assert done["outcome"] == "deployed", done
        in_place.wait_for_page(page)


def test_the_app_sees_what_is_declared_and_nothing_else(by_environment: Hookdeploy, origin: Origin) -> None:
    """P80, through the running program: the secret is in hookdeploy's own environment."""
    origin.push({"wsgi.py": site("")["wsgi.py"].replace("''", "' '.join(__import__('os').environ)")})
    by_environment.start()
    by_environment.ended(by_environment.announce(git(origin.path, "rev-parse", "main")))
    until(lambda: "PATH" in by_environment.page(), "page with names")
    own = {f"HOOKDEPLOY_{name}" for name in ("APP", "REVISION", "PREVIOUS", "BRANCH", "RELEASE", "DEPLOYMENT")}
    of_gunicorn = {"SERVER_SOFTWARE", "LISTEN_FDS", "LISTEN_PID", "LC_CTYPE"}
    assert set(by_environment.page().split()) - of_gunicorn == {"PATH", "HOME", "LANG", *own}


def test_a_first_start_deploys_by_itself_and_a_push_makes_the_page_new(release: Hookdeploy, origin: Origin) -> None:
    release.start()
    first = release.first()
    assert (first["trigger"], first["outcome"], first["previous"]) == ("start", "deployed", None)
    release.wait_for_page("one")
    tip = origin.push(site("two"), "The second page")
    done = release.ended(release.announce(tip))
    assert (done["outcome"], done["revision"], done["previous"]) == ("deployed", tip, first["revision"])
    assert [entered["phase"] for entered in done["phases"]] == PHASES
    times = [done["queued_at"], done["started_at"], *(entered["at"] for entered in done["phases"]), done["finished_at"]]
    assert times == sorted(times)
    release.wait_for_page("two")
    [app] = release.api("/apps")
    assert (app["revision"], app["subject"], app["server"]["state"]) == (tip, "The second page", "serving")
    assert (release.state / "apps/web/current").resolve().name == app["release"]
    assert "swapping" in release.log_of(done["id"])


def test_who_may_pass_through_the_state_directory_reads_trees_and_what_they_are_of(release: Hookdeploy) -> None:
    """An account of an app's own has to reach its releases; all else there is ours."""
    release.start()
    release.first()
    release.wait_until_idle()
    for way in (release.state, release.state / "apps"):
        way.chmod(0o711)
    reached = [path for path in release.state.rglob("*") if all(mode(way) & 0o001 for way in ways_to(release, path))]
    files = [path for path in reached if not path.is_dir() and not path.is_symlink()]
    read = {"/".join(path.relative_to(release.state).parts[:3]) for path in files if mode(path) & 0o006}
    assert read == {f"apps/web/{name}" for name in ("releases", "commits", "indexes", "served")}
    assert {path.name for path in files if path.parent == release.state} >= {"lock", "journal.sqlite3", "api.sock"}


def ways_to(hookdeploy: Hookdeploy, path: Path) -> list[Path]:
    """The directories from the state directory to a file in it."""
    return [way for way in path.parents if way.is_relative_to(hookdeploy.state)]


def test_the_state_directory_may_have_a_long_name(release: Hookdeploy) -> None:
    """A unix socket's address may not: 107 bytes."""
    release.configure(RELEASE.replace('"state"', f'"{"x" * 100}"'))
    release.start()
    with closing(Api(release.directory / ("x" * 100))) as api:
        assert api.get("/server")["pid"] == release.pid
        until(lambda: [each["outcome"] for each in api.get("/deployments")] == ["deployed"], "first deployment")


# --- what the door lets in, with a real origin behind it


@pytest.fixture(scope="module")
def of_two_hooks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hookdeploy, Origin]]:
    """A hookdeploy that serves two hooks with secrets of their own, and the origin of both."""
    directory = tmp_path_factory.mktemp("running")
    origin = Origin(directory)
    origin.push(site("one"))
    secret = directory / "api.secret"
    secret.touch(mode=0o600)
    secret.write_bytes(b"the other hook's own secret")
    more = """
[apps.api]
poll = "0"
secret = { file = "api.secret" }
repository = "origin.git"
names = ["acme/api"]
branch = "main"
"""
    config = RELEASE.replace("[apps.web]\n", '[apps.web]\nbranch = "main"\nbuild = ["test ! -e DIRECTORY/broken"]\n')
    with put_away(Hookdeploy(directory, config=config + more)) as hookdeploy:
        hookdeploy.start()
        until(lambda: len(hookdeploy.api("/deployments")) == 2, "two first deployments")
        for deployment in hookdeploy.api("/deployments"):
            assert hookdeploy.ended(deployment["id"])["outcome"] == "deployed"
        yield hookdeploy, origin


@pytest.fixture
def running(of_two_hooks: tuple[Hookdeploy, Origin]) -> tuple[Hookdeploy, Origin]:
    """The same, when what earlier tests have deployed is all that answers."""
    hookdeploy, _ = of_two_hooks
    until(hookdeploy.has_one_server, "end of the former server")
    return of_two_hooks


def test_a_secret_opens_its_own_hook_only_and_a_hook_serves_its_own_repositories(
    running: tuple[Hookdeploy, Origin],
) -> None:
    """P17."""
    hookdeploy, _ = running
    before = hookdeploy.api("/deployments")
    payload = payloads.push(repository=payloads.repository("acme/web"))
    signature = payloads.sha256_signature(payloads.encoded(payload), b"the other hook's own secret")
    assert hookdeploy.send(payload, guid="p17-1", x_hub_signature_256=signature)["code"] == 401
    assert hookdeploy.send(payload, guid="p17-1", path="/hooks/api")["code"] == 401
    foreign = payloads.push(repository=payloads.repository("acme/api"))
    assert hookdeploy.send(foreign, guid="p17-2")["code"] == 403
    assert hookdeploy.api("/deployments") == before


def test_an_address_in_the_payload_is_never_visited(running: tuple[Hookdeploy, Origin]) -> None:
    """P46, P92: what is fetched from is the configured remote."""
    hookdeploy, origin = running
    tip = origin.push(site("p46"))
    with socket.create_server(("127.0.0.1", 0)) as canary:
        url = f"http://127.0.0.1:{canary.getsockname()[1]}/x.git"
        names = ("clone_url", "ssh_url", "git_url", "url", "html_url", "statuses_url", "deployments_url")
        repository = payloads.repository(**dict.fromkeys(names, url))
        told = hookdeploy.send(payloads.push(after=tip, repository=repository, compare=url), guid="p46")
        assert hookdeploy.ended(told["deployments"][0])["revision"] == tip
        canary.setblocking(False)
        with pytest.raises(BlockingIOError):
            canary.accept()


def test_a_commit_message_of_20_mib_is_shown_to_nobody(running: tuple[Hookdeploy, Origin]) -> None:
    """P47: the journal and what is read of it stay small."""
    hookdeploy, origin = running
    tip, journal = origin.push(site("p47")), hookdeploy.state / "journal.sqlite3"
    long = payloads.commit(tip, "x" * 20 * 1_048_576)
    told = hookdeploy.send(payloads.push(after=tip, head_commit=long), guid="p47")
    assert (told["code"], told["status"]) == (202, "accepted")
    assert hookdeploy.ended(told["deployments"][0])["revision"] == tip
    for path in ("/deliveries", "/deployments", "/apps", f"/deliveries/{told['delivery']}"):
        assert len(json.dumps(hookdeploy.api(path))) < 100_000
    assert sum(each.stat().st_size for each in journal.parent.glob(f"{journal.name}*")) < 10_000_000


def test_a_test_delivery_finds_the_server_by_its_state_directory(running: tuple[Hookdeploy, Origin]) -> None:
    hookdeploy, _ = running
    result = CliRunner().invoke(send, ["--state", str(hookdeploy.state), "--app", "web", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert (told["status"], told["body"]["status"]) == (202, "accepted")
    hookdeploy.ended(told["body"]["deployments"][0])


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (payloads.deletion(), "the ref was deleted"),
        (payloads.push("refs/tags/main"), "no app deploys this tag"),
        (payloads.push("refs/heads/dev"), "no app deploys this branch"),
    ],
)
def test_what_is_no_push_of_the_branch_is_ignored_and_written_down(
    running: tuple[Hookdeploy, Origin], payload: Any, reason: str
) -> None:
    """P48, P49, P50."""
    hookdeploy, _ = running
    before = hookdeploy.api("/deployments"), hookdeploy.page()
    told = hookdeploy.send(payload, guid=f"p49-{reason}")
    assert told == {"status": "ignored", "reason": reason, "code": 202}
    newest = hookdeploy.api("/deliveries", limit=1)[0]
    assert (newest["verdict"], newest["reason"], newest["deployments"]) == ("ignored", reason, [])
    assert (hookdeploy.api("/deployments"), hookdeploy.page()) == before


def test_a_delivery_needs_an_event_and_can_do_without_an_id(running: tuple[Hookdeploy, Origin]) -> None:
    """P51."""
    hookdeploy, origin = running
    payload = payloads.push(after=origin.push({"p51": ""}))
    assert hookdeploy.send(payload, guid="p51", x_github_event=None)["code"] == 400
    told = hookdeploy.send(payload, guid="", x_github_delivery=None)
    assert (told["code"], told["status"]) == (202, "accepted")
    assert len(hookdeploy.api(f"/deliveries/{told['delivery']}")["guid"]) == 64
    hookdeploy.ended(told["deployments"][0])


def test_a_delivery_that_comes_again_is_deployed_once(running: tuple[Hookdeploy, Origin]) -> None:
    """P52: one after the other, and twenty at a time."""
    hookdeploy, origin = running
    first = hookdeploy.announce(origin.push(site("p52")))
    again = hookdeploy.send(payloads.push(after=git(origin.path, "rev-parse", "main")), guid="p52-other-id")
    assert (again["code"], again["status"], again["deployments"]) == (202, "duplicate", [first])
    hookdeploy.ended(first)
    payload = payloads.push(after=origin.push(site("p52 again")))
    with ThreadPoolExecutor(20) as crowd:
        told = list(crowd.map(lambda _: hookdeploy.send(payload, guid="p52"), range(20)))
    assert sorted(answer["status"] for answer in told) == ["accepted", *["duplicate"] * 19]
    assert len({answer["delivery"] for answer in told}) == 1
    [deployment] = {each for answer in told for each in answer["deployments"]}
    assert hookdeploy.ended(deployment)["outcome"] == "deployed"
    hookdeploy.wait_for_page("p52 again")


def test_a_redelivery_builds_again_what_failed(running: tuple[Hookdeploy, Origin]) -> None:
    """P53; and P76: the page stays as it was, and the reason names the step."""
    hookdeploy, origin = running
    payload, page = payloads.push(after=origin.push(site("p53"))), hookdeploy.page()
    broken = hookdeploy.directory / "broken"
    broken.touch()
    try:
        [first] = hookdeploy.send(payload, guid="p53")["deployments"]
        failed = hookdeploy.ended(first)
    finally:
        broken.unlink()
    assert failed["outcome"] == "failed"
    assert failed["reason"] == f"step 'test ! -e {broken}' failed: exit 1"
    assert hookdeploy.page() == page
    told = hookdeploy.send(payload, guid="p53")
    assert (told["code"], told["status"]) == (202, "duplicate")
    assert told["deployments"] != [first]
    assert hookdeploy.ended(told["deployments"][0])["outcome"] == "deployed"
    hookdeploy.wait_for_page("p53")


def test_a_forced_push_of_another_history_is_deployed(running: tuple[Hookdeploy, Origin]) -> None:
    """P56."""
    hookdeploy, origin = running
    work = hookdeploy.directory / "work"
    git(work, "checkout", "--quiet", "--orphan", "anew")
    (work / "wsgi.py").write_text(site("p56")["wsgi.py"])
    git(work, "commit", "--quiet", "--all", "--message=Begin anew")
    git(work, "push", "--quiet", "--force", str(origin.path), "HEAD:main")
    tip = git(work, "rev-parse", "HEAD")
    told = hookdeploy.send(payloads.push(after=tip, forced=True), guid="p56")
    done = hookdeploy.ended(told["deployments"][0])
    assert (done["outcome"], done["revision"]) == ("deployed", tip)
    hookdeploy.wait_for_page("p56")


def test_many_pushes_during_a_build_lead_to_two_more_at_most(held: Held, origin: Origin) -> None:
    """P55: of fifty pushes the last tip is live, and every row has ended."""
    hookdeploy = held.hookdeploy
    hookdeploy.announce(origin.push(site("0")))
    until(lambda: held.builds == 2, "build that is held")
    tip = origin.push(site("50"))
    others = [f"{number:040x}" for number in range(1, 50)]  # which the next push has forced away
    with ThreadPoolExecutor(10) as crowd:
        last = max(crowd.map(hookdeploy.announce, [*others, tip]))
    held.let_go()
    assert hookdeploy.ended(last)["revision"] == tip
    assert held.builds <= 4
    hookdeploy.wait_for_page("50")
    rows = hookdeploy.api("/deployments", limit=100)
    assert len(rows) == 52
    assert {row["outcome"] for row in rows} <= {"deployed", "superseded", "unchanged"}
    assert all(row["superseded_by"] for row in rows if row["outcome"] == "superseded")


# --- how it ends, and starts again


def test_the_server_of_an_app_that_is_no_more_is_ended_after_a_kill(release: Hookdeploy) -> None:
    release.start()
    release.first()
    server = release.api("/apps/web")["server"]["pid"]
    release.stop(signal.SIGKILL)
    assert server in processes_of(release.directory)
    release.configure(RELEASE.replace("[apps.web]", "[apps.api]").replace('wsgi = "wsgi:application"', ""))
    release.start()
    until(lambda: len(processes_of(release.directory)) == 1, "end of the server that was left")
    release.first()


def test_a_kill_during_a_build_does_not_leave_two_builds_after_the_next_start(held: Held, origin: Origin) -> None:
    """P83, I2: what the killed one has left of its build is ended before another one begins."""
    hookdeploy = held.hookdeploy
    tip = origin.push(site("two"))
    deployment = hookdeploy.announce(tip)
    until(lambda: held.builds == 2, "build that is held")
    hookdeploy.stop(signal.SIGKILL)
    left = the_builder(hookdeploy)
    hookdeploy.start()
    until(lambda: held.builds == 3, "build that is held again")
    assert the_builder(hookdeploy) != left
    held.let_go()
    done = hookdeploy.ended(deployment)
    assert (done["outcome"], done["revision"], done["attempts"]) == ("deployed", tip, 2)


def the_builder(hookdeploy: Hookdeploy) -> int:
    """The one process that works at a build; when it has just forked, it looks like two for a moment."""

    def look() -> int | None:
        found = [pid for pid, words in processes_of(hookdeploy.directory).items() if "build.sh" in words]
        return found[0] if len(found) == 1 else None

    return until(look, "single builder")


def test_sigterm_during_a_build_leaves_the_deployment_for_the_next_start(held: Held, origin: Origin) -> None:
    hookdeploy = held.hookdeploy
    tip = origin.push(site("two"))
    deployment = hookdeploy.announce(tip)
    until(lambda: held.builds == 2, "build that is held")
    assert hookdeploy.stop() == -signal.SIGTERM
    assert is_over(hookdeploy.directory)
    held.let_go()
    hookdeploy.start()
    done = hookdeploy.ended(deployment)
    assert (done["outcome"], done["revision"], done["attempts"]) == ("deployed", tip, 2)
    hookdeploy.wait_for_page("two")


def test_it_runs_in_the_background_and_ends_by_sigterm(by_environment: Hookdeploy, origin: Origin) -> None:
    """Under twistd's own umask, which is 077: what it writes into the clone can be read by others nevertheless."""
    directory = by_environment.directory
    pidfile, logfile = directory / "hookdeploy.pid", directory / "hookdeploy.log"
    done = by_environment.run(f"--pidfile={pidfile}", f"--logfile={logfile}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pid = int(until(lambda: pidfile.read_text() if pidfile.exists() else "", "pid file"))
    try:
        by_environment.wait_for_page("one")
        tip = origin.push({**site("two"), "new.css": "a {}"})
        by_environment.ended(by_environment.announce(tip))
        by_environment.wait_for_page("two")
        assert os.getsid(pid) != os.getsid(0)
        assert f"Repository updated with commit {tip[:6]}" in logfile.read_text()
        assert mode(directory / "clone/new.css") == 0o644
        assert mode(by_environment.state) == 0o700
        for name in ("journal.sqlite3", "api.sock"):
            assert mode(by_environment.state / name) == 0o600
        for file in (by_environment.state / "logs").iterdir():
            assert mode(file) == 0o600
    finally:
        os.kill(pid, signal.SIGTERM)
        until(lambda: not processes_of(directory), "end of all its processes")
    assert not pidfile.exists()
    assert not is_listened_on(by_environment.hook_port)
    assert not is_listened_on(by_environment.app_port)


# --- what cannot start


def refusal(hookdeploy: Hookdeploy) -> list[str]:
    """What it says on stderr as it refuses to start; it must be nothing but lines for people."""
    done = hookdeploy.run()
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert all(line.startswith("hookdeploy: ") for line in done.stderr.splitlines()), done.stderr
    return done.stderr.splitlines()


def test_two_of_them_do_not_share_a_state_directory(release: Hookdeploy) -> None:
    release.start()
    config = RELEASE.replace("HOOK_PORT", str(free_port())).replace("APP_PORT", str(free_port()))
    (release.directory / "hookdeploy.toml").write_text(config)
    [refused] = refusal(release)
    assert refused.startswith(f"hookdeploy: another hookdeploy works in {release.state}; stop it")
    release.first()
    assert release.page() == "one"


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        ({"PATH": "/nowhere"}, "git: is not installed: nothing named git on PATH (/nowhere)"),
        ({"GITHUB_SECRET": ""}, "GITHUB_SECRET: is empty: the webhook's secret"),
        ({"HOOKDEPLOY_STATE": "file/state"}, "HOOKDEPLOY_STATE: {0}/file/state cannot be "),
    ],
)
def test_an_environment_that_cannot_be_served_is_one_line_and_exit_1(
    by_environment: Hookdeploy, environ: dict[str, str], complaint: str
) -> None:
    """P93, and P09: nothing listens."""
    (by_environment.directory / "file").touch()
    (by_environment.directory / "state").mkdir(mode=0o700)
    by_environment.change_environ(environ)
    [line] = refusal(by_environment)
    assert line.startswith(f"hookdeploy: environment: {complaint.format(by_environment.directory)}")
    assert not is_listened_on(by_environment.hook_port)


def test_what_is_no_clone_is_told_by_the_name_of_its_variable(
    by_environment: Hookdeploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P93, without a start for each."""
    monkeypatch.chdir(by_environment.directory)
    (by_environment.directory / "state").mkdir(mode=0o700)
    for path, complaint in {
        "": "is empty: the existing clone that is to be kept up to date",
        "gone": f"{by_environment.directory}/gone does not exist",
        "state": f"{by_environment.directory}/state is not a git clone",
        "work": f"{by_environment.directory}/work has no remote named origin",
    }.items():
        with pytest.raises(ConfigError) as refused:
            configfile.load(None, {**by_environment.environ, "REPO_PATH": path})
        [line] = str(refused.value).splitlines()
        assert line.startswith(f"environment: REPO_PATH: {complaint}")


def test_what_fails_after_it_has_gone_into_the_background_is_in_the_log_and_ends_it_with_1(release: Hookdeploy) -> None:
    (release.state / "api.sock").mkdir(parents=True)
    release.state.chmod(0o700)
    done = release.run()
    assert done.returncode == 1
    assert "hookdeploy cannot start" in done.stdout
    assert "Is a directory" in done.stdout
    assert not is_listened_on(release.hook_port)


def test_every_fault_of_a_file_is_named_at_once(release: Hookdeploy) -> None:
    """P93: an unknown key, a wrong type, a path twice, a secret that others can read."""
    config = RELEASE.replace("workers = 1", 'workers = "1"\nwrokers = 2')
    release.configure(config + '[hooks.second]\npath = "/hooks/github"\nsecrets = [{ file = "open.secret" }]\n')
    (release.directory / "open.secret").write_text("can be read by all")
    (release.directory / "open.secret").chmod(0o644)
    said = refusal(release)
    for place in ("apps.web.workers: ", "apps.web.wrokers: ", "hooks.second.path: ", "hooks.second.secrets[0]: "):
        assert len([line for line in said if place in line]) == 1, said
    assert len(said) == 4
    assert not is_listened_on(release.hook_port)


@pytest.mark.parametrize("place", ["server.listen", "apps.web.bind"])
def test_a_port_in_use_is_named_and_nothing_is_left_listening(release: Hookdeploy, place: str) -> None:
    taken, free = release.hook_port, release.app_port
    if place == "apps.web.bind":
        taken, free = free, taken
    with socket.create_server(("127.0.0.1", taken)):
        [line] = refusal(release)
        assert line.startswith(f"hookdeploy: {place}: cannot listen on ")
        assert "Address already in use" in line
        assert str(taken) in line
    assert not is_listened_on(free)


# --- SIGHUP


class Visitors:
    """Some who ask for the page again and again; each must be served."""

    def __init__(self, hookdeploy: Hookdeploy, count: int = 2) -> None:
        self.served = 0
        self.missed = 0
        self._hookdeploy = hookdeploy
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._visit) for _ in range(count)]

    def _visit(self) -> None:
        while not self._over.is_set():
            if self._hookdeploy.page():
                self.served += 1
            else:
                self.missed += 1
            time.sleep(NEXT_VISIT)

    @contextmanager
    def here(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join(PATIENCE)


def reload(hookdeploy: Hookdeploy, config: str) -> None:
    """Have it read another configuration, and wait until it has."""
    said = "the configuration was read again"
    times = hookdeploy.log.count(said)
    hookdeploy.configure(config)
    os.kill(hookdeploy.pid, signal.SIGHUP)
    until(lambda: hookdeploy.log.count(said) > times, f"{said!r} in the log")


def ping(hookdeploy: Hookdeploy, path: str) -> int:
    return int(hookdeploy.send(payloads.ping(), guid=path, path=path, x_github_event=b"ping")["code"])


def test_sighup_takes_a_good_file_without_a_lost_request(release: Hookdeploy) -> None:
    release.start()
    release.first()
    release.wait_for_page("one")
    old = release.api("/apps/web")["server"]["pid"]
    visitors = Visitors(release)
    with visitors.here():
        more = RELEASE.replace("[hooks.github]", '[hooks.github]\npath = "/new"').replace("workers = 1", "workers = 2")
        reload(release, more)
        until(lambda: release.api("/apps/web")["server"]["pid"] != old, "server with two workers")
        until(lambda: old not in processes_of(release.directory), "end of the old server")
        until(lambda: len(processes_of(release.directory)) == 4, "hookdeploy, gunicorn and its two workers")
        assert (ping(release, "/hooks/github"), ping(release, "/new")) == (404, 202)
        until(lambda: visitors.served > 20, "more visitors")
    assert visitors.missed == 0


def test_sighup_refuses_a_bad_file_and_goes_on_with_the_old_one(release: Hookdeploy, origin: Origin) -> None:
    release.start()
    release.first()
    bad = RELEASE.replace("[hooks.github]", '[hooks.github]\npath = "/new"').replace("workers = 1", "wrokers = 2")
    release.configure(bad)
    os.kill(release.pid, signal.SIGHUP)
    release.wait_for_log("the configuration stays as it was: ")
    release.wait_for_log("apps.web.wrokers")
    assert ping(release, "/new") == 404
    release.ended(release.announce(origin.push(site("two"))))
    release.wait_for_page("two")


def test_sighup_moves_an_app_and_the_door_to_other_ports(release: Hookdeploy) -> None:
    release.start()
    release.first()
    old = release.hook_port, release.app_port
    release.hook_port, release.app_port = free_port(), free_port()
    reload(release, RELEASE)
    release.wait_for_page("one")
    assert ping(release, release.hook_path) == 202
    until(lambda: not any(is_listened_on(port) for port in old), "end of the old listeners")


def test_sighup_during_a_build_hands_the_deployment_to_the_app_that_takes_the_name(held: Held, origin: Origin) -> None:
    """The same port all the while: those who come in between wait."""
    hookdeploy = held.hookdeploy
    git(hookdeploy.directory, "clone", "--quiet", str(origin.path), "clone")
    tip = origin.push(site("two"))
    deployment = hookdeploy.announce(tip)
    until(lambda: held.builds == 2, "build that is held")
    reload(hookdeploy, RELEASE.replace('repository = "origin.git"', 'mode = "in-place"\npath = "clone"'))
    done = hookdeploy.ended(deployment)
    assert (done["outcome"], done["revision"]) == ("deployed", tip)
    hookdeploy.wait_for_page("two")
    assert git(hookdeploy.directory / "clone", "rev-parse", "HEAD") == tip


def test_sighup_ends_an_app_that_is_not_configured_any_more(held: Held, origin: Origin) -> None:
    hookdeploy = held.hookdeploy
    deployment = hookdeploy.announce(origin.push(site("two")))
    until(lambda: held.builds == 2, "build that is held")
    reload(hookdeploy, HELD.replace("[apps.web]", "[apps.api]").replace("APP_PORT", str(free_port())))
    done = hookdeploy.ended(deployment)
    assert (done["outcome"], done["reason"]) == ("interrupted", "the app is not configured any more")
    assert [app["name"] for app in hookdeploy.api("/apps")] == ["api"]
    until(lambda: not is_listened_on(hookdeploy.app_port), "end of the app's listener")
    held.let_go()
    [first] = until(lambda: hookdeploy.api("/deployments", app="api"), "deployment of the other app")
    assert hookdeploy.ended(first["id"])["outcome"] == "deployed"


# Surviving our own death.


def server_of(hookdeploy: Hookdeploy) -> int:
    """The gunicorn that serves."""
    return int(until(lambda: hookdeploy.api("/apps")[0]["server"]["pid"], "server"))


def is_alone(hookdeploy: Hookdeploy, server: int, own: int | None = None) -> bool:
    """Whether this gunicorn runs beside hookdeploy, and no other is left."""
    recorded = [int(record.stem) for record in hookdeploy.state.glob("apps/*/servers/*.json")]
    return recorded == [server] and {server, own or hookdeploy.pid} <= processes_of(hookdeploy.directory).keys()


def kept_by(hookdeploy: Hookdeploy) -> list[int]:
    """The keepers of its sockets."""
    return told(hookdeploy.state / "keeper.sock")


@pytest.fixture(params=["release", "in-place"])
def either(request: pytest.FixtureRequest) -> Hookdeploy:
    """A hookdeploy in either mode, that serves its first page."""
    hookdeploy: Hookdeploy = request.getfixturevalue(request.param.replace("-", "_"))
    hookdeploy.start()
    hookdeploy.wait_for_page("one")
    if request.param == "release":
        hookdeploy.first()
    return hookdeploy


def test_a_kill_and_a_start_cost_no_request_and_the_next_push_deploys(either: Hookdeploy, origin: Origin) -> None:
    hookdeploy, visitors = either, Visitors(either)
    server = server_of(hookdeploy)
    with visitors.here():
        for text in ("two", "three"):
            assert hookdeploy.stop(signal.SIGKILL) == -signal.SIGKILL
            asked = visitors.served
            until(lambda asked=asked: visitors.served > asked + 10, "visitors while nobody is there")  # type: ignore[misc]
            hookdeploy.start()
            until(lambda server=server: server_of(hookdeploy) == server, "the same server")  # type: ignore[misc]
            done = hookdeploy.ended(hookdeploy.announce(origin.push(site(text))))
            assert done["outcome"] == "deployed"
            hookdeploy.wait_for_page(text)
            new = server_of(hookdeploy)
            assert new != server
            server = new
            until(lambda server=server: is_alone(hookdeploy, server), "end of the adopted server")  # type: ignore[misc]
    assert visitors.missed == 0
    assert visitors.served > 20


def test_a_delivery_that_comes_while_nobody_is_there_waits_and_is_answered(release: Hookdeploy, origin: Origin) -> None:
    release.start()
    release.first()
    tip = origin.push(site("two"))
    release.stop(signal.SIGKILL)
    body = payloads.encoded(payloads.push(after=tip, repository=payloads.repository("acme/web")))
    headers = {name.decode(): value.decode() for name, value in payloads.headers(body).items()}
    with closing(http.client.HTTPConnection("127.0.0.1", release.hook_port, timeout=PATIENCE)) as forge:
        forge.request("POST", release.hook_path, body, headers)
        release.start()
        answer = forge.getresponse()
        told = json.loads(answer.read())
    assert (answer.status, told["status"]) == (202, "accepted")
    [deployment] = told["deployments"]
    assert release.ended(deployment)["revision"] == tip
    release.wait_for_page("two")


def test_sigquit_ends_it_for_a_restart_that_costs_no_request(in_place: Hookdeploy) -> None:
    """What systemd sends for a restart, as the unit tells it to."""
    in_place.start()
    in_place.wait_for_page("one")
    server, visitors = server_of(in_place), Visitors(in_place)
    with visitors.here():
        assert in_place.stop(signal.SIGQUIT) == 0
        asked = visitors.served
        until(lambda: visitors.served > asked + 10, "visitors while nobody is there")
        in_place.start()
        until(lambda: server_of(in_place) == server, "the same server")
    assert visitors.missed == 0


def test_a_server_that_died_with_hookdeploy_is_started_again(release: Hookdeploy) -> None:
    release.start()
    release.first()
    server = server_of(release)
    release.stop(signal.SIGKILL)
    os.kill(server, signal.SIGKILL)
    until(lambda: is_over(release.directory), "end of the server and its worker")
    release.start()
    release.wait_for_page("one")
    until(lambda: is_alone(release, server_of(release)), "one new server")


def test_sigterm_after_an_adoption_leaves_nothing(release: Hookdeploy) -> None:
    release.start()
    release.first()
    server = server_of(release)
    release.stop(signal.SIGKILL)
    release.start()
    until(lambda: server_of(release) == server, "the same server")
    assert len(kept_by(release)) == 1
    assert release.stop() == -signal.SIGTERM
    assert is_over(release.directory)
    until(lambda: not processes_of(release.directory), "end of the keeper")
    assert not (release.state / "keeper.sock").exists()
    assert not any(is_listened_on(port) for port in (release.hook_port, release.app_port))
    assert list(release.state.glob("apps/*/servers/*")) == []


def told_to_stop_when_all_is_taken(hookdeploy: Hookdeploy, spoilt: str = "") -> subprocess.CompletedProcess[str]:
    """A start to which SIGTERM comes before the reactor runs, and so before Twisted hears any."""
    return subprocess.run(
        (sys.executable, "-c", STOPPED + spoilt + TWISTD[2], "-n", "--pidfile=", "hookdeploy"),
        cwd=hookdeploy.directory,
        env=hookdeploy.environ,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_stop_in_the_moment_of_a_start_leaves_nothing(release: Hookdeploy) -> None:
    """Neither what the start had begun, nor what an earlier hookdeploy has left to it."""
    release.start()
    release.wait_for_page("one")
    release.stop(signal.SIGQUIT)
    assert processes_of(release.directory)
    stopped = told_to_stop_when_all_is_taken(release)
    assert stopped.returncode == -signal.SIGTERM, stopped.stderr
    until(lambda: not processes_of(release.directory), "end of the keeper, for which nobody waits")
    assert not (release.state / "keeper.sock").exists()
    assert list(release.state.glob("apps/*/servers/*")) == []


def test_a_start_that_is_told_twice_to_stop_ends_at_once(release: Hookdeploy) -> None:
    """It may wait there for an old server to drain, and only SIGKILL could end it."""
    stopped = told_to_stop_when_all_is_taken(release, STOPPED)
    assert stopped.returncode == -signal.SIGTERM, stopped.stderr
    assert stopped.stdout == ""
    until(lambda: not processes_of(release.directory), "end of the keeper, for which nobody waits")


def test_an_app_that_fails_to_stop_keeps_no_socket_open(release: Hookdeploy) -> None:
    release.start()
    release.wait_for_page("one")
    release.stop(signal.SIGQUIT)
    stopped = told_to_stop_when_all_is_taken(release, FAILS_WHEN_IT_HAS_STOPPED)
    assert "lost its way" in stopped.stdout
    until(lambda: not processes_of(release.directory), "end of the keeper, for which nobody waits")
    assert not is_listened_on(release.app_port)


def test_a_start_that_fails_when_all_is_taken_leaves_nothing(release: Hookdeploy) -> None:
    failed = release.run("-n", "--pidfile=", "--logfile=no/such/directory/log")
    assert "No such file or directory" in failed.stderr
    until(lambda: not processes_of(release.directory), "end of the keeper, for which nobody waits")
    assert not (release.state / "keeper.sock").exists()
    assert not is_listened_on(release.app_port)


def test_a_keeper_that_was_killed_is_replaced_at_once_and_a_kill_of_ours_then_costs_nothing(
    release: Hookdeploy, origin: Origin
) -> None:
    release.start()
    release.first()
    server, visitors = server_of(release), Visitors(release)
    [keeper] = kept_by(release)
    with visitors.here():
        os.kill(keeper, signal.SIGKILL)
        release.wait_for_log("the keeper of the sockets has died")
        release.wait_for_log("a new keeper holds the sockets")
        release.stop(signal.SIGKILL)
        release.start()
        until(lambda: server_of(release) == server, "the same server")
        assert release.ended(release.announce(origin.push(site("two"))))["outcome"] == "deployed"
        release.wait_for_page("two")
    assert visitors.missed == 0
    assert len(kept_by(release)) == 1


def test_without_a_keeper_a_server_that_is_ours_gives_its_port_back(release: Hookdeploy, origin: Origin) -> None:
    """Both were killed at once, as when the machine is out of memory: better a moment's refusal than no start."""
    release.start()
    release.first()
    server = server_of(release)
    [keeper] = kept_by(release)
    os.kill(release.pid, signal.SIGSTOP)  # so that it cannot replace the keeper first
    until(lambda: is_stopped(release.pid), "stop")
    os.kill(keeper, signal.SIGKILL)
    release.stop(signal.SIGKILL)
    assert release.page() == "one"
    release.start()
    assert "127.0.0.1" in release.log.partition("was killed together with hookdeploy")[2]
    release.wait_for_page("one")
    until(lambda: is_alone(release, server_of(release)), "one new server")
    assert server_of(release) != server
    assert release.ended(release.announce(origin.push(site("two"))))["outcome"] == "deployed"
    release.wait_for_page("two")


def test_sigusr2_executes_it_again_and_costs_no_request(either: Hookdeploy, origin: Origin) -> None:
    hookdeploy, visitors = either, Visitors(either)
    server, pid = server_of(hookdeploy), hookdeploy.pid
    with visitors.here():
        for times, text in enumerate(("two", "three"), start=2):
            os.kill(pid, signal.SIGUSR2)
            until(lambda times=times: hookdeploy.log.count("takes hooks on") == times, "second beginning")  # type: ignore[misc]
            assert hookdeploy.api("/server")["pid"] == pid
            assert server_of(hookdeploy) == server
            done = hookdeploy.ended(hookdeploy.announce(origin.push(site(text))))
            assert done["outcome"] == "deployed"
            hookdeploy.wait_for_page(text)
            server = server_of(hookdeploy)
            until(lambda server=server: is_alone(hookdeploy, server), "end of the adopted server")  # type: ignore[misc]
    assert visitors.missed == 0
    assert hookdeploy.stop() == -signal.SIGTERM
    until(lambda: not processes_of(hookdeploy.directory), "end of all its processes")


def test_deliveries_during_sigusr2_are_all_answered(release: Hookdeploy) -> None:
    release.start()
    release.first()
    answers: list[int] = []
    over = threading.Event()

    def deliver() -> None:
        while not over.is_set():
            answers.append(ping(release, release.hook_path))

    with ThreadPoolExecutor(1) as forge:
        delivering = forge.submit(deliver)
        try:
            os.kill(release.pid, signal.SIGUSR2)
            until(lambda: release.log.count("takes hooks on") == 2, "second beginning")
            count = len(answers)
            until(lambda: len(answers) > count + 5 or delivering.done(), "answers of the new one")
        finally:
            over.set()
        delivering.result(PATIENCE)
    assert set(answers) == {202}


def test_sigusr2_during_a_build_begins_it_again(held: Held, origin: Origin) -> None:
    hookdeploy = held.hookdeploy
    tip = origin.push(site("two"))
    deployment = hookdeploy.announce(tip)
    until(lambda: held.builds == 2, "build that is held")
    os.kill(hookdeploy.pid, signal.SIGUSR2)
    until(lambda: held.builds == 3, "build that is held again")
    the_builder(hookdeploy)
    assert hookdeploy.page() == "one"
    held.let_go()
    done = hookdeploy.ended(deployment)
    assert (done["outcome"], done["revision"], done["attempts"]) == ("deployed", tip, 2)
    until(lambda: is_alone(hookdeploy, server_of(hookdeploy)), "end of the old server")


def test_sigusr2_in_the_background_keeps_the_server_and_the_pid_file_true(in_place: Hookdeploy, origin: Origin) -> None:
    """twistd goes into the background anew, so that the pid is another one; the file says which."""
    directory, visitors = in_place.directory, Visitors(in_place)
    pidfile, logfile = directory / "hookdeploy.pid", directory / "hookdeploy.log"
    assert in_place.run(f"--pidfile={pidfile}", f"--logfile={logfile}").returncode == 0

    def own() -> int:
        return int(until(lambda: pidfile.read_text() if pidfile.exists() else "", "pid file"))

    try:
        in_place.wait_for_page("one")
        server = server_of(in_place)
        with visitors.here():
            for times, text in enumerate(("two", "three"), start=2):
                os.kill(own(), signal.SIGUSR2)
                until(lambda times=times: logfile.read_text().count("takes hooks on") == times, "second beginning")  # type: ignore[misc]
                assert in_place.api("/server")["pid"] == own()
                assert server_of(in_place) == server
                assert in_place.ended(in_place.announce(origin.push(site(text))))["outcome"] == "deployed"
                in_place.wait_for_page(text)
                server = server_of(in_place)
                until(lambda server=server: is_alone(in_place, server, own()), "end of the adopted server")  # type: ignore[misc]
        assert visitors.missed == 0
    finally:
        os.kill(own(), signal.SIGTERM)
        until(lambda: not processes_of(directory), "end of all its processes")
    assert not pidfile.exists()


def test_a_kill_at_any_moment_of_a_swap_ends_with_one_server_and_the_newest_page(
    release: Hookdeploy, origin: Origin
) -> None:
    """P83: with nothing that was pushed after it. For the other moments see test_recovery.py."""
    release.start()
    release.first()
    for text, moment in (("two", "checking"), ("three", "swapping")):
        tip = origin.push(site(text))
        deployment = release.announce(tip)
        until(partial(has_come_to, release, deployment, moment), moment)
        release.stop(signal.SIGKILL)
        release.start()
        done = release.ended(deployment)
        assert done["outcome"] in ("deployed", "unchanged"), done
        assert done["revision"] == tip
        release.wait_for_page(text)
        until(lambda: is_alone(release, server_of(release)), "only one server")
        assert release.api("/apps/web")["revision"] == tip


def has_come_to(hookdeploy: Hookdeploy, deployment: str, phase: str) -> bool:
    return phase in [entered["phase"] for entered in hookdeploy.api(f"/deployments/{deployment}")["phases"]]
