"""A clone in place, by the installed program: what does not start is not on disk for the workers that come later."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from contextlib import suppress

import pytest

from tests.installed import IN_PLACE, Hookdeploy, Origin, git, processes_of, site
from tests.proctable import children
from tests.waiting import until


def head(hookdeploy: Hookdeploy) -> str:
    return git(hookdeploy.directory / "clone", "rev-parse", "HEAD")


def workers(hookdeploy: Hookdeploy) -> list[int]:
    """gunicorn's own children."""
    return children(hookdeploy.api("/apps/web")["server"]["pid"])


def replace_worker(hookdeploy: Hookdeploy) -> None:
    """Kill one as the kernel does where memory runs out, and wait until gunicorn has another one in its place."""
    [old] = workers(hookdeploy)
    os.kill(old, signal.SIGKILL)
    until(lambda: workers(hookdeploy) not in ([], [old]), "new worker")


def test_a_worker_that_dies_after_a_failed_deployment_is_replaced_by_what_serves(
    in_place: Hookdeploy, origin: Origin
) -> None:
    """P81, in place."""
    in_place.start()
    in_place.wait_for_page("one")
    good = head(in_place)
    failed = in_place.ended(in_place.announce(origin.push({"wsgi.py": "import nothing_of_this_name"})))
    assert failed["outcome"] == "failed"
    assert in_place.page() == "one"
    until(lambda: head(in_place) == good, "way back to the commit that serves")
    assert git(in_place.directory / "clone", "status", "--porcelain", "--untracked-files=no") == ""
    for _ in range(2):
        replace_worker(in_place)
        in_place.wait_for_page("one")
    tip = origin.push(site("two"))
    done = in_place.ended(in_place.announce(tip))
    assert (done["outcome"], done["previous"]) == ("deployed", good)
    in_place.wait_for_page("two")
    assert head(in_place) == tip
    replace_worker(in_place)
    in_place.wait_for_page("two")
    assert head(in_place) == tip


def test_a_start_after_a_failed_deployment_serves_what_served_before(in_place: Hookdeploy, origin: Origin) -> None:
    """P81, P83: in place there is no other release to fall back to."""
    in_place.start()
    in_place.wait_for_page("one")
    good = head(in_place)
    in_place.ended(in_place.announce(origin.push({"wsgi.py": "def application("})))
    until(lambda: head(in_place) == good, "way back to the commit that serves")
    in_place.stop()
    in_place.start()
    in_place.wait_for_page("one")
    assert head(in_place) == good


def test_a_clone_with_steps_is_served_at_once_and_built_by_a_first_deployment(in_place: Hookdeploy) -> None:
    in_place.configure(f"{IN_PLACE}build = [\"sh -c 'echo built > built'\"]\n")
    in_place.start()
    first = in_place.first()
    assert (first["trigger"], first["outcome"]) == ("start", "deployed")
    assert [step["status"] for step in first["steps"]] == ["ok"]
    assert (in_place.directory / "clone/built").read_text() == "built\n"
    assert in_place.page() == "one"


BUILD = """
while [ -e DIRECTORY/hold ]; do sleep 0.02; done
test ! -e DIRECTORY/broken && git -C DIRECTORY/clone rev-parse HEAD > DIRECTORY/built
"""


@pytest.fixture
def held(in_place: Hookdeploy, origin: Origin) -> tuple[Hookdeploy, str, str]:
    """One that is in the midst of a build, its good commit, and the deployment."""
    directory = in_place.directory
    (directory / "build.sh").write_text(BUILD.replace("DIRECTORY", str(directory)))
    in_place.configure(f'{IN_PLACE}build = ["sh DIRECTORY/build.sh"]\n')
    in_place.start()
    in_place.first()
    good = head(in_place)
    (directory / "hold").touch()
    deployment = in_place.announce(origin.push(site("two")))
    until(lambda: in_place.api(f"/deployments/{deployment}")["phase"] == "building", "build that is held")
    return in_place, good, deployment


