"""SIGHUP at awkward moments, and an environment that means harm: the installed program as a process."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
from contextlib import closing

import pytest

from tests import payloads
from tests.installed import (
    RELEASE,
    Hookdeploy,
    Origin,
    free_port,
    git,
    is_listened_on,
    is_over,
    processes_of,
    site,
)
from tests.proctable import told
from tests.waiting import until

AGAIN = "the configuration was read again"
REFUSED = "the configuration stays as it was: "
TWO_WORKERS = RELEASE.replace("workers = 1", "workers = 2")
NEW_PATH = RELEASE.replace("[hooks.github]", '[hooks.github]\npath = "/new"')


def hang_up(hookdeploy: Hookdeploy, config: str, said: str = AGAIN) -> None:
    """Give it another configuration, and wait until it has taken or refused it."""
    times = hookdeploy.log.count(said)
    hookdeploy.configure(config)
    os.kill(hookdeploy.pid, signal.SIGHUP)
    until(lambda: hookdeploy.log.count(said) > times, f"{said!r} in the log")


def keepers_of(hookdeploy: Hookdeploy) -> list[int]:
    return told(hookdeploy.state / "keeper.sock")


def ping(hookdeploy: Hookdeploy, path: str) -> int:
    return int(hookdeploy.send(payloads.ping(), guid=path, path=path, x_github_event=b"ping")["code"])


# --- SIGHUP and what comes with it


def test_a_stop_right_after_a_reload_leaves_no_process(release: Hookdeploy) -> None:
    """``systemctl reload`` and then ``stop``: the server that the reload starts is not forgotten."""
    for config in (TWO_WORKERS, "nonsense", RELEASE.replace("[apps.web]", "[apps.api]")):
        release.configure(RELEASE)
        release.start()
        release.first()
        release.wait_for_page("one")
        release.configure(config)
        os.kill(release.pid, signal.SIGHUP)
        assert release.stop() == -signal.SIGTERM
        assert is_over(release.directory)
        until(lambda: not processes_of(release.directory), "end of the keeper")
        assert not is_listened_on(release.app_port)
    assert "Traceback" not in release.log


def test_hundreds_of_reloads_do_not_keep_a_later_one_from_its_turn(release: Hookdeploy) -> None:
    """twisted/twisted#9304: a lock with many waiters that finish at once jams."""
    release.start()
    release.first()
    for _ in range(300):
        os.kill(release.pid, signal.SIGHUP)
    release.wait_for_log(AGAIN)
    release.configure(NEW_PATH)
    os.kill(release.pid, signal.SIGHUP)
    until(lambda: ping(release, "/new") == 202, "the new path")
    release.wait_for_page("one")
    assert "Traceback" not in release.log


def test_a_refused_reload_opens_no_port(release: Hookdeploy) -> None:
    """Nothing of a configuration that cannot be had as a whole takes effect, whosever port is taken."""
    release.start()
    release.first()
    mine = release.hook_port, release.app_port
    free = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        for app, door, place in ((number, free, "apps.web.bind"), (free, number, "server.listen")):
            listen = f'listen = ["tcp:HOOK_PORT:interface=127.0.0.1", "tcp:{door}:interface=127.0.0.1"]'
            config = RELEASE.replace('listen = ["tcp:HOOK_PORT:interface=127.0.0.1"]', listen)
            hang_up(release, config.replace("APP_PORT", str(app)), f"{REFUSED}{place}: cannot listen on ")
            until(lambda: not is_listened_on(free), "end of what was listened on for nothing")
    assert all(is_listened_on(port) for port in mine)
    assert release.page() == "one"
    hang_up(release, RELEASE.replace("APP_PORT", str(free)))
    until(lambda: is_listened_on(free), "the port that was not left taken")


def test_a_reload_warns_as_a_start_does(release: Hookdeploy) -> None:
    release.start()
    release.first()
    idle = RELEASE.replace("[hooks.github]", '[hooks.idle]\nsecrets = [{ file = "hook.secret" }]\n\n[hooks.github]')
    hang_up(release, idle, "hooks.idle: no app uses it")
    release.wait_for_log(AGAIN)


def test_an_address_can_be_taken_back_that_nothing_has_left_yet(release: Hookdeploy) -> None:
    """What was to serve at another one did not start, so the app itself still has the old address."""
    release.start()
    release.first()
    elsewhere = RELEASE.replace("APP_PORT", str(free_port())).replace("wsgi:", "nowhere:")
    hang_up(release, elsewhere)
    release.wait_for_log("the server cannot start; ")
    assert release.page() == "one"
    hang_up(release, RELEASE)
    until(lambda: release.log.count("web: serving ") == 2, "the swap to the good configuration")
    assert release.page() == "one"
    assert REFUSED not in release.log


def test_another_branch_is_deployed_after_a_reload(release: Hookdeploy, origin: Origin) -> None:
    """Nobody needs to push for it."""
    on_main = origin.push(site("one"))
    tip = origin.push(site("live"))
    git(origin.path, "branch", "live", tip)
    git(origin.path, "update-ref", "refs/heads/main", on_main)
    release.start()
    assert release.first()["revision"] == on_main
    hang_up(release, RELEASE.replace("[apps.web]", '[apps.web]\nbranch = "live"'))
    release.wait_for_page("live")
    newest = release.api("/deployments", limit=1)[0]
    assert (newest["trigger"], release.ended(newest["id"])["revision"]) == ("start", tip)


