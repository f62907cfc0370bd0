"""A journal that says aloud what has been written: everything that happens passes it, so that nobody else has to tell.

Works over boundaries only. It changes nothing of what is written, and says nothing that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from twisted_hook.boundaries import Journal
from twisted_hook.changes import Kind
from twisted_hook.model import (
    Commit,
    Delivery,
    Deployment,
    NewDelivery,
    Outcome,
    Parked,
    Phase,
    Receipt,
    Steering,
    Step,
    Trigger,
    Verified,
)


class AnnouncedJournal:
    """Another journal, of which each write that has succeeded is told to ``publish``."""

    def __init__(self, journal: Journal, publish: Callable[[Kind, str], None]) -> None:
        self._journal = journal
        self._publish = publish

    async def accept(self, delivery: NewDelivery) -> Receipt:
        receipt = await self._journal.accept(delivery)
        self._publish(Kind.DELIVERY, receipt.delivery)
        for deployment in receipt.queued:
            self._publish(Kind.DEPLOYMENT, deployment.id)
        return receipt

    async def enqueue(
        self, app: str, trigger: Trigger, wanted: str | None = None, *, delivery: str | None = None, reason: str = ""
    ) -> Deployment:
        made = await self._journal.enqueue(app, trigger, wanted, delivery=delivery, reason=reason)
        self._publish(Kind.DEPLOYMENT, made.id)
        if delivery is not None:
            self._publish(Kind.DELIVERY, delivery)
        return made

    async def begin(self, deployment: str, at: float) -> Deployment:
        begun = await self._journal.begin(deployment, at)
        self._publish(Kind.DEPLOYMENT, deployment)
        return begun

    async def advance(self, deployment: str, phase: Phase, at: float) -> None:
        await self._journal.advance(deployment, phase, at)
        self._publish(Kind.DEPLOYMENT, deployment)

    async def describe(self, deployment: str, *, commit: Commit, previous: str | None, release: str | None) -> None:
        await self._journal.describe(deployment, commit=commit, previous=previous, release=release)
        self._publish(Kind.DEPLOYMENT, deployment)

    async def add_step(self, deployment: str, step: Step) -> None:
        await self._journal.add_step(deployment, step)
        self._publish(Kind.DEPLOYMENT, deployment)

    async def migrated(self, deployment: str, revision: str) -> None:
        await self._journal.migrated(deployment, revision)
        self._publish(Kind.DEPLOYMENT, deployment)

    async def finish(
        self, deployment: str, outcome: Outcome, at: float, *, reason: str = "", transient: bool = False
    ) -> None:
        await self._journal.finish(deployment, outcome, at, reason=reason, transient=transient)
        self._publish(Kind.DEPLOYMENT, deployment)

    async def supersede(self, covered: Mapping[str, str], at: float) -> None:
        await self._journal.supersede(covered, at)
        for deployment in covered:
            self._publish(Kind.DEPLOYMENT, deployment)

    async def steer(self, app: str, steering: Steering) -> None:
        await self._journal.steer(app, steering)
        self._publish(Kind.APP, app)

    # What only reads, or tells nobody anything.

    async def last(self, app: str) -> Deployment | None:
        return await self._journal.last(app)

    async def last_about(self, app: str, revision: str) -> Deployment | None:
        return await self._journal.last_about(app, revision)

    async def decided(self, app: str, revision: str) -> Deployment | None:
        return await self._journal.decided(app, revision)

    async def last_good(self, app: str, release: str | None = None) -> Deployment | None:
        return await self._journal.last_good(app, release)

    async def verified(self) -> Sequence[Verified]:
        return await self._journal.verified()

    async def told_of(self, revision: str) -> bool:
        return await self._journal.told_of(revision)

    async def ask_again(self, hook: str, guid: str, at: float) -> bool:
        return await self._journal.ask_again(hook, guid, at)

    async def steering(self, app: str) -> Steering:
        return await self._journal.steering(app)

    async def unfinished(self) -> Sequence[Deployment]:
        return await self._journal.unfinished()

    async def deployment(self, id: str) -> Deployment | None:
        return await self._journal.deployment(id)

    async def deployments(
        self, *, app: str | None = None, limit: int = 50, before: str | None = None
    ) -> Sequence[Deployment]:
        return await self._journal.deployments(app=app, limit=limit, before=before)

    async def delivery(self, id: str) -> Delivery | None:
        return await self._journal.delivery(id)

    async def deliveries(self, *, limit: int = 50) -> Sequence[Delivery]:
        return await self._journal.deliveries(limit=limit)

    async def parked(self) -> Sequence[Parked]:
        return await self._journal.parked()

    async def prune(self, *, before: float, rows: int) -> None:
        await self._journal.prune(before=before, rows=rows)


_: type[Journal] = AnnouncedJournal
