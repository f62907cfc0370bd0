"""What goes wrong late, by the installed program: migrations that are cut off, and servers that keep dying."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests import payloads
from tests.installed import RELEASE, Hookdeploy, Origin, site
from tests.test_reload import hang_up
from tests.waiting import until
from twisted_hook.serverrecords import GATE

DIES = """
import os, signal, threading, time
def die():
    while not os.path.exists("DIRECTORY/deployed") or os.fstat(GATE).st_size <= len("open"):
        time.sleep(0.02)
    os.kill(os.getppid(), signal.SIGKILL)
threading.Thread(target=die, daemon=True).start()
"""
"""What ends a gunicorn once it is chosen to serve, which it sees in its gate: its master is its workers' parent."""
MIGRATE = "echo >> DIRECTORY/migrated; while [ -e DIRECTORY/hold ]; do sleep 0.02; done"
MIGRATES = f'{RELEASE}migrate = [{{ run = "{MIGRATE}", shell = true }}]\n'


@pytest.fixture
def release(release: Hookdeploy) -> Hookdeploy:
    """A hookdeploy that serves its first release."""
    release.start()
    release.first()
    return release


def rollback(hookdeploy: Hookdeploy) -> dict[str, Any] | None:
    return next((each for each in hookdeploy.api("/deployments") if each["trigger"] == "rollback"), None)


def test_a_server_that_keeps_dying_gives_its_place_back_and_is_not_deployed_again(
    release: Hookdeploy, origin: Origin
) -> None:
    """Its health is good, and so was its probation; and what is tried in vain five times in a row needs somebody."""
    dies = DIES.replace("DIRECTORY", str(release.directory)).replace("GATE", str(GATE))
    bad = origin.push({"wsgi.py": dies + site("two")["wsgi.py"]})
    done = release.ended(release.announce(bad))
    assert done["outcome"] == "deployed"
    (release.directory / "deployed").touch()
    back = until(lambda: rollback(release), "rollback")
    assert release.ended(back["id"])["outcome"] == "deployed"
    release.wait_for_page("one")
    assert release.api("/apps/web")["server"]["state"] == "serving"
    told = release.send(payloads.push(after=bad, repository=payloads.repository("acme/web")), guid="once more")
    assert (told["status"], told["deployments"]) == ("duplicate", [done["id"]])
    assert release.page() == "one"
    good = release.ended(release.announce(origin.push(site("three"))))
    assert good["outcome"] == "deployed"
    release.wait_for_page("three")


def test_a_migration_that_was_cut_off_is_not_run_again_and_what_served_serves_on(
    release: Hookdeploy, origin: Origin
) -> None:
    """T37: hookdeploy is killed in the middle of it."""
    directory = release.directory
    hang_up(release, MIGRATES)
    (directory / "hold").touch()
    deployment = release.announce(origin.push(site("two")))
    until((directory / "migrated").exists, "migration")
    assert release.stop(signal.SIGKILL) == -signal.SIGKILL
    (directory / "hold").unlink()
    release.start()
    done = release.ended(deployment)
    assert done["outcome"] == "interrupted"
    assert "hookdeploy deploy web" in done["reason"]
    assert (directory / "migrated").read_text() == "\n"
    release.wait_for_page("one")
    again = release.ended(release.announce(origin.push(site("three"))))
    assert again["outcome"] == "deployed"
    assert [entered["phase"] for entered in again["phases"]].count("migrating") == 1
    assert (directory / "migrated").read_text() == "\n\n"
    release.wait_for_page("three")
