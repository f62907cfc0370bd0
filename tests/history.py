"""What was seen of a hookdeploy from outside, as one list of events, and the laws that no history may break.

Pure: it runs nothing. A simulated run and one of the installed program write the same events. Times are seconds on one
steady clock, whatever the wall clock did; ids and commits are strings. Each law is a function of its own that gives the
ways in which a history breaks it, in words; ``broken`` asks them all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TypeVar

E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class Answered:
    """A delivery that was sent and answered; ``code`` is None if nobody answered."""

    at: float
    sent_at: float
    guid: str
    code: int | None
    status: str = ""
    """What a 202 says: ``accepted``, ``duplicate`` or ``ignored``."""
    delivery: str = ""
    deployments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Moved:
    """The origin's ref names this commit from now on."""

    at: float
    repository: str
    ref: str
    commit: str
    skips: bool = False
    """Its author asks that it not be deployed."""


@dataclass(frozen=True, slots=True)
class Life:
    """hookdeploy was ``killed`` or ``started``, or was ``ready`` to take deliveries."""

    at: float
    what: str


@dataclass(frozen=True, slots=True)
class Began:
    """``build``, or ``git`` that writes into what the apps of one repository share."""

    at: float
    work: str
    app: str
    repository: str
    deployment: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of what ``Began``, whatever the end; what a kill cuts off ends with it."""

    at: float
    work: str
    app: str
    repository: str


@dataclass(frozen=True, slots=True)
class Swapped:
    """A deployment put a commit in the place of what served. One that was not ``kept`` gave its place back."""

    at: float
    app: str
    commit: str
    deployment: str
    kept: bool = True


@dataclass(frozen=True, slots=True)
class Wished:
    """A person asked for this, and was told that it will be so: a verb of the command line."""

    at: float
    app: str
    what: str
    deployment: str = ""


@dataclass(frozen=True, slots=True)
class Trouble:
    """The nemesis did something.

    ``journal`` means that writes fail, ``fine`` that all of it is over, and ``renewed`` that the journal began anew.
    """

    at: float
    what: str


@dataclass(frozen=True, slots=True)
class Serves:
    """What an app serves when all has come to rest, what a restart would serve, and what its ref names."""

    at: float
    app: str
    commit: str | None
    current: str | None
    tip: str | None
    paused: bool = False
    pinned: bool = False
    spared: bool = False
    """What the ref names need not be deployed here: it says so itself, or nothing of the app differs."""


@dataclass(frozen=True, slots=True)
class Restless:
    """It never came to rest: it still does things long after the world has gone quiet."""

    at: float
    what: str


Event = Answered | Moved | Life | Began | Ended | Swapped | Wished | Trouble | Serves | Restless


@dataclass(frozen=True, slots=True)
class Row:
    """A deployment as the journal has it at the end."""

    id: str
    app: str
    trigger: str
    outcome: str | None = None
    reason: str = ""
    wanted: str | None = None
    revision: str | None = None
    previous: str | None = None
    superseded_by: str | None = None
    attempts: int = 1
    transient: bool = False
    lost: bool = False
    """It was in a journal that is no more."""


@dataclass(frozen=True)
class History:
    """Events in the order in which they happened, and the journal at the end."""

    events: tuple[Event, ...]
    rows: tuple[Row, ...] = ()
    deliveries: frozenset[str] = frozenset()
    """The ids of the deliveries that are in the journal."""

    def all(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def by_id(self) -> dict[str, Row]:
        return {row.id: row for row in self.rows}

    @property
    def apps(self) -> list[str]:
        return sorted({event.app for event in self.all(Serves)} | {row.app for row in self.rows})

    def __str__(self) -> str:
        return "\n".join([*map(_line, self.events), "", *map(_line, self.rows)])


BY_A_PERSON = frozenset({"manual", "rollback"})
BAD = frozenset({"failed", "rolled_back", "cancelled", "interrupted"})
GRACE = 60.0
"""Seconds after which nothing begins any more that had its turn already, however slow the journal is."""
Law = Callable[[History], Iterator[str]]


def broken(history: History) -> list[str]:
    """Every way in which this history breaks a law, each with the law's name."""
    return [f"{law.__name__}: {problem}" for law in LAWS for problem in law(history)]


def what_was_answered_202_is_written(history: History) -> Iterator[str]:
    """I1."""
    rows = history.by_id
    renewed = max((event.at for event in history.all(Trouble) if event.what == "renewed"), default=-1.0)
    for answer in history.all(Answered):
        if answer.code == 202 and answer.sent_at > renewed:
            if answer.delivery and answer.delivery not in history.deliveries:
                yield f"{answer.guid} was answered at {answer.at:g}, and its delivery {answer.delivery} is not there"
            for deployment in answer.deployments:
                if deployment not in rows:
                    yield f"{answer.guid} was answered at {answer.at:g}, and deployment {deployment} is not there"


