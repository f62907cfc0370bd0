"""A disk that fails at any moment of a deployment: the site stays up, and the next deployment succeeds.

The faults are raised by the calls that hookdeploy itself makes below its state directory. What its children write is
not touched, nor is the journal, which has its own tests.
"""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import errno
import io
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Container, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Self

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from tests.fakes import MemoryJournal
from tests.gitorigin import Origin, ambient
from tests.waiting import become
from tests.wsgiapps import GOOD, REACTOR, ask, processes_in, soon
from twisted_hook import sockets
from twisted_hook.apps import App, Tools
from twisted_hook.boundaries import Checkout
from twisted_hook.config import AppConfig
from twisted_hook.environments import COMPLETE
from twisted_hook.model import Deployment, Outcome, Trigger
from twisted_hook.process import SpawningRunner
from twisted_hook.redaction import Redactor
from twisted_hook.releases import Releases

FULL = os.strerror(errno.ENOSPC)
DESCRIPTORS = Path("/proc/self/fd")
MAKING = frozenset({"open", "write", "mkdir", "symlink"})
"""What a full disk refuses; a broken one refuses the others too."""
CALLS = MAKING | {"rename", "replace", "unlink", "rmdir"}


class Disk:
    """Counts the calls that change something below a directory but for its logs, and lets some of them fail."""

    def __init__(self, directory: Path, failing: Container[int] = (), *, only: Container[str] = CALLS) -> None:
        """``failing`` are the numbers of the calls that fail, ``only`` the names of those that are counted."""
        self._directory, self._logs = f"{directory}/", f"{directory}/logs/"
        self._failing = failing
        self._only = only
        self._thread = threading.current_thread()
        self.calls: list[str] = []
        self.failed: list[str] = []

    def check(self, name: str, *places: object) -> None:
        """Count the call, and fail if it is its turn."""
        if name not in self._only or threading.current_thread() is not self._thread:
            return
        if not any(map(self._is_below, places)):
            return
        self.calls.append(f"{name} {places[0]}")
        if len(self.calls) - 1 in self._failing:
            self.failed.append(self.calls[-1])
            raise OSError(errno.ENOSPC, FULL, str(places[0]))

    def _is_below(self, place: object) -> bool:
        if isinstance(place, int):
            place = (DESCRIPTORS / str(place)).readlink()
        path = os.fspath(place) if isinstance(place, str | os.PathLike) else ""
        return path.startswith(self._directory) and not path.startswith(self._logs)


