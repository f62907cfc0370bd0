"""Sees what no hook has told: looks at the remotes, and has deployed what has moved.

It asks each remote for its refs and fetches nothing. Which commit is deployed is the deployment's own to find out: what
is written down here only says "look".
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_hook.lanes import Lane
from twisted_hook.model import Commit, Deployment, JournalUnavailable, Outcome, StepFailed, Trigger
from twisted_hook.story import Story

SOON = 1.0
"""Seconds until a look that is wanted now: what is wanted meanwhile is the same look."""
FIRST_PAUSE, LONGEST_PAUSE = 30.0, 300.0
"""Seconds between two looks that are to succeed."""
LONGEST_WAIT = 3600.0
"""Seconds until the same commit is tried again at the latest."""
LOOK_BACK = 20
"""Deployments among which one that has spared the tip is looked for."""


class Watched(Protocol):
    """An app as far as it is looked after here."""

    @property
    def name(self) -> str: ...

    @property
    def poll(self) -> float:
        """Seconds between two looks at its remote; 0 for none but those that are asked for."""

    @property
    def story(self) -> Story: ...

    @property
    def lane(self) -> Lane: ...


@dataclass(eq=False)
class _Remote:
    """A remote and the apps that follow it."""

    apps: list[Watched] = field(default_factory=list)
    timer: IDelayedCall | None = None
    in_turn: bool = False
    """It is being looked at, or waits for its turn."""
    wanted: set[str] = field(default_factory=set)
    """The apps for which it is looked at until that has succeeded."""
    pause: float = FIRST_PAUSE
    """Seconds until the look after one that has not."""


@dataclass(frozen=True, slots=True)
class _Tried:
    """A commit that was found here and not deployed before, as far as we know."""

    tip: str
    pause: float
    until: float
    """When it may be tried again, by the reactor's clock."""


def _a_tenth() -> float:
    return random.uniform(-0.1, 0.1)  # noqa: S311 - it spreads, and keeps no secret


