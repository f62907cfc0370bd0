"""Origins that refuse, over the transports that people use: what is said of them, and that nobody is asked."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from tests.gitorigin import Origin, ambient
from tests.patient import is_called, up_when
from twisted_hook.model import StepFailed
from twisted_hook.process import SpawningRunner
from twisted_hook.releases import Releases


class Answering(Resource):
    """Answers every request with one status, and asks for a password where that is its meaning."""

    isLeaf = True  # noqa: N815 - Twisted's name

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status

    def render(self, request: Request) -> bytes:
        request.setResponseCode(self.status)
        request.setHeader(b"WWW-Authenticate", b'Basic realm="git"')
        return b"no"


def releases(directory: Path, url: str, *, timeout: float = 60.0) -> Releases:
    return Releases(
        app="blog",
        url=url,
        branch="main",
        directory=directory / "apps" / "blog",
        mirror=directory / "mirrors" / "blog.git",
        keep_newest=5,
        ambient=ambient(directory),
        now=lambda: 1_790_000_000.0,
        timeout=timeout,
    )


@asynccontextmanager
async def origin_answering(status: int) -> AsyncIterator[str]:
    """The URL of a repository on a web server that answers like this."""
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Site(Answering(status)))
    try:
        yield f"http://127.0.0.1:{port.getHost().port}/acme/blog.git"
    finally:
        await maybeDeferred(port.stopListening)


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "authentication"), (403, "authentication"), (404, "there is no such repository")],
)
@pytest_twisted.ensureDeferred
async def test_what_a_web_server_refuses_is_said_in_words_and_nobody_is_asked(
    tmp_path: Path, status: int, words: str
) -> None:
    """P63: no prompt, and no wait for one."""
    async with origin_answering(status) as url:
        with pytest.raises(StepFailed) as failed:
            await releases(tmp_path, url).fetch(SpawningRunner(reactor))
    assert failed.value.summary.startswith("branch main could not be fetched: ")
    assert words in failed.value.summary


@pytest_twisted.ensureDeferred
async def test_an_origin_that_says_nothing_is_given_up_at_the_limit_and_the_next_deployment_works(
    tmp_path: Path,
) -> None:
    """P64."""
    origin = Origin.create(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        waiting = releases(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}/blog.git", timeout=0.5)
        with pytest.raises(StepFailed) as failed:
            await waiting.fetch(SpawningRunner(up_when(lambda: is_called(silent), 0.5)))
        asked, _ = silent.accept()
        with asked:
            asked.settimeout(60)
            while asked.recv(65536):  # to the end, which comes when nobody is left who holds the other side
                pass
    assert failed.value.summary == "branch main could not be fetched: timeout after 0.5 s"
    tip = await releases(tmp_path, origin.url).fetch(SpawningRunner(reactor))
    assert tip.revision == origin.git("rev-parse", "HEAD").strip()


@contextmanager
def origin_that_is_cut_off(origin: Origin, after: int) -> Iterator[str]:
    """The URL of a daemon that dies when it has said so many bytes, each time that it is asked."""
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=_cut_off_each, args=(listener, origin, after))
    thread.start()
    try:
        yield f"git://127.0.0.1:{listener.getsockname()[1]}{origin.bare}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def _cut_off_each(listener: socket.socket, origin: Origin, after: int) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        words = ["git", "daemon", "--inetd", "--export-all", str(origin.bare)]
        with (
            connection,
            subprocess.Popen(words, stdin=connection.fileno(), stdout=subprocess.PIPE, env=origin.environment) as git,
        ):
            assert git.stdout is not None
            left = after
            while left and (data := os.read(git.stdout.fileno(), left)):
                connection.sendall(data)
                left -= len(data)
            connection.shutdown(socket.SHUT_RDWR)
            git.kill()


@pytest_twisted.ensureDeferred
async def test_a_pack_that_is_cut_off_changes_nothing_and_the_next_try_works(tmp_path: Path) -> None:
    """P73."""
    origin, run = Origin.create(tmp_path), SpawningRunner(reactor)
    good = releases(tmp_path, origin.url)
    first = await good.fetch(run)
    (good.mirror / "still the same").touch()
    revision = origin.push({f"noise/{number}": os.urandom(10_000).hex() for number in range(30)})
    with origin_that_is_cut_off(origin, 150_000) as url:
        for _ in range(3):
            with pytest.raises(StepFailed, match="branch main could not be fetched"):
                await releases(tmp_path, url).fetch(run)
            ref = origin.git("rev-parse", "refs/hookdeploy/blog", at=good.mirror)
            left = {path for path in good.mirror.rglob("*") if path.name.startswith(("tmp_", ".tmp-"))}
            assert (ref, left) == (first.revision, set())
    assert (await good.fetch(run)).revision == revision
    assert (good.mirror / "still the same").exists()
