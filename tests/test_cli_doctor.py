"""``hookdeploy doctor``: what is well is said to be well, and each thing that is not is found, with what mends it.

git, ssh and its server, sockets, files and modes are real; GitHub is a server of the test's on 127.0.0.1.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests import certs, githubapi, installed, sshd
from tests.gitorigin import NOBODY, Origin, by_root
from tests.installed import RELEASE, Hookdeploy, free_port, is_listened_on
from tests.proctable import runs
from tests.test_serverrecords import LAUNCH
from tests.waiting import PATIENCE, until
from twisted_hook import addresses, commands, leftovers, serverrecords
from twisted_hook.cli import doctor, hookdeploy
from twisted_hook.cli.doctor import git, machine, ports, served, service, webhook
from twisted_hook.cli.doctor.finding import Finding, Status
from twisted_hook.cli.doctor.patient import LIMIT, Patient, Running, meet, run_to_its_end
from twisted_hook.config import AppConfig
from twisted_hook.keeping import Keeper
from twisted_hook.model import Command, Environment

OK, WARNING, PROBLEM, SKIPPED = Status

CONFIG = """
state = "state"
[server]
listen = ["tcp:{port}:interface=127.0.0.1"]
{public}
[hooks.github]
secrets = [{{ file = "hook.secret" }}]
{hook}
[apps.blog]
hook = "github"
repository = "{url}"
names = ["acme/blog"]
bind = "127.0.0.1:{bind}"
{app}
"""


class Place:
    """A directory with a configuration in it, and what it deploys."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.origin = Origin.create(directory / "made")
        self.port, self.bind = free_port(), free_port()
        (directory / "hook.secret").touch(mode=0o600)
        (directory / "hook.secret").write_text("0123456789abcdef0123")

    @property
    def config(self) -> Path:
        return self.directory / "hookdeploy.toml"

    def write(self, *, url: str | None = None, public: str = "", hook: str = "", app: str = "") -> None:
        text = CONFIG.format(
            port=self.port, bind=self.bind, url=url or self.origin.url, public=public, hook=hook, app=app
        )
        self.config.write_text(text)
        self.config.chmod(0o644)

    def patient(self) -> Patient:
        return meet(self.config, None, os.environ)

    def app(self) -> AppConfig:
        config = self.patient().config
        assert config is not None
        return config.apps["blog"]

    def findings(self, look: Callable[..., Iterator[Finding]]) -> dict[str, Finding]:
        """What a check of the app finds, by name."""
        return {finding.check: finding for finding in look(self.patient(), self.app())}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    tmp_path.chmod(0o755)
    made = Place(tmp_path)
    made.write()
    return made


