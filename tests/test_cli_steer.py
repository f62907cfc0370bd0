"""The commands that steer, against the API as the server serves it: what they ask, what they show, how they end."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path

import pytest
import pytest_twisted
from click.testing import CliRunner, Result
from rich.console import Console
from twisted.internet.threads import deferToThread

from tests.fakes import MemoryJournal
from tests.steered import OLD, SteeredApp, deliver, serving, site_of
from tests.waiting import PATIENCE, become
from twisted_hook.cli import hookdeploy
from twisted_hook.cli.client import Api, ApiError, NotRunning
from twisted_hook.cli.follow import Answer, Progress, follow
from twisted_hook.model import Commit, Deployment, JournalUnavailable, Outcome, Phase, Steering, Trigger

TIP = Commit("1a2b3c4" + "0" * 33, "Say hello", "Somebody")


class Steered:
    """A server with one app, and the command as somebody types it, in a thread: it blocks, and the server must not."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.journal = MemoryJournal()
        self.web = SteeredApp(self.journal)
        self.apps = [self.web]

    async def run(self, *words: str) -> Result:
        result: Result = await deferToThread(CliRunner().invoke, hookdeploy, [*words, "--state", str(self.state)])
        return result

    def begin(self, *words: str) -> Running:
        return Running(self, words)

    async def newest(self) -> Deployment:
        return (await self.journal.deployments())[0]


class Running:
    """A command that follows what it has begun."""

    def __init__(self, steered: Steered, words: tuple[str, ...]) -> None:
        self._deferred = deferToThread(
            CliRunner().invoke, hookdeploy, [*words, "--state", str(steered.state)], catch_exceptions=False
        )

    async def ended(self) -> Result:
        result: Result = await self._deferred
        return result


@asynccontextmanager
async def steered(state: Path, *more: str) -> AsyncIterator[Steered]:
    """A server with an app called web, and more by these names."""
    server = Steered(state)
    server.apps += [SteeredApp(server.journal, name) for name in more]
    async with serving(site_of(server.journal, server.apps, state), state):
        yield server


async def runs(app: SteeredApp) -> None:
    """Wait until something runs in the lane."""
    await become(lambda: app.lane.running is not None)


# --- deploy and roll back


@pytest_twisted.ensureDeferred
async def test_a_deployment_is_followed_phase_by_phase_to_its_end(tmp_path: Path) -> None:
    async with steered(tmp_path) as server:
        command = server.begin("deploy")
        await runs(server.web)
        await server.web.enter(Phase.FETCHING, 0.25)
        await server.web.enter(Phase.BUILDING, 1.0)
        await server.web.end(Outcome.DEPLOYED, commit=TIP)
        result = await command.ended()
        assert result.exit_code == 0, result.output
        assert result.output == (
            f"web: deployment {(await server.newest()).id}\n"
            "  queued        0.25 s\n"
            "  fetching      0.75 s\n"
            "  building      2.00 s\n"
            "deployed 1a2b3c4 Say hello as release release-1a2b3c4 in 3.00 s\n"
        )


@pytest_twisted.ensureDeferred
async def test_each_phase_is_told_with_the_time_that_it_usually_takes(tmp_path: Path) -> None:
    async with steered(tmp_path) as server:
        for building in (1.5, 1.0, 2.0):
            await server.web.deploy(None)
            await server.web.enter(Phase.BUILDING, 3.0 - building)
            await server.web.end(Outcome.DEPLOYED, commit=OLD)
        command = server.begin("deploy")
        await runs(server.web)
        await server.web.enter(Phase.BUILDING, 1.0)
        await server.web.end(Outcome.DEPLOYED, commit=TIP)
        result = await command.ended()
        assert "  queued        1.00 s   usually 1.50 s\n  building      2.00 s   usually 1.50 s\n" in result.output


