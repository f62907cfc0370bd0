"""A whole hookdeploy in memory, in a world whose every delay, failure and accident comes from a seed.

Real are the intake, the apps with what a person may ask of them, the lanes, the deployments and the looks at the
remotes. Simulated are the journal's disk, the origins, git, builds and servers; they outlive a kill, as the real ones
do. Nothing here reads a wall clock or touches a reactor: the same seed gives the same history.
"""

# The plans and the delays are to be the same again, and keep no secret.
# ruff: noqa: S311

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, cast

from twisted.internet.base import DelayedCall
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests import history
from tests.drivers import MemoryLog
from tests.fakes import MemoryJournal
from tests.history import Answered, Began, Ended, Event, History, Moved, Restless, Row, Serves, Swapped, Trouble, Wished
from twisted_hook.apps import App, Tools
from twisted_hook.boundaries import AppServer, Checkout, CommandRunner, Environments, Journal
from twisted_hook.builders import Builders
from twisted_hook.commands import Ambient
from twisted_hook.config import AppConfig, StepConfig
from twisted_hook.hooks import Hook, Secret, Subscription
from twisted_hook.intake import Intake
from twisted_hook.model import (
    Command,
    CommandResult,
    Commit,
    Deployment,
    Environment,
    JournalUnavailable,
    Launch,
    Message,
    NewDelivery,
    NoRoom,
    Phase,
    ProbationFailed,
    Push,
    Refused,
    ServerStatus,
    Steering,
    StepFailed,
    Tree,
)
from twisted_hook.process import Reactor
from twisted_hook.reconcile import LONGEST_WAIT, Reconcile
from twisted_hook.redaction import Redactor
from twisted_hook.story import Story

POLL = 300.0
HANG = 120.0
"""Seconds until git or a build that says nothing is ended."""
REST = 1.2 * LONGEST_WAIT
"""Seconds in which nothing happens, after which all has come to rest."""
PATIENCE = 8 * LONGEST_WAIT
MAIN, NEXT = "refs/heads/main", "refs/heads/next"
BUILD, MIGRATE = (StepConfig("build", ("make",)),), (StepConfig("migrate", ("manage", "migrate")),)
APPS = (
    AppConfig(name="blog", hook="web", repository="acme/web", branch="main", build=BUILD, wsgi="wsgi:app", poll=POLL),
    AppConfig(
        name="shop",
        hook="web",
        repository="acme/web",
        branch="main",
        paths=("shop/**",),
        wsgi="wsgi:app",
        poll=POLL,
        probation=0.0,
    ),
    AppConfig(name="wiki", hook="web", repository="acme/web", branch="next", build=BUILD, wsgi="wsgi:app", poll=POLL),
    AppConfig(
        name="bank", hook="api", repository="acme/api", branch="main", migrate=MIGRATE, wsgi="wsgi:app", poll=POLL
    ),
)
NEVER_WRITTEN = frozenset(
    {"last", "last_about", "decided", "told_of", "steering", "unfinished", "deployment", "delivery", "deployments"}
)
"""The journal's calls that read."""
GOOD = "good"
QUALITIES = (*[GOOD] * 7, "no build", "no start", "no probation", "no migration")
"""How commits are; most are good."""


def ref_of(config: AppConfig) -> str:
    return f"refs/heads/{config.branch}"


@dataclass(frozen=True, slots=True)
class Step:
    """Something that is done to hookdeploy at some time; what it is in particular comes from ``seed``."""

    at: float
    what: str
    seed: str

    def __str__(self) -> str:
        return f"{self.at:.1f} {self.what}"


PERSONS = ("pause", "resume", "pin", "unpin", "deploy", "deploy older", "rollback", "cancel", "replay", "dying")
NEMESIS = ("kill", "kill", "reboot", "stop", "jump", "renew")
TROUBLES = ("journal", "slow journal", "origin", "slow origin", "hang", "disk", "no build")
PUSHES = ("push", "push", "push", "twice", "twice anew", "lost", "burst", "force", "again")


def plan(seed: int, *, most: int = 45) -> list[Step]:
    """What is done in the run of this seed, in order."""
    random, steps, at = Random(f"{seed} plan"), [], 1.0
    kinds = (*PUSHES * 3, *PERSONS, *NEMESIS * 2, *TROUBLES)
    for number in range(random.randint(5, most)):
        steps.append(Step(at, random.choice(kinds), f"{seed} {number}"))
        at += random.choice((0.0, 0.1, 1.0, 3.0, 10.0, 30.0, 30.0, 400.0)) * random.random()
    return steps