@pytest.fixture(autouse=True)
def time_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at a server of the test's own is not up because the machine is busy."""
    monkeypatch.setattr("twisted_hook.cli.doctor.patient.LIMIT", PATIENCE)
    monkeypatch.setattr(git, "LIMIT", PATIENCE)


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(hookdeploy, ["doctor", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def told(result: Result) -> dict[str, dict[str, str]]:
    found: list[dict[str, str]] = json.loads(result.stdout)
    assert all(set(each) == {"check", "status", "finding", "remedy"} for each in found)
    assert all(each["remedy"] for each in found if each["status"] in {"warning", "problem"}), found
    return {each["check"]: each for each in found}


# --- the whole


def test_a_good_place_has_no_problem_though_no_server_runs(place: Place) -> None:
    before = sorted(place.directory.rglob("*"))
    result = run("--json")
    found = told(result)
    assert result.exit_code == 0, result.output
    statuses = {name: each["status"] for name, each in found.items()}
    for name in ("user", "configuration", "python", "permissions", "disk", "remote of blog", "credentials of blog"):
        assert statuses[name] == "ok", found[name]
    assert found["server"] == {
        "check": "server",
        "status": "skipped",
        "finding": f"no server runs in {place.directory}/state",
        "remedy": "",
    }
    assert sorted(place.directory.rglob("*")) == before, "nothing is made and nothing is changed"


def test_a_problem_is_shown_with_what_mends_it_and_ends_with_1(place: Place) -> None:
    (place.directory / "hook.secret").chmod(0o644)
    result = run("--config", str(place.config))
    assert result.exit_code == 1
    assert f"→ chmod 600 {place.directory}/hook.secret" in result.stdout
    assert "problem" in result.stdout.splitlines()[-1]


def test_without_any_configuration_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_SECRET", raising=False)
    monkeypatch.delenv("REPO_PATH", raising=False)
    result = run("--json")
    assert result.exit_code == 1
    assert told(result)["configuration"]["remedy"] == "hookdeploy init"


def test_a_faulty_file_is_a_problem_for_each_fault_and_all_else_is_looked_at(place: Place) -> None:
    place.write(app="colour = 1\nbranch = 'a..b'")
    result = run("--json")
    found = [each for each in json.loads(result.stdout) if each["check"] == "configuration"]
    assert [each["finding"].partition(":")[0] for each in found] == ["apps.blog.colour", "apps.blog.branch"] or {
        each["finding"].partition(":")[0] for each in found
    } == {"apps.blog.colour", "apps.blog.branch"}
    assert told(result)["disk"]["status"] == "ok"


def test_one_check_that_breaks_does_not_hide_the_others(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Patient) -> Iterator[Finding]:
        raise ZeroDivisionError("\x1b[31mred")

    monkeypatch.setattr(machine, "disk", broken)
    found = told(run("--json"))
    assert found["disk"]["status"] == "warning"
    assert found["disk"]["finding"].endswith("ZeroDivisionError: red")
    assert found["python"]["status"] == "ok"


def test_a_program_that_hangs_is_ended_with_its_family(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    command = Command("sh", ("sh", "-c", "sleep 1000 & wait"), {"PATH": os.environ["PATH"]}, timeout=0.2)
    result = run_to_its_end(command, None)  # ends only if the grandchild, which has the pipe, has ended too
    assert (result.timed_out, result.ok) == (True, False)
    assert command.timeout < LIMIT


# --- as whom


def test_what_has_left_the_family_with_the_pipe_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a connection that ssh keeps for the next one (ControlPersist)."""
    held = tmp_path / "held"
    script = f"setsid sh -c 'echo $$ > {held}; exec sleep 600' & sleep 600"
    communicate = subprocess.Popen.communicate

    def when_it_has_left(process: subprocess.Popen[bytes], *, timeout: float) -> tuple[bytes, bytes]:
        until(lambda: held.exists() and held.read_text(), "leaving of the family")
        return communicate(process, timeout=timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", when_it_has_left)
    try:
        result = run_to_its_end(Command("sh", ("sh", "-c", script), dict(os.environ), timeout=0.2), None)
        assert (result.timed_out, runs(int(held.read_text()))) == (True, True)
    finally:
        os.kill(int(held.read_text()), signal.SIGKILL)


@by_root
def test_root_looks_as_the_account_that_has_the_state_directory(place: Place) -> None:
    (place.directory / "state").mkdir(mode=0o700)
    os.chown(place.directory / "state", NOBODY, NOBODY)
    patient = place.patient()
    assert patient.owner is not None
    assert (patient.user, patient.becomes) == ("nobody", patient.owner)
    assert patient.ask("id", "-un").stdout.strip() == b"nobody"
    assert patient.as_user("git version") == "sudo -u nobody -H sh -c 'git version'"
    (finding,) = machine.user(patient)
    assert (finding.status, "tried as nobody" in finding.finding) == (OK, True)
    secret = place.directory / "hook.secret"
    (faulty,) = machine.configuration(patient)
    assert faulty.status is PROBLEM, "nobody may not read root's secret"
    assert str(secret) in faulty.finding or "hookdeploy.toml" in faulty.finding


def test_who_is_somebody_else_is_told_to_be_root(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.directory / "state").mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    (finding,) = machine.user(place.patient())
    assert finding.status is WARNING
    assert finding.remedy.startswith("sudo ")
    assert finding.remedy.endswith(f"doctor --config {place.config}")


# --- git


@pytest.mark.parametrize(
    ("said", "backported", "status"),
    [
        ("git version 2.50.1", False, OK),
        ("git version 2.51.0", False, OK),
        ("git version 3.0.0", False, OK),
        ("git version 2.43.7", False, OK),
        ("git version 2.47.3.windows.1", False, OK),
        ("git version 2.50.0", False, WARNING),
        ("git version 2.43.6", False, WARNING),
        ("git version 2.39.5 (Apple Git-154)", False, WARNING),
        ("git version 2.39.5", True, OK),
        ("git version 2.30.9", True, PROBLEM),
        ("gitten", False, WARNING),
    ],
)
def test_a_git_with_a_known_hole_is_named(said: str, backported: bool, status: Status) -> None:
    assert git.judge_version(said, backported=backported).status is status


def test_a_branch_that_is_not_there_is_named(place: Place) -> None:
    place.write(app='branch = "trunk"')
    finding = place.findings(git.remotes)["remote of blog"]
    assert (finding.status, "has no branch trunk" in finding.finding) == (PROBLEM, True)
    assert "git ls-remote --heads" in finding.remedy


def test_a_remote_that_is_not_there_is_explained_in_the_servers_own_words(place: Place) -> None:
    place.write(url=str(place.directory / "nowhere.git"))
    finding = place.findings(git.remotes)["remote of blog"]
    assert finding.status is PROBLEM
    assert finding.finding.startswith("there is no git repository at the remote's address")


def test_what_a_remote_says_stays_one_line(place: Place) -> None:
    """Its words could otherwise pass for a finding of ours."""
    place.write(url="ssh://git@127.0.0.1:1/acme/blog.git")
    finding = told(run("--json"))["remote of blog"]
    assert finding["finding"].startswith("the remote refused the connection (")
    assert "\n" not in finding["finding"] + finding["remedy"]


def test_a_password_in_the_origin_of_a_clone_is_found_and_not_shown(place: Place) -> None:
    """T26."""
    clone = place.directory / "clone"
    subprocess.run(["git", "clone", "-q", place.origin.url, clone], check=True)
    url = "https://ada:canary-of-ada@127.0.0.1:1/acme/blog.git"
    subprocess.run(["git", "-C", clone, "remote", "set-url", "origin", url], check=True)
    text = place.config.read_text().replace(
        f'repository = "{place.origin.url}"', f'mode = "in-place"\npath = "{clone}"'
    )
    place.config.write_text(text)
    findings = place.findings(git.remotes)
    assert findings["credentials of blog"].status is WARNING
    assert "set-url origin https://127.0.0.1:1/acme/blog.git" in findings["credentials of blog"].remedy
    assert findings["remote of blog"].status is PROBLEM
    assert "canary" not in str(findings)


# --- ssh


@pytest.fixture
def ssh(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[sshd.Sshd]:
    """A server that is known to ssh, and lets in the key that the app has."""
    with sshd.serving(place.directory / "sshd") as server:
        known = place.directory / "known_hosts"
        known.write_text(server.known_hosts)
        # ssh goes by the account's home, which is not the test's to change.
        monkeypatch.setattr(commands, "_SSH", f"{commands._SSH} -F none -oUserKnownHostsFile={known}")
        place.write(url=server.url(place.origin.bare), app=f'deploy_key = "{server.key}"')
        yield server


def test_over_ssh_all_is_well(place: Place, ssh: sshd.Sshd) -> None:
    findings = place.findings(git.remotes)
    assert [finding.status for finding in findings.values()] == [OK, OK, OK], findings
    assert findings["deploy key of blog"].finding.startswith(f"ssh shows {ssh.key} (SHA256:")
    assert "has heads/main" in findings["remote of blog"].finding


def test_a_key_that_is_refused_is_shown_to_be_pasted(place: Place, ssh: sshd.Sshd) -> None:
    key = sshd.new_key(place.directory / "other")
    place.write(url=ssh.url(place.origin.bare), app=f'deploy_key = "{key}"')
    finding = place.findings(git.remotes)["remote of blog"]
    assert finding.status is PROBLEM
    assert finding.finding.startswith("the remote refused the deploy key")
    assert key.with_name("other.pub").read_text().strip() in finding.remedy


def test_a_host_that_is_not_known_is_to_be_scanned_and_compared(place: Place, ssh: sshd.Sshd) -> None:
    (place.directory / "known_hosts").write_text("")
    finding = place.findings(git.remotes)["remote of blog"]
    assert finding.status is PROBLEM
    assert finding.finding.startswith("the remote's host key is not in known_hosts")
    assert f"ssh-keyscan -p {ssh.port} -t ed25519 127.0.0.1" in finding.remedy
    assert "compare the fingerprint" in finding.remedy


def test_a_host_with_another_key_than_before_is_not_waved_through(place: Place, ssh: sshd.Sshd) -> None:
    public = sshd.new_key(place.directory / "stranger").with_name("stranger.pub").read_text()
    (place.directory / "known_hosts").write_text(f"[127.0.0.1]:{ssh.port} {public}")
    finding = place.findings(git.remotes)["remote of blog"]
    assert finding.status is PROBLEM
    assert finding.remedy.startswith("find out why its key is another one now")


def test_a_key_that_ssh_would_not_use_is_named(place: Place, ssh: sshd.Sshd) -> None:
    def judged(key: Path) -> Finding:
        place.write(url=ssh.url(place.origin.bare), app=f'deploy_key = "{key}"')
        return place.findings(git.remotes)["deploy key of blog"]

    locked = judged(sshd.new_key(place.directory / "locked", "a passphrase"))
    assert (locked.status, "has a passphrase" in locked.finding) == (PROBLEM, True)
    open_to_all = sshd.new_key(place.directory / "open")
    open_to_all.chmod(0o644)
    finding = judged(open_to_all)
    assert (finding.status, finding.remedy) == (PROBLEM, f"chmod 600 {open_to_all}")
    (place.directory / "text").write_text("no key")
    (place.directory / "text").chmod(0o600)
    assert "is no private key" in judged(place.directory / "text").finding
    missing = judged(place.directory / "missing")
    assert (missing.status, "ssh-keygen -q -t ed25519" in missing.remedy) == (PROBLEM, True)


def test_without_a_key_of_its_own_an_app_shows_what_ssh_itself_would(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient, remote = place.patient(), git.Remote(place.app(), "ssh://git@127.0.0.1:2222/acme/blog.git")
    assert (remote.destination, remote.port) == (("-p", "2222", "git@127.0.0.1"), ("-p", "2222"))
    assert git._configured_keys(patient, remote), "ssh -G names some"
    monkeypatch.setattr(git, "_configured_keys", lambda patient, remote: [sshd.new_key(place.directory / "id_ed25519")])
    assert git.deploy_key(patient, remote).finding.status is OK
    monkeypatch.setattr(git, "_configured_keys", lambda patient, remote: [])
    finding = git.deploy_key(patient, remote).finding
    assert (finding.status, "ssh-keygen -q -t ed25519 -N ''" in finding.remedy) == (PROBLEM, True)


def test_github_has_a_page_for_its_keys_and_for_its_fingerprints(place: Place) -> None:
    remote = git.Remote(place.app(), "git@github.com:acme/blog.git")
    assert "https://github.com/acme/blog/settings/keys/new" in git._to_paste(remote, "ssh-ed25519 AAAA")
    assert git.FINGERPRINTS in git._keyscan(place.patient(), remote)
    assert remote.destination == ("git@github.com",)


# --- a server that runs


def test_of_a_running_server_all_is_well_and_it_deploys_with_the_apps_own_key(
    release: Hookdeploy, origin: installed.Origin
) -> None:
    """The ssh that knows the host is on the server's PATH alone: doctor asks in the server's environment."""
    directory = release.directory
    with sshd.serving(directory / "sshd") as server:
        (directory / "known_hosts").write_text(server.known_hosts)
        wrapper = directory / "bin" / "ssh"
        wrapper.parent.mkdir()
        real = shutil.which("ssh")
        wrapper.write_text(f'#!/bin/sh\nexec {real} -F none -oUserKnownHostsFile={directory}/known_hosts "$@"\n')
        wrapper.chmod(0o755)
        release.change_environ({"PATH": f"{wrapper.parent}:{os.environ['PATH']}"})
        repository = f'repository = "{server.url(origin.path)}"\ndeploy_key = "{server.key}"'
        public = f'[server]\npublic_url = "http://127.0.0.1:{release.hook_port}"'
        told_where = RELEASE.replace("[server]", public)
        release.configure(told_where.replace('repository = "origin.git"', repository))
        release.start()
        assert release.first()["outcome"] == "deployed"
        result = run("--json", "--config", str(directory / "hookdeploy.toml"))
        found = told(result)
        assert result.exit_code == 0, result.output
        assert run("--state", str(release.state)).exit_code == 0, "the server tells where its configuration is"
    door = f"tcp:{release.hook_port}:interface=127.0.0.1"
    assert found["server"]["finding"].endswith(f"runs (pid {release.pid})")
    for name in (
        "deploy key of web",
        "remote of web",
        "gunicorn of web",
        "health of web",
        f"answer of {door}",
        "public address",
    ):
        assert found[name]["status"] == "ok", found[name]
    for name in (f"door {door}", "bind of web"):
        assert found[name]["finding"] == f"hookdeploy listens (pid {release.pid})"


# --- the machine


@pytest.mark.parametrize(
    ("free", "files_free", "files", "status"),
    [(1000, 10**6, 10**7, OK), (1000, 0, 0, OK), (99, 10**6, 10**7, PROBLEM), (150, 10**6, 10**7, WARNING),
     (1000, 999, 10**7, PROBLEM), (1000, 9_999, 10**7, WARNING)],
)  # fmt: skip
def test_a_disk_that_is_nearly_full_is_found(free: int, files_free: int, files: int, status: Status) -> None:
    assert machine.judge_disk(Path("/state"), free, 100, files_free, files).status is status


def test_the_floor_that_is_configured_is_the_one_that_counts(place: Place) -> None:
    place.write(public="min_free = 1000000000000000")
    (finding,) = machine.disk(place.patient())
    assert finding.status is PROBLEM


def test_every_file_that_others_may_read_or_change_is_named(place: Place) -> None:
    """T45."""
    state = place.directory / "state"
    state.mkdir(mode=0o755)
    for name in ("token", "api.sock"):
        (state / name).touch()
        (state / name).chmod(0o644)
    place.config.chmod(0o666)
    (place.directory / "hook.secret").chmod(0o640)
    remedies = {finding.remedy for finding in machine.permissions(place.patient())}
    assert remedies == {
        f"chmod 700 {state}",
        f"chmod 600 {state}/token",
        f"chmod 600 {state}/api.sock",
        f"chmod go-w {place.config}",
        f"chmod 600 {place.directory}/hook.secret",
    }


@by_root
def test_a_file_of_somebody_else_is_named(place: Place) -> None:
    os.chown(place.config, NOBODY, NOBODY)
    (finding,) = machine.permissions(place.patient())
    assert finding.remedy == f"sudo chown {getpass.getuser()} {place.config}"


@pytest.mark.parametrize(("off", "status"), [(0, OK), (-10, OK), (60, WARNING), (-600, PROBLEM), (600, PROBLEM)])
def test_the_clock_is_compared_with_that_of_the_forge(place: Place, off: int, status: Status) -> None:
    with githubapi.saying({}, off=off) as (api, _):
        place.write(hook=f'api = "{api}"')
        (finding,) = machine.clock(place.patient())
    assert (finding.check, finding.status) == ("clock", status)


def test_without_a_forge_systemd_knows_of_the_clock() -> None:
    assert [machine.judge_synchronised(said).status for said in ("yes", "no", "")] == [OK, WARNING, SKIPPED]


# --- ports


def test_a_port_that_another_program_has_is_named_with_that_program(place: Place) -> None:
    (free,) = ports.doors(place.patient())
    assert free.status is OK
    with socket.create_server(("127.0.0.1", place.port)):
        (taken,) = ports.doors(place.patient())
    assert taken.status is PROBLEM
    assert f"pid {os.getpid()}, " in taken.finding
    assert f"sport = :{place.port}" in taken.remedy


@contextmanager
def kept(state: Path, port: int) -> Iterator[None]:
    """A port whose socket nobody has but the keeper of this state directory, as after the death of its hookdeploy."""
    state.mkdir()
    keeper = Keeper(state / "keeper.sock")
    keeper.reach()
    with socket.create_server(("127.0.0.1", port)) as listener:
        keeper.hold("door", listener)
    os.close(keeper._held.pop("door"))
    try:
        yield
    finally:
        keeper.end()
        until(lambda: not is_listened_on(port), "end of the keeper")


def test_the_keeper_of_another_state_directory_has_taken_the_port(place: Place) -> None:
    """One that keeps the port for this hookdeploy is none of the others."""
    for state, status in ((place.directory / "elsewhere", PROBLEM), (place.directory / "state", OK)):
        with kept(state, place.port):
            (door,) = ports.doors(place.patient())
        assert door.status is status, door
        assert (f"keeper of {state}" in door.finding) == (status is PROBLEM)


def test_the_servers_that_an_earlier_run_has_left_are_told_from_others(place: Place) -> None:
    """Their workers too: each master has a session of its own."""
    servers = place.directory / "state" / "apps" / "blog" / "servers"
    servers.mkdir(parents=True)
    place.write(app='wsgi = "wsgi:application"')
    with socket.create_server(("127.0.0.1", place.bind)) as listener:
        sleeping = [sys.executable, "-c", "import os, sys; os.fork(); sys.stdin.read()"]
        with subprocess.Popen(
            sleeping, stdin=subprocess.PIPE, pass_fds=[listener.fileno()], start_new_session=True
        ) as server:
            listener.close()
            assert place.findings(ports.binds)["bind of blog"].status is PROBLEM
            started = leftovers.start_time(server.pid)
            assert started is not None
            serverrecords.write(servers, serverrecords.Record(server.pid, started, (), "", LAUNCH))
            assert place.findings(ports.binds)["bind of blog"].status is OK
            server.communicate(b"")


def test_the_port_of_the_dashboard_is_looked_at_too(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with place.config.open("a") as file:
            file.write(f'[dashboard]\nlisten = ["tcp:{port}:interface=127.0.0.1"]\n')
        (door, dashboard) = ports.doors(place.patient())
    assert (door.status, dashboard.status) == (OK, PROBLEM)
    assert dashboard.check.startswith("dashboard tcp:")
    assert "dashboard.listen" in dashboard.remedy


def test_the_kernels_table_is_read() -> None:
    with socket.create_server(("127.0.0.3", 0)) as listener:
        assert listener.getsockname() in {address for address, _ in ports.listening()}


@pytest.mark.parametrize(
    ("shown", "host"),
    [
        ("0300007F", "127.0.0.3"),
        ("00000000", ""),
        ("00000000000000000000000000000000", ""),
        ("00000000000000000000000001000000", "::1"),
        ("0000000000000000FFFF00000100007F", "127.0.0.1"),
    ],
)
@pytest.mark.skipif(sys.byteorder != "little", reason="as such machines show it")
def test_the_kernel_shows_addresses_in_the_order_of_the_machine(shown: str, host: str) -> None:
    assert ports._host(shown) == host


@pytest.mark.parametrize(
    ("sockets", "held_by", "running", "status"),
    [
        ([1], [ports.Holder(7, "python twistd")], 7, OK),
        ([1], [ports.Holder(8, "nginx")], 7, PROBLEM),
        ([1], [ports.Holder(8, "python keeper.py", ours=True)], None, OK),
        ([1], [ports.Holder(8, "python keeper.py", ours=True), ports.Holder(9, "gunicorn", ours=True)], None, OK),
        ([1], [ports.Holder(8, "python keeper.py", ours=True), ports.Holder(9, "nginx")], None, PROBLEM),
        ([1], [ports.Holder(8, "python keeper.py", keeps=Path("/other"))], None, PROBLEM),
        ([1], [], 7, OK),
        ([1], [], None, PROBLEM),
        ([], [], 7, PROBLEM),
        ([], [], None, OK),
    ],
)
def test_whose_the_port_is_decides(
    sockets: list[int], held_by: list[ports.Holder], running: int | None, status: Status
) -> None:
    found = ports.judge("door", 8000, sockets, held_by, running=running, elsewhere="there", user="ada")
    assert found.status is status


def test_a_low_port_wants_a_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_lowest_port", lambda: 1024)
    finding = ports.judge("door", 80, [], [], running=None, elsewhere="there", user="ada")
    assert "CAP_NET_BIND_SERVICE" in finding.remedy
    assert ports.judge("door", 80, [], [], running=None, elsewhere="there", user="root").status is OK


# --- what is served


def environment_with(directory: Path, gunicorn: str | None) -> Path:
    (directory / "bin").mkdir(parents=True)
    (directory / "bin" / "python").symlink_to(sys.executable)
    if gunicorn:
        (directory / "lib" / "python3.11" / "site-packages" / f"gunicorn-{gunicorn}.dist-info").mkdir(parents=True)
    return directory


@pytest.mark.parametrize(
    ("version", "status"), [("27.0.1", OK), ("27.1.0", OK), ("28.0", OK), ("26.9.9", WARNING), ("23.0.0", WARNING)]
)
def test_the_gunicorn_of_the_app_is_looked_at_and_not_run(place: Place, version: str, status: Status) -> None:
    place.write(app='wsgi = "wsgi:application"\nbuild = []')
    release = place.directory / "state" / "apps" / "blog" / "releases" / "1"
    release.mkdir(parents=True)
    (release / "wsgi.py").write_text("raise SystemExit('it was run')")
    (release.parent.parent / "current").symlink_to(release)
    environment_with(release / ".venv", version)
    finding = place.findings(served.gunicorn)["gunicorn of blog"]
    assert (finding.status, version in finding.finding) == (status, True)


def test_an_app_without_gunicorn_borrows_ours() -> None:
    finding = served.judge_gunicorn("gunicorn", Environment(Path("/v/bin/python"), Path("/v")), ours="27.0.1")
    assert (finding.status, "borrowed from hookdeploy" in finding.finding) == (OK, True)


def test_an_environment_that_is_gone_is_a_problem(place: Place) -> None:
    place.write(app='wsgi = "wsgi:application"')
    app = place.directory / "state" / "apps" / "blog"
    (app / "releases" / "1").mkdir(parents=True)
    (app / "releases" / "1" / "requirements.txt").write_text("flask\n")
    (app / "environments").mkdir()
    (app / "current").symlink_to(app / "releases" / "1")
    assert place.findings(served.gunicorn)["gunicorn of blog"].status is PROBLEM


@pytest.mark.parametrize(
    ("health", "answer", "status"),
    [("/healthz", 200, OK), ("/healthz", 302, OK), ("/healthz", 404, PROBLEM), (None, 404, OK), (None, 500, PROBLEM)],
)
def test_the_health_path_is_asked(health: str | None, answer: int, status: Status) -> None:
    app = AppConfig(name="blog", hook="github", wsgi="wsgi:application", health=health)
    assert served.judge_health("health", app, answer).status is status


# --- the forge


URL = "https://deploy.example.com/hooks/github"
PAGE = "https://github.com/acme/blog/settings/hooks"


def judged(*found: dict[str, Any], deliveries: list[dict[str, Any]] | None = None) -> list[Finding]:
    return list(webhook.judge("webhook", found, deliveries or [], page=PAGE, address=URL))


def hook_with(**changed: Any) -> dict[str, Any]:
    made = githubapi.webhook(7, URL)
    config = {**made["config"], **changed.pop("config", {})}  # type: ignore[dict-item]
    return {**made, "config": config, **changed}


def test_a_webhook_that_is_as_it_should_be_is_well() -> None:
    good = githubapi.attempt(1, "a", code=202)
    assert [finding.status for finding in judged(hook_with())] == [OK]
    assert [finding.status for finding in judged(hook_with(), deliveries=[good])] == [OK]


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        ({"active": False}, PROBLEM, "tick Active"),
        ({"config": {"content_type": "form"}}, PROBLEM, "application/json"),
        ({"events": ["issues"]}, PROBLEM, "push event"),
        ({"config": {"insecure_ssl": "1"}}, WARNING, "SSL verification"),
        ({"config": {"secret": ""}}, PROBLEM, "paste it"),
    ],
)
def test_a_webhook_that_is_set_wrongly_is_named(changed: dict[str, Any], status: Status, words: str) -> None:
    (finding,) = judged(hook_with(**changed))
    assert finding.status is status
    assert words in finding.remedy
    assert f"{PAGE}/7" in finding.remedy


def test_no_webhook_is_a_problem_and_two_are_a_warning() -> None:
    assert [finding.status for finding in judged()] == [PROBLEM]
    assert [finding.status for finding in judged(hook_with(), hook_with())] == [WARNING]


@pytest.mark.parametrize(("code", "words"), [(401, "the secret differs"), (404, "payload URL"), (502, "firewall")])
def test_the_last_deliveries_tell_what_is_wrong(code: int, words: str) -> None:
    attempts = [githubapi.attempt(3, "c", code=code), githubapi.attempt(2, "b", code=code)]
    attempts.append(githubapi.attempt(1, "a", code=202))
    (finding,) = judged(hook_with(), deliveries=attempts)
    assert (finding.status, "last 2 deliveries failed" in finding.finding) == (PROBLEM, True)
    assert words in finding.remedy


def test_github_is_asked_with_the_token_of_the_hook(place: Place) -> None:
    token = place.directory / "token"
    token.touch(mode=0o600)
    token.write_text("ghp_canary\n")
    listed: dict[str, Any] = {
        "GET /repos/acme/blog/hooks": (200, [githubapi.webhook(7, URL), githubapi.webhook(8, "https://else.where/")]),
        "GET /repos/acme/blog/hooks/7/deliveries": (200, [githubapi.attempt(1, "a", code=202)]),
    }
    with githubapi.saying(listed) as (api, asked):
        place.write(
            public='public_url = "https://deploy.example.com"', hook=f'api = "{api}"\ntoken = {{ file = "token" }}'
        )
        patient = place.patient()
        assert patient.config is not None
        (finding,) = webhook.webhooks(patient, patient.config.hooks[0], patient.config.apps["blog"])
        assert finding.status is OK, finding
        assert [path for _, path, _ in asked] == ["/repos/acme/blog/hooks", "/repos/acme/blog/hooks/7/deliveries"]
        listed["GET /repos/acme/blog/hooks"] = (401, {"message": "Bad credentials for ghp_canary"})
        (finding,) = webhook.webhooks(patient, patient.config.hooks[0], patient.config.apps["blog"])
    assert (finding.status, "401" in finding.finding, "canary" in finding.finding) == (WARNING, True, False)


def test_of_another_forge_nothing_of_github_is_asked_or_said(place: Place) -> None:
    place.write(hook='forge = "gitlab"', public='public_url = "https://deploy.example.com"')
    patient = place.patient()
    assert patient.config is not None
    (finding,) = webhook.webhooks(patient, patient.config.hooks[0], patient.config.apps["blog"])
    assert finding.status is SKIPPED
    assert "at GitLab" in finding.finding
    assert finding.remedy.startswith("look there, under Settings → Webhooks → Edit: ")
    assert "https://deploy.example.com/hooks/github" in finding.remedy
    assert "GitHub" not in finding.remedy


def test_without_a_token_it_says_what_to_look_at(place: Place) -> None:
    patient = place.patient()
    assert patient.config is not None
    (finding,) = webhook.webhooks(patient, patient.config.hooks[0], patient.config.apps["blog"])
    assert (finding.status, "application/json" in finding.remedy) == (SKIPPED, True)


# --- the service


@pytest.mark.parametrize(
    ("answers", "status"),
    [
        ({"GET /healthz": (200, "ok")}, WARNING),  # with quotation marks, which is not what hookdeploy says
        ({}, WARNING),
    ],
)
def test_an_address_that_leads_elsewhere_is_a_warning(place: Place, answers: dict[str, Any], status: Status) -> None:
    with githubapi.saying(answers) as (url, _):
        place.write(public=f'public_url = "{url}"')
        (silent,) = service.answers_in_public(place.patient())
        (finding,) = service.answers_in_public(replace(place.patient(), running=Running(1, "1", {})))
    assert silent.status is SKIPPED
    assert (finding.status, f"curl -i {url}/healthz" in finding.remedy) == (status, True)


def test_a_door_of_ours_need_not_have_a_certificate_for_the_address_by_which_it_is_asked(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    certs.Authority().write(place.directory, 1, "deploy.example.com")
    tls = SSLContext(PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(place.directory / "fullchain.pem", place.directory / "privkey.pem")
    with githubapi.saying({}, tls=tls) as (url, _):
        port = int(url.rpartition(":")[2])
        # stands for an address of the machine that is not loopback: there is none in tests
        monkeypatch.setattr(addresses, "endpoint_address", lambda _: ("localhost", port))
        patient = place.patient()
        assert patient.config is not None
        server = replace(patient.config.server, listen=(f"ssl:{port}",))
        patient = replace(patient, config=replace(patient.config, server=server), running=Running(1, "1", {}))
        (finding,) = service.answers_here(patient)
    assert "answers 404" in finding.finding


UNIT = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "NeedDaemonReload": "no",
    "Restart": "always",
    "UnitFileState": "enabled",
    "MainPID": "7",
}


def test_a_good_unit_is_well() -> None:
    (finding,) = service.judge_unit(UNIT, running=7, source=None, wanted="")
    assert finding.status is OK


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"LoadState": "not-found"}, "hookdeploy init"),
        ({"LoadState": "bad-setting"}, "systemd-analyze verify"),
        ({"ActiveState": "failed"}, "journalctl"),
        ({"ActiveState": "inactive"}, "systemctl start"),
        ({"NeedDaemonReload": "yes"}, "systemctl daemon-reload"),
        ({"Restart": "no"}, "Restart=always"),
        ({"UnitFileState": "disabled"}, "systemctl enable"),
        ({"MainPID": "8"}, "systemctl status"),
    ],
)
def test_a_unit_that_is_not_sane_is_named(changed: dict[str, str], words: str) -> None:
    (finding,) = service.judge_unit({**UNIT, **changed}, running=7, source=None, wanted="")
    assert finding.status in {WARNING, PROBLEM}
    assert words in finding.remedy


def test_a_unit_that_init_would_write_otherwise_is_named(tmp_path: Path) -> None:
    installed = tmp_path / "installed.service"
    installed.write_text("a")
    said = {**UNIT, "FragmentPath": str(installed)}
    (finding,) = service.judge_unit(said, running=7, source=tmp_path / "hookdeploy.toml", wanted="b")
    assert (finding.status, "init --print-unit" in finding.remedy) == (WARNING, True)
    (finding,) = service.judge_unit(said, running=7, source=tmp_path / "hookdeploy.toml", wanted="a")
    assert finding.status is OK


def test_the_summary_counts() -> None:
    found = [Finding("a", PROBLEM, "x", "y"), Finding("b", WARNING, "x", "y"), Finding("c", OK, "x")]
    assert doctor.summary(found) == "1 problem, 1 warning."
    assert doctor.summary(found[2:]) == "Nothing is wrong."
