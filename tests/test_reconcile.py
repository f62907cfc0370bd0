"""What no hook has told: when the remotes are looked at, how seldom, and what follows from what is seen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import replace
from itertools import cycle, pairwise
from typing import Any, TypeVar

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.drivers import (
    HeardEvents,
    MemoryCheckout,
    MemoryEnvironments,
    MemoryLog,
    MemoryRunner,
    MemoryServer,
    Told,
    commit,
)
from tests.fakes import MemoryJournal
from twisted_hook.apps import App
from twisted_hook.boundaries import CommandRunner
from twisted_hook.commands import Ambient
from twisted_hook.config import AppConfig
from twisted_hook.deploy import Deploying
from twisted_hook.lanes import Lane
from twisted_hook.model import (
    Command,
    Commit,
    Deployment,
    JournalUnavailable,
    Message,
    NewDelivery,
    NoRoom,
    Outcome,
    ProbationFailed,
    Push,
    Steering,
    StepFailed,
    Tree,
    Trigger,
)
from twisted_hook.reconcile import FIRST_PAUSE, LONGEST_PAUSE, LONGEST_WAIT, SOON, Reconcile, Watched
from twisted_hook.story import Story

T = TypeVar("T")

POLL = 300.0
_app: type[Watched] = App


class Origin(Told):
    """A remote: its refs, and what it was asked for."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.url = f"https://example.com/{name}.git"
        self.refs = {"refs/heads/main": commit("a").revision}
        self.asked: list[tuple[str, ...]] = []

    def push(self, letter: str, branch: str = "main") -> None:
        self.refs[f"refs/heads/{branch}"] = commit(letter).revision


class Following(MemoryCheckout):
    """What follows one branch of an origin."""

    def __init__(self, origin: Origin, branch: str) -> None:
        super().__init__(commit("a"), origin.url)
        self.origin = origin
        self.ref = f"refs/heads/{branch}"
        self.local_commits = False
        """What it takes has some on top, so that it has an id of its own."""

    async def has(self, run: CommandRunner, revision: str, at: str | None = None) -> bool:
        at = at or (self.served.commit.revision if self.served else "")
        return at[:-1] == revision[:-1]

    async def take(self, run: CommandRunner, commit: Commit) -> Tree:
        return await super().take(run, Commit(f"{commit.revision[:-1]}0", "", "") if self.local_commits else commit)

    @property
    def remote(self) -> str:
        return self.origin.url

    @property
    def follows(self) -> tuple[str, ...]:
        return (self.ref,)

    async def advertised(self, run: CommandRunner, patterns: Collection[str]) -> Mapping[str, str]:
        self.origin.asked.append(tuple(patterns))
        await self.origin.called("advertised")
        await run.run(Command("git ls-remote", ("git", "ls-remote"), {}))
        return {ref: self.origin.refs[ref] for ref in patterns if ref in self.origin.refs}

    def tip_of(self, advertised: Mapping[str, str]) -> str | None:
        return advertised.get(self.ref)

    async def fetch(self, run: CommandRunner, revision: str | None = None) -> Commit:
        self.tip = commit(self.origin.refs[self.ref][0])
        return await super().fetch(run, revision)


class AppAtWork:
    """An app over memory drivers."""

    def __init__(self, clock: Clock, journal: MemoryJournal, origin: Origin, name: str, branch: str = "main") -> None:
        self.name = name
        self.poll = POLL
        self.origin = origin
        self.checkout = Following(origin, branch)
        self.environments = MemoryEnvironments()
        self.server = MemoryServer()
        self.runner = MemoryRunner()
        self.has_room = True
        self.story = Story(
            app=AppConfig(name=name, hook=name, branch=branch, wsgi="wsgi:application", probation=0.0),
            journal=journal,
            runner=self.runner,
            checkout=self.checkout,
            environments=self.environments,
            server=self.server,
            open_log=lambda _: MemoryLog(),
            declared=dict,
            ambient=Ambient("/usr/bin", "/", "C", None, {}),
            now=clock.seconds,
            shown=lambda text: text.replace("hunter2", "***"),
            ask_for_room=self._ask_for_room,
        )
        self.lane = Lane(clock, story=self.story, lock=DeferredLock(), journal=journal, now=clock.seconds)

    def _ask_for_room(self) -> None:
        if not self.has_room:
            raise NoRoom("the disk is nearly full")

    @property
    def serves(self) -> str | None:
        """The letter of the commit that it serves."""
        return self.checkout.served.commit.revision[0] if self.checkout.served else None