@dataclass
class Disk:
    """What outlives a kill, of one app: its trees, what serves, and its environments."""

    trees: dict[str, Tree] = field(default_factory=dict)
    served: list[str] = field(default_factory=list)
    """The releases that have served, in the order in which they began to."""
    current: str | None = None
    serving: Launch | None = None
    on_trial: Launch | None = None
    """It meets requests too, and has not been chosen yet."""
    environments: set[str] = field(default_factory=set)
    taken: int = 0

    def current_tree(self) -> Tree | None:
        return self.trees.get(self.current or "")


class World:
    """All that hookdeploy does not decide, and the record of what happens."""

    def __init__(self, seed: int) -> None:
        self.random = Random(f"{seed} world")
        self.clock = Clock()
        self.ahead = 1_700_000_000.0
        """How much the wall clock is ahead of the steady one."""
        self.journal = MemoryJournal()
        self.lost: list[Row] = []
        """What was in a journal that was damaged."""
        self.events: list[Event] = []
        self.commits: dict[str, Commit] = {}
        self.quality: dict[str, str] = {}
        self.parts: dict[str, int] = {}
        """By which number the files that some app is about alone go in each commit."""
        self.authors = Random(f"{seed} authors")
        self.tips: dict[tuple[str, str], list[str]] = {}
        """What each ref has named, the newest last."""
        self.disks = {config.name: Disk() for config in APPS}
        self.troubles: set[str] = set()
        self.sent: list[NewDelivery] = []
        self.fuse = -1
        """How many moments hookdeploy has left; none if negative."""
        self.calm = False
        self.daemon: Daemon | None = None
        for config in APPS:
            self.move(config.repository or "", ref_of(config))

    def wall(self) -> float:
        return self.clock.seconds() + self.ahead

    def note(self, event: Event) -> None:
        self.events.append(event)

    # --- the origin

    def move(self, repository: str, ref: str, commit: str | None = None) -> str:
        """Let the ref name this commit, or a new one."""
        if commit is None:
            commit = f"{len(self.commits) + 1:07x}".ljust(40, "0")
            self._author(commit, self.tips.get((repository, ref), []))
        named = self.tips.setdefault((repository, ref), [])
        if named[-1:] != [commit]:
            named.append(commit)
            skips = bool(self.commits[commit].skips)
            self.note(Moved(self.clock.seconds(), repository, ref, commit[:7], skips))
        return commit

    def _author(self, commit: str, before: Sequence[str]) -> None:
        skips = "[skip deploy]" if self.clock.seconds() and self.authors.random() < 0.1 else ""
        self.commits[commit] = Commit(commit, f"commit {commit[:7]}", "Ada", skips)
        self.quality[commit] = self.random.choice(QUALITIES)
        changes = not before or self.authors.random() < 0.5
        self.parts[commit] = len(self.parts) if changes else self.parts[before[-1]]

    def spares(self, config: AppConfig, tip: str, runs: str | None) -> bool:
        """Whether the tip need not be deployed in the place of what runs."""
        if runs is None:
            return False
        same = bool(config.paths) and self.parts[tip] == self.parts[runs]
        return same or bool(self.commits[tip].skips)

    def tip(self, repository: str, ref: str) -> str:
        return self.tips[repository, ref][-1]

    # --- life and death

    def start(self) -> None:
        self.daemon = Daemon(self)
        self.daemon.begin()

    def kill(self) -> None:
        """End hookdeploy as with SIGKILL, and start it again a little later."""
        if self.daemon is not None:
            self.daemon.die()
            self.daemon = None
            self.fuse = -1
            self.note(history.Life(self.clock.seconds(), "killed"))
            self.clock.callLater(self.random.choice((0.1, 2.0, 20.0)), self.start)

    def moment(self) -> None:
        """One more instant at which a kill may strike."""
        if self.fuse == 0:
            self.kill()
        else:
            self.fuse -= self.fuse > 0

    def renew(self) -> None:
        """The journal's file is damaged, so that a new one takes its place."""
        self.lost += [replace(row_of(each), lost=True) for each in self.journal._deployments.values()]
        for kept in (
            self.journal._deployments,
            self.journal._deliveries,
            self.journal._digests,
            self.journal._steering,
        ):
            kept.clear()
        self.note(Trouble(self.clock.seconds(), "renewed"))
        if self.daemon is not None and self.daemon.is_ready:
            self.daemon.reconcile.changed()
            self.daemon.reconcile.look()

    # --- time

    def run_until(self, at: float) -> None:
        """Let happen what is to happen until then, each thing at its own time."""
        while self.clock.calls and (due := self.clock.calls[0].getTime()) <= at:
            self.clock.advance(due - self.clock.seconds())
        self.clock.advance(max(at - self.clock.seconds(), 0.0))

    def quieten(self) -> None:
        """The nemesis stops."""
        self.calm, self.fuse = True, -1
        self.troubles.clear()
        self.note(Trouble(self.clock.seconds(), "fine"))

    def come_to_rest(self) -> None:
        """Wait until nothing new has happened for a while."""
        end = self.clock.seconds() + PATIENCE
        before: object = None
        while (now := self._shape()) != before or self._busy:
            if self.clock.seconds() > end:
                self.note(Restless(self.clock.seconds(), "things go on and on"))
                return
            before = now
            self.run_until(self.clock.seconds() + REST)
        for app in self.daemon.apps.values() if self.daemon is not None else ():
            if app.lane._unwritten is not None or app.lane.owes_an_end:
                self.note(Restless(self.clock.seconds(), f"{app.name} tries for ever to write something down"))

    @property
    def _busy(self) -> bool:
        return self.daemon is None or any(app.lane.is_busy for app in self.daemon.apps.values())

    def _shape(self) -> object:
        return len(self.events), len(self.journal._deployments)

    def history(self) -> History:
        """All of it, with what serves now."""
        for config in APPS:
            disk, steering = self.disks[config.name], self.journal._steering.get(config.name, Steering())
            lane = self.daemon.apps[config.name].lane if self.daemon is not None else None
            serving, tip = disk.serving, self.tip(config.repository or "", ref_of(config))
            self.note(
                Serves(
                    self.clock.seconds(),
                    config.name,
                    serving.tree.commit.revision[:7] if serving else None,
                    tree.commit.revision[:7] if (tree := disk.current_tree()) else None,
                    tip[:7],
                    steering.paused or (lane is not None and lane._paused),
                    steering.pinned,
                    self.spares(config, tip, serving.tree.commit.revision if serving else None),
                )
            )
        rows = (*self.lost, *map(row_of, self.journal._deployments.values()))
        return History(tuple(self.events), rows, frozenset(self.journal._deliveries))


