"""A repository of two services and one hook, by the installed program: a push deploys the one that it changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import payloads
from tests.installed import RELEASE, Hookdeploy, Origin, free_port, put_away, site
from tests.waiting import until

BLOG = RELEASE.replace("[apps.web]", "[apps.blog]").replace('"wsgi:application"', '"blog.wsgi:application"')
SHOP = BLOG[BLOG.index("[apps.blog]") :].replace("blog", "shop").replace("APP_PORT", "SHOP_PORT")


def service(name: str, text: str) -> dict[str, str]:
    return {f"{name}/{file}": content for file, content in site(text).items()}


def both(deployments: list[Any]) -> list[Any] | None:
    return deployments if {each["app"] for each in deployments} == {"blog", "shop"} else None


@pytest.fixture
def monorepo(tmp_path: Path) -> Iterator[tuple[Hookdeploy, Origin]]:
    """One that serves both."""
    origin = Origin(tmp_path)
    origin.push({**service("blog", "blog one"), **service("shop", "shop one")})
    shop = SHOP.replace("SHOP_PORT", str(free_port()))
    config = f'{BLOG}paths = ["blog/**", "!**/*.md"]\n\n{shop}paths = ["shop", "lib/**"]\n'
    with put_away(Hookdeploy(tmp_path, config=config)) as hookdeploy:
        hookdeploy.start()
        for first in until(lambda: both(hookdeploy.api("/deployments")), "first deployments"):
            assert hookdeploy.ended(first["id"])["outcome"] == "deployed"
        hookdeploy.wait_for_page("blog one")
        yield hookdeploy, origin


def outcomes(hookdeploy: Hookdeploy, commit: str) -> dict[str, Any]:
    """What becomes of a push whose payload says nothing of files, by app."""
    told = hookdeploy.send(payloads.push(after=commit), guid=f"guid-{commit}")
    assert (told["code"], len(told["deployments"])) == (202, 2), told
    ended = [hookdeploy.ended(deployment) for deployment in told["deployments"]]
    return {each["app"]: each for each in ended}


def test_one_push_deploys_what_it_changes_and_says_why_it_deploys_nothing_else(
    monorepo: tuple[Hookdeploy, Origin],
) -> None:
    hookdeploy, origin = monorepo
    done = outcomes(hookdeploy, origin.push(service("blog", "blog two")))
    assert {app: each["outcome"] for app, each in done.items()} == {"blog": "deployed", "shop": "unchanged"}
    assert "changes nothing of shop, lib/** since " in done["shop"]["reason"]
    hookdeploy.wait_for_page("blog two")

    done = outcomes(hookdeploy, origin.push({"lib/money.py": "", "blog/NOTES.md": "notes\n"}))
    assert {app: each["outcome"] for app, each in done.items()} == {"blog": "unchanged", "shop": "deployed"}

    done = outcomes(hookdeploy, origin.push(service("blog", "blog three"), "Try it\n\n[Skip Deploy]"))
    assert {app: each["outcome"] for app, each in done.items()} == {"blog": "unchanged", "shop": "unchanged"}
    assert "has a message that says [skip deploy]" in done["blog"]["reason"]
    assert hookdeploy.page() == "blog two"

    hookdeploy.stop()
    hookdeploy.start()
    done = outcomes(hookdeploy, origin.push({"README": "one\n"}, "Go on"))
    assert {app: each["outcome"] for app, each in done.items()} == {"blog": "deployed", "shop": "unchanged"}
    hookdeploy.wait_for_page("blog three")