class ReconcileCase(SynchronousTestCase):
    """Apps over memory drivers, and who looks at their remotes."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.journal = MemoryJournal()
        self.heard = HeardEvents()
        self.patch(Reconcile, "_log", Logger(observer=self.heard))
        self.patch(Lane, "_log", Logger(observer=HeardEvents()))
        self.patch(Deploying, "_logger", Logger(observer=HeardEvents()))
        self.apps: list[AppAtWork] = []
        self.homeless: list[Deployment] = []
        self.reconcile = self.looking()

    def looking(self, jitter: Iterable[float] = (0.0,)) -> Reconcile:
        jitters = cycle(jitter)
        return Reconcile(self.clock, lambda: self.apps, self.submit, jitter=lambda: next(jitters))

    def submit(self, deployment: Deployment) -> None:
        lane = next((app.lane for app in self.apps if app.name == deployment.app), None)
        if lane is None:
            self.homeless.append(deployment)
        else:
            lane.submit(deployment)

    def result(self, work: Coroutine[Any, Any, T]) -> T:
        return self.successResultOf(Deferred.fromCoroutine(work))

    def add(
        self, name: str = "blog", origin: Origin | None = None, *, branch: str = "main", poll: float = POLL
    ) -> AppAtWork:
        """An app that serves the first commit."""
        app = AppAtWork(self.clock, self.journal, origin or Origin(name), name, branch)
        app.origin.refs.setdefault(app.checkout.ref, commit("a").revision)
        app.poll = poll
        self.apps.append(app)
        self.deploy(app)
        return app

    def deploy(
        self, app: AppAtWork, letter: str | None = None, trigger: Trigger = Trigger.PUSH, wanted: str | None = None
    ) -> Deployment:
        """Push, and deploy it; what has become of the deployment."""
        if letter is not None:
            app.origin.push(letter)
        deployment = self.result(self.journal.enqueue(app.name, trigger, wanted))
        app.lane.submit(deployment)
        self.clock.advance(0)
        return self.written(deployment)

    def told(self, letter: str) -> None:
        """A delivery for nobody that names this commit."""
        push = Push("acme/blog", "refs/heads/main", commit(letter).revision)
        message = Message(f"guid of {letter}", "push", (push,))
        self.result(self.journal.accept(NewDelivery("github", message, letter, self.clock.seconds(), ())))

    def written(self, deployment: Deployment) -> Deployment:
        found = self.result(self.journal.deployment(deployment.id))
        assert found is not None
        return found

    def newest(self, app: str = "blog") -> Deployment:
        return self.result(self.journal.deployments(app=app))[0]

    def made(self, app: str = "blog") -> int:
        """How many deployments of an app were made here."""
        return sum(one.trigger is Trigger.POLL for one in self.result(self.journal.deployments(app=app, limit=10_000)))

    def pass_by(self, seconds: float) -> None:
        """Time passes, and what is put into a lane has its turn."""
        self.clock.advance(seconds)
        self.clock.advance(0)

    def said(self, *levels: LogLevel) -> list[str | None]:
        return [formatEvent(event) for event in self.heard.events if event["log_level"] in levels]

    def faults(self) -> int:
        return len(self.said(LogLevel.critical))


class HowOften(ReconcileCase):
    """The remotes are asked as seldom as they can be."""

    def test_it_looks_soon_after_the_start_and_then_at_every_interval(self) -> None:
        blog = self.add()
        self.reconcile.start()
        self.assertEqual(len(blog.origin.asked), 0)
        self.clock.advance(SOON)
        self.assertEqual(len(blog.origin.asked), 1)
        self.clock.advance(POLL - 0.1)
        self.assertEqual(len(blog.origin.asked), 1)
        self.clock.advance(0.1)
        self.assertEqual(len(blog.origin.asked), 2)

    def test_a_hundred_remotes_with_nothing_moved_are_a_hundred_processes_an_interval(self) -> None:
        apps = [self.add(f"app{number}") for number in range(100)]
        for app in apps:
            app.runner.commands.clear()
        self.reconcile.start()
        self.clock.advance(SOON)
        for interval in range(1, 4):
            self.assertEqual([len(app.origin.asked) for app in apps], [interval] * 100)
            names = [[command.name for command in app.runner.commands] for app in apps]
            self.assertEqual(names, [["git ls-remote"] * interval] * 100)
            self.clock.pump([POLL / 2, POLL / 2])
        self.assertEqual(sum(self.made(app.name) for app in apps), 0)

    def test_a_hundred_remotes_are_not_asked_at_the_same_moment(self) -> None:
        apps = [self.add(f"app{number}") for number in range(100)]
        self.reconcile = self.looking(jitter=[number / 500 - 0.1 for number in range(100)])
        self.reconcile.start()
        self.clock.advance(SOON)
        self.clock.advance(POLL * 0.9 - 0.5)
        before = sum(len(app.origin.asked) for app in apps)
        most = 0
        for _ in range(62):
            self.clock.advance(1.0)
            after = sum(len(app.origin.asked) for app in apps)
            most, before = max(most, after - before), after
        self.assertEqual(before, 200)
        self.assertLess(most, 6)

    def test_the_default_jitter_is_a_tenth(self) -> None:
        self.add()
        reconcile = Reconcile(self.clock, lambda: self.apps, self.submit)
        for _ in range(50):
            reconcile.changed()
            [timer] = self.clock.getDelayedCalls()
            self.assertTrue(0.9 * POLL <= timer.getTime() <= 1.1 * POLL)
            timer.cancel()
            reconcile = Reconcile(self.clock, lambda: self.apps, self.submit)

    def test_the_apps_of_one_remote_are_asked_for_at_once(self) -> None:
        origin = Origin("shop")
        for name, branch in (("live", "main"), ("beta", "next"), ("demo", "main")):
            self.add(name, origin, branch=branch)
        self.reconcile.start()
        self.clock.advance(SOON)
        self.assertEqual(origin.asked, [("refs/heads/main", "refs/heads/next")])

    def test_the_smallest_poll_of_its_apps_counts(self) -> None:
        origin = Origin("shop")
        self.add("live", origin, poll=600.0)
        self.add("beta", origin, poll=60.0)
        self.reconcile.start()
        self.clock.advance(SOON)
        self.clock.advance(60.0)
        self.assertEqual(len(origin.asked), 2)

    def test_only_so_many_are_asked_at_a_time(self) -> None:
        apps = [self.add(f"app{number}") for number in range(10)]
        holds = [app.origin.hold("advertised") for app in apps]
        self.reconcile.start()
        self.clock.advance(SOON)
        self.assertEqual(sum(len(app.origin.asked) for app in apps), 4)
        for number, held in enumerate(holds):
            held.happen(None)
            self.assertEqual(sum(len(app.origin.asked) for app in apps), min(5 + number, 10))

    def test_a_remote_that_hangs_is_not_asked_again_meanwhile_and_delays_no_other(self) -> None:
        hanging, other = self.add("hanging"), self.add("other")
        held = hanging.origin.hold("advertised")
        self.reconcile.start()
        for _ in range(4):
            self.clock.advance(POLL)
            self.reconcile.look(["hanging"])
            self.reconcile.changed()
        self.assertEqual((len(hanging.origin.asked), len(other.origin.asked)), (1, 4))
        held.happen(None)
        self.clock.advance(SOON)  # it was wanted meanwhile
        self.assertEqual(len(hanging.origin.asked), 2)

    def test_whose_lane_will_ask_anyway_is_not_asked_for(self) -> None:
        blog = self.add()
        blog.server.hold("swap")
        self.deploy(blog, "b")
        self.reconcile.start()
        self.clock.advance(SOON)
        self.assertEqual(blog.origin.asked, [])

    def test_one_that_does_not_know_yet_what_it_has_to_serve_is_looked_at_when_it_does(self) -> None:
        """Its lane deploys by itself if there is nothing, and nobody is to be told that a hook is missing."""
        app = AppAtWork(self.clock, self.journal, Origin("blog"), "blog")
        self.apps.append(app)
        looking = app.checkout.hold("current")
        app.lane.resume()
        self.reconcile.start()
        self.clock.pump([SOON, SOON])
        self.assertEqual(app.origin.asked, [])
        del app.checkout.waiting["current"]
        looking.happen(None)
        self.clock.pump([SOON, SOON])
        self.assertEqual((len(app.origin.asked), self.made()), (1, 0))
        self.assertEqual(self.newest().trigger, Trigger.START)

    def test_one_that_is_slow_to_know_what_it_has_to_serve_puts_off_no_other_of_its_remote(self) -> None:
        origin = Origin("shop")
        live, beta = self.add("live", origin), self.add("beta", origin, branch="next")
        looking = beta.checkout.hold("current")
        beta.lane.resume()
        origin.push("b", "main")
        origin.push("b", "next")
        self.reconcile.start()
        self.pass_by(SOON)
        self.assertEqual((live.serves, self.made("beta")), ("b", 0))
        del beta.checkout.waiting["current"]
        looking.happen(None)
        self.pass_by(FIRST_PAUSE)
        self.assertEqual((beta.serves, self.made("beta")), ("b", 1))

    def test_without_a_poll_it_is_not_looked_at(self) -> None:
        blog = self.add(poll=0.0)
        self.reconcile.start()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(10 * POLL)
        self.assertEqual(blog.origin.asked, [])

    def test_who_has_no_poll_is_left_out_where_another_app_of_the_remote_has_one(self) -> None:
        origin = Origin("shop")
        self.add("live", origin, branch="main", poll=0.0)
        self.add("beta", origin, branch="next")
        origin.push("b", "main")
        self.reconcile.start()
        self.pass_by(SOON)
        self.assertEqual(origin.asked, [("refs/heads/next",)])
        self.assertEqual(self.made("live"), 0)


class WhenItIsAskedTo(ReconcileCase):
    """After a journal recovery, and when a hook could not be taken."""

    def setUp(self) -> None:
        super().setUp()
        self.blog = self.add(poll=0.0)
        self.shop = self.add("shop", poll=0.0)
        self.reconcile.start()

    def asked(self) -> tuple[int, int]:
        return len(self.blog.origin.asked), len(self.shop.origin.asked)

    def test_it_looks_at_all_of_them_though_they_have_no_poll(self) -> None:
        self.blog.origin.push("b")
        self.reconcile.look()
        self.pass_by(SOON)
        self.assertEqual((self.asked(), self.blog.serves), ((1, 1), "b"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_looks_at_those_that_are_named(self) -> None:
        self.reconcile.look(["shop", "nobody"])
        self.clock.advance(SOON)
        self.assertEqual(self.asked(), (0, 1))

    def test_asked_twice_it_looks_once(self) -> None:
        self.reconcile.look(["blog"])
        self.reconcile.look()
        self.reconcile.look(["blog"])
        self.clock.advance(SOON)
        self.clock.advance(POLL)
        self.assertEqual(self.asked(), (1, 1))

    def test_asked_while_it_looks_it_looks_again(self) -> None:
        """What it is told now may have been pushed after the remote has answered."""
        held = self.blog.origin.hold("advertised")
        self.reconcile.look(["blog"])
        self.clock.advance(SOON)
        self.reconcile.look(["blog"])
        held.happen(None)
        self.blog.origin.push("b")
        self.pass_by(SOON)
        self.assertEqual((self.asked(), self.blog.serves), ((2, 0), "b"))

    def test_it_looks_again_with_growing_pauses_until_the_remote_answers(self) -> None:
        self.blog.origin.failing["advertised"] = StepFailed("no route to host")
        self.reconcile.look(["blog"])
        self.clock.advance(SOON)
        pause = FIRST_PAUSE
        for looks in range(2, 9):
            self.clock.advance(pause - 0.1)
            self.assertEqual(self.asked(), (looks - 1, 0))
            self.clock.advance(0.1)
            self.assertEqual(self.asked(), (looks, 0))
            pause = min(2 * pause, LONGEST_PAUSE)
        self.blog.origin.failing.clear()
        self.blog.origin.push("b")
        self.pass_by(LONGEST_PAUSE)
        self.assertEqual(self.blog.serves, "b")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_pauses_begin_anew_when_it_has_succeeded_and_when_all_are_asked_for(self) -> None:
        self.blog.origin.failing["advertised"] = StepFailed("no route to host")
        self.reconcile.look(["blog"])
        self.clock.pump([SOON, FIRST_PAUSE, 2 * FIRST_PAUSE])
        self.reconcile.look()
        self.clock.pump([SOON, FIRST_PAUSE])
        self.assertEqual(self.asked(), (5, 1))
        self.blog.origin.failing.clear()
        self.clock.advance(2 * FIRST_PAUSE)
        self.blog.origin.failing["advertised"] = StepFailed("no route to host")
        self.reconcile.look(["blog"])
        self.clock.pump([SOON, FIRST_PAUSE])
        self.assertEqual(self.asked(), (8, 1))

    def test_a_shorter_poll_is_kept_while_it_looks_until_it_succeeds(self) -> None:
        self.blog.poll = FIRST_PAUSE / 2
        self.blog.origin.failing["advertised"] = StepFailed("no route to host")
        self.reconcile.look(["blog"])
        self.clock.pump([SOON, FIRST_PAUSE / 2, FIRST_PAUSE / 2])
        self.assertEqual(self.asked(), (3, 0))

    def test_hooks_that_cannot_be_taken_again_and_again_do_not_hasten_it(self) -> None:
        self.blog.origin.push("b")
        self.journal.fail_with = JournalUnavailable("the disk is full")
        for _ in range(300):
            self.reconcile.look(["blog"])
            self.clock.advance(0.1)
        self.assertEqual(self.asked(), (1, 0))

    def test_when_the_journal_is_back_it_looks_at_once(self) -> None:
        self.blog.origin.push("b")
        self.journal.fail_with = JournalUnavailable("the disk is full")
        self.reconcile.look(["blog"])
        self.clock.pump([SOON, FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE])
        self.journal.fail_with = None
        self.reconcile.look()
        self.pass_by(SOON)
        self.assertEqual(self.blog.serves, "b")

    def test_what_has_asked_before_the_push_does_not_count(self) -> None:
        """The lane has fetched something older, and the hook of what came after it could not be taken."""
        held = self.blog.server.hold("swap")
        self.deploy(self.blog, "b")
        self.blog.origin.push("c")
        self.reconcile.look(["blog"])
        self.clock.advance(SOON)
        held.happen(None)
        self.assertEqual(self.blog.serves, "b")
        self.pass_by(FIRST_PAUSE)
        self.assertEqual(self.blog.serves, "c")

    def test_what_will_ask_is_enough(self) -> None:
        self.result(self.journal.steer("blog", Steering(paused=True)))
        self.blog.lane.pause()
        self.deploy(self.blog, "b")
        self.reconcile.look(["blog"])
        self.clock.advance(SOON)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_waits_for_something_else_is_not_enough(self) -> None:
        held = self.blog.server.hold("swap")
        self.deploy(self.blog, "b")
        self.deploy(self.blog, trigger=Trigger.MANUAL, wanted=commit("a").revision)
        self.reconcile.look(["blog"])
        self.clock.advance(SOON)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        held.happen(None)

    def test_it_looks_until_there_is_room(self) -> None:
        self.blog.environments.failing["prepare"] = NoRoom("the disk is full")
        self.deploy(self.blog, "b")
        self.blog.environments.failing.clear()
        self.blog.has_room = False
        self.reconcile.look()
        self.clock.pump([SOON, FIRST_PAUSE])
        self.assertEqual((self.made(), self.blog.serves), (0, "a"))
        self.blog.has_room = True
        self.pass_by(2 * FIRST_PAUSE)
        self.assertEqual((self.made(), self.blog.serves), (1, "b"))


class WhatComesAndGoes(ReconcileCase):
    """Reloads, and the end."""

    def test_a_new_app_is_looked_at_after_its_interval(self) -> None:
        self.reconcile.start()
        blog = self.add()
        self.reconcile.changed()
        self.clock.advance(POLL)
        self.assertEqual(len(blog.origin.asked), 1)

    def test_an_app_that_has_gone_is_not_looked_at(self) -> None:
        blog = self.add()
        self.reconcile.start()
        self.reconcile.look()
        self.apps.clear()
        self.reconcile.changed()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.reconcile.look()
        self.clock.advance(POLL)
        self.assertEqual(blog.origin.asked, [])

    def test_an_app_that_goes_while_it_is_looked_at_is_not_looked_at_again(self) -> None:
        blog = self.add()
        held = blog.origin.hold("advertised")
        blog.origin.failing["advertised"] = StepFailed("no route to host")
        self.reconcile.start()
        self.reconcile.look()
        self.clock.advance(SOON)
        self.apps.clear()
        self.reconcile.changed()
        held.happen(None)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_remote_that_comes_back_while_it_is_looked_at_is_not_asked_twice_at_once(self) -> None:
        blog = self.add()
        blog.origin.hold("advertised")
        self.reconcile.start()
        self.clock.advance(SOON)
        self.apps.clear()
        self.reconcile.changed()
        self.apps.append(blog)
        self.reconcile.changed()
        self.reconcile.look()
        self.clock.advance(POLL)
        self.assertEqual(len(blog.origin.asked), 1)

    def test_a_shorter_poll_takes_effect_at_once_and_none_ends_it(self) -> None:
        blog = self.add(poll=3600.0)
        self.reconcile.start()
        self.clock.advance(SOON)
        blog.poll = 60.0
        self.reconcile.changed()
        self.clock.advance(60.0)
        self.assertEqual(len(blog.origin.asked), 2)
        blog.poll = 0.0
        self.reconcile.changed()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_reload_does_not_put_a_look_off(self) -> None:
        blog = self.add()
        self.reconcile.start()
        self.clock.advance(SOON)
        for _ in range(10):
            self.clock.advance(POLL / 10)
            self.reconcile.changed()
        self.assertEqual(len(blog.origin.asked), 2)

    def test_a_look_until_it_succeeds_outlasts_a_reload(self) -> None:
        blog = self.add(poll=0.0)
        blog.origin.failing["advertised"] = StepFailed("no route to host")
        self.reconcile.start()
        self.reconcile.look()
        self.clock.advance(SOON)
        self.reconcile.changed()
        self.clock.advance(FIRST_PAUSE)
        self.clock.advance(FIRST_PAUSE)
        self.assertEqual(len(blog.origin.asked), 2)

    def test_what_was_known_of_an_app_goes_with_it(self) -> None:
        blog = self.add()
        self.reconcile.start()
        blog.checkout.failing["fetch"] = StepFailed("permission denied")
        blog.origin.push("b")
        self.pass_by(SOON)
        del blog.origin.refs["refs/heads/main"]
        self.pass_by(POLL)
        for there in ([], [blog]):
            self.apps[:] = there
            self.reconcile.changed()
            self.reconcile.look()
        self.pass_by(SOON)
        self.assertEqual(self.said(LogLevel.warn)[1:], ["blog: the remote has no such branch"] * 2)
        blog.origin.push("b")
        self.reconcile.look()
        self.pass_by(SOON)
        self.assertEqual(self.made(), 2)

    def test_what_is_found_for_an_app_that_is_being_exchanged_is_for_the_one_that_takes_its_name(self) -> None:
        blog = self.add()
        blog.origin.push("b")
        self.reconcile.start()
        held = blog.origin.hold("advertised")
        self.clock.advance(SOON)
        self.apps.clear()
        held.happen(None)
        self.assertEqual((self.homeless, self.newest().outcome), ([self.newest()], None))

    def test_a_stop_in_the_midst_leaves_nothing(self) -> None:
        for number in range(10):
            self.add(f"app{number}").origin.hold("advertised")
        self.add("idle")
        self.reconcile.start()
        self.reconcile.look()
        self.clock.advance(SOON)
        self.result(self.reconcile.stop())
        self.reconcile.look()
        self.reconcile.changed()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(sum(len(app.origin.asked) for app in self.apps), 4)
        self.assertEqual(self.faults(), 0)

    def test_a_stop_waits_for_what_takes_its_time_to_end(self) -> None:
        blog = self.add()
        over: Deferred[None] = Deferred()
        ending: Deferred[None] = Deferred()

        async def advertised(run: CommandRunner, patterns: Collection[str]) -> Mapping[str, str]:
            try:
                await over
            finally:
                await ending
            return {}

        self.patch(blog.checkout, "advertised", advertised)
        self.reconcile.start()
        self.clock.advance(SOON)
        stopping = Deferred.fromCoroutine(self.reconcile.stop())
        self.assertNoResult(stopping)
        ending.callback(None)
        self.successResultOf(stopping)
        self.assertEqual((self.faults(), self.clock.getDelayedCalls()), (0, []))

    def test_a_stop_begins_no_other_look(self) -> None:
        apps = [self.add(f"app{number}") for number in range(10)]
        asked = 0

        async def advertised(run: CommandRunner, patterns: Collection[str]) -> Mapping[str, str]:
            nonlocal asked
            asked += 1
            with contextlib.suppress(CancelledError):  # it had the answer already
                await Deferred[None]()
            return {}

        for app in apps:
            self.patch(app.checkout, "advertised", advertised)
        self.reconcile.start()
        self.clock.advance(SOON)
        self.result(self.reconcile.stop())
        self.assertEqual((asked, self.clock.getDelayedCalls()), (4, []))


class WhatIsDeployed(ReconcileCase):
    """What follows from what the remote has."""

    def setUp(self) -> None:
        super().setUp()
        self.blog = self.add()
        self.reconcile.start()
        self.clock.advance(SOON)

    def look(self) -> None:
        """The next look."""
        self.pass_by(POLL)

    def test_a_branch_that_has_moved_without_a_hook_is_deployed_and_reported(self) -> None:
        self.blog.origin.push("b")
        self.look()
        self.assertEqual(self.blog.serves, "b")
        newest = self.newest()
        self.assertEqual((newest.trigger, newest.outcome), (Trigger.POLL, Outcome.DEPLOYED))
        self.assertEqual(newest.reason, "branch moved, no hook came")
        self.assertEqual(self.said(LogLevel.warn), ["blog: branch moved, no hook came: main is at bbbbbbb"])

    def test_one_whose_hook_came_in_vain_is_deployed_and_the_hook_is_not_blamed(self) -> None:
        self.told("b")
        self.blog.checkout.failing["fetch"] = StepFailed("no route to host")
        self.assertEqual(self.deploy(self.blog, "b").outcome, Outcome.FAILED)
        self.blog.checkout.failing.clear()
        self.look()
        self.assertEqual(self.blog.serves, "b")
        self.assertEqual(self.newest().reason, "branch moved, and what its hook led to did not deploy it")

    def test_what_runs_is_not_deployed_again(self) -> None:
        for _ in range(5):
            self.look()
        self.assertEqual((self.made(), self.said(LogLevel.warn, LogLevel.info)), (0, []))

    def test_an_app_without_a_release_is_deployed(self) -> None:
        self.apps.append(AppAtWork(self.clock, self.journal, Origin("shop"), "shop"))
        self.reconcile.changed()
        self.look()
        self.assertEqual(self.apps[-1].serves, "a")

    def test_a_branch_that_was_pushed_back_is_deployed(self) -> None:
        """P54: it is the tip, though it is behind what was deployed."""
        self.deploy(self.blog, "b")
        self.blog.origin.push("a")
        self.look()
        self.assertEqual(self.blog.serves, "a")

    def test_a_branch_that_goes_back_and_forth_is_followed(self) -> None:
        for _ in range(4):
            self.blog.origin.push("b")
            self.look()
            self.assertEqual(self.blog.serves, "b")
            self.look()
            self.deploy(self.blog, "a")

    def test_a_late_delivery_brings_nothing_older(self) -> None:
        """P54."""
        self.deploy(self.blog, "b")
        self.told("a")
        self.deploy(self.blog)
        self.look()
        self.assertEqual((self.blog.serves, self.made()), ("b", 0))

    def test_what_the_lane_holds_is_left_to_it(self) -> None:
        held = self.blog.server.hold("swap")
        self.deploy(self.blog, "b")
        self.blog.origin.push("c")
        self.look()
        self.assertEqual(self.made(), 0)
        held.happen(None)
        self.look()
        self.assertEqual((self.made(), self.blog.serves), (1, "c"))

    def test_a_hook_that_comes_while_the_remote_is_asked_is_left_to_its_lane(self) -> None:
        asking, swapping = self.blog.origin.hold("advertised"), self.blog.server.hold("swap")
        self.look()
        self.deploy(self.blog, "b")
        asking.happen(None)
        self.assertEqual(self.made(), 0)
        swapping.happen(None)

    def test_a_pinned_app_is_left_alone_until_it_is_unpinned(self) -> None:
        self.result(self.journal.steer("blog", Steering(pinned=True)))
        self.blog.origin.push("b")
        self.look()
        self.assertEqual((self.made(), self.blog.serves), (0, "a"))
        self.result(self.journal.steer("blog", Steering()))
        self.look()
        self.assertEqual((self.made(), self.blog.serves), (1, "b"))

    def test_what_was_cancelled_is_not_deployed_before_that_can_be_written(self) -> None:
        """P84: the journal takes a new deployment before it is asked again to take the end of the old one."""
        self.blog.server.hold("swap")
        deployment = self.deploy(self.blog, "b")
        self.journal.fail_with = JournalUnavailable("the disk is full")
        self.assertTrue(self.blog.lane.cancel("somebody cancelled it", deployment.id))
        self.pass_by(0)
        self.journal.fail_with = None
        self.reconcile.look()
        self.pass_by(SOON)
        self.assertEqual((self.made(), self.written(deployment).outcome), (0, None))
        self.clock.pump([FIRST_PAUSE, FIRST_PAUSE])
        self.assertEqual((self.made(), self.written(deployment).outcome), (0, Outcome.CANCELLED))
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_for_a_paused_app_one_waits(self) -> None:
        self.result(self.journal.steer("blog", Steering(paused=True)))
        self.blog.lane.pause()
        self.blog.origin.push("b")
        for _ in range(3):
            self.look()
        self.assertEqual((self.made(), self.blog.serves), (1, "a"))
        self.result(self.journal.steer("blog", Steering()))
        self.blog.lane.unpause()
        self.clock.advance(0)
        self.assertEqual(self.blog.serves, "b")

    def test_a_branch_that_has_gone_is_said_once_until_it_was_there_again(self) -> None:
        main = self.blog.origin.refs.pop("refs/heads/main")
        for _ in range(3):
            self.look()
        gone = "blog: the remote has no such branch"
        self.assertEqual((self.said(LogLevel.warn), self.made()), ([gone], 0))
        self.blog.origin.refs["refs/heads/main"] = main
        self.look()
        del self.blog.origin.refs["refs/heads/main"]
        self.look()
        self.assertEqual(self.said(LogLevel.warn), [gone, gone])

    def test_apps_of_one_remote_are_judged_each_for_itself(self) -> None:
        beta = self.add("beta", self.blog.origin, branch="next")
        self.reconcile.changed()
        del self.blog.origin.refs["refs/heads/main"]
        self.blog.origin.push("b", "next")
        self.look()
        self.assertEqual((self.blog.serves, beta.serves), ("a", "b"))

    def test_a_missing_hook_is_told_of_a_tag_by_its_pattern(self) -> None:
        tagged = AppConfig(name="blog", hook="blog", tag="v*")
        self.patch(self.blog, "story", replace(self.blog.story, app=tagged))
        self.blog.origin.push("b")
        self.look()
        self.assertEqual(self.said(LogLevel.warn), ["blog: newest tag changed, no hook came: v* is at bbbbbbb"])


class WhatIsNotDeployedAgain(ReconcileCase):
    """What has come to something about the tip before is the last word about it, but for a few."""

    def setUp(self) -> None:
        super().setUp()
        self.blog = self.add()
        self.reconcile.start()
        self.clock.advance(SOON)

    def look(self, times: int = 1) -> None:
        for _ in range(times):
            self.pass_by(POLL)

    def assert_left_alone_until_it_moves(self, letter: str = "f") -> None:
        before = self.made(), self.blog.serves
        self.look(3)
        self.assertEqual((self.made(), self.blog.serves), before)
        self.blog.origin.push(letter)
        self.look()
        self.assertEqual((self.made(), self.blog.serves), (before[0] + 1, letter))

    def test_what_has_failed(self) -> None:
        self.blog.environments.failing["prepare"] = StepFailed("no such package")
        self.assertEqual(self.deploy(self.blog, "b").outcome, Outcome.FAILED)
        self.blog.environments.failing.clear()
        self.assert_left_alone_until_it_moves()

    def test_what_has_failed_on_probation(self) -> None:
        self.blog.server.failing["swap"] = ProbationFailed("three answers of 500")
        self.assertEqual(self.deploy(self.blog, "b").outcome, Outcome.ROLLED_BACK)
        self.blog.server.failing.clear()
        self.assert_left_alone_until_it_moves()

    def test_what_a_person_has_put_back(self) -> None:
        self.deploy(self.blog, "b")
        self.assertEqual(self.deploy(self.blog, trigger=Trigger.ROLLBACK).outcome, Outcome.DEPLOYED)
        self.assertEqual(self.blog.serves, "a")
        self.assert_left_alone_until_it_moves()

    def test_what_was_cancelled(self) -> None:
        self.blog.server.hold("swap")
        deployment = self.deploy(self.blog, "b")
        self.blog.lane.cancel("somebody cancelled it", deployment.id)
        self.assertEqual(self.written(deployment).outcome, Outcome.CANCELLED)
        self.blog.server.waiting.clear()
        self.assert_left_alone_until_it_moves()

    def test_what_has_failed_with_local_commits_on_top(self) -> None:
        """In place: what was deployed has another id than what the remote has."""
        self.blog.checkout.local_commits = True
        self.blog.environments.failing["prepare"] = StepFailed("step 'make' failed: exit 2")
        self.assertEqual(self.deploy(self.blog, "b").revision, f"{'b' * 39}0")
        self.blog.environments.failing.clear()
        self.assert_left_alone_until_it_moves()

    def test_what_a_person_has_put_back_with_local_commits_on_top(self) -> None:
        self.blog.checkout.local_commits = True
        self.deploy(self.blog, "b")
        self.deploy(self.blog, trigger=Trigger.ROLLBACK)
        self.assertEqual(self.blog.serves, "a")
        self.assert_left_alone_until_it_moves()

    def test_what_hookdeploy_has_given_up(self) -> None:
        deployment = self.deploy_half("b")
        self.result(self.journal.finish(deployment.id, Outcome.INTERRUPTED, 0.0, reason="hookdeploy stopped 3 times"))
        self.assert_left_alone_until_it_moves()

    def deploy_half(self, letter: str) -> Deployment:
        self.blog.origin.push(letter)
        deployment = self.result(self.journal.enqueue("blog", Trigger.PUSH))
        self.result(self.journal.describe(deployment.id, commit=commit(letter), previous=None, release=None))
        return deployment

    def test_what_was_cancelled_while_it_waited_is_taken_for_the_tip(self) -> None:
        deployment = self.cancelled_while_it_waited(Trigger.PUSH)
        self.look()
        self.assertEqual(self.written(deployment).revision, commit("b").revision)
        self.assert_left_alone_until_it_moves()

    def test_what_was_cancelled_while_it_waited_for_another_commit_is_not_taken_for_the_tip(self) -> None:
        for trigger in (Trigger.MANUAL, Trigger.ROLLBACK):
            deployment = self.cancelled_while_it_waited(trigger, "1-ccccccc")
            self.look()
            self.assertIsNone(self.written(deployment).revision)
            self.assertEqual(self.blog.serves, "b")

    def cancelled_while_it_waited(self, trigger: Trigger, wanted: str | None = None) -> Deployment:
        self.deploy(self.blog, "a", Trigger.MANUAL)
        deployment = self.result(self.journal.enqueue("blog", trigger, wanted))
        self.result(self.journal.finish(deployment.id, Outcome.CANCELLED, 0.0))
        self.told("b")
        self.blog.origin.push("b")
        return deployment

    def test_nor_for_a_push_that_no_hook_has_told_of_since(self) -> None:
        self.cancelled_while_it_waited(Trigger.PUSH)
        self.blog.origin.push("c")
        self.look()
        self.assertEqual(self.blog.serves, "c")

    def test_what_a_person_has_named_stays_until_the_branch_moves_on(self) -> None:
        self.deploy(self.blog, "b")
        self.deploy(self.blog, trigger=Trigger.MANUAL, wanted=commit("a").revision)
        self.assertEqual(self.blog.serves, "a")
        self.assert_left_alone_until_it_moves()

    def test_also_if_the_tip_had_found_no_room_before_and_would_now(self) -> None:
        self.deploy(self.blog, "b")
        self.blog.environments.failing["prepare"] = NoRoom("the disk is full")
        self.assertTrue(self.deploy(self.blog, "c").transient)
        self.blog.environments.failing.clear()
        self.deploy(self.blog, trigger=Trigger.MANUAL, wanted=commit("a").revision)
        self.look()
        self.assertEqual((self.blog.serves, self.made()), ("a", 0))

    def test_but_a_tip_that_a_person_has_named_and_that_found_no_room_is_tried_again(self) -> None:
        self.blog.environments.failing["prepare"] = NoRoom("the disk is full")
        self.blog.origin.push("b")
        self.assertTrue(self.deploy(self.blog, trigger=Trigger.MANUAL, wanted=commit("b").revision).transient)
        self.blog.environments.failing.clear()
        self.look()
        self.assertEqual((self.blog.serves, self.made()), ("b", 1))

    def test_nor_is_the_tip_deployed_when_a_person_goes_back_from_what_he_has_named(self) -> None:
        self.deploy(self.blog, "b")
        self.deploy(self.blog, "c")
        self.deploy(self.blog, trigger=Trigger.MANUAL, wanted=commit("b").revision)
        self.deploy(self.blog, trigger=Trigger.ROLLBACK, wanted=self.blog.checkout.have_served[0].release)
        self.assertEqual(self.blog.serves, "a")
        self.assert_left_alone_until_it_moves()

    def test_but_what_is_pushed_back_after_a_rollback_is_deployed(self) -> None:
        self.deploy(self.blog, "b")
        self.deploy(self.blog, "c")
        self.deploy(self.blog, trigger=Trigger.ROLLBACK, wanted=self.blog.checkout.have_served[1].release)
        self.blog.origin.push("a")
        self.look()
        self.assertEqual(self.blog.serves, "a")

    def test_but_what_could_not_be_fetched_is_tried_again_ever_less_often(self) -> None:
        self.blog.checkout.failing["fetch"] = StepFailed("permission denied")
        self.blog.origin.push("b")
        tries = []
        for number in range(60):
            before = self.made()
            self.look()
            if self.made() > before:
                tries.append(number)
        pauses = [later - earlier for earlier, later in pairwise(tries)]
        self.assertEqual(pauses, [1, 2, 4, 8, 12, 12, 12])
        self.assertEqual(12 * POLL, LONGEST_WAIT)
        self.blog.checkout.failing.clear()
        self.look(12)
        self.assertEqual(self.blog.serves, "b")

    def test_but_a_newer_commit_is_tried_at_once(self) -> None:
        self.blog.checkout.failing["fetch"] = StepFailed("permission denied")
        self.blog.origin.push("b")
        self.look(10)
        self.blog.checkout.failing.clear()
        self.blog.origin.push("c")
        self.look()
        self.assertEqual(self.blog.serves, "c")

    def test_but_what_failed_for_a_full_disk_is_tried_again_when_there_is_room(self) -> None:
        """P64."""
        self.blog.environments.failing["prepare"] = NoRoom("the disk is full")
        self.blog.has_room = False
        for failed in (self.deploy_in_little_room("b"), self.deploy(self.blog, "c")):
            self.assertTrue(failed.transient)
            self.look(3)
            self.assertEqual((self.made(), self.blog.serves), (0, "a"))
        self.blog.environments.failing.clear()
        self.blog.has_room = True
        self.look()
        self.assertEqual((self.made(), self.blog.serves), (1, "c"))

    def deploy_in_little_room(self, letter: str) -> Deployment:
        """It has room for the fetch, and none for the build."""
        self.blog.has_room = True
        failed = self.deploy(self.blog, letter)
        self.blog.has_room = False
        self.assertEqual(failed.revision, commit(letter).revision)
        return failed


class WhatWasSpared(ReconcileCase):
    """A tip that changes nothing of the app is left alone as long as what runs, and what the app is about, stay so."""

    def setUp(self) -> None:
        super().setUp()
        self.blog = self.add()
        self.about("blog/**")
        self.reconcile.start()
        self.clock.advance(SOON)
        self.blog.checkout.untouched = True

    def about(self, *paths: str) -> None:
        self.blog.story = replace(self.blog.story, app=replace(self.blog.story.app, paths=paths))
        self.blog.lane.configure(self.blog.story, DeferredLock())

    def look(self, times: int = 1) -> None:
        for _ in range(times):
            self.pass_by(POLL)

    def spare(self, letter: str) -> None:
        self.assertEqual(self.deploy(self.blog, letter).outcome, Outcome.UNCHANGED)

    def fetches(self) -> int:
        return self.blog.checkout.calls.count("fetch")

    def assert_left_alone(self) -> None:
        before = self.made(), self.blog.serves, self.fetches()
        self.look(5)
        self.assertEqual((self.made(), self.blog.serves, self.fetches()), before)

    def test_what_a_push_has_found_is_not_looked_into_again(self) -> None:
        self.spare("b")
        self.assert_left_alone()
        self.assertEqual(self.said(LogLevel.warn), [])

    def test_what_no_hook_has_told_is_looked_into_once(self) -> None:
        self.blog.origin.push("b")
        self.look()
        self.assertEqual((self.made(), self.newest().outcome), (1, Outcome.UNCHANGED))
        self.assert_left_alone()

    def test_the_next_that_changes_something_is_deployed(self) -> None:
        self.spare("b")
        self.blog.checkout.untouched = False
        self.blog.origin.push("c")
        self.look()
        self.assertEqual(self.blog.serves, "c")

    def test_a_new_process_leaves_it_alone_too(self) -> None:
        self.spare("b")
        self.result(self.reconcile.stop())
        self.reconcile = self.looking()
        self.reconcile.start()
        self.pass_by(SOON)
        self.assert_left_alone()
        self.assertEqual(self.made(), 0)

    def test_an_app_that_is_about_something_else_now_has_it_looked_into(self) -> None:
        self.spare("b")
        self.about("blog/**", "lib/**")
        self.blog.checkout.untouched = False
        self.look()
        self.assertEqual(self.blog.serves, "b")

    def test_and_one_that_is_about_less_or_everything_too(self) -> None:
        for letter, paths in (("b", ("blog",)), ("c", ())):
            self.about("blog", "lib")
            self.blog.checkout.untouched = True
            self.spare(letter)
            self.about(*paths)
            self.blog.checkout.untouched = False
            self.look()
            self.assertEqual(self.blog.serves, letter)

    def test_one_that_is_spared_again_for_another_reason_is_left_alone_again(self) -> None:
        self.spare("b")
        self.about("lib/**")
        self.look()
        self.assertEqual((self.made(), self.newest().outcome), (1, Outcome.UNCHANGED))
        self.assert_left_alone()

    def test_a_commit_that_asks_for_it_is_left_alone_whatever_the_app_is_about(self) -> None:
        self.blog.checkout.untouched = False
        skipping = replace(commit("b"), skips="[skip deploy]")
        self.patch(self.blog.checkout, "fetch", self.giving(skipping))
        self.spare("b")
        self.about("lib/**")
        self.look(3)
        self.assertEqual((self.made(), self.blog.serves), (0, "a"))

    def giving(self, tip: Commit) -> Callable[..., Coroutine[Any, Any, Commit]]:
        async def fetch(run: CommandRunner, revision: str | None = None) -> Commit:
            return tip

        return fetch

    def test_what_runs_otherwise_since_has_it_looked_into(self) -> None:
        """In place a person may have moved the clone."""
        self.spare("b")
        assert self.blog.checkout.served is not None
        self.blog.checkout.served = replace(self.blog.checkout.served, commit=commit("c"))
        self.look()
        self.assertEqual(self.blog.serves, "b")

    def test_a_person_who_goes_back_below_it_stays_there(self) -> None:
        """The tip has what was put back, and changes nothing of it; nobody has pushed since."""
        self.blog.checkout.untouched = False
        self.deploy(self.blog, "b")
        self.blog.checkout.untouched = True
        self.spare("c")
        self.blog.checkout.untouched = False
        self.assertEqual(self.deploy(self.blog, trigger=Trigger.ROLLBACK).outcome, Outcome.DEPLOYED)
        self.assertEqual(self.blog.serves, "a")
        self.assert_left_alone()
        self.blog.origin.push("d")
        self.look()
        self.assertEqual(self.blog.serves, "d")

    def test_a_person_who_names_another_commit_keeps_it(self) -> None:
        self.spare("b")
        self.blog.checkout.untouched = False
        self.deploy(self.blog, trigger=Trigger.MANUAL, wanted=commit("c").revision)
        self.assertEqual(self.blog.serves, "c")
        self.assert_left_alone()

    def test_a_tip_that_was_found_while_the_app_was_pinned_is_looked_into(self) -> None:
        self.blog.checkout.untouched = False
        self.result(self.journal.steer("blog", Steering(pinned=True)))
        self.assertEqual(self.deploy(self.blog, "b").outcome, Outcome.UNCHANGED)
        self.look()
        self.assertEqual(self.made(), 0)
        self.result(self.journal.steer("blog", Steering(pinned=False)))
        self.look()
        self.assertEqual(self.blog.serves, "b")

    def test_what_is_forced_back_to_it_is_what_was_found(self) -> None:
        self.spare("b")
        self.spare("c")
        self.blog.origin.push("b")
        self.assert_left_alone()

    def test_what_is_forced_back_to_it_after_something_else_ran_is_looked_into(self) -> None:
        self.spare("b")
        self.blog.checkout.untouched = False
        self.assertEqual(self.deploy(self.blog, "c").outcome, Outcome.DEPLOYED)
        self.blog.origin.push("b")
        self.look()
        self.assertEqual(self.blog.serves, "b")

    def test_what_a_person_had_put_there_before_something_else_ran_is_no_reason_to_leave_it(self) -> None:
        self.spare("b")
        self.blog.checkout.untouched = False
        self.deploy(self.blog, trigger=Trigger.MANUAL, wanted=commit("c").revision)
        self.assertEqual(self.deploy(self.blog, "d").outcome, Outcome.DEPLOYED)
        self.blog.origin.push("b")
        self.look()
        self.assertEqual(self.blog.serves, "b")

    def test_pushes_that_came_at_once_are_spared_as_one(self) -> None:
        held = self.blog.checkout.hold("fetch")
        self.deploy(self.blog, "b")
        waiting = [self.deploy(self.blog, letter) for letter in ("c", "d")]
        del self.blog.checkout.waiting["fetch"]
        held.happen(None)
        self.clock.advance(0)
        self.assertEqual([self.written(each).outcome for each in waiting], [Outcome.SUPERSEDED, Outcome.UNCHANGED])
        self.assert_left_alone()
        self.assertEqual(self.made(), 0)

    def test_a_server_that_is_down_is_no_reason_to_try_it_at_every_look(self) -> None:
        """What comes next is deployed; see the deployment's own rule."""
        self.spare("b")
        self.blog.server.state = "down"
        self.assert_left_alone()


