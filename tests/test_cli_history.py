"""``history``, ``deliveries``, ``log``, ``why`` and ``open``, against the API as the server serves it."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import json
import re
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, nullcontext
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import pytest_twisted
from click.testing import CliRunner, Result
from rich.console import Console
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from tests.fakes import MemoryJournal
from tests.steered import SteeredApp, api_of, deliver, serving
from tests.waiting import become
from twisted_hook.api import LIMITS
from twisted_hook.changes import Changes, Kind
from twisted_hook.cli import hookdeploy
from twisted_hook.cli.client import Api, ApiError, NotRunning
from twisted_hook.cli.history import deliveries_table, history_table
from twisted_hook.cli.log import log_pieces
from twisted_hook.cli.open import login_link
from twisted_hook.model import Commit, Deployment, Outcome, Phase
from twisted_hook.site import GuardedSite

HOSTILE = "Say \x1b[31mhello\x07 [bold]\u202e"
TIP = Commit("1a2b3c4" + "0" * 33, HOSTILE, "Somebody")
HARMLESS = "Say hello\N{REPLACEMENT CHARACTER} [bold]\N{REPLACEMENT CHARACTER}"


class Told:
    """A server with an app called web and one called docs, and the command in a thread."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.journal = MemoryJournal()
        self.changes = Changes("1")
        self.web, self.docs = self.apps = [SteeredApp(self.journal), SteeredApp(self.journal, "docs")]
        (state / "logs").mkdir()

    def begin(self, *words: str) -> Deferred[Result]:
        return deferToThread(CliRunner().invoke, hookdeploy, [*words, "--state", str(self.state)])

    async def run(self, *words: str) -> Result:
        result: Result = await self.begin(*words)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    async def deployed(self, app: SteeredApp, outcome: Outcome = Outcome.DEPLOYED, reason: str = "") -> Deployment:
        made = await app.deploy(None)
        await app.enter(Phase.BUILDING, 1.0)
        await app.end(outcome, reason, commit=TIP)
        return made

    def log(self, deployment: Deployment) -> Path:
        return self.state / "logs" / f"{deployment.id}.log"


@asynccontextmanager
async def told(state: Path) -> AsyncIterator[Told]:
    server = Told(state)
    api = api_of(server.journal, server.apps, state, changes=server.changes)
    site = GuardedSite(api.app.resource(), screen=type(api).screen, reactor=reactor, limits=LIMITS)
    async with serving(site, state):
        yield server


# --- history and deliveries


@pytest_twisted.ensureDeferred
async def test_what_ran_is_told_with_what_came_of_it_the_newest_first(tmp_path: Path) -> None:
    """P87: what a commit says can steer no terminal."""
    async with told(tmp_path) as server:
        assert (await server.run("history")).stdout == "Nothing was deployed yet.\n"
        first = await server.deployed(server.web)
        second = await server.deployed(server.docs, Outcome.FAILED, "step 'test' failed: exit 1\nmuch more")
        result = await server.run("history")
        assert result.exit_code == 0, result.output
        head, docs, web = result.stdout.splitlines()
        assert head.split() == ["id", "when", "app", "revision", "subject", "trigger", "outcome", "took", "reason"]
        assert docs.startswith(second.id)
        assert " ".join(docs.split()).endswith("failed 3.0 s step 'test' failed: exit 1")
        assert web.startswith(first.id)
        assert f"1a2b3c4 {HARMLESS} manual deployed 3.0 s" in " ".join(web.split())
        assert "\x1b" not in result.stdout
        [only] = (await server.run("history", "web")).stdout.splitlines()[1:]
        assert only.startswith(first.id)
        [newest] = json.loads((await server.run("history", "--limit", "1", "--json")).stdout)
        assert (newest["id"], newest["queued_at"]) == (second.id, "1970-01-01T00:00:00.000Z")
        assert (await server.run("history", "wep")).exit_code == 2


