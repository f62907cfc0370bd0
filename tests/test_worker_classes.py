"""Every worker class and every kind of address: swaps under load lose no request, and no socket's path is lost."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.waiting import become
from tests.wsgiapps import GOOD, Load, Site, ask, connection, site

ASYNCHRONOUS = """
import asyncio, os, time

async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/slow":
        open("slow-begun", "w").close()
        until = time.monotonic() + 60
        while not os.path.exists("slow-may-end") and time.monotonic() < until:
            await asyncio.sleep(0.01)
    length = [(b"content-length", str(len(TEXT)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": TEXT})
"""


@dataclass(frozen=True)
class Workers:
    """gunicorn's arguments, and an app that such workers can serve."""

    arguments: tuple[str, ...]
    source: str = GOOD


SYNC = Workers(("--worker-class", "sync"))
SYNC_WITH_THREADS = Workers(("--worker-class", "sync", "--threads", "4"))  # of which gunicorn makes gthread
GTHREAD = Workers(("--worker-class", "gthread", "--threads", "4"))
GEVENT = Workers(("--worker-class", "gevent"))
ASGI = Workers(("--worker-class", "asgi"), ASYNCHRONOUS)


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


with_ipv6 = pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")

CASES = [
    pytest.param(SYNC, "127.0.0.1:0", id="sync-tcp"),
    pytest.param(SYNC, "unix", id="sync-unix"),
    pytest.param(SYNC_WITH_THREADS, "127.0.0.1:0", id="sync-threads-tcp"),
    pytest.param(GTHREAD, "127.0.0.1:0", id="gthread-tcp"),
    pytest.param(GTHREAD, "[::1]:0", id="gthread-ipv6", marks=with_ipv6),
    pytest.param(GTHREAD, "unix", id="gthread-unix"),
    pytest.param(GEVENT, "127.0.0.1:0", id="gevent-tcp", marks=needs("gevent")),
    pytest.param(GEVENT, "unix", id="gevent-unix", marks=needs("gevent")),
    pytest.param(ASGI, "127.0.0.1:0", id="asgi-tcp"),
    pytest.param(ASGI, "[::1]:0", id="asgi-ipv6", marks=with_ipv6),
    pytest.param(ASGI, "unix", id="asgi-unix"),
]


async def swap_under_load(blog: Site, workers: Workers) -> None:
    """Swap with clients about, and with one slow request in flight from the start to the end."""
    first = await blog.serve(blog.launch(workers.source))
    slow = deferToThread(ask, blog.address, "/slow")
    await become((first.tree.path / "slow-begun").exists)
    async with Load(blog.address) as load:
        await blog.serve(blog.launch(workers.source, text="two"))
        await load.sees("two")
        (first.tree.path / "slow-may-end").touch()
        assert await slow == "one"
        await become(lambda: len(blog.processes()) == 3, "the old generation to end")
    assert load.failures == []
    assert await blog.get() == "two"


@pytest.mark.parametrize(("workers", "bind"), CASES)
@pytest_twisted.ensureDeferred
async def test_swaps_under_load_lose_no_request(tmp_path: Path, workers: Workers, bind: str) -> None:
    """P82."""
    path = tmp_path / "blog.sock"
    bind = f"unix:{path}" if bind == "unix" else bind
    async with site(tmp_path, bind, workers=2, gunicorn=workers.arguments) as blog:
        inode = path.stat().st_ino if bind.startswith("unix:") else None
        await swap_under_load(blog, workers)
        assert inode is None or path.stat().st_ino == inode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL])
@pytest_twisted.ensureDeferred
async def test_the_path_of_a_unix_socket_survives_its_server(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "blog.sock"
    async with site(tmp_path, f"unix:{path}") as blog:
        await blog.serve()
        inode, master = path.stat().st_ino, blog.server.status.pid
        assert master is not None
        os.kill(master, number)
        await become(lambda: blog.server.status.pid not in {master, None})
        assert await blog.get() == "one"
        await become(lambda: len(blog.processes()) == 2, "the workers of the old one to end")
        assert path.stat().st_ino == inode


@pytest_twisted.ensureDeferred
async def test_an_asynchronous_server_with_an_idle_connection_is_drained_in_time(tmp_path: Path) -> None:
    """It would keep an idle one until ``keepalive``, and it is told to give up after ``drain``."""
    arguments = (*ASGI.arguments, "--keep-alive", "600")
    async with site(tmp_path, drain=1.0, gunicorn=arguments) as blog:
        await blog.serve(blog.launch(ASYNCHRONOUS))
        with contextlib.closing(connection(blog.address)) as idle:
            assert await deferToThread(ask, blog.address, "/", idle) == "one"
            await blog.serve(blog.launch(ASYNCHRONOUS, text="two"))
            await become(lambda: len(blog.processes()) == 2, "the old generation to end")
        assert await blog.get() == "two"


@needs("uvicorn")
@pytest_twisted.ensureDeferred
async def test_uvicorns_own_worker_finishes_what_it_has_begun(tmp_path: Path) -> None:
    """More is not promised: it closes idle and new connections in the moment in which it is asked to end (0.54)."""
    path = tmp_path / "blog.sock"
    arguments = ("--worker-class", "uvicorn.workers.UvicornWorker")
    async with site(tmp_path, f"unix:{path}", gunicorn=arguments) as blog:
        first = await blog.serve(blog.launch(ASYNCHRONOUS))
        inode = path.stat().st_ino
        slow = deferToThread(ask, blog.address, "/slow")
        await become((first.tree.path / "slow-begun").exists)
        await blog.serve(blog.launch(ASYNCHRONOUS, text="two"))
        (first.tree.path / "slow-may-end").touch()
        assert await slow == "one"
        await become(lambda: len(blog.processes()) == 2, "the old generation to end")
        assert await blog.get() == "two"
        assert path.stat().st_ino == inode
