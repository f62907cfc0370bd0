"""Whose turn it is: one lane an app, one lock a repository.

A lane runs one deployment and lets one wait; a newer one takes the waiting one's place. It knows nothing of what a
deployment does.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_hook.boundaries import Journal
from twisted_hook.deploy import BY_A_PERSON, Deploying
from twisted_hook.model import Deployment, JournalUnavailable, NoSuchRow, Outcome, Phase, StepFailed, Trigger
from twisted_hook.once import Once
from twisted_hook.story import Story

MOST_ATTEMPTS = 3
JOURNAL_PAUSE = 5.0
"""Seconds until what the journal has not taken is tried again."""
LONGEST_JOURNAL_PAUSE = 300.0


class Lane:
    """One app's turns.

    Nothing but lanes may wait for the repository lock: a ``DeferredLock`` with more than about a hundred waiters that
    finish synchronously jams for ever (twisted/twisted#9304).
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        *,
        story: Story,
        lock: DeferredLock,
        journal: Journal,
        now: Callable[[], float],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """``changed`` is told that something else runs, or waits."""
        self._clock = clock
        self._changed = changed
        self._story = story
        self._lock = lock
        self._journal = journal
        self._now = now
        self._to_resume = self._resumes = False
        self._work: Deferred[None] | None = None
        self._beginning: IDelayedCall | None = None
        self._stopped = False
        self._paused = False
        self._deploying: Deploying | None = None
        self._unwritten: Deployment | None = None
        """The journal has kept it from its end, so it is to be deployed again."""
        self._again: IDelayedCall | None = None
        self._pause = JOURNAL_PAUSE
        """Seconds until it is."""
        self._beside: set[Deferred[None]] = set()
        """What writes the ends of deployments that had none of their own to write."""
        self._covered: dict[str, str] = {}
        """What is superseded and not written down yet, and by which."""
        self._is_covering = False
        self._behind: Deployment | None = None
        """What arrived while something that a person asked for waits; its turn comes after that."""
        self.running: Deployment | None = None
        self.waiting: Deployment | None = None

    @property
    def app(self) -> str:
        return self._story.app.name

    @property
    def unfinished(self) -> list[Deployment]:
        """What runs and what is to run, in the order of their turns."""
        all_of_them = (self.running, self.waiting, self._behind, self._unwritten)
        return [each for each in all_of_them if each is not None]

    @property
    def owes_an_end(self) -> bool:
        """Whether the journal does not know yet how one ended that is not to be deployed again."""
        return bool(self._beside)

    @property
    def is_resuming(self) -> bool:
        """Whether it does not know yet if there is anything to serve."""
        return self._to_resume or self._resumes

    @property
    def is_busy(self) -> bool:
        """Whether it deploys something, or will do so next."""
        return self.running is not None or self._next is not None

    def configure(self, story: Story, lock: DeferredLock) -> None:
        """What the next deployment works with; the running one is not touched."""
        self._story = story
        self._lock = lock

    def resume(self) -> None:
        """Serve the current tree before anything else is deployed; deploy the tip if there is none."""
        self._to_resume = True
        self._wake()

    def submit(self, deployment: Deployment) -> None:
        """Deploy this next. What waited is superseded by it, but for two things.

        What a person has asked for comes first, and what a person holds back stays behind it. After a stop it is left
        to the next start.
        """
        if self._stopped:
            return
        asked_for = deployment.trigger in BY_A_PERSON
        person_waits = self.waiting is not None and self.waiting.trigger in BY_A_PERSON
        if person_waits and not asked_for:
            replaced, self._behind = [self._behind], deployment
        elif self._paused and asked_for:
            replaced = [self.waiting if person_waits else self._unwritten]
            self.waiting, self._behind = deployment, self._behind if person_waits else self.waiting
        else:
            replaced = [self.waiting or self._unwritten, self._behind]
            self.waiting, self._behind = deployment, None
        self._forget_unwritten()
        for each in replaced:
            if each is not None and each.id != deployment.id:
                self._supersede(each, deployment)
        self._changed()
        self._wake()

    def take_up(self, deployment: Deployment) -> None:
        """Deploy what an earlier hookdeploy has not finished, unless it was tried too often."""
        if deployment.phase is Phase.MIGRATING and deployment.migrated != deployment.revision:
            # Not left to its turn: a newer one that waits would take that from it, and nobody would be told.
            self._record(deployment, Outcome.INTERRUPTED, reason=self._story.cut_off_in_migration(deployment))
        elif deployment.attempts >= MOST_ATTEMPTS:
            reason = f"hookdeploy stopped {deployment.attempts} times while it worked on this; it is not tried again"
            self._record(deployment, Outcome.INTERRUPTED, reason=reason)
        else:
            if deployment.attempts:
                self._log.info(
                    "{app}: deployment {deployment} was cut off and is taken up", app=self.app, deployment=deployment.id
                )
            self.submit(deployment)

    def pause(self) -> None:
        """Let what arrives wait; what a person asks for is deployed all the same."""
        self._paused = True

    def unpause(self) -> None:
        """Deploy the newest of what has waited."""
        self._paused = False
        self._wake()

    def cancel(self, reason: str, deployment: str | None = None) -> bool:
        """Give up the deployment with this id, or whichever runs; False if none can still be given up."""
        running = self._deploying
        for waiting in (self.waiting, self._behind):
            if waiting is not None and waiting.id == deployment:
                self._leave(waiting)
                self._record(waiting, Outcome.CANCELLED, reason=reason)
                return True
        if running is None or self.running is None or deployment not in (None, self.running.id):
            return False
        given_up = running.give_up(reason)
        if given_up and running.may_be_cut_off and self._work is not None:
            self._work.cancel()
        return given_up

    async def stop(self) -> None:
        """Cancel what runs; it stays unfinished in the journal. Nothing of it is left when this returns."""
        self._stopped = True
        if self._beginning is not None and self._beginning.active():
            self._beginning.cancel()
        self._forget_unwritten()
        for doing in tuple(self._beside):
            doing.cancel()
        if self._work is not None:
            work, self._work = self._work, None
            over: Once[None] = Once()
            work.addBoth(lambda _: over.happen(None))
            if self._deploying is None or self._deploying.may_be_cut_off:
                work.cancel()
            else:
                self._deploying.leave_off()
            try:
                await over.wait()
            except CancelledError:  # our caller is out of patience, even for a migration
                work.cancel()
                raise

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
                self._to_resume, self._resumes = False, True
                await self._resume()
                self._resumes = False
            elif self._next is not None:
                await self._deploy_what_waits()
            else:
                return

    @property
    def _next(self) -> Deployment | None:
        """What is to be deployed now: what waits, unless a person holds it back."""
        held_back = self._paused and self.waiting is not None and self.waiting.trigger not in BY_A_PERSON
        return None if held_back else self.waiting

    async def _deploy_what_waits(self) -> None:
        story, lock = self._story, self._lock  # they belong together, and both may change while this waits
        async with lock:
            newest = self._next
            if newest is None:
                return
            self._leave(newest)
            self.running = newest
            self._deploying = deploying = Deploying(story, newest)
            self._changed()
            tree = await deploying.obtain()
        if tree is not None:
            await deploying.release(tree)
        self.running = self._deploying = None
        self._changed()
        if deploying.unwritten is not None and not self._stopped:
            self._see_to(self._insist(deploying.unwritten))
        elif deploying.ended or self._stopped:
            self._pause = JOURNAL_PAUSE
        else:
            self._try_again(newest)

    def _leave(self, deployment: Deployment) -> None:
        """It waits no longer, and what is behind it moves up."""
        if self.waiting is deployment:
            self.waiting = self._behind
        self._behind = None
        self._changed()

    def _try_again(self, deployment: Deployment) -> None:
        """Deploy once more what the journal has kept from its end, unless what waits is newer and does its work.

        What is older waits for a pause to end, which a person who deploys does not wait for.
        """
        if self.waiting is not None and self.waiting.id > deployment.id:
            self._supersede(deployment, self.waiting)
        else:
            self._unwritten = deployment
            self._again = self._clock.callLater(self._pause, self.submit, deployment)
            self._pause = min(2 * self._pause, LONGEST_JOURNAL_PAUSE)

    def _forget_unwritten(self) -> None:
        self._unwritten = None
        if self._again is not None and self._again.active():
            self._again.cancel()

    async def _resume(self) -> None:
        story, lock = self._story, self._lock
        with suppress(JournalUnavailable):  # what cannot be remembered can still be served
            self._paused = (await story.steering()).paused
        try:
            there_is_one = await story.resume(lock)
            if self.waiting is None and (not there_is_one or await story.was_never_built()):
                self.submit(await self._journal.enqueue(self.app, Trigger.START))
        except StepFailed as failed:
            server = story.server
            serves = server.launch if server is not None and server.status.state == "serving" else None
            self._log.error(
                "{app}: the server cannot start{but}: {reason}",
                app=self.app,
                but="" if serves is None else f"; {serves.tree.commit.revision[:7]} serves as before",
                reason=self._story.shown(failed.reason),
            )

    def _rest(self, _: object) -> None:
        was_cut_off = self.running is not None
        self.running = self._deploying = self._work = None
        self._resumes = False
        if was_cut_off:
            self._changed()
        if self._next is not None or self._to_resume:
            self._wake()

    def _report(self, failure: Failure) -> None:
        if failure.check(JournalUnavailable):
            self._log.error("{app}: the journal: {problem}", app=self.app, problem=str(failure.value))
        elif failure.check(CancelledError) is None:
            self._log.failure("{app}: a fault in the lane", failure, app=self.app)

    def _supersede(self, covered: Deployment, by: Deployment) -> None:
        """Write it, with all that is superseded while something else is being written: a burst costs few calls."""
        self._covered[covered.id] = by.id
        if not self._is_covering:
            self._is_covering = True
            self._see_to(self._write_covered())

    async def _write_covered(self) -> None:
        try:
            while self._covered:
                covered, self._covered = self._covered, {}
                await self._insist(partial(self._journal.supersede, covered, self._now()))
        finally:
            self._is_covering = False

    def _record(self, deployment: Deployment, outcome: Outcome, *, reason: str = "") -> None:
        """Write how one ended that is not deployed."""
        end = partial(self._journal.finish, deployment.id, outcome, self._now(), reason=reason)
        self._see_to(self._insist(end))

    async def _insist(self, write: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Write as soon as the journal can; after a stop the next start does."""
        pause = JOURNAL_PAUSE
        while True:
            try:
                return await write()
            except NoSuchRow:
                return None
            except JournalUnavailable as problem:
                self._log.error("{app}: the journal: {problem}", app=self.app, problem=str(problem))
            await deferLater(self._clock, pause)
            pause = min(2 * pause, LONGEST_JOURNAL_PAUSE)

    def _see_to(self, work: Coroutine[Any, Any, None]) -> None:
        """Have it done beside all else, at the longest until a stop."""
        doing = Deferred.fromCoroutine(work)
        self._beside.add(doing)
        doing.addErrback(self._report).addBoth(lambda _: self._beside.discard(doing))