def row_of(one: Deployment) -> Row:
    return Row(
        one.id,
        one.app,
        str(one.trigger),
        one.outcome and str(one.outcome),
        one.reason,
        one.wanted and one.wanted[:7],
        one.revision and one.revision[:7],
        one.previous and one.previous[:7],
        one.superseded_by,
        one.attempts,
        one.transient,
    )


class Daemon:
    """One process of hookdeploy, from its start until it is killed. Once it is dead it touches nothing any more."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.alive = True
        self.is_ready = False
        self.journal = cast("Journal", SlowJournal(self))
        tools = Tools(
            reactor=cast("Reactor", self),
            journal=self.journal,
            runner=SimulatedRunner(self),
            state=Path("/state"),
            ambient=Ambient("/usr/bin", "/", "C", None, {}),
            now=world.wall,
            redactor=Redactor(()),
            look=lambda apps: self.reconcile.look(apps),  # noqa: PLW0108 - it is made below
            builders=Builders(2),
        )
        self.tools = tools
        self.apps = {config.name: SimulatedApp(self, tools, config) for config in APPS}
        self.reconcile = Reconcile(
            cast("Reactor", self),
            self.apps.values,
            self.submit,
            jitter=lambda: world.random.uniform(-0.1, 0.1),
        )
        self.intake = Intake(self.journal, self.submit, hooks(), world.wall, missed=self.reconcile.look)
        world.note(history.Life(self.seconds(), "started"))

    def die(self) -> None:
        """Nobody gets a turn any more, not even when what has it is collected."""
        self.alive = False
        builders, locks = self.tools.builders, self.tools.locks.values()
        for turns in (
            *locks,
            *builders._of_repository.values(),
            builders._free,
            *(a._turn for a in self.apps.values()),
        ):
            turns.waiting = Nobody()

    # IReactorTime, as far as anything here asks for it.

    def seconds(self) -> float:
        return self.world.clock.seconds()

    def callLater(self, delay: float, call: Callable[..., object], *args: object, **kw: object) -> DelayedCall:
        return cast("DelayedCall", self.world.clock.callLater(delay, self._call, call, args, kw))

    def _call(self, call: Callable[..., object], args: Sequence[object], kw: Mapping[str, object]) -> None:
        if self.alive:
            call(*args, **kw)

    # What takes time, and may be the last.

    async def takes(self, least: float, most: float) -> None:
        """So many seconds pass; a kill may strike before and after them."""
        await self.moment()
        passed: Deferred[None] = Deferred(lambda _: timer.cancel())
        timer = self.callLater(self.world.random.uniform(least, most), passed.callback, None)
        await passed
        await self.moment()

    async def moment(self) -> None:
        if self.alive:
            self.world.moment()
        if not self.alive:
            await Deferred()  # nobody ever hears of it again

    def note(self, event: Event) -> None:
        if self.alive:
            self.world.note(event)

    # What ``tap`` does.

    def begin(self) -> None:
        self.spawn(self._begin())

    async def _begin(self) -> None:
        while True:
            with suppress(JournalUnavailable):  # the real one opens the file; whoever starts it tries again
                unfinished = await self.journal.unfinished()
                break
        for deployment in unfinished:
            self.apps[deployment.app].lane.take_up(deployment)
        for app in self.apps.values():
            app.lane.resume()
        self.reconcile.start()
        self.is_ready = True
        self.note(history.Life(self.seconds(), "ready"))

    def submit(self, deployment: Deployment) -> None:
        self.apps[deployment.app].lane.submit(deployment)

    def spawn(self, work: Coroutine[Any, Any, object]) -> None:
        """Nobody waits for it; a fault in it is a fault of the run."""
        Deferred.fromCoroutine(work).addErrback(self._fault)

    def _fault(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self.note(Restless(self.seconds(), f"a fault: {failure.getTraceback()}"))

    # What arrives.

    async def deliver(self, new: NewDelivery) -> None:
        guid, sent_at = new.message.guid, self.seconds()
        try:
            receipt = await self.intake._record(replace(new, received_at=self.world.wall()))
        except Refused as refused:
            self.note(Answered(self.seconds(), sent_at, guid, refused.status))
            return
        except CancelledError:
            raise
        except Exception:  # noqa: BLE001 - the door answers a fault like this
            self.note(Answered(self.seconds(), sent_at, guid, 500))
            return
        led_to = tuple(one.id for one in receipt.deployments)
        self.note(Answered(self.seconds(), sent_at, guid, 202, str(receipt.verdict), receipt.delivery, led_to))


class Nobody(list[Any]):
    """A queue in which nobody stays."""

    def append(self, _: object) -> None:
        pass


def hooks() -> list[Hook]:
    names = sorted({config.hook for config in APPS})
    secrets = (Secret(b"s"),)
    return [Hook(name=n, path=f"/{n}", forge="github", secrets=secrets, subscriptions=_listening(n)) for n in names]


def _listening(hook: str) -> tuple[Subscription, ...]:
    mine = [config for config in APPS if config.hook == hook]
    return tuple(Subscription(config.name, (config.repository or "",), ref_of(config)) for config in mine)


class SlowJournal:
    """One process's way to the journal: writes are done in the order in which they are asked for, each in its time."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._world = daemon.world
        self._free_at = 0.0

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, object]]:
        call = getattr(self._world.journal, name)
        ask = self._read if name in NEVER_WRITTEN else self._write

        async def asked(*args: object, **keywords: object) -> object:
            return await ask(lambda: call(*args, **keywords))

        return asked

    async def _read(self, call: Callable[[], Coroutine[Any, Any, object]]) -> object:
        await self._daemon.takes(0.0, 0.002)
        return await call()

    async def _write(self, call: Callable[[], Coroutine[Any, Any, object]]) -> object:
        """Nobody who does not wait for it any more keeps it from being written."""
        await self._daemon.moment()
        now = self._daemon.seconds()
        slow = "slow journal" in self._world.troubles
        self._free_at = max(self._free_at, now) + self._world.random.uniform(0.0, 2.0 if slow else 0.01)
        written: Deferred[object] = Deferred()
        self._daemon.callLater(self._free_at - now, self._commit, call, written)
        result = await written
        await self._daemon.moment()
        return result

    def _commit(self, call: Callable[[], Coroutine[Any, Any, object]], written: Deferred[object]) -> None:
        self._world.moment()
        if not self._daemon.alive:
            return
        if "journal" in self._world.troubles:
            written.errback(JournalUnavailable("the disk is full"))
            return
        self._world.journal.now = self._world.wall()
        Deferred.fromCoroutine(call()).addBoth(self._tell, written)

    def _tell(self, result: object, written: Deferred[object]) -> None:
        self._world.moment()
        if self._daemon.alive:
            self._daemon.callLater(0.0, written.callback, result)


