"""Work that is done again and again, with a pause after each round: a timer, or the round that is under way.

It knows nothing of the work. How long a pause is, its owner says when it begins.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from math import inf
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure


def spread(seconds: float) -> float:
    """The pause, give or take a tenth, so that not everybody asks at once."""
    return seconds * random.uniform(0.9, 1.1)  # noqa: S311 - no secret


class Rounds:
    """One round at a time, until ``stop``. What one raises is told to ``failed``, and stops no other."""

    def __init__(
        self,
        clock: IReactorTime,
        work: Callable[[], Coroutine[Any, Any, None]],
        pause: Callable[[], float],
        failed: Callable[[Failure], None],
    ) -> None:
        self._clock = clock
        self._work = work
        self._pause = pause
        self._failed = failed
        self._soon = inf
        """The longest pause that the next round may wait, wanted while one was under way."""
        self._timer: IDelayedCall | None = None
        self._round: Deferred[None] | None = None

    def begin(self) -> None:
        """Begin a round now."""
        self._timer, self._soon = None, inf
        self._round = Deferred.fromCoroutine(self._work())
        self._round.addErrback(self._report)
        self._round.addCallback(self._wait)

    def hurry(self, delay: float) -> None:
        """Begin a round within so many seconds; while one is under way, within so many after it."""
        if self._round is not None:
            self._soon = min(self._soon, delay)
        elif self._timer is not None and self._timer.getTime() > self._clock.seconds() + delay:
            self._timer.reset(delay)

    def stop(self) -> None:
        """Begin no more; the round that is under way is given up."""
        timer, given_up, self._timer, self._round = self._timer, self._round, None, None
        if timer is not None:
            timer.cancel()
        if given_up is not None:
            given_up.cancel()

    def _report(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self._failed(failure)

    def _wait(self, _: object) -> None:
        if self._round is not None:  # it was not given up
            self._round = None
            self._timer = self._clock.callLater(min(self._pause(), self._soon), self.begin)
