"""Runs that nobody has thought of: no accident, in whatever order, makes hookdeploy lose a push or run one twice.

``pytest --histories 20000 tests/test_history.py`` looks at as many, and ``--first-seed`` says where to begin.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.defer import DeferredLock
from twisted.logger import LogEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.history import (
    LAWS,
    Answered,
    Began,
    Ended,
    Event,
    History,
    Life,
    Moved,
    Restless,
    Row,
    Serves,
    Swapped,
    Trouble,
    Wished,
    broken,
)
from tests.simulation import SimulatedCheckout, Step, World, plan, run
from twisted_hook.apps import App
from twisted_hook.builders import Builders
from twisted_hook.deploy import Deploying
from twisted_hook.intake import Intake
from twisted_hook.lanes import Lane
from twisted_hook.model import Deployment, Launch, NewDelivery, Receipt, Steering
from twisted_hook.reconcile import Reconcile
from twisted_hook.story import Story


def names_of(problems: Sequence[str]) -> set[str]:
    """The laws that are broken."""
    return {problem.partition(":")[0] for problem in problems}


# Random histories.


def test_no_history_breaks_a_law(seeds: range) -> None:
    """P52 to P56, P64, P66, P83 to P85, and what lies between them."""
    for seed in seeds:
        if broken(run(seed)):
            pytest.fail(shrunk(seed))


def test_the_same_seed_gives_the_same_history() -> None:
    assert run(7) == run(7)


def shrunk(seed: int, *, tries: int = 300) -> str:
    """The shortest part of a plan that is found to break the same law, with its history, for a person to read."""
    steps = plan(seed)
    laws = names_of(broken(run(seed, steps)))
    size = len(steps) // 2
    while size and tries:
        for start in range(0, len(steps), size):
            fewer = steps[:start] + steps[start + size :]
            tries = max(tries - 1, 0)
            if tries and laws & names_of(broken(run(seed, fewer))):
                steps = fewer
                break
        else:
            size //= 2
    history = run(seed, steps)
    told = "\n".join(map(str, steps))
    return f"seed {seed}, with these steps of its plan:\n{told}\n\n{history}\n\n" + "\n".join(broken(history))


def test_a_failing_seed_is_shown_with_the_fewest_steps_that_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lane, "take_up", lambda lane, deployment: None)
    seed = next(seed for seed in range(100) if broken(run(seed)))
    told = shrunk(seed)
    plan_told = told.partition("\n\n")[0].splitlines()[1:]
    assert len(plan_told) < len(plan(seed)) / 2
    assert told.startswith(f"seed {seed}, ")
    assert "every_deployment_ends: " in told


# The checker catches what it is there for: each of these is a mistake that hookdeploy could make.

Mistake = Callable[[pytest.MonkeyPatch], None]


def forgets_what_was_superseded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lane, "_supersede", lambda lane, covered, by: None)


def forgets_what_was_cut_off(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lane, "take_up", lambda lane, deployment: None)


def deploys_what_the_push_names(patch: pytest.MonkeyPatch) -> None:
    original = Intake._record

    async def record(intake: Intake, new: NewDelivery) -> Receipt:
        lanes, named = intake._submit, new.message.pushes[0].after
        intake._submit = lambda deployment: lanes(replace(deployment, wanted=named))
        try:
            return await original(intake, new)
        finally:
            intake._submit = lanes

    patch.setattr(Intake, "_record", record)


def deploys_what_was_put_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Story, "objection", _none(""))


def builds_for_all_at_once(patch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def turn(builders: Builders, repository: str) -> AsyncIterator[None]:
        yield

    patch.setattr(Builders, "turn", turn)


def fetches_for_all_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(App, "_lock", lambda app, story: DeferredLock())


def answers_before_it_is_written(patch: pytest.MonkeyPatch) -> None:
    original = World.kill

    def kill(world: World) -> None:
        if world.daemon is not None and world.journal._deliveries:
            world.journal._deliveries.popitem()
        original(world)

    patch.setattr(World, "kill", kill)


def answers_500_when_the_disk_is_full(patch: pytest.MonkeyPatch) -> None:
    async def record(intake: Intake, new: NewDelivery) -> Receipt:
        receipt = await intake._journal.accept(new)
        intake._put_into_lanes(receipt.queued)
        return receipt

    patch.setattr(Intake, "_record", record)


def never_looks_at_a_remote(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reconcile, "start", lambda looks: None)
    patch.setattr(Reconcile, "look", lambda looks, apps: None)


def looks_and_forgets_what_it_knows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reconcile, "_stands", _none(False))


def deploys_what_runs_already(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Deploying, "_runs", _none(False))


def deploys_every_push(patch: pytest.MonkeyPatch) -> None:
    original = Lane.submit
    deploys_what_runs_already(patch)

    def submit(lane: Lane, deployment: Deployment) -> None:
        if lane.is_busy:
            lane._clock.callLater(1.0, submit, lane, deployment)
        else:
            original(lane, deployment)

    patch.setattr(Lane, "submit", submit)


def builds_once_more_to_be_sure(patch: pytest.MonkeyPatch) -> None:
    original = Deploying._build

    async def build(deploying: Deploying, *of: Any) -> Any:
        await original(deploying, *of)
        return await original(deploying, *of)

    patch.setattr(Deploying, "_build", build)


def deploys_what_is_held_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Story, "steering", _none(Steering()))


def only_says_that_it_is_cancelled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lane, "cancel", lambda lane, reason, deployment=None: True)


def serves_and_does_not_keep(patch: pytest.MonkeyPatch) -> None:
    async def swap(deploying: Deploying, server: Any, launch: Launch) -> None:
        await server.swap(launch, deploying._entered)

    patch.setattr(Deploying, "_swap", swap)


def deploys_what_is_to_be_skipped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Deploying, "_spared", _none(""))


def deploys_no_part_of_anything(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimulatedCheckout, "touches", _none(False))


def looks_again_at_what_it_has_spared(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reconcile, "_was_spared", _none(False))


def looks_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reconcile, "_stands", _none(False))
    patch.setattr(Story, "objection", _none(""))


def _none(answer: object) -> Callable[..., Coroutine[Any, Any, object]]:
    """A method that always gives this answer."""

    async def method(*_: object) -> object:
        return answer

    return method


CAUGHT: tuple[tuple[Mistake, str], ...] = (
    (answers_before_it_is_written, "what_was_answered_202_is_written"),
    (builds_for_all_at_once, "one_works_on_a_repository_at_a_time"),
    (fetches_for_all_at_once, "one_works_on_a_repository_at_a_time"),
    (serves_and_does_not_keep, "a_restart_would_serve_what_serves"),
    (never_looks_at_a_remote, "the_tip_serves"),
    (builds_once_more_to_be_sure, "a_deployment_builds_once"),
    (deploys_every_push, "a_burst_during_a_build_costs_one_more"),
    (forgets_what_was_superseded, "every_deployment_ends"),
    (forgets_what_was_cut_off, "every_deployment_ends"),
    (answers_500_when_the_disk_is_full, "it_answers_202_or_503"),
    (deploys_what_the_push_names, "never_older_code_over_newer"),
    (deploys_what_was_put_back, "what_was_taken_back_stays_back"),
    (looks_and_forgets_what_it_knows, "a_look_does_not_build_what_has_failed"),
    (deploys_what_runs_already, "nothing_is_deployed_twice_unasked"),
    (deploys_what_is_held_back, "what_a_person_holds_back_is_not_begun"),
    (deploys_what_is_to_be_skipped, "what_is_to_be_skipped_is_not_deployed_unasked"),
    (deploys_no_part_of_anything, "the_tip_serves"),
    (looks_again_at_what_it_has_spared, "it_comes_to_rest"),
    (only_says_that_it_is_cancelled, "what_is_given_up_is_not_deployed"),
    (looks_for_ever, "it_comes_to_rest"),
)
CAUGHT_LATE: dict[Mistake, tuple[int, ...]] = {only_says_that_it_is_cancelled: (41,)}
"""By which seeds, where many histories come before the first of them."""


@pytest.mark.parametrize(("mistake", "law"), CAUGHT, ids=lambda value: getattr(value, "__name__", None))
def test_the_checker_catches_a_hookdeploy_that(
    mistake: Mistake, law: str, monkeypatch: pytest.MonkeyPatch, logged_failures: list[LogEvent]
) -> None:
    mistake(monkeypatch)
    assert any(law in names_of(broken(run(seed))) for seed in (*CAUGHT_LATE.get(mistake, ()), *range(150)))
    logged_failures.clear()  # a broken hookdeploy may have complained


def test_every_law_catches_a_mistake() -> None:
    assert {law for _, law in CAUGHT} == {law.__name__ for law in LAWS}


# The laws, one by one.

START = (Life(0.0, "started"), Life(0.1, "ready"), Moved(0.0, "web", "main", "aaa"))
PUSH = Row("1", "blog", "push", "deployed", revision="aaa")


def build(deployment: str, began: float, ended: float, *, app: str = "blog") -> tuple[Event, ...]:
    return Began(began, "build", app, "web", deployment), Ended(ended, "build", app, "web")


def accepted(at: float, *deployments: str) -> Answered:
    return Answered(at, at, f"guid at {at}", 202, "accepted", "d", deployments)


class Laws(SynchronousTestCase):
    """What each of them says of a history of a few lines."""

    def assertBroken(self, law: str, *events: Event, rows: Sequence[Row] = (PUSH,)) -> None:
        found = broken(History((*START, *events), tuple(rows), frozenset({"d"})))
        self.assertEqual(names_of(found), {law}, found)

    def assertFine(self, *events: Event, rows: Sequence[Row] = (PUSH,)) -> None:
        self.assertEqual(broken(History((*START, *events), tuple(rows), frozenset({"d"}))), [])

    def test_a_push_that_is_deployed_is_fine(self) -> None:
        self.assertFine(
            accepted(1.0, "1"),
            *build("1", 2.0, 3.0),
            Swapped(4.0, "blog", "aaa", "1"),
            Serves(9.0, "blog", "aaa", "aaa", "aaa"),
        )

    def test_what_was_answered_202_is_written(self) -> None:
        self.assertBroken("what_was_answered_202_is_written", accepted(1.0, "2"))
        lost = replace(accepted(1.0, "1"), delivery="another")
        self.assertBroken("what_was_answered_202_is_written", lost)
        self.assertFine(replace(lost, code=503))

    def test_two_builders_of_a_repository_are_seen(self) -> None:
        shop = replace(PUSH, id="2", app="shop")
        both = (*build("1", 1.0, 3.0), *build("2", 2.0, 4.0, app="shop"))
        in_order = sorted(both, key=lambda event: event.at)
        self.assertBroken("one_works_on_a_repository_at_a_time", *in_order, rows=[PUSH, shop])
        killed = Life(1.5, "killed"), Life(1.6, "started"), Life(1.7, "ready")
        self.assertFine(in_order[0], *killed, in_order[1], in_order[3], rows=[PUSH, shop])

    def test_what_a_restart_would_not_serve_is_seen(self) -> None:
        self.assertBroken("a_restart_would_serve_what_serves", Serves(9.0, "blog", "aaa", None, "aaa"))

    def test_a_tip_that_does_not_serve_needs_a_reason(self) -> None:
        moved, end = Moved(1.0, "web", "main", "bbb"), Serves(9.0, "blog", "aaa", "aaa", "bbb")
        self.assertBroken("the_tip_serves", moved, end)
        self.assertFine(moved, replace(end, pinned=True))
        self.assertFine(moved, replace(end, paused=True))
        failed = Row("2", "blog", "push", "failed", "no build", revision="bbb")
        self.assertFine(moved, end, rows=[PUSH, failed])
        self.assertBroken("the_tip_serves", moved, end, rows=[PUSH, replace(failed, transient=True)])
        put_back = Row("2", "blog", "rollback", "deployed", revision="aaa", previous="bbb")
        self.assertFine(moved, end, rows=[PUSH, put_back])
        self.assertFine(moved, Wished(2.0, "blog", "deploy older", "2"), end)
        died = Row("2", "blog", "rollback", "deployed", revision="aaa", previous="ccc")
        self.assertFine(moved, Swapped(2.0, "blog", "aaa", "2"), end, rows=[PUSH, died])
        self.assertBroken("the_tip_serves", moved, end, rows=[PUSH, died])

    def test_a_tip_that_does_not_serve_may_be_spared(self) -> None:
        moved, end = Moved(1.0, "web", "main", "bbb", skips=True), Serves(9.0, "blog", "aaa", "aaa", "bbb", spared=True)
        self.assertFine(moved, end)
        ran, law = Swapped(0.5, "blog", "aaa", "1"), "what_is_to_be_skipped_is_not_deployed_unasked"
        swapped = Swapped(2.0, "blog", "bbb", "2")
        row = Row("2", "blog", "push", "deployed", revision="bbb", previous="aaa")
        self.assertBroken(law, ran, moved, swapped, rows=[PUSH, row])
        self.assertFine(moved, swapped, rows=[PUSH, row])
        self.assertFine(ran, moved, swapped, rows=[PUSH, replace(row, trigger="manual")])
        self.assertFine(ran, moved, swapped, rows=[PUSH, replace(row, previous=None)])
        self.assertFine(ran, moved, swapped, rows=[PUSH, replace(row, previous="bbb")])

    def test_a_second_build_needs_a_kill_or_a_journal_that_fails(self) -> None:
        first, second = build("1", 1.0, 2.0), build("1", 5.0, 6.0)
        self.assertBroken("a_deployment_builds_once", *first, *second)
        self.assertFine(*first, Life(3.0, "killed"), Life(3.1, "started"), Life(3.2, "ready"), *second)
        self.assertFine(*first, Trouble(3.0, "journal"), Trouble(4.0, "fine"), *second)
        self.assertFine(Trouble(0.5, "journal"), *first, Trouble(4.0, "fine"), *second)
        self.assertBroken("a_deployment_builds_once", Trouble(0.5, "journal"), Trouble(0.6, "fine"), *first, *second)

    def test_a_build_of_nothing_is_seen(self) -> None:
        self.assertBroken("a_deployment_builds_once", *build("7", 1.0, 2.0))

    def test_a_burst_may_cost_one_build_and_no_two(self) -> None:
        rows = [PUSH, *(replace(PUSH, id=each) for each in ("2", "3"))]
        began, ended = build("1", 1.0, 5.0)
        burst = began, accepted(2.0, "2"), accepted(3.0, "3"), ended
        self.assertFine(*burst, *build("3", 6.0, 7.0), rows=rows)
        both = *build("2", 6.0, 7.0), *build("3", 8.0, 9.0)
        self.assertBroken("a_burst_during_a_build_costs_one_more", *burst, *both, rows=rows)

    def test_a_deployment_without_an_end_is_seen(self) -> None:
        law, open_ = "every_deployment_ends", replace(PUSH, outcome=None)
        self.assertBroken(law, rows=[open_])
        self.assertFine(Serves(9.0, "blog", "aaa", "aaa", "aaa", paused=True), rows=[open_])
        self.assertBroken(law, rows=[replace(PUSH, outcome="failed")])

    def test_what_is_superseded_leads_to_what_is_not(self) -> None:
        law, one = "every_deployment_ends", replace(PUSH, outcome="superseded", superseded_by="2")
        two = replace(one, id="2", superseded_by="3")
        self.assertFine(rows=[one, two, replace(PUSH, id="3")])
        self.assertBroken(law, rows=[one, two])
        self.assertBroken(law, rows=[one, replace(two, superseded_by="1")])
        self.assertBroken(law, rows=[one, replace(PUSH, id="2", app="shop")])

    def test_a_500_is_seen(self) -> None:
        self.assertBroken("it_answers_202_or_503", Answered(1.0, 1.0, "guid", 500))
        self.assertFine(Answered(1.0, 1.0, "guid", 503), Answered(1.0, 1.0, "guid", None))

    def test_older_code_is_seen_unless_a_person_wanted_it(self) -> None:
        law, newer = "never_older_code_over_newer", Moved(2.0, "web", "main", "bbb")
        begun, swapped = build("1", 3.0, 4.0), Swapped(5.0, "blog", "aaa", "1")
        self.assertBroken(law, newer, *begun, swapped)
        self.assertFine(newer, *begun, swapped, rows=[replace(PUSH, trigger="manual")])
        self.assertFine(newer, Moved(2.5, "web", "main", "aaa"), *begun, swapped)
        self.assertFine(begun[0], replace(newer, at=3.5), begun[1], swapped)

    def test_what_was_taken_back_and_comes_again_is_seen(self) -> None:
        law, swapped = "what_was_taken_back_stays_back", Swapped(1.0, "blog", "aaa", "1", kept=False)
        back, again = replace(PUSH, outcome="rolled_back", reason="500"), replace(PUSH, id="2")
        events = swapped, Swapped(2.0, "blog", "aaa", "2")
        self.assertBroken(law, *events, rows=[back, again])
        self.assertFine(*events, rows=[back, replace(again, trigger="manual")])

    def test_a_look_that_builds_what_has_failed_is_seen(self) -> None:
        law = "a_look_does_not_build_what_has_failed"
        failed = replace(PUSH, outcome="failed", reason="no build")
        again, built = Row("2", "blog", "poll", "deployed", revision="aaa"), build("2", 100.0, 101.0)
        self.assertBroken(law, *built, rows=[failed, again])
        self.assertFine(*built, rows=[replace(failed, transient=True), again])
        soon = *build("1", 90.0, 91.0), *built  # it was asked for before the other one had failed
        self.assertFine(*soon, rows=[failed, again])
        self.assertFine(Moved(0.5, "web", "main", "aaa"), *built, rows=[failed, again])

    def test_what_is_deployed_twice_unasked_is_seen(self) -> None:
        law = "nothing_is_deployed_twice_unasked"
        events = Swapped(1.0, "blog", "aaa", "1"), Swapped(2.0, "blog", "aaa", "2")
        again = replace(PUSH, id="2")
        self.assertBroken(law, *events, rows=[PUSH, again])
        self.assertFine(*events, rows=[PUSH, replace(again, trigger="manual")])
        self.assertFine(*events, rows=[PUSH, replace(again, attempts=2)])

    def test_what_is_begun_while_it_is_held_back_is_seen(self) -> None:
        law, late = "what_a_person_holds_back_is_not_begun", build("1", 100.0, 101.0)
        for what, back in (("pin", "unpin"), ("pause", "resume")):
            self.assertBroken(law, Wished(1.0, "blog", what), *late)
            self.assertFine(Wished(1.0, "shop", what), *late)
            self.assertFine(Wished(1.0, "blog", what), Wished(2.0, "blog", back), *late)
            self.assertFine(Wished(1.0, "blog", what), *late, rows=[replace(PUSH, trigger="rollback")])
            self.assertFine(Wished(99.0, "blog", what), *late)

    def test_what_is_given_up_and_deployed_is_seen(self) -> None:
        self.assertBroken("what_is_given_up_is_not_deployed", Wished(1.0, "blog", "cancel", "1"))
        self.assertFine(Wished(1.0, "blog", "cancel", "2"), rows=[PUSH, replace(PUSH, id="2", outcome="unchanged")])

    def test_what_never_comes_to_rest_is_seen(self) -> None:
        self.assertBroken("it_comes_to_rest", Restless(9.0, "on and on"))
        self.assertBroken("it_comes_to_rest", Life(5.0, "killed"), Life(5.1, "started"))


class ReadingAHistory(SynchronousTestCase):
    """A history is printed for a person."""

    def test_an_event_is_a_line_and_what_is_empty_is_left_out(self) -> None:
        told = str(History((Began(1.5, "build", "blog", "web"),), (PUSH,))).splitlines()
        self.assertEqual(told[0].split(), ["1.500", "began", "work=build", "app=blog", "repository=web"])
        self.assertEqual(told[-1].split()[:3], ["row", "id=1", "app=blog"])

    def test_a_step_is_told_by_its_time_and_its_kind(self) -> None:
        self.assertEqual(str(Step(1.25, "kill", "0 0")), "1.2 kill")
