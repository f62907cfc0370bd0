"""Small WSGI apps to serve, a server to serve them with, and clients that count what they are denied."""

from __future__ import annotations

import http.client
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from tests.patient import up_when
from tests.proctable import within
from tests.waiting import PATIENCE, become
from twisted_hook import sockets
from twisted_hook.appserver import SocketServer
from twisted_hook.config import AppConfig
from twisted_hook.model import Commit, Environment, Launch, Phase, Tree
from twisted_hook.process import Reactor

T = TypeVar("T")
REACTOR = cast("Reactor", global_reactor)
PLAIN_ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": "/", "LANG": "C.UTF-8"}

GOOD = """
import os, time

def application(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        open("slow-begun", "w").close()
        until = time.monotonic() + 60
        while not os.path.exists("slow-may-end") and time.monotonic() < until:
            time.sleep(0.01)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [TEXT]
"""
ASYNCHRONOUS = """
async def application(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": TEXT})
"""
LIES_ASYNCHRONOUSLY = """
async def application(scope, receive, send):
    if scope["type"] == "http":
        await (fine if scope["path"] == "/healthz" else fail)(send)

async def fine(send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"fine"})
"""
"""As LIES: ``fail`` is to be defined in front of it."""
IMPORT_ERROR = 'raise RuntimeError("no settings found")\n'
NO_ATTRIBUTE = "app = None\n"
SYNTAX_ERROR = "def application(:\n"
COMMAND = """
import asyncio, os, signal, socket, sys

busy = 0

async def answer(reader, writer):
    global busy
    busy += 1
    path = (await reader.readuntil(b"\\r\\n\\r\\n")).split()[1]
    if path == b"/slow":
        open("slow-begun", "w").close()
        while not os.path.exists("slow-may-end"):
            await asyncio.sleep(0.01)
    if path == b"/uid":
        writer.write(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\n%d" % os.getuid())
    else:
        writer.write(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\n" + TEXT)
    await writer.drain()
    writer.close()
    busy -= 1

async def main():
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    server = await asyncio.start_server(answer, sock=socket.socket(fileno=int(sys.argv[1])))
    await ended.wait()
    loop.remove_reader(server.sockets[0].fileno())  # server.close() would reset what is accepted and not begun yet
    for _ in range(20):
        await asyncio.sleep(0)  # until that has begun
    while busy:
        await asyncio.sleep(0.01)

asyncio.run(main())
"""
"""A server of its own, which waits by epoll and finishes what it has begun; for ``python wsgi.py {fd}``."""
POLLS = """
import select, socket, sys

listener = socket.socket(fileno=int(sys.argv[1]))
while True:
    select.select([listener], [], [])
    try:
        client, _ = listener.accept()
    except BlockingIOError:
        continue
    client.setblocking(True)
    client.recv(65536)
    client.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\n" + TEXT)
    client.close()
"""
"""As COMMAND, but what it waits for cannot be seen from outside."""
HANGS = 'import time\nprint("waiting for the database", flush=True)\ntime.sleep(1000)\n'
EXITS_AT_IMPORT = 'import os\nprint("giving up", flush=True)\nos._exit(7)\n'
EXITS_WHEN_ASKED = """
import os

def application(environ, start_response):
    print("giving up", flush=True)
    os._exit(7)
"""
SICK = """
def application(environ, start_response):
    start_response("500 Internal Server Error", [])
    print("no database", file=environ["wsgi.errors"], flush=True)
    return [b""]
"""
RAISES = """
def application(environ, start_response):
    raise LookupError("no database")
"""
LIES = """
def application(environ, start_response):
    if environ["PATH_INFO"] == "/healthz":
        start_response("200 OK", [])
        return [b"fine"]
    return fail(environ, start_response)
"""
"""Healthy, but for the requests that matter: what it does then, ``fail``, is to be defined in front of it."""
ANSWERS_503 = """
def fail(environ, start_response):
    start_response("503 Service Unavailable", [])
    return [b"no database"]
"""
RAISES_LATE = """
def fail(environ, start_response):
    start_response("200 OK", [])
    raise LookupError("no database")
"""
BREAKS_OFF = """
def fail(environ, start_response):
    start_response("200 OK", [("Content-Length", "100")])
    yield b"The database"
    raise LookupError("no database")
"""
DIES = """
import os

def fail(environ, start_response):
    os._exit(7)
"""
TURNS_SICK = """
import os

def application(environ, start_response):
    sick = environ["PATH_INFO"] == "/healthz" and os.path.exists("sick")
    start_response("404 Not Found" if sick else "200 OK", [])
    return [TEXT]
"""


def tree(directory: Path, source: str = GOOD, *, text: str = "one", files: Mapping[str, str] | None = None) -> Tree:
    """A checkout with ``source`` as its ``wsgi.py``, in which ``TEXT`` is the text, and with further files."""
    directory.mkdir(parents=True)
    for name, content in {"wsgi.py": f"TEXT = {text.encode()!r}\n{source}", **(files or {})}.items():
        (directory / name).write_text(content)
    return Tree(directory, Commit(f"{text.encode().hex():0<40}"[:40], text, "Ada"), directory.name)


