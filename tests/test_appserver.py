"""The server of an app: swaps that nobody notices, releases that never serve, and deaths that are answered."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import importlib.util
import os
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
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
from tests.patient import up_when
from tests.proctable import parent
from tests.waiting import become
from tests.wsgiapps import GOOD, Load, Site, ask, connection, site, soon
from twisted_hook import appserver, serverrecords, sockets
from twisted_hook.appserver import SocketServer
from twisted_hook.config import AppConfig
from twisted_hook.environments import existing
from twisted_hook.generation import Orders
from twisted_hook.model import Commit, Environment, Launch, Phase, ProbationFailed, StepFailed, Tree
from twisted_hook.once import Once
from twisted_hook.serverrecords import Record
from twisted_hook.supervision import Terms

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


@pytest_twisted.ensureDeferred
async def test_swaps_under_load_lose_no_request(tmp_path: Path) -> None:
    """P82."""
    async with site(tmp_path, workers=2, gunicorn=("--worker-class", "gthread", "--threads", "4")) as blog:
        first = await blog.serve()
        slow = deferToThread(ask, blog.address, "/slow")
        await become((first.tree.path / "slow-begun").exists)
        async with Load(blog.address) as load:
            for text in ("two", "three", "four"):
                await blog.serve(blog.launch(text=text))
                await load.sees(text)
            (first.tree.path / "slow-may-end").touch()
            assert await slow == "one"
            await become(lambda: len(blog.processes()) == 3, "the old generations to end")
        assert load.failures == []
        assert await blog.get() == "four"


BROKEN = {
    "an import error": (wsgiapps.IMPORT_ERROR, "not be loaded: RuntimeError: no settings found", "no settings found"),
    "a syntax error": (wsgiapps.SYNTAX_ERROR, "not be loaded: SyntaxError: ", "SyntaxError"),
    "no such attribute": (
        wsgiapps.NO_ATTRIBUTE,
        "not be loaded: AppImportError: ",
        "Failed to find attribute 'application' in 'wsgi'.",
    ),
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
    async with site(tmp_path, workers=2, health="/healthz") as blog:
        good = await blog.serve()
        pid = blog.server.status.pid
        async with Load(blog.address, clients=2) as load:
            for name, (source, said, words) in BROKEN.items():
                if source is wsgiapps.HANGS:
                    blog.hurry(2.0, lambda: blog.phases[-1] is Phase.CHECKING and "waiting for" in blog.said())
                with pytest.raises(StepFailed, match="the new server did not start") as caught:
                    await blog.serve(blog.launch(source, text=name))
                assert said in caught.value.summary, name
                assert words in caught.value.tail, name
                assert (blog.server.status.state, blog.server.status.pid) == ("serving", pid)
                assert blog.server.launch is good
            await become(lambda: len(blog.processes()) == 3, "the candidates to end")
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
        await become(lambda: len(blog.processes()) == 2, "the old generation to end")
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


# --- probation: long enough never to end by itself, but where its end is what is awaited

LONG = 600.0


async def until_on_probation(blog: Site) -> None:
    await become(lambda: blog.phases[-1:] == [Phase.PROBATION], "the probation")


def newcomer(blog: Site) -> int:
    """The pid of the one on probation."""
    (pid,) = (process.pid for process in blog.server._alive if process.pid != blog.server.status.pid)
    assert pid is not None
    return pid


async def carries_on(blog: Site, launch: Launch, pid: int | None, *, processes: int = 2) -> None:
    """What served before serves on, and nothing else is left."""
    assert (blog.server.status.state, blog.server.status.pid) == ("serving", pid)
    assert blog.server.launch is launch
    await become(lambda: len(blog.processes()) == processes, "the end of the other one")
    assert await blog.get() == "one"
    await become(lambda: blog.server.in_use == {launch.tree.release}, "the end of its release's use")


@pytest_twisted.ensureDeferred
async def test_a_good_release_passes_its_probation_and_then_the_old_one_drains(tmp_path: Path) -> None:
    async with site(tmp_path, workers=2, health="/healthz") as blog:
        first = await blog.serve(probation=LONG)
        assert Phase.PROBATION not in blog.phases, "there was nothing beside which it could have served"
        old = blog.server.status.pid
        second = blog.launch(text="two")
        both_seen = Event()
        blog.server._reactor = up_when(both_seen.is_set, 0.7)
        async with Load(blog.address) as load:
            swapping = Deferred.fromCoroutine(blog.serve(second, probation=0.7))
            await until_on_probation(blog)
            assert blog.server.launch is first
            assert blog.server.status.pid == old
            assert blog.server.in_use == {first.tree.release, second.tree.release}
            await load.sees("two")
            await load.sees("one")
            both_seen.set()
            assert await soon(swapping) is second
            assert blog.server.launch is second
            await become(lambda: blog.server.in_use == {second.tree.release}, "the end of the old one")
        assert load.failures == []


FAILURES = [wsgiapps.ANSWERS_503, wsgiapps.RAISES_LATE, wsgiapps.BREAKS_OFF]


@pytest.mark.parametrize("worker", [("sync",), ("gthread", "--threads", "2"), ("gevent",)], ids=lambda words: words[0])
@pytest_twisted.ensureDeferred
async def test_the_third_bad_answer_ends_a_probation(tmp_path: Path, worker: tuple[str, ...]) -> None:
    """P81: its health path lies, so that only real requests can tell."""
    options = ("--worker-class", *worker)
    async with site(tmp_path, workers=1, health="/healthz", gunicorn=options) as blog:
        good = await blog.serve()
        pid = blog.server.status.pid
        for fails in FAILURES:
            async with Load(blog.address, clients=2) as load:
                with pytest.raises(ProbationFailed) as caught:
                    await blog.serve(blog.launch(fails + wsgiapps.LIES, text="two"), probation=LONG)
                assert "3 answers of 500 and above in the first 600 s" in caught.value.summary
                if fails != wsgiapps.ANSWERS_503:
                    assert "LookupError: no database" in caught.value.tail
                await become(lambda: len(blog.processes()) == 2, "the end of the new one")
            assert set(load.answers) == {"one"}
            assert len(load.failures) >= 3, fails
            await carries_on(blog, good, pid)


ASYNCHRONOUS_FAILURES = {
    "answers": """
