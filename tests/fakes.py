"""Memory drivers of the boundaries: real enough to pass the contracts of the real ones, and never touching a disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from twisted_hook.boundaries import Journal
from twisted_hook.journal.pruning import ASKED_FOR
from twisted_hook.model import (
    Commit,
    Delivery,
    Deployment,
    JournalUnavailable,
    NewDelivery,
    NoSuchRow,
    Outcome,
    Parked,
    Phase,
    Receipt,
    Steering,
    Step,
    Trigger,
    Verdict,
    Verified,
)


class MemoryJournal:
    """A journal in dictionaries; its coroutines end at once. While ``fail_with`` is set, every write raises it."""

    def __init__(self, now: float = 0.0) -> None:
        self.fail_with: Exception | None = None
        self.now = now
        self._deliveries: dict[str, Delivery] = {}
        self._digests: dict[str, str] = {}
        self._deployments: dict[str, Deployment] = {}
        self._steering: dict[str, Steering] = {}
        self._asked: dict[tuple[str, str], float] = {}
        self._verified: dict[tuple[str, str], Verified] = {}
        self._last_id = 0

    async def accept(self, delivery: NewDelivery) -> Receipt:
        self._write()
        receipt = self._accept(delivery)
        if delivery.secret:
            now = Verified(delivery.hook, delivery.secret, delivery.received_at, receipt.delivery)
            self._verified[delivery.hook, delivery.secret] = now
        return receipt

    def _accept(self, delivery: NewDelivery) -> Receipt:
        seen = self._seen(delivery)
        if seen is not None:
            return self._accept_again(seen, delivery)
        key = self._next_id()
        queued = tuple(self._queue(app, Trigger.PUSH, delivery=key) for app in delivery.apps)
        new = Delivery(
            id=key,
            hook=delivery.hook,
            guid=delivery.message.guid,
            event=delivery.message.name,
            verdict=Verdict.ACCEPTED if delivery.apps else Verdict.IGNORED,
            reason=delivery.reason,
            pushes=delivery.message.pushes,
            received_at=delivery.received_at,
            deployments=tuple(deployment.id for deployment in queued),
        )
        self._deliveries[new.id] = new
        self._digests[new.id] = delivery.digest
        return Receipt(new.verdict, new.id, queued, queued)

    async def enqueue(
        self, app: str, trigger: Trigger, wanted: str | None = None, *, delivery: str | None = None, reason: str = ""
    ) -> Deployment:
        self._write()
        replayed = None if delivery is None else self._existing_delivery(delivery)
        new = self._queue(app, trigger, wanted, reason, delivery)
        if replayed is not None:
            self._deliveries[replayed.id] = replace(replayed, deployments=(*replayed.deployments, new.id))
        return new

    async def begin(self, deployment: str, at: float) -> Deployment:
        self._write()
        old = self._existing(deployment)
        if old.outcome is None:
            fresh = replace(old, attempts=old.attempts + 1, started_at=at)
            if old.phase is not Phase.MIGRATING or old.migrated == old.revision:
                fresh = replace(fresh, phase=Phase.QUEUED, steps=(), phases=())
            self._deployments[deployment] = fresh
        covered: set[str | None] = {deployment}
        while more := {one.id for one in self._deployments.values() if one.superseded_by in covered} - covered:
            covered |= more
        for each in [one for one in self._deployments.values() if one.superseded_by in covered]:
            self._deployments[each.id] = replace(each, superseded_by=deployment)
        return self._deployments[deployment]

    async def advance(self, deployment: str, phase: Phase, at: float) -> None:
        self._write()
        old = self._existing(deployment)
        self._deployments[deployment] = replace(old, phase=phase, phases=(*old.phases, (phase, at)))

    async def describe(self, deployment: str, *, commit: Commit, previous: str | None, release: str | None) -> None:
        self._write()
        self._deployments[deployment] = replace(
            self._existing(deployment),
            revision=commit.revision,
            subject=commit.subject,
            author=commit.author,
            previous=previous,
            release=release,
        )

    async def add_step(self, deployment: str, step: Step) -> None:
        self._write()
        old = self._existing(deployment)
        self._deployments[deployment] = replace(old, steps=(*old.steps, step))

    async def migrated(self, deployment: str, revision: str) -> None:
        self._write()
        self._deployments[deployment] = replace(self._existing(deployment), migrated=revision)

    async def finish(
        self,
        deployment: str,
        outcome: Outcome,
        at: float,
        *,
        reason: str = "",
        transient: bool = False,
    ) -> None:
        self._write()
        old = self._existing(deployment)
        if old.outcome is None:
            ended = replace(old, outcome=outcome, finished_at=at, reason=reason or old.reason, transient=transient)
            self._deployments[deployment] = ended

    async def supersede(self, covered: Mapping[str, str], at: float) -> None:
        self._write()
        for one in covered.keys() & self._deployments.keys():
            old, by = self._deployments[one], covered[one]
            if old.outcome is None:
                known = by if by in self._deployments else None
                ended = replace(old, outcome=Outcome.SUPERSEDED, finished_at=at, superseded_by=known)
                self._deployments[one] = ended

    async def last(self, app: str) -> Deployment | None:
        idle = {None, Outcome.SUPERSEDED, Outcome.UNCHANGED}
        newest_first = reversed(self._deployments.values())
        return next((one for one in newest_first if one.app == app and one.outcome not in idle), None)

    async def last_about(self, app: str, revision: str) -> Deployment | None:
        newest_first = reversed([one for one in self._deployments.values() if one.app == app])
        return next((one for one in newest_first if _is_about(one, revision)), None)

    async def decided(self, app: str, revision: str) -> Deployment | None:
        idle = {None, Outcome.SUPERSEDED, Outcome.UNCHANGED}
        newest_first = reversed([one for one in self._deployments.values() if one.app == app])
        return next((one for one in newest_first if one.revision == revision and one.outcome not in idle), None)

    async def last_good(self, app: str, release: str | None = None) -> Deployment | None:
        good = [one for one in self._deployments.values() if one.app == app and one.outcome is Outcome.DEPLOYED]
        return next((one for one in reversed(good) if release in {None, one.release}), None)

    async def verified(self) -> Sequence[Verified]:
        return sorted(self._verified.values(), key=lambda one: one.at, reverse=True)

    async def told_of(self, revision: str) -> bool:
        return any(push.after == revision for one in self._deliveries.values() for push in one.pushes)

    async def ask_again(self, hook: str, guid: str, at: float) -> bool:
        self._write()
        here = any((one.hook, one.guid) == (hook, guid) for one in self._deliveries.values())
        if here or (hook, guid) in self._asked:
            return False
        self._asked[hook, guid] = at
        return True

    async def steering(self, app: str) -> Steering:
        return self._steering.get(app, Steering())

    async def steer(self, app: str, steering: Steering) -> None:
        self._write()
        self._steering[app] = steering

    async def unfinished(self) -> Sequence[Deployment]:
        return [deployment for deployment in self._deployments.values() if deployment.outcome is None]

    async def deployment(self, id: str) -> Deployment | None:
        return self._deployments.get(id)

    async def deployments(
        self, *, app: str | None = None, limit: int = 50, before: str | None = None
    ) -> Sequence[Deployment]:
        newest_first = reversed(self._deployments.values())
        of_app = [one for one in newest_first if app in {None, one.app} and (before is None or one.id < before)]
        return of_app[: max(limit, 0)]

    async def delivery(self, id: str) -> Delivery | None:
        return self._deliveries.get(id)

    async def deliveries(self, *, limit: int = 50) -> Sequence[Delivery]:
        return list(reversed(self._deliveries.values()))[: max(limit, 0)]

    async def parked(self) -> Sequence[Parked]:
        return ()  # a dictionary's rows are never damaged

    async def prune(self, *, before: float, rows: int) -> None:
        self._write()
        newest = list(self._deployments)[max(len(self._deployments) - rows, 0) :]
        kept = {one.id for one in self._deployments.values() if one.outcome is None or self._says_something(one)}
        for one in list(self._deployments.values()):
            if (one.queued_at < before or one.id not in newest) and one.id not in kept:
                del self._deployments[one.id]
        for one in self._deployments.values():
            if one.superseded_by is not None and one.superseded_by not in self._deployments:
                self._deployments[one.id] = replace(one, superseded_by=None)
        self._asked = {key: at for key, at in self._asked.items() if at >= self.now - ASKED_FOR}
        newest = list(self._deliveries)[max(len(self._deliveries) - rows, 0) :]
        for delivery in list(self._deliveries.values()):
            led_to = tuple(each for each in delivery.deployments if each in self._deployments)
            self._deliveries[delivery.id] = replace(delivery, deployments=led_to)
            if not led_to and (delivery.received_at < before or delivery.id not in newest):
                del self._deliveries[delivery.id]

    def _says_something(self, one: Deployment) -> bool:
        """Whether it is the last of its app that came to something in its way, or the last word against a revision."""
        newest_first = [each for each in reversed(self._deployments.values()) if each.app == one.app]
        idle = {None, Outcome.SUPERSEDED, Outcome.UNCHANGED}
        alike = [each for each in newest_first if _way(each) == _way(one)]
        is_last = one is next((each for each in alike if each.outcome not in idle), None)
        took_back = one.trigger is Trigger.ROLLBACK and one.outcome is Outcome.DEPLOYED
        is_half = one.outcome is Outcome.INTERRUPTED and one.phase is Phase.MIGRATING
        held_back = {one.previous if took_back else None}
        held_back |= {one.revision if is_half or one.outcome is Outcome.ROLLED_BACK else None}
        return is_last or any(
            one is next(each for each in newest_first if _is_about(each, revision))
            for revision in held_back
            if revision is not None
        )

    def _write(self) -> None:
        if self.fail_with is not None:
            raise self.fail_with

    def _next_id(self) -> str:
        self._last_id = max(self._last_id + 1, int(self.now * 1_000_000))
        return f"{self._last_id:013x}"

    def _queue(
        self, app: str, trigger: Trigger, wanted: str | None = None, reason: str = "", delivery: str | None = None
    ) -> Deployment:
        new = replace(
            Deployment(self._next_id(), app, trigger, Phase.QUEUED, self.now),
            wanted=wanted,
            reason=reason,
            delivery=delivery,
        )
        self._deployments[new.id] = new
        return new

    def _existing(self, id: str) -> Deployment:
        if id not in self._deployments:
            raise NoSuchRow(f"there is no deployment {id!r}")
        return self._deployments[id]

    def _existing_delivery(self, id: str) -> Delivery:
        if id not in self._deliveries:
            raise JournalUnavailable(f"there is no delivery {id!r}")
        return self._deliveries[id]

    def _seen(self, new: NewDelivery) -> Delivery | None:
        of_hook = [one for one in self._deliveries.values() if one.hook == new.hook]
        same_body = [one for one in of_hook if self._digests[one.id] == new.digest]
        same_guid = [one for one in of_hook if one.guid == new.message.guid]
        return next(iter(same_body + same_guid), None)

    def _accept_again(self, seen: Delivery, new: NewDelivery) -> Receipt:
        if seen.verdict is Verdict.IGNORED and not new.apps:
            return Receipt(Verdict.IGNORED, seen.id, (), ())
        standing = {app: self._standing(seen, app) for app in new.apps}
        missing = [app for app, deployment in standing.items() if deployment is None]
        queued = {app: self._queue(app, Trigger.PUSH, delivery=seen.id) for app in missing}
        led_to = (*seen.deployments, *(deployment.id for deployment in queued.values()))
        verdict = Verdict.DUPLICATE
        self._deliveries[seen.id] = replace(seen, deployments=led_to)
        if seen.verdict is Verdict.IGNORED:
            verdict = Verdict.ACCEPTED
            self._deliveries[seen.id] = replace(seen, deployments=led_to, verdict=verdict, reason=new.reason)
        deployments = tuple(one for one in (standing | queued).values() if one is not None)
        return Receipt(verdict, seen.id, deployments, tuple(queued.values()))

    def _standing(self, seen: Delivery, app: str) -> Deployment | None:
        led_to = [self._deployments[key] for key in seen.deployments]
        newest = next((deployment for deployment in reversed(led_to) if deployment.app == app), None)
        followed = set()
        while newest is not None and newest.superseded_by is not None and newest.id not in followed:
            followed.add(newest.id)
            newest = self._deployments[newest.superseded_by]
        tried_in_vain = newest is not None and newest.outcome in {Outcome.FAILED, Outcome.INTERRUPTED}
        return None if tried_in_vain else newest


def _way(one: Deployment) -> tuple[bool, bool]:
    """How it came about: by the branch, by a person's choice, or by going back."""
    return one.wanted is None, one.trigger is Trigger.ROLLBACK


def _is_about(deployment: Deployment, revision: str) -> bool:
    served = deployment.outcome in {Outcome.DEPLOYED, Outcome.ROLLED_BACK}
    cut_off = deployment.outcome is Outcome.INTERRUPTED and deployment.phase is Phase.MIGRATING
    took_back = deployment.trigger is Trigger.ROLLBACK and deployment.outcome is Outcome.DEPLOYED
    return (deployment.revision == revision and (served or cut_off)) or (took_back and deployment.previous == revision)


_: type[Journal] = MemoryJournal
