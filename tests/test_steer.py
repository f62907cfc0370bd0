"""A person at the command line and the installed program: what is deployed, put back, held back and ended by hand."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests import payloads
from tests.installed import RELEASE, Hookdeploy, Origin, git, processes_of, put_away, site
from tests.waiting import until
from twisted_hook.cli import hookdeploy as command

BUILD = "while [ -e DIRECTORY/hold ]; do sleep 0.05; done"
SITE = f'{RELEASE}build = ["sh DIRECTORY/build.sh"]\n'


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    return Origin(tmp_path)


@pytest.fixture
def one(origin: Origin) -> str:
    """The first commit."""
    return origin.push(site("one"))


@pytest.fixture
def server(tmp_path: Path, one: str) -> Iterator[Hookdeploy]:
    """A hookdeploy that serves page one; its builds last while the file ``hold`` is there."""
    (tmp_path / "build.sh").write_text(BUILD.replace("DIRECTORY", str(tmp_path)))
    with put_away(Hookdeploy(tmp_path, config=SITE)) as hookdeploy:
        hookdeploy.start()
        assert hookdeploy.first()["outcome"] == "deployed"
        yield hookdeploy


def run(server: Hookdeploy, *words: str) -> Result:
    return CliRunner().invoke(command, [*words, "--state", str(server.state)], catch_exceptions=False)


def well(server: Hookdeploy, *words: str) -> Any:
    """What a command that ends well says as JSON."""
    result = run(server, *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def announce_again(server: Hookdeploy, commit: str) -> Any:
    """What a new delivery of the same push is answered with, and what becomes of the deployment."""
    told = server.send(payloads.push(after=commit, before="f" * 40), guid=f"again-{commit}")
    assert told["code"] == 202
    return server.ended(told["deployments"][0])


# --- deploy


def test_the_tip_is_deployed_by_hand_and_an_older_one_by_the_beginning_of_its_id(
    server: Hookdeploy, origin: Origin, one: str
) -> None:
    tip = origin.push(site("two"), "The second page")
    result = run(server, "deploy")
    assert result.exit_code == 0, result.output
    for phase in ("fetching", "building", "starting", "checking", "swapping"):
        assert f"\n  {phase}" in result.output
    assert f"\ndeployed {tip[:7]} The second page as release " in result.output
    server.wait_for_page("two")
    told = well(server, "deploy", "web", one[:7])
    assert (told["revision"], told["trigger"], told["outcome"]) == (one, "manual", "deployed")
    server.wait_for_page("one")


def test_what_cannot_be_had_changes_nothing(server: Hookdeploy, origin: Origin, one: str) -> None:
    """P59, and no release to go back to, and no such revision."""
    result = run(server, "rollback", "web")
    assert result.exit_code == 1
    assert result.stderr
    assert server.page() == "one"

    result = run(server, "deploy", "web", "deadbeef")
    assert result.exit_code == 1
    assert "deadbeef" in result.stderr
    assert "web still serves " in result.stderr
    assert server.page() == "one"

    origin.push({"wsgi.py": "import nothing_of_this_name"})
    result = run(server, "deploy", "web")
    assert result.exit_code == 1
    assert result.stderr.startswith("failed: ")
    assert "nothing_of_this_name" in result.stderr
    assert f"web still serves {one[:7]} " in result.stderr
    assert server.page() == "one"


# --- replay


def test_what_failed_for_a_reason_outside_is_deployed_by_a_replay(server: Hookdeploy, origin: Origin) -> None:
    build = server.directory / "build.sh"
    sound = build.read_text()
    build.write_text("exit 1")
    tip = origin.push(site("two"))
    answer = server.send(payloads.push(after=tip), guid="1")
    assert server.ended(answer["deployments"][0])["outcome"] == "failed"
    build.write_text(sound)
    [made] = well(server, "replay", answer["delivery"])["deployments"]
    assert (made["trigger"], made["outcome"], made["revision"]) == ("replay", "deployed", tip)
    server.wait_for_page("two")
    delivery = server.api(f"/deliveries/{answer['delivery']}")
    assert delivery["deployments"] == [*answer["deployments"], made["id"]]


def test_a_replay_deploys_the_tip_and_not_what_was_taken_back(server: Hookdeploy, origin: Origin) -> None:
    answer = server.send(payloads.push(after=origin.push(site("two"))), guid="1")
    server.ended(answer["deployments"][0])
    well(server, "rollback")
    server.wait_for_page("one")
    [made] = well(server, "replay", answer["delivery"])["deployments"]
    assert (made["outcome"], server.page()) == ("unchanged", "one")
    tip = origin.push(site("three"))
    result = run(server, "replay", answer["delivery"])
    assert result.exit_code == 0, result.output
    assert f"\ndeployed {tip[:7]} " in result.output
    server.wait_for_page("three")


# --- roll back


def test_a_rollback_needs_no_network_and_no_build(server: Hookdeploy, origin: Origin, one: str) -> None:
    tip = origin.push(site("two"))
    server.ended(server.announce(tip))
    server.wait_for_page("two")
    origin.path.rename(origin.path.with_name("gone.git"))
    (server.directory / "build.sh").write_text("exit 1")
    told = well(server, "rollback")
    assert (told["outcome"], told["trigger"], told["revision"], told["previous"]) == ("deployed", "rollback", one, tip)
    server.wait_for_page("one")
    entered = [each["phase"] for each in told["phases"]]
    assert "fetching" not in entered
    assert "building" not in entered
    assert told["steps"] == []


def test_what_was_taken_back_stays_away_until_something_newer_or_a_person(server: Hookdeploy, origin: Origin) -> None:
    bad = origin.push(site("two"))
    server.ended(server.announce(bad))
    well(server, "rollback", "web")
    server.wait_for_page("one")
    assert announce_again(server, bad)["outcome"] == "unchanged"
    assert server.page() == "one"
    assert well(server, "deploy", "web")["revision"] == bad
    server.wait_for_page("two")
    well(server, "rollback", "web")
    server.wait_for_page("one")
    server.announce(origin.push(site("three")))
    server.wait_for_page("three")


def test_any_kept_release_can_be_named(server: Hookdeploy, origin: Origin) -> None:
    first = server.api("/apps/web")["release"]
    for text in ("two", "three"):
        server.ended(server.announce(origin.push(site(text))))
    shown = server.api("/apps/web")
    third = shown["release"]
    assert [(each["release"], each["current"]) for each in shown["kept"]][::2] == [(third, True), (first, False)]
    assert well(server, "rollback", "web", "--to", first)["release"] == first
    server.wait_for_page("one")
    assert well(server, "rollback", "web", "--to", third)["release"] == third
    server.wait_for_page("three")
    unknown = run(server, "rollback", "web", "--to", "20200101T000000.000-1a2b3c4")
    assert (unknown.exit_code, server.page()) == (1, "three")
    assert f"\n  {third} (current) " in unknown.stderr
    assert f"\n  {first} " in unknown.stderr


def test_a_rollback_ends_what_is_being_deployed(server: Hookdeploy, origin: Origin) -> None:
    server.ended(server.announce(origin.push(site("two"))))
    (server.directory / "hold").touch()
    held = server.announce(origin.push(site("three")))
    until(lambda: server.api(f"/deployments/{held}")["phase"] == "building", "build that is held")
    well(server, "rollback", "web")
    assert server.ended(held)["outcome"] == "cancelled"
    server.wait_for_page("one")
    assert not [words for words in processes_of(server.directory).values() if "build.sh" in words]


# --- pin, pause, cancel


def test_a_pinned_app_keeps_its_release_but_for_a_person(server: Hookdeploy, origin: Origin) -> None:
    assert well(server, "pin")["pinned"] is True
    ended = server.ended(server.announce(origin.push(site("two"))))
    assert (ended["outcome"], "pinned" in ended["reason"]) == ("unchanged", True)
    assert server.page() == "one"
    well(server, "deploy", "web")
    server.wait_for_page("two")
    server.ended(server.announce(origin.push(site("three"))))
    before = server.api("/deployments")
    assert well(server, "unpin", "web")["pinned"] is False
    assert server.api("/deployments") == before
    assert server.page() == "two"
    server.announce(origin.push(site("four")))
    server.wait_for_page("four")


def test_what_is_pushed_to_a_paused_app_waits_and_the_newest_is_deployed_at_last(
    server: Hookdeploy, origin: Origin
) -> None:
    assert well(server, "pause", "web")["paused"] is True
    earlier = server.announce(origin.push(site("two")))
    later = server.announce(origin.push(site("three")))
    assert server.ended(earlier)["superseded_by"] == later
    assert server.api(f"/deployments/{later}")["outcome"] is None
    assert server.page() == "one"
    well(server, "resume", "web")
    assert server.ended(later)["outcome"] == "deployed"
    server.wait_for_page("three")


def test_pin_and_pause_outlive_a_restart(server: Hookdeploy, origin: Origin) -> None:
    well(server, "pause", "web")
    waiting = server.announce(origin.push(site("two")))
    server.stop()
    server.start()
    server.wait_for_page("one")
    assert server.api("/apps/web")["paused"] is True
    assert server.api(f"/deployments/{waiting}")["outcome"] is None
    well(server, "resume", "web")
    assert server.ended(waiting)["outcome"] == "deployed"
    server.wait_for_page("two")


def test_what_a_pause_holds_back_outlives_a_kill_in_the_midst_of_a_rollback(server: Hookdeploy, origin: Origin) -> None:
    """P34: the rollback does not take the place of what waits, no more than it did before the kill."""
    well(server, "pause", "web")
    waiting = server.announce(origin.push(site("two")))
    server.stop(signal.SIGKILL)
    back = int(waiting, 16) + 1
    with closing(sqlite3.connect(server.state / "journal.sqlite3", isolation_level=None)) as journal:
        sql = (
            "INSERT INTO deployments (id, app, \"trigger\", queued_at, wanted) VALUES (?, 'web', 'rollback', 0, 'gone')"
        )
        journal.execute(sql, (back,))
    server.start()
    assert "is not kept any more" in server.ended(f"{back:013x}")["reason"]
    assert server.api(f"/deployments/{waiting}")["outcome"] is None
    well(server, "resume", "web")
    assert server.ended(waiting)["outcome"] == "deployed"


def test_what_is_cancelled_ends_with_all_that_it_has_started(server: Hookdeploy, origin: Origin) -> None:
    (server.directory / "hold").touch()
    held = server.announce(origin.push(site("two")))
    until(lambda: server.api(f"/deployments/{held}")["phase"] == "building", "build that is held")
    result = run(server, "cancel", held)
    assert result.exit_code == 0
    assert server.ended(held)["outcome"] == "cancelled"
    until(lambda: not [words for words in processes_of(server.directory).values() if "build.sh" in words], "end of it")
    assert server.page() == "one"
    again = run(server, "cancel", held)
    assert (again.exit_code, again.stderr) == (1, f"deployment {held} has ended: cancelled\n")
    (server.directory / "hold").unlink()
    well(server, "deploy", "web")
    server.wait_for_page("two")


# --- in place


def test_in_place_a_rollback_needs_no_network_either_and_a_newer_push_ends_it(
    tmp_path: Path, origin: Origin, one: str
) -> None:
    git(tmp_path, "clone", "--quiet", str(origin.path), "clone")
    text = RELEASE.replace('repository = "origin.git"', 'mode = "in-place"\npath = "clone"')
    with put_away(Hookdeploy(tmp_path, config=text)) as server:
        server.start()
        server.wait_for_page("one")
        server.ended(server.announce(origin.push(site("two"))))
        server.wait_for_page("two")
        away = origin.path.rename(origin.path.with_name("away.git"))
        told = well(server, "rollback")
        assert (told["outcome"], told["revision"]) == ("deployed", one)
        server.wait_for_page("one")
        assert git(tmp_path / "clone", "rev-parse", "HEAD") == one
        away.rename(origin.path)
        server.announce(origin.push(site("three")))
        server.wait_for_page("three")