def cut_the_power(hookdeploy: Hookdeploy) -> None:
    hookdeploy.stop(signal.SIGKILL)
    until(lambda: not killed(processes_of(hookdeploy.directory)), "end of all processes")


def killed(pids: Collection[int]) -> Collection[int]:
    for pid in pids:
        with suppress(ProcessLookupError):  # it went with another one
            os.kill(pid, signal.SIGKILL)
    return pids


def test_after_a_power_cut_what_served_serves_although_what_was_being_built_is_broken(
    held: tuple[Hookdeploy, str, str],
) -> None:
    """P81, P83."""
    hookdeploy, good, deployment = held
    cut_the_power(hookdeploy)
    (hookdeploy.directory / "broken").touch()
    (hookdeploy.directory / "hold").unlink()
    hookdeploy.start()
    assert hookdeploy.ended(deployment)["outcome"] == "failed"
    hookdeploy.wait_for_page("one")
    until(lambda: head(hookdeploy) == good, "way back to the commit that served")


def test_a_tree_that_was_half_built_at_a_power_cut_is_built_by_the_next_start(
    held: tuple[Hookdeploy, str, str],
) -> None:
    """P83: hookdeploy, its servers and its build are all killed; the new commit is on disk already."""
    hookdeploy, good, deployment = held
    cut_the_power(hookdeploy)
    (hookdeploy.directory / "hold").unlink()
    hookdeploy.start()
    done = hookdeploy.ended(deployment)
    assert (done["outcome"], done["attempts"]) == ("deployed", 2)
    assert (hookdeploy.directory / "built").read_text().strip() == head(hookdeploy) != good
    hookdeploy.wait_for_page("two")


def test_a_deployment_that_was_cut_off_and_then_fails_goes_back_to_what_serves_still(
    held: tuple[Hookdeploy, str, str],
) -> None:
    """P81, P83: only hookdeploy is killed; its server outlives it, and the new commit is on disk already."""
    hookdeploy, good, deployment = held
    hookdeploy.stop(signal.SIGKILL)
    (hookdeploy.directory / "broken").touch()
    (hookdeploy.directory / "hold").unlink()
    hookdeploy.start()
    assert hookdeploy.ended(deployment)["outcome"] == "failed"
    assert hookdeploy.page() == "one"
    until(lambda: head(hookdeploy) == good, "way back to the commit that serves")


@pytest.mark.parametrize("all_of_them", [False, True])
def test_a_tree_that_git_was_writing_when_it_was_killed_heals_by_itself(
    in_place: Hookdeploy, origin: Origin, all_of_them: bool
) -> None:
    """P83: hookdeploy and its git are killed in the midst of many files, with the app's server or without it."""
    clone, held = in_place.directory / "clone", in_place.directory / "held"
    in_place.start()
    in_place.wait_for_page("one")
    git(clone, "config", "filter.slow.smudge", f"touch {held}; exec sleep 1000")
    attributes = clone / ".git" / "info" / "attributes"
    attributes.parent.mkdir(exist_ok=True)
    attributes.write_text("noise-1000 filter=slow\n")
    deployment = in_place.announce(tip := origin.push({**site("two"), **dict.fromkeys(noise(2000), "two\n")}))
    until(held.exists, "checkout that is half done")
    in_place.stop(signal.SIGKILL)
    left = processes_of(in_place.directory)
    killed([pid for pid, words in left.items() if all_of_them or "gunicorn" not in words])
    attributes.unlink()
    assert git(clone, "status", "--porcelain") != ""
    in_place.start()
    in_place.wait_for_page("two")
    assert in_place.ended(deployment)["outcome"] == "deployed"
    assert (head(in_place), git(clone, "status", "--porcelain")) == (tip, "?? __pycache__/")


def noise(number: int) -> list[str]:
    return [f"noise-{name:04}" for name in range(number)]
