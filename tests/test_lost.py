"""Deliveries that never came, came too late or could not be taken, with the installed program: the tip is deployed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import payloads
from tests.installed import RELEASE, Hookdeploy, Origin, git, put_away, site
from tests.waiting import until

POLLED = RELEASE.replace('poll = "0"', 'poll = "5s"')
TAGGED = f'{POLLED}tag = "v*"\n'
NO_HOOK = "branch moved, no hook came"


@contextmanager
def started(directory: Path, config: str) -> Iterator[Hookdeploy]:
    """A hookdeploy with this configuration, whose first deployment has ended well."""
    with put_away(Hookdeploy(directory, config=config)) as hookdeploy:
        hookdeploy.start()
        assert hookdeploy.first()["outcome"] == "deployed"
        yield hookdeploy


@pytest.fixture
def polled(tmp_path: Path, origin: Origin) -> Iterator[Hookdeploy]:
    with started(tmp_path, POLLED) as hookdeploy:
        yield hookdeploy


@pytest.fixture
def unpolled(tmp_path: Path, origin: Origin) -> Iterator[Hookdeploy]:
    with started(tmp_path, RELEASE) as hookdeploy:
        yield hookdeploy


def newest(hookdeploy: Hookdeploy) -> Any:
    return hookdeploy.api("/deployments", limit=1)[0]


def tag(origin: Origin, directory: Path, name: str, text: str) -> str:
    """Push a commit with this page, and a tag of it; gives the commit."""
    commit = origin.push(site(text))
    git(directory / "work", "tag", name)
    git(directory / "work", "push", "--quiet", str(origin.path), f"refs/tags/{name}")
    return commit


def announce_tag(hookdeploy: Hookdeploy, name: str, commit: str) -> Any:
    """Tell it of a tag; gives the deployment that it leads to, once it has ended."""
    told = hookdeploy.send(payloads.push(ref=f"refs/tags/{name}", after=commit), guid=f"guid-{name}")
    assert (told["code"], told["status"]) == (202, "accepted"), told
    return hookdeploy.ended(told["deployments"][0])


def test_what_was_pushed_while_hookdeploy_was_down_is_deployed_at_the_start(polled: Hookdeploy, origin: Origin) -> None:
    polled.stop()
    tip = origin.push(site("two"))
    polled.start()
    polled.wait_for_page("two")
    deployment = polled.ended(newest(polled)["id"])
    assert (deployment["trigger"], deployment["revision"], deployment["reason"]) == ("poll", tip, NO_HOOK)
    polled.wait_for_log(NO_HOOK)


def test_a_push_without_a_hook_is_deployed_by_the_next_look(polled: Hookdeploy, origin: Origin) -> None:
    tip = origin.push(site("two"))
    polled.wait_for_page("two")
    deployment = polled.ended(newest(polled)["id"])
    assert (deployment["trigger"], deployment["revision"], deployment["reason"]) == ("poll", tip, NO_HOOK)
    assert NO_HOOK in polled.log_of(deployment["id"])


def test_a_commit_that_fails_is_not_tried_at_every_look(polled: Hookdeploy, origin: Origin) -> None:
    origin.push({"wsgi.py": "raise RuntimeError('broken')"})
    until(lambda: newest(polled)["outcome"] == "failed", "failure")
    looks = polled.log.count("git ls-remote")
    failed = newest(polled)["id"]
    good = origin.push(site("three"))
    polled.wait_for_page("three")
    rows = [each["id"] for each in polled.api("/deployments")]
    assert rows.index(failed) == 1, "the failed one was tried again"
    assert newest(polled)["revision"] == good
    assert polled.log.count("git ls-remote") == looks == 0, "a look is said in the log"


def test_what_a_person_has_put_back_stays_put_back(polled: Hookdeploy, origin: Origin) -> None:
    origin.push(site("two"))
    polled.wait_for_page("two")
    rolled = polled.post("/apps/web/rollback")
    assert polled.ended(rolled["id"])["outcome"] == "deployed"
    polled.wait_for_page("one")
    polled.stop()
    polled.start()
    assert polled.page() == "one"
    origin.push(site("three"))
    polled.wait_for_page("three")
    assert [each["trigger"] for each in polled.api("/deployments")] == ["poll", "rollback", "poll", "start"]


def test_a_revision_that_a_person_has_chosen_stays_until_the_branch_moves(polled: Hookdeploy, origin: Origin) -> None:
    first = newest(polled)["revision"]
    origin.push(site("two"))
    polled.wait_for_page("two")
    chosen = polled.post("/apps/web/deploy", revision=first)
    assert polled.ended(chosen["id"])["outcome"] == "deployed"
    polled.stop()
    polled.start()
    assert polled.page() == "one"
    origin.push(site("three"))
    polled.wait_for_page("three")
    assert [each["trigger"] for each in polled.api("/deployments")] == ["poll", "manual", "poll", "start"]


def test_reordered_deliveries_never_put_older_code_over_newer(unpolled: Hookdeploy, origin: Origin) -> None:
    """P54."""
    older, newer = origin.push(site("two")), origin.push(site("three"))
    assert unpolled.ended(unpolled.announce(newer))["revision"] == newer
    late = unpolled.ended(unpolled.announce(older))
    assert (late["outcome"], late["revision"]) == ("unchanged", newer)
    unpolled.wait_for_page("three")


def test_a_delivery_that_could_not_be_taken_is_made_up_for(unpolled: Hookdeploy, origin: Origin) -> None:
    tip = origin.push(site("two"))
    with closing(sqlite3.connect(unpolled.state / "journal.sqlite3")) as other:
        other.execute("BEGIN EXCLUSIVE")
        told = unpolled.send(payloads.push(after=tip), guid="refused")
        assert told["code"] == 503
        other.rollback()
    unpolled.wait_for_page("two")
    assert unpolled.ended(newest(unpolled)["id"])["trigger"] == "poll"


def test_a_push_that_says_the_same_as_an_older_one_is_deployed(
    unpolled: Hookdeploy, origin: Origin, tmp_path: Path
) -> None:
    """A branch goes to and fro, and its forge tells each time only where it is: nothing differs but the id."""

    def pushed(commit: str, guid: str) -> Any:
        git(tmp_path / "work", "push", "--quiet", "--force", str(origin.path), f"{commit}:main")
        return unpolled.send(payloads.push(after=commit), guid=guid)

    one, two = newest(unpolled)["revision"], origin.push(site("two"))
    for commit, guid in ((two, "a"), (one, "b")):
        [deployment] = pushed(commit, guid)["deployments"]
        assert unpolled.ended(deployment)["revision"] == commit
    unpolled.wait_for_page("one")
    told = pushed(two, "c")
    assert told["status"] == "duplicate"
    unpolled.wait_for_page("two")
    assert unpolled.ended(newest(unpolled)["id"])["trigger"] == "poll"


def test_the_newest_tag_is_deployed_and_a_late_one_changes_nothing(tmp_path: Path, origin: Origin) -> None:
    tag(origin, tmp_path, "v1.9", "v1.9")
    with started(tmp_path, TAGGED) as hookdeploy:
        assert hookdeploy.page() == "v1.9"
        ten = tag(origin, tmp_path, "v1.10", "v1.10")
        assert announce_tag(hookdeploy, "v1.10", ten)["revision"] == ten
        hookdeploy.wait_for_page("v1.10")
        late = tag(origin, tmp_path, "v1.2", "v1.2")
        assert announce_tag(hookdeploy, "v1.2", late)["outcome"] == "unchanged"
        told = hookdeploy.send(payloads.push(after=origin.push(site("main"))), guid="branch")
        assert (told["status"], told["reason"]) == ("ignored", "no app deploys this branch")
        eleven = tag(origin, tmp_path, "v1.11", "v1.11")  # without a hook
        hookdeploy.wait_for_page("v1.11")
        assert newest(hookdeploy)["revision"] == eleven


def test_a_journal_that_somebody_has_deleted_is_made_anew_and_every_remote_looked_at(
    unpolled: Hookdeploy, origin: Origin
) -> None:
    tip = origin.push(site("two"))
    (unpolled.state / "journal.sqlite3").unlink()
    assert unpolled.send(payloads.ping(), guid="whatever", x_github_event=b"ping")["code"] == 202
    unpolled.wait_for_page("two")
    deployment = unpolled.ended(newest(unpolled)["id"])
    assert (deployment["trigger"], deployment["revision"]) == ("poll", tip)
