"""A thing that happens once tells all who wait, each on a chain of its own."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from twisted_hook.once import Once


class OnceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.once: Once[str] = Once()
        self.told: list[str] = []

    def _wait(self, name: str) -> Deferred[str]:
        def tell(value: str) -> str:
            self.told.append(f"{name} {value}")
            return value

        return self.once.wait().addCallback(tell)

    def test_nobody_is_told_before_it_happens(self) -> None:
        self.assertNoResult(self.once.wait())
        self.assertFalse(self.once.happened)

    def test_all_who_wait_are_told_in_the_order_in_which_they_came(self) -> None:
        waiters = [self._wait("first"), self._wait("second")]
        self.once.happen("now")
        self.assertEqual(self.told, ["first now", "second now"])
        self.assertEqual([self.successResultOf(waiter) for waiter in waiters], ["now", "now"])

    def test_who_comes_late_is_told_at_once(self) -> None:
        self.once.happen("now")
        self.assertTrue(self.once.happened)
        self.assertEqual(self.successResultOf(self.once.wait()), "now")

    def test_the_first_time_counts(self) -> None:
        waiter = self.once.wait()
        self.once.happen("now")
        self.once.happen("again")
        self.assertEqual([self.successResultOf(waiter), self.successResultOf(self.once.wait())], ["now", "now"])

    def test_a_value_of_none_counts_as_having_happened(self) -> None:
        once: Once[None] = Once()
        waiter = once.wait()
        once.happen(None)
        self.assertTrue(once.happened)
        self.assertIsNone(self.successResultOf(waiter))

    def test_one_who_gives_up_disturbs_nobody(self) -> None:
        gives_up, stays = self.once.wait(), self.once.wait()
        gives_up.cancel()
        self.failureResultOf(gives_up, CancelledError)
        self.once.happen("now")
        self.assertEqual(self.successResultOf(stays), "now")

    def test_one_waiter_may_make_another_give_up_while_they_are_told(self) -> None:
        first, second, third = self.once.wait(), self.once.wait(), self.once.wait()
        first.addCallback(lambda _: second.cancel())
        self.once.happen("now")
        self.failureResultOf(second, CancelledError)
        self.assertEqual(self.successResultOf(third), "now")

    def test_a_waiter_that_fails_does_not_keep_it_from_the_others(self) -> None:
        fails, stays = self.once.wait(), self.once.wait()
        fails.addCallback(lambda _: 1 // 0)
        self.once.happen("now")
        self.failureResultOf(fails, ZeroDivisionError)
        self.assertEqual(self.successResultOf(stays), "now")

    def test_who_begins_to_wait_while_others_are_told_is_told_at_once(self) -> None:
        late: list[Deferred[str]] = []
        self.once.wait().addCallback(lambda _: late.append(self.once.wait()))
        self.once.happen("now")
        self.assertEqual(self.successResultOf(late[0]), "now")

    def test_what_a_waiter_makes_of_the_value_is_its_own_affair(self) -> None:
        self.once.wait().addCallback(str.upper)
        other = self.once.wait()
        self.once.happen("now")
        self.assertEqual(self.successResultOf(other), "now")
