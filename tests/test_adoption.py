"""Servers that outlive the hookdeploy that started them serve on, in the hands of the next one."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import dataclasses
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from tests import wsgiapps
from tests.wsgiapps import PATIENCE, REACTOR, Load, Site, ask, site, soon, until
from twisted_hook import serverrecords
from twisted_hook.adoption import AdoptedServer
from twisted_hook.model import Launch, StepFailed

FIRST_LIFE = """
import pickle, socket, sys, time
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted_hook.appserver import GunicornServer

app, descriptor, records, log, launches = pickle.load(sys.stdin.buffer)
server = GunicornServer(
    reactor, app=app, listener=socket.socket(fileno=descriptor), records=records, log=log, now=time.time, shown=str
)

async def live():
    for launch in launches:
        await server.swap(launch, lambda phase: None)
        print("serves", flush=True)

reactor.callWhenRunning(lambda: Deferred.fromCoroutine(live()))
reactor.run()
"""
"""A hookdeploy of which nothing matters but its server, and that it can be killed."""


class FirstLife:
    """A process that swaps to one launch after another, with the site's socket and records."""

    def __init__(self, blog: Site, *launches: Launch) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", FIRST_LIFE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[blog.listener.fileno()],
        )
        assert self._process.stdin is not None
        app = dataclasses.replace(blog.app, env={})  # its own kind of mapping cannot be written down
        told = (app, blog.listener.fileno(), blog.records, blog.log, launches)
        self._process.stdin.write(pickle.dumps(told))
        self._process.stdin.close()

    async def serves(self, times: int = 1) -> None:
        """Wait until it has swapped so many times."""
        for _ in range(times):
            assert await deferToThread(self._line) == b"serves\n"

    def _line(self) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None
        assert select.select([stdout], [], [], PATIENCE)[0], "waited in vain for the first life"
        return stdout.readline()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


@asynccontextmanager
async def lived(blog: Site, *launches: Launch) -> AsyncIterator[FirstLife]:
    life = FirstLife(blog, *launches)
    try:
        yield life
    finally:
        life.kill()


async def leave_behind(blog: Site, *launches: Launch) -> list[int]:
    """Have these served one after the other by somebody who is killed then; the masters that are left."""
    async with lived(blog, *launches) as life:
        await life.serves(len(launches))
    return masters(blog)


def masters(blog: Site) -> list[int]:
    """The recorded servers that run, the oldest first."""
    return [record.pid for record in serverrecords.alive(blog.records)]


def adopt(blog: Site) -> Launch | None:
    """What the next hookdeploy does."""
    blog.server = blog.new_server()
    return blog.server.adopt()


async def only(blog: Site, pid: int) -> None:
    """Wait until this master and its worker are all that is left."""
    await until(lambda: len(blog.processes()) == 2 and masters(blog) == [pid], "the end of the other servers")


# --- a server that serves


