"""Whose turn it is: one runs, one waits, the newest wins, and no lane ever jams."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.task import Clock
from twisted.logger import LogEvent, Logger, LogLevel
from twisted.trial.unittest import SynchronousTestCase

from tests.drivers import HeardEvents, MemoryCheckout, MemoryEnvironments, MemoryLog, MemoryRunner, MemoryServer, commit
from tests.fakes import MemoryJournal
from twisted_hook import lanes
from twisted_hook.commands import Ambient
from twisted_hook.config import AppConfig, StepConfig
from twisted_hook.deploy import Deploying
from twisted_hook.lanes import JOURNAL_PAUSE, MOST_ATTEMPTS, Lane
from twisted_hook.model import (
    Deployment,
    Environment,
    JournalUnavailable,
    Launch,
    NoRoom,
    Outcome,
    Phase,
    ProbationFailed,
    Steering,
    StepFailed,
    Tree,
    Trigger,
)
from twisted_hook.story import Story

T = TypeVar("T")


class AppAtWork:
    """A lane over memory drivers."""

    def __init__(self, clock: Clock, journal: MemoryJournal, lock: DeferredLock, name: str = "blog") -> None:
        self.checkout = MemoryCheckout(commit("a"))
        self.server = MemoryServer()
        self.environments = MemoryEnvironments()
        self.journal = journal
        self.story = Story(
            app=AppConfig(name=name, hook=name, wsgi="wsgi:application", probation=0.0),
            journal=journal,
            runner=MemoryRunner(),
            checkout=self.checkout,
            environments=self.environments,
            server=self.server,
            open_log=lambda _: MemoryLog(),
            declared=dict,
            ambient=Ambient("/usr/bin", "/", "C", None, {}),
            now=clock.seconds,
            shown=lambda text: text,
        )
        self.lane = Lane(clock, story=self.story, lock=lock, journal=journal, now=clock.seconds)


class LaneCase(SynchronousTestCase):
    """One lane, with a new tip for every fetch."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.journal = MemoryJournal()
        self.lock = DeferredLock()
        heard = HeardEvents()
        self.events = heard.events
        self.patch(Lane, "_log", Logger(observer=heard))
        self.patch(Deploying, "_logger", Logger(observer=heard))
        self.blog = AppAtWork(self.clock, self.journal, self.lock)
        self.lane = self.blog.lane

    def result(self, work: Coroutine[Any, Any, T]) -> T:
        return self.successResultOf(Deferred.fromCoroutine(work))

    def queued(self, app: str = "blog") -> Deployment:
        return self.result(self.journal.enqueue(app, Trigger.PUSH))

    def submit(self, lane: Lane | None = None) -> Deployment:
        """A new deployment in the lane."""
        deployment = self.queued()
        (lane or self.lane).submit(deployment)
        return deployment

    def turn(self) -> None:
        """A turn of the reactor."""
        self.clock.advance(0)

    def written(self, deployment: Deployment) -> Deployment:
        now = self.result(self.journal.deployment(deployment.id))
        assert now is not None
        return now

    def outcome(self, deployment: Deployment) -> Outcome | None:
        return self.written(deployment).outcome

    def faults(self) -> list[LogEvent]:
        return [event for event in self.events if event["log_level"] is LogLevel.critical]