def test_on_a_terminal_what_it_is_at_turns_below_what_is_done() -> None:
    """And nothing is left of it at the end."""
    say = Console(file=(out := StringIO()), force_terminal=True, width=80, highlight=False)
    progress = Progress(say, lambda deployment: {"building": 1.5})
    begun: Answer = {**BEGUN, "app": "web", "trigger": "push", "queued_at": "2026-03-01T12:00:00Z", "phases": []}
    building = {**begun, "phases": [{"phase": "building", "at": "2026-03-01T12:00:01Z"}]}
    for deployment in (begun, building, {**building, "outcome": "deployed", "finished_at": "2026-03-01T12:00:03Z"}):
        progress.tell(deployment)
    assert "  queued        1.00 s\n" in out.getvalue()
    assert "  building      2.00 s   usually 1.50 s\n" in out.getvalue()
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1  # the cursor is back


@pytest_twisted.ensureDeferred
async def test_a_revision_is_passed_on(tmp_path: Path) -> None:
    async with steered(tmp_path) as server:
        result = await server.run("deploy", "web", "1a2b3c4", "--detach")
        newest = await server.newest()
        assert (result.exit_code, result.output) == (0, f"web: deploy {newest.id} is on its way\n")
        assert (newest.trigger, newest.wanted, newest.outcome) == (Trigger.MANUAL, "1a2b3c4", None)


@pytest_twisted.ensureDeferred
async def test_what_runs_already_is_no_failure(tmp_path: Path) -> None:
    async with steered(tmp_path) as server:
        command = server.begin("deploy", "web")
        await runs(server.web)
        await server.web.end(Outcome.UNCHANGED, "1a2b3c4 runs already")
        result = await command.ended()
        assert result.exit_code == 0
        assert result.output.endswith("\nunchanged: 1a2b3c4 runs already\n")


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.ROLLED_BACK, Outcome.INTERRUPTED, Outcome.CANCELLED])
async def test_a_failure_says_why_and_what_is_still_there(tmp_path: Path, outcome: Outcome) -> None:
    async with steered(tmp_path) as server:
        await server.web.deploy(None)
        await server.web.end(Outcome.DEPLOYED, commit=OLD)
        command = server.begin("deploy", "web")
        await runs(server.web)
        await server.web.end(outcome, "step 'test' failed: exit 1\n\x1b[31m1 failed\x1b[0m")
        result = await command.ended()
        assert result.exit_code == 1
        assert result.stderr == (
            f"{outcome}: step 'test' failed: exit 1\n1 failed\nweb stays at 9f8e7d6 Say nothing.\n"
            f"Its output is in {tmp_path}/logs/{(await server.newest()).id}.log\n"
            f"What to do: hookdeploy why {(await server.newest()).id}\n"
        )


@pytest_twisted.ensureDeferred
async def test_the_one_that_supersedes_it_is_followed_instead(tmp_path: Path) -> None:
    async with steered(tmp_path) as server:
        command = server.begin("deploy", "web")
        await runs(server.web)
        first = await server.newest()
        second = await server.web.deploy(None)
        await server.web.end(Outcome.DEPLOYED, commit=TIP)
        result = await command.ended()
        assert result.exit_code == 0
        assert re.findall(r"deployment (\w+)", result.output) == [first.id, second.id]
        assert "superseded by a newer one" in result.output


@pytest_twisted.ensureDeferred
async def test_a_deployment_that_is_begun_anew_is_shown_anew(tmp_path: Path) -> None:
    """As after a restart of hookdeploy, which forgets the phases of an earlier attempt."""
    async with steered(tmp_path) as server:
        command = server.begin("deploy", "web")
        await runs(server.web)
        first = await server.newest()
        looks = 0
        found = server.journal.deployment

        async def counted(id: str) -> Deployment | None:
            nonlocal looks
            looks += 1
            return await found(id)

        server.journal.deployment = counted  # type: ignore[method-assign]  # to know when it was seen
        await server.web.enter(Phase.FETCHING, 1.0)
        await become(lambda: looks > 1)
        await server.journal.begin(first.id, 5.0)
        await server.web.enter(Phase.FETCHING, 6.0)
        await server.web.end(Outcome.UNCHANGED, "it runs already")
        result = await command.ended()
        assert "begins it anew" in result.output
        assert result.output.count("fetching") == 2


