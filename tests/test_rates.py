"""A peer may be refused so often and no oftener, and no crowd of peers takes more than a bounded place."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_hook.rates import Acquaintances, Rate, Refusals

RATE = Rate(burst=3, per_second=2)


class RefusalsTests(SynchronousTestCase):
    """One bucket for each peer."""

    def refused(self, refusals: Refusals, times: int, now: float, peer: bytes = b"one") -> list[bool]:
        return [refusals.count(peer, now) for _ in range(times)]

    def test_a_burst_is_borne_and_then_no_more_than_comes_back(self) -> None:
        refusals = Refusals(RATE)
        self.refused(refusals, 2, 0.0)
        self.assertFalse(refusals.exhausted(b"one", 0.0))
        self.refused(refusals, 1, 0.0)
        self.assertTrue(refusals.exhausted(b"one", 0.0))
        self.assertTrue(refusals.exhausted(b"one", 0.4))
        self.assertFalse(refusals.exhausted(b"one", 0.5))

    def test_peers_do_not_share(self) -> None:
        refusals = Refusals(RATE)
        self.refused(refusals, 9, 0.0)
        self.assertFalse(refusals.exhausted(b"other", 0.0))

    def test_a_peer_that_was_quiet_has_its_burst_again_and_no_more(self) -> None:
        refusals = Refusals(RATE)
        self.refused(refusals, 3, 0.0)
        self.refused(refusals, 3, 3600.0)
        self.assertTrue(refusals.exhausted(b"one", 3600.0))

    def test_an_episode_is_told_once(self) -> None:
        refusals = Refusals(RATE)
        self.assertEqual(self.refused(refusals, 4, 0.0), [False, False, True, False])
        self.assertEqual(self.refused(refusals, 3, 1.0), [False, False, False])
        self.assertEqual(self.refused(refusals, 3, 10.0), [False, False, True])

    def test_a_clock_that_is_set_back_keeps_nobody_out_until_it_has_caught_up(self) -> None:
        refusals = Refusals(RATE)
        self.refused(refusals, 3, 1000.0)
        self.assertTrue(refusals.exhausted(b"one", 999.9))
        self.assertFalse(refusals.exhausted(b"one", 0.0))
        self.refused(refusals, 3, 0.0)
        self.assertTrue(refusals.exhausted(b"one", 0.0))
        self.assertFalse(refusals.exhausted(b"one", 0.5))

    def test_of_a_crowd_the_one_heard_of_longest_ago_is_forgotten(self) -> None:
        refusals = Refusals(RATE, most=2)
        for peer in (b"one", b"two", b"one", b"three"):
            self.refused(refusals, 3, 0.0, peer)
        exhausted = [refusals.exhausted(peer, 0.0) for peer in (b"one", b"two", b"three")]
        self.assertEqual(exhausted, [True, False, True])
        self.assertFalse(refusals.exhausted(b"two", 0.0))

    @given(st.lists(st.floats(min_value=0, max_value=2), max_size=60))
    def test_whenever_they_come_no_more_are_borne_than_the_rate_says(self, pauses: list[float]) -> None:
        refusals, now, borne = Refusals(RATE), 0.0, 0
        for pause in pauses:
            now += pause
            if not refusals.exhausted(b"one", now):
                refusals.count(b"one", now)
                borne += 1
        self.assertLessEqual(borne, RATE.burst + RATE.per_second * now + 1e-6)


class AcquaintancesTests(SynchronousTestCase):
    """Who was believed."""

    def test_of_a_crowd_the_one_heard_of_longest_ago_is_forgotten(self) -> None:
        known = Acquaintances(most=2)
        for peer in (b"one", b"two", b"one", b"three"):
            known.add(peer)
        self.assertEqual([peer in known for peer in (b"one", b"two", b"three")], [True, False, True])
