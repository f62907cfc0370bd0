"""Who may build now: one release of a repository at a time, and only so many in all.

Knows nothing of what a build does. Only deployments wait here, one of each app at most.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from twisted.internet.defer import DeferredLock, DeferredSemaphore


class Builders:
    """At most ``most`` builds at a time."""

    def __init__(self, most: int) -> None:
        self._of_repository: defaultdict[str, DeferredLock] = defaultdict(DeferredLock)
        self.allow(most)

    def allow(self, most: int) -> None:
        """Another limit from now on. What builds or waits already is not counted, but for its own repository."""
        self._free = DeferredSemaphore(most)

    @asynccontextmanager
    async def turn(self, repository: str) -> AsyncIterator[None]:
        """Wait for the builder of this repository; one that waits for its own repository takes no other's place."""
        async with self._of_repository[repository], self._free:
            yield