@pytest_twisted.ensureDeferred
async def test_a_restart_of_the_server_is_waited_for(tmp_path: Path) -> None:
    server = Steered(tmp_path)
    async with serving(site_of(server.journal, server.apps, tmp_path), tmp_path):
        command = server.begin("deploy", "web")
        await runs(server.web)
    assert not (tmp_path / "api.sock").exists()
    async with serving(site_of(server.journal, server.apps, tmp_path), tmp_path):
        await server.web.end(Outcome.DEPLOYED, commit=TIP)
        assert (await command.ended()).exit_code == 0


class Flaky(Api):
    """A server that is away now and then, or answers oddly."""

    def __init__(self, *answers: Answer | Exception) -> None:
        super().__init__(Path("nowhere"))
        self._answers = list(answers)

    def get(self, path: str, **parameters: str | int) -> Answer:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


BEGUN = {"id": "1", "outcome": None, "superseded_by": None}
ENDED = {**BEGUN, "outcome": "deployed"}


def test_a_server_that_is_away_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Flaky(NotRunning("away"), ApiError("cut off"), ApiError("no journal", 503), BEGUN, NotRunning("away"), ENDED)
    assert follow(api, BEGUN, lambda _: None) == ENDED
    with pytest.raises(ApiError, match="gone"):
        follow(Flaky(ApiError("gone", 404)), BEGUN, lambda _: None)
    monkeypatch.setattr("twisted_hook.cli.follow.AWAY", -1.0)
    with pytest.raises(NotRunning):
        follow(Flaky(NotRunning("away")), BEGUN, lambda _: None)


@pytest_twisted.ensureDeferred
async def test_a_rollback_is_followed_too(tmp_path: Path) -> None:
    async with steered(tmp_path) as server:
        command = server.begin("rollback", "web", "--to", "r1")
        await runs(server.web)
        newest = await server.newest()
        assert (newest.trigger, newest.wanted) == (Trigger.ROLLBACK, "r1")
        await server.web.end(Outcome.DEPLOYED, commit=OLD)
        result = await command.ended()
        assert result.exit_code == 0
        assert f"web: rollback {newest.id}\n" in result.output
        assert "deployed 9f8e7d6 Say nothing" in result.output


@pytest_twisted.ensureDeferred
async def test_a_release_that_is_not_kept_ends_with_1_and_the_servers_words(tmp_path: Path) -> None:
    async with steered(tmp_path) as server:
        result = await server.run("rollback", "web", "--to", "r9")
        assert (result.exit_code, result.stderr) == (
            1,
            "web keeps no release r9; it keeps:\n  r1 9f8e7d6 Say nothing\n",
        )


@pytest_twisted.ensureDeferred
async def test_json_is_one_object_the_deployment_at_its_end(tmp_path: Path) -> None:
    async with steered(tmp_path) as server:
        command = server.begin("deploy", "web", "--json")
        await runs(server.web)
        await server.web.enter(Phase.FETCHING, 1.0)
        await server.web.end(Outcome.FAILED, "no")
        result = await command.ended()
        told = json.loads(result.output)
        assert (result.exit_code, told["outcome"], told["reason"]) == (1, "failed", "no")
        detached = await server.run("deploy", "web", "--json", "--detach")
        assert (detached.exit_code, json.loads(detached.output)["outcome"]) == (0, None)
        refused = await server.run("rollback", "web", "--to", "r9", "--json")
        assert (refused.exit_code, json.loads(refused.stdout)) == (
            1,
            {"error": "web keeps no release r9; it keeps:\n  r1 9f8e7d6 Say nothing"},
        )


