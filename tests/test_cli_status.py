"""``hookdeploy status`` and ``secret list``: what they show, against the API as the server serves it."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
import pytest_twisted
from click.testing import CliRunner, Result
from rich.console import Console
from twisted.internet.threads import deferToThread

from tests.fakes import MemoryJournal
from tests.steered import HOOK, SteeredApp, serving, site_of
from twisted_hook.cli import hookdeploy
from twisted_hook.cli.status import hooks_table, is_replaced
from twisted_hook.cli.tables import ago
from twisted_hook.hooks import Secret
from twisted_hook.model import Commit, Message, NewDelivery, Outcome, Phase, Trigger

OLD, NEW = Secret(b"o" * 32, "file old.secret"), Secret(b"n" * 32, "file new.secret")


class Shown:
    """A server with an app called web and one called docs, and the command in a thread."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.journal = MemoryJournal()
        self.web, self.docs = self.apps = [SteeredApp(self.journal), SteeredApp(self.journal, "docs")]

    async def run(self, *words: str) -> Result:
        result: Result = await deferToThread(CliRunner().invoke, hookdeploy, [*words, "--state", str(self.state)])
        return result

    async def verify(self, secret: Secret, guid: str, at: float) -> None:
        message = Message(guid, "push", reason="a ping")
        await self.journal.accept(NewDelivery(HOOK, message, guid, at, (), "a ping", secret=secret.name))


@asynccontextmanager
async def shown(state: Path) -> AsyncIterator[Shown]:
    server = Shown(state)
    site = site_of(server.journal, server.apps, state, secrets=(OLD, NEW))
    async with serving(site, state):
        yield server


@pytest_twisted.ensureDeferred
async def test_what_runs_and_what_is_held_is_told_in_a_line_for_each_app(tmp_path: Path) -> None:
    async with shown(tmp_path) as server:
        made = await server.journal.enqueue("web", Trigger.MANUAL)
        tip = Commit("1a2b3c4" + "0" * 33, "Say \x1b[31mhello\x07\n[bold]:smile:", "Somebody")
        await server.journal.describe(made.id, commit=tip, previous=None, release="r1")
        await server.journal.finish(made.id, Outcome.DEPLOYED, 3.0)
        running = await server.web.deploy(None)
        await server.web.pin()
        result = await server.run("status")
        assert result.exit_code == 0, result.output
        head, web, docs, *_ = result.stdout.splitlines()
        assert head.split() == ["app", "state", "since", "revision", "subject", "lane"]
        said = re.sub(r"\d+ d ago", "AGO", web).split()
        assert said == ["web", "deployed", "AGO", "1a2b3c4", "Say", "hello\N{REPLACEMENT CHARACTER}", "[bold]:smile:",
                               "deploys,", "pinned"]  # fmt: skip
        assert docs.split() == ["docs", "no", "release"]
        assert re.search(
            rf"^web: deployment {running.id} runs: queued for \d+ d \(manual\)\n", result.stdout, re.MULTILINE
        )
        assert "\x1b" not in result.stdout


@pytest_twisted.ensureDeferred
async def test_why_the_last_deployment_failed_is_told_until_one_is_good(tmp_path: Path) -> None:
    """Though nothing waits, and whatever has come to nothing since."""
    async with shown(tmp_path) as server:
        tip = Commit("1a2b3c4" + "0" * 33, "Say hello", "Somebody")
        failed = await server.web.deploy(None)
        await server.web.enter(Phase.BUILDING, 1.0)
        await server.web.end(Outcome.FAILED, "step 'test' failed: exit 1\n\x1b[31m1 failed\x1b[0m", commit=tip)
        for outcome in (Outcome.UNCHANGED, Outcome.CANCELLED):
            await server.web.deploy(None)
            await server.web.end(outcome, "so it is")
        lines = (await server.run("status")).stdout.splitlines()
        [line] = [line for line in lines if "last deployment" in line]
        assert line.startswith("web: the last deployment of 1a2b3c4 failed ")
        assert line.endswith(f"building: step 'test' failed: exit 1 (hookdeploy why {failed.id})")
        await server.web.deploy(None)
        await server.web.end(Outcome.DEPLOYED, commit=tip)
        assert "last deployment" not in (await server.run("status", "web")).stdout


