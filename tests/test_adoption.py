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
from tests.waiting import PATIENCE, become
from tests.wsgiapps import REACTOR, Load, Site, ask, site, soon
from twisted_hook import serverrecords
from twisted_hook.adoption import AdoptedServer
from twisted_hook.generation import ServerProcess
from twisted_hook.model import Launch, StepFailed
from twisted_hook.serverrecords import State

FIRST_LIFE = """
import pickle, socket, sys, time
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted_hook.appserver import SocketServer

app, descriptor, records, log, probation, launches = pickle.load(sys.stdin.buffer)
server = SocketServer(
    reactor, app=app, listener=socket.socket(fileno=descriptor), records=records, log=log, now=time.time, shown=str
)

async def live():
    for launch in launches:
        await server.swap(launch, entered, probation=probation)
        print("serves", flush=True)

def entered(phase):
    if phase == "probation":
        reactor.callLater(0, print, "on probation", flush=True)

reactor.callWhenRunning(lambda: Deferred.fromCoroutine(live()))
reactor.run()
"""
"""A hookdeploy of which nothing matters but its server, and that it can be killed."""


class FirstLife:
    """A process that swaps to one launch after another, with the site's socket and records."""

    def __init__(self, blog: Site, *launches: Launch, probation: float = 0.0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", FIRST_LIFE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # select() would not see a line that was read together with the one before it
            pass_fds=[blog.listener.fileno()],
        )
        assert self._process.stdin is not None
        app = dataclasses.replace(blog.app, env={})  # its own kind of mapping cannot be written down
        told = (app, blog.listener.fileno(), blog.records, blog.log, probation, launches)
        self._process.stdin.write(pickle.dumps(told))
        self._process.stdin.close()

    async def serves(self, times: int = 1) -> None:
        """Wait until it has swapped so many times."""
        for _ in range(times):
            await self.says("serves")

    async def says(self, line: str) -> None:
        """Wait until it says this."""
        assert await deferToThread(self._line) == f"{line}\n".encode()

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
async def lived(blog: Site, *launches: Launch, probation: float = 0.0) -> AsyncIterator[FirstLife]:
    life = FirstLife(blog, *launches, probation=probation)
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


def states(blog: Site) -> list[State]:
    """How far the recorded servers have come, the oldest first."""
    return [record.state for record in serverrecords.alive(blog.records)]


def adopt(blog: Site) -> Launch | None:
    """What the next hookdeploy does."""
    blog.server = blog.new_server()
    return blog.server.adopt()


async def until_it_waits(blog: Site, *, servers: int) -> None:
    """Until the newest of so many recorded servers reads its app, without end."""
    await become(
        lambda: len(masters(blog)) == servers and "waiting for the database" in blog.said(), "the server that waits"
    )


async def only(blog: Site, pid: int) -> None:
    """Wait until this master and its worker are all that is left."""
    await become(lambda: len(blog.processes()) == 2 and masters(blog) == [pid], "the end of the other servers")


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
                await become(lambda: len(load.answers) > asked + 50, "more answers")
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
            await become(lambda: pid not in blog.processes(), "the end of the adopted server")
            await only(blog, blog.server.status.pid or 0)
        assert load.failures == []
        assert await blog.get() == "three"