def one_works_on_a_repository_at_a_time(history: History) -> Iterator[str]:
    """I2: one builder of a repository, and one that writes into its mirror."""
    busy: dict[tuple[str, str], str] = {}
    for event in history.events:
        match event:
            case Life():
                busy.clear()
            case Began(at, work, app, repository):
                other = busy.setdefault((work, repository), app)
                if other != app:
                    yield f"{app} began its {work} on {repository} at {at:g} while that of {other} ran"
            case Ended(_, work, app, repository):
                if busy.get((work, repository)) == app:
                    del busy[work, repository]


def a_restart_would_serve_what_serves(history: History) -> Iterator[str]:
    """I3; but for what was adopted while the disk was too full to keep it: that is kept at the next start."""
    was_full = any(event.what == "disk" for event in history.all(Trouble))
    for end in history.all(Serves):
        if end.commit != end.current and not (was_full and end.current is None):
            yield f"{end.app} serves {end.commit}, and {end.current} is its current release"


def the_tip_serves(history: History) -> Iterator[str]:
    """I4: after all has come to rest, unless there is a reason that a person sees."""
    for end in history.all(Serves):
        if end.commit != end.tip and not (end.paused or end.pinned or end.spared) and not _is_excused(history, end):
            yield f"{end.app} serves {end.commit}, and the tip is {end.tip}"


def _is_excused(history: History, end: Serves) -> bool:
    """The tip was tried and found wanting, or a person did not want it."""
    about = [row for row in history.rows if row.app == end.app and end.tip in (row.revision, row.previous)]
    failed = any(row.revision == end.tip and row.outcome in BAD and not row.transient for row in about)
    put_back = any(_took_back(row) == end.tip for row in about)
    moved = max(event.at for event in history.all(Moved) if event.commit == end.tip)
    asked = [wish for wish in history.all(Wished) if wish.app == end.app and wish.what in ("deploy older", "rollback")]
    back = {row.id for row in history.rows if row.app == end.app and row.trigger == "rollback"}  # one that died, too
    gone = [event for event in history.all(Swapped) if event.deployment in back]
    since = [*(wish.at for wish in asked), *(event.at for event in gone)]
    return failed or put_back or any(at > moved for at in since)


def _took_back(row: Row) -> str | None:
    """The revision that does not serve any more because of this deployment."""
    if row.outcome == "rolled_back":
        return row.revision
    return row.previous if row.trigger == "rollback" and row.outcome == "deployed" else None


def a_deployment_builds_once(history: History) -> Iterator[str]:
    """I5: builds ≤ accepted pushes + reconciles + wishes; more only for what a kill or the journal has cut off."""
    builds: defaultdict[str, list[float]] = defaultdict(list)
    for event in history.all(Began):
        if event.work == "build":
            builds[event.deployment].append(event.at)
    for deployment, times in builds.items():
        if deployment not in history.by_id:
            yield f"the build at {times[0]:g} is of no deployment"
        for before, after in pairwise(times):
            if not _something_happened(history, before, after):
                yield f"{deployment} was built at {before:g} and at {after:g}"


def _something_happened(history: History, after: float, before: float) -> bool:
    """Whether hookdeploy was killed, or its journal failed, in between."""
    killed = any(after <= event.at <= before for event in history.all(Life))
    killed = killed or any(after <= event.at <= before for event in history.all(Trouble) if event.what == "renewed")
    state, seen = "fine", False
    for event in history.all(Trouble):
        seen = seen or (state == "journal" and after <= event.at) or (event.what == "journal" and after <= event.at)
        state = event.what if event.what in ("journal", "fine") else state
        if event.at > before:
            break
    return killed or seen


def a_burst_during_a_build_costs_one_more(history: History) -> Iterator[str]:
    """I5."""
    built = {event.deployment for event in history.all(Began) if event.work == "build"}
    news = [answer for answer in history.all(Answered) if answer.status == "accepted"]
    for app, began, ended in _builds(history):
        rows = [history.by_id.get(one) for answer in news if began < answer.at < ended for one in answer.deployments]
        costly = [row.id for row in rows if row is not None and row.app == app and row.id in built]
        if len(costly) > 1:
            yield f"of what {app} was sent during its build at {began:g} all these were built: {costly}"


