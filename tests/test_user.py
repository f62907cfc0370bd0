"""An app with an account of its own, in the running program: what its steps may, and what is closed to them."""

from __future__ import annotations

import stat
from collections.abc import Iterator

import pytest

from tests.accounts import NEEDS_ROOT, NOBODY, open_directory
from tests.installed import Hookdeploy, Origin, put_away, site
from tests.test_reload import hang_up

pytestmark = pytest.mark.skipif(bool(NEEDS_ROOT), reason=NEEDS_ROOT)

CONFIG = """
state = "state"
[server]
listen = ["tcp:HOOK_PORT:interface=127.0.0.1"]
[hooks.github]
secrets = [{ file = "hook.secret" }]
[apps.web]
hook = "github"
repository = "DIRECTORY/origin.git"
names = ["acme/web"]
poll = "0"
build = ["sh build.sh DIRECTORY/state DIRECTORY/hook.secret"]
"""
AS_NOBODY = f"""{CONFIG}
user = "{NOBODY.pw_name}"
shared = ["media/"]
"""
BUILD = """
echo "I am $(id -un)"
touch built media/upload && echo "I can write"
ls "$1" "$1/apps" "$1/logs" > /dev/null 2>&1 && echo "I can list"
for file in "$1/lock" "$1/journal.sqlite3" "$1/api.sock" "$1/keeper.sock" "$1/logs/." "$1/mirrors/." "$2"; do
    test -e "$file" && test -r "$file" && echo "I can read $file"
    test -e "$file" && test -w "$file" && echo "I can write $file"
done
for directory in "$1" "$1/apps" "$1/apps/web" "$1/apps/web/releases" "$1/apps/web/servers"; do
    test -w "$directory" && echo "I can change $directory"
done
true
"""


@pytest.fixture
def origin() -> Iterator[Origin]:
    with open_directory() as directory:
        made = Origin(directory)
        made.push({**site("one"), "build.sh": BUILD})
        yield made


@pytest.fixture
def hookdeploy(origin: Origin) -> Iterator[Hookdeploy]:
    with put_away(Hookdeploy(origin.path.parent, config=AS_NOBODY)) as made:
        yield made


def said(hookdeploy: Hookdeploy, deployment: str) -> list[str]:
    return [line for line in hookdeploy.log_of(deployment).splitlines() if line.startswith("I ")]


def test_steps_run_as_the_account_and_what_is_ours_is_closed_to_them(hookdeploy: Hookdeploy) -> None:
    """T35: the state directory lets the account through, and shows it nothing."""
    hookdeploy.start()
    done = hookdeploy.first()
    assert done["outcome"] == "deployed", done["reason"]
    assert said(hookdeploy, done["id"]) == [f"I am {NOBODY.pw_name}", "I can write"]
    assert (hookdeploy.state / "apps/web/shared/media/upload").owner() == NOBODY.pw_name


def test_an_account_that_a_reload_brings_is_let_in(hookdeploy: Hookdeploy, origin: Origin) -> None:
    hookdeploy.configure(CONFIG)
    hookdeploy.start()
    hookdeploy.first()
    assert stat.S_IMODE(hookdeploy.state.stat().st_mode) == 0o700
    hang_up(hookdeploy, AS_NOBODY)
    tip = origin.push(site("two"))
    hookdeploy.ended(hookdeploy.announce(tip))
    # Another account is another release too: what the reload deploys may be the tip, before its push is heard of.
    of_the_tip = [each for each in hookdeploy.api("/deployments") if each["revision"] == tip]
    [done] = [each for each in of_the_tip if each["outcome"] == "deployed"]
    assert said(hookdeploy, done["id"]) == [f"I am {NOBODY.pw_name}", "I can write"]