@pytest_twisted.ensureDeferred
async def test_a_request_inside_an_adopted_server_is_finished_at_a_swap(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        launch = blog.launch()
        await leave_behind(blog, launch)
        adopt(blog)
        slow = deferToThread(ask, blog.address, "/slow")
        await become((launch.tree.path / "slow-begun").exists)
        await blog.serve(blog.launch(text="two"))
        assert await blog.get() == "two"
        (launch.tree.path / "slow-may-end").touch()
        assert await soon(slow) == "one"


@pytest_twisted.ensureDeferred
async def test_an_adopted_server_stays_when_the_new_release_is_broken_and_is_revived_when_it_is_killed(
    tmp_path: Path,
) -> None:
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
        os.kill(pid, signal.SIGKILL)
        await become(lambda: blog.server.status.state == "serving" and blog.server.status.pid != pid, "the revival")
        assert await blog.get() == "one"
        await only(blog, blog.server.status.pid or 0)


@pytest_twisted.ensureDeferred
async def test_an_adopted_server_is_stopped_in_order_and_leaves_nothing(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        launch = blog.launch()
        [pid] = await leave_behind(blog, launch)
        adopt(blog)
        slow = deferToThread(ask, blog.address, "/slow")
        await become((launch.tree.path / "slow-begun").exists)
        stopping = Deferred.fromCoroutine(blog.server.stop())
        await become(
            lambda: any(record.state is State.DRAINING for record in serverrecords.alive(blog.records)), "the drain"
        )
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
        assert not blog.server.outdated
        assert await blog.get() == "one"


def let_go(server: Any) -> None:
    """What its death would do to what it has in the reactor. Its listener is the site's, and stays."""
    for process in server._alive:
        REACTOR.removeReader(process)
        os.close(process.fileno())


@pytest_twisted.ensureDeferred
async def test_any_program_is_adopted_swapped_and_stopped(tmp_path: Path) -> None:
    async with site(tmp_path, command=(sys.executable, "wsgi.py", "{fd}")) as blog:
        launch = blog.launch(wsgiapps.COMMAND)
        [pid] = await leave_behind(blog, launch)
        assert adopt(blog) == launch
        assert not blog.server.outdated
        async with Load(blog.address, clients=2) as load:
            await blog.serve(blog.launch(wsgiapps.COMMAND, text="two"))
            await become(lambda: pid not in blog.processes(), "the end of the adopted one")
        assert load.failures == []
        assert await blog.get() == "two"


@pytest_twisted.ensureDeferred
async def test_any_program_on_probation_drains(tmp_path: Path) -> None:
    async with site(tmp_path, command=(sys.executable, "wsgi.py", "{fd}")) as blog:
        first, second = blog.launch(wsgiapps.COMMAND), blog.launch(wsgiapps.COMMAND, text="two")
        async with lived(blog, first, second, probation=600.0) as life:
            await life.serves()
            await life.says("on probation")
        assert adopt(blog) == first
        await become(lambda: len(blog.processes()) == 1, "the end of the one on probation")
        assert await blog.get() == "one"


# --- what else may be found


@pytest_twisted.ensureDeferred
async def test_a_server_that_waits_at_its_gate_is_killed(tmp_path: Path) -> None:
    """One worker still reads the app; those at the gate see themselves that nobody will open it."""
    async with site(tmp_path) as blog:
        launch = blog.launch()
        async with lived(blog, launch, blog.launch(wsgiapps.HANGS)) as life:
            await life.serves()
            await until_it_waits(blog, servers=2)
        pid, waiting = masters(blog)
        assert adopt(blog) == launch
        assert blog.server.status.pid == pid
        await become(lambda: waiting not in blog.processes(), "the end of the one at its gate")
        await only(blog, pid)
        assert await blog.get() == "one"


@pytest_twisted.ensureDeferred
async def test_nothing_is_adopted_if_all_that_is_left_waits_at_its_gate(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        async with lived(blog, blog.launch(wsgiapps.HANGS)):
            await until_it_waits(blog, servers=1)
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
        await become(lambda: old not in blog.processes(), "the end of the older one")
        await only(blog, new)
        assert await blog.get() == "two"


@pytest_twisted.ensureDeferred
async def test_one_on_probation_drains_and_the_older_one_serves_on(tmp_path: Path) -> None:
    """P83."""
    async with site(tmp_path) as blog:
        first, second = blog.launch(), blog.launch(text="two")
        async with lived(blog, first, second, probation=600.0) as life:
            await life.serves()
            await life.says("on probation")
            async with Load(blog.address) as load:
                await load.sees("one")
                await load.sees("two")
                assert states(blog) == [State.SERVING, State.PROBATION]
                old, new = masters(blog)
                os.kill(new, signal.SIGSTOP)  # else it ends by itself, as in the next test
                life.kill()
                assert adopt(blog) == first
                assert blog.server.status.pid == old
                assert states(blog) == [State.SERVING, State.DRAINING]
                os.kill(new, signal.SIGCONT)
                await become(lambda: new not in blog.processes(), "the end of the one on probation")
            assert load.failures == []
        await only(blog, old)
        assert await blog.get() == "one"


@pytest_twisted.ensureDeferred
async def test_one_on_probation_ends_with_its_hookdeploy_and_the_older_one_is_adopted(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        first = blog.launch()
        async with lived(blog, first, blog.launch(text="two"), probation=600.0) as life:
            await life.serves()
            await life.says("on probation")
            old, _ = masters(blog)
        await become(lambda: masters(blog) == [old], "the end of the newer one")
        assert adopt(blog) == first
        assert states(blog) == [State.SERVING]
        assert await blog.get() == "one"


@pytest_twisted.ensureDeferred
async def test_what_serves_is_on_disk_before_the_older_one_is_asked_to_end(tmp_path: Path) -> None:
    """P83: killed between the two, the newest serves."""
    async with site(tmp_path) as blog:
        written: list[list[State]] = []
        await blog.serve()
        drain = ServerProcess.drain

        def drained(server: ServerProcess) -> None:
            written.append(states(blog))
            drain(server)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ServerProcess, "drain", drained)
            await blog.serve(blog.launch(text="two"), probation=0.01)
        assert written == [[State.SERVING, State.SERVING]]


@pytest_twisted.ensureDeferred
async def test_one_that_was_draining_goes_on_draining(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        first, second = blog.launch(), blog.launch(text="two")
        async with lived(blog, first, second) as life:
            await become(lambda: blog.records.is_dir() and masters(blog), "the first server")
            slow = deferToThread(ask, blog.address, "/slow")  # waits in the backlog until somebody serves
            await become((first.tree.path / "slow-begun").exists)
            await life.serves(2)
        old, new = masters(blog)
        assert states(blog) == [State.DRAINING, State.SERVING]
        assert adopt(blog) == second
        assert blog.server.status.pid == new
        assert await blog.get() == "two"
        (first.tree.path / "slow-may-end").touch()
        assert await soon(slow) == "one"
        await become(lambda: old not in blog.processes(), "the end of the one that drains")
        await only(blog, new)


@pytest_twisted.ensureDeferred
async def test_what_is_recorded_of_a_stranger_is_not_adopted(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        [pid] = await leave_behind(blog, blog.launch())
        [record] = serverrecords.alive(blog.records)
        serverrecords.write(blog.records, dataclasses.replace(record, started=record.started - 1))
        assert adopt(blog) is None
        os.killpg(pid, signal.SIGKILL)
        await become(lambda: not blog.processes(), "the end of the stranger")


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
            await become(lambda: pid not in blog.processes(), "the end of the outdated server")
        assert load.failures == []
        assert not blog.server.outdated
        assert len(blog.processes()) == 3


@pytest_twisted.ensureDeferred
async def test_an_adopted_server_is_outdated_once_it_is_to_run_as_somebody_else(tmp_path: Path) -> None:
    """It may run as root still."""
    async with site(tmp_path) as blog:
        await leave_behind(blog, blog.launch())
        mine = blog.app
        blog.app = dataclasses.replace(mine, user="nobody")
        adopt(blog)
        assert blog.server.outdated
        blog.server.configure(mine, blog.listener.dup())
        assert not blog.server.outdated


@pytest_twisted.ensureDeferred
async def test_who_has_just_gone_cannot_be_adopted(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        orders = blog.server._orders(blog.launch())
        with pytest.raises(ProcessLookupError):
            AdoptedServer(REACTOR, orders, 2**22 + 1)  # more than any has


@pytest_twisted.ensureDeferred
async def test_what_was_started_in_this_life_is_not_adopted(tmp_path: Path) -> None:
    """A reload after a first deployment that failed: two would wait for one end, and one of them in vain."""
    async with site(tmp_path) as blog:
        await blog.serve(blog.launch(wsgiapps.GOOD))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ServerProcess, "_signal", lambda server, name: None)  # it takes its time
            await blog.serve(blog.launch(text="two"))
        before = set(blog.server._alive)
        assert len(before) == 2
        launch = blog.server.launch
        assert blog.server.adopt() == launch
        assert blog.server._alive == before
        (old,) = [each for each in before if each is not blog.server._serving]
        old.terminate()
        await become(lambda: len(blog.processes()) == 2, "the end of the older one")


DIES_BEFORE_IT_WRITES = """
from twisted_hook.generation import ServerProcess
from twisted_hook.serverrecords import State
write = ServerProcess._write_record

def write_or_die(server, state):
    if server.release == "release-2" and state is State.CANDIDATE:
        print("dies", flush=True)
        time.sleep(1000)
    write(server, state)

ServerProcess._write_record = write_or_die
"""


@pytest_twisted.ensureDeferred
async def test_any_program_ends_that_was_started_and_not_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P83: nobody would ever find it, and it would serve beside the others."""
    monkeypatch.setattr(
        "tests.test_adoption.FIRST_LIFE", FIRST_LIFE.replace("app, desc", f"{DIES_BEFORE_IT_WRITES}\napp, desc")
    )
    async with site(tmp_path, command=(sys.executable, "wsgi.py", "{fd}")) as blog:
        first, second = blog.launch(wsgiapps.COMMAND), blog.launch(wsgiapps.COMMAND, text="two")
        async with lived(blog, first, second) as life:
            await life.serves()
            await life.says("dies")
        assert adopt(blog) == first
        old = blog.server.status.pid
        await become(lambda: blog.processes() == [old], "the end of the other one")
        for _ in range(10):
            assert await blog.get() == "one"
