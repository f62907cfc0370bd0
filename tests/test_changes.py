"""What has changed of late, and the journal that says so."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.contracts import JOURNAL, STEP, pushed
from tests.fakes import MemoryJournal
from twisted_hook.announced import AnnouncedJournal
from twisted_hook.changes import MOST, Change, Changes, Kind
from twisted_hook.model import Commit, JournalUnavailable, Outcome, Phase, Steering, Trigger

COMMIT = Commit("a" * 40, "Say it", "Ada")


class TheChanges(SynchronousTestCase):
    """Places, watchers, and what is forgotten."""

    def setUp(self) -> None:
        self.changes = Changes("life")

    def test_who_comes_back_is_told_what_has_changed_since_in_order_and_each_once(self) -> None:
        self.changes.publish(Kind.APP, "blog")
        place = self.changes.place
        for each in ("1", "2", "1"):
            self.changes.publish(Kind.DEPLOYMENT, each)
        told = self.changes.since(place)
        self.assertEqual(told, [Change(Kind.DEPLOYMENT, "2"), Change(Kind.DEPLOYMENT, "1")])
        self.assertEqual(self.changes.since(self.changes.place), [])

    def test_a_place_of_another_life_or_of_nobody_is_not_known(self) -> None:
        self.changes.publish(Kind.APP, "blog")
        for place in ("", "life", "life-", "life--1", "life-2", "other-0", "life-0x0", "life-²", f"life-{'9' * 5000}"):
            self.assertIsNone(self.changes.since(place), place)
        self.assertIsNotNone(self.changes.since("life-0"))

    def test_what_is_too_long_ago_is_not_known(self) -> None:
        for number in range(MOST):
            self.changes.publish(Kind.DEPLOYMENT, str(number))
        self.assertEqual(len(self.changes.since("life-0") or ()), MOST)
        self.changes.publish(Kind.DEPLOYMENT, "one more")
        self.assertIsNone(self.changes.since("life-0"))
        self.assertEqual(len(self.changes.since("life-1") or ()), MOST)

    def test_watchers_are_told_until_they_leave(self) -> None:
        told: list[Change] = []
        leave = self.changes.watch(told.append)
        self.changes.publish(Kind.APP, "blog")
        leave()
        leave()
        self.changes.publish(Kind.APP, "shop")
        self.assertEqual(told, [Change(Kind.APP, "blog")])


class TheAnnouncedJournal(SynchronousTestCase):
    """It says what was written, and nothing else."""

    def setUp(self) -> None:
        self.told: list[tuple[Kind, str]] = []
        self.memory = MemoryJournal()
        self.journal = AnnouncedJournal(self.memory, lambda kind, what: self.told.append((kind, what)))

    def result(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(work))

    def test_it_keeps_what_a_journal_promises(self) -> None:
        for check in JOURNAL:
            journal = AnnouncedJournal(MemoryJournal(), lambda kind, what: None)
            self.successResultOf(Deferred.fromCoroutine(_awaited(check, journal)))

    def test_every_write_is_told_with_what_it_is_about(self) -> None:
        receipt = self.result(self.journal.accept(pushed("one", "blog")))
        made = receipt.queued[0].id
        self.assertEqual(self.told, [(Kind.DELIVERY, receipt.delivery), (Kind.DEPLOYMENT, made)])
        for write in (
            lambda: self.journal.begin(made, 1.0),
            lambda: self.journal.advance(made, Phase.FETCHING, 1.0),
            lambda: self.journal.describe(made, commit=COMMIT, previous=None, release=None),
            lambda: self.journal.add_step(made, STEP),
            lambda: self.journal.migrated(made, "a" * 40),
            lambda: self.journal.supersede({made: made}, 1.0),
            lambda: self.journal.finish(made, Outcome.DEPLOYED, 2.0),
        ):
            self.told.clear()
            self.result(write())
            self.assertEqual(self.told, [(Kind.DEPLOYMENT, made)])
        self.told.clear()
        replayed = self.result(self.journal.enqueue("blog", Trigger.REPLAY, delivery=receipt.delivery))
        self.result(self.journal.steer("blog", Steering(paused=True)))
        self.assertEqual(
            self.told, [(Kind.DEPLOYMENT, replayed.id), (Kind.DELIVERY, receipt.delivery), (Kind.APP, "blog")]
        )

    def test_what_was_not_written_is_not_told(self) -> None:
        self.memory.fail_with = JournalUnavailable("the disk is full")
        self.failureResultOf(Deferred.fromCoroutine(self.journal.accept(pushed("one", "blog"))), JournalUnavailable)
        self.assertEqual(self.told, [])


async def _awaited(check: Callable[[Any], Any], journal: AnnouncedJournal) -> None:
    await check(journal)
