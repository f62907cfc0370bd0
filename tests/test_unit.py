"""The systemd unit: what systemd says of it, and hookdeploy in it under a systemd that is a real one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests import privatesystemd
from tests.accounts import NOBODY, open_directory
from tests.installed import RELEASE, Hookdeploy, Origin, free_port, put_away, site
from tests.privatesystemd import PrivateSystemd
from tests.test_user import AS_NOBODY, BUILD, said
from tests.waiting import until
from twisted_hook.config import Config, parse
from twisted_hook.unit import unit

TWISTD = Path(sys.executable).with_name("twistd")


def config_of(**changed: object) -> Config:
    """The configuration of an app with other values than the usual."""
    config = parse(RELEASE.replace("HOOK_PORT", "8000").replace("APP_PORT", "8080"), Path("/srv/site"))
    return replace(config, apps={"web": replace(config.apps["web"], **changed)})  # type: ignore[arg-type]


def lines_of(config: Config, user: str = "daemon") -> list[str]:
    return unit(config, file=Path("/srv/site/hookdeploy.toml"), twistd=TWISTD, user=user).splitlines()


def analyze(directory: Path, config: Config, *words: str, user: str = "daemon") -> subprocess.CompletedProcess[str]:
    """What systemd-analyze says of the unit for a configuration."""
    program = shutil.which("systemd-analyze")
    if program is None:
        if os.environ.get("HOOKDEPLOY_ALL_TESTS"):
            pytest.fail("systemd-analyze is not installed")
        pytest.skip("systemd-analyze is not installed")
    path = directory / "hookdeploy.service"
    path.write_text(unit(config, file=directory / "hookdeploy.toml", twistd=TWISTD, user=user))
    return subprocess.run((program, *words, str(path)), capture_output=True, text=True, check=False)


VARIANTS = [
    pytest.param(config_of(), "daemon", 2.8, id="usual"),
    pytest.param(config_of(bind="127.0.0.1:80"), "daemon", 3.0, id="a low port"),
    pytest.param(config_of(user="daemon"), "root", 4.3, id="apps as their own users"),
    pytest.param(config_of(), "root", 4.9, id="all as root"),
    pytest.param(config_of(mode="in-place", path=Path("/usr/local/50% of it")), "daemon", 2.8, id="in place"),
    pytest.param(config_of(bind="unix:/run/web/web.sock"), "daemon", 2.8, id="a unix socket"),
]


@pytest.mark.parametrize(("config", "user", "exposure"), VARIANTS)
def test_systemd_accepts_every_unit_and_finds_it_little_exposed(
    tmp_path: Path, config: Config, user: str, exposure: float
) -> None:
    done = analyze(tmp_path, config, "verify", user=user)
    assert (done.returncode, done.stderr) == (0, "")
    told = analyze(tmp_path, config, "security", "--offline=true", "--no-pager", user=user).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
    assert found, told
    assert float(found[1]) <= exposure


@pytest.mark.parametrize(("config", "user", "exposure"), VARIANTS)
def test_what_can_be_chosen_is_accepted_too(tmp_path: Path, config: Config, user: str, exposure: float) -> None:
    path = tmp_path / "hookdeploy.service"
    done = analyze(tmp_path, config, "verify", user=user)
    path.write_text(re.sub(r"^#(?=[A-Z][A-Za-z]+=)", "", path.read_text(), flags=re.MULTILINE))
    again = subprocess.run((*done.args[:2], str(path)), capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr) == (0, "")


def test_the_time_to_stop_is_beyond_the_longest_drain() -> None:
    assert "TimeoutSec=150" in lines_of(config_of(drain=30.0))
    assert "TimeoutSec=1290" in lines_of(config_of(drain=600.0))


def test_capabilities_are_those_that_the_configuration_needs() -> None:
    def capabilities(config: Config, user: str) -> list[str]:
        return [line for line in lines_of(config, user) if "Capabilit" in line]

    assert capabilities(config_of(), "daemon") == ["CapabilityBoundingSet="]
    assert capabilities(config_of(), "root") == []
    low = ["CapabilityBoundingSet=CAP_NET_BIND_SERVICE", "AmbientCapabilities=CAP_NET_BIND_SERVICE"]
    assert capabilities(config_of(bind="127.0.0.1:80"), "daemon") == low
    [lent] = capabilities(config_of(user="daemon"), "root")
    assert {"CAP_SETUID", "CAP_SETGID", "CAP_CHOWN", "CAP_KILL"} <= set(lent.partition("=")[2].split())


def test_a_unix_socket_in_run_has_a_directory_that_outlives_a_restart() -> None:
    lines = lines_of(config_of(bind="unix:/run/web/web.sock"))
    assert "RuntimeDirectory=web" in lines
    assert "RuntimeDirectoryPreserve=restart" in lines
    assert not any(line.startswith("RuntimeDirectory") for line in lines_of(config_of(bind="unix:/run/web.sock")))


# --- the snippets of the documentation

DOCUMENT = Path(__file__).parent.parent / "docs/systemd.md"


def snippets(marker: str) -> list[str]:
    """The code blocks of the documentation after this marker."""
    return re.findall(rf"<!-- {marker} -->\n```ini\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


def test_systemd_accepts_what_the_documentation_says(tmp_path: Path) -> None:
    [activating] = snippets("socket")
    (tmp_path / "hookdeploy.socket").write_text(activating)
    for number, snippet in enumerate(snippets("drop-in")):
        (tmp_path / "hookdeploy.service.d").mkdir(exist_ok=True)
        (tmp_path / f"hookdeploy.service.d/{number}.conf").write_text(snippet)
    done = analyze(tmp_path, config_of(), "verify")
    assert (done.returncode, done.stderr) == (0, "")
    again = subprocess.run(
        (*done.args[:2], str(tmp_path / "hookdeploy.socket")), capture_output=True, text=True, check=False
    )
    assert (again.returncode, again.stderr) == (0, "")


# --- under a real systemd


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[PrivateSystemd]:
    """One with no units of ours yet; not started yet."""
    reason = privatesystemd.reason_against()
    if reason:
        pytest.skip(reason)
    private = PrivateSystemd(tmp_path)
    try:
        yield private
    finally:
        private.end()


@pytest.fixture
def service(tmp_path: Path, origin: Origin, systemd: PrivateSystemd) -> Iterator[Hookdeploy]:
    """hookdeploy.service in that systemd, as ``init`` writes it; not started yet.

    It is root without any privilege of root's: no other account can read the interpreter of every developer.
    """
    with put_away(Hookdeploy(tmp_path, config=RELEASE)) as hookdeploy:
        text = unit_for(hookdeploy, "daemon")
        assert "CapabilityBoundingSet=\n" in text
        systemd.add(UNIT, text.replace("User=daemon", "User=root"))
        yield hookdeploy
        systemd.end()


UNIT = "hookdeploy.service"


def unit_for(hookdeploy: Hookdeploy, user: str) -> str:
    """With a log that we can read."""
    file = hookdeploy.directory / "hookdeploy.toml"
    config = parse(file.read_text(), hookdeploy.directory)
    log = f"[Service]\nStandardOutput=append:{hookdeploy.directory}/server.log\nStandardError=inherit\n"
    return log + unit(config, file=file, twistd=TWISTD, user=user)


def test_the_service_starts_restarts_reloads_and_stops_under_systemd(
    service: Hookdeploy, systemd: PrivateSystemd, origin: Origin
) -> None:
    systemd.start()
    systemd.do("start", UNIT)
    assert service.ask("GET", "/healthz").status_code == 200  # started means that it answers
    service.first()
    service.wait_for_page("one")
    until(lambda: systemd.property(UNIT, "StatusText") == "serves web", "a status")
    server = service.api("/apps/web")["server"]["pid"]

    systemd.do("restart", UNIT)
    assert service.api("/apps/web")["server"]["pid"] == server
    pid = systemd.property(UNIT, "MainPID")
    systemd.do("kill", "--kill-whom=main", "--signal=SIGUSR2", UNIT)
    until(lambda: service.log.count("takes hooks on") == 3, "an upgrade")
    until(lambda: systemd.property(UNIT, "SubState") == "running", "its end")
    assert systemd.property(UNIT, "MainPID") == pid
    assert systemd.property(UNIT, "NRestarts") == "0"

    systemd.do("reload", UNIT)
    until(lambda: "the configuration was read again" in service.log, "a reload")
    assert service.ended(service.announce(origin.push(site("two"))))["outcome"] == "deployed"
    service.wait_for_page("two")
    systemd.do("stop", UNIT)
    assert service.page() == ""
    assert systemd.property(UNIT, "Result") == "success"


def test_systemd_restarts_one_that_is_stuck_and_the_app_serves_on(service: Hookdeploy, systemd: PrivateSystemd) -> None:
    path = systemd.units / UNIT
    path.write_text(path.read_text().replace("WatchdogSec=60", "WatchdogSec=10"))
    systemd.start()
    systemd.do("start", UNIT)
    service.first()
    server = service.api("/apps/web")["server"]["pid"]
    systemd.do("kill", "--kill-whom=main", "--signal=SIGSTOP", UNIT)
    until(lambda: service.log.count("takes hooks on") == 2, "a second beginning")
    assert service.page() == "one"
    assert service.api("/apps/web")["server"]["pid"] == server
    assert systemd.property(UNIT, "NRestarts") == "1"


def test_a_start_that_is_refused_is_a_failed_one(service: Hookdeploy, systemd: PrivateSystemd) -> None:
    service.configure("nonsense = true")
    systemd.start()
    assert systemd.run("start", UNIT).returncode != 0
    assert "nonsense: unknown key" in service.log


def test_systemds_own_socket_keeps_the_door(service: Hookdeploy, systemd: PrivateSystemd) -> None:
    port = free_port()
    service.hook_port = port
    service.configure(RELEASE.replace("tcp:HOOK_PORT:interface=127.0.0.1", "systemd:domain=INET:name=door"))
    [activating] = snippets("socket")
    systemd.add("hookdeploy.socket", activating.replace("127.0.0.1:8000", f"127.0.0.1:{port}"))
    systemd.start()
    systemd.do("start", "hookdeploy.socket")
    for _ in range(2):
        assert service.ask("GET", "/healthz").status_code == 200  # who knocks starts it
        service.first()
        systemd.do("restart", UNIT)
        assert service.ask("GET", "/healthz").status_code == 200
        systemd.do("stop", UNIT)


def test_apps_of_other_accounts_are_built_within_its_capabilities(systemd: PrivateSystemd) -> None:
    with open_directory() as directory:
        made = Origin(directory)
        made.push({**site("one"), "build.sh": BUILD})
        with put_away(Hookdeploy(directory, config=AS_NOBODY)) as hookdeploy:
            text = unit_for(hookdeploy, "root")
            assert "CapabilityBoundingSet=CAP_SETUID" in text
            systemd.add(UNIT, text)
            systemd.start()
            systemd.do("start", UNIT)
            done = hookdeploy.first()
            assert done["outcome"] == "deployed", done["reason"]
            assert said(hookdeploy, done["id"]) == [f"I am {NOBODY.pw_name}", "I can write"]
            systemd.do("stop", UNIT)
