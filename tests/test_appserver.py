"""The server of an app: swaps that nobody notices, releases that never serve, and deaths that are answered."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests import wsgiapps
from tests.wsgiapps import Load, ask, site, until
from twisted_hook import appserver, sockets
from twisted_hook.appserver import GunicornServer
from twisted_hook.config import AppConfig
from twisted_hook.environments import existing
from twisted_hook.generation import Orders
from twisted_hook.model import Commit, Environment, Launch, Phase, StepFailed, Tree
from twisted_hook.once import Once

# --- swaps


@pytest_twisted.ensureDeferred
async def test_a_good_app_is_served(tmp_path: Path) -> None:
    async with site(tmp_path, workers=2, health="/healthz") as blog:
        await blog.serve()
        assert await blog.get() == "one"
        assert blog.phases == [Phase.STARTING, Phase.CHECKING, Phase.SWAPPING]
        assert blog.server.status.state == "serving"
        assert blog.server.status.pid in blog.processes()
        assert len(blog.processes()) == 3
    assert blog.server.status.state == "stopped"


@pytest.mark.parametrize("worker", [("gthread", "--threads", "4"), ("sync",)], ids=["gthread", "sync"])
@pytest_twisted.ensureDeferred
async def test_swaps_under_load_lose_no_request(tmp_path: Path, worker: tuple[str, ...]) -> None:
    """P82."""
    async with site(tmp_path, workers=2, gunicorn=("--worker-class", *worker)) as blog:
        first = await blog.serve()
        slow = deferToThread(ask, blog.address, "/slow")
        await until((first.tree.path / "slow-begun").exists)
        async with Load(blog.address) as load:
            for text in ("two", "three", "four"):
                await blog.serve(blog.launch(text=text))
                await load.sees(text)
            (first.tree.path / "slow-may-end").touch()
            assert await slow == "one"
            await until(lambda: len(blog.processes()) == 3, "the old generations to end")
        assert load.failures == []
        assert load.answers[-1] == "four"


BROKEN = {
    "an import error": (wsgiapps.IMPORT_ERROR, "starting", "RuntimeError: no settings found"),
    "a syntax error": (wsgiapps.SYNTAX_ERROR, "starting", "SyntaxError"),
    "no such attribute": (wsgiapps.NO_ATTRIBUTE, "starting", "Failed to find attribute 'application' in 'wsgi'."),
    "an exit at import": (wsgiapps.EXITS_AT_IMPORT, "a worker died while it was starting", "giving up"),
    "an exit after the boot": (wsgiapps.EXITS_WHEN_ASKED, "a worker died while it was starting", "giving up"),
    "an unhealthy app": (wsgiapps.SICK, "/healthz answered 500", "no database"),
    "an app that raises": (wsgiapps.RAISES, "/healthz raised LookupError: no database", "LookupError: no database"),
    "an import without end": (wsgiapps.HANGS, "0 of 2 workers were ready after 2 s", "waiting for the database"),
}
"""What is said of each, and what stands in the last lines of its log."""


@pytest_twisted.ensureDeferred
async def test_no_broken_release_is_ever_seen(tmp_path: Path) -> None:
    """P81."""
    async with site(tmp_path, workers=2, health="/healthz", health_timeout=2.0) as blog:
        good = await blog.serve()
        pid = blog.server.status.pid
        async with Load(blog.address, clients=2) as load:
            for name, (source, said, words) in BROKEN.items():
                with pytest.raises(StepFailed, match="the new server did not start") as caught:
                    await blog.serve(blog.launch(source, text=name))
                assert said in caught.value.summary, name
                assert words in caught.value.tail, name
                assert (blog.server.status.state, blog.server.status.pid) == ("serving", pid)
                assert blog.server.launch is good
            await until(lambda: len(blog.processes()) == 3, "the candidates to end")
        assert load.failures == []
        assert set(load.answers) == {"one"}


@pytest_twisted.ensureDeferred
async def test_a_first_release_that_is_broken_leaves_the_site_down_until_a_good_one_comes(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        with pytest.raises(StepFailed):
            await blog.serve(blog.launch(wsgiapps.IMPORT_ERROR))
        assert blog.server.status.state == "down"
        assert blog.server.launch is None
        waits = blog.get()
        waiting = Deferred.fromCoroutine(waits)
        await blog.serve()
        assert await waiting == "one", "who came while nothing served is answered"


@pytest_twisted.ensureDeferred
async def test_a_unix_socket_keeps_its_path_after_a_swap(tmp_path: Path) -> None:
    path = tmp_path / "blog.sock"
    async with site(tmp_path, bind=f"unix:{path}") as blog:
        await blog.serve()
        inode = path.stat().st_ino
        await blog.serve(blog.launch(text="two"))
        await until(lambda: len(blog.processes()) == 2, "the old generation to end")
        assert path.stat().st_ino == inode
        assert await blog.get() == "two"


@pytest_twisted.ensureDeferred
async def test_another_address_is_served_from_the_next_swap_on(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        await blog.serve()
        old, new = blog.listener, sockets.listen("127.0.0.1:0")
        blog.server.configure(blog.app, new)
        assert await blog.get() == "one", "what runs is not touched"
        await blog.serve(blog.launch(text="two"))
        blog.listener = new
        assert await blog.get() == "two"
        assert old.fileno() == -1, "the old address is let go"


# --- deaths


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_killed_serves_again_at_once(tmp_path: Path) -> None:
    async with site(tmp_path, workers=2) as blog:
        await blog.serve()
        pid = blog.server.status.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: blog.server.status.pid not in {pid, None})
        assert blog.server.status.state == "serving"
        assert blog.server.status.deaths == 1
        assert await blog.get() == "one"
        await until(lambda: len(blog.processes()) == 3, "the workers of the killed one to end")


@pytest_twisted.ensureDeferred
async def test_a_server_that_dies_after_its_log_was_taken_away_serves_again(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        await blog.serve()
        pid = blog.server.status.pid
        assert pid is not None
        blog.log.unlink()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: blog.server.status.pid not in {pid, None})
        assert await blog.get() == "one"


@pytest_twisted.ensureDeferred
async def test_a_candidate_takes_over_although_the_old_server_died_meanwhile(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        await blog.serve()
        pid = blog.server.status.pid
        assert pid is not None

        def entered(phase: Phase) -> None:
            if phase is Phase.STARTING:
                os.kill(pid, signal.SIGKILL)

        await blog.server.swap(blog.launch(text="two"), entered)
        assert await blog.get() == "two"
        await until(lambda: len(blog.processes()) == 2)


@pytest_twisted.ensureDeferred
async def test_what_served_comes_back_if_both_it_and_the_candidate_die(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        good = await blog.serve()
        pid = blog.server.status.pid
        assert pid is not None

        def entered(phase: Phase) -> None:
            if phase is Phase.STARTING:
                os.kill(pid, signal.SIGKILL)

        with pytest.raises(StepFailed):
            await blog.server.swap(blog.launch(wsgiapps.IMPORT_ERROR), entered)
        assert blog.server.status.state == "restarting"
        await until(lambda: blog.server.status.state == "serving")
        assert await blog.get() == "one"
        assert blog.server.launch is good


# --- stopping


@pytest_twisted.ensureDeferred
async def test_stopping_lets_a_request_finish_and_leaves_nothing(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        launch = await blog.serve()
        slow = deferToThread(ask, blog.address, "/slow")
        await until((launch.tree.path / "slow-begun").exists)
        stopping = Deferred.fromCoroutine(blog.server.stop())
        (launch.tree.path / "slow-may-end").touch()
        assert await slow == "one"
        await stopping
        assert blog.processes() == []
        assert blog.listener.fileno() == -1


@pytest_twisted.ensureDeferred
async def test_stopping_during_a_boot_leaves_nothing(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        swapping = Deferred.fromCoroutine(blog.serve(blog.launch(wsgiapps.HANGS)))
        await until(lambda: blog.log.exists() and "waiting for the database" in blog.said())
        stopping = Deferred.fromCoroutine(blog.server.stop())
        with pytest.raises(StepFailed, match="it was stopped before it had started"):
            await swapping
        await stopping
        assert blog.processes() == []
        assert blog.server.status.state == "stopped"


@pytest_twisted.ensureDeferred
async def test_stopping_in_the_very_moment_of_a_start_leaves_nothing(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        swapping = Deferred.fromCoroutine(blog.serve(blog.launch(wsgiapps.HANGS)))
        stopping = Deferred.fromCoroutine(blog.server.stop())
        with pytest.raises(StepFailed):
            await swapping
        await stopping
        assert blog.processes() == []


@pytest_twisted.ensureDeferred
async def test_a_stopped_server_starts_nothing(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        launch = await blog.serve()
        await blog.server.stop()
        with pytest.raises(StepFailed, match="hookdeploy is stopping"):
            await blog.serve()
        await blog.server.start(launch)
        assert blog.processes() == []
        assert blog.server.status.state == "stopped"


@pytest_twisted.ensureDeferred
async def test_a_cancelled_swap_leaves_the_old_server_as_it_was(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        good = await blog.serve()
        at_once = Deferred.fromCoroutine(blog.serve(blog.launch(wsgiapps.HANGS)))
        at_once.cancel()
        with pytest.raises(CancelledError):
            await at_once
        later = Deferred.fromCoroutine(blog.serve(blog.launch(wsgiapps.HANGS)))
        await until(lambda: "waiting for the database" in blog.said())
        later.cancel()
        with pytest.raises(CancelledError):
            await later
        await until(lambda: len(blog.processes()) == 2, "the candidates to end")
        assert await blog.get() == "one"
        assert blog.server.launch is good


# --- whose gunicorn


TELLS_ITS_GUNICORN = """
import gunicorn, sys

