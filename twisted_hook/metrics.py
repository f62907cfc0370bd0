"""What there is to count and to measure, for Prometheus: what has happened, and how things are when it asks.

What happens is learned from ``Changes``, a moment later and beside all work: nothing waits for it. Labels are names
from the configuration and words of our own; nothing that comes from outside is one. Counts begin with the process.
"""

from __future__ import annotations

import platform
import shutil
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from twisted_hook import __version__
from twisted_hook.boundaries import Journal
from twisted_hook.changes import Change, Changes, Kind
from twisted_hook.model import Deployment, JournalUnavailable, Outcome, Phase, ServerStatus, Steering
from twisted_hook.timings import MOMENTS, WORK, Durations

SOON = 1.0
"""Seconds until what has changed is looked at: most of it changes again by then."""
PORTION = 100
"""How many deployments are looked at each time: a flood of pushes is not to be slowed down by being counted."""
MOST = 10_000
"""So many deployments may wait to be looked at; an outcome that is dropped for more of them is never counted."""
BEAT = 0.5
"""Seconds between two looks at how late the reactor is."""
LANE_STATES = ("idle", "waiting", "deploying")
Labels = tuple[str, ...]


class Sort(StrEnum):
    """What a number is, in Prometheus' words."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric with all of its values; its name is without the prefix, and a counter's without ``_total``."""

    sort: Sort
    name: str
    words: str
    labels: Labels
    values: Mapping[Any, float | Durations]
    """By the values of the labels, in their order."""


class Lane(Protocol):
    """A lane, as far as it is looked at."""

    @property
    def running(self) -> Deployment | None: ...

    @property
    def unfinished(self) -> list[Deployment]: ...


class Server(Protocol):
    """An app's server, as far as it is looked at."""

    @property
    def status(self) -> ServerStatus: ...


class App(Protocol):
    """An app, as far as it is looked at."""

    @property
    def name(self) -> str: ...

    @property
    def lane(self) -> Lane: ...

    @property
    def server(self) -> Server | None: ...

    async def steering(self) -> Steering: ...


@dataclass(frozen=True, slots=True)
class Answered:
    """What the door has answered since the start."""

    verdicts: Mapping[tuple[str, str], int]
    """By hook and verdict."""
    refusals: Mapping[int, int]
    """By status."""


@dataclass(frozen=True, slots=True)
class Looks:
    """How often the remote of each app was looked at, and how often in vain."""

    all: Mapping[str, int]
    failed: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Sources:
    """Who is asked how things are."""

    apps: Callable[[], Iterable[App]]
    journal: Journal
    answered: Answered
    looks: Looks
    commits: Durations
    rows: Callable[[], Awaitable[Mapping[str, int]]]
    """How many rows each table of the journal has. Raises ``JournalUnavailable``."""
    state: Path