def test_a_reload_that_the_journal_cannot_bear_is_refused_and_can_be_repeated(
    release: Hookdeploy, origin: Origin
) -> None:
    """P85: what it makes hookdeploy deploy cannot be written down, so that nothing is half done."""
    release.start()
    release.first()
    git(origin.path, "branch", "live", origin.push(site("live")))
    elsewhere = free_port()
    live = RELEASE.replace("[apps.web]", '[apps.web]\nbranch = "live"').replace("APP_PORT", str(elsewhere))
    with closing(sqlite3.connect(release.state / "journal.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        hang_up(release, live, REFUSED + "the journal: ")
    assert release.page() == "one"
    until(lambda: not is_listened_on(elsewhere), "the end of what was to be listened on")
    hang_up(release, live)
    until(lambda: release.log.count("web: serving ") >= 2 and is_listened_on(elsewhere), "another address")
    newest = release.api("/deployments", limit=1)[0]
    assert (newest["trigger"], release.ended(newest["id"])["outcome"]) == ("start", "deployed")
    assert "Traceback" not in release.log


def test_a_reload_while_there_is_no_keeper_is_refused_and_can_be_repeated(release: Hookdeploy) -> None:
    """A socket that nobody would hold while hookdeploy is not there is not listened on."""
    release.start()
    release.first()
    in_its_way = release.state / "keeper.sock"
    in_its_way.unlink()
    (in_its_way / "something").mkdir(parents=True)
    [keeper] = keepers_of(release)
    os.kill(keeper, signal.SIGKILL)
    release.wait_for_log("the keeper of the sockets could not be started")
    elsewhere = RELEASE.replace("APP_PORT", str(free_port()))
    hang_up(release, elsewhere, REFUSED + "the keeper of the sockets could not be started")
    assert release.page() == "one"
    (in_its_way / "something").rmdir()
    in_its_way.rmdir()
    release.wait_for_log("a new keeper holds the sockets")
    hang_up(release, elsewhere)
    assert "Traceback" not in release.log


# --- what stands in hookdeploy's own environment


def test_a_hostile_environment_of_hookdeploy_reaches_no_git(release: Hookdeploy, origin: Origin) -> None:
    """P62, through the program: another repository, commands in place of ssh and of editors, and settings."""
    pwn = release.directory / "PWN"
    touch = f"touch {pwn}"
    release.change_environ(
        {
            "GIT_DIR": str(release.directory / "nowhere"),
            "GIT_WORK_TREE": "/",
            "GIT_INDEX_FILE": "/nowhere/index",
            "GIT_OBJECT_DIRECTORY": "/nowhere/objects",
            "GIT_SSH_COMMAND": touch,
            "GIT_SSH": touch,
            "GIT_ASKPASS": touch,
            "GIT_EDITOR": touch,
            "GIT_EXTERNAL_DIFF": touch,
            "GIT_PAGER": touch,
            "GIT_CONFIG_COUNT": "3",
            "GIT_CONFIG_KEY_0": "core.fsmonitor",
            "GIT_CONFIG_VALUE_0": touch,
            "GIT_CONFIG_KEY_1": "core.hooksPath",
            "GIT_CONFIG_VALUE_1": str(release.directory),
            "GIT_CONFIG_KEY_2": "uploadpack.packObjectsHook",
            "GIT_CONFIG_VALUE_2": touch,
            "GIT_CONFIG_PARAMETERS": f"'core.sshCommand={touch}'",
            "GIT_ALLOW_PROTOCOL": "none",
        }
    )
    hook = release.directory / "post-checkout"
    hook.write_text(f"#!/bin/sh\n{touch}\n")
    hook.chmod(0o755)
    release.start()
    assert release.first()["outcome"] == "deployed"
    tip = origin.push(site("two"))
    done = release.ended(release.announce(tip))
    assert (done["outcome"], done["revision"]) == ("deployed", tip)
    release.wait_for_page("two")
    assert not pwn.exists()


# --- the umask


@pytest.mark.parametrize("umask", [0o027, 0o002])
def test_a_umask_that_was_asked_for_is_honoured(release: Hookdeploy, umask: int) -> None:
    """Of what is checked out and of what a build makes; the state directory is closed all the same."""
    directory = release.directory
    release.configure(f'{RELEASE}build = ["touch built.css"]\n')
    pidfile = directory / "hookdeploy.pid"
    done = release.run(f"--umask={umask:03o}", f"--pidfile={pidfile}", f"--logfile={directory / 'hookdeploy.log'}")
    assert (done.returncode, done.stderr) == (0, "")
    pid = int(until(lambda: pidfile.read_text() if pidfile.exists() else "", "pid file"))
    try:
        release.wait_for_page("one")
        until((release.state / "apps/web/current").exists, "current release")  # it is made that once it serves
        current = (release.state / "apps/web/current").resolve()
        for name in ("wsgi.py", "built.css"):
            assert (current / name).stat().st_mode & 0o777 == 0o666 & ~umask, name
        assert release.state.stat().st_mode & 0o777 == 0o700
    finally:
        os.kill(pid, signal.SIGTERM)
        until(lambda: not processes_of(directory), "end of all its processes")
