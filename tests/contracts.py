"""What every driver of a boundary promises, as coroutines that run on the real one and on its fake alike.

A check takes a fresh driver and fails by an ``AssertionError``. ``JOURNAL`` holds those of the journal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise

from twisted.internet.defer import Deferred, gatherResults

from twisted_hook.boundaries import Journal
from twisted_hook.model import (
    Commit,
    Deployment,
    JournalUnavailable,
    Message,
    NewDelivery,
    NoSuchRow,
    Outcome,
    Phase,
    Push,
    Receipt,
    Steering,
    Step,
    Trigger,
    Verdict,
    Verified,
)

REVISION = "a" * 40
STEP = Step("install", "uv sync --frozen", 11.0, 0.5, "ok")
ENDED = [outcome for outcome in Outcome if outcome not in {Outcome.FAILED, Outcome.INTERRUPTED}]


def pushed(
    guid: str, *apps: str, hook: str = "github", digest: str | None = None, at: float = 1.5, reason: str = ""
) -> NewDelivery:
    """A push of main; its body is as unique as its ``guid`` unless a ``digest`` is given."""
    push = Push("acme/blog", "refs/heads/main", REVISION, "main")
    return NewDelivery(hook, Message(guid, "push", (push,)), digest or f"body of {guid}", at, apps, reason)


async def _ended(journal: Journal, deployment: Deployment, outcome: Outcome, *, by: Deployment | None = None) -> None:
    if by is not None:
        await journal.supersede({deployment.id: by.id}, 9.0)
    else:
        await journal.finish(deployment.id, outcome, 9.0)


async def _refused(writing: Awaitable[object], kind: type[JournalUnavailable] = JournalUnavailable) -> bool:
    try:
        await writing
    except kind:
        return True
    return False


async def check_a_new_delivery_makes_a_queued_deployment_for_each_of_its_apps(journal: Journal) -> None:
    receipt = await journal.accept(pushed("one", "blog", "shop"))
    assert receipt.verdict is Verdict.ACCEPTED
    assert receipt.deployments == receipt.queued
    assert [deployment.app for deployment in receipt.queued] == ["blog", "shop"]
    assert {(one.trigger, one.phase, one.attempts, one.outcome) for one in receipt.queued} == {
        (Trigger.PUSH, Phase.QUEUED, 0, None)
    }
    assert [await journal.deployment(one.id) for one in receipt.queued] == list(receipt.queued)


async def check_a_delivery_is_kept_as_it_came(journal: Journal) -> None:
    receipt = await journal.accept(pushed("one", "blog"))
    kept = await journal.delivery(receipt.delivery)
    assert kept is not None
    assert (kept.hook, kept.guid, kept.event, kept.received_at) == ("github", "one", "push", 1.5)
    assert kept.pushes == (Push("acme/blog", "refs/heads/main", REVISION, "main"),)
    assert (kept.verdict, kept.reason) == (Verdict.ACCEPTED, "")
    assert kept.deployments == (receipt.queued[0].id,)


async def check_a_delivery_for_nobody_is_kept_with_its_reason(journal: Journal) -> None:
    ping = NewDelivery("github", Message("one", "ping", reason="a ping"), "body", 1.0, (), "a ping")
    receipt = await journal.accept(ping)
    kept = await journal.delivery(receipt.delivery)
    assert receipt == Receipt(Verdict.IGNORED, receipt.delivery, (), ())
    assert kept is not None
    assert (kept.verdict, kept.reason, kept.pushes) == (Verdict.IGNORED, "a ping", ())
    assert not await journal.deployments()


async def check_the_same_id_is_a_duplicate(journal: Journal) -> None:
    """P52."""
    first = await journal.accept(pushed("one", "blog"))
    second = await journal.accept(pushed("one", "blog", digest="another body"))
    assert second == Receipt(Verdict.DUPLICATE, first.delivery, first.deployments, ())
    assert len(await journal.deliveries()) == len(await journal.deployments()) == 1


async def check_the_same_body_under_a_new_id_is_a_duplicate(journal: Journal) -> None:
    """P52, and T08: the id is not signed, so that a replay may carry any."""
    first = await journal.accept(pushed("one", "blog", digest="body"))
    second = await journal.accept(pushed("two", "blog", digest="body"))
    assert second == Receipt(Verdict.DUPLICATE, first.delivery, first.deployments, ())
    assert len(await journal.deliveries()) == len(await journal.deployments()) == 1


async def check_the_body_speaks_before_the_id(journal: Journal) -> None:
    await journal.accept(pushed("one", "blog"))
    two = await journal.accept(pushed("two", "blog"))
    again = await journal.accept(pushed("one", "blog", digest="body of two"))
    assert (again.verdict, again.delivery) == (Verdict.DUPLICATE, two.delivery)


async def check_another_hook_has_deliveries_of_its_own(journal: Journal) -> None:
    first = await journal.accept(pushed("one", "blog"))
    second = await journal.accept(pushed("one", "blog", hook="gitlab"))
    assert second.verdict is Verdict.ACCEPTED
    assert second.delivery != first.delivery
    assert len(second.queued) == 1


async def check_twenty_equal_deliveries_at_once_make_one_row_and_one_deployment(journal: Journal) -> None:
    """P52."""
    accepting = [Deferred.fromCoroutine(journal.accept(pushed("one", "blog"))) for _ in range(20)]
    receipts = await gatherResults(accepting)
    verdicts = [receipt.verdict for receipt in receipts]
    assert verdicts == [Verdict.ACCEPTED] + [Verdict.DUPLICATE] * 19
    assert len({receipt.deployments for receipt in receipts}) == 1
    assert len(await journal.deliveries()) == len(await journal.deployments()) == 1


async def check_a_duplicate_of_a_failed_deployment_deploys_again(journal: Journal) -> None:
    """P53."""
    for outcome in (Outcome.FAILED, Outcome.INTERRUPTED):
        first = await journal.accept(pushed(outcome, "blog"))
        await _ended(journal, first.queued[0], outcome)
        again = await journal.accept(pushed(outcome, "blog"))
        third = await journal.accept(pushed(outcome, "blog"))
        kept = await journal.delivery(first.delivery)
        assert (again.verdict, again.delivery) == (Verdict.DUPLICATE, first.delivery)
        assert [one.trigger for one in again.queued] == [Trigger.PUSH]
        assert again.deployments == again.queued != first.queued
        assert third == Receipt(Verdict.DUPLICATE, first.delivery, again.queued, ())
        assert kept is not None
        assert kept.deployments == (first.queued[0].id, again.queued[0].id)


async def check_a_duplicate_leaves_every_other_end_alone(journal: Journal) -> None:
    """Among them a deployment that a person rolled back or cancelled."""
    for outcome in ENDED:
        first = await journal.accept(pushed(outcome, "blog"))
        await _ended(journal, first.queued[0], outcome)
        again = await journal.accept(pushed(outcome, "blog"))
        assert again.verdict is Verdict.DUPLICATE
        assert [(one.id, one.outcome) for one in again.deployments] == [(first.queued[0].id, outcome)]
        assert not again.queued


async def check_what_begins_covers_all_that_was_superseded_on_the_way_to_it(journal: Journal) -> None:
    other, *burst, last = [await journal.enqueue("blog", Trigger.PUSH) for _ in range(6)]
    await journal.finish(other.id, Outcome.DEPLOYED, 1.0)
    await journal.supersede({covered.id: by.id for covered, by in pairwise([*burst, last])}, 2.0)
    await journal.begin(last.id, 3.0)
    told = [await journal.deployment(one.id) for one in (other, *burst, last)]
    assert [one.superseded_by for one in told if one is not None] == [None, *[last.id] * len(burst), None]


async def check_what_superseded_a_deployment_stands_for_it(journal: Journal) -> None:
    one, two, three = [await journal.accept(pushed(guid, "blog")) for guid in ("one", "two", "three")]
    await _ended(journal, one.queued[0], Outcome.SUPERSEDED, by=two.queued[0])
    await _ended(journal, two.queued[0], Outcome.SUPERSEDED, by=three.queued[0])
    again = await journal.accept(pushed("one", "blog"))
    assert again == Receipt(Verdict.DUPLICATE, one.delivery, three.queued, ())
    await _ended(journal, three.queued[0], Outcome.FAILED)
    in_vain = await journal.accept(pushed("one", "blog"))
    assert (in_vain.verdict, in_vain.delivery, len(in_vain.queued)) == (Verdict.DUPLICATE, one.delivery, 1)


async def check_deployments_that_supersede_each_other_end_the_search(journal: Journal) -> None:
    one, two = [await journal.accept(pushed(guid, "blog")) for guid in ("one", "two")]
    await _ended(journal, one.queued[0], Outcome.SUPERSEDED, by=two.queued[0])
    await _ended(journal, two.queued[0], Outcome.SUPERSEDED, by=one.queued[0])
    assert not (await journal.accept(pushed("one", "blog"))).queued


async def check_a_duplicate_deploys_again_only_the_app_that_failed(journal: Journal) -> None:
    first = await journal.accept(pushed("one", "blog", "shop"))
    blog, shop = first.queued
    await _ended(journal, shop, Outcome.FAILED)
    again = await journal.accept(pushed("one", "blog", "shop"))
    assert again.deployments == (blog, again.queued[0])
    assert [one.app for one in again.queued] == ["shop"]


async def check_a_duplicate_deploys_an_app_that_is_new_since(journal: Journal) -> None:
    first = await journal.accept(pushed("one", "blog"))
    again = await journal.accept(pushed("one", "blog", "shop"))
    assert again.verdict is Verdict.DUPLICATE
    assert again.deployments == (*first.queued, *again.queued)
    assert [one.app for one in again.queued] == ["shop"]


async def check_an_ignored_delivery_is_accepted_once_it_is_for_somebody(journal: Journal) -> None:
    first = await journal.accept(pushed("one", reason="no app deploys this branch"))
    still = await journal.accept(pushed("one", reason="no app deploys this branch"))
    now = await journal.accept(pushed("one", "blog"))
    kept = await journal.delivery(first.delivery)
    assert still == Receipt(Verdict.IGNORED, first.delivery, (), ())
    assert (now.verdict, now.delivery) == (Verdict.ACCEPTED, first.delivery)
    assert now.deployments == now.queued
    assert kept is not None
    assert (kept.verdict, kept.reason) == (Verdict.ACCEPTED, "")
    assert kept.deployments == tuple(one.id for one in now.queued)
    assert (await journal.accept(pushed("one", "blog"))).verdict is Verdict.DUPLICATE


async def check_a_deployment_can_be_asked_for_without_a_delivery(journal: Journal) -> None:
    for trigger in Trigger:
        made = await journal.enqueue("blog", trigger)
        assert (made.app, made.trigger, made.phase) == ("blog", trigger, Phase.QUEUED)
        assert await journal.deployment(made.id) == made
    assert not await journal.deliveries()


async def check_ids_sort_as_the_journal_does(journal: Journal) -> None:
    receipts = [await journal.accept(pushed(str(n), "blog")) for n in range(40)]
    deliveries = [receipt.delivery for receipt in receipts]
    deployments = [receipt.queued[0].id for receipt in receipts]
    assert sorted(set(deliveries)) == deliveries
    assert sorted(set(deployments)) == deployments


async def check_a_deployment_is_written_as_it_goes(journal: Journal) -> None:
    made = await journal.enqueue("blog", Trigger.MANUAL)
    begun = await journal.begin(made.id, 10.0)
    await journal.advance(made.id, Phase.FETCHING, 11.0)
    await journal.describe(made.id, commit=Commit(REVISION, "Say “hi”", "Ada"), previous=None, release="r1")
    await journal.add_step(made.id, STEP)
    await journal.add_step(made.id, Step("test", "pytest", 12.0, 1.0, "exit 1"))
    await journal.advance(made.id, Phase.BUILDING, 12.0)
    await journal.finish(made.id, Outcome.FAILED, 13.0, reason="test: exit 1")
    kept = await journal.deployment(made.id)
    assert (begun.attempts, begun.started_at, begun.phase) == (1, 10.0, Phase.QUEUED)
    assert kept is not None
    assert kept.phases == ((Phase.FETCHING, 11.0), (Phase.BUILDING, 12.0))
    assert [step.status for step in kept.steps] == ["ok", "exit 1"]
    assert kept.steps[0] == STEP
    assert (kept.phase, kept.outcome, kept.reason) == (Phase.BUILDING, Outcome.FAILED, "test: exit 1")
    assert (kept.started_at, kept.finished_at) == (10.0, 13.0)
    assert (kept.revision, kept.subject, kept.author) == (REVISION, "Say “hi”", "Ada")
    assert (kept.previous, kept.release) == (None, "r1")


async def check_another_attempt_forgets_the_phases_and_steps_of_the_last(journal: Journal) -> None:
    made = await journal.enqueue("blog", Trigger.START)
    await journal.begin(made.id, 10.0)
    await journal.advance(made.id, Phase.BUILDING, 11.0)
    await journal.describe(made.id, commit=Commit(REVISION, "Hi", "Ada"), previous="b" * 40, release="r1")
    await journal.add_step(made.id, STEP)
    again = await journal.begin(made.id, 20.0)
    assert (again.attempts, again.started_at, again.phase) == (2, 20.0, Phase.QUEUED)
    assert (again.steps, again.phases) == ((), ())
    assert (again.revision, again.previous, again.release) == (REVISION, "b" * 40, "r1")
    assert await journal.deployment(made.id) == again


async def check_an_ended_deployment_begins_no_more(journal: Journal) -> None:
    made = await journal.enqueue("blog", Trigger.MANUAL)
    await journal.begin(made.id, 10.0)
    await journal.add_step(made.id, STEP)
    await _ended(journal, made, Outcome.CANCELLED)
    kept = await journal.deployment(made.id)
    assert await journal.begin(made.id, 20.0) == kept
    assert await journal.deployment(made.id) == kept
    assert kept is not None
    assert (kept.attempts, kept.steps) == (1, (STEP,))


async def check_the_first_outcome_stays(journal: Journal) -> None:
    made = await journal.enqueue("blog", Trigger.MANUAL)
    other = await journal.enqueue("blog", Trigger.MANUAL)
    await journal.finish(made.id, Outcome.CANCELLED, 10.0, reason="first")
    await journal.finish(made.id, Outcome.FAILED, 20.0, reason="second")
    await journal.supersede({made.id: other.id}, 30.0)
    kept = await journal.deployment(made.id)
    assert kept is not None
    assert (kept.outcome, kept.finished_at, kept.reason) == (Outcome.CANCELLED, 10.0, "first")
    assert kept.superseded_by is None


async def check_what_is_superseded_has_ended_and_says_by_which(journal: Journal) -> None:
    one, two, newest = [await journal.enqueue("blog", Trigger.PUSH, reason="why") for _ in range(3)]
    await journal.supersede({one.id: newest.id, two.id: newest.id}, 10.0)
    for covered in (one, two):
        kept = await journal.deployment(covered.id)
        assert kept is not None
        assert (kept.outcome, kept.finished_at, kept.reason) == (Outcome.SUPERSEDED, 10.0, "why")
        assert kept.superseded_by == newest.id
    assert await journal.unfinished() == [newest]


async def check_what_is_not_there_is_neither_superseded_nor_supersedes_by_name(journal: Journal) -> None:
    made = await journal.enqueue("blog", Trigger.PUSH)
    await journal.supersede({"0000000000000": made.id, made.id: "f" * 13}, 10.0)
    kept = await journal.deployment(made.id)
    assert kept is not None
    assert (kept.outcome, kept.superseded_by) == (Outcome.SUPERSEDED, None)


async def check_nothing_is_written_about_an_unknown_deployment(journal: Journal) -> None:
    made = await journal.enqueue("blog", Trigger.MANUAL)
    for unknown in ("0000000000000", "f" * 13, "no id", "", "१" * 13, "-1", "f" * 99):
        assert await _refused(journal.advance(unknown, Phase.DONE, 1.0))
        assert await _refused(journal.describe(unknown, commit=Commit(REVISION, "", ""), previous=None, release=None))
        assert await _refused(journal.add_step(unknown, STEP))
        assert await _refused(journal.begin(unknown, 1.0), NoSuchRow)
        assert await _refused(journal.finish(unknown, Outcome.FAILED, 1.0), NoSuchRow)
        assert await journal.deployment(unknown) is None
        assert await journal.delivery(unknown) is None
    assert await journal.deployments() == [made]


async def check_the_last_deployment_is_the_newest_that_did_something_and_ended(journal: Journal) -> None:
    assert await journal.last("blog") is None
    for outcome in Outcome:
        did_something = outcome not in {Outcome.SUPERSEDED, Outcome.UNCHANGED}
        before = await journal.last("blog")
        made = await journal.enqueue("blog", Trigger.MANUAL)
        assert await journal.last("blog") == before
        await _ended(journal, made, outcome)
        assert await journal.last("blog") == (await journal.deployment(made.id) if did_something else before)
    assert await journal.last("shop") is None


async def check_the_unfinished_come_oldest_first(journal: Journal) -> None:
    one, two, three, four = [await journal.enqueue(app, Trigger.MANUAL) for app in ("blog", "shop", "blog", "shop")]
    await _ended(journal, two, Outcome.DEPLOYED)
    begun = await journal.begin(three.id, 1.0)
    assert list(await journal.unfinished()) == [one, begun, four]


async def check_deployments_are_listed_newest_first(journal: Journal) -> None:
    one, two, three, four = [await journal.enqueue(app, Trigger.MANUAL) for app in ("blog", "shop", "blog", "shop")]
    await journal.add_step(one.id, STEP)
    assert [made.id for made in await journal.deployments()] == [four.id, three.id, two.id, one.id]
    assert list(await journal.deployments(app="shop")) == [four, two]
    assert list(await journal.deployments(limit=2)) == [four, three]
    assert list(await journal.deployments(limit=1, before=three.id)) == [two]
    assert [made.steps for made in await journal.deployments(app="blog", before=three.id)] == [(STEP,)]
    assert list(await journal.deployments(before=one.id)) == []
    assert list(await journal.deployments(app="nobody")) == []
    assert list(await journal.deployments(limit=0)) == list(await journal.deployments(limit=-1)) == []


async def check_deliveries_are_listed_newest_first(journal: Journal) -> None:
    one, two, three = [await journal.accept(pushed(guid, "blog")) for guid in ("one", "two", "three")]
    await journal.accept(pushed("one", "blog"))
    listed = [delivery.id for delivery in await journal.deliveries()]
    assert listed == [three.delivery, two.delivery, one.delivery]
    assert [delivery.guid for delivery in await journal.deliveries(limit=2)] == ["three", "two"]
    assert list(await journal.deliveries(limit=0)) == list(await journal.deliveries(limit=-1)) == []


async def check_any_text_comes_back_as_it_went(journal: Journal) -> None:
    """P47, P87: what people write into commits is kept, and never read as anything else."""
    for odd in ("", "\0 after a NUL", "'; DROP TABLE deliveries; --", "<script>", "\x1b[31m", "ü" * 70_000, "𐍈"):
        made = await journal.enqueue(odd, Trigger.MANUAL)
        await journal.describe(made.id, commit=Commit(odd, odd, odd), previous=odd, release=odd)
        await journal.finish(made.id, Outcome.FAILED, 1.0, reason=odd)
        kept = await journal.deployment(made.id)
        assert kept is not None
        assert {kept.app, kept.revision, kept.subject, kept.author, kept.previous, kept.release, kept.reason} == {odd}


async def check_what_a_person_wants_comes_back(journal: Journal) -> None:
    made = await journal.enqueue("blog", Trigger.MANUAL, "abc1234")
    kept = await journal.deployment(made.id)
    assert kept == made
    assert kept is not None
    assert kept.wanted == "abc1234"


async def check_an_app_is_not_held_back_unless_somebody_has_said_so(journal: Journal) -> None:
    assert await journal.steering("blog") == Steering()
    await journal.steer("blog", Steering(paused=True))
    await journal.steer("blog", Steering(pinned=True))
    await journal.steer("shop", Steering(paused=True))
    assert await journal.steering("blog") == Steering(paused=False, pinned=True)
    assert await journal.steering("shop") == Steering(paused=True, pinned=False)


async def check_a_new_attempt_forgets_nothing_of_a_migration_that_was_cut_off(journal: Journal) -> None:
    made = await journal.enqueue("blog", Trigger.PUSH)
    await journal.begin(made.id, 1.0)
    await journal.describe(made.id, commit=Commit(REVISION, "subject", "Ada"), previous=None, release="1")
    await journal.advance(made.id, Phase.MIGRATING, 2.0)
    await journal.add_step(made.id, STEP)
    again = await journal.begin(made.id, 3.0)
    assert (again.attempts, again.phase, again.steps) == (2, Phase.MIGRATING, (STEP,))
    assert again.phases == ((Phase.MIGRATING, 2.0),)


async def check_a_new_attempt_remembers_that_a_migration_has_ended(journal: Journal) -> None:
    made = await journal.enqueue("blog", Trigger.PUSH)
    await journal.begin(made.id, 1.0)
    await journal.describe(made.id, commit=Commit(REVISION, "subject", "Ada"), previous=None, release="1")
    await journal.advance(made.id, Phase.MIGRATING, 2.0)
    await journal.migrated(made.id, REVISION)
    again = await journal.begin(made.id, 3.0)
    assert (again.phase, again.phases, again.migrated) == (Phase.QUEUED, (), REVISION)


async def _about(journal: Journal, letter: str, outcome: Outcome, trigger: Trigger, previous: str = "") -> str:
    made = await journal.enqueue("blog", trigger)
    before = previous * 40 or None
    await journal.describe(made.id, commit=Commit(letter * 40, "subject", "Ada"), previous=before, release=None)
    await journal.finish(made.id, outcome, 9.0)
    return made.id


async def check_the_last_word_about_a_revision_is_what_served_it_or_took_it_back(journal: Journal) -> None:
    async def last(letter: str) -> str | None:
        found = await journal.last_about("blog", letter * 40)
        return found.id if found else None

    assert await last("a") is None
    first = await _about(journal, "a", Outcome.DEPLOYED, Trigger.PUSH)
    second = await _about(journal, "b", Outcome.DEPLOYED, Trigger.PUSH, "a")
    assert (await last("a"), await last("b")) == (first, second)
    await _about(journal, "a", Outcome.FAILED, Trigger.ROLLBACK, "b")
    assert await last("b") == second
    back = await _about(journal, "a", Outcome.DEPLOYED, Trigger.ROLLBACK, "b")
    await _about(journal, "b", Outcome.UNCHANGED, Trigger.PUSH)
    assert (await last("a"), await last("b")) == (back, back)
    for in_vain in (Outcome.FAILED, Outcome.CANCELLED, Outcome.INTERRUPTED):
        await _about(journal, "b", in_vain, Trigger.MANUAL, "a")
    assert (await last("a"), await last("b")) == (back, back)
    again = await _about(journal, "b", Outcome.DEPLOYED, Trigger.MANUAL, "a")
    assert (await last("a"), await last("b")) == (back, again)
    rolled_back = await _about(journal, "c", Outcome.ROLLED_BACK, Trigger.PUSH, "b")
    assert await last("c") == rolled_back
    cut_off = await journal.enqueue("blog", Trigger.PUSH)
    await journal.describe(cut_off.id, commit=Commit("d" * 40, "subject", "Ada"), previous=None, release=None)
    await journal.advance(cut_off.id, Phase.MIGRATING, 8.0)
    await journal.finish(cut_off.id, Outcome.INTERRUPTED, 9.0)
    assert await last("d") == cut_off.id
    assert await journal.last_about("shop", "b" * 40) is None


async def check_a_replay_belongs_to_its_delivery(journal: Journal) -> None:
    first = await journal.accept(pushed("one", "blog"))
    await _ended(journal, first.queued[0], Outcome.DEPLOYED)
    replayed = await journal.enqueue("blog", Trigger.REPLAY, delivery=first.delivery)
    kept = await journal.delivery(first.delivery)
    assert kept is not None
    assert kept.deployments == (first.queued[0].id, replayed.id)
    assert replayed.trigger is Trigger.REPLAY
    again = await journal.accept(pushed("one", "blog"))
    assert again == Receipt(Verdict.DUPLICATE, first.delivery, (replayed,), ())


async def check_a_replay_of_what_never_came_is_refused(journal: Journal) -> None:
    made = await journal.enqueue("blog", Trigger.MANUAL)
    for unknown in (made.id, "0000000000000", "no id", ""):
        assert await _refused(journal.enqueue("blog", Trigger.REPLAY, delivery=unknown))
    assert await journal.deployments() == [made]


async def check_why_a_deployment_is_made_stays_until_it_ends_for_another_reason(journal: Journal) -> None:
    moved = "branch moved, no hook came"
    for reason, said in (("", moved), ("exit 1", "exit 1")):
        made = await journal.enqueue("blog", Trigger.POLL, reason=moved)
        assert made.reason == moved
        assert (await journal.begin(made.id, 1.0)).reason == moved
        await journal.finish(made.id, Outcome.FAILED, 2.0, reason=reason)
        kept = await journal.deployment(made.id)
        assert kept is not None
        assert kept.reason == said


async def check_what_may_pass_by_itself_is_marked(journal: Journal) -> None:
    for transient in (True, False):
        made = await journal.enqueue("blog", Trigger.PUSH)
        assert not made.transient
        await journal.finish(made.id, Outcome.FAILED, 2.0, transient=transient)
        await journal.finish(made.id, Outcome.FAILED, 2.0, transient=not transient)
        kept = await journal.deployment(made.id)
        assert kept is not None
        assert kept.transient is transient


async def check_what_was_decided_about_a_revision_is_the_newest_that_came_to_something(journal: Journal) -> None:
    assert await journal.decided("blog", REVISION) is None
    for outcome in Outcome:
        before = await journal.decided("blog", REVISION)
        made = await _about(journal, "a", outcome, Trigger.PUSH, "b")
        decided = await journal.decided("blog", REVISION)
        if outcome in {Outcome.SUPERSEDED, Outcome.UNCHANGED}:
            assert decided == before
        else:
            assert decided is not None
            assert (decided.id, decided.outcome) == (made, outcome)
    unfinished = await journal.enqueue("blog", Trigger.PUSH)
    await journal.describe(unfinished.id, commit=Commit(REVISION, "", ""), previous=None, release=None)
    decided = await journal.decided("blog", REVISION)
    assert decided is not None
    assert decided.id != unfinished.id
    assert await journal.decided("shop", REVISION) is None
    assert await journal.decided("blog", "b" * 40) is None


async def check_the_last_good_one_is_found_behind_all_that_was_not(journal: Journal) -> None:
    assert await journal.last_good("blog") is None
    made = {}
    for release in ("one", "two", None):
        made[release] = await journal.enqueue("blog", Trigger.PUSH)
        commit = Commit(REVISION, "subject", "Ada")
        await journal.describe(made[release].id, commit=commit, previous=None, release=release)
        await journal.finish(made[release].id, Outcome.DEPLOYED, 9.0)
        for outcome in Outcome:
            if outcome is not Outcome.DEPLOYED:
                await _about(journal, "a", outcome, Trigger.PUSH)
        newest = await journal.last_good("blog")
        assert newest is not None
        assert newest.id == made[release].id
    await journal.enqueue("blog", Trigger.PUSH)
    for release in ("one", "two", None):
        found = await journal.last_good("blog", release)
        assert found is not None
        assert found.id == made[release].id
    assert await journal.last_good("blog", "three") is None
    assert await journal.last_good("shop") is None


async def check_it_knows_of_which_commits_it_was_told(journal: Journal) -> None:
    """Whether the delivery was for anybody or not, and whichever of its refs it is."""
    one, two, three = ("1" * 40, "2" * 64, "3" * 40)
    pushes = (
        Push(f'"after":"{three}"', "refs/heads/main", one),
        Push("acme/blog", "refs/heads/old", None),
        Push("acme/blog", "refs/heads/new", two),
    )
    await journal.accept(NewDelivery("github", Message("one", "push", pushes), "body", 1.0, (), "for nobody"))
    assert await journal.told_of(one)
    assert await journal.told_of(two)
    for never in (three, one[:-1], "", "%", "null", 'x"'):
        assert not await journal.told_of(never)


async def check_it_knows_which_secret_has_verified_last_and_when(journal: Journal) -> None:
    """Also by a delivery that is for nobody, and by one that came before: a forge repeats what it failed to deliver."""
    old = await journal.accept(replace(pushed("one", "blog", at=1.0), secret="old"))
    await journal.accept(replace(pushed("two", "blog", at=2.0, hook="gitlab"), secret="old"))
    await journal.accept(pushed("three", "blog", at=3.0))
    new = await journal.accept(replace(pushed("four", at=4.0), secret="new"))
    assert await journal.verified() == [
        Verified("github", "new", 4.0, new.delivery),
        Verified("gitlab", "old", 2.0, (await journal.deliveries(limit=3))[2].id),
        Verified("github", "old", 1.0, old.delivery),
    ]
    again = await journal.accept(replace(pushed("four", at=5.0), secret="old"))
    assert again.delivery == new.delivery
    assert (await journal.verified())[:2] == [
        Verified("github", "old", 5.0, new.delivery),
        Verified("github", "new", 4.0, new.delivery),
    ]
    await journal.prune(before=2.0**40, rows=0)
    assert len(await journal.verified()) == 3


async def check_a_forge_is_asked_once_to_deliver_again(journal: Journal) -> None:
    await journal.accept(pushed("here", "blog"))
    assert not await journal.ask_again("github", "here", 1.0)
    assert await journal.ask_again("gitlab", "here", 1.0)
    assert await journal.ask_again("github", "lost", 1.0)
    assert not await journal.ask_again("github", "lost", 2.0)
    assert (await journal.accept(pushed("lost", "blog"))).verdict is Verdict.ACCEPTED
    assert not await journal.ask_again("github", "lost", 3.0)


async def check_nothing_is_parked_that_can_be_read(journal: Journal) -> None:
    await journal.accept(pushed("one", "blog"))
    assert not await journal.parked()


async def _done(journal: Journal, guid: str, app: str = "blog", outcome: Outcome = Outcome.DEPLOYED) -> Receipt:
    receipt = await journal.accept(pushed(guid, app))
    await journal.advance(receipt.queued[0].id, Phase.FETCHING, 1.0)
    await journal.add_step(receipt.queued[0].id, STEP)
    await journal.finish(receipt.queued[0].id, outcome, 9.0)
    return receipt


async def check_the_oldest_beyond_so_many_go(journal: Journal) -> None:
    receipts = [await _done(journal, str(n)) for n in range(6)]
    await journal.prune(before=0.0, rows=6)
    assert len(await journal.deployments()) == len(await journal.deliveries()) == 6
    await journal.prune(before=0.0, rows=2)
    assert [one.id for one in await journal.deployments()] == [one.queued[0].id for one in receipts[:-3:-1]]
    assert [one.guid for one in await journal.deliveries()] == ["5", "4"]
    forgotten = await journal.accept(pushed("0", "blog"))
    assert (forgotten.verdict, len(forgotten.queued)) == (Verdict.ACCEPTED, 1)
    assert (await journal.accept(pushed("5", "blog"))).verdict is Verdict.DUPLICATE


async def check_what_is_from_before_a_time_goes(journal: Journal) -> None:
    """All rows of a fresh driver are from now or from the past."""
    await _done(journal, "old")
    ping = NewDelivery("github", Message("ping", "ping"), "body", 2.5, (), "a ping")
    await journal.accept(ping)
    last = await _done(journal, "last")
    await journal.prune(before=1.0, rows=100)
    assert len(await journal.deliveries()) == 3
    await journal.prune(before=2.0**40, rows=100)
    assert [one.id for one in await journal.deployments()] == [last.queued[0].id]
    assert [one.guid for one in await journal.deliveries()] == ["last"]


async def check_what_has_not_ended_stays(journal: Journal) -> None:
    waiting = await journal.accept(pushed("waiting", "blog"))
    await _done(journal, "done", "blog", Outcome.SUPERSEDED)
    by_hand = await journal.enqueue("shop", Trigger.MANUAL)
    await journal.prune(before=2.0**40, rows=0)
    assert list(await journal.unfinished()) == [waiting.queued[0], by_hand]
    assert await journal.deployments() == [by_hand, waiting.queued[0]]
    assert [one.guid for one in await journal.deliveries()] == ["waiting"]


async def check_the_last_of_each_app_stays(journal: Journal) -> None:
    for app in ("blog", "shop"):
        await _done(journal, f"{app} 1", app, Outcome.DEPLOYED)
        await _done(journal, f"{app} 2", app, Outcome.FAILED)
        await _done(journal, f"{app} 3", app, Outcome.UNCHANGED)
    last = [await journal.last(app) for app in ("blog", "shop")]
    await journal.prune(before=2.0**40, rows=0)
    assert [await journal.last(app) for app in ("blog", "shop")] == last
    assert len(await journal.deployments()) == 2


async def check_what_holds_a_revision_back_stays(journal: Journal) -> None:
    """It was put back by a person or on probation, or was cut off in its migration; and nothing after that served."""
    await _about(journal, "a", Outcome.DEPLOYED, Trigger.PUSH)
    back = await _about(journal, "a", Outcome.DEPLOYED, Trigger.ROLLBACK, "b")
    on_probation = await _about(journal, "c", Outcome.ROLLED_BACK, Trigger.PUSH, "a")
    cut_off = await journal.enqueue("blog", Trigger.PUSH)
    await journal.describe(cut_off.id, commit=Commit("d" * 40, "", ""), previous="a" * 40, release=None)
    await journal.advance(cut_off.id, Phase.MIGRATING, 8.0)
    await journal.finish(cut_off.id, Outcome.INTERRUPTED, 9.0)
    await _about(journal, "e", Outcome.ROLLED_BACK, Trigger.PUSH, "a")
    await _about(journal, "e", Outcome.DEPLOYED, Trigger.MANUAL, "a")
    last = await _about(journal, "f", Outcome.DEPLOYED, Trigger.PUSH, "e")
    await journal.prune(before=2.0**40, rows=0)
    assert [one.id for one in await journal.deployments()] == [last, cut_off.id, on_probation, back]
    for letter, kept in (("b", back), ("c", on_probation), ("d", cut_off.id)):
        word = await journal.last_about("blog", letter * 40)
        assert word is not None
        assert word.id == kept


async def check_what_a_person_has_chosen_and_what_the_branch_was_at_then_stay(journal: Journal) -> None:
    """Or else the branch would seem to have moved since, and the choice be overruled."""
    await _about(journal, "a", Outcome.DEPLOYED, Trigger.PUSH)
    tip = await _about(journal, "c", Outcome.DEPLOYED, Trigger.PUSH)
    chosen = await journal.enqueue("blog", Trigger.MANUAL, "b" * 40)
    await journal.describe(chosen.id, commit=Commit("b" * 40, "", ""), previous="c" * 40, release=None)
    await journal.finish(chosen.id, Outcome.DEPLOYED, 9.0)
    back = await _about(journal, "a", Outcome.DEPLOYED, Trigger.ROLLBACK, "b")
    await journal.prune(before=2.0**40, rows=0)
    assert [one.id for one in await journal.deployments()] == [back, chosen.id, tip]


async def check_what_covered_a_deployment_goes_with_it_or_after_it(journal: Journal) -> None:
    one, two = [await journal.accept(pushed(guid, "blog")) for guid in ("one", "two")]
    await _ended(journal, one.queued[0], Outcome.SUPERSEDED, by=two.queued[0])
    await _ended(journal, two.queued[0], Outcome.SUPERSEDED, by=one.queued[0])
    await journal.prune(before=0.0, rows=1)
    [kept] = await journal.deployments()
    assert (kept.id, kept.superseded_by) == (two.queued[0].id, None)
    assert [one.guid for one in await journal.deliveries()] == ["two"]


JOURNAL: tuple[Callable[[Journal], Awaitable[None]], ...] = tuple(
    value for name, value in globals().items() if name.startswith("check_")
)
