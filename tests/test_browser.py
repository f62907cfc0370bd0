"""A person in front of the page: the installed program, a real Chromium, and real pushes.

Screenshots of what was seen lie in ``.screenshots`` afterwards. What is waited for is what a person would wait for:
words on the page.
"""

# axe-playwright-python has no types.
# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import PATIENCE

pytest.importorskip("playwright", reason="playwright is not installed")

from axe_playwright_python.sync_playwright import Axe
from click.testing import CliRunner
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.installed import RELEASE, Hookdeploy, Origin, put_away, site
from twisted_hook.cli import hookdeploy as command

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
SCREENSHOTS = Path(__file__).parent.parent / ".screenshots"
BUILD = "while [ -e DIRECTORY/hold ]; do sleep 0.02; done; printf '\\033[32mbuilt well\\033[0m\\n'; test ! -e broken"
SITE = f"""{RELEASE}build = ["sh DIRECTORY/build.sh"]

[dashboard]
listen = ["tcp:PAGE_PORT:interface=127.0.0.1"]
"""
HOSTILE = '<script>document.title = "taken"</script><img src=x onerror="document.title = 1">'
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]

pytestmark = pytest.mark.skipif(
    not os.environ.get("HOOKDEPLOY_ALL_TESTS") and not Path(CHROMIUM).exists(), reason="chromium is not installed"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    quiet = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", *quiet])
        expect.set_options(timeout=PATIENCE * 1000)
        yield chromium
        chromium.close()


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    return Origin(tmp_path)


@pytest.fixture
def server(tmp_path: Path, origin: Origin) -> Iterator[Hookdeploy]:
    """A hookdeploy that serves page one; its builds last while the file ``hold`` is there."""
    origin.push(site("one"), "The first page")
    (tmp_path / "build.sh").write_text(BUILD.replace("DIRECTORY", str(tmp_path)))
    with put_away(Hookdeploy(tmp_path, config=SITE)) as hookdeploy:
        hookdeploy.start()
        assert hookdeploy.first()["outcome"] == "deployed"
        yield hookdeploy


@pytest.fixture
def page(browser: Browser, server: Hookdeploy) -> Iterator[Page]:
    """The first page, after the login by the printed link. What it complains about in its console fails a test."""
    with looking(browser) as page:
        complaints: list[str] = []
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(link(server))
        yield page
        assert [each for each in complaints if "net::ERR_" not in each] == []


@contextmanager
def looking(browser: Browser, **how: Any) -> Iterator[Page]:
    """An empty page of somebody who has not been here before."""
    with browser.new_context(**how) as context:
        context.set_default_timeout(PATIENCE * 1000)
        yield context.new_page()


def link(server: Hookdeploy) -> str:
    """What ``hookdeploy open`` prints."""
    result = CliRunner().invoke(command, ["open", "--print", "--state", str(server.state)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """While this file is there, builds last."""
    hold = tmp_path / "hold"
    hold.touch()
    return hold


def kept(page: Page, name: str) -> None:
    """A screenshot to look at."""
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def faults(page: Page) -> str:
    """What axe finds against WCAG 2.2 AA on the page; empty if that is nothing."""
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": RULES}})
    return found.generate_report() if found.violations_count else ""


# --- the first login


def test_the_printed_link_or_the_token_logs_in_and_it_does_not_stay_in_the_address(
    browser: Browser, page: Page, server: Hookdeploy
) -> None:
    expect(page.get_by_role("heading", name="Apps")).to_be_visible()
    assert page.url == f"http://127.0.0.1:{server.page_port}/"
    [cookie] = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    page.reload()
    expect(page.get_by_role("link", name="web", exact=True)).to_be_visible()
    with looking(browser) as other:  # who is not logged in is asked for the token
        other.goto(f"http://127.0.0.1:{server.page_port}/")
        other.get_by_label("Token").fill("not the token")
        other.get_by_role("button", name="Sign in").click()
        expect(other.get_by_role("alert")).to_be_visible()
        kept(other, "login")
        assert faults(other) == ""
        other.get_by_label("Token").fill((server.state / "token").read_text().strip())
        other.get_by_role("button", name="Sign in").click()
        expect(other.get_by_role("heading", name="Apps")).to_be_visible()
        other.get_by_role("button", name="Sign out").click()
        expect(other.get_by_label("Token")).to_be_visible()
        other.goto(f"http://127.0.0.1:{server.page_port}/deliveries")
        expect(other.get_by_label("Token")).to_be_visible()


# --- deployments, live


def test_a_deployment_is_seen_live_from_the_push_to_its_end(
    page: Page, server: Hookdeploy, origin: Origin, held: Path
) -> None:
    """P87: a hostile commit message is shown as text."""
    deployment = server.announce(origin.push(site("two"), HOSTILE))
    card = page.get_by_role("article", name="web")
    expect(card).to_contain_text("building")
    expect(card).to_contain_text(HOSTILE)
    kept(page, "building")
    card.get_by_role("link", name="building").click()
    expect(page).to_have_url(re.compile("/deployments/"))
    expect(page.get_by_role("row", name="building")).to_have_attribute("aria-current", "step")
    held.unlink()
    expect(page.locator("#log")).to_contain_text("built well")
    expect(page.get_by_role("main")).to_contain_text("deployed")
    assert server.ended(deployment)["outcome"] == "deployed"
    colour = page.locator("#log").get_by_text("built well").evaluate("each => getComputedStyle(each).color")
    assert colour != page.locator("#log").evaluate("each => getComputedStyle(each).color"), "a terminal shows it green"
    kept(page, "deployed")
    page.get_by_role("link", name="hookdeploy").click()
    expect(page.get_by_role("article", name="web")).to_contain_text(HOSTILE)
    for path in ("/apps/web", f"/deployments/{deployment}", "/deliveries"):
        page.goto(f"http://127.0.0.1:{server.page_port}{path}")
        expect(page.get_by_role("main")).to_be_visible()
        assert "hookdeploy" in page.title()
        assert page.locator("main script, main img").count() == 0


def test_a_deployment_that_fails_says_why_and_what_runs(page: Page, server: Hookdeploy, origin: Origin) -> None:
    server.ended(server.announce(origin.push({"broken": "yes"}, "A change that does not build")))
    card = page.get_by_role("article", name="web")
    expect(card).to_contain_text("exit 1")
    expect(card).to_contain_text("The first page")
    kept(page, "failed")
    card.get_by_role("link", name="Why, and its log").click()
    expect(page.get_by_role("heading", name="What happened")).to_be_visible()
    expect(page.get_by_role("main")).to_contain_text("exit 1")
    kept(page, "why")
    assert faults(page) == ""


def test_a_release_is_put_back_by_a_button_that_asks_first_and_without_javascript_too(
    browser: Browser, page: Page, server: Hookdeploy, origin: Origin
) -> None:
    server.ended(server.announce(origin.push(site("two"), "The second page")))
    server.wait_for_page("two")
    page.get_by_role("link", name="web", exact=True).click()
    row = page.get_by_role("listitem").filter(has_text="The first page")
    row.get_by_role("button").first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    kept(page, "asks")
    dialog.get_by_role("button", name="No").click()
    expect(dialog).to_be_hidden()
    row.get_by_role("button").first.click()
    dialog.get_by_role("button", name="Yes").click()
    server.wait_for_page("one")
    expect(page.get_by_role("main")).to_contain_text("The first page")
    server.ended(server.api("/deployments", limit=1)[0]["id"])
    with looking(browser, java_script_enabled=False) as plain:
        plain.goto(link(server))
        plain.get_by_role("link", name="web", exact=True).click()
        row = plain.get_by_role("listitem").filter(has_text="The second page")
        row.get_by_role("button").first.click()
        expect(plain.get_by_role("link", name="No, go back")).to_be_visible()
        yes = plain.get_by_role("button", name="Yes, do it")
        yes.click()
        expect(yes).to_be_hidden()  # or the next page would be asked for in place of this one's answer
        server.wait_for_page("two")
        plain.goto(f"http://127.0.0.1:{server.page_port}/apps/web")
        plain.get_by_role("button", name="Pause").click()
        expect(plain.get_by_role("main")).to_contain_text("paused")
        assert server.api("/apps/web")["paused"]


# --- for everybody

TOO_WIDE = """
document.documentElement.scrollWidth <= innerWidth ? [] :
    [...document.body.querySelectorAll("*")].filter(each => each.getBoundingClientRect().right > innerWidth)
        .map(each => each.outerHTML.slice(0, 100))
"""
"""What does not fit in the window of a page that does not."""


def test_every_page_is_fit_for_all_readers_and_telephones_and_can_be_used_by_keys_alone(
    browser: Browser, server: Hookdeploy, origin: Origin
) -> None:
    server.ended(server.announce(origin.push(site("two"), "A subject that is rather long " * 8)))
    failed = server.announce(origin.push({"broken": "yes"}, "A change that does not build"))
    server.ended(failed)
    [delivery] = (each["id"] for each in server.api("/deliveries", limit=1))
    with looking(browser) as page:
        page.goto(link(server))
        paths = ("/", "/apps/web", f"/deployments/{failed}", "/deliveries", f"/deliveries/{delivery}", "/hooks")
        for path in paths:
            page.goto(f"http://127.0.0.1:{server.page_port}{path}")
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                assert faults(page) == "", (path, scheme)
                kept(page, f"{scheme}-{path.strip('/').partition('/')[0] or 'overview'}")
        page.set_viewport_size({"width": 360, "height": 740})
        for path in paths:
            page.goto(f"http://127.0.0.1:{server.page_port}{path}")
            assert page.evaluate(TOO_WIDE) == [], path
            kept(page, f"telephone-{path.strip('/').partition('/')[0] or 'overview'}")
        page.goto(f"http://127.0.0.1:{server.page_port}/")
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="web", exact=True)).to_be_focused()


def test_it_says_that_the_connection_is_lost_and_goes_on_when_it_is_back(page: Page, server: Hookdeploy) -> None:
    expect(page.locator("#lost")).to_be_hidden()
    server.stop()
    expect(page.locator("#lost")).to_be_visible()
    kept(page, "lost")
    server.start()
    expect(page.locator("#lost")).to_be_hidden()
    server.wait_for_page("one")  # it is not to be stopped in the middle of its start