async def fail(send):
    await send({"type": "http.response.start", "status": 503, "headers": []})
    await send({"type": "http.response.body", "body": b"no database"})
""",
    "raises": """
async def fail(send):
    raise LookupError("no database")
""",
    "breaks off": """
async def fail(send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
    await send({"type": "http.response.body", "body": b"The database", "more_body": True})
    raise LookupError("no database")
""",
    "says nothing": """
async def fail(send):
    pass
""",
}
ASGI_WORKERS = ["asgi", "uvicorn.workers.UvicornWorker"]


@pytest.mark.parametrize("worker", ASGI_WORKERS)
@pytest_twisted.ensureDeferred
async def test_the_third_bad_answer_of_an_asynchronous_app_ends_a_probation(tmp_path: Path, worker: str) -> None:
    """P81."""
    async with site(tmp_path, health="/healthz", gunicorn=("--worker-class", worker)) as blog:
        good = await blog.serve(blog.launch(wsgiapps.ASYNCHRONOUS))
        pid = blog.server.status.pid
        for fails in ASYNCHRONOUS_FAILURES.values():
            async with Load(blog.address, clients=2) as load:
                with pytest.raises(ProbationFailed, match="3 answers of 500 and above in the first 600 s"):
                    await blog.serve(blog.launch(fails + wsgiapps.LIES_ASYNCHRONOUSLY, text="two"), probation=LONG)
            assert len(load.failures) >= 3, fails
            await carries_on(blog, good, pid)


@pytest.mark.parametrize("worker", ASGI_WORKERS)
@pytest_twisted.ensureDeferred
async def test_a_bad_health_of_an_asynchronous_app_ends_a_probation(tmp_path: Path, worker: str) -> None:
    async with site(tmp_path, health="/healthz", gunicorn=("--worker-class", worker)) as blog:
        good = await blog.serve(blog.launch(wsgiapps.ASYNCHRONOUS))
        pid = blog.server.status.pid
        sick = wsgiapps.LIES_ASYNCHRONOUSLY.replace("200", "404")
        with pytest.raises(ProbationFailed, match="the health check failed: /healthz answered 404"):
            await soon(Deferred.fromCoroutine(blog.serve(blog.launch(sick, text="two"), probation=LONG)))
        await carries_on(blog, good, pid)


SLOW_LIFESPAN = """
import asyncio, os

async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        while not (end := os.path.exists("may-start") and open("may-start").read()):
            await asyncio.sleep(0.01)
        await send({"type": "lifespan.startup." + end})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": TEXT})
"""


@pytest.mark.parametrize("worker", ASGI_WORKERS)
@pytest_twisted.ensureDeferred
async def test_an_asynchronous_app_serves_only_when_its_lifespan_has_begun(tmp_path: Path, worker: str) -> None:
    async with site(tmp_path, workers=2, gunicorn=("--worker-class", worker)) as blog:
        good = await blog.serve(blog.launch(wsgiapps.ASYNCHRONOUS))
        pid = blog.server.status.pid
        second = blog.launch(SLOW_LIFESPAN, text="two")
        swapping = Deferred.fromCoroutine(blog.serve(second))
        async with Load(blog.address, clients=2) as load:
            await become(lambda: blog.phases.count(Phase.SWAPPING) == 2, "the open gate")
            answered = len(load.answers)
            await become(lambda: load.failures or len(load.answers) > answered + 50, "answers of the old one")
            assert blog.server.launch is good
            assert not swapping.called
            assert load.failures == []
            (second.tree.path / "may-start").write_text("complete")
            await soon(swapping)
            await load.sees("two")
            await become(lambda: pid not in blog.processes(), "the end of the old one")


@pytest.mark.parametrize("worker", ASGI_WORKERS)
@pytest_twisted.ensureDeferred
async def test_an_asynchronous_app_whose_lifespan_fails_changes_nothing(tmp_path: Path, worker: str) -> None:
    """P81."""
    async with site(tmp_path, gunicorn=("--worker-class", worker)) as blog:
        good = await blog.serve(blog.launch(wsgiapps.ASYNCHRONOUS))
        pid = blog.server.status.pid
        broken = blog.launch(SLOW_LIFESPAN, text="two", files={"may-start": "failed"})
        with pytest.raises(StepFailed, match="the new server did not start"):
            await soon(Deferred.fromCoroutine(blog.serve(broken)))
        await carries_on(blog, good, pid)


@pytest_twisted.ensureDeferred
async def test_a_worker_that_dies_on_its_first_request_ends_a_probation(tmp_path: Path) -> None:
    """P81."""
    async with site(tmp_path, health="/healthz") as blog:
        good = await blog.serve()
        pid = blog.server.status.pid
        async with Load(blog.address, clients=1) as load:
            with pytest.raises(ProbationFailed, match="a worker died in the first 600 s"):
                await blog.serve(blog.launch(wsgiapps.DIES + wsgiapps.LIES, text="two"), probation=LONG)
        assert load.failures
        await carries_on(blog, good, pid)


@pytest_twisted.ensureDeferred
async def test_workers_that_retire_end_no_probation(tmp_path: Path) -> None:
    async with site(tmp_path, gunicorn=("--max-requests", "2")) as blog:
        await blog.serve()
        swapping = Deferred.fromCoroutine(blog.serve(blog.launch(text="two"), probation=LONG))
        await until_on_probation(blog)
        master = newcomer(blog)
        worker = next(pid for pid in blog.processes() if parent(pid) == master)
        async with Load(blog.address, clients=2) as load:
            await become(lambda: load.failures or worker not in blog.processes(), "the worker's end")
            answered = len(load.answers)
            await become(lambda: load.failures or len(load.answers) > answered + 20, "more answers")
        assert not swapping.called
        swapping.cancel()
        with pytest.raises(CancelledError):
            await swapping


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "0.0.0.0:0", "[::]:0", "unix"])
@pytest_twisted.ensureDeferred
async def test_a_health_that_turns_bad_ends_a_probation(tmp_path: Path, bind: str) -> None:
    """Nobody but hookdeploy asks anything here."""
    where = f"unix:{tmp_path / 'blog.sock'}" if bind == "unix" else bind
    async with site(tmp_path, bind=where, health="/healthz", workers=2) as blog:
        good = await blog.serve(blog.launch(wsgiapps.TURNS_SICK))
        pid = blog.server.status.pid
        second = blog.launch(wsgiapps.TURNS_SICK, text="two")
        swapping = Deferred.fromCoroutine(blog.serve(second, probation=LONG))
        await until_on_probation(blog)
        (good.tree.path / "sick").touch()  # its own affair, and no fault of the new one's
        await deferToThread(ask_until, blog.address, "two")
        assert not swapping.called
        (second.tree.path / "sick").touch()
        with pytest.raises(ProbationFailed, match="the health check failed: /healthz answered 404"):
            await soon(swapping)
        await carries_on(blog, good, pid, processes=3)


def ask_until(address: int | str, text: str) -> None:
    for _ in range(200):
        if ask(address) == text:
            return


@pytest_twisted.ensureDeferred
async def test_nobody_elses_question_ends_a_probation(tmp_path: Path) -> None:
    """A stranger who asks in our name must not be able to keep a release away."""
    async with site(tmp_path, health="/healthz") as blog:
        await blog.serve(blog.launch(wsgiapps.TURNS_SICK))
        blog.server._app = replace(blog.app, health=None)
        swapping = Deferred.fromCoroutine(blog.serve(blog.launch(answers("404 Not Found")), probation=1.0))
        await until_on_probation(blog)
        for _ in range(20):
            await deferToThread(ask_as, blog.address, "/healthz", "hookdeploy-health/0000000000000000")
        await soon(swapping)


def answers(status: str) -> str:
    """An app that answers everything with this status."""
    return f"def application(environ, start_response):\n    start_response({status!r}, [])\n    return [b'']\n"


LOSES_ITS_DATABASE = """
import errno

def fail(environ, start_response):
    try:
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    except OSError as error:
        raise LookupError("no database") from error
"""


@pytest_twisted.ensureDeferred
async def test_a_database_that_resets_its_connection_is_no_client_that_has_gone(tmp_path: Path) -> None:
    async with site(tmp_path, health="/healthz") as blog:
        good = await blog.serve()
        pid = blog.server.status.pid
        async with Load(blog.address, clients=1):
            with pytest.raises(ProbationFailed, match="3 answers of 500 and above"):
                await soon(
                    Deferred.fromCoroutine(
                        blog.serve(blog.launch(LOSES_ITS_DATABASE + wsgiapps.LIES, text="two"), probation=LONG)
                    )
                )
        await carries_on(blog, good, pid)


READS = """
def application(environ, start_response):
    environ["wsgi.input"].read()
    start_response("200 OK", [])
    return [b"read"]
"""
WRAPS = """
def application(environ, start_response):
    try:
        environ["wsgi.input"].read()
    except Exception as error:
        raise LookupError("no input") from error
    start_response("200 OK", [])
    return [b"read"]
"""


@pytest.mark.parametrize("worker", [("sync",), ("gthread", "--threads", "2")], ids=["sync", "gthread"])
@pytest_twisted.ensureDeferred
async def test_no_malformed_request_ends_a_probation(tmp_path: Path, worker: tuple[str, ...]) -> None:
    """A stranger who breaks off in a chunked body, or sends nonsense in it, must not be able to keep a release away."""
    async with site(tmp_path, gunicorn=("--worker-class", *worker)) as blog:
        await blog.serve(blog.launch(READS))
        for source in (READS, WRAPS):
            swapping = Deferred.fromCoroutine(blog.serve(blog.launch(source), probation=2.0))
            await until_on_probation(blog)
            for _ in range(15):
                await deferToThread(send, blog.address, b"5\r\nhal")
                await deferToThread(send, blog.address, b"nonsense\r\n\r\n")
            await soon(swapping)


READS_ASYNCHRONOUSLY = """
async def application(scope, receive, send):
    if scope["type"] == "http":
        while (message := await receive())["type"] == "http.request" and message.get("more_body"):
            pass
        status = 500 if message["type"] == "http.disconnect" else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"read"})
