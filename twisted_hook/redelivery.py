"""Asks forges again for what they could not deliver: at start, every hour, and after we could not take something.

It deploys nothing. What a redelivery brings arrives at the door like any other, and the remotes are looked at anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_hook.boundaries import Journal, Redeliveries
from twisted_hook.model import ForgeFailed, JournalUnavailable
from twisted_hook.rounds import Rounds, spread

INTERVAL = 3600.0
"""Seconds between two looks, give or take a tenth."""
SOON = 60.0
"""Seconds: so long a forge may take to see that its delivery has failed (GitHub waits 10 s for an answer)."""
KEPT = 3 * 86_400.0
"""Seconds for which a failed delivery can be asked for (GitHub: three days)."""
PAUSE = 1.0
"""Seconds between two that are asked for, as GitHub wishes it for requests that change something."""
MOST = 100
"""Deliveries of one webhook that are asked for in one look; the others wait for the next."""
LIMIT = 300.0
"""Seconds that one webhook may take in one look."""


class Redelivery:
    """Asks for each failed delivery once, also across restarts, and whatever comes of it.

    The journal notes it before the forge is asked, so a request that fails is not repeated: that delivery's branch is
    looked at all the same.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        journal: Journal,
        sources: Callable[[], Iterable[Redeliveries]],
        *,
        now: Callable[[], float],
    ) -> None:
        """``sources`` gives the webhooks of now; ``now`` gives seconds since the epoch."""
        self._clock = clock
        self._journal = journal
        self._sources = sources
        self._now = now
        self._rounds = Rounds(clock, self._look_at_all, lambda: spread(INTERVAL), self._report)
        self._failing: set[str] = set()

    def start(self) -> None:
        """Look now, and then again and again."""
        self._rounds.begin()

    def look(self) -> None:
        """Look soon: something that was sent to us could not be taken. Many calls make one look."""
        self._rounds.hurry(SOON)

    async def stop(self) -> None:
        """Ask for nothing more; what is being asked is given up."""
        self._rounds.stop()

    def _report(self, failure: Failure) -> None:
        self._log.failure("asking for failed deliveries", failure)

    async def _look_at_all(self) -> None:
        for source in tuple(self._sources()):
            try:
                await Deferred.fromCoroutine(self._look_at(source)).addTimeout(LIMIT, self._clock)
            except JournalUnavailable:
                return  # it says so itself, and what is asked for without a note would be asked for again and again
            except ForgeFailed as failed:
                self._fails(source, str(failed))
            except DeferredTimeout:
                self._fails(source, f"it took longer than {LIMIT:g} s")
            else:
                self._works(source)

    async def _look_at(self, source: Redeliveries) -> None:
        asked = 0
        for delivery in await source.failed(self._now() - KEPT):
            if not await self._journal.ask_again(source.hook, delivery.guid, self._now()):
                continue
            await source.ask_again(delivery)
            self._log.info("{source} is to deliver {guid} again", source=source.words, guid=delivery.guid)
            asked += 1
            if asked == MOST:
                return
            await deferLater(self._clock, PAUSE)

    def _fails(self, source: Redeliveries, reason: str) -> None:
        """Say it once, until it works again."""
        if source.words not in self._failing:
            self._failing.add(source.words)
            self._log.warn(
                "{source}: what it could not deliver is not asked for: {reason}", source=source.words, reason=reason
            )

    def _works(self, source: Redeliveries) -> None:
        if source.words in self._failing:
            self._failing.discard(source.words)
            self._log.info("{source} can be asked again for what it could not deliver", source=source.words)