@pytest_twisted.ensureDeferred
async def test_a_server_that_serves_is_adopted_and_nobody_notices(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        launch = blog.launch()
        async with lived(blog, launch) as life:
            await life.serves()
            [pid] = masters(blog)
            async with Load(blog.address) as load:
                await load.sees("one")
                life.kill()
                assert adopt(blog) == launch
                assert (blog.server.status.state, blog.server.status.pid) == ("serving", pid)
                asked = len(load.answers)
                await until(lambda: len(load.answers) > asked + 100, "more answers")
        assert load.failures == []
        assert masters(blog) == [pid]
        assert len(blog.processes()) == 2
    assert blog.server.status.state == "stopped"


@pytest_twisted.ensureDeferred
async def test_an_adopted_server_is_swapped_without_a_lost_request(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        [pid] = await leave_behind(blog, blog.launch())
        adopt(blog)
        async with Load(blog.address) as load:
            for text in ("two", "three"):
                await blog.serve(blog.launch(text=text))
                await load.sees(text)
            await until(lambda: pid not in blog.processes(), "the end of the adopted server")
            await only(blog, blog.server.status.pid or 0)
        assert load.failures == []
        assert load.answers[-1] == "three"


@pytest_twisted.ensureDeferred
async def test_a_request_inside_an_adopted_server_is_finished_at_a_swap(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        launch = blog.launch()
        await leave_behind(blog, launch)
        adopt(blog)
        slow = deferToThread(ask, blog.address, "/slow")
        await until((launch.tree.path / "slow-begun").exists)
        await blog.serve(blog.launch(text="two"))
        assert await blog.get() == "two"
        (launch.tree.path / "slow-may-end").touch()
        assert await soon(slow) == "one"


@pytest_twisted.ensureDeferred
async def test_an_adopted_server_stays_when_the_new_release_is_broken(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        launch = blog.launch()
        [pid] = await leave_behind(blog, launch)
        adopt(blog)
        with pytest.raises(StepFailed):
            await blog.serve(blog.launch(wsgiapps.IMPORT_ERROR))
        assert (blog.server.status.state, blog.server.status.pid) == ("serving", pid)
        assert blog.server.launch == launch
        assert await blog.get() == "one"
        await only(blog, pid)


@pytest_twisted.ensureDeferred
async def test_an_adopted_server_that_is_killed_is_revived(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        [pid] = await leave_behind(blog, blog.launch())
        adopt(blog)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: blog.server.status.state == "serving" and blog.server.status.pid != pid, "the revival")
        assert await blog.get() == "one"
        await only(blog, blog.server.status.pid or 0)


@pytest_twisted.ensureDeferred
async def test_an_adopted_server_is_stopped_in_order_and_leaves_nothing(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        launch = blog.launch()
        [pid] = await leave_behind(blog, launch)
        adopt(blog)
        slow = deferToThread(ask, blog.address, "/slow")
        await until((launch.tree.path / "slow-begun").exists)
        stopping = Deferred.fromCoroutine(blog.server.stop())
        await until(lambda: any(record.draining for record in serverrecords.alive(blog.records)), "the drain")
        (launch.tree.path / "slow-may-end").touch()
        assert await soon(slow) == "one"
        await soon(stopping)
        assert blog.processes() == []
        assert pid not in masters(blog)


@pytest_twisted.ensureDeferred
async def test_an_adopted_server_that_does_not_drain_in_time_is_killed(tmp_path: Path) -> None:
    """gunicorn itself is stopped, so that its own limit does not strike first."""
    async with site(tmp_path, drain=0.5) as blog:
        [pid] = await leave_behind(blog, blog.launch())
        blog.app = dataclasses.replace(blog.app, drain=-4.5)  # the limit is 5 s later
        adopt(blog)
        os.kill(pid, signal.SIGSTOP)
        await soon(Deferred.fromCoroutine(blog.server.stop()))
        assert blog.processes() == []


@pytest_twisted.ensureDeferred
async def test_a_server_is_adopted_again_and_again(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        launch = blog.launch()
        [pid] = await leave_behind(blog, launch)
        for _ in range(3):
            again = Site.new_server(blog)
            assert again.adopt() == launch
            assert again.status.pid == pid
            let_go(again)
        adopt(blog)
        assert await blog.get() == "one"


def let_go(server: Any) -> None:
    """What its death would do to what it has in the reactor. Its listener is the site's, and stays."""
    for process in server._alive:
        REACTOR.removeReader(process)
        os.close(process.fileno())


# --- what else may be found


@pytest_twisted.ensureDeferred
async def test_a_server_that_waits_at_its_gate_is_killed(tmp_path: Path) -> None:
    """One worker still reads the app; those at the gate see themselves that nobody will open it."""
    async with site(tmp_path) as blog:
        launch = blog.launch()
        async with lived(blog, launch, blog.launch(wsgiapps.HANGS)) as life:
            await life.serves()
            await until(lambda: blog.log.exists() and "waiting for the database" in blog.said(), "the second server")
        pid, waiting = masters(blog)
        assert adopt(blog) == launch
        assert blog.server.status.pid == pid
        await until(lambda: waiting not in blog.processes(), "the end of the one at its gate")
        await only(blog, pid)
        assert await blog.get() == "one"


@pytest_twisted.ensureDeferred
async def test_nothing_is_adopted_if_all_that_is_left_waits_at_its_gate(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        async with lived(blog, blog.launch(wsgiapps.HANGS)):
            await until(lambda: blog.log.exists() and "waiting for the database" in blog.said(), "the server")
        assert adopt(blog) is None
        assert blog.server.outdated
        await blog.serve(blog.launch(text="two"))
        assert await blog.get() == "two"
        await only(blog, blog.server.status.pid or 0)


@pytest_twisted.ensureDeferred
async def test_of_two_that_serve_the_older_one_drains(tmp_path: Path) -> None:
    """The first was killed between opening the gate of the second and asking the other one to end."""
    async with site(tmp_path) as blog:
        first, second = blog.launch(), blog.launch(text="two")
        [old] = await leave_behind(blog, first)
        _, new = await leave_behind(blog, second)
        slow = [deferToThread(ask, blog.address) for _ in range(8)]
        assert adopt(blog) == second
        assert blog.server.status.pid == new
        assert {await soon(each) for each in slow} <= {"one", "two"}
        await until(lambda: old not in blog.processes(), "the end of the older one")
        await only(blog, new)
        assert await blog.get() == "two"


@pytest_twisted.ensureDeferred
async def test_one_that_was_draining_goes_on_draining(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        first, second = blog.launch(), blog.launch(text="two")
        async with lived(blog, first, second) as life:
            await until(lambda: blog.records.is_dir() and masters(blog), "the first server")
            slow = deferToThread(ask, blog.address, "/slow")  # waits in the backlog until somebody serves
            await until((first.tree.path / "slow-begun").exists)
            await life.serves(2)
        old, new = masters(blog)
        assert [record.draining for record in serverrecords.alive(blog.records)] == [True, False]
        assert adopt(blog) == second
        assert blog.server.status.pid == new
        assert await blog.get() == "two"
        (first.tree.path / "slow-may-end").touch()
        assert await soon(slow) == "one"
        await until(lambda: old not in blog.processes(), "the end of the one that drains")
        await only(blog, new)


@pytest_twisted.ensureDeferred
async def test_what_is_recorded_of_a_stranger_is_not_adopted(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        [pid] = await leave_behind(blog, blog.launch())
        [record] = serverrecords.alive(blog.records)
        serverrecords.write(blog.records, dataclasses.replace(record, started=record.started - 1))
        assert adopt(blog) is None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not blog.processes(), "the end of the stranger")


@pytest_twisted.ensureDeferred
async def test_nothing_is_adopted_where_nothing_runs(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        assert adopt(blog) is None
        assert blog.server.status.state == "down"
        assert blog.server.outdated


@pytest_twisted.ensureDeferred
async def test_an_adopted_server_is_outdated_once_the_app_is_configured_otherwise(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        launch = blog.launch()
        [pid] = await leave_behind(blog, launch)
        blog.app = dataclasses.replace(blog.app, workers=2)
        adopt(blog)
        assert blog.server.outdated
        async with Load(blog.address, clients=2) as load:
            await blog.serve(launch)
            await until(lambda: pid not in blog.processes(), "the end of the outdated server")
        assert load.failures == []
        assert not blog.server.outdated
        assert len(blog.processes()) == 3


@pytest_twisted.ensureDeferred
async def test_an_adopted_server_is_not_outdated_if_nothing_has_changed(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        await leave_behind(blog, blog.launch())
        adopt(blog)
        assert not blog.server.outdated


@pytest_twisted.ensureDeferred
async def test_who_has_just_gone_cannot_be_adopted(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        gone = subprocess.Popen([sys.executable, "-c", ""])  # noqa: ASYNC220 - nothing else goes on here
        gone.wait()
        orders = blog.server._orders(blog.launch())
        with pytest.raises(ProcessLookupError):
            AdoptedServer(REACTOR, orders, gone.pid)