@pytest_twisted.ensureDeferred
async def test_what_arrived_is_told_with_what_it_led_to(tmp_path: Path) -> None:
    async with told(tmp_path) as server:
        assert "hookdeploy send" in (await server.run("deliveries")).stdout
        push = ("acme/web", "refs/heads/main", TIP.revision)
        led = await deliver(server.journal, "1", push, apps=["web"])
        other = await deliver(server.journal, "2", ("acme/web", "refs/tags/v1", None))
        result = await server.run("deliveries")
        head, tag, main = result.stdout.splitlines()
        assert head.split()[:7] == ["id", "when", "hook", "event", "ref", "commit", "verdict"]
        assert tag.startswith(other)
        assert "github push tags/v1" in " ".join(tag.split())
        assert main.startswith(led)
        made = (await server.journal.deployments())[0].id
        assert "github push main 1a2b3c4 accepted" in " ".join(main.split())
        assert main.endswith(made)
        assert json.loads((await server.run("deliveries", "--json")).stdout)[1]["deployments"] == [made]


NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
RAN = {
    "id": "01931f0e5c2a7", "app": "a-rather-long-name", "trigger": "rollback", "revision": "1a2b3c4" + "0" * 33,
    "subject": "界" * 200, "outcome": "rolled_back", "phase": "probation", "reason": "because " * 50,
    "queued_at": "2026-03-01T11:00:00Z", "finished_at": "2026-03-01T11:10:00Z",
}  # fmt: skip
CAME = {
    "id": "01931f0e5c2a7", "received_at": "2026-03-01T11:00:00Z", "hook": "github", "event": "push",
    "ref": f"refs/heads/{'long/' * 30}", "pushes": [1, 2], "after": "1a2b3c4" + "0" * 33, "verdict": "ignored",
    "reason": "because " * 50, "deployments": [],
}  # fmt: skip


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize(("table", "row"), [(history_table, RAN), (deliveries_table, CAME)])
def test_every_table_fits_its_terminal_and_keeps_the_id_whole(width: int, table: Any, row: dict[str, Any]) -> None:
    """Though names, subjects and reasons be as long as they like, and their characters wide."""
    console = Console(width=width, file=(out := StringIO()))
    console.print(table([row, row], NOW, width))
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert all(console.measure(line).maximum <= width for line in lines)
    assert all(re.match("01931f0e5c2a7 +1 h ago .* becau", line) for line in lines[1:])


def test_a_narrow_table_tells_the_subject_of_what_went_well_and_why_the_rest_did_not() -> None:
    for outcome, words in (("deployed", "Say hello"), (None, "Say hello"), ("failed", "exit 1")):
        console = Console(width=100, file=(out := StringIO()))
        row = {**RAN, "app": "web", "subject": "Say hello", "reason": "exit 1", "outcome": outcome}
        console.print(history_table([row], NOW, 100))
        assert out.getvalue().rstrip().endswith(words)


def test_colours_are_for_terminals_alone() -> None:
    for terminal in (True, False):
        console = Console(
            width=200,
            file=(out := StringIO()),
            force_terminal=terminal,
            color_system=("standard" if terminal else "auto"),
        )
        console.print(history_table([RAN], NOW, 200))
        assert ("\x1b[1;31mrolled_back" in out.getvalue()) is terminal


# --- log


@pytest_twisted.ensureDeferred
async def test_a_log_is_printed_harmless(tmp_path: Path) -> None:
    """P79: whatever stands in it, by whose hand ever."""
    async with told(tmp_path) as server:
        assert (await server.run("log")).stderr == "nothing was deployed yet\n"
        first, second = await server.deployed(server.web), await server.deployed(server.docs)
        server.log(first).write_bytes(b"one \x1b[2J\xff\n")
        server.log(second).write_bytes(b"two\n")
        assert (await server.run("log", first.id)).stdout == "one \N{REPLACEMENT CHARACTER}\n"
        assert (await server.run("log")).stdout == "two\n"
        assert (await server.run("log", "web")).stdout == "one \N{REPLACEMENT CHARACTER}\n"
        shown = json.loads((await server.run("log", "--json")).stdout)
        assert (shown["id"], shown["log"]) == (second.id, "two\n")
        unknown = await server.run("log", "nine")
        assert (unknown.exit_code, "neither a deployment nor an app nine" in unknown.stderr) == (2, True)