class Site:
    """A real server in a directory of its own, and its address."""

    def __init__(self, directory: Path, bind: str, **configured: Any) -> None:
        self.directory = directory
        self.log = directory / "server.log"
        self.records = directory / "servers"
        self.records.mkdir()
        self.listener = sockets.listen(bind)
        self.app = AppConfig(
            name="blog",
            hook="blog",
            wsgi="wsgi:application",
            bind=bind,
            **{"workers": 1, "health_timeout": 600.0, "drain": 600.0, **configured},
        )
        self.phases: list[Phase] = []
        self.server = self.new_server()
        self.releases = 0

    def new_server(self) -> SocketServer:
        """A server that knows of nothing but what is on disk, as after a start of hookdeploy."""
        return SocketServer(
            REACTOR,
            app=self.app,
            listener=self.listener,
            records=self.records,
            log=self.log,
            now=time.time,
            shown=lambda text: text,
        )

    @property
    def address(self) -> int | str:
        """The port, ``[::1]:port``, or the path of a unix socket."""
        match self.listener.getsockname():
            case str(path):
                return path
            case (_, int(port)):
                return port
            case (host, port, *_):
                return f"[{host}]:{port}"
            case other:
                raise AssertionError(other)

    def launch(
        self,
        source: str = GOOD,
        *,
        text: str = "one",
        files: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        environment: Environment | None = None,
    ) -> Launch:
        """A new release, ready to be launched."""
        self.releases += 1
        at = tree(self.directory / f"release-{self.releases}", source, text=text, files=files)
        environment = environment or Environment(Path(sys.executable))
        return Launch(at, environment, {**PLAIN_ENVIRONMENT, **(env or {})})

    async def serve(self, launch: Launch | None = None, *, probation: float = 0.0) -> Launch:
        """Swap to this, or to a good app."""
        launch = launch or self.launch()
        await self.server.swap(launch, self.phases.append, probation=probation)
        return launch

    def hurry(self, seconds: float, happened: Callable[[], object]) -> None:
        """Have the next one be too slow (``health_timeout``), after so many seconds by its name, when this happened."""
        self.server.configure(replace(self.app, health_timeout=seconds), self.listener)
        self.server._reactor = up_when(happened, seconds)

    async def get(self, path: str = "/") -> str:
        """What the site answers on a connection of its own."""
        return await deferToThread(ask, self.address, path)

    def processes(self) -> list[int]:
        """Every process that was started for this site and still runs."""
        return processes_in(self.directory)

    def said(self) -> str:
        """All that its servers have logged."""
        return self.log.read_text()


@asynccontextmanager
async def site(directory: Path, bind: str = "127.0.0.1:0", **configured: Any) -> AsyncIterator[Site]:
    """A site that is stopped in the end; nothing of it may be left."""
    made = Site(directory, bind, **configured)
    try:
        yield made
    finally:
        try:
            await soon(Deferred.fromCoroutine(made.server.stop()))
        finally:
            left = made.processes()
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
        assert not left, "processes are left"
        assert not list(made.records.iterdir()), "records are left"


def processes_in(directory: Path) -> list[int]:
    """The servers, masters and workers, that were started for a release in this directory."""
    return sorted(within(directory))


async def soon(waiting: Deferred[T]) -> T:
    """What comes of it, within a limit."""
    return await waiting.addTimeout(PATIENCE, REACTOR)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)


def connection(address: int | str) -> http.client.HTTPConnection:
    """A client's connection to a port, to ``[::1]:port`` or to the path of a unix socket."""
    match address:
        case int(port):
            return http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        case str(pair) if pair.startswith("["):
            return http.client.HTTPConnection(pair, timeout=PATIENCE)
        case path:
            return _UnixConnection(path)


def ask(address: int | str, path: str = "/", over: http.client.HTTPConnection | None = None) -> str:
    """One request; its body. Raises unless it is answered 200. Blocks."""
    client = over or connection(address)
    try:
        client.request("GET", path, headers={} if over else {"Connection": "close"})
        answer = client.getresponse()
        body = answer.read().decode()
        assert answer.status == 200, f"{answer.status} {body}"
        return body
    finally:
        if over is None:
            client.close()


class Load:
    """Closed-loop clients: half of them keep their connection, half open one for each request. Nothing is retried.

    Who has had no time for its connection takes a new one, before the server may close it (gunicorn's ``keepalive``).
    """

    def __init__(self, address: int | str, clients: int = 4) -> None:
        self._address = address
        self._ended = threading.Event()
        self.answers: list[str] = []
        self.failures: list[str] = []
        self._threads = [
            threading.Thread(target=self._work, args=(number % 2 == 0,), daemon=True) for number in range(clients)
        ]

    def _work(self, keep: bool) -> None:
        kept = connection(self._address) if keep else None
        answered = time.monotonic()
        while not self._ended.is_set():
            if kept and time.monotonic() - answered > 1.0:
                kept.close()
            try:
                self.answers.append(ask(self._address, over=kept))
                answered = time.monotonic()
            except Exception as error:  # noqa: BLE001 - whatever it is, a client has met it
                self.failures.append(repr(error))
                if kept:
                    kept.close()
            self._ended.wait(0.005)
        if kept:
            kept.close()

    def _end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    async def sees(self, text: str) -> None:
        """Wait until a client is answered with this."""
        before = len(self.answers)
        await become(lambda: text in self.answers[before:], f"the answer {text!r}")

    async def __aenter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await deferToThread(self._end)