def application(environ, start_response):
    start_response("200 OK", [])
    return [f"{gunicorn.__file__} {sys.prefix}".encode()]
"""


def virtual_environment(directory: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    return directory


def give_gunicorn(directory: Path, version: str) -> None:
    """Put the gunicorn of the tests into an environment, as if it were this version."""
    (packages,) = directory.glob("lib/python*/site-packages")
    for name in ("gunicorn", "packaging"):
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.origin is not None
        (packages / name).symlink_to(Path(found.origin).parent)
    (packages / f"gunicorn-{version}.dist-info").mkdir()


def log_lines(events: Sequence[LogEvent]) -> str:
    return "\n".join(str(event["log_format"]).format(**event) for event in events if event.get("log_format"))


@pytest_twisted.ensureDeferred
async def test_an_environment_without_gunicorn_borrows_ours(tmp_path: Path) -> None:
    environment = existing(virtual_environment(tmp_path / "venv"))
    async with site(tmp_path) as blog:
        with capturedLogs() as events:
            await blog.serve(blog.launch(TELLS_ITS_GUNICORN, environment=environment))
        package, prefix = (await blog.get()).split()
        assert not package.startswith(str(tmp_path))
        assert prefix == str(tmp_path / "venv")
    assert "gunicorn comes from hookdeploy" in log_lines(events)


@pytest_twisted.ensureDeferred
async def test_an_environment_with_gunicorn_uses_its_own(tmp_path: Path) -> None:
    directory = virtual_environment(tmp_path / "venv")
    give_gunicorn(directory, "27.0.1")
    async with site(tmp_path) as blog:
        with capturedLogs() as events:
            await blog.serve(blog.launch(TELLS_ITS_GUNICORN, environment=existing(directory)))
        package, prefix = (await blog.get()).split()
        assert package.startswith(str(directory))
        assert prefix == str(directory)
    assert "gunicorn comes from the app's environment (27.0.1)" in log_lines(events)
    assert "may lose requests" not in log_lines(events)


# --- with a clock in place of time, and with processes that do what a test says


class ToldProcess:
    """A generation that does nothing by itself."""

    def __init__(self, reactor: object, orders: Orders, entered: Callable[[Phase], None]) -> None:
        self.ready: Once[str | None] = Once()
        self.over: Once[str] = Once()
        self.swept: Once[None] = Once()
        self.pid = 1
        self.drained = False

    def start(self) -> None:
        """Done."""

    def drain(self) -> None:
        self.drained = True
        if not self.over.happened:
            self.dies()

    def last_words(self) -> str:
        return "last words"

    def serves(self) -> None:
        self.ready.happen(None)

    def dies(self, problem: str = "exit 1") -> None:
        self.ready.happen(problem)
        self.over.happen(problem)
        self.swept.happen(None)


class Reviving(SynchronousTestCase):
    """When what is started again."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.started: list[ToldProcess] = []
        self.patch(appserver, "ServerProcess", self.start)
        self.listener = socket.socket()
        self.addCleanup(self.listener.close)
        self.server = GunicornServer(
            cast("Any", self.clock),
            app=AppConfig(name="blog", hook="blog", wsgi="wsgi:application"),
            listener=self.listener,
            records=Path("/nowhere"),
            log=Path("/nowhere"),
            now=self.clock.seconds,
            shown=lambda text: text,
        )

    def start(self, *arguments: Any) -> ToldProcess:
        self.started.append(ToldProcess(*arguments))
        return self.started[-1]

    def launch(self, text: str = "one") -> Launch:
        return Launch(Tree(Path("/nowhere"), Commit("1" * 40, text, "Ada"), text), Environment(Path("python")), {})

    def do(self, work: Coroutine[Any, Any, None]) -> Deferred[None]:
        return Deferred.fromCoroutine(work)

    def serve(self) -> None:
        serving = self.do(self.server.swap(self.launch(), lambda phase: None))
        self.started[-1].serves()
        self.successResultOf(serving)

    def pause(self) -> float:
        """How long the server waits before it starts what it will start next."""
        (timer,) = self.clock.getDelayedCalls()
        return timer.getTime() - self.clock.seconds()

    def test_each_death_in_a_row_doubles_the_pause(self) -> None:
        self.serve()
        pauses = []
        for _ in range(12):
            self.started[-1].dies()
            self.assertEqual(self.server.status.state, "restarting")
            pauses.append(self.pause())
            self.clock.advance(pauses[-1])
            self.started[-1].serves()
        self.assertEqual(pauses, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300])
        self.assertEqual(self.server.status.deaths, 12)

    def test_starts_that_fail_count_as_deaths(self) -> None:
        self.serve()
        self.started[-1].dies()
        pauses = []
        for _ in range(3):
            pauses.append(self.pause())
            self.clock.advance(pauses[-1])
            self.started[-1].dies("no module named wsgi")
        self.assertEqual(pauses, [0, 1, 2])
        self.assertIn("no module named wsgi", self.server.status.reason)

    def test_the_log_says_when_it_keeps_dying(self) -> None:
        self.serve()
        with capturedLogs() as events:
            for _ in range(5):
                self.started[-1].dies()
                self.clock.advance(self.pause())
                self.started[-1].serves()
        self.assertIn("died 5 times in a row", log_lines(events))
        self.assertIn("last words", log_lines(events))

    def test_steady_service_makes_the_next_death_the_first(self) -> None:
        self.serve()
        for _ in range(4):
            self.started[-1].dies()
            self.clock.advance(self.pause())
            self.started[-1].serves()
        self.clock.advance(appserver.STEADY)
        self.started[-1].dies()
        self.assertEqual(self.pause(), 0)

    def test_a_new_release_makes_the_next_death_the_first(self) -> None:
        self.serve()
        for _ in range(4):
            self.started[-1].dies()
            self.clock.advance(self.pause())
            self.started[-1].serves()
        self.serve()
        self.assertEqual(self.server.status.deaths, 0)
        self.started[-1].dies()
        self.assertEqual(self.pause(), 0)

    def test_the_status_tells_a_death_even_while_a_candidate_boots(self) -> None:
        self.serve()
        swapping = self.do(self.server.swap(self.launch("two"), lambda phase: None))
        self.started[0].dies()
        self.assertEqual(self.server.status.state, "restarting")
        self.assertEqual(len(self.started), 2, "the candidate is awaited")
        self.started[1].serves()
        self.successResultOf(swapping)
        self.assertEqual(self.server.status.state, "serving")

    def test_a_swap_takes_the_place_of_a_revival(self) -> None:
        self.serve()
        self.started[-1].dies()
        self.serve()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(len(self.started), 2)

    def test_a_swap_that_fails_while_nothing_serves_revives_what_served(self) -> None:
        self.serve()
        for _ in range(3):
            self.started[-1].dies()
            self.clock.advance(self.pause())
            self.started[-1].serves()
        self.started[-1].dies()
        swapping = self.do(self.server.swap(self.launch("two"), lambda phase: None))
        self.started[-1].dies()
        self.failureResultOf(swapping, StepFailed)
        self.clock.advance(self.pause())
        self.started[-1].serves()
        self.assertEqual(self.server.status.state, "serving")
        launch = self.server.launch
        assert launch is not None
        self.assertEqual(launch.tree.commit.subject, "one")

    def test_a_swap_during_a_revival_takes_its_turn(self) -> None:
        self.serve()
        self.started[-1].dies()
        self.clock.advance(0)
        swapping = self.do(self.server.swap(self.launch("two"), lambda phase: None))
        self.assertEqual(len(self.started), 2, "one at a time")
        self.started[1].serves()
        self.started[2].serves()
        self.successResultOf(swapping)
        self.assertTrue(self.started[1].drained)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_start_that_fails_is_tried_again(self) -> None:
        starting = self.do(self.server.start(self.launch()))
        self.started[-1].dies()
        self.successResultOf(starting)
        self.assertEqual(self.server.status.state, "restarting")
        self.clock.advance(self.pause())
        self.started[-1].serves()
        self.assertEqual(self.server.status.state, "serving")

    def test_a_first_swap_that_fails_is_not_tried_again(self) -> None:
        swapping = self.do(self.server.swap(self.launch(), lambda phase: None))
        self.started[-1].dies("no module named wsgi")
        failure: Failure = self.failureResultOf(swapping, StepFailed)
        self.assertIn("no module named wsgi\nlast words", cast("StepFailed", failure.value).reason)
        self.assertEqual(self.server.status.state, "down")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_ends_in_the_moment_in_which_it_serves_has_failed(self) -> None:
        swapping = self.do(self.server.swap(self.launch(), lambda phase: None))
        self.started[-1].over.happen("signal 9")
        self.started[-1].ready.happen(None)
        self.failureResultOf(swapping, StepFailed)
        self.started[-1].swept.happen(None)

    def test_stopping_takes_back_a_revival(self) -> None:
        self.serve()
        self.started[-1].dies()
        self.successResultOf(self.do(self.server.stop()))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.server.status.state, "stopped")

    def test_stopping_waits_until_nothing_of_a_killed_server_is_left(self) -> None:
        self.serve()
        self.started[-1].over.happen("signal 9")
        stopping = self.do(self.server.stop())
        self.assertNoResult(stopping)
        self.started[-1].swept.happen(None)
        self.successResultOf(stopping)

    def test_a_swap_that_waits_for_its_turn_fails_when_the_server_stops(self) -> None:
        self.serve()
        first = self.do(self.server.swap(self.launch("two"), lambda phase: None))
        second = self.do(self.server.swap(self.launch("three"), lambda phase: None))
        self.successResultOf(self.do(self.server.stop()))
        self.failureResultOf(first, StepFailed)
        self.failureResultOf(second, StepFailed)
        self.assertEqual(self.server.status.state, "stopped")

    def test_an_old_gunicorn_is_warned_about(self) -> None:
        old = Environment(Path("/venv/bin/python"), Path("/venv"), "26.1.0")
        launch = Launch(self.launch().tree, old, {})
        with capturedLogs() as events:
            self.do(self.server.swap(launch, lambda phase: None))
        self.started[-1].serves()
        self.assertIn("gunicorn 26.1.0 may lose requests", log_lines(events))
