"""What could not be delivered is asked for, once, and never in a loop."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, Logger, LogLevel, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.drivers import HeardEvents, Told
from tests.fakes import MemoryJournal
from twisted_hook.boundaries import Redeliveries
from twisted_hook.model import FailedDelivery, ForgeFailed, JournalUnavailable, Message, NewDelivery
from twisted_hook.redelivery import INTERVAL, KEPT, LIMIT, MOST, PAUSE, SOON, Redelivery

WEEK = 7 * 86_400.0
NEXT = INTERVAL * 1.1
"""Seconds in which the next look has begun, whatever the jitter."""


def failed(*guids: str) -> list[FailedDelivery]:
    return [FailedDelivery(guid, f"1/deliveries/{guid}", 0.0) for guid in guids]


class MemoryWebhook(Told):
    """A webhook whose failed deliveries a test sets; it notes what it was asked."""

    def __init__(self, repository: str = "acme/blog", hook: str = "github") -> None:
        super().__init__()
        self.hook = hook
        self.words = f"the webhook of {repository}"
        self.has_failed: Sequence[FailedDelivery] = ()
        self.since: list[float] = []

    async def failed(self, since: float) -> Sequence[FailedDelivery]:
        self.since.append(since)
        await self.called("list")
        return self.has_failed

    async def ask_again(self, delivery: FailedDelivery) -> None:
        await self.called(delivery.guid)

    @property
    def asked(self) -> list[str]:
        return [call for call in self.calls if call != "list"]

    @property
    def looks(self) -> int:
        return self.calls.count("list")


_: type[Redeliveries] = MemoryWebhook


class Asking(SynchronousTestCase):
    """Over memory drivers and a clock that a test moves."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(WEEK)
        self.journal = MemoryJournal()
        self.webhook = MemoryWebhook()
        self.webhooks = [self.webhook]
        self.heard = HeardEvents()
        self.redelivery = self.new()

    def new(self) -> Redelivery:
        redelivery = Redelivery(self.clock, self.journal, lambda: self.webhooks, now=self.clock.seconds)
        redelivery._log = Logger(observer=self.heard)
        return redelivery

    def start(self) -> None:
        self.redelivery.start()
        self.addCleanup(self.stop)

    def stop(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.redelivery.stop()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def pass_pauses(self, number: int = MOST) -> None:
        self.clock.pump([PAUSE] * number)

    def said(self, level: LogLevel) -> list[str]:
        return [str(formatEvent(event)) for event in self.heard.events if event["log_level"] is level]

    def failures(self) -> list[LogEvent]:
        return [event for event in self.heard.events if "log_failure" in event]

    def test_what_failed_is_asked_for_at_once(self) -> None:
        self.webhook.has_failed = failed("one", "two")
        self.start()
        self.assertEqual(self.webhook.asked, ["one"])
        self.pass_pauses(1)
        self.assertEqual(self.webhook.asked, ["one", "two"])
        self.assertEqual(len(self.said(LogLevel.info)), 2)
        self.assertIn("the webhook of acme/blog is to deliver one again", self.said(LogLevel.info))

    def test_it_looks_back_three_days(self) -> None:
        self.start()
        self.assertEqual(self.webhook.since, [WEEK - KEPT])

    def test_it_looks_every_hour_or_so(self) -> None:
        self.start()
        self.clock.advance(INTERVAL * 0.9 - 1)
        self.assertEqual(self.webhook.looks, 1)
        for looks in (2, 3, 4):
            self.clock.advance(NEXT)
            self.assertEqual(self.webhook.looks, looks)

    def test_each_is_asked_for_once(self) -> None:
        self.webhook.has_failed = failed("one")
        self.start()
        self.clock.advance(NEXT)
        self.clock.advance(NEXT)
        self.assertEqual(self.webhook.asked, ["one"])

    def test_each_is_asked_for_once_across_a_restart(self) -> None:
        self.webhook.has_failed = failed("one")
        self.start()
        self.stop()
        self.redelivery = self.new()
        self.start()
        self.assertEqual((self.webhook.looks, self.webhook.asked), (2, ["one"]))

    def test_the_same_id_at_another_hook_is_another_delivery(self) -> None:
        self.webhooks.append(MemoryWebhook(hook="other"))
        for webhook in self.webhooks:
            webhook.has_failed = failed("one")
        self.start()
        self.pass_pauses(2)
        self.assertEqual([webhook.asked for webhook in self.webhooks], [["one"], ["one"]])

    def test_what_has_arrived_is_not_asked_for(self) -> None:
        """We had written it down, and the forge did not hear our answer in time."""
        arrived = NewDelivery("github", Message("one", "push"), "digest", 0.0, ("blog",))
        self.successResultOf(Deferred.fromCoroutine(self.journal.accept(arrived)))
        self.webhook.has_failed = failed("one", "two")
        self.start()
        self.pass_pauses(1)
        self.assertEqual(self.webhook.asked, ["two"])

    def test_one_that_could_not_be_asked_for_is_not_asked_for_again(self) -> None:
        """The forge may have heard it."""
        self.webhook.has_failed = failed("one", "two")
        self.webhook.failing["one"] = ForgeFailed("no answer")
        self.start()
        self.assertEqual(self.webhook.asked, ["one"], "and none after it in this look")
        self.clock.advance(NEXT)
        self.pass_pauses()
        self.assertEqual(self.webhook.asked, ["one", "two"])

    def test_no_more_than_a_hundred_are_asked_for_in_one_look(self) -> None:
        self.webhook.has_failed = failed(*(f"{number}" for number in range(MOST + 1)))
        self.start()
        self.pass_pauses()
        self.assertEqual(len(self.webhook.asked), MOST)
        self.clock.advance(NEXT)
        self.assertEqual(len(set(self.webhook.asked)), MOST + 1)

    def test_many_reasons_to_look_make_one_look_soon(self) -> None:
        self.start()
        for _ in range(4):
            self.assertEqual(self.webhook.looks, 1)
            self.redelivery.look()
            self.clock.advance(SOON / 4)
        self.assertEqual(self.webhook.looks, 2, "the last reasons do not put it off")
        self.clock.advance(INTERVAL / 2)
        self.assertEqual(self.webhook.looks, 2)

    def test_a_reason_to_look_during_a_look_makes_another_soon(self) -> None:
        listing = self.webhook.hold("list")
        self.start()
        self.redelivery.look()
        listing.happen(None)
        self.clock.advance(SOON)
        self.assertEqual(self.webhook.looks, 2)
        self.clock.advance(INTERVAL / 2)
        self.assertEqual(self.webhook.looks, 2)

    def test_a_reason_to_look_before_the_start_or_after_the_end_makes_no_look(self) -> None:
        self.redelivery.look()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.start()
        self.stop()
        self.redelivery.look()
        self.clock.advance(NEXT)
        self.assertEqual(self.webhook.looks, 1)

    def test_nothing_is_asked_for_while_the_journal_cannot_write(self) -> None:
        self.webhook.has_failed = failed("one")
        self.webhooks.append(MemoryWebhook("acme/shop"))
        self.journal.fail_with = JournalUnavailable("disk full")
        self.start()
        self.assertEqual((self.webhook.asked, self.webhooks[1].looks), ([], 0))
        self.journal.fail_with = None
        self.redelivery.look()
        self.clock.advance(SOON)
        self.assertEqual(self.webhook.asked, ["one"])
        self.assertEqual(self.said(LogLevel.warn), [], "the journal speaks for itself")

    def test_a_failure_is_said_once_until_it_works_again(self) -> None:
        self.webhook.failing["list"] = ForgeFailed("401 Unauthorized")
        self.start()
        for _ in range(3):
            self.clock.advance(NEXT)
        warning = "the webhook of acme/blog: what it could not deliver is not asked for: 401 Unauthorized"
        self.assertEqual(self.said(LogLevel.warn), [warning])
        del self.webhook.failing["list"]
        self.clock.advance(NEXT)
        self.assertEqual(
            self.said(LogLevel.info),
            ["the webhook of acme/blog can be asked again for what it could not deliver"],
        )
        self.webhook.failing["list"] = ForgeFailed("500 Internal Server Error")
        self.clock.advance(NEXT)
        self.assertEqual(len(self.said(LogLevel.warn)), 2)
        self.assertEqual(self.failures(), [])

    def test_one_that_fails_does_not_keep_the_next_from_being_asked(self) -> None:
        other = MemoryWebhook("acme/shop")
        other.has_failed = failed("one")
        self.webhooks.append(other)
        self.webhook.failing["list"] = ForgeFailed("no answer")
        self.start()
        self.assertEqual(other.asked, ["one"])

    def test_one_that_never_ends_does_not_keep_the_next_from_being_asked(self) -> None:
        other = MemoryWebhook("acme/shop")
        self.webhooks.append(other)
        self.webhook.hold("list")
        self.start()
        self.clock.advance(LIMIT)
        self.assertEqual(other.looks, 1)
        self.assertIn(f"it took longer than {LIMIT:g} s", self.said(LogLevel.warn)[0])

    def test_a_bug_is_logged_and_ends_no_more_than_the_look(self) -> None:
        self.webhook.failing["list"] = ZeroDivisionError()
        self.start()
        self.clock.advance(NEXT)
        self.assertEqual((self.webhook.looks, len(self.failures())), (2, 2))

    def test_the_webhooks_are_those_of_the_configuration_of_now(self) -> None:
        self.start()
        other = MemoryWebhook("acme/shop")
        self.webhooks[:] = [other]
        self.clock.advance(NEXT)
        self.assertEqual((self.webhook.looks, other.looks), (1, 1))

    def test_stopping_gives_up_what_is_being_asked(self) -> None:
        self.webhook.hold("list")
        self.start()
        self.stop()
        self.clock.advance(NEXT)
        self.assertEqual((self.webhook.looks, self.heard.events), (1, []))

    def test_stopping_in_a_pause_asks_for_no_more(self) -> None:
        self.webhook.has_failed = failed("one", "two")
        self.start()
        self.stop()
        self.pass_pauses()
        self.assertEqual(self.webhook.asked, ["one"])
