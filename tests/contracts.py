"""What every driver of a boundary promises, as coroutines that run on the real one and on its fake alike.

A check takes a fresh driver and fails by an ``AssertionError``. ``JOURNAL`` holds those of the journal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred, gatherResults

from twisted_hook.boundaries import Journal
from twisted_hook.model import (
    Commit,
    Deployment,
    JournalUnavailable,
    Message,
    NewDelivery,
    NotAPush,
    Outcome,
    Phase,
    Push,
    Receipt,
    Steering,
    Step,
    Trigger,
    Verdict,
)

REVISION = "a" * 40
STEP = Step("install", "uv sync --frozen", 11.0, 0.5, "ok")
ENDED = [outcome for outcome in Outcome if outcome not in {Outcome.FAILED, Outcome.INTERRUPTED}]


def pushed(
    guid: str, *apps: str, hook: str = "github", digest: str | None = None, at: float = 1.5, reason: str = ""
) -> NewDelivery:
    """A push of main; its body is as unique as its ``guid`` unless a ``digest`` is given."""
    push = Push("acme/blog", "refs/heads/main", REVISION, "main")
    return NewDelivery(hook, Message(guid, "push", push), digest or f"body of {guid}", at, apps, reason)


async def _ended(journal: Journal, deployment: Deployment, outcome: Outcome, *, by: Deployment | None = None) -> None:
    await journal.finish(deployment.id, outcome, 9.0, superseded_by=by.id if by else None)


async def _refused(writing: Awaitable[object]) -> bool:
    try:
        await writing
    except JournalUnavailable:
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
    assert (kept.repository, kept.ref, kept.after) == ("acme/blog", "refs/heads/main", REVISION)
    assert (kept.verdict, kept.reason) == (Verdict.ACCEPTED, "")
    assert kept.deployments == (receipt.queued[0].id,)


async def check_a_delivery_for_nobody_is_kept_with_its_reason(journal: Journal) -> None:
    ping = NewDelivery("github", Message("one", "ping", NotAPush("a ping")), "body", 1.0, (), "a ping")
    receipt = await journal.accept(ping)
    kept = await journal.delivery(receipt.delivery)
    assert receipt == Receipt(Verdict.IGNORED, receipt.delivery, (), ())
    assert kept is not None
    assert (kept.verdict, kept.reason, kept.repository, kept.ref, kept.after) == (
        *(Verdict.IGNORED, "a ping"),
        *(None, None, None),
    )
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
    await journal.finish(made.id, Outcome.SUPERSEDED, 10.0, reason="first", superseded_by=other.id)
    await journal.finish(made.id, Outcome.FAILED, 20.0, reason="second")
    kept = await journal.deployment(made.id)
    assert kept is not None
    assert (kept.outcome, kept.finished_at, kept.reason) == (Outcome.SUPERSEDED, 10.0, "first")
    assert kept.superseded_by == other.id


async def check_nothing_is_written_about_an_unknown_deployment(journal: Journal) -> None:
    made = await journal.enqueue("blog", Trigger.MANUAL)
    for unknown in ("0000000000000", "f" * 13, "no id", "", "१" * 13, "-1", "f" * 99):
        assert await _refused(journal.begin(unknown, 1.0))
        assert await _refused(journal.advance(unknown, Phase.DONE, 1.0))
        assert await _refused(journal.describe(unknown, commit=Commit(REVISION, "", ""), previous=None, release=None))
        assert await _refused(journal.add_step(unknown, STEP))
        assert await _refused(journal.finish(unknown, Outcome.FAILED, 1.0))
        assert await _refused(journal.finish(made.id, Outcome.SUPERSEDED, 1.0, superseded_by=unknown))
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


JOURNAL: tuple[Callable[[Journal], Awaitable[None]], ...] = tuple(
    value for name, value in globals().items() if name.startswith("check_")
)