@pytest_twisted.ensureDeferred
async def test_which_secret_has_verified_when_is_told_and_what_can_be_removed(tmp_path: Path) -> None:
    """A rotation that can be finished, from the old secret alone to the new one alone."""
    async with shown(tmp_path) as server:

        async def rows() -> list[str]:
            result = await server.run("secret", "list")
            assert result.exit_code == 0, result.output
            return [" ".join(line.split()) for line in result.stdout.splitlines()[1:]]

        assert await rows() == ["github /x github file old.secret never", "file new.secret never"]
        await server.verify(OLD, "1", 1.0)
        first, second = await rows()
        assert (first.endswith(" d ago"), second) == (True, "file new.secret never")
        await server.verify(NEW, "2", 2.0)
        first, second, _, note = await rows()
        assert first.endswith(" d ago can be removed")
        assert second.endswith(" d ago")
        assert "every webhook" in note
        assert "can be removed" in (await server.run("status")).stdout


@pytest_twisted.ensureDeferred
async def test_in_json_it_is_what_the_api_says(tmp_path: Path) -> None:
    async with shown(tmp_path) as server:
        [web, docs] = json.loads((await server.run("status", "--json")).stdout)
        assert (web["name"], docs["name"]) == ("web", "docs")
        one = json.loads((await server.run("status", "web", "--json")).stdout)
        assert one == {**web, "kept": one["kept"]}
        [hook] = json.loads((await server.run("secret", "list", "--json")).stdout)
        assert [secret["source"] for secret in hook["secrets"]] == [OLD.source, NEW.source]
        assert [hook] == json.loads((await server.run("secret", "list", HOOK, "--json")).stdout)


@pytest_twisted.ensureDeferred
async def test_of_one_app_the_kept_releases_are_told_too(tmp_path: Path) -> None:
    async with shown(tmp_path) as server:
        result = await server.run("status", "web")
        assert "keeps r1 9f8e7d6 Say nothing" in result.stdout
        assert "docs" not in result.stdout
        unknown = await server.run("status", "wep")
        assert (unknown.exit_code, "did you mean web?" in unknown.stderr) == (2, True)
        unknown = await server.run("secret", "list", "githab")
        assert (unknown.exit_code, "did you mean github?" in unknown.stderr) == (2, True)


@pytest.mark.parametrize("words", [("status",), ("secret", "list")])
def test_where_no_server_runs_that_is_said(tmp_path: Path, words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(hookdeploy, [*words, "--state", str(tmp_path)])
    assert (result.exit_code, "hookdeploy does not run" in result.stderr) == (3, True)


def test_how_long_ago_it_was_is_told_in_one_unit() -> None:
    now = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
    for at, words in (
        ("2026-03-01T12:00:05.000Z", "0 s ago"), ("2026-03-01T11:59:01.000Z", "59 s ago"),
        ("2026-03-01T11:59:00.000Z", "1 min ago"), ("2026-03-01T09:00:01.000Z", "2 h ago"),
        ("2026-02-26T12:00:00.000Z", "3 d ago"),
    ):  # fmt: skip
        assert ago(at, now) == words


@pytest.mark.parametrize(
    ("times", "removable"),
    [
        ((None, None), []),
        ((1, None), []),
        ((None, 1), []),  # it may be the next one, written first
        ((1, 2), [0]),
        ((2, 1), []),
        ((1, 1), []),
        ((1, 2, 3), [0, 1]),
        ((1, None, 3), [0]),
        ((3, 2, None), []),
    ],
)
def test_a_secret_can_be_removed_only_when_a_newer_one_has_verified_since(
    times: tuple[int | None, ...], removable: list[int]
) -> None:
    secrets = [{"last_verified_at": at and f"2026-03-0{at}T00:00:00.000Z"} for at in times]
    assert [place for place in range(len(times)) if is_replaced(secrets, place)] == removable


def test_a_narrow_terminal_is_fitted() -> None:
    secret = {"source": f"file {'x' * 200}", "last_verified_at": None}
    hook = {"name": "github", "path": "/hooks/github", "forge": "github", "secrets": [secret]}
    console = Console(width=60, file=(out := StringIO()))
    console.print(hooks_table([hook], datetime.now(UTC)))
    [_, row] = out.getvalue().splitlines()
    assert len(row) <= 60
    assert "never" in row