@pytest_twisted.ensureDeferred
async def test_a_logs_colours_are_for_terminals_alone(tmp_path: Path) -> None:
    async with told(tmp_path) as server:
        made = await server.deployed(server.web)
        server.log(made).write_bytes(b"\x1b[32mgreen\x1b[0m \x1b[2J\n")
        assert (await server.run("log")).stdout == "green \n"

        def pieces() -> str:
            with closing(Api(tmp_path)) as api:
                return "".join(log_pieces(api, made.id, follows=False, colours=True))

        assert await deferToThread(pieces) == "\x1b[32mgreen\x1b[0m \n"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(("outcome", "code"), [(Outcome.DEPLOYED, 0), (Outcome.UNCHANGED, 0), (Outcome.FAILED, 1)])
async def test_a_log_is_followed_to_the_end_of_its_deployment(tmp_path: Path, outcome: Outcome, code: int) -> None:
    """What is written last, a moment before the end, is not lost."""
    async with told(tmp_path) as server:
        made = await server.web.deploy(None)
        server.log(made).write_bytes(b"begun\n")
        asked, found = 0, server.journal.deployment

        async def counted(id: str) -> Deployment | None:
            nonlocal asked
            asked += 1
            return await found(id)

        server.journal.deployment = counted  # type: ignore[method-assign]  # to know that it is being followed
        command = server.begin("log", "-f")
        await become(lambda: asked >= 2)
        with server.log(made).open("ab") as log:
            log.write(b"the end\n")
        await server.web.end(outcome)
        server.changes.publish(Kind.DEPLOYMENT, made.id)
        result = await command
        assert (result.stdout, result.exit_code) == ("begun\nthe end\n", code), result.stderr


class CutOff(Api):
    """A server that is restarted while a log is followed, twice: once the connection breaks, once it just ends."""

    def __init__(self) -> None:
        super().__init__(Path("nowhere"))
        self.since: list[str | int] = []

    def events(self, path: str, **parameters: str | int) -> Iterator[tuple[str, Any, str]]:
        self.since.append(parameters["since"])
        match len(self.since):
            case 1:
                yield "log", "one ", "4"
                raise ApiError("cut off")
            case 2:
                yield "log", "two ", "8"
            case 3:
                raise NotRunning("away")
            case _:
                yield "log", "three", "13"
                yield "end", {"outcome": "deployed"}, "13"

    def get(self, path: str, **parameters: str | int) -> Any:
        return {"outcome": None}


def test_a_log_is_followed_through_restarts_and_nothing_is_told_twice() -> None:
    api = CutOff()
    assert "".join(log_pieces(api, "1", follows=True)) == "one two three"
    assert api.since == ["0", "4", "8", "8"]


@pytest_twisted.ensureDeferred
async def test_the_log_of_the_one_that_supersedes_it_is_followed_instead(tmp_path: Path) -> None:
    async with told(tmp_path) as server:
        first = await server.web.deploy(None)
        second = await server.web.deploy(None)
        server.log(second).write_bytes(b"second\n")
        await server.web.end(Outcome.DEPLOYED, commit=TIP)
        result = await server.run("log", "-f", first.id)
        assert (result.exit_code, result.stdout) == (0, "second\n")
        assert f"{first.id} is superseded by {second.id}" in result.stderr


# --- why


@pytest_twisted.ensureDeferred
async def test_a_failure_is_explained_with_its_last_lines_and_the_next_step(tmp_path: Path) -> None:
    async with told(tmp_path) as server:
        await server.deployed(server.web)
        failed = await server.deployed(
            server.web, Outcome.FAILED, "step 'test' failed: exit 1\n\x1b[31m1 failed\x1b[0m"
        )
        result = await server.run("why")
        assert result.exit_code == 0
        head, what, _, said, _, now, _, *following = result.stdout.splitlines()
        assert head.startswith(f"web: deployment {failed.id} 1a2b3c4 {HARMLESS} (manual, ")
        assert what == "It failed while it was being built: step 'test' failed: exit 1."
        assert (said, now) == ("    1 failed", f"web stays at 1a2b3c4 {HARMLESS}.")
        assert following[0] == "Next:"
        assert f"       hookdeploy log {failed.id}" in following
        assert "\x1b" not in result.stdout
        assert (await server.run("why", "web")).stdout == result.stdout
        shown = json.loads((await server.run("why", failed.id, "--json")).stdout)
        assert (shown["id"], shown["advice"]["said"]) == (failed.id, "\x1b[31m1 failed\x1b[0m")


