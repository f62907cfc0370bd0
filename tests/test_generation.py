"""One gunicorn master: how it starts, what it says, and that nothing of it is left."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs

from tests.patient import up_when
from tests.proctable import descriptors, runs
from tests.waiting import become
from tests.wsgiapps import GOOD, HANGS, IMPORT_ERROR, REACTOR, Site, ask, processes_in, site, soon
from twisted_hook import generation, serverlog, serverrecords
from twisted_hook.generation import ServerProcess
from twisted_hook.leftovers import start_time
from twisted_hook.model import Launch, Phase
from twisted_hook.process import Reactor


@asynccontextmanager
async def process(
    blog: Site,
    launch: Launch | None = None,
    *,
    reactor: Reactor = REACTOR,
    entered: Callable[[Phase], None] | None = None,
    **orders: Any,
) -> AsyncIterator[ServerProcess]:
    """A generation that has been started; nothing of it may be left in the end."""
    given = replace(blog.server._orders(launch or blog.launch()), **orders)
    made = ServerProcess(reactor, given, entered or blog.phases.append)
    made.start()
    try:
        yield made
    finally:
        made.drain()
        await soon(made.swept.wait())
        assert made.over.happened
        assert processes_in(blog.directory) == []
        assert not blog.records.is_dir() or not list(blog.records.iterdir())


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- what cannot start


@pytest_twisted.ensureDeferred
async def test_a_tree_that_is_gone_is_told(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        launch = blog.launch()
        gone = replace(launch, tree=replace(launch.tree, path=tmp_path / "gone"))
        before = open_descriptors()
        async with process(blog, launch=gone) as server:
            assert await server.ready.wait() == f"no such directory: {tmp_path / 'gone'}"
        assert open_descriptors() == before


@pytest_twisted.ensureDeferred
async def test_an_interpreter_that_is_gone_is_told(tmp_path: Path) -> None:
    async with site(tmp_path) as blog, process(blog, argv=("/nowhere/python", "-m", "gunicorn")) as server:
        assert await server.ready.wait() == "no such program: /nowhere/python"


@pytest_twisted.ensureDeferred
async def test_a_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """P84."""
    async with site(tmp_path) as blog:
        before = open_descriptors()
        async with process(blog, log=tmp_path / "nowhere" / "server.log") as server:
            assert "No such file or directory" in str(await server.ready.wait())
            assert server.last_words() == ""
        assert open_descriptors() == before


@pytest_twisted.ensureDeferred
async def test_a_server_that_cannot_be_written_down_does_not_serve(tmp_path: Path) -> None:
    """P84."""
    async with site(tmp_path) as blog, process(blog, records=tmp_path / "nowhere") as server:
        assert "No such file or directory" in str(await server.ready.wait())
        await soon(server.over.wait())
        assert Phase.SWAPPING not in blog.phases


# --- what starts


@pytest_twisted.ensureDeferred
async def test_a_running_server_is_written_down_with_its_start_time(tmp_path: Path) -> None:
    """P83."""
    async with site(tmp_path) as blog, process(blog) as server:
        assert await server.ready.wait() is None
        (record,) = serverrecords.alive(blog.records)
        assert server.pid is not None
        assert (record.pid, record.started) == (server.pid, start_time(server.pid))


@pytest_twisted.ensureDeferred
async def test_a_server_leads_a_session_of_its_own_and_holds_no_pipe_of_ours_as_output(tmp_path: Path) -> None:
    async with site(tmp_path) as blog, process(blog) as server:
        assert await server.ready.wait() is None
        assert server.pid is not None
        assert os.getsid(server.pid) == server.pid
        held = descriptors(server.pid)
        assert [held[fd] for fd in (0, 1, 2)] == ["/dev/null", str(blog.log), str(blog.log)]


@pytest_twisted.ensureDeferred
async def test_a_server_holds_no_descriptor_that_it_was_not_given(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        stray = os.open(tmp_path, os.O_RDONLY)
        os.set_inheritable(stray, True)
        try:
            async with process(blog) as server:
                assert await server.ready.wait() is None
                assert server.pid is not None
                assert str(tmp_path) not in descriptors(server.pid).values()
        finally:
            os.close(stray)


@pytest_twisted.ensureDeferred
async def test_the_hundredth_server_leaves_no_more_open_than_the_first(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        before = open_descriptors()
        for _ in range(2):
            async with process(blog) as server:
                assert await server.ready.wait() is None
        assert open_descriptors() == before


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_ended_before_it_has_its_session_leaves_nothing(tmp_path: Path) -> None:
    async with site(tmp_path) as blog, process(blog) as server:
        server.drain()
        assert await server.ready.wait() == "it was stopped before it had started"


# --- what it says


@pytest_twisted.ensureDeferred
async def test_the_last_words_are_those_of_this_server(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        blog.log.write_text("words of an earlier server\n")
        async with process(blog, blog.launch(IMPORT_ERROR)) as server:
            assert await server.ready.wait() is not None
            assert "no settings found" in server.last_words()
            assert "earlier" not in server.last_words()


@pytest_twisted.ensureDeferred
async def test_a_log_that_was_cut_off_still_has_last_words(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        blog.log.write_text("an earlier server wrote much more than this one\n" * 1000)
        async with process(blog) as server:
            assert await server.ready.wait() is None
            os.truncate(blog.log, 0)
            blog.log.write_text("the only line\n")
            assert server.last_words() == "the only line"


@pytest_twisted.ensureDeferred
async def test_a_log_over_its_cap_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serverlog, "LONGEST", 100)
    async with site(tmp_path) as blog:
        blog.log.write_text("x" * 101)
        async with process(blog) as server:
            assert await server.ready.wait() is None
            assert "x" * 101 not in blog.said()
            assert (tmp_path / "server.log.1").read_text() == "x" * 101


SPEAKS_OUT_OF_TURN = """
import os
os.write(4, b"not JSON\\n" + b'{"event": "checked", "pid": "17"}\\n' + b"[" * 5_000 + b"\\n")
os.write(4, b"x" * 30_000)
os.write(4, b"\\n")
"""


@pytest_twisted.ensureDeferred
async def test_reports_that_nobody_understands_are_logged_and_change_nothing(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        with capturedLogs() as events:
            async with process(blog, blog.launch(SPEAKS_OUT_OF_TURN + GOOD)) as server:
                assert await server.ready.wait() is None
    unknown = [event for event in events if "unknown report" in str(event.get("log_format"))]
    assert len(unknown) == 4
    assert all(len(repr(event["said"])) < 1000 for event in unknown)


@pytest_twisted.ensureDeferred
async def test_no_phase_is_told_after_the_end(tmp_path: Path) -> None:
    async with site(tmp_path) as blog, process(blog, blog.launch(HANGS)) as server:
        await become(lambda: Phase.CHECKING in blog.phases)
        server.drain()
        server.childDataReceived(generation.REPORTS, b'{"event": "starting", "workers": 1}\n')
        assert blog.phases == [Phase.STARTING, Phase.CHECKING]


# --- how it ends


@pytest_twisted.ensureDeferred
async def test_a_request_longer_than_the_drain_limit_is_cut_off(tmp_path: Path) -> None:
    async with site(tmp_path, drain=60.0) as blog:
        launch = blog.launch()
        async with process(blog, launch, drain_limit=0.3) as server:
            assert await server.ready.wait() is None
            slow = deferToThread(ask, blog.address, "/slow")
            await become((launch.tree.path / "slow-begun").exists)
            server.drain()
            assert await server.over.wait() == "signal 9"
            with pytest.raises((OSError, HTTPException)):
                await slow


@pytest_twisted.ensureDeferred
async def test_a_request_outlives_the_death_of_the_master(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        launch = blog.launch()
        async with process(blog, launch) as server:
            assert await server.ready.wait() is None
            slow = deferToThread(ask, blog.address, "/slow")
            await become((launch.tree.path / "slow-begun").exists)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            assert await server.over.wait() == "signal 9"
            (launch.tree.path / "slow-may-end").touch()
            assert await slow == "one"


LEAVES_A_CHILD = """
import subprocess
subprocess.Popen(["sh", "-c", 'trap "echo asked >> asked" TERM; echo $$ > child; while :; do sleep 0.02; done'])
"""
LEAVES_A_DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    open("daemon", "w").close()
    while not os.path.exists("daemon-may-end"):
        time.sleep(0.01)
    os._exit(0)
"""


