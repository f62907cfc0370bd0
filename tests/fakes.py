"""Memory drivers of the boundaries: real enough to pass the contracts of the real ones, and never touching a disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from twisted_hook.boundaries import Journal
from twisted_hook.model import (
    Commit,
    Delivery,
    Deployment,
    JournalUnavailable,
    NewDelivery,
    Outcome,
    Phase,
    Push,
    Receipt,
    Steering,
    Step,
    Trigger,
    Verdict,
)


class MemoryJournal:
    """A journal in dictionaries; its coroutines end at once. While ``fail_with`` is set, every write raises it."""

    def __init__(self, now: float = 0.0) -> None:
        self.fail_with: Exception | None = None
        self.now = now
        self._ids = count(1)
        self._deliveries: dict[str, Delivery] = {}
        self._digests: dict[str, str] = {}
        self._deployments: dict[str, Deployment] = {}
        self._steering: dict[str, Steering] = {}

    async def accept(self, delivery: NewDelivery) -> Receipt:
        self._write()
        seen = self._seen(delivery)
        if seen is not None:
            return self._accept_again(seen, delivery)
        push = delivery.message.event if isinstance(delivery.message.event, Push) else None
        queued = tuple(self._queue(app, Trigger.PUSH) for app in delivery.apps)
        new = Delivery(
            id=self._next_id(),
            hook=delivery.hook,
            guid=delivery.message.guid,
            event=delivery.message.name,
            verdict=Verdict.ACCEPTED if delivery.apps else Verdict.IGNORED,
            reason=delivery.reason,
            repository=push.repository if push else None,
            ref=push.ref if push else None,
            after=push.after if push else None,
            received_at=delivery.received_at,
            deployments=tuple(deployment.id for deployment in queued),
        )
        self._deliveries[new.id] = new
        self._digests[new.id] = delivery.digest
        return Receipt(new.verdict, new.id, queued, queued)

    async def enqueue(self, app: str, trigger: Trigger, wanted: str | None = None) -> Deployment:
        self._write()
        return self._queue(app, trigger, wanted)

    async def begin(self, deployment: str, at: float) -> Deployment:
        self._write()
        old = self._existing(deployment)
        if old.outcome is None:
            fresh = replace(old, attempts=old.attempts + 1, started_at=at)
            if old.phase is not Phase.MIGRATING or old.migrated == old.revision:
                fresh = replace(fresh, phase=Phase.QUEUED, steps=(), phases=())
            self._deployments[deployment] = fresh
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
        self, deployment: str, outcome: Outcome, at: float, *, reason: str = "", superseded_by: str | None = None
    ) -> None:
        self._write()
        old = self._existing(deployment)
        by = None if superseded_by is None else self._existing(superseded_by).id
        if old.outcome is None:
            ended = replace(old, outcome=outcome, finished_at=at, reason=reason, superseded_by=by)
            self._deployments[deployment] = ended

    async def last(self, app: str) -> Deployment | None:
        idle = {None, Outcome.SUPERSEDED, Outcome.UNCHANGED}
        newest_first = reversed(self._deployments.values())
        return next((one for one in newest_first if one.app == app and one.outcome not in idle), None)

    async def last_about(self, app: str, revision: str) -> Deployment | None:
        newest_first = reversed([one for one in self._deployments.values() if one.app == app])
        return next((one for one in newest_first if _is_about(one, revision)), None)

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

    def _write(self) -> None:
        if self.fail_with is not None:
            raise self.fail_with

    def _next_id(self) -> str:
        return f"{next(self._ids):013x}"

    def _queue(self, app: str, trigger: Trigger, wanted: str | None = None) -> Deployment:
        new = Deployment(self._next_id(), app, trigger, Phase.QUEUED, self.now, wanted=wanted)
        self._deployments[new.id] = new
        return new

    def _existing(self, id: str) -> Deployment:
        if id not in self._deployments:
            raise JournalUnavailable(f"there is no deployment {id!r}")
        return self._deployments[id]

    def _seen(self, new: NewDelivery) -> Delivery | None:
        of_hook = [one for one in self._deliveries.values() if one.hook == new.hook]
        same_body = [one for one in of_hook if self._digests[one.id] == new.digest]
        same_guid = [one for one in of_hook if one.guid == new.message.guid]
        return next(iter(same_body + same_guid), None)

    def _accept_again(self, seen: Delivery, new: NewDelivery) -> Receipt:
        if seen.verdict is Verdict.IGNORED and not new.apps:
            return Receipt(Verdict.IGNORED, seen.id, (), ())
        standing = {app: self._standing(seen, app) for app in new.apps}
        queued = {app: self._queue(app, Trigger.PUSH) for app, deployment in standing.items() if deployment is None}
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


def _is_about(deployment: Deployment, revision: str) -> bool:
    served = deployment.outcome in {Outcome.DEPLOYED, Outcome.ROLLED_BACK}
    cut_off = deployment.outcome is Outcome.INTERRUPTED and deployment.phase is Phase.MIGRATING
    took_back = deployment.trigger is Trigger.ROLLBACK and deployment.outcome is Outcome.DEPLOYED
    return (deployment.revision == revision and (served or cut_off)) or (took_back and deployment.previous == revision)


_: type[Journal] = MemoryJournal