@pytest_twisted.ensureDeferred
async def test_a_refused_deploy_key_names_the_page_where_it_belongs(tmp_path: Path) -> None:
    async with told(tmp_path) as server:
        server.web.repository = "git@github.com:acme/web.git"
        await server.deployed(
            server.web, Outcome.FAILED, "main could not be fetched: the remote refused the deploy key"
        )
        assert "https://github.com/acme/web/settings/keys" in (await server.run("why")).stdout


@pytest_twisted.ensureDeferred
async def test_where_the_reason_has_no_last_lines_the_log_has(tmp_path: Path) -> None:
    async with told(tmp_path) as server:
        failed = await server.deployed(server.web, Outcome.FAILED, "who knows")
        server.log(failed).write_bytes(b"".join(b"line %d\n" % number for number in range(100)))
        said = (await server.run("why")).stdout
        assert "    line 85\n" in said
        assert "line 84\n" not in said


@pytest_twisted.ensureDeferred
async def test_why_a_push_did_not_deploy_is_told_by_its_delivery(tmp_path: Path) -> None:
    async with told(tmp_path) as server:
        assert "hookdeploy doctor" in (await server.run("why")).stdout
        await server.deployed(server.web)
        ignored = await deliver(server.journal, "1", ("acme/web", "refs/heads/topic", TIP.revision))
        newest = (await server.run("why")).stdout
        assert "was told of refs/heads/topic of acme/web, and nothing was deployed" in newest
        assert f"1a2b3c4 {HARMLESS} was deployed, and is what there is now." in newest
        assert (await server.run("why", ignored)).stdout.startswith(f"delivery {ignored}, ")
        led = await deliver(server.journal, "2", ("acme/web", "refs/heads/main", TIP.revision), apps=["web"])
        said = (await server.run("why", led)).stdout
        assert "that led to" in said
        assert "It waits for its turn." in said
        assert json.loads((await server.run("why", led, "--json")).stdout)["hook"] == "github"
        assert (await server.run("why", "nine")).exit_code == 2


# --- open


class Listening(Api):
    """A server whose dashboard is there."""

    def get(self, path: str, **parameters: str | int) -> Any:
        return {"dashboard": ["unix:/run/x", "http://127.0.0.1:8001/"]}


def test_the_link_has_the_token(tmp_path: Path) -> None:
    """As Jupyter's."""
    api = Listening(tmp_path)
    with pytest.raises(ApiError, match="token cannot be read"):
        login_link(api)
    (tmp_path / "token").write_text("a/b\n")
    assert login_link(api) == "http://127.0.0.1:8001/login?token=a%2Fb"


def test_no_command_line_holds_the_token(tmp_path: Path) -> None:
    """What a browser is started with can be read by everybody on the machine (``ps``)."""
    (tmp_path / "token").write_text("a&b\n")
    opened: list[str] = []
    with (
        mock.patch("twisted_hook.cli.open.running_server", return_value=nullcontext(Listening(tmp_path))),
        mock.patch("click.launch", opened.append),
    ):
        for _ in range(2):
            result = CliRunner().invoke(hookdeploy, ["open", "--state", str(tmp_path)])
            assert result.exit_code == 0, result.output
    page = tmp_path / "open.html"
    assert opened == [page.as_uri()] * 2
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert 'content="0; url=http://127.0.0.1:8001/login?token=a%26b"' in page.read_text()


@pytest_twisted.ensureDeferred
async def test_where_no_dashboard_listens_it_says_how_to_turn_it_on(tmp_path: Path) -> None:
    async with told(tmp_path) as server:
        result = await server.run("open", "--print")
        assert (result.exit_code, '  listen = ["tcp:8001:interface=127.0.0.1"]' in result.stderr) == (1, True)


@pytest.mark.parametrize("command", ["history", "deliveries", "log", "why", "open"])
def test_where_no_server_runs_that_is_said(tmp_path: Path, command: str) -> None:
    result = CliRunner().invoke(hookdeploy, [command, "--state", str(tmp_path)])
    assert (result.exit_code, "hookdeploy does not run" in result.stderr) == (3, True)