class OneRunsAndOneWaits(LaneCase):
    """The lane of one app."""

    def test_nothing_is_done_before_whoever_submits_has_answered(self) -> None:
        self.submit()
        self.assertEqual(self.blog.checkout.calls, [])
        self.turn()
        self.assertEqual(self.blog.checkout.calls[0], "fetch")

    def test_what_is_submitted_is_deployed(self) -> None:
        deployment = self.submit()
        self.turn()
        self.assertEqual(self.outcome(deployment), Outcome.DEPLOYED)
        self.assertIsNone(self.lane.running)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_second_waits_for_the_first(self) -> None:
        held = self.blog.server.hold("swap")
        first = self.submit()
        self.turn()
        second = self.submit()
        self.turn()
        self.assertEqual((self.lane.running, self.lane.waiting), (first, second))
        self.blog.checkout.tip = commit("b")
        held.happen(None)
        self.assertEqual((self.outcome(first), self.outcome(second)), (Outcome.DEPLOYED, Outcome.DEPLOYED))
        self.assertEqual((self.lane.running, self.lane.waiting), (None, None))

    def test_the_newest_takes_the_place_of_the_one_that_waits(self) -> None:
        """P55."""
        held = self.blog.server.hold("swap")
        self.submit()
        self.turn()
        second, third = self.submit(), self.submit()
        self.assertEqual(self.outcome(second), Outcome.SUPERSEDED)
        self.assertEqual(self.written(second).superseded_by, third.id)
        held.happen(None)
        self.assertEqual(self.outcome(third), Outcome.UNCHANGED)

    def test_five_thousand_while_one_runs_are_one_more_deployment(self) -> None:
        """P55."""
        held = self.blog.server.hold("swap")
        self.submit()
        self.turn()
        many = [self.submit() for _ in range(5_000)]
        self.blog.checkout.tip = commit("b")
        held.happen(None)
        self.assertEqual(len(self.blog.server.launches), 2)
        self.assertEqual(self.outcome(many[-1]), Outcome.DEPLOYED)
        self.assertEqual({self.outcome(one) for one in many[:-1]}, {Outcome.SUPERSEDED})
        self.assertEqual({self.written(one).superseded_by for one in many[:-1]}, {many[-1].id})

    def test_deployments_that_end_at_once_neither_recurse_nor_jam(self) -> None:
        done = []
        for _ in range(2_000):
            done.append(self.submit())
            self.turn()
        self.assertEqual({self.outcome(one) for one in done[1:]}, {Outcome.UNCHANGED})
        self.assertFalse(self.faults())

    def test_deployments_that_bring_in_the_next_neither_recurse_nor_jam(self) -> None:
        """Each is submitted while the one before it is under way."""
        left = list(range(2_000))
        original = self.blog.checkout.fetch

        async def fetch(run: Any, revision: str | None) -> Any:
            if left:
                left.pop()
                self.submit()
            return await original(run, revision)

        self.patch(self.blog.checkout, "fetch", fetch)
        self.submit()
        self.turn()
        self.assertEqual(self.blog.checkout.calls.count("fetch"), 2_001)
        self.assertFalse(self.faults())

    def test_one_that_fails_does_not_stop_the_lane(self) -> None:
        self.blog.checkout.failing["fetch"] = StepFailed("ref gone")
        first = self.submit()
        self.turn()
        self.blog.checkout.failing.clear()
        second = self.submit()
        self.turn()
        self.assertEqual((self.outcome(first), self.outcome(second)), (Outcome.FAILED, Outcome.DEPLOYED))

    def test_a_bug_does_not_stop_the_lane(self) -> None:
        """Not even one outside of what a deployment can catch."""

        def broken(story: Story, deployment: Deployment) -> Deploying:
            raise ZeroDivisionError("division by zero")

        patched = self.patch(lanes, "Deploying", broken)
        self.submit()
        self.turn()
        patched.restore()
        self.assertEqual(len(self.faults()), 1)
        self.assertIsNone(self.lane.running)
        second = self.submit()
        self.turn()
        self.assertEqual(self.outcome(second), Outcome.DEPLOYED)

    def test_a_journal_that_cannot_write_a_superseded_one_is_no_bug(self) -> None:
        self.submit()
        second = self.queued()
        self.journal.fail_with = JournalUnavailable("the disk is full")
        self.lane.submit(second)
        self.assertFalse(self.faults())
        self.journal.fail_with = None
        self.turn()
        self.assertEqual(self.outcome(second), Outcome.DEPLOYED)

    def test_a_superseded_one_is_written_when_the_journal_is_well_again(self) -> None:
        """Nobody else would: it stayed without an end until the next start."""
        first, second = self.submit(), self.queued()
        self.journal.fail_with = JournalUnavailable("the disk is full")
        self.lane.submit(second)
        self.clock.advance(JOURNAL_PAUSE)
        self.assertIsNone(self.outcome(first))
        self.journal.fail_with = None
        self.clock.pump([JOURNAL_PAUSE] * 3)
        self.assertEqual(self.outcome(first), Outcome.SUPERSEDED)
        self.assertEqual(self.written(first).superseded_by, second.id)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_stop_leaves_what_could_not_be_written_to_the_next_start(self) -> None:
        self.submit()
        second = self.queued()
        self.journal.fail_with = JournalUnavailable("the disk is full")
        self.lane.submit(second)
        self.result(self.lane.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_runs_and_was_lost_with_a_damaged_journal_is_not_tried_for_ever(self) -> None:
        held = self.blog.server.hold("swap")
        self.submit()
        self.turn()
        self.journal._deployments.clear()
        held.happen(None)
        self.assertEqual((self.lane.unfinished, self.clock.getDelayedCalls()), ([], []))
        self.assertFalse(self.faults())

    def test_what_waits_and_was_lost_with_a_damaged_journal_is_let_go_of(self) -> None:
        held = self.blog.server.hold("swap")
        self.submit()
        self.turn()
        self.submit()
        self.submit()
        self.journal._deployments.clear()
        newest = self.submit()
        held.happen(None)
        self.assertEqual((self.lane.unfinished, self.clock.getDelayedCalls()), ([], []))
        self.assertIsNotNone(self.outcome(newest))
        self.assertFalse(self.faults())


class LanesThatShare(LaneCase):
    """Three apps of one repository."""

    def setUp(self) -> None:
        super().setUp()
        self.others = [AppAtWork(self.clock, self.journal, self.lock, name) for name in ("shop", "wiki")]
        self.all = [self.blog, *self.others]

    def fetching(self) -> list[bool]:
        return ["fetch" in one.checkout.calls for one in self.all]

    def test_one_after_the_other_uses_the_repository(self) -> None:
        held = [one.checkout.hold("take") for one in self.all]
        for one in self.all:
            self.submit(one.lane)
        self.turn()
        self.assertEqual(self.fetching(), [True, False, False])
        held[0].happen(None)
        self.assertEqual(self.fetching(), [True, True, False])
        held[1].happen(None)
        held[2].happen(None)
        self.assertEqual([one.server.state for one in self.all], ["serving"] * 3)
        self.assertFalse(self.lock.locked)

    def test_a_build_does_not_hold_the_repository(self) -> None:
        self.blog.environments.hold("prepare")
        for one in self.all:
            self.submit(one.lane)
        self.turn()
        self.assertEqual(self.fetching(), [True, True, True])
        self.assertEqual([one.server.state for one in self.all], ["down", "serving", "serving"])

    def test_what_runs_still_is_adopted_at_once_whoever_uses_the_repository(self) -> None:
        """A fetch of another app may wait for its remote for minutes."""
        environment = Environment(Path("/usr/bin/python3"))
        self.blog.server.left = left = Launch(Tree(Path("/releases/0"), commit("0"), "0"), environment, {})
        self.successResultOf(self.lock.acquire())
        self.lane.resume()
        self.turn()
        self.assertEqual((self.blog.server.launch, self.blog.server.state), (left, "serving"))
        self.assertEqual(self.blog.checkout.calls, [])
        self.lock.release()
        self.assertEqual(self.blog.checkout.calls, ["keep", "current"])

    def test_a_server_that_is_slow_to_start_keeps_no_other_app_from_being_served(self) -> None:
        self.blog.server.hold("start")
        for number, one in enumerate(self.all):
            one.checkout.served = Tree(Path("/releases/0"), commit("0"), f"{number}")
            one.lane.resume()
        self.turn()
        self.assertEqual([one.server.state for one in self.all], ["down", "serving", "serving"])

    def test_a_failure_lets_go_of_the_repository(self) -> None:
        self.blog.checkout.failing["fetch"] = ZeroDivisionError("division by zero")
        for one in self.all:
            self.submit(one.lane)
        self.turn()
        self.assertEqual([one.server.state for one in self.all], ["down", "serving", "serving"])
        self.assertFalse(self.lock.locked)

    def test_a_stop_lets_go_of_the_repository(self) -> None:
        self.blog.checkout.hold("fetch")
        for one in self.all:
            self.submit(one.lane)
        self.turn()
        self.result(self.others[0].lane.stop())
        self.result(self.blog.lane.stop())
        self.assertEqual([one.server.state for one in self.all], ["down", "down", "serving"])
        self.assertFalse(self.lock.locked)

    def test_the_newest_wins_also_while_the_repository_is_awaited(self) -> None:
        held = self.blog.checkout.hold("take")
        self.submit(self.blog.lane)
        shop = self.others[0]
        older = self.submit(shop.lane)
        self.turn()
        newer = self.submit(shop.lane)
        self.assertEqual(self.outcome(older), Outcome.SUPERSEDED)
        held.happen(None)
        self.assertEqual(self.outcome(newer), Outcome.DEPLOYED)
        self.assertEqual(shop.checkout.calls.count("fetch"), 1)

    def test_a_lane_that_is_configured_anew_while_it_waits_keeps_to_the_lock_that_it_has(self) -> None:
        held = self.blog.checkout.hold("take")
        self.submit(self.blog.lane)
        shop = self.others[0]
        self.submit(shop.lane)
        self.turn()
        moved = AppAtWork(self.clock, self.journal, DeferredLock(), "shop")
        shop.lane.configure(moved.story, DeferredLock())
        held.happen(None)
        self.assertEqual(shop.server.state, "serving")
        self.assertEqual(moved.checkout.calls, [], "the other repository was used under the lock of this one")
        self.submit(shop.lane)
        self.turn()
        self.assertEqual(moved.server.state, "serving")


class TakingUp(LaneCase):
    """What an earlier hookdeploy has not finished."""

    def attempted(self, times: int) -> Deployment:
        deployment = self.queued()
        for _ in range(times):
            deployment = self.result(self.journal.begin(deployment.id, 0.0))
        return deployment

    def test_it_is_deployed(self) -> None:
        """P83."""
        deployment = self.attempted(MOST_ATTEMPTS - 1)
        self.lane.take_up(deployment)
        self.turn()
        self.assertEqual(self.outcome(deployment), Outcome.DEPLOYED)
        self.assertEqual(self.written(deployment).attempts, MOST_ATTEMPTS)

    def test_it_is_given_up_after_too_many_attempts(self) -> None:
        deployment = self.attempted(MOST_ATTEMPTS)
        self.lane.take_up(deployment)
        self.turn()
        self.assertEqual(self.outcome(deployment), Outcome.INTERRUPTED)
        self.assertIn("stopped 3 times", self.written(deployment).reason)
        self.assertEqual(self.blog.checkout.calls, [])

    def test_of_several_the_newest_is_deployed(self) -> None:
        older, newer = self.attempted(1), self.attempted(0)
        self.lane.take_up(older)
        self.lane.take_up(newer)
        self.turn()
        self.assertEqual((self.outcome(older), self.outcome(newer)), (Outcome.SUPERSEDED, Outcome.DEPLOYED))

    def test_one_that_was_cut_off_while_it_migrated_is_interrupted_though_a_newer_one_waits(self) -> None:
        """T37: nobody would be told, and the newer one may be of the very same commit."""
        cut_off, newer = self.attempted(1), self.attempted(0)
        self.result(self.journal.describe(cut_off.id, commit=commit("a"), previous=None, release="2"))
        self.result(self.journal.advance(cut_off.id, Phase.MIGRATING, 2.0))
        self.lane.take_up(self.written(cut_off))
        self.lane.take_up(newer)
        self.turn()
        self.assertEqual((self.outcome(cut_off), self.outcome(newer)), (Outcome.INTERRUPTED, Outcome.UNCHANGED))
        self.assertIn("cut off while", self.written(cut_off).reason)
        self.assertEqual(self.blog.checkout.calls.count("take"), 0)


class HeldBack(LaneCase):
    """A person pauses an app, or gives a deployment up."""

    def setUp(self) -> None:
        super().setUp()
        self.deployed = self.submit()
        self.turn()
        self.blog.checkout.tip = commit("b")

    def asked(self, trigger: Trigger, wanted: str | None = None) -> Deployment:
        deployment = self.result(self.journal.enqueue("blog", trigger, wanted))
        self.lane.submit(deployment)
        self.turn()
        return deployment

    def test_what_arrives_waits_and_the_newest_is_deployed_when_it_is_resumed(self) -> None:
        self.lane.pause()
        first = self.submit()
        self.turn()
        second = self.submit()
        self.turn()
        self.assertEqual((self.outcome(first), self.outcome(second)), (Outcome.SUPERSEDED, None))
        self.assertEqual((self.lane.waiting, self.clock.getDelayedCalls()), (second, []))
        self.lane.unpause()
        self.turn()
        self.assertEqual(self.outcome(second), Outcome.DEPLOYED)

    def test_what_a_person_asks_for_is_deployed_all_the_same(self) -> None:
        self.lane.pause()
        self.assertEqual(self.outcome(self.asked(Trigger.MANUAL)), Outcome.DEPLOYED)
        self.assertEqual(self.outcome(self.asked(Trigger.ROLLBACK)), Outcome.DEPLOYED)

    def test_what_a_person_asks_for_is_not_lost_to_a_push_that_comes_while_it_waits(self) -> None:
        """The push has its turn afterwards: it may be the very commit that a person takes back."""
        held = self.blog.server.hold("swap")
        running = self.submit()
        self.turn()
        back = self.asked(Trigger.ROLLBACK, "1-aaaaaaa")
        earlier, pushed = self.submit(), self.submit()
        self.assertEqual((self.lane.waiting, self.outcome(earlier)), (back, Outcome.SUPERSEDED))
        self.blog.server.waiting.clear()
        held.happen(None)
        self.turn()
        self.assertEqual(self.outcome(running), Outcome.DEPLOYED)
        self.assertEqual((self.outcome(back), self.outcome(pushed)), (Outcome.DEPLOYED, Outcome.UNCHANGED))
        assert self.blog.server.launch is not None
        self.assertEqual(self.blog.server.launch.tree.release, "1-aaaaaaa")

    def test_what_a_person_asks_for_is_not_held_back_with_a_push_that_comes_while_it_waits(self) -> None:
        held = self.blog.server.hold("swap")
        self.submit()
        self.turn()
        self.lane.pause()
        asked, pushed = self.asked(Trigger.MANUAL), self.submit()
        self.assertTrue(self.lane.unfinished[1:] == [asked, pushed])
        self.blog.server.waiting.clear()
        held.happen(None)
        self.turn()
        self.assertEqual((self.outcome(asked), self.outcome(pushed)), (Outcome.DEPLOYED, None))
        self.assertEqual(self.lane.waiting, pushed)

    def test_what_is_held_back_is_not_lost_to_what_a_person_asks_for(self) -> None:
        """The newest of what has waited is deployed when the app is resumed."""
        self.lane.pause()
        pushed = self.submit()
        self.assertFalse(self.lane.is_busy)
        back = self.asked(Trigger.ROLLBACK, "1-aaaaaaa")
        self.assertEqual((self.outcome(back), self.outcome(pushed)), (Outcome.DEPLOYED, None))
        self.lane.unpause()
        self.assertTrue(self.lane.is_busy)
        self.turn()
        self.assertEqual(self.outcome(pushed), Outcome.DEPLOYED)
        self.assertFalse(self.lane.is_busy)

    def test_what_is_held_back_is_not_lost_to_the_second_thing_that_a_person_asks_for(self) -> None:
        held = self.blog.server.hold("swap")
        self.submit()
        self.turn()
        self.lane.pause()
        pushed = self.submit()
        first, second = self.asked(Trigger.ROLLBACK, "1-aaaaaaa"), self.asked(Trigger.ROLLBACK, "1-aaaaaaa")
        self.assertEqual((self.outcome(first), self.outcome(pushed)), (Outcome.SUPERSEDED, None))
        self.blog.server.waiting.clear()
        held.happen(None)
        self.turn()
        self.assertEqual((self.outcome(second), self.lane.waiting), (Outcome.DEPLOYED, pushed))

    def test_a_push_that_waits_behind_what_a_person_asks_for_can_be_given_up(self) -> None:
        self.blog.server.hold("swap")
        self.submit()
        self.turn()
        asked, pushed = self.asked(Trigger.MANUAL), self.submit()
        self.assertTrue(self.lane.cancel("somebody cancelled it", pushed.id))
        self.assertEqual((self.outcome(pushed), self.lane.waiting), (Outcome.CANCELLED, asked))
        self.assertTrue(self.lane.cancel("somebody cancelled it", asked.id))
        self.assertEqual((self.outcome(asked), self.lane.waiting), (Outcome.CANCELLED, None))

    def test_what_a_pause_holds_back_does_not_make_a_lane_busy(self) -> None:
        """Who waits for something to be deployed would wait for ever."""
        self.assertFalse(self.lane.is_busy)
        self.lane.pause()
        self.submit()
        self.turn()
        self.assertFalse(self.lane.is_busy)
        held = self.blog.server.hold("swap")
        self.lane.unpause()
        self.assertTrue(self.lane.is_busy)
        self.turn()
        self.assertTrue(self.lane.is_busy)
        held.happen(None)
        self.assertFalse(self.lane.is_busy)

    def test_a_pause_outlives_a_start(self) -> None:
        self.result(self.journal.steer("blog", Steering(paused=True)))
        waiting = self.queued()
        self.lane.take_up(waiting)
        self.lane.resume()
        self.turn()
        self.assertIsNone(self.outcome(waiting))
        self.assertEqual(self.blog.server.calls[-1], "swap")
        self.assertEqual(self.lane.waiting, waiting)

    def test_one_that_runs_is_given_up_and_the_next_one_has_its_turn(self) -> None:
        self.blog.server.hold("swap")
        running = self.submit()
        self.turn()
        waiting = self.submit()
        self.blog.server.waiting.clear()
        self.assertTrue(self.lane.cancel("somebody cancelled it", running.id))
        self.turn()
        self.assertEqual((self.outcome(running), self.outcome(waiting)), (Outcome.CANCELLED, Outcome.DEPLOYED))
        self.assertIsNone(self.lane.running)
        self.assertFalse(self.lock.locked)
        self.assertFalse(self.faults())

    def test_it_can_be_done_again_and_again(self) -> None:
        for _ in range(3):
            self.blog.checkout.hold("fetch")
            running = self.submit()
            self.turn()
            self.assertTrue(self.lane.cancel("somebody cancelled it"))
            self.turn()
            self.assertEqual(self.outcome(running), Outcome.CANCELLED)
            self.assertFalse(self.lock.locked)

    def test_one_that_waits_is_given_up(self) -> None:
        self.blog.checkout.hold("fetch")
        running = self.submit()
        self.turn()
        waiting = self.submit()
        self.assertTrue(self.lane.cancel("somebody cancelled it", waiting.id))
        self.assertEqual((self.outcome(waiting), self.lane.waiting), (Outcome.CANCELLED, None))
        self.assertIsNone(self.outcome(running))

    def test_one_that_has_ended_is_not_given_up(self) -> None:
        self.assertFalse(self.lane.cancel("somebody cancelled it", self.deployed.id))
        self.assertFalse(self.lane.cancel("somebody cancelled it"))

    def test_a_stop_while_one_is_given_up_ends_it_too(self) -> None:
        self.blog.server.hold("swap")
        running = self.submit()
        self.turn()
        self.assertTrue(self.lane.cancel("somebody cancelled it", running.id))
        self.result(self.lane.stop())
        self.assertEqual(self.outcome(running), Outcome.CANCELLED)

    def test_one_that_was_cut_off_while_it_migrated_is_interrupted(self) -> None:
        """T37."""
        cut_off = self.queued()
        self.result(self.journal.begin(cut_off.id, 1.0))
        self.result(self.journal.describe(cut_off.id, commit=commit("b"), previous=None, release="2"))
        self.result(self.journal.advance(cut_off.id, Phase.MIGRATING, 2.0))
        [unfinished] = self.result(self.journal.unfinished())
        self.lane.take_up(unfinished)
        self.lane.resume()
        self.turn()
        self.assertEqual(self.outcome(cut_off), Outcome.INTERRUPTED)
        self.assertEqual(self.blog.checkout.calls.count("take"), 1)


class StoppingWhileItMigrates(LaneCase):
    """A migration is not to be left half done."""

    def setUp(self) -> None:
        super().setUp()
        app = replace(self.blog.story.app, migrate=(StepConfig("migrate", ("manage", "migrate")),))
        runner = MemoryRunner()
        self.lane.configure(replace(self.blog.story, app=app, runner=runner), self.lock)
        self.held = runner.hold("migrate")
        self.deployment = self.submit()
        self.turn()
        self.stopping = Deferred.fromCoroutine(self.lane.stop())

    def migrated(self) -> str | None:
        kept = self.result(self.journal.deployment(self.deployment.id))
        return kept.migrated if kept else None

    def test_its_end_is_waited_for_and_nothing_is_begun_after_it(self) -> None:
        self.assertNoResult(self.stopping)
        self.held.happen(None)
        self.successResultOf(self.stopping)
        self.assertEqual((self.outcome(self.deployment), self.migrated()), (None, "a" * 40))
        self.assertEqual(self.blog.server.calls, [])

    def test_it_is_cut_off_by_a_caller_without_patience(self) -> None:
        self.stopping.cancel()
        self.failureResultOf(self.stopping, CancelledError)
        self.assertEqual((self.outcome(self.deployment), self.migrated()), (None, None))


class Resuming(LaneCase):
    """The start of hookdeploy."""

    def setUp(self) -> None:
        super().setUp()
        self.served = Tree(Path("/releases/0"), commit("0"), "0")

    def deployments(self) -> list[tuple[Trigger, Outcome | None]]:
        return [(one.trigger, one.outcome) for one in self.result(self.journal.deployments())]

    def test_the_current_tree_is_served_before_anything_is_deployed(self) -> None:
        self.blog.checkout.served = self.served
        self.submit()
        self.lane.resume()
        self.turn()
        self.assertEqual([launch.tree.commit for launch in self.blog.server.launches], [commit("0"), commit("a")])
        self.assertEqual(self.blog.server.calls, ["start", "swap"])

    def test_nothing_is_deployed_if_there_is_a_tree(self) -> None:
        self.blog.checkout.served = self.served
        self.lane.resume()
        self.turn()
        self.assertEqual(self.deployments(), [])
        self.assertEqual(self.blog.server.state, "serving")

    def test_the_tip_is_deployed_if_there_is_none(self) -> None:
        self.lane.resume()
        self.turn()
        self.assertEqual(self.deployments(), [(Trigger.START, Outcome.DEPLOYED)])

    def begin_in_place(self, *steps: StepConfig) -> None:
        """An app whose tree, which is the tip, was there before hookdeploy, with these steps."""
        self.blog.checkout.tip = self.served.commit
        self.blog.checkout.served = self.served
        app = replace(self.blog.story.app, path=Path("/srv/blog"), mode="in-place", build=steps)
        self.lane.configure(replace(self.blog.story, app=app), self.lock)
        self.lane.resume()
        self.turn()

    def test_a_clone_that_was_never_built_is_served_and_then_built(self) -> None:
        self.begin_in_place(StepConfig("collect", ("make", "static")))
        self.assertEqual(self.blog.server.calls[0], "start")
        self.assertEqual(self.deployments(), [(Trigger.START, Outcome.DEPLOYED)])
        [built] = self.result(self.journal.deployments())
        self.assertEqual([step.name for step in built.steps], ["collect"])

    def test_a_clone_that_was_built_is_not_built_again_by_a_start(self) -> None:
        self.begin_in_place(StepConfig("collect", ("make", "static")))
        self.lane.resume()
        self.turn()
        self.assertEqual(len(self.deployments()), 1)

    def test_a_clone_without_steps_is_only_served(self) -> None:
        self.begin_in_place()
        self.assertEqual(self.blog.server.state, "serving")
        self.assertEqual(self.deployments(), [])

    def test_what_waits_builds_a_clone_that_was_never_built(self) -> None:
        self.submit()
        self.begin_in_place(StepConfig("collect", ("make", "static")))
        self.assertEqual(self.deployments(), [(Trigger.PUSH, Outcome.DEPLOYED)])

    def test_what_waits_is_deployed_instead_if_there_is_none(self) -> None:
        self.submit()
        self.lane.resume()
        self.turn()
        self.assertEqual(self.deployments(), [(Trigger.PUSH, Outcome.DEPLOYED)])

    def test_what_comes_while_the_start_is_written_is_not_forgotten(self) -> None:
        original = self.journal.enqueue

        async def enqueue(app: str, trigger: Trigger) -> Deployment:
            if trigger is Trigger.START:
                self.submit()
            return await original(app, trigger)

        self.patch(self.journal, "enqueue", enqueue)
        self.lane.resume()
        self.turn()
        self.assertEqual(self.deployments(), [(Trigger.START, Outcome.DEPLOYED), (Trigger.PUSH, Outcome.SUPERSEDED)])

    def test_a_server_that_cannot_start_is_no_bug_and_what_waits_is_deployed(self) -> None:
        self.blog.checkout.served = self.served
        self.blog.environments.failing["prepare"] = StepFailed("pip install failed")
        self.lane.resume()
        self.turn()
        self.assertFalse(self.faults())
        self.assertIn("the server cannot start", str(self.events[-1]["log_format"]))
        self.blog.environments.failing.clear()
        deployment = self.submit()
        self.turn()
        self.assertEqual(self.outcome(deployment), Outcome.DEPLOYED)

    def test_a_bug_in_resuming_does_not_keep_what_waits(self) -> None:
        self.blog.checkout.served = self.served
        self.blog.server.failing["start"] = ZeroDivisionError("division by zero")
        deployment = self.submit()
        self.lane.resume()
        self.turn()
        self.assertEqual(len(self.faults()), 1)
        self.assertEqual(self.outcome(deployment), Outcome.DEPLOYED)

    def test_a_journal_that_cannot_write_the_start_is_no_bug(self) -> None:
        self.journal.fail_with = JournalUnavailable("the disk is full")
        self.lane.resume()
        self.turn()
        self.assertFalse(self.faults())
        self.assertIn("the disk is full", str(self.events[-1]["problem"]))

    def test_a_running_server_is_swapped_after_a_change_of_the_configuration(self) -> None:
        self.submit()
        self.turn()
        self.lane.configure(self.blog.story, self.lock)
        self.lane.resume()
        self.turn()
        self.assertEqual(self.blog.server.calls, ["swap", "swap"])

    def test_a_change_of_the_configuration_waits_for_what_runs(self) -> None:
        held = self.blog.server.hold("swap")
        self.submit()
        self.turn()
        self.lane.resume()
        self.turn()
        self.assertEqual(self.blog.server.calls, ["swap"])
        held.happen(None)
        self.assertEqual(self.blog.server.calls, ["swap", "swap"])


class EndsThatCannotBeWritten(LaneCase):
    """P84: what has ended while the disk was full is not done again, only written later."""

    def ends(self, deployment: Deployment) -> Outcome | None:
        """What becomes of it when the journal takes words again; meanwhile nothing else is deployed."""
        self.assertTrue(self.lane.owes_an_end)
        calls = list(self.blog.checkout.calls)
        self.clock.pump([JOURNAL_PAUSE, 2 * JOURNAL_PAUSE])
        self.assertIsNone(self.outcome(deployment))
        self.journal.fail_with = None
        self.clock.advance(4 * JOURNAL_PAUSE)
        self.turn()
        self.assertEqual((self.blog.checkout.calls, self.clock.getDelayedCalls()), (calls, []))
        self.assertFalse(self.lane.owes_an_end)
        return self.outcome(deployment)

    def test_what_serves_is_not_deployed_again(self) -> None:
        held = self.blog.server.hold("swap")
        first = self.submit()
        self.turn()
        self.journal.fail_with = JournalUnavailable("the disk is full")
        held.happen(None)
        self.assertEqual(self.ends(first), Outcome.DEPLOYED)
        self.assertEqual(self.written(first).phase, Phase.DONE)

    def test_what_a_person_has_cancelled_stays_cancelled(self) -> None:
        self.blog.server.hold("swap")
        first = self.submit()
        self.turn()
        self.journal.fail_with = JournalUnavailable("the disk is full")
        self.assertTrue(self.lane.cancel("somebody cancelled it", first.id))
        self.assertEqual(self.ends(first), Outcome.CANCELLED)
        self.assertEqual(self.written(first).reason, "somebody cancelled it")

    def test_what_was_found_wanting_on_probation_is_not_put_before_visitors_again(self) -> None:
        held = self.blog.server.hold("swap")
        self.blog.server.failing["swap"] = ProbationFailed("it keeps dying")
        first = self.submit()
        self.turn()
        self.journal.fail_with = JournalUnavailable("the disk is full")
        held.happen(None)
        self.assertEqual(self.ends(first), Outcome.ROLLED_BACK)

    def test_a_newer_one_is_deployed_meanwhile(self) -> None:
        held = self.blog.server.hold("swap")
        first = self.submit()
        self.turn()
        self.journal.fail_with = JournalUnavailable("the disk is full")
        held.happen(None)
        self.journal.fail_with = None
        self.blog.checkout.tip = commit("b")
        second = self.submit()
        self.turn()
        self.assertEqual((self.outcome(first), self.outcome(second)), (None, Outcome.DEPLOYED))
        self.clock.advance(JOURNAL_PAUSE)
        self.assertEqual(self.outcome(first), Outcome.DEPLOYED)
        self.assertEqual(len(self.blog.server.launches), 2)

    def test_what_has_filled_the_disk_says_why_it_failed_when_there_is_room(self) -> None:
        """P84: its own tree is in the way of its end, and gone a moment later."""
        self.blog.environments.failing["prepare"] = NoRoom("the disk is full")
        held = self.blog.environments.hold("prepare")
        first = self.submit()
        self.turn()
        self.journal.fail_with = JournalUnavailable("the disk is full")
        held.happen(None)
        self.assertEqual(self.ends(first), Outcome.FAILED)
        self.assertEqual((self.written(first).reason, self.written(first).transient), ("the disk is full", True))


class KeptFromTheirEnd(LaneCase):
    """P84: a deployment fails since its journal does, and that cannot be written either."""

    def setUp(self) -> None:
        super().setUp()
        self.first = self.submit()
        self.journal.fail_with = JournalUnavailable("the disk is full")
        self.turn()
        self.assertEqual(self.lane.unfinished, [self.first])

    def test_what_a_person_has_given_up_meanwhile_is_not_deployed_but_written_later(self) -> None:
        self.journal.fail_with = None
        self.blog.checkout.tip = commit("b")
        self.blog.checkout.hold("take")
        second = self.submit()
        self.turn()
        self.journal.fail_with = JournalUnavailable("the disk is full")
        self.assertTrue(self.lane.cancel("somebody cancelled it", second.id))
        self.journal.fail_with = None
        self.clock.pump([JOURNAL_PAUSE, 0.0])
        self.assertEqual(self.outcome(second), Outcome.CANCELLED)
        self.assertEqual(self.written(second).reason, "somebody cancelled it")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_is_tried_ever_less_often_until_it_can(self) -> None:
        for pause in (JOURNAL_PAUSE, 2 * JOURNAL_PAUSE, 4 * JOURNAL_PAUSE):
            [again] = self.clock.getDelayedCalls()
            self.assertEqual(again.getTime() - self.clock.seconds(), pause)
            self.clock.advance(pause)
            self.turn()
        self.journal.fail_with = None
        self.clock.advance(8 * JOURNAL_PAUSE)
        self.turn()
        self.assertEqual(self.outcome(self.first), Outcome.DEPLOYED)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertFalse(self.faults())

    def test_a_newer_one_takes_its_place(self) -> None:
        self.journal.fail_with = None
        second = self.submit()
        self.assertEqual(self.outcome(self.first), Outcome.SUPERSEDED)
        self.assertEqual(self.written(self.first).superseded_by, second.id)
        self.turn()
        self.assertEqual(self.outcome(second), Outcome.DEPLOYED)
        self.assertEqual(self.clock.getDelayedCalls(), [], "the older one would be deployed again")

    def test_an_older_one_that_waits_for_a_pause_to_end_does_not(self) -> None:
        """A person who deploys does not wait for it either."""
        self.journal.fail_with = None
        self.clock.pump([JOURNAL_PAUSE, 0.0])
        self.lane.pause()
        older = self.submit()
        by_hand = self.result(self.journal.enqueue("blog", Trigger.MANUAL))
        self.journal.fail_with = JournalUnavailable("the disk is full")
        self.lane.submit(by_hand)
        self.turn()
        self.journal.fail_with = None
        self.clock.pump([JOURNAL_PAUSE, 0.0])
        self.assertEqual(self.outcome(by_hand), Outcome.DEPLOYED)
        self.assertIsNone(self.outcome(older))
        self.assertFalse(self.faults())

    def test_one_that_waits_already_takes_its_place_too(self) -> None:
        self.journal.fail_with = None
        held = self.blog.checkout.hold("fetch")
        second = self.submit()
        self.turn()
        third = self.submit()
        original = self.journal.describe

        async def describe(*_: object, **named: object) -> None:
            self.patch(self.journal, "describe", original)
            self.journal.fail_with = JournalUnavailable("the disk is full")
            self.clock.callLater(0, setattr, self.journal, "fail_with", None)
            raise JournalUnavailable("the disk is full")

        self.patch(self.journal, "describe", describe)
        held.happen(None)
        self.clock.pump([0, JOURNAL_PAUSE, JOURNAL_PAUSE])
        self.assertEqual((self.outcome(second), self.written(second).superseded_by), (Outcome.SUPERSEDED, third.id))
        self.assertIsNotNone(self.outcome(third))

    def test_a_stop_leaves_it_to_the_next_start(self) -> None:
        self.result(self.lane.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertIsNone(self.outcome(self.first))


class Stopping(LaneCase):
    """The end of hookdeploy."""

    def test_a_lane_at_rest_stops_at_once(self) -> None:
        self.result(self.lane.stop())
        self.result(self.lane.stop())

    def test_what_has_not_begun_is_left_to_the_next_start(self) -> None:
        deployment = self.submit()
        self.result(self.lane.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertIsNone(self.outcome(deployment))
        self.assertEqual(self.written(deployment).phase, Phase.QUEUED)

    def test_what_runs_is_cancelled_and_left_to_the_next_start(self) -> None:
        """P83."""
        self.blog.environments.hold("prepare")
        running = self.submit()
        self.turn()
        waiting = self.submit()
        self.result(self.lane.stop())
        self.assertEqual((self.outcome(running), self.outcome(waiting)), (None, None))
        self.assertIsNone(self.lane.running)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertFalse(self.faults())

    def test_it_waits_until_what_runs_has_ended(self) -> None:
        """A command that is cancelled ends only when its whole family is gone."""
        gone: Deferred[None] = Deferred()
        asked: list[Deferred[None]] = []

        async def swap(launch: Launch, entered: object, **_: object) -> None:
            try:
                await Deferred(asked.append)
            finally:
                await gone

        self.patch(self.blog.server, "swap", swap)
        self.submit()
        self.turn()
        stopping = Deferred.fromCoroutine(self.lane.stop())
        self.assertEqual(len(asked), 1)
        self.assertNoResult(stopping)
        gone.callback(None)
        self.successResultOf(stopping)

    def test_what_ends_well_in_spite_of_it_is_the_last(self) -> None:
        async def swap(launch: Launch, entered: object, **_: object) -> None:
            await Deferred(lambda unwilling: unwilling.callback(None))

        self.patch(self.blog.server, "swap", swap)
        first = self.submit()
        self.turn()
        second = self.submit()
        self.result(self.lane.stop())
        self.assertEqual((self.outcome(first), self.outcome(second)), (Outcome.DEPLOYED, None))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_resumption_is_cancelled_too(self) -> None:
        self.blog.checkout.served = Tree(Path("/releases/0"), commit("0"), "0")
        self.blog.server.hold("start")
        self.lane.resume()
        self.turn()
        self.result(self.lane.stop())
        self.assertEqual(self.blog.server.launches, [])
        self.assertFalse(self.faults())

    def test_nothing_is_submitted_to_a_stopped_lane(self) -> None:
        waiting = self.submit()
        self.result(self.lane.stop())
        late = self.submit()
        self.lane.take_up(self.queued())
        self.lane.resume()
        self.turn()
        self.assertEqual(self.blog.checkout.calls, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual((self.outcome(waiting), self.outcome(late)), (None, None))