@pytest_twisted.ensureDeferred
async def test_what_the_app_has_left_behind_is_asked_once_and_then_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site(tmp_path) as blog:
        launch = blog.launch(LEAVES_A_CHILD + GOOD)
        told, asked = launch.tree.path / "child", launch.tree.path / "asked"
        monkeypatch.setattr(generation, "SWEEP_INTERVAL", 1.0)
        patient = up_when(lambda: asked.exists() and asked.read_text(), 1.0)
        async with process(blog, launch, reactor=patient, drain_limit=1.0) as server:
            assert await server.ready.wait() is None
            await become(lambda: told.exists() and told.read_text())
            server.drain()
            await soon(server.swept.wait())
        assert asked.read_text() == "asked\n"
        assert not runs(int(told.read_text()))


@pytest_twisted.ensureDeferred
async def test_a_daemon_that_the_app_has_left_behind_does_not_keep_our_pipes_open(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        launch = blog.launch(LEAVES_A_DAEMON + GOOD)
        async with process(blog, launch) as server:
            assert await server.ready.wait() is None
            await become((launch.tree.path / "daemon").exists)
            server.drain()
            await soon(server.swept.wait())
            assert cast("Any", server.transport).pipes == {}, "our ends are open"
            (launch.tree.path / "daemon-may-end").touch()
            await become(lambda: processes_in(tmp_path) == [])


@pytest_twisted.ensureDeferred
async def test_zombies_that_nobody_reaps_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container without an init."""
    monkeypatch.setattr(generation, "group_exists", lambda pid: True)
    monkeypatch.setattr(generation, "SWEEP_PATIENCE", 0.1)
    async with site(tmp_path) as blog, process(blog, blog.launch(HANGS), drain_limit=600.0) as server:
        server.drain()
        await soon(server.swept.wait())
        await become(lambda: processes_in(tmp_path) == [])


@pytest_twisted.ensureDeferred
async def test_one_that_is_not_to_serve_is_written_down_as_such_before_it_is_killed(tmp_path: Path) -> None:
    """P83: hookdeploy may be killed right after, or execute itself again, before it has gone."""
    written: list[serverrecords.State] = []
    async with site(tmp_path) as blog, process(blog, blog.launch(HANGS)) as server:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(generation, "signal_group", lambda *_: written.extend(states(blog)))
            server.drain()
    assert written[0] is serverrecords.State.DRAINING


def states(blog: Site) -> list[serverrecords.State]:
    return [record.state for record in serverrecords.alive(blog.records)]