class WhatGoesWrong(ReconcileCase):
    """Said once, and tried again."""

    def test_a_remote_that_cannot_be_asked_is_said_once_and_so_is_its_answer(self) -> None:
        blog = self.add()
        demo = self.add("demo", blog.origin)
        blog.origin.failing["advertised"] = StepFailed("git ls-remote failed", tail="password hunter2 is wrong")
        self.reconcile.start()
        self.clock.pump([SOON, POLL, POLL])
        url = "https://example.com/blog.git"
        says = f"blog, demo: {url}: git ls-remote failed\npassword *** is wrong"
        self.assertEqual(self.said(LogLevel.warn, LogLevel.info), [says])
        blog.origin.failing.clear()
        demo.origin.push("b")
        self.clock.pump([POLL, 0, POLL])
        answers = f"blog, demo: {url} answers again"
        self.assertEqual(self.said(LogLevel.info), [answers])
        self.assertEqual((blog.serves, demo.serves), ("b", "b"))

    def test_a_tree_that_cannot_be_looked_at_is_said_once(self) -> None:
        blog = self.add()

        async def has(run: CommandRunner, revision: str, at: str | None = None) -> bool:
            raise StepFailed("not a git repository")

        self.patch(blog.checkout, "has", has)
        self.reconcile.start()
        self.clock.pump([SOON, POLL, POLL])
        self.assertEqual(self.said(LogLevel.warn), ["blog: not a git repository"])

    def test_a_journal_that_fails_in_the_midst_is_asked_again_at_the_next_look(self) -> None:
        blog = self.add()
        blog.origin.push("b")
        self.journal.fail_with = JournalUnavailable("the disk is full")
        self.reconcile.start()
        self.pass_by(SOON)
        self.assertEqual((self.made(), self.faults()), (0, 0))
        self.journal.fail_with = None
        self.pass_by(POLL)
        self.assertEqual(blog.serves, "b")

    def test_a_fault_in_asking_stops_no_other_look(self) -> None:
        blog, shop = self.add(), self.add("shop")
        blog.origin.failing["advertised"] = ZeroDivisionError()
        self.reconcile.start()
        shop.origin.push("b")
        self.pass_by(SOON)
        self.pass_by(POLL)
        self.assertEqual((shop.serves, self.faults()), ("b", 2))
        blog.origin.failing.clear()
        blog.origin.push("b")
        self.pass_by(POLL)
        self.assertEqual(blog.serves, "b")

    def test_a_fault_in_judging_one_app_stops_no_other_of_the_remote(self) -> None:
        blog = self.add()
        demo = self.add("demo", blog.origin)

        def tip_of(advertised: Mapping[str, str]) -> str | None:
            raise ZeroDivisionError

        self.patch(blog.checkout, "tip_of", tip_of)
        blog.origin.push("b")
        self.reconcile.start()
        self.pass_by(SOON)
        self.assertEqual((demo.serves, self.faults()), ("b", 1))

    def test_a_wanted_look_with_a_fault_is_made_again(self) -> None:
        blog = self.add(poll=0.0)
        blog.origin.failing["advertised"] = ZeroDivisionError()
        self.reconcile.start()
        self.reconcile.look()
        self.clock.advance(SOON)
        self.clock.advance(FIRST_PAUSE)
        self.assertEqual(len(blog.origin.asked), 2)