class SimulatedApp(App):
    """The real one, over simulated tools."""

    def __init__(self, daemon: Daemon, tools: Tools, config: AppConfig) -> None:
        self.daemon = daemon
        self.simulated = SimulatedServer(daemon, config)
        super().__init__(tools, config, None)

    def _new_story(self) -> Story:
        daemon, config = self.daemon, self.config
        return Story(
            app=config,
            journal=daemon.journal,
            runner=self._tools.runner,
            checkout=SimulatedCheckout(daemon, config),
            environments=SimulatedEnvironments(daemon, config),
            server=self.simulated,
            open_log=lambda _: MemoryLog(),
            declared=dict,
            ambient=self._tools.ambient,
            now=daemon.world.wall,
            shown=lambda text: text,
            ask_for_room=self._ask_for_room,
            try_again_later=lambda: self._tools.look([config.name]),
            turn_to_build=self._tools.builders.turn,
        )

    def _ask_for_room(self) -> None:
        if "disk" in self.daemon.world.troubles:
            raise NoRoom("the disk is nearly full")


class Tool:
    """What the simulated tools of one app have in common."""

    def __init__(self, daemon: Daemon, config: AppConfig) -> None:
        self.daemon = daemon
        self.world = daemon.world
        self.config = config
        self.disk = daemon.world.disks[config.name]
        self.name = config.name

    @contextmanager
    def working(self, work: str, deployment: str) -> Iterator[None]:
        """What is seen of it from outside."""
        self.daemon.note(Began(self.daemon.seconds(), work, self.name, self.config.repository or "", deployment))
        try:
            yield
        finally:
            self.daemon.note(Ended(self.daemon.seconds(), work, self.name, self.config.repository or ""))


