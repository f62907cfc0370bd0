"""Who may build now."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from twisted_hook.builders import Builders


class Building:
    """One who builds, or waits for it."""

    def __init__(self, builders: Builders, repository: str) -> None:
        self._turn: AbstractAsyncContextManager[None] = builders.turn(repository)
        self.entered = Deferred.fromCoroutine(self._turn.__aenter__())

    @property
    def builds(self) -> bool:
        return self.entered.called

    def end(self) -> None:
        Deferred.fromCoroutine(self._turn.__aexit__(None, None, None))


class TheBuilders(SynchronousTestCase):
    """Two at a time."""

    def setUp(self) -> None:
        self.builders = Builders(2)

    def ask(self, *repositories: str) -> list[Building]:
        return [Building(self.builders, repository) for repository in repositories]

    def test_there_is_one_builder_a_repository(self) -> None:
        first, second, other = self.ask("blog", "blog", "shop")
        self.assertEqual([first.builds, second.builds, other.builds], [True, False, True])
        first.end()
        self.assertTrue(second.builds)

    def test_no_more_build_than_may(self) -> None:
        blog, shop, docs = self.ask("blog", "shop", "docs")
        self.assertEqual([blog.builds, shop.builds, docs.builds], [True, True, False])
        shop.end()
        self.assertTrue(docs.builds)

    def test_one_that_waits_for_its_own_repository_takes_no_place_from_another(self) -> None:
        """A repository whose build hangs holds up nobody but itself."""
        *_, other = self.ask("blog", "blog", "blog", "shop")
        self.assertTrue(other.builds)

    def test_one_that_does_not_want_any_more_is_passed_over(self) -> None:
        first, second, third = self.ask("blog", "blog", "blog")
        second.entered.cancel()
        self.failureResultOf(second.entered, CancelledError)
        first.end()
        self.assertTrue(third.builds)

    def test_another_limit_counts_from_now_on_and_there_is_still_one_builder_a_repository(self) -> None:
        blog, shop, docs = self.ask("blog", "shop", "docs")
        self.builders.allow(1)
        again, wiki, more = self.ask("blog", "wiki", "more")
        self.assertEqual([docs.builds, again.builds, wiki.builds, more.builds], [False, False, True, False])
        wiki.end()
        self.assertTrue(more.builds)
        more.end()
        blog.end()
        self.assertTrue(docs.builds and again.builds)
        for each in (shop, docs, again):
            each.end()

    def test_a_place_given_back_by_one_that_was_cancelled_is_nobodys(self) -> None:
        blog, shop, docs, more = self.ask("blog", "shop", "docs", "docs")
        docs.entered.cancel()
        self.failureResultOf(docs.entered, CancelledError)
        blog.end()
        self.assertTrue(more.builds)
        shop.end()