"""
"""What frameworks do of an app that reads: they raise as the client has gone, and make 500 of that."""


@pytest.mark.parametrize("worker", ASGI_WORKERS)
@pytest_twisted.ensureDeferred
async def test_no_broken_off_request_to_an_asynchronous_app_ends_a_probation(tmp_path: Path, worker: str) -> None:
    async with site(tmp_path, gunicorn=("--worker-class", worker)) as blog:
        await blog.serve(blog.launch(READS_ASYNCHRONOUSLY))
        swapping = Deferred.fromCoroutine(blog.serve(blog.launch(READS_ASYNCHRONOUSLY), probation=2.0))
        await until_on_probation(blog)
        for _ in range(15):
            await deferToThread(send, blog.address, b"5\r\nhal")
        await soon(swapping)


def send(address: int | str, body: bytes) -> None:
    """A chunked body and its end."""
    client = connection(address)
    client.connect()
    client.sock.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    client.sock.shutdown(socket.SHUT_WR)
    while client.sock.recv(65536):
        pass
    client.close()


def ask_as(address: int | str, path: str, name: str) -> None:
    client = connection(address)
    client.request("GET", path, headers={"User-Agent": name, "Connection": "close"})
    client.getresponse().read()
    client.close()


@pytest_twisted.ensureDeferred
async def test_the_new_one_takes_over_at_once_if_the_old_one_dies_during_its_probation(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        await blog.serve()
        old = blog.server.status.pid
        assert old is not None
        second = blog.launch(text="two")
        swapping = Deferred.fromCoroutine(blog.serve(second, probation=LONG))
        await until_on_probation(blog)
        with capturedLogs() as events:
            os.kill(old, signal.SIGKILL)
            await soon(swapping)
        assert "the new one takes over at once" in log_lines(events)
        assert blog.server.launch is second
        assert blog.server.status.state == "serving"
        await become(lambda: len(blog.processes()) == 2, "the worker of the killed one to end")
        assert await blog.get() == "two"


@pytest_twisted.ensureDeferred
async def test_a_new_one_that_is_killed_during_its_probation_has_failed(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        good = await blog.serve()
        old = blog.server.status.pid
        swapping = Deferred.fromCoroutine(blog.serve(blog.launch(text="two"), probation=LONG))
        await until_on_probation(blog)
        os.kill(newcomer(blog), signal.SIGKILL)
        with pytest.raises(ProbationFailed, match="the server ended by itself: signal 9"):
            await soon(swapping)
        await carries_on(blog, good, old)


@pytest_twisted.ensureDeferred
async def test_a_swap_that_is_cancelled_during_the_probation_lets_the_old_one_carry_on(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        good = await blog.serve()
        pid = blog.server.status.pid
        swapping = Deferred.fromCoroutine(blog.serve(blog.launch(text="two"), probation=LONG))
        await until_on_probation(blog)
        swapping.cancel()
        with pytest.raises(CancelledError):
            await swapping
        await carries_on(blog, good, pid)


@pytest_twisted.ensureDeferred
async def test_one_that_holds_a_request_when_its_probation_fails_answers_it(tmp_path: Path) -> None:
    async with site(tmp_path, health="/healthz", workers=2) as blog:
        good = await blog.serve(blog.launch(wsgiapps.TURNS_SICK))
        pid = blog.server.status.pid
        slow_and_sick = GOOD.replace('start_response("200 OK"', "start_response(answer(environ)") + SICK_ON_DEMAND
        second = blog.launch(slow_and_sick, text="two")
        swapping = Deferred.fromCoroutine(blog.serve(second, probation=LONG))
        await until_on_probation(blog)
        begun, asked = (second.tree.path / "slow-begun").exists, list[Deferred[str]]()
        while not begun():  # one after the other: two would leave the new one no worker to be asked for its health
            asked.append(deferToThread(ask, blog.address, "/slow"))
            await become(lambda: asked[-1].called or begun())
        (second.tree.path / "sick").touch()
        with pytest.raises(ProbationFailed):
            await soon(swapping)
        (second.tree.path / "slow-may-end").touch()
        assert await soon(asked[-1]) == "two"
        await carries_on(blog, good, pid, processes=3)


SICK_ON_DEMAND = """
def answer(environ):
    return "500 Oh" if environ["PATH_INFO"] == "/healthz" and os.path.exists("sick") else "200 OK"