class Reconcile:
    """Looks at every remote now and then, once for all of its apps.

    At most ``at_once`` are asked at a time. ``submit`` puts a deployment into the lane of whoever has the name of its
    app by then, and ``jitter`` gives by which part of itself an interval is longer.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        apps: Callable[[], Iterable[Watched]],
        submit: Callable[[Deployment], None],
        *,
        at_once: int = 4,
        jitter: Callable[[], float] = _a_tenth,
    ) -> None:
        self._clock = clock
        self._apps = apps
        self._submit = submit
        self._at_once = at_once
        self._jitter = jitter
        self._remotes: dict[str, _Remote] = {}
        self._turns: deque[_Remote] = deque()
        self._workers: set[Deferred[None]] = set()
        self._stopped = False
        self.looks: Counter[str] = Counter()
        """How often the remote was asked, by app."""
        self.failed_looks: Counter[str] = Counter()
        """How often it did not answer."""
        self._complaints: set[str] = set()
        """The remotes and the apps of which something was said that still holds."""
        self._tried: dict[str, _Tried] = {}
        """By app."""

    def start(self) -> None:
        """Look at every remote soon, and then again and again, as far as its apps want to be polled."""
        self.changed()
        for remote in self._remotes.values():
            if self._interval(remote) is not None:
                self._plan(remote, SOON)

    def look(self, apps: Collection[str] | None = None) -> None:
        """Look at the remotes of these apps soon, or of all, and again with growing pauses until that has succeeded.

        Whether they want to be polled does not matter. An app for which that is under way already has no look the
        sooner for it, unless all are asked for.
        """
        for remote in self._remotes.values():
            names = {app.name for app in remote.apps if apps is None or app.name in apps}
            is_news = bool(names - remote.wanted)
            remote.wanted |= names
            if names and apps is None:
                remote.pause = FIRST_PAUSE
            if names and (apps is None or is_news):
                self._plan(remote, SOON)

    def changed(self) -> None:
        """Apps have come, or gone, or are to be polled otherwise. It has no look the sooner: a new app deploys."""
        following: defaultdict[str, list[Watched]] = defaultdict(list)
        for app in self._apps():
            following[app.story.checkout.remote].append(app)
        for url in following:
            self._remotes.setdefault(url, _Remote())
        for url, remote in list(self._remotes.items()):
            remote.apps = following.get(url, [])
            remote.wanted &= {app.name for app in remote.apps}
            self._plan(remote, remote.pause if remote.wanted else self._interval(remote))
            if not remote.apps and not remote.in_turn:
                del self._remotes[url]
        names = {app.name for apps in following.values() for app in apps}
        self._tried = {name: tried for name, tried in self._tried.items() if name in names}
        self._complaints &= names | self._remotes.keys()

    async def stop(self) -> None:
        """Give up what is under way. Nothing of it is left when this returns."""
        self._stopped = True
        self._turns.clear()
        for remote in self._remotes.values():
            self._plan(remote, None)
        workers = list(self._workers)
        for work in workers:
            work.cancel()
        await DeferredList(workers)

    # When: each remote has a timer, or waits for its turn, or is being looked at.

    def _interval(self, remote: _Remote) -> float | None:
        polls = [app.poll for app in remote.apps if app.poll]
        return min(polls) * (1 + self._jitter()) if polls else None

    def _plan(self, remote: _Remote, delay: float | None) -> None:
        """Look at it after so many seconds, unless that was to happen earlier; for None not at all."""
        if remote.timer is not None:
            if delay is not None and remote.timer.getTime() <= self._clock.seconds() + delay:
                return
            remote.timer.cancel()
            remote.timer = None
        if delay is not None and not remote.in_turn and not self._stopped:
            remote.timer = self._clock.callLater(delay, self._fall_due, remote)

    def _fall_due(self, remote: _Remote) -> None:
        if all(app.lane.is_resuming for app in remote.apps):  # each deploys by itself if it finds that it has nothing
            remote.timer = self._clock.callLater(SOON, self._fall_due, remote)
            return
        remote.timer, remote.in_turn = None, True
        self._turns.append(remote)
        if len(self._workers) < self._at_once:
            work = Deferred.fromCoroutine(self._take_turns())
            self._workers.add(work)
            work.addErrback(self._report).addBoth(lambda _: self._workers.discard(work))

    async def _take_turns(self) -> None:
        while self._turns:
            remote = self._turns.popleft()
            wanted, remote.wanted = remote.wanted, set()
            try:
                unsettled = await self._look_at(remote, wanted)
            except CancelledError:
                raise
            except Exception:  # noqa: BLE001 - a bug in one look stops no other
                self._log.failure("a fault in looking at a remote")
                unsettled = wanted
            finally:
                remote.in_turn = False
            self._plan_next(remote, unsettled & {app.name for app in remote.apps})

    def _plan_next(self, remote: _Remote, unsettled: set[str]) -> None:
        interval = self._interval(remote)
        if unsettled:
            self._plan(remote, remote.pause if interval is None else min(remote.pause, interval))
            remote.pause = min(2 * remote.pause, LONGEST_PAUSE)
        else:
            self._plan(remote, SOON if remote.wanted else interval)  # wanted since it was asked
            remote.pause = FIRST_PAUSE
        remote.wanted |= unsettled

    def _report(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self._log.failure("a fault in looking at the remotes", failure)

    # What: one question for all apps of a remote, and then each for itself.

    async def _look_at(self, remote: _Remote, wanted: set[str]) -> set[str]:
        """Ask it, and act on the answer; those of the wanted for which that is to be done again."""
        apps = [(app, app.story) for app in remote.apps if app.poll or app.name in wanted]
        unsettled = {app.name for app, _ in apps if app.name in wanted and not _will_fetch(app.lane)}
        unsettled |= {app.name for app, _ in apps if app.lane.is_resuming}
        idle = [(app, story) for app, story in apps if _is_idle(app.lane)]
        advertised = await self._ask([story for _, story in idle]) if idle else None
        if advertised is not None:
            for app, story in idle:
                if await self._settle(app, story, advertised):
                    unsettled.discard(app.name)
        return unsettled

    async def _ask(self, stories: list[Story]) -> Mapping[str, str] | None:
        """What the remote of these has; None if it does not say."""
        story, names = stories[0], ", ".join(story.app.name for story in stories)
        url = story.checkout.remote
        self.looks.update(story.app.name for story in stories)
        patterns = dict.fromkeys(pattern for story in stories for pattern in story.checkout.follows)
        try:
            advertised = await story.checkout.advertised(story.runner, tuple(patterns))
        except StepFailed as failed:
            self.failed_looks.update(story.app.name for story in stories)
            self._complain(url, f"{story.shown(url)}: {story.shown(failed.reason)}", names)
            return None
        if url in self._complaints:
            self._complaints.discard(url)
            self._log.info("{apps}: {remote} answers again", apps=names, remote=story.shown(url))
        return advertised

    async def _settle(self, app: Watched, story: Story, advertised: Mapping[str, str]) -> bool:
        """Have deployed what has moved. False if it is not known, or not the time, to do so."""
        try:
            return await self._decide(app, story, advertised)
        except CancelledError:
            raise
        except JournalUnavailable:  # the journal says so itself
            return False
        except StepFailed as failed:
            self._complain(app.name, story.shown(failed.reason), app.name)
            return False
        except Exception:  # noqa: BLE001 - a bug in one look stops no other
            self._log.failure("{app}: a fault in looking at the remote", app=app.name)
            return False

    async def _decide(self, app: Watched, story: Story, advertised: Mapping[str, str]) -> bool:
        tip = story.checkout.tip_of(advertised)
        if tip is None:
            what = "tag" if story.app.tag else "branch"
            self._complain(app.name, f"the remote has no such {what}", app.name)
            return True
        runs = await story.checkout.has(story.runner, tip)
        self._complaints.discard(app.name)
        if runs:
            self._tried.pop(app.name, None)
            return True
        if (await story.steering()).pinned:
            return True
        return await self._judge(app, story, tip)

    async def _judge(self, app: Watched, story: Story, tip: str) -> bool:
        """What becomes of a tip that does not run."""
        journal = story.journal
        last, decided = await journal.last(app.name), await journal.decided(app.name, tip)
        if last is not None and await self._was_given_up_unseen(story, last, tip):
            await journal.describe(last.id, commit=Commit(tip, "", ""), previous=None, release=None)
            return True
        if await self._stands(story, tip, decided, last) or await story.objection(tip):
            return True
        if last is not None and await self._was_in_vain(story, tip, last):
            return True
        if await self._was_spared(story, tip):
            return True
        failed = decided or last
        if failed is not None and failed.transient and story.lacks_room:
            return False
        return await self._deploy(app, story, tip)

    async def _was_given_up_unseen(self, story: Story, last: Deployment, tip: str) -> bool:
        """Whether a person did not want this tip, before anybody knew that it is what the remote has.

        What a delivery has told of a tag may be the tag's own id.
        """
        names_nothing = last.revision is None and last.wanted is None and last.trigger is not Trigger.ROLLBACK
        if last.outcome is not Outcome.CANCELLED or not names_nothing:
            return False
        may_be_another = last.trigger is Trigger.PUSH and story.app.tag is None
        return not may_be_another or await story.journal.told_of(tip)

    async def _stands(self, story: Story, tip: str, decided: Deployment | None, last: Deployment | None) -> bool:
        """Whether what has become of a tip before is the last word about it.

        One that was deployed and does not run is the tip again because somebody has pushed it back, and one that
        failed for a while may be tried again; unless a person has since named another one to be deployed, and perhaps
        gone back from that.
        """
        if decided is None:
            return False
        if decided.outcome is not Outcome.DEPLOYED and not decided.transient:
            return True
        if last is not None and last.trigger is Trigger.ROLLBACK and last.previous is not None:
            last = await story.journal.decided(story.app.name, last.previous)
        if last is None or last.revision == tip:
            return False
        return last.trigger is Trigger.MANUAL and last.wanted is not None

    async def _was_spared(self, story: Story, tip: str) -> bool:
        """Whether it was found that this tip need not take the place of what still runs.

        What a person has put there since is not what ran then, and stays there too.
        """
        since: Deployment | None = None
        for each in await story.journal.deployments(app=story.app.name, limit=LOOK_BACK):
            if each.outcome is Outcome.UNCHANGED and each.revision == tip and story.would_spare(each.reason):
                if since is not None and _was_chosen(since):
                    return True
                return each.previous is not None and await story.checkout.has(story.runner, each.previous)
            if since is None and each.outcome is Outcome.DEPLOYED:
                since = each
        return False

    async def _was_in_vain(self, story: Story, tip: str, last: Deployment) -> bool:
        """Whether the last deployment was of local commits on top of the tip, and has failed or was put back.

        In place, the journal knows such a deployment by the id of those commits alone.
        """
        was_put_back = last.trigger is Trigger.ROLLBACK and last.outcome is Outcome.DEPLOYED
        if last.transient or (last.outcome is Outcome.DEPLOYED and not was_put_back):
            return False
        revision = last.previous if was_put_back else last.revision
        return revision not in (None, tip) and await story.checkout.has(story.runner, tip, revision)

    async def _deploy(self, app: Watched, story: Story, tip: str) -> bool:
        tried = self._tried.get(app.name)
        if tried is not None and tried.tip == tip and self._clock.seconds() < tried.until:
            return False
        told = await story.journal.told_of(tip)
        moved = "newest tag changed" if story.app.tag else "branch moved"
        reason = f"{moved}, " + ("and what its hook led to did not deploy it" if told else "no hook came")
        if not _is_idle(app.lane):  # it has come meanwhile
            return _will_fetch(app.lane)
        deployment = await story.journal.enqueue(app.name, Trigger.POLL, reason=reason)
        pause = 2 * tried.pause if tried is not None and tried.tip == tip else app.poll or FIRST_PAUSE
        pause = min(pause, LONGEST_WAIT)
        self._tried[app.name] = _Tried(tip, pause, self._clock.seconds() + pause)
        self._log.warn(
            "{app}: {reason}: {branch} is at {short}",
            app=app.name,
            branch=story.shown(story.app.tag or story.app.branch or "the branch"),
            short=tip[:7],
            reason=reason,
        )
        self._submit(deployment)
        return True

    def _complain(self, about: str, problem: str, apps: str) -> None:
        """Say it once, until it was well in between."""
        if about not in self._complaints:
            self._complaints.add(about)
            self._log.warn("{apps}: {problem}", apps=apps, problem=problem)


def _is_idle(lane: Lane) -> bool:
    """Whether what the app has, and what has become of it, is known."""
    return not (lane.is_resuming or lane.unfinished or lane.owes_an_end)


def _was_chosen(deployment: Deployment) -> bool:
    """Whether a person has named what was deployed."""
    named = deployment.trigger is Trigger.MANUAL and deployment.wanted is not None
    return named or deployment.trigger is Trigger.ROLLBACK


def _will_fetch(lane: Lane) -> bool:
    """Whether the remote will be asked anyway. What runs may have asked it already, for something older."""
    waiting = [each for each in lane.unfinished if each is not lane.running]
    return any(each.wanted is None and each.trigger is not Trigger.ROLLBACK for each in waiting)
