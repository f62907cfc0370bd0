"""What makes new rows: deliveries, and the deployments that they and others ask for.

Runs on the writing thread: there, and there alone, ids are made. Knows nothing of what becomes of a deployment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from sqlite3 import Connection

from msgspec.json import encode

from twisted_hook.journal.rows import Parking, key_of, public
from twisted_hook.model import (
    Deployment,
    JournalUnavailable,
    NewDelivery,
    Outcome,
    Phase,
    Receipt,
    Trigger,
    Verdict,
)

MICROSECONDS = 1_000_000
"""By so much the key of a row grows in a second."""
ROWS = 100
"""How many rows one statement writes at most: SQLite takes no more than 32,766 values."""


class Arrivals:
    """Makes ids that only grow, and the rows that have them."""

    def __init__(self, clock: Callable[[], float], last_key: int, parking: Parking) -> None:
        self._clock = clock
        self._last_key = last_key
        self._parking = parking

    def _next_key(self) -> int:
        """Microseconds since the epoch, or one more than the last key: it grows, whatever the clock does."""
        self._last_key = max(self._last_key + 1, int(self._clock() * MICROSECONDS))
        return self._last_key

    def enqueue(
        self,
        connection: Connection,
        app: str,
        trigger: Trigger,
        wanted: str | None = None,
        delivery: int | None = None,
        reason: str = "",
    ) -> Deployment:
        key, now = self._next_key(), self._clock()
        sql = """INSERT INTO deployments (id, app, "trigger", queued_at, wanted, delivery, reason)
            VALUES (?, ?, ?, ?, ?, ?, ?)"""
        connection.execute(sql, (key, app, trigger, now, wanted, delivery, reason))
        told = None if delivery is None else public(delivery)
        return Deployment(public(key), app, trigger, Phase.QUEUED, now, wanted=wanted, reason=reason, delivery=told)

    def replay(
        self, connection: Connection, app: str, trigger: Trigger, wanted: str | None, delivery: str, reason: str
    ) -> Deployment:
        key = key_of(delivery)
        if connection.execute("SELECT 1 FROM deliveries WHERE id = ?", (key,)).fetchone() is None:
            raise JournalUnavailable(f"there is no delivery {delivery!r}")
        return self.enqueue(connection, app, trigger, wanted, key, reason)

    def accept(self, connection: Connection, deliveries: Sequence[NewDelivery]) -> list[Receipt]:
        keyed = [(self._next_key(), new) for new in deliveries]
        fresh = _add_deliveries(connection, keyed)
        queued = {key: tuple(self._queued(app, key) for app in new.apps) for key, new in keyed if key in fresh}
        _add_deployments(connection, queued)
        receipts = [
            Receipt(_verdict(new), public(key), queued[key], queued[key])
            if key in fresh
            else self._accept_again(connection, new)
            for key, new in keyed
        ]
        _note_secrets(connection, zip(deliveries, receipts, strict=True))
        return receipts

    def _queued(self, app: str, delivery: int) -> Deployment:
        key, now = public(self._next_key()), self._clock()
        return Deployment(key, app, Trigger.PUSH, Phase.QUEUED, now, delivery=public(delivery))

    def _accept_again(self, connection: Connection, new: NewDelivery) -> Receipt:
        # The hash of the body speaks first: the forge signs the body, and not the id.
        sql = """SELECT id FROM deliveries WHERE hook = ?1 AND (digest = ?2 OR guid = ?3)
            ORDER BY digest = ?2 DESC LIMIT 1"""
        (key,) = connection.execute(sql, (new.hook, new.digest, new.message.guid)).fetchone()
        seen = self._parking.delivery(connection, key)
        verdict = seen.verdict if seen else None
        if verdict is Verdict.IGNORED and not new.apps:
            return Receipt(Verdict.IGNORED, public(key), (), ())
        deployments, queued = [], []
        for app in new.apps:
            deployment = self._standing(connection, key, app)
            if deployment is None:
                deployment = self.enqueue(connection, app, Trigger.PUSH, delivery=key)
                queued.append(deployment)
            deployments.append(deployment)
        answer = Verdict.DUPLICATE
        if verdict is Verdict.IGNORED:  # the configuration has changed since: now it is for somebody
            answer = Verdict.ACCEPTED
            connection.execute("UPDATE deliveries SET verdict = ?, reason = ? WHERE id = ?", (answer, new.reason, key))
        return Receipt(answer, public(key), tuple(deployments), tuple(queued))

    def _standing(self, connection: Connection, delivery: int, app: str) -> Deployment | None:
        """The deployment that stands for a delivery and an app; None if it is to be tried, or tried again."""
        newest = "SELECT max(id) FROM deployments WHERE delivery = ? AND app = ?"
        (key,) = connection.execute(newest, (delivery, app)).fetchone()
        followed: set[int] = set()
        deployment = None
        while key is not None and key not in followed:
            followed.add(key)
            deployment = self._parking.deployment(connection, key)
            key = None if deployment is None or deployment.superseded_by is None else key_of(deployment.superseded_by)
        failed = deployment is not None and deployment.outcome in {Outcome.FAILED, Outcome.INTERRUPTED}
        return None if failed else deployment


def _verdict(new: NewDelivery) -> Verdict:
    return Verdict.ACCEPTED if new.apps else Verdict.IGNORED


def _add_deliveries(connection: Connection, keyed: Sequence[tuple[int, NewDelivery]]) -> set[int]:
    """Write down, in one statement, those that are new; their keys."""
    rows = [
        (
            *(key, new.hook, new.message.guid, new.digest, new.message.name, _verdict(new), new.reason),
            *(encode(new.message.pushes).decode(), new.received_at),
        )
        for key, new in keyed
    ]
    sql = """INSERT INTO deliveries (id, hook, guid, digest, event, verdict, reason, pushes, received_at)
        VALUES {rows} ON CONFLICT DO NOTHING"""
    if write_rows(connection, sql, rows) == len(rows):
        return {key for key, _ in keyed}
    return {key for (key,) in connection.execute("SELECT id FROM deliveries WHERE id >= ?", keyed[0][:1])}


def _add_deployments(connection: Connection, queued: Mapping[int, Sequence[Deployment]]) -> None:
    """Write down, in one statement, what deliveries have led to, by their keys."""
    rows = [(int(each.id, 16), each.app, each.trigger, each.queued_at, key) for key in queued for each in queued[key]]
    write_rows(connection, 'INSERT INTO deployments (id, app, "trigger", queued_at, delivery) VALUES {rows}', rows)


def _note_secrets(connection: Connection, accepted: Iterable[tuple[NewDelivery, Receipt]]) -> None:
    """Write down, in one statement, which secrets have verified these, the newest last."""
    sql = """INSERT INTO verified (hook, secret, at, delivery) VALUES {rows}
        ON CONFLICT (hook, secret) DO UPDATE SET at = excluded.at, delivery = excluded.delivery"""
    newest = {
        (new.hook, new.secret): (new.received_at, key_of(receipt.delivery)) for new, receipt in accepted if new.secret
    }
    write_rows(connection, sql, [(*secret, *when) for secret, when in newest.items()])


def write_rows(connection: Connection, sql: str, rows: Sequence[Sequence[object]]) -> int:
    """Execute a statement with these in the place of ``{rows}``, as many at a time as may be; how many it has changed.

    After each statement Python has to win the GIL back from the reactor: one for each row costs twice the time.
    """
    changed = 0
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        row = f"({', '.join('?' * len(part[0]))})"
        changed += connection.execute(sql.format(rows=", ".join([row] * len(part))), [*chain(*part)]).rowcount
    return changed