"""


@pytest_twisted.ensureDeferred
async def test_stopping_during_a_probation_leaves_nothing(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        await blog.serve()
        swapping = Deferred.fromCoroutine(blog.serve(blog.launch(text="two"), probation=LONG))
        await until_on_probation(blog)
        stopping = Deferred.fromCoroutine(blog.server.stop())
        with pytest.raises(ProbationFailed, match="it was stopped during its probation"):
            await swapping
        await soon(stopping)
        assert blog.processes() == []


# --- any program that takes the listening socket

COMMAND = (sys.executable, "wsgi.py", "{fd}")


@pytest_twisted.ensureDeferred
async def test_swaps_of_any_program_lose_no_request(tmp_path: Path) -> None:
    """P82."""
    async with site(tmp_path, command=COMMAND) as blog:
        first = await blog.serve(blog.launch(wsgiapps.COMMAND))
        assert blog.phases == [Phase.STARTING, Phase.SWAPPING]
        slow = deferToThread(ask, blog.address, "/slow")
        await become((first.tree.path / "slow-begun").exists)
        async with Load(blog.address) as load:
            for text in ("two", "three"):
                await blog.serve(blog.launch(wsgiapps.COMMAND, text=text), probation=0.2)
                await load.sees(text)
            (first.tree.path / "slow-may-end").touch()
            assert await slow == "one"
            await become(lambda: len(blog.processes()) == 1, "the old ones to end")
        assert load.failures == []
        assert blog.phases[-1] is Phase.PROBATION


@pytest_twisted.ensureDeferred
async def test_a_program_that_is_seen_to_wait_for_connections_serves_at_once(tmp_path: Path) -> None:
    async with site(tmp_path, command=("sh", "-c", f"{sys.executable} wsgi.py 3; true")) as blog:
        blog.server._settle = LONG  # it is a child of the shell's that waits
        await blog.serve(blog.launch(wsgiapps.COMMAND))
        assert await blog.get() == "one"


@pytest_twisted.ensureDeferred
async def test_a_program_that_is_not_seen_to_wait_serves_when_it_has_settled(tmp_path: Path) -> None:
    async with site(tmp_path, command=COMMAND) as blog:
        blog.server._settle = 0.3
        await blog.serve(blog.launch(wsgiapps.POLLS))
        assert await blog.get() == "one"


@pytest_twisted.ensureDeferred
async def test_a_program_that_ends_instead_of_serving_changes_nothing(tmp_path: Path) -> None:
    """P81."""
    async with site(tmp_path, command=COMMAND) as blog:
        blog.server._settle = LONG
        good = await blog.serve(blog.launch(wsgiapps.COMMAND))
        pid = blog.server.status.pid
        with pytest.raises(StepFailed, match="the server ended while it was starting: exit 1") as caught:
            await blog.serve(blog.launch(wsgiapps.IMPORT_ERROR, text="two"), probation=LONG)
        assert "RuntimeError: no settings found" in caught.value.tail
        await carries_on(blog, good, pid, processes=1)


@pytest_twisted.ensureDeferred
async def test_a_program_that_does_not_exist_changes_nothing(tmp_path: Path) -> None:
    async with site(tmp_path, command=("no-such-server", "{fd}")) as blog:
        with pytest.raises(StepFailed, match="no such program: no-such-server"):
            await blog.serve()


@pytest_twisted.ensureDeferred
async def test_a_program_that_dies_during_its_probation_changes_nothing(tmp_path: Path) -> None:
    async with site(tmp_path, command=COMMAND, health="/healthz") as blog:
        good = await blog.serve(blog.launch(wsgiapps.COMMAND))
        pid = blog.server.status.pid
        swapping = Deferred.fromCoroutine(blog.serve(blog.launch(wsgiapps.COMMAND, text="two"), probation=LONG))
        await until_on_probation(blog)
        os.kill(newcomer(blog), signal.SIGKILL)
        with pytest.raises(ProbationFailed, match="the server ended by itself: signal 9"):
            await soon(swapping)
        await carries_on(blog, good, pid, processes=1)


@pytest_twisted.ensureDeferred
async def test_a_program_that_does_not_end_when_asked_is_killed(tmp_path: Path) -> None:
    deaf = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    async with site(tmp_path, command=COMMAND, drain=-4.5) as blog:  # the limit is 5 s later
        blog.server._settle = 0.3
        await blog.serve(blog.launch(deaf + wsgiapps.POLLS))
        await soon(Deferred.fromCoroutine(blog.server.stop()))
        assert blog.processes() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can let servers be somebody else")
@pytest_twisted.ensureDeferred
async def test_a_server_runs_as_the_account_that_is_configured() -> None:
    with TemporaryDirectory() as reachable:
        Path(reachable).chmod(0o755)
        command = ("/usr/bin/python3", "wsgi.py", "{fd}")
        async with site(Path(reachable), command=command, user="nobody") as blog:
            await blog.serve(blog.launch(wsgiapps.COMMAND))
            assert await blog.get("/uid") == str(pwd.getpwnam("nobody").pw_uid)


# --- deaths


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_killed_serves_again_at_once(tmp_path: Path) -> None:
    async with site(tmp_path, workers=2) as blog:
        await blog.serve()
        pid = blog.server.status.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await become(lambda: blog.server.status.pid not in {pid, None})
        assert blog.server.status.state == "serving"
        assert blog.server.status.deaths == 1
        assert await blog.get() == "one"
        await become(lambda: len(blog.processes()) == 3, "the workers of the killed one to end")


@pytest_twisted.ensureDeferred
async def test_a_server_that_dies_after_its_log_was_taken_away_serves_again(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        await blog.serve()
        pid = blog.server.status.pid
        assert pid is not None
        blog.log.unlink()
        os.kill(pid, signal.SIGKILL)
        await become(lambda: blog.server.status.pid not in {pid, None})
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
        await become(lambda: len(blog.processes()) == 2)


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
        await become(lambda: blog.server.status.state == "serving")
        assert await blog.get() == "one"
        assert blog.server.launch is good


# --- stopping


@pytest_twisted.ensureDeferred
async def test_stopping_lets_a_request_finish_and_leaves_nothing(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        launch = await blog.serve()
        slow = deferToThread(ask, blog.address, "/slow")
        await become((launch.tree.path / "slow-begun").exists)
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
        await become(lambda: blog.log.exists() and "waiting for the database" in blog.said())
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
        await become(lambda: "waiting for the database" in blog.said())
        later.cancel()
        with pytest.raises(CancelledError):
            await later
        await become(lambda: len(blog.processes()) == 2, "the candidates to end")
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
        self.judged: Once[str | None] = Once()
        self.pid = 1
        self.orders = orders
        self.release = orders.launch.tree.release
        self.terms: Terms | None = None
        self.drained = False
        self.can_be_written_down = True

    def start(self) -> None:
        """Done."""

    def drain(self) -> None:
        self.drained = True
        if not self.over.happened:
            self.dies()

    def watch(self, terms: Terms) -> None:
        self.terms = terms

    def end_probation(self) -> None:
        self.judged.happen(None)

    def chosen(self) -> None:
        if not self.can_be_written_down:
            raise OSError(28, "No space left on device")

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
        self.given_up: list[str] = []
        self.listener = socket.socket()
        self.addCleanup(self.listener.close)
        self.server = SocketServer(
            cast("Any", self.clock),
            app=AppConfig(name="blog", hook="blog", wsgi="wsgi:application"),
            listener=self.listener,
            records=Path("/nowhere"),
            log=Path("/nowhere"),
            now=self.clock.seconds,
            shown=lambda text: text,
            gave_up=self.given_up.append,
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

    def test_after_days_of_deaths_it_is_still_started_again(self) -> None:
        """1,100 deaths are less than four days; 2 ** 1024 is no float any more."""
        self.serve()
        self.server._deaths = 1100
        self.started[-1].dies()
        self.assertEqual(self.pause(), 300)

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

    def on_probation(self, seconds: float = 5.0) -> Deferred[None]:
        """One serves, and the next is on probation."""
        self.serve()
        self.phases: list[Phase] = []
        swapping = self.do(self.server.swap(self.launch("two"), self.phases.append, probation=seconds))
        self.started[-1].serves()
        return swapping

    def test_a_probation_is_on_the_apps_terms(self) -> None:
        swapping = self.on_probation(7.0)
        self.assertEqual(self.started[1].terms, Terms(7.0, deaths=1, errors=3))
        self.assertEqual(self.phases, [Phase.PROBATION])
        self.assertNoResult(swapping)
        self.started[1].judged.happen(None)
        self.successResultOf(swapping)
        self.assertTrue(self.started[0].drained)
        self.assertFalse(self.started[1].drained)

    def test_a_swap_at_once_has_no_probation(self) -> None:
        self.successResultOf(self.on_probation(0.0))
        self.assertEqual(self.phases, [])
        self.assertIsNone(self.started[1].terms)

    def test_one_that_was_found_wanting_changes_nothing(self) -> None:
        swapping = self.on_probation()
        self.started[1].judged.happen("3 answers of 500")
        failure: Failure = self.failureResultOf(swapping, ProbationFailed)
        self.assertIn("3 answers of 500\nlast words", cast("ProbationFailed", failure.value).reason)
        self.assertFalse(self.started[0].drained)
        self.assertEqual(self.server.status.state, "serving")
        self.assertEqual(self.server.launch, self.launch())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_old_one_that_dies_during_a_probation_is_not_revived(self) -> None:
        swapping = self.on_probation()
        self.started[0].dies()
        self.successResultOf(swapping)
        self.assertEqual(self.server.status.state, "serving")
        self.assertEqual(self.server.launch, self.launch("two"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_death_after_a_failed_probation_is_answered_as_any_other(self) -> None:
        swapping = self.on_probation()
        self.started[1].judged.happen("3 answers of 500")
        self.failureResultOf(swapping, ProbationFailed)
        self.started[0].dies()
        self.assertEqual(self.pause(), 0)

    def test_what_is_told_of_the_probation_may_fail_and_leaves_the_old_one(self) -> None:
        self.serve()

        def entered(phase: Phase) -> None:
            raise LookupError(phase)

        swapping = self.do(self.server.swap(self.launch("two"), entered, probation=5.0))
        self.started[-1].serves()
        self.failureResultOf(swapping, LookupError)
        self.assertTrue(self.started[1].drained)
        self.assertFalse(self.started[0].drained)

    def test_one_that_cannot_be_written_down_does_not_serve(self) -> None:
        """P84."""
        self.serve()
        swapping = self.do(self.server.swap(self.launch("two"), lambda phase: None))
        self.started[1].can_be_written_down = False
        self.started[1].serves()
        self.failureResultOf(swapping, StepFailed)
        self.assertTrue(self.started[1].drained)
        self.assertFalse(self.started[0].drained)

    def test_releases_are_in_use_until_nothing_of_their_servers_is_left(self) -> None:
        self.assertEqual(self.server.in_use, frozenset())
        swapping = self.on_probation()
        self.assertEqual(self.server.in_use, {"one", "two"})
        self.started[0].over.happen("exit 0")
        self.successResultOf(swapping)
        self.assertEqual(self.server.in_use, {"one", "two"}, "a worker of it may be left")
        self.started[0].swept.happen(None)
        self.assertEqual(self.server.in_use, {"two"})

    def test_a_release_that_is_to_serve_again_is_in_use(self) -> None:
        self.serve()
        self.started[-1].dies()
        self.assertEqual(self.server.in_use, {"one"})

    def test_hope_is_given_up_with_each_death_from_the_fifth_on(self) -> None:
        """Whoever is told may have been busy the first time."""
        self.serve()
        for death in range(1, 9):
            self.started[-1].dies()
            self.assertEqual(len(self.given_up), max(0, death - appserver.KEEPS_DYING + 1), death)
            self.clock.advance(self.pause())
            self.started[-1].serves()
        self.assertEqual(self.given_up[0], "the server has died 5 times in a row: exit 1")
        self.serve()
        self.started[-1].dies()
        self.assertEqual(len(self.given_up), 4)

    def test_hope_is_given_up_when_it_cannot_start_so_often(self) -> None:
        self.serve()
        self.started[-1].dies()
        for _ in range(6):
            self.clock.advance(self.pause())
            self.started[-1].dies("no module named wsgi")
        reason = self.given_up[-1]
        self.assertIn("no module named wsgi", reason)
        self.assertEqual(self.server.status.state, "restarting", "it is tried again all the same")

    def test_what_cannot_be_asked_at_the_gate_is_tried_out_first(self) -> None:
        tried: list[Orders] = []
        verdict: Deferred[float] = Deferred()

        async def try_out(orders: Orders) -> float:
            tried.append(orders)
            return await verdict

        self.server._try_out = try_out
        self.serve()
        self.assertEqual(tried, [], "a WSGI app")
        self.server._app = replace(self.server._app, command=("serve", "{fd}"))
        phases: list[Phase] = []
        swapping = self.do(self.server.swap(self.launch("two"), phases.append))
        self.assertEqual([orders.argv for orders in tried], [("serve", "3")])
        self.assertEqual(phases, [Phase.STARTING, Phase.CHECKING])
        self.assertEqual(len(self.started), 1)
        verdict.callback(4.0)
        self.started[1].serves()
        self.successResultOf(swapping)
        self.assertEqual(self.started[1].orders.settle, 8.0)
        self.started[1].dies()
        self.clock.advance(0)
        self.assertEqual(len(tried), 1, "a revival is urgent")
        self.started[2].serves()

    def test_what_runs_under_a_worker_class_of_ones_own_is_tried_out_too(self) -> None:
        """It may speak ASGI: then nobody can ask it at the gate."""
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        configuration = Path(directory.name, "gunicorn.conf.py")
        for text in ('worker_class = "project.workers.Worker"', "worker_class=Worker", "bind = ':80'", ""):
            configuration.write_text(text)
            for words in ((), ("-k", "gthread", "--keep-alive", "5"), ("--worker-class=project.workers.Worker",)):
                own = "Worker" in text or "Worker" in str(words)
                self.assertEqual(appserver._speaks_asgi(words, configuration), own, (text, words))

    def test_what_fails_its_trial_is_never_started(self) -> None:
        async def try_out(orders: Orders) -> float:
            raise StepFailed("/healthz answered 500")

        self.server._try_out = try_out
        self.serve()
        self.server._app = replace(self.server._app, gunicorn=("-k", "uvicorn.workers.UvicornWorker"))
        self.failureResultOf(self.do(self.server.swap(self.launch("two"), lambda phase: None)), StepFailed)
        self.assertEqual(len(self.started), 1)
        self.assertEqual(self.server.launch, self.launch())

    def test_a_trial_that_fails_forgets_no_revival(self) -> None:
        async def try_out(orders: Orders) -> float:
            raise StepFailed("/healthz answered 500")

        self.server._try_out = try_out
        self.serve()
        self.started[-1].dies()
        self.server._app = replace(self.server._app, command=("serve", "{fd}"))
        self.failureResultOf(self.do(self.server.swap(self.launch("two"), lambda phase: None)), StepFailed)
        self.assertEqual(self.pause(), 0, "what has served is to serve again")

    def on_trial(self) -> tuple[Deferred[None], Deferred[None]]:
        """One serves, and the next is on trial; how the swap ends, and the end of the trial."""
        verdict: Deferred[None] = Deferred()
        self.tried: list[Orders] = []

        async def try_out(orders: Orders) -> float:
            self.tried.append(orders)
            await verdict
            return 1.0

        self.server._try_out = try_out
        self.serve()
        self.server._app = replace(self.server._app, command=("serve", "{fd}"))
        return self.do(self.server.swap(self.launch("two"), lambda phase: None)), verdict

    def test_what_dies_during_a_trial_is_revived_at_once(self) -> None:
        """Nothing serves until then, and a trial may take as long as ``health_timeout``."""
        swapping, verdict = self.on_trial()
        self.started[0].dies()
        self.clock.advance(self.pause())
        self.assertEqual(len(self.started), 2)
        self.started[1].serves()
        self.assertEqual(self.server.status.state, "serving")
        verdict.callback(None)
        self.started[2].serves()
        self.successResultOf(swapping)
        self.assertTrue(self.started[1].drained)
        self.assertFalse(self.started[2].drained)

    def test_what_a_reload_brings_during_a_trial_is_tried_too(self) -> None:
        swapping, verdict = self.on_trial()
        self.server.configure(replace(self.server._app, command=("another", "{fd}")), socket.socket())
        verdict.callback(None)
        self.started[1].serves()
        self.successResultOf(swapping)
        self.assertEqual([orders.argv for orders in self.tried], [("serve", "3"), ("another", "3")])
        self.assertEqual(self.started[1].orders.argv, ("another", "3"))
        self.successResultOf(self.do(self.server.stop()))

    def test_the_address_of_what_has_just_begun_to_serve_is_still_held(self) -> None:
        """A reload has come while it started."""
        swapping = self.do(self.server.swap(self.launch(), lambda phase: None))
        old = self.server._app.bind
        self.server.configure(replace(self.server._app, bind="127.0.0.1:1"), socket.socket())
        self.started[0].serves()
        self.successResultOf(swapping)
        held = self.server.still_held(old)
        assert held is not None
        held.close()
        self.serve()
        self.assertIsNone(self.server.still_held(old))
        self.successResultOf(self.do(self.server.stop()))

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

    def test_stopping_ends_what_is_known_though_what_was_left_cannot_be_looked_for(self) -> None:
        def no_descriptor_is_left(directory: Path) -> Sequence[Record]:
            raise OSError(24, "Too many open files")

        self.serve()
        self.patch(serverrecords, "alive", no_descriptor_is_left)
        self.successResultOf(self.do(self.server.stop()))
        self.assertTrue(self.started[-1].drained)
        self.assertEqual(self.server.status.state, "stopped")

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
