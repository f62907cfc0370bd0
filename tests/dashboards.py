"""The dashboard over apps in memory, with a history as a forge and a hostile committer could have made it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from twisted.internet.interfaces import IReactorTime

from tests.fakes import MemoryJournal
from tests.steered import HOOK, Lane, SteeredApp
from twisted_hook.announced import AnnouncedJournal
from twisted_hook.changes import Changes
from twisted_hook.dashboard import Dashboard
from twisted_hook.hooks import Hook, Secret, Subscription
from twisted_hook.intake import Intake
from twisted_hook.model import Commit, Deployment, Message, NewDelivery, Outcome, Phase, Push, Step, Trigger
from twisted_hook.streams import Readers

NOW = 1_800_000_000.0
HOSTILE = "<script>alert(1)</script>"
AUTHOR = '"><svg onload=x>'
BRANCH = "refs/heads/<img src=x onerror=y>"
BIDI = "\u202egnp.exe"
LONG = "x" * 500
LOG = f"12:00:00 building\n\x1b[32mok\x1b[0m {HOSTILE}\n\x1b[1;31mFAILED\x1b[0m \x1b]0;title\x07x\n"
PHASES = (Phase.FETCHING, Phase.BUILDING, Phase.STARTING, Phase.CHECKING, Phase.SWAPPING, Phase.PROBATION)


@dataclass
class Shown:
    """A dashboard and what is behind it."""

    state: Path
    clock: IReactorTime
    now: Callable[[], float] = lambda: NOW
    changes: Changes = field(default_factory=lambda: Changes("life"))
    stored: MemoryJournal = field(default_factory=lambda: MemoryJournal(NOW - 86_400))

    def __post_init__(self) -> None:
        (self.state / "logs").mkdir(exist_ok=True)
        self.journal = AnnouncedJournal(self.stored, self.changes.publish)
        self.apps: list[SteeredApp] = [SteeredApp(self.journal, name) for name in ("web", "docs")]
        self.hook = Hook(
            name=HOOK,
            path="/hooks/github",
            forge="github",
            secrets=(Secret(b"s" * 20, "file new.secret"), Secret(b"o" * 20, "file old.secret")),
            subscriptions=tuple(Subscription(app.name, (f"acme/{app.name}",), "refs/heads/main") for app in self.apps),
        )
        intake = Intake(self.journal, self._submit, [self.hook], self.now)
        self.readers = Readers(self.clock)
        self.dashboard = Dashboard(
            self.journal,
            lambda: self.apps,
            self.state / "logs",
            replay=intake.replay,
            hooks=lambda: [self.hook],
            changes=self.changes,
            readers=self.readers,
            now=self.now,
        )

    def _submit(self, made: Deployment) -> None:
        next(app for app in self.apps if app.name == made.app).submit(made)

    def lane(self, app: str = "web") -> Lane:
        return next(each for each in self.apps if each.name == app).lane

    async def deployed(
        self, app: str, commit: Commit, outcome: Outcome, reason: str = "", *, at: float, took: float = 4.0
    ) -> str:
        """A deployment that has ended; gives its id."""
        made = await self.begun(app, commit, PHASES, at=at, took=took)
        await self.journal.finish(made, outcome, at + took, reason=reason)
        return made

    async def begun(self, app: str, commit: Commit, phases: Sequence[Phase], *, at: float, took: float = 4.0) -> str:
        """A deployment that is under way, by a push; gives its id."""
        self.stored.now = at
        made = await self.journal.enqueue(app, Trigger.PUSH)
        await self.journal.begin(made.id, at + 0.1)
        await self.journal.describe(made.id, commit=commit, previous="e" * 40, release=f"r-{commit.revision[:7]}")
        for place, phase in enumerate(phases):
            await self.journal.advance(made.id, phase, at + 0.1 + place * took / (len(PHASES) + 1))
        step = Step("build", f"make {HOSTILE}", at + 1, 0.5, "ok")
        await self.journal.add_step(made.id, step)
        return made.id

    async def delivered(self, *refs: str, guid: str = "guid", apps: Sequence[str] = (), reason: str = "") -> str:
        """A delivery of pushes of these refs; gives its id."""
        pushes = tuple(Push("acme/web", ref, "a" * 40) for ref in refs)
        message = Message(guid, "push" if refs else "ping", pushes, "" if refs else "a ping asks for nothing")
        secret = self.hook.secrets[0].name
        new = NewDelivery(HOOK, message, f"digest of {guid}", NOW - 600, tuple(apps), reason or message.reason, secret)
        return (await self.journal.accept(new)).delivery

    def log(self, deployment: str, text: str) -> None:
        with (self.state / "logs" / f"{deployment}.log").open("a") as file:
            file.write(text)


async def lived_in(shown: Shown) -> dict[str, str]:
    """Fill it with a history, hostile texts included; gives the ids of what is in it by what that is."""
    good = Commit("1a2b3c4" + "0" * 33, "Say hello to everybody who comes by", "Ada Lovelace")
    for day in range(24):
        bad = day in {5, 13}
        commit = Commit(f"{day:02x}b2c3d" + "0" * 33, f"Change number {day}", "Grace Hopper")
        outcome, reason = (Outcome.FAILED, "step 'test' failed: exit 1") if bad else (Outcome.DEPLOYED, "")
        await shown.deployed("web", commit, outcome, reason, at=NOW - 86_400 * (26 - day), took=3 + day % 5)
    ids = {"good": await shown.deployed("web", good, Outcome.DEPLOYED, at=NOW - 7200)}
    hostile = Commit("bad0bad" + "0" * 33, f"{HOSTILE} {BIDI} {LONG}\nsecond line", AUTHOR)
    reason = (
        f"step 'test' failed: exit 1\n{HOSTILE} {BIDI}\x1b]0;title\x07\nE   AssertionError: 1 != 2\n1 failed in 0.4 s"
    )
    ids["failed"] = await shown.deployed("web", hostile, Outcome.FAILED, reason, at=NOW - 600)
    docs = Commit("d0c5d0c" + "0" * 33, "Explain the door", "Ada Lovelace")
    await shown.deployed("docs", docs, Outcome.DEPLOYED, at=NOW - 90_000, took=2.0)
    ids["running"] = await shown.begun("docs", docs, PHASES[:3], at=NOW - 4)
    shown.lane("docs").running = await shown.journal.deployment(ids["running"])
    ids["delivery"] = await shown.delivered("refs/heads/main", guid="one", apps=["web"])
    made = (await shown.journal.delivery(ids["delivery"])).deployments[0]  # type: ignore[union-attr]
    await shown.journal.finish(made, Outcome.UNCHANGED, NOW - 590, reason="1a2b3c4 runs already")
    ids["ignored"] = await shown.delivered(BRANCH, guid=HOSTILE, reason=f"no app deploys {BRANCH}")
    ids["ping"] = await shown.delivered(guid="ping")
    for name in ("failed", "running"):
        shown.log(
            ids[name], f"12:00:00 building\n\x1b[32mok\x1b[0m {HOSTILE}\n\x1b[1;31mFAILED\x1b[0m \x1b]0;title\x07x\n"
        )
    return ids
