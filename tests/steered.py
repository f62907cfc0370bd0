"""The API on a real socket, over apps in memory that take wishes as real ones do and deploy when they are told to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import UNIXServerEndpoint

from tests.fakes import MemoryJournal
from tests.waiting import become
from twisted_hook.api import LIMITS, Api, App
from twisted_hook.boundaries import AppServer, Journal
from twisted_hook.changes import Changes
from twisted_hook.hooks import Hook, Secret, Subscription
from twisted_hook.intake import Intake
from twisted_hook.model import (
    Commit,
    Deployment,
    Message,
    NewDelivery,
    Outcome,
    Phase,
    Push,
    Refused,
    Steering,
    StepFailed,
    Tree,
    Trigger,
)
from twisted_hook.site import GuardedSite
from twisted_hook.streams import Readers

OLD = Commit("9f8e7d6" + "0" * 33, "Say nothing", "Somebody")


@dataclass
class Lane:
    """What is in a lane."""

    running: Deployment | None = None
    waiting: Deployment | None = None


class SteeredApp:
    """An app without a server. Its wishes reach the journal and its lane; what is deployed is what a test says."""

    server: AppServer | None = None
    bind: str | None = None
    branch: str | None = "main"
    tag: str | None = None
    repository: str | None = "https://forge.example/acme/web.git"
    poll: float = 300.0
    fails: StepFailed | None = None
    """What asking for its kept releases raises."""

    def __init__(self, journal: Journal, name: str = "web", kept: Sequence[str] = ("r1",)) -> None:
        self.name = name
        self.lane = Lane()
        self._journal = journal
        self._kept = kept

    async def steering(self) -> Steering:
        return await self._journal.steering(self.name)

    async def kept(self) -> Sequence[Tree]:
        if self.fails is not None:
            raise self.fails
        return [Tree(Path("releases") / release, OLD, release) for release in self._kept]

    async def deploy(self, revision: str | None) -> Deployment:
        return await self._enqueue(Trigger.MANUAL, revision)

    async def roll_back(self, release: str | None) -> Deployment:
        if release is None and not self._kept:
            raise Refused(409, f"{self.name} has no release to go back to")
        if release is not None and release not in self._kept:
            raise Refused(404, f"{self.name} keeps no release {release}")
        return await self._enqueue(Trigger.ROLLBACK, release)

    async def pin(self) -> None:
        await self._steer(pinned=True)

    async def unpin(self) -> None:
        await self._steer(pinned=False)

    async def pause(self) -> None:
        await self._steer(paused=True)

    async def resume(self) -> None:
        await self._steer(paused=False)

    async def cancel(self, deployment: str) -> bool:
        if self.lane.running is None or self.lane.running.id != deployment:
            return False
        self.lane.running = None
        await self._journal.finish(deployment, Outcome.CANCELLED, 9.0, reason="cancelled by a person")
        return True

    # --- what a test says

    async def enter(self, phase: Phase, at: float) -> None:
        """What runs goes on to this phase."""
        assert self.lane.running is not None
        await self._journal.advance(self.lane.running.id, phase, at)

    async def end(self, outcome: Outcome, reason: str = "", *, commit: Commit | None = None) -> None:
        """What runs has come to this."""
        assert self.lane.running is not None
        running, self.lane.running = self.lane.running, None
        if commit is not None:
            release = f"release-{commit.revision[:7]}"
            await self._journal.describe(running.id, commit=commit, previous=None, release=release)
        await self._journal.finish(running.id, outcome, 3.0, reason=reason)

    def submit(self, deployment: Deployment) -> None:
        """What a replay has made runs at once."""
        self.lane.running = deployment

    async def _enqueue(self, trigger: Trigger, wanted: str | None) -> Deployment:
        before, self.lane.running = self.lane.running, await self._journal.enqueue(self.name, trigger, wanted)
        if before is not None:
            by = self.lane.running.id
            await self._journal.supersede({before.id: by}, 2.0)
        return self.lane.running

    async def _steer(self, **changed: bool) -> None:
        await self._journal.steer(self.name, replace(await self.steering(), **changed))


_: type[App] = SteeredApp


class SlowJournal(MemoryJournal):
    """Writes a deployment when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Deferred[None] = Deferred()
        self.commit: Deferred[None] = Deferred()

    async def enqueue(
        self, app: str, trigger: Trigger, wanted: str | None = None, *, delivery: str | None = None, reason: str = ""
    ) -> Deployment:
        self.asked.callback(None)
        await self.commit
        return await super().enqueue(app, trigger, wanted, delivery=delivery, reason=reason)


HOOK = "github"
"""By which pushes to the main branch of ``acme/<app>`` come, for each app."""


def site_of(
    journal: MemoryJournal, apps: Sequence[SteeredApp], state: Path, secrets: Sequence[Secret] = (Secret(b"x"),)
) -> GuardedSite:
    """The API of these apps, as the server serves it on the unix socket."""
    api = api_of(journal, apps, state, secrets)
    return GuardedSite(api.app.resource(), screen=Api.screen, reactor=reactor, limits=LIMITS)


def api_of(
    journal: Journal,
    apps: Sequence[SteeredApp],
    state: Path,
    secrets: Sequence[Secret] = (Secret(b"x"),),
    *,
    changes: Changes | None = None,
    readers: Readers | None = None,
) -> Api:
    """The API of these apps."""
    subscriptions = [Subscription(app.name, (f"acme/{app.name}", "acme/all"), "refs/heads/main") for app in apps]
    hook = Hook(name=HOOK, path="/x", forge="github", secrets=tuple(secrets), subscriptions=tuple(subscriptions))
    hooks = [hook]
    by_name = {app.name: app for app in apps}
    intake = Intake(journal, lambda made: by_name[made.app].submit(made), hooks, lambda: 0.0)
    return Api(
        journal,
        lambda: apps,
        state / "logs",
        replay=intake.replay,
        hooks=lambda: hooks,
        changes=changes or Changes("1"),
        readers=readers or Readers(reactor),
    )


@asynccontextmanager
async def serving(site: GuardedSite, state: Path) -> AsyncIterator[None]:
    """Serve it on the unix socket in a state directory."""
    port = await UNIXServerEndpoint(reactor, str(state / "api.sock"), mode=0o600).listen(site)
    try:
        yield
    finally:
        await maybeDeferred(port.stopListening)
        await become(lambda: _empty(site))


async def deliver(
    journal: MemoryJournal, guid: str, *pushes: tuple[str, str, str | None], hook: str = HOOK, apps: Sequence[str] = ()
) -> str:
    """Write down a delivery of these pushes — repository, ref, commit — that was for these apps; gives its id."""
    message = Message(guid, "push", tuple(Push(*each) for each in pushes), "" if pushes else "a ping")
    new = NewDelivery(hook, message, f"digest of {guid}", 1.0, tuple(apps), message.reason)
    return (await journal.accept(new)).delivery


def _empty(site: GuardedSite) -> bool:
    """Whether nobody is connected any more; who has nothing to ask just now is sent away, as by a server that ends."""
    for channel in tuple(site.waiting):
        channel.loseConnection()
    return not site.connected