def _builds(history: History) -> Iterator[tuple[str, float, float]]:
    """The builds that were not cut off: whose, from when, to when."""
    running: dict[str, float] = {}
    for event in history.events:
        match event:
            case Life():
                running.clear()
            case Began(at, "build", app):
                running[app] = at
            case Ended(at, "build", app) if app in running:
                yield app, running.pop(app), at


def every_deployment_ends(history: History) -> Iterator[str]:
    """I9: with a reason if it failed; what waits for a pause to end may wait."""
    held_back = {end.app for end in history.all(Serves) if end.paused}
    rows = history.by_id
    for row in history.rows:
        if row.lost:
            continue
        if row.outcome is None and row.app not in held_back:
            yield f"{row.id} of {row.app} has not ended"
        if row.outcome in BAD and not row.reason:
            yield f"{row.id} of {row.app} is {row.outcome} for no reason"
        if row.outcome == "superseded":
            seen, cover = {row.id}, row
            while cover.superseded_by in rows and cover.superseded_by not in seen:
                cover = rows[cover.superseded_by]
                seen.add(cover.id)
            if cover.outcome == "superseded" or cover.app != row.app:
                yield f"{row.id} of {row.app} is superseded by {row.superseded_by}, which leads to nothing of it"


def it_answers_202_or_503(history: History) -> Iterator[str]:
    """I10."""
    for answer in history.all(Answered):
        if answer.code not in (202, 503, None):
            yield f"{answer.guid} was answered {answer.code} at {answer.at:g}"


def never_older_code_over_newer(history: History) -> Iterator[str]:
    """Unless a person said so, a deployment puts in place what was the tip at some time after it had begun.

    Deployments of an app come one after the other, so that none is of older code than the one before it.
    """
    rows, until = history.by_id, _tenures(history)
    begun: dict[str, float] = {}
    for event in history.events:
        match event:
            case Began(at, _, _, _, deployment):
                begun.setdefault(deployment, at)
            case Swapped(at, app, commit, deployment) if deployment in rows:
                asked_for = rows[deployment].trigger in BY_A_PERSON
                if not asked_for and until(commit, at) < begun.get(deployment, 0.0):
                    yield f"{app}: {commit} was put in place at {at:g} by {deployment}, and was not the tip any more"


def _tenures(history: History) -> Callable[[str, float], float]:
    """Until when a commit was the tip of its ref, as known at some time; infinity while it is."""
    moves = history.all(Moved)

    def until(commit: str, at: float) -> float:
        last = -1.0
        for one in moves:
            if one.commit == commit and one.at <= at:
                place = (one.repository, one.ref)
                ends = (e.at for e in moves if (e.repository, e.ref) == place and one.at < e.at <= at)
                last = max(last, next(ends, float("inf")))
        return last

    return until


def what_was_taken_back_stays_back(history: History) -> Iterator[str]:
    """Until a person asks for it."""
    rows = history.by_id
    for app in history.apps:
        back: dict[str | None, str] = {}
        for event in history.all(Swapped):
            row = rows.get(event.deployment)
            if event.app != app or row is None or row.lost:
                continue
            if row.trigger in BY_A_PERSON:
                back.pop(event.commit, None)
            elif back.get(event.commit, row.id) != row.id:  # not what was cut off before it could be written down
                yield f"{app}: {event.commit}, taken back by {back[event.commit]}, was deployed again by {row.id}"
            back[_took_back(row)] = row.id


def a_look_does_not_build_what_has_failed(history: History) -> Iterator[str]:
    """What failed for good, or was given up, is left to a person, a push, or a newer commit."""
    built = {event.deployment for event in history.all(Began) if event.work == "build"}
    moves = Counter(event.commit for event in history.all(Moved))
    for row in history.rows:
        if row.trigger == "poll" and row.id in built and moves[row.revision or ""] < 2:  # else the origin wants it back
            about = [each for each in history.rows if (each.app, each.revision) == (row.app, row.revision)]
            told = [each for each in about if each.id < row.id and each.outcome in BAD | {"deployed"} and not each.lost]
            if told and told[-1].outcome in BAD - {"interrupted"} and not told[-1].transient:
                begun = {
                    each: [e.at for e in history.all(Began) if e.deployment == each] for each in (row.id, told[-1].id)
                }
                if min(begun[row.id]) < max(begun[told[-1].id], default=0.0) + GRACE:
                    continue  # it was written down before the other one had failed
                yield f"{row.id} built {row.revision} of {row.app} again, which {told[-1].outcome} as {told[-1].id}"