class WhateverHappens(ReconcileCase):
    """Sooner or later the tip is what runs."""

    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("push"), st.sampled_from("bcde")),
                st.tuples(st.just("push and hook"), st.sampled_from("bcde")),
                st.tuples(st.sampled_from(["late hook", "remote down", "journal down", "no room", "fetch fails"])),
                st.tuples(st.sampled_from(["all well", "missed", "time", "pause", "resume", "reload"])),
            ),
            max_size=25,
        )
    )
    def test_the_tip_runs_in_the_end_and_never_two_looks_at_once(self, events: list[tuple[str, ...]]) -> None:
        """P54, P56: lost hooks, late hooks, forced pushes, a remote, a disk and a journal that fail for a while."""
        self.setUp()
        blog = self.add()
        self.reconcile.start()
        for event in events:
            self.happen(blog, *event)
            self.pass_by(1.0)
        self.happen(blog, "all well")
        self.happen(blog, "resume")
        self.reconcile.look()
        for _ in range(30):
            self.pass_by(POLL)
        self.assertEqual(blog.checkout.origin.refs["refs/heads/main"], commit(blog.serves or "").revision)
        self.assertEqual((self.faults(), self.result(self.journal.unfinished())), (0, []))
        self.result(self.reconcile.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def happen(self, blog: AppAtWork, event: str, letter: str = "") -> None:
        if letter:
            blog.origin.push(letter)
        happenings: dict[str, Callable[[], None]] = {
            "push": lambda: None,
            "push and hook": lambda: self.hook(blog),
            "late hook": lambda: self.hook(blog),
            "remote down": lambda: blog.origin.failing.update(advertised=StepFailed("no route to host")),
            "fetch fails": lambda: blog.checkout.failing.update(fetch=StepFailed("no route to host")),
            "journal down": lambda: setattr(self.journal, "fail_with", JournalUnavailable("the disk is full")),
            "no room": lambda: setattr(blog, "has_room", False),
            "all well": lambda: self.mend(blog),
            "missed": lambda: self.reconcile.look(["blog"]),
            "time": lambda: self.pass_by(POLL),
            "pause": blog.lane.pause,
            "resume": blog.lane.unpause,
            "reload": self.reconcile.changed,
        }
        happenings[event]()

    def mend(self, blog: AppAtWork) -> None:
        blog.origin.failing.clear()
        blog.checkout.failing.clear()
        self.journal.fail_with, blog.has_room = None, True

    def hook(self, blog: AppAtWork) -> None:
        if self.journal.fail_with is None:
            self.deploy(blog)
