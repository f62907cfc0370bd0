"""Whose turn it is: one lane an app, one lock a repository.

A lane runs one deployment and lets one wait; a newer one takes the waiting one's place. It knows nothing of what a
deployment does.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_hook.boundaries import Journal
from twisted_hook.deploy import Story
from twisted_hook.model import Deployment, JournalUnavailable, Outcome, StepFailed, Trigger
from twisted_hook.once import Once

MOST_ATTEMPTS = 3
JOURNAL_PAUSE = 5.0
"""Seconds until a deployment whose end could not be written is tried again."""


class Lane:
    """One app's turns.

    Nothing but lanes may wait for the repository lock: a ``DeferredLock`` with more than about a hundred waiters that
    finish synchronously jams for ever (twisted/twisted#9304).
    """

    _log = Logger()

    def __init__(
        self, clock: IReactorTime, *, story: Story, lock: DeferredLock, journal: Journal, now: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._story = story
        self._lock = lock
        self._journal = journal
        self._now = now
        self._to_resume = False
        self._work: Deferred[None] | None = None
        self._beginning: IDelayedCall | None = None
        self._stopped = False
        self._unwritten: Deployment | None = None
        """Its end could not be written, so it is to be deployed again."""
        self._again: IDelayedCall | None = None
        self.running: Deployment | None = None
        self.waiting: Deployment | None = None

    @property
    def app(self) -> str:
        return self._story.app.name

    def configure(self, story: Story, lock: DeferredLock) -> None:
        """What the next deployment works with; the running one is not touched."""
        self._story = story
        self._lock = lock

    def resume(self) -> None:
        """Serve the current tree before anything else is deployed; deploy the tip if there is none."""
        self._to_resume = True
        self._wake()

    def submit(self, deployment: Deployment) -> None:
        """Deploy this next. What waited is superseded by it. After a stop it is left to the next start."""
        if self._stopped:
            return
        replaced, self.waiting = self.waiting or self._unwritten, deployment
        self._forget_unwritten()
        if replaced is not None and replaced.id != deployment.id:
            self._record(replaced, Outcome.SUPERSEDED, superseded_by=deployment.id)
        self._wake()

    def take_up(self, deployment: Deployment) -> None:
        """Deploy what an earlier hookdeploy has not finished, unless it was tried too often."""
        if deployment.attempts >= MOST_ATTEMPTS:
            reason = f"hookdeploy stopped {deployment.attempts} times while it worked on this; it is not tried again"
            self._record(deployment, Outcome.INTERRUPTED, reason=reason)
        else:
            self.submit(deployment)

    async def stop(self) -> None:
        """Cancel what runs; it stays unfinished in the journal. Nothing of it is left when this returns."""
        self._stopped = True
        if self._beginning is not None and self._beginning.active():
            self._beginning.cancel()
        self._forget_unwritten()
        if self._work is not None:
            work, self._work = self._work, None
            over: Once[None] = Once()
            work.addBoth(lambda _: over.happen(None))
            work.cancel()
            await over.wait()

    def _wake(self) -> None:
        """Work in a turn of the reactor of its own: whoever submits is to answer first."""
        if self._work is None and not self._stopped:
            self._work = Deferred(lambda _: None)
            self._beginning = self._clock.callLater(0, self._begin)

    def _begin(self) -> None:
        self._work = Deferred.fromCoroutine(self._drain())
        self._work.addErrback(self._report).addBoth(self._rest)

    async def _drain(self) -> None:
        while not self._stopped:
            if self._to_resume:
                self._to_resume = False
                await self._resume()
            elif self.waiting is not None:
                await self._deploy_what_waits()
            else:
                return

    async def _deploy_what_waits(self) -> None:
        story, lock = self._story, self._lock  # they belong together, and both may change while this waits
        async with lock:
            newest, self.waiting = self.waiting, None
            if newest is None:
                return
            self.running = newest
            deploying = story.deploying(newest)
            tree = await deploying.obtain()
        if tree is not None:
            await deploying.release(tree)
        self.running = None
        if not deploying.ended and not self._stopped:
            self._try_again(newest)

    def _try_again(self, deployment: Deployment) -> None:
        """Deploy once more what could not be written down, unless what waits does its work."""
        if self.waiting is not None:
            self._record(deployment, Outcome.SUPERSEDED, superseded_by=self.waiting.id)
        else:
            self._unwritten = deployment
            self._again = self._clock.callLater(JOURNAL_PAUSE, self.submit, deployment)

    def _forget_unwritten(self) -> None:
        self._unwritten = None
        if self._again is not None and self._again.active():
            self._again.cancel()

    async def _resume(self) -> None:
        story = self._story
        try:
            async with self._lock:
                there_is_one = await story.resume()
            if self.waiting is None and (not there_is_one or await story.was_never_built()):
                self.submit(await self._journal.enqueue(self.app, Trigger.START))
        except StepFailed as failed:
            self._log.error(
                "{app}: the server cannot start: {reason}", app=self.app, reason=self._story.shown(failed.reason)
            )

    def _rest(self, _: object) -> None:
        self.running = None
        self._work = None
        if self.waiting is not None or self._to_resume:
            self._wake()

    def _report(self, failure: Failure) -> None:
        if failure.check(JournalUnavailable):
            self._log.error("{app}: the journal: {problem}", app=self.app, problem=str(failure.value))
        elif failure.check(CancelledError) is None:
            self._log.failure("{app}: a fault in the lane", failure, app=self.app)

    def _record(
        self, deployment: Deployment, outcome: Outcome, *, reason: str = "", superseded_by: str | None = None
    ) -> None:
        writing = self._journal.finish(deployment.id, outcome, self._now(), reason=reason, superseded_by=superseded_by)
        Deferred.fromCoroutine(writing).addErrback(self._report)