def nothing_is_deployed_twice_unasked(history: History) -> Iterator[str]:
    """Two in a row of the same commit; again after it ended badly in between, or after a kill."""
    rows = history.by_id
    for app in history.apps:
        kept = [event for event in history.all(Swapped) if event.app == app and event.kept]
        for before, after in pairwise(kept):
            row, earlier = rows.get(after.deployment), rows.get(before.deployment)
            if before.commit != after.commit or row is None or row.trigger in BY_A_PERSON | {"start"}:
                continue
            if earlier is not None and earlier.lost:  # nobody knows any more that it was deployed
                continue
            between = (each for each in history.rows if before.deployment <= each.id < row.id and each.app == app)
            badly = any(each.revision == after.commit and each.outcome in BAD for each in between)
            if not badly and row.attempts == 1 and not _something_happened(history, before.at, after.at):
                yield f"{app}: {after.commit} was deployed at {before.at:g} and, unasked, at {after.at:g}"


def what_a_person_holds_back_is_not_begun(history: History) -> Iterator[str]:
    """While an app is pinned or paused, only what a person asks for is begun; what had its turn then goes on."""
    rows = history.by_id
    held: defaultdict[str, dict[str, float]] = defaultdict(dict)
    begun: set[str] = set()
    for event in history.events:
        match event:
            case Trouble(_, "renewed"):
                held.clear()
            case Wished(at, app, ("pin" | "pause") as what):
                held[app].setdefault(what, at)
            case Wished(_, app, ("unpin" | "resume") as what):
                held[app].pop({"unpin": "pin", "resume": "pause"}[what], None)
            case Began(at, _, app, _, deployment) if deployment in rows and deployment not in begun:
                begun.add(deployment)
                since = [what for what, when in held[app].items() if at > when + GRACE]
                if since and rows[deployment].trigger not in BY_A_PERSON:
                    yield f"{deployment} of {app} was begun at {at:g}, while a person held it back: {since}"


def what_is_to_be_skipped_is_not_deployed_unasked(history: History) -> Iterator[str]:
    """Unless nothing ran before, or the same."""
    rows, skipped = history.by_id, {event.commit for event in history.all(Moved) if event.skips}
    ran: set[str] = set()
    for event in history.all(Swapped):
        row, ran_before = rows.get(event.deployment), event.app in ran
        ran.add(event.app)  # the row tells of its last attempt only, for which its first is what ran
        if row is None or row.previous in (None, event.commit) or row.trigger in BY_A_PERSON | {"start"}:
            continue
        if event.commit in skipped and ran_before:
            yield f"{event.app}: {event.commit} was put in place at {event.at:g} by {event.deployment}"


def what_is_given_up_is_not_deployed(history: History) -> Iterator[str]:
    """A person who was told that it is cancelled does not meet it again."""
    for wish in history.all(Wished):
        row = history.by_id.get(wish.deployment)
        if wish.what == "cancel" and row is not None and row.outcome == "deployed":
            killed = any(event.what == "killed" and event.at >= wish.at for event in history.all(Life))
            if not killed:
                yield f"{row.id} of {row.app} was cancelled at {wish.at:g} and deployed"


def it_comes_to_rest(history: History) -> Iterator[str]:
    """And it is ready again after each start."""
    yield from (f"{event.what} at {event.at:g}" for event in history.all(Restless))
    lives = Counter(event.what for event in history.all(Life))
    if lives["started"] != lives["ready"] + sum(
        (a.what, b.what) == ("started", "killed") for a, b in pairwise(history.all(Life))
    ):
        yield "it was started, and never ready"


LAWS: tuple[Law, ...] = (
    what_was_answered_202_is_written,
    one_works_on_a_repository_at_a_time,
    a_restart_would_serve_what_serves,
    the_tip_serves,
    a_deployment_builds_once,
    a_burst_during_a_build_costs_one_more,
    every_deployment_ends,
    it_answers_202_or_503,
    never_older_code_over_newer,
    what_was_taken_back_stays_back,
    a_look_does_not_build_what_has_failed,
    nothing_is_deployed_twice_unasked,
    what_a_person_holds_back_is_not_begun,
    what_is_to_be_skipped_is_not_deployed_unasked,
    what_is_given_up_is_not_deployed,
    it_comes_to_rest,
)


def _line(one: Event | Row) -> str:
    """One line for a person: what is empty is left out."""
    at = f"{one.at:10.3f} " if not isinstance(one, Row) else ""
    return f"{at}{type(one).__name__.lower():8} {' '.join(f'{name}={value}' for name, value in _told(one))}"


def _told(one: Event | Row) -> Iterator[tuple[str, object]]:
    for field in fields(one):
        value = getattr(one, field.name)
        if field.name not in ("at", "sent_at") and value not in ("", None, (), False):
            yield field.name, value