@pytest_twisted.ensureDeferred
async def test_ctrl_c_ends_the_watching_and_not_the_deployment(tmp_path: Path) -> None:
    async with steered(tmp_path) as server:
        returncode, said = await deferToThread(interrupted, "deploy", "--state", str(tmp_path))
        newest = await server.newest()
        assert (returncode, said) == (1, f"The deployment goes on. This ends it: hookdeploy cancel {newest.id}\n")
        assert newest.outcome is None


def interrupted(*words: str) -> tuple[int, str]:
    """Type a command, and Ctrl-C as soon as it follows; gives its exit status and what it says to that."""
    with subprocess.Popen(
        (sys.executable, "-c", "from twisted_hook.cli import main; main()", *words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert "deployment" in process.stdout.readline()
            # Until then it imports, and what is raised in the midst of that is now and then lost.
            assert process.stdout.read(len("  queued")) == "  queued"
            process.send_signal(signal.SIGINT)
            return process.wait(PATIENCE), process.communicate()[1]
        finally:
            process.kill()


# --- replay


async def delivered(server: Steered, repository: str = "acme/all") -> str:
    return await deliver(server.journal, "1", (repository, "refs/heads/main", TIP.revision))


@pytest_twisted.ensureDeferred
async def test_a_replay_is_followed_to_its_end(tmp_path: Path) -> None:
    async with steered(tmp_path) as server:
        command = server.begin("replay", await delivered(server))
        await runs(server.web)
        newest = await server.newest()
        assert newest.trigger is Trigger.REPLAY
        await server.web.end(Outcome.DEPLOYED, commit=TIP)
        result = await command.ended()
        assert result.exit_code == 0, result.output
        assert result.output.startswith(f"web: deployment {newest.id}\n")
        assert result.output.endswith("deployed 1a2b3c4 Say hello as release release-1a2b3c4 in 3.00 s\n")


@pytest_twisted.ensureDeferred
async def test_a_replay_for_several_apps_is_followed_one_after_the_other_though_one_fails(tmp_path: Path) -> None:
    async with steered(tmp_path, "docs", "blog") as server:
        command = server.begin("replay", await delivered(server))
        for app, outcome in zip(server.apps, (Outcome.DEPLOYED, Outcome.FAILED, Outcome.UNCHANGED), strict=True):
            await runs(app)
            await app.end(outcome, "it is so", commit=TIP)
        result = await command.ended()
        assert result.exit_code == 1
        assert re.findall(r"^(\w+): deployment", result.stdout, re.MULTILINE) == ["web", "docs", "blog"]
        assert "failed: it is so" in result.stderr
        assert result.stdout.endswith("unchanged: it is so\n")


@pytest_twisted.ensureDeferred
async def test_json_of_a_replay_is_one_object_with_each_deployment_at_its_end(tmp_path: Path) -> None:
    async with steered(tmp_path, "docs") as server:
        delivery = await delivered(server)
        command = server.begin("replay", delivery, "--json")
        for app in server.apps:
            await runs(app)
            await app.end(Outcome.DEPLOYED, commit=TIP)
        result = await command.ended()
        told = json.loads(result.output)["deployments"]
        assert (result.exit_code, [(one["app"], one["outcome"]) for one in told]) == (
            0,
            [("web", "deployed"), ("docs", "deployed")],
        )
        detached = await server.run("replay", delivery, "--detach", "--json")
        told = json.loads(detached.output)["deployments"]
        assert (detached.exit_code, [one["outcome"] for one in told]) == (0, [None, None])
        lines = (await server.run("replay", delivery, "--detach")).output.splitlines()
        assert [re.sub("[0-9a-f]{13}", "ID", line) for line in lines] == [
            "web: replay ID is on its way",
            "docs: replay ID is on its way",
        ]


@pytest_twisted.ensureDeferred
async def test_a_replay_for_an_app_that_is_paused_is_not_waited_for(tmp_path: Path) -> None:
    async with steered(tmp_path, "docs") as server:
        await server.web.pause()
        delivery = await delivered(server)
        command = server.begin("replay", delivery)
        await runs(server.apps[1])
        await server.apps[1].end(Outcome.DEPLOYED, commit=TIP)
        result = await command.ended()
        assert result.exit_code == 0, result.output
        waits = re.escape("waits until: hookdeploy resume web")
        assert re.match(rf"web is paused: replay \w+ {waits}\ndocs: deployment \w+\n", result.output)
        await server.apps[1].pause()
        told = json.loads((await server.run("replay", delivery, "--json")).output)["deployments"]
        assert [one["outcome"] for one in told] == [None, None]


@pytest_twisted.ensureDeferred
async def test_a_delivery_that_nobody_wants_or_knows_ends_with_1_and_the_servers_words(tmp_path: Path) -> None:
    async with steered(tmp_path) as server:
        result = await server.run("replay", await delivered(server, "acme/sold"))
        assert (result.exit_code, result.stderr) == (
            1,
            "it is for nobody: a repository that the hook does not serve\n",
        )
        unknown = await server.run("replay", "nine", "--json")
        assert (unknown.exit_code, json.loads(unknown.stdout)) == (
            1,
            {"error": "there is no delivery nine; its id is the one that the forge was answered with"},
        )
        assert (await server.run("replay", "../x")).exit_code == 1
        assert (await server.run("replay")).exit_code == 2


@pytest_twisted.ensureDeferred
async def test_ctrl_c_tells_of_each_deployment_that_goes_on(tmp_path: Path) -> None:
    async with steered(tmp_path, "docs") as server:
        returncode, said = await deferToThread(interrupted, "replay", await delivered(server), "--state", str(tmp_path))
        made = reversed(await server.journal.deployments())
        goes_on = "The deployment goes on. This ends it: hookdeploy cancel"
        assert (returncode, said) == (1, "".join(f"{goes_on} {one.id}\n" for one in made))


# --- pin, pause, cancel


@pytest_twisted.ensureDeferred
async def test_an_app_is_pinned_and_paused_and_let_go_again(tmp_path: Path) -> None:
    async with steered(tmp_path) as server:
        await server.web.deploy(None)
        await server.web.end(Outcome.DEPLOYED, commit=OLD)
        for how, said, steering in (
            ("pin", "web is pinned at 9f8e7d6 Say nothing.", Steering(pinned=True)),
            ("pause", "web is paused at 9f8e7d6 Say nothing.", Steering(paused=True, pinned=True)),
            ("resume", "web is not paused: nothing waits; it is pinned still.", Steering(pinned=True)),
            ("unpin", "web is not pinned. The next push is deployed", Steering()),
        ):
            result = await server.run(how, "web")
            assert result.exit_code == 0
            assert result.output.startswith(said)
            assert await server.journal.steering("web") == steering
        assert json.loads((await server.run("pin", "--json")).output)["pinned"] is True


@pytest_twisted.ensureDeferred
async def test_what_runs_is_cancelled_and_what_has_ended_is_not(tmp_path: Path) -> None:
    async with steered(tmp_path) as server:
        one = await server.web.deploy(None)
        result = await server.run("cancel", one.id)
        assert (result.exit_code, result.output) == (0, f"web: deployment {one.id} is cancelled\n")
        again = await server.run("cancel", one.id)
        assert (again.exit_code, again.stderr) == (1, f"deployment {one.id} has ended: cancelled\n")
        unknown = await server.run("cancel", "../x")
        assert unknown.exit_code == 1
        assert unknown.stderr


# --- which app, and which server


@pytest_twisted.ensureDeferred
async def test_where_there_are_several_apps_one_must_be_named(tmp_path: Path) -> None:
    async with steered(tmp_path, "docs", "blog") as server:
        for words, said in {
            ("pin",): "say which app: web, docs, blog",
            ("pin", "wbe"): "there is no app wbe; did you mean web?",
            ("deploy", "1a2b3c4"): "there is no app 1a2b3c4; say which app: web, docs, blog",
        }.items():
            result = await server.run(*words)
            assert result.exit_code == 2
            assert said in result.stderr
        assert (await server.run("pin", "docs")).exit_code == 0
        assert await server.journal.steering("docs") == Steering(pinned=True)


@pytest_twisted.ensureDeferred
async def test_a_revision_that_is_none_is_wrong_usage(tmp_path: Path) -> None:
    async with steered(tmp_path) as server:
        result = await server.run("deploy", "web", "main")
        assert (result.exit_code, result.stderr) == (
            2,
            "revision: must be the id of a commit: 4 to 64 hexadecimal digits\n",
        )


@pytest_twisted.ensureDeferred
async def test_without_a_journal_the_command_fails_and_says_so(tmp_path: Path) -> None:
    async with steered(tmp_path) as server:
        server.journal.fail_with = JournalUnavailable("disk is full")
        result = await server.run("pause")
        assert (result.exit_code, result.stderr) == (1, "the journal is unavailable: disk is full\n")


@pytest.mark.parametrize(
    "words", [("deploy",), ("rollback",), ("pin",), ("resume", "web"), ("cancel", "x"), ("replay", "x")]
)
def test_where_no_server_runs_the_exit_is_3(tmp_path: Path, words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(hookdeploy, [*words, "--state", str(tmp_path)])
    assert (result.exit_code, result.stderr) == (
        3,
        f"hookdeploy does not run: nothing listens on {tmp_path}/api.sock\n",
    )
    told = CliRunner().invoke(hookdeploy, [*words, "--state", str(tmp_path), "--json"])
    assert (told.exit_code, "does not run" in json.loads(told.stdout)["error"]) == (3, True)


@pytest.mark.parametrize("secret", ['{ env = "OF_ANOTHER_PROCESS" }', '{ file = "not-there" }'])
def test_a_configuration_tells_where_the_server_is_though_it_could_not_be_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    """Its secrets are out of our reach, and it is being edited."""
    monkeypatch.chdir(tmp_path)
    text = f'state = "here"\nno_such_key = 1\n[hooks.github]\nsecrets = [{secret}]\n'
    (tmp_path / "hookdeploy.toml").write_text(text)
    for options in ((), ("--config", "hookdeploy.toml")):
        result = CliRunner().invoke(hookdeploy, ["pin", *options])
        assert (result.exit_code, f"nothing listens on {tmp_path}/here/api.sock" in result.stderr) == (3, True)
    (tmp_path / "hookdeploy.toml").write_text("state = nonsense")
    assert "hookdeploy.toml: line 1, column 9" in CliRunner().invoke(hookdeploy, ["pin"]).stderr


def test_without_a_file_the_environment_tells_where_the_server_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOOKDEPLOY_STATE", raising=False)
    nowhere = CliRunner().invoke(hookdeploy, ["pin"])
    assert (nowhere.exit_code, "name the server's configuration with --config, or --state" in nowhere.stderr) == (
        1,
        True,
    )
    monkeypatch.setenv("REPO_PATH", str(tmp_path / "clone"))
    assert f"{tmp_path}/.hookdeploy-clone/api.sock" in CliRunner().invoke(hookdeploy, ["pin"]).stderr


@pytest.mark.skipif(os.getuid() != 0, reason="to become somebody else needs root")
@pytest_twisted.ensureDeferred
async def test_a_server_of_another_user_is_not_taken_for_none(tmp_path: Path) -> None:
    """The socket is nobody else's affair, and that is what is said."""
    async with steered(tmp_path):
        script = (
            "import os; from pathlib import Path; from twisted_hook.cli.client import Api; "
            f"ask = lambda: Api(Path({str(tmp_path)!r})).get('/apps'); ask(); "  # so that all of it is imported
            "os.setgid(65534); os.setuid(65534); ask()"
        )
        done = await deferToThread(
            subprocess.run, (sys.executable, "-c", script), capture_output=True, text=True, check=False
        )
        assert "ApiError" in done.stderr
        assert "may not be used by this user" in done.stderr