class FailingFile:
    """A file that is open for writing."""

    def __init__(self, disk: Disk, file: Any, name: object) -> None:
        self._disk, self._file, self._name = disk, file, name

    def write(self, data: Any) -> int:
        self._disk.check("write", self._name)
        return int(self._file.write(data))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def watched(disk: Disk) -> Iterator[None]:
    """Put the disk between hookdeploy and what it calls."""
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS - {"open"}:
            patch.setattr(os, name, _checked(disk, name, getattr(os, name)))
        open_descriptor, open_file = os.open, io.open

        def checked_open(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                disk.check("open", path)
            return open_descriptor(path, flags, *rest, **named)

        def checked_file(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            if not set(mode) & set("wax+"):
                return open_file(file, mode, *rest, **named)
            if not isinstance(file, int):
                disk.check("open", file)
            return FailingFile(disk, open_file(file, mode, *rest, **named), file)

        patch.setattr(os, "open", checked_open)
        patch.setattr(io, "open", checked_file)
        yield


def _checked(disk: Disk, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def checked(first: Any, *rest: Any, **named: Any) -> Any:
        disk.check(name, first, *(place for place in rest if not isinstance(place, int)))
        return call(first, *rest, **named)

    return checked


class AppWithSpare(App):
    """An app whose tree is worth a spare, however small it is."""

    def _checkout(self) -> Checkout:
        checkout = super()._checkout()
        assert isinstance(checkout, Releases)
        return replace(checkout, least_index=0)


class Deployments:
    """An app with everything real but its journal."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        (self.state / "logs").mkdir(parents=True)
        (self.state / "apps/web/servers").mkdir(parents=True)
        self.origin = Origin.create(directory / "origin", {"requirements.txt": "# nothing\n"})
        self.journal = MemoryJournal()
        self.listener = sockets.listen("127.0.0.1:0")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where uv is, if it is installed
        tools = Tools(
            reactor=REACTOR,
            journal=self.journal,
            runner=SpawningRunner(REACTOR),
            state=self.state,
            ambient=replace(ambient(directory), path=path),
            now=time.time,
            redactor=Redactor(()),
            min_free=0,
        )
        config = AppConfig(
            name="web",
            hook="web",
            repository=self.origin.url,
            branch="main",
            wsgi="wsgi:application",
            workers=1,
            health="/",
            health_timeout=120.0,
            probation=0.0,
            drain=5.0,
            keep=1,
        )
        self.app = AppWithSpare(tools, config, self.listener)
        self.pushes = 0
        self.served = "nothing"
        """The text of the newest deployment that succeeded."""

    @property
    def directory(self) -> Path:
        return self.state / "apps/web"

    async def deploy(self, disk: Disk | None = None) -> Deployment:
        """Push a page with a text of its own, and deploy it on this disk, to whatever end."""
        self.pushes += 1
        text = f"page {self.pushes}"
        files = {"wsgi.py": f"TEXT = {text.encode()!r}\n{GOOD}"}
        if disk is not None:  # it wants an environment of its own too
            files["requirements.txt"] = f"# {text}\n"
        self.origin.push(files)
        with watched(disk) if disk else nullcontext():
            queued = await self.journal.enqueue("web", Trigger.PUSH)
            self.app.lane.submit(queued)
            await become(lambda: self.app.lane.running is None and self.app.lane.waiting is None, "its end")
        done = await self.journal.deployment(queued.id)
        assert done is not None
        if done.outcome is Outcome.DEPLOYED:
            self.served = text
        return done

    async def deploy_well(self) -> None:
        done = await self.deploy()
        assert done.outcome is Outcome.DEPLOYED, done.reason

    async def check(self) -> None:
        """The page is that of the newest good deployment, and on disk is nothing that could not be it."""
        # One that is being drained, because it could not be kept, may answer until it has gone.
        await become(lambda: len(processes_in(self.state)) == 2, "all but the serving server to end")
        port = int(self.listener.getsockname()[1])
        page = await deferToThread(ask, port)
        assert page == self.served
        assert self.app.server is not None
        launch = self.app.server.launch
        assert launch is not None
        assert (self.directory / "current").is_symlink()
        current = (self.directory / "current").resolve(strict=True)
        assert f"TEXT = {self.served.encode()!r}" in (current / "wsgi.py").read_text()
        assert f"TEXT = {page.encode()!r}" in (launch.tree.path / "wsgi.py").read_text()
        assert launch.environment.directory is not None
        assert (launch.environment.directory / COMPLETE).exists()
        assert not (self.directory / "preparing").exists()


@asynccontextmanager
async def deployments(directory: Path) -> AsyncIterator[Deployments]:
    made = Deployments(directory)
    try:
        yield made
    finally:
        await soon(Deferred.fromCoroutine(made.app.stop()))
        assert processes_in(made.state) == []


@pytest.mark.timeout(600)  # some forty deployments
@pytest.mark.parametrize("first", [0, 1])
@pytest_twisted.ensureDeferred
async def test_whichever_call_fails_the_site_stays_up_and_the_next_deployment_succeeds(
    tmp_path: Path, first: int
) -> None:
    """P84. Where one succeeds in spite of its fault, the next is that with the next fault."""
    async with deployments(tmp_path) as web:
        for _ in range(3):  # from then on each deployment retires a release, and brings a spare forward
            await web.deploy_well()
        for number in count(first, step=2):
            disk = Disk(web.state, (number,))
            done = await web.deploy(disk)
            await web.check()
            if not disk.failed:
                break
            if done.outcome is not Outcome.DEPLOYED:
                assert (done.outcome, FULL in done.reason) == (Outcome.FAILED, True), (done, disk.failed)
                await web.deploy_well()
                await web.check()
        assert done.outcome is Outcome.DEPLOYED, done.reason
        assert number > 30, disk.calls


@pytest.mark.timeout(600)  # some twenty deployments
@pytest_twisted.ensureDeferred
async def test_whenever_the_disk_is_full_the_site_stays_up_and_the_next_deployment_succeeds(tmp_path: Path) -> None:
    """P84. Full until somebody makes room."""
    async with deployments(tmp_path) as web:
        for _ in range(3):
            await web.deploy_well()
        for number in count(step=4):
            disk = Disk(web.state, range(number, sys.maxsize), only=MAKING)
            await web.deploy(disk)
            await web.check()
            if not disk.failed:
                break
            await web.deploy_well()
            await web.check()