def _deployment_of(run: CommandRunner) -> str:
    """Which deployment asks; none does after a start."""
    deployment = getattr(run, "_deployment", None)
    return deployment.id if isinstance(deployment, Deployment) else ""


class SimulatedCheckout(Tool):
    """A mirror and releases."""

    @property
    def repository(self) -> str:
        return self.config.repository or ""

    @property
    def remote(self) -> str:
        return f"https://example.com/{self.repository}"

    @property
    def follows(self) -> tuple[str, ...]:
        return (ref_of(self.config),)

    async def advertised(self, run: CommandRunner, patterns: Collection[str]) -> Mapping[str, str]:
        await self._ask_the_origin()
        there = {ref: commits[-1] for (name, ref), commits in self.world.tips.items() if name == self.repository}
        await self.daemon.takes(0.0, 0.5)
        return {ref: commit for ref, commit in there.items() if ref in patterns}

    def tip_of(self, advertised: Mapping[str, str]) -> str | None:
        return advertised.get(ref_of(self.config))

    async def has(self, run: CommandRunner, revision: str, at: str | None = None) -> bool:
        await self.daemon.takes(0.0, 0.01)
        if at is not None:
            return at == revision
        tree = self.disk.current_tree()
        return tree is not None and tree.commit.revision == revision

    async def fetch(self, run: CommandRunner, revision: str | None = None) -> Commit:
        with self.working("git", _deployment_of(run)):
            await self._ask_the_origin()
            commit = revision or self.world.tip(self.repository, ref_of(self.config))
            await self.daemon.takes(0.0, 1.0)
            return self.world.commits[commit]

    async def _ask_the_origin(self) -> None:
        slow = 20.0 if "slow origin" in self.world.troubles else 1.0
        await self.daemon.takes(0.05 * slow, slow)
        if "hang" in self.world.troubles:
            await self.daemon.takes(HANG, HANG)
            raise StepFailed("git fetch failed: timeout")
        if "origin" in self.world.troubles:
            raise StepFailed("the origin could not be reached")

    async def touches(self, run: CommandRunner, commit: Commit, patterns: Sequence[str]) -> bool:
        await self.daemon.takes(0.0, 0.01)
        tree, parts = self.disk.current_tree(), self.world.parts
        return tree is None or parts[tree.commit.revision] != parts[commit.revision]

    async def take(self, run: CommandRunner, commit: Commit) -> Tree:
        with self.working("git", _deployment_of(run)):
            await self.daemon.takes(0.01, 1.0)
            if "disk" in self.world.troubles:
                raise OSError(errno.ENOSPC, "No space left on device", "/releases")
            self.disk.taken += 1
            release = f"{self.disk.taken:03d}-{commit.revision[:7]}"
            tree = self.disk.trees[release] = Tree(Path("/releases") / release, commit, release)
            await self.daemon.moment()
            return tree

    async def keep(self, run: CommandRunner, tree: Tree) -> None:
        await self.daemon.takes(0.0, 0.01)
        if "disk" in self.world.troubles:
            raise StepFailed("current could not be changed: No space left on device")
        for release in filter(None, (self.disk.current, tree.release)):
            if release not in self.disk.served:
                self.disk.served.append(release)
        await self.daemon.moment()
        self.disk.current = tree.release
        await self.daemon.moment()

    async def retire(self, run: CommandRunner, in_use: Collection[str]) -> None:
        await self.daemon.takes(0.0, 0.1)
        needed = {self.disk.current, *in_use, *self.disk.served[-self.config.keep :]}
        for release in [release for release in self.disk.trees if release not in needed]:
            del self.disk.trees[release]
        self.disk.served = [release for release in self.disk.served if release in self.disk.trees]

    async def discard(self, run: CommandRunner, tree: Tree, in_use: Collection[str]) -> None:
        await self.daemon.takes(0.0, 0.1)
        if tree.release not in (*self.disk.served, self.disk.current, *in_use):
            self.disk.trees.pop(tree.release, None)

    async def current(self, run: CommandRunner) -> Tree | None:
        await self.daemon.takes(0.0, 0.01)
        return self.disk.current_tree()

    async def kept(self, run: CommandRunner) -> Sequence[Tree]:
        await self.daemon.takes(0.0, 0.01)
        return [self.disk.trees[release] for release in reversed(self.disk.served) if release in self.disk.trees]

    async def put_back(self, run: CommandRunner, tree: Tree) -> None:
        await self.daemon.takes(0.0, 0.01)
        if tree.release not in self.disk.trees:
            raise StepFailed(f"release {tree.release} is not there any more")

    async def recover(self, run: CommandRunner, serving: Tree | None) -> Tree | None:
        if serving is not None:
            await self.keep(run, serving)
        return await self.current(run)

    async def make_room(self, run: CommandRunner) -> None:
        await self.daemon.takes(0.0, 0.01)