class Metrics:
    """Counts what changes from ``start`` on, and tells it with how things are."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, changes: Changes, *, now: Callable[[], float]) -> None:
        self._clock = clock
        self._changes = changes
        self._now = now
        self._began = now()
        self._sources: Sources | None = None
        self._leave: Callable[[], None] = lambda: None
        self._changed_ones: OrderedDict[str, None] = OrderedDict()
        """The deployments to look at."""
        self._counted: OrderedDict[str, None] = OrderedDict()
        """Those that have ended: some change once more after that."""
        self._look: IDelayedCall | None = None
        self._beat: IDelayedCall | None = None
        self._turn = DeferredLock()
        self._states: dict[str, str] = {}
        """The last state of each app's server that was seen."""
        self._lag = Durations(MOMENTS)
        self._outcomes: Counter[Labels] = Counter()
        self._restarts: Counter[Labels] = Counter()
        self._missed = 0
        self._phases: defaultdict[Labels, Durations] = defaultdict(lambda: Durations(WORK))
        self._deployments: defaultdict[Labels, Durations] = defaultdict(lambda: Durations(WORK))
        self._drains: defaultdict[Labels, Durations] = defaultdict(lambda: Durations(WORK))
        self._last_good: dict[str, float | None] = {}

    def start(self, sources: Sources) -> None:
        self._sources = sources
        self._leave = self._changes.watch(self._note_change)
        self._beat = self._clock.callLater(BEAT, self._note_lag, self._clock.seconds() + BEAT)

    def stop(self) -> None:
        self._sources = None
        self._leave()
        for call in (self._look, self._beat):
            if call is not None and call.active():
                call.cancel()

    def drained(self, app: str, seconds: float) -> None:
        """A server that others have taken the place of has ended, so long after it was asked to."""
        self._drains[app,].note(seconds)

    async def text(self, accept: str = "") -> tuple[bytes, str]:
        """All of it as Prometheus reads it, and its content type: OpenMetrics for who accepts that."""
        # It costs as much as a third of a start, and few have somebody who asks.
        from twisted_hook import exposition  # noqa: PLC0415

        return exposition.text(await self.families(), accept)

    async def families(self) -> list[Family]:
        """Each metric with its values now. What the journal does not tell is left out."""
        if self._sources is None:
            return []
        sources, apps = self._sources, list(self._sources.apps())
        await self._settle(MOST)
        known: list[Family] = []
        try:
            known += await self._from_journal(sources, apps)
        except JournalUnavailable as problem:
            self._log.warn("metrics: the journal: {problem}", problem=str(problem))
        return [
            *self._of_the_process(sources),
            *self._of_the_door(sources),
            *self._counts(),
            *_of_apps(apps),
            *self._waiting(apps),
            *known,
        ]

    # What happens.

    def _note_change(self, change: Change) -> None:
        if change.kind is Kind.DEPLOYMENT:
            self._changed_ones[change.id] = None
            if len(self._changed_ones) > MOST:
                self._changed_ones.popitem(last=False)
                self._missed += 1
            self._look_soon()
        elif change.kind is Kind.APP:
            self._note_server(change.id)

    def _note_server(self, name: str) -> None:
        app = next((app for app in self._sources.apps() if app.name == name), None) if self._sources else None
        if app is None or app.server is None:
            return
        state, before = app.server.status.state, self._states.get(name)
        self._states[name] = state
        self._restarts[name,] += before == "restarting" and state == "starting"

    def _note_lag(self, due: float) -> None:
        now = self._clock.seconds()
        self._lag.note(now - due)
        self._beat = self._clock.callLater(BEAT, self._note_lag, now + BEAT)

    def _look_soon(self) -> None:
        if self._look is None and self._sources is not None:
            self._look = self._clock.callLater(SOON, self._look_now)

    def _look_now(self) -> None:
        self._look = None
        Deferred.fromCoroutine(self._settle(PORTION)).addErrback(
            lambda failure: self._log.failure("counting what was deployed", failure)
        )

    async def _settle(self, most: int) -> None:
        """Count those of the deployments that have ended among the next so many."""
        async with self._turn:
            for _turn in range(min(most, len(self._changed_ones)) if self._sources else 0):
                name, _ = self._changed_ones.popitem(last=False)
                try:
                    found = await self._sources.journal.deployment(name) if self._sources else None
                except CancelledError:
                    raise
                except JournalUnavailable:
                    self._changed_ones[name] = None
                    break
                if found is not None:
                    self._count(found)
        if self._changed_ones:
            self._look_soon()

    def _count(self, done: Deployment) -> None:
        end, begun = done.finished_at, done.started_at
        if done.outcome is None or end is None or end < self._began or done.id in self._counted:
            return
        self._counted[done.id] = None
        if len(self._counted) > MOST:
            self._counted.popitem(last=False)
        app, outcome = done.app, done.outcome.value
        self._outcomes[app, outcome, done.trigger.value] += 1
        if done.outcome is Outcome.DEPLOYED:
            self._last_good[app] = end
        if begun is None:  # it has waited, and no more
            return
        self._deployments[app, outcome].note(end - begun)
        self._phases[app, Phase.QUEUED.value].note(begun - done.queued_at)
        ends = [*(at for _, at in done.phases[1:]), end]
        for (phase, at), until in zip(done.phases, ends, strict=False):
            if phase is not Phase.DONE:
                self._phases[app, phase.value].note(until - at)

    # How things are.

    def _counts(self) -> list[Family]:
        one = (Sort.COUNTER, Sort.HISTOGRAM)
        return [
            Family(one[0], "deployments", "Deployments that have ended", ("app", "outcome", "trigger"), self._outcomes),
            Family(one[1], "deployment_seconds", "From begin to end", ("app", "outcome"), self._deployments),
            Family(one[1], "deployment_phase_seconds", "Time in a phase", ("app", "phase"), self._phases),
            Family(one[0], "server_restarts", "Starts of a server that ended by itself", ("app",), self._restarts),
            Family(one[1], "drain_seconds", "Until a replaced server had ended", ("app",), self._drains),
            Family(one[0], "changes_missed", "Deployments too many at once to be counted", (), {(): self._missed}),
        ]

    def _of_the_process(self, sources: Sources) -> list[Family]:
        build = (__version__, platform.python_version())
        free = shutil.disk_usage(sources.state).free
        looks = sources.looks
        return [
            Family(Sort.GAUGE, "build_info", "What runs", ("version", "python"), {build: 1}),
            Family(Sort.HISTOGRAM, "event_loop_lag_seconds", "How late the reactor is", (), {(): self._lag}),
            Family(Sort.HISTOGRAM, "journal_commit_seconds", "Time of a commit", (), {(): sources.commits}),
            Family(Sort.GAUGE, "state_free_bytes", "Free on the disk of the state directory", (), {(): free}),
            Family(Sort.COUNTER, "polls", "Looks at the remote", ("app",), _by_app(looks.all)),
            Family(Sort.COUNTER, "poll_failures", "Looks to which it did not answer", ("app",), _by_app(looks.failed)),
        ]

    def _of_the_door(self, sources: Sources) -> list[Family]:
        answered = sources.answered
        refusals = {(str(status),): count for status, count in answered.refusals.items()}
        return [
            Family(Sort.COUNTER, "deliveries", "Genuine deliveries", ("hook", "verdict"), answered.verdicts),
            Family(Sort.COUNTER, "requests_refused", "Requests that were refused", ("status",), refusals),
        ]

    async def _from_journal(self, sources: Sources, apps: list[App]) -> list[Family]:
        steering = {app.name: await app.steering() for app in apps}
        for name in steering.keys() - self._last_good.keys():
            found = await sources.journal.last_good(name)
            self._last_good[name] = found.finished_at if found else None
        good = {(name,): at for name in steering if (at := self._last_good.get(name)) is not None}
        rows = {(table,): count for table, count in (await sources.rows()).items()}
        paused = {(name,): float(each.paused) for name, each in steering.items()}
        pinned = {(name,): float(each.pinned) for name, each in steering.items()}
        return [
            Family(Sort.GAUGE, "app_paused", "Whether a person lets it wait", ("app",), paused),
            Family(Sort.GAUGE, "app_pinned", "Whether a person keeps it where it is", ("app",), pinned),
            Family(Sort.GAUGE, "last_success_timestamp_seconds", "When it was deployed last", ("app",), good),
            Family(Sort.GAUGE, "journal_rows", "Rows of the journal", ("table",), rows),
        ]

    def _waiting(self, apps: list[App]) -> list[Family]:
        now, waiting, oldest = self._now(), {}, {}
        for app in apps:
            waits = [each for each in app.lane.unfinished if each is not app.lane.running]
            waiting[app.name,] = float(len(waits))
            oldest[app.name,] = max((now - each.queued_at for each in waits), default=0.0)
        return [
            Family(Sort.GAUGE, "deployments_waiting", "Deployments in the queue", ("app",), waiting),
            Family(Sort.GAUGE, "oldest_waiting_seconds", "How long the oldest has waited", ("app",), oldest),
        ]


def _of_apps(apps: list[App]) -> list[Family]:
    lanes = {(app.name, state): float(state == _state_of(app.lane)) for app in apps for state in LANE_STATES}
    up = {(app.name,): float(app.server.status.state == "serving") for app in apps if app.server is not None}
    return [
        Family(Sort.GAUGE, "lane_state", "1 for what its lane does", ("app", "state"), lanes),
        Family(Sort.GAUGE, "server_up", "Whether its server serves", ("app",), up),
    ]


def _state_of(lane: Lane) -> str:
    if lane.running is not None:
        return "deploying"
    return "waiting" if lane.unfinished else "idle"


def _by_app(counts: Mapping[str, int]) -> dict[Labels, float]:
    return {(name,): float(count) for name, count in counts.items()}