class SimulatedRunner:
    """Runs the steps, which are known by their names."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def run(self, command: Command, *, output: Callable[[bytes], None] | None = None) -> CommandResult:
        world, env = self._daemon.world, command.env
        config = next(config for config in APPS if config.name == env["HOOKDEPLOY_APP"])
        quality = world.quality[env["HOOKDEPLOY_REVISION"]]
        with Tool(self._daemon, config).working(command.name, env["HOOKDEPLOY_DEPLOYMENT"]):
            await self._daemon.takes(0.1, 20.0)
        bad = quality == {"build": "no build", "migrate": "no migration"}[command.name] or "no build" in world.troubles
        return CommandResult(command, int(bad), None, False, 1.0, b"", "it does not work" if bad else "")


class SimulatedEnvironments(Tool):
    """One for each commit; made once."""

    async def prepare(self, run: CommandRunner, tree: Tree, env: Mapping[str, str]) -> Environment:
        commit = tree.commit.revision
        await self.daemon.takes(0.0, 0.01)
        if self.config.build == "auto" and commit not in self.disk.environments:
            with self.working("build", env["HOOKDEPLOY_DEPLOYMENT"]):
                await self.daemon.takes(0.1, 20.0)
            if self.world.quality[commit] == "no build" or "no build" in self.world.troubles:
                raise StepFailed("pip install failed")
            if "disk" in self.world.troubles:
                raise StepFailed("pip install failed", tail="No space left on device")
            self.disk.environments.add(commit)
        return Environment(Path("/usr/bin/python3"))

    async def keep(self, run: CommandRunner, environment: Environment) -> None:
        await self.daemon.takes(0.0, 0.01)


class SimulatedServer(Tool):
    """Starts whatever is not bad, and survives hookdeploy."""

    def __init__(self, daemon: Daemon, config: AppConfig) -> None:
        super().__init__(daemon, config)
        self._launch: Launch | None = None

    @property
    def status(self) -> ServerStatus:
        return ServerStatus("serving" if self.disk.serving is not None else "down", 0.0)

    @property
    def launch(self) -> Launch | None:
        return self._launch

    @property
    def outdated(self) -> bool:
        return False

    def adopt(self) -> Launch | None:
        """One that was on probation has not been chosen: it serves only if there is no other."""
        self._launch = self.disk.serving = self.disk.serving or self.disk.on_trial
        self.disk.on_trial = None
        return self._launch

    async def start(self, launch: Launch) -> None:
        self._launch = launch
        await self.daemon.takes(0.1, 3.0)
        self.disk.serving = launch

    @property
    def in_use(self) -> frozenset[str]:
        return frozenset(each.tree.release for each in (self.disk.serving, self.disk.on_trial) if each is not None)

    async def swap(
        self,
        launch: Launch,
        entered: Callable[[Phase], None],
        *,
        probation: float = 0.0,
        keep: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        quality = self.world.quality[launch.tree.commit.revision]
        entered(Phase.STARTING)
        await self.daemon.takes(0.1, 3.0)
        entered(Phase.CHECKING)
        await self.daemon.takes(0.0, 1.0)
        if quality == "no start":
            raise StepFailed("the new server did not start")
        entered(Phase.SWAPPING)
        try:
            self.disk.on_trial = launch
            if self.disk.serving is not None and probation:
                entered(Phase.PROBATION)
                await self._prove(launch, probation, is_bad=quality == "no probation")
            if keep is not None:
                await keep()
            await self.daemon.moment()
            self._launch = self.disk.serving = launch
            self._swapped(launch, kept=True)
            await self.daemon.moment()
        finally:
            if self.daemon.alive:
                self.disk.on_trial = None

    async def _prove(self, launch: Launch, probation: float, *, is_bad: bool) -> None:
        await self.daemon.takes(probation / 2, probation)
        if is_bad:
            self._swapped(launch, kept=False)
            raise ProbationFailed("it answered 500 on probation")

    def _swapped(self, launch: Launch, *, kept: bool) -> None:
        deployment, commit = launch.env["HOOKDEPLOY_DEPLOYMENT"], launch.tree.commit.revision[:7]
        self.daemon.note(Swapped(self.daemon.seconds(), self.name, commit, deployment, kept))


class Nemesis:
    """Does to a world what a plan says."""

    def __init__(self, world: World) -> None:
        self._world = world

    def do(self, step: Step) -> None:
        random, world = Random(step.seed), self._world
        if step.what in PUSHES:
            self._push(step.what, random)
        elif step.what in PERSONS:
            if world.daemon is not None and world.daemon.is_ready:
                apps = list(world.daemon.apps.values())
                busy = [app for app in apps if app.lane.unfinished]  # where it is likelier to make a difference
                app = random.choice(busy if busy and random.random() < 0.7 else apps)
                world.daemon.spawn(self._ask(world.daemon, app, step.what, random))
        elif step.what in TROUBLES:
            self._trouble(step.what, random.choice((1.0, 10.0, 100.0, 1000.0)))
        elif step.what == "jump":
            world.ahead += random.uniform(-100_000.0, 100_000.0)
            world.note(Trouble(world.clock.seconds(), "jump"))
        elif step.what == "renew":
            world.renew()
        elif world.daemon is not None:
            self._end(world.daemon, step.what, random)

    def _end(self, daemon: Daemon, what: str, random: Random) -> None:
        """Stop it in order, or kill it at some moment, with the servers or without."""
        world = self._world
        if what == "stop":
            daemon.spawn(self._stop(daemon))
            return
        if what == "reboot":
            world.kill()
            for disk in world.disks.values():
                disk.serving = disk.on_trial = None
        world.fuse = random.randint(0, 40)
        world.clock.callLater(random.uniform(0.0, 30.0), self._burn)

    def _burn(self) -> None:
        if self._world.fuse >= 0:
            self._world.kill()

    async def _stop(self, daemon: Daemon) -> None:
        for app in daemon.apps.values():
            await app.lane.stop()
        if daemon is self._world.daemon:
            self._world.kill()

    def _trouble(self, what: str, lasts: float) -> None:
        world = self._world
        world.troubles.add(what)
        world.note(Trouble(world.clock.seconds(), what))
        world.clock.callLater(lasts, self._relieve, what)

    def _relieve(self, what: str) -> None:
        world = self._world
        if what in world.troubles:
            world.troubles.discard(what)
            world.note(Trouble(world.clock.seconds(), "fine" if what == "journal" else f"no more {what}"))

    # --- pushes

    def _push(self, what: str, random: Random) -> None:
        world = self._world
        if what == "again":
            if world.sent:
                self._send(random.choice(world.sent))
            return
        config = random.choice(APPS)
        repository, ref = config.repository or "", ref_of(config)
        for _ in range(random.randint(5, 30) if what == "burst" else 1):
            back = random.choice(world.tips[repository, ref]) if what == "force" else None
            new = self._message(config.hook, repository, ref, world.move(repository, ref, back), random)
            world.sent.append(new)
            if what != "lost":
                world.clock.callLater(random.choice((0.0, 0.1, 5.0, 60.0)) * random.random(), self._send, new)
            if what == "twice":
                world.clock.callLater(random.uniform(0.0, 1.0), self._send, new)
            if what == "twice anew":
                anew = replace(new, message=replace(new.message, guid=f"{new.message.guid}-again"))
                world.clock.callLater(random.uniform(0.0, 20.0), self._send, anew)

    def _message(self, hook: str, repository: str, ref: str, commit: str, random: Random) -> NewDelivery:
        guid = f"guid-{len(self._world.sent)}"
        message = Message(guid, "push", (Push(repository, ref, commit),))
        audience = next(each for each in hooks() if each.name == hook).audience(message)
        return NewDelivery(
            hook=hook,
            message=message,
            digest=f"body of {guid}",
            received_at=0.0,
            apps=audience.apps,
            reason=audience.reason,
        )

    def _send(self, new: NewDelivery) -> None:
        daemon, now = self._world.daemon, self._world.clock.seconds()
        if daemon is None or not daemon.is_ready:
            self._world.note(Answered(now, now, new.message.guid, None))
        else:
            daemon.spawn(daemon.deliver(new))

    # --- persons

    async def _ask(self, daemon: Daemon, app: App, what: str, random: Random) -> None:
        with suppress(Refused, JournalUnavailable, StepFailed):
            deployment = await self._asked(daemon, app, what, random)
            if deployment is not None:
                daemon.note(Wished(daemon.seconds(), app.name, what, deployment))

    async def _asked(self, daemon: Daemon, app: App, what: str, random: Random) -> str | None:
        """The id of the deployment that it is about, if any; None if nothing came of it."""
        match what:
            case "pause" | "resume" | "pin" | "unpin":
                await getattr(app, what)()
                return ""
            case "deploy":
                return (await app.deploy()).id
            case "deploy older":
                tips = self._world.tips[app.config.repository or "", ref_of(app.config)]
                return (await app.deploy(random.choice(tips))).id
            case "rollback":
                return (await app.roll_back()).id
            case "dying":
                app._put_back("it keeps dying")
            case "cancel":
                ids = [each.id for each in app.lane.unfinished]
                chosen = random.choice(ids) if ids else ""
                return chosen if chosen and await app.cancel(chosen) else None
            case _ if self._world.journal._deliveries:
                await daemon.intake.replay(random.choice(list(self._world.journal._deliveries)))
        return None


def run(seed: int, steps: Sequence[Step] | None = None) -> History:
    """The history of this seed, or of a part of its plan."""
    world = World(seed)
    nemesis = Nemesis(world)
    world.start()
    for step in plan(seed) if steps is None else steps:
        world.run_until(step.at)
        nemesis.do(step)
    world.run_until(world.clock.seconds() + 30.0)
    world.quieten()
    world.come_to_rest()
    return world.history()


_checkout: type[Checkout] = SimulatedCheckout
_environments: type[Environments] = SimulatedEnvironments
_server: type[AppServer] = SimulatedServer
_runner: type[CommandRunner] = SimulatedRunner
