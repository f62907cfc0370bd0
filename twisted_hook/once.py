"""A thing that happens once and for which many may wait.

A ``Deferred`` has one chain and one canceller; here each waiter has its own, and one who gives up disturbs nobody.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from twisted.internet.defer import Deferred

T = TypeVar("T")


class Once(Generic[T]):
    """Happens once, with a value."""

    def __init__(self) -> None:
        self._values: list[T] = []
        self._waiters: list[Deferred[T]] = []

    @property
    def happened(self) -> bool:
        return bool(self._values)

    def happen(self, value: T) -> None:
        """It happens now. The first time counts; waiters run in the order in which they came."""
        if self._values:
            return
        self._values.append(value)
        while self._waiters:  # one by one: a waiter that is told may make another give up
            self._waiters.pop(0).callback(value)

    def wait(self) -> Deferred[T]:
        """Fires with the value when it happens, at once if it has."""
        waiter: Deferred[T] = Deferred(self._give_up)
        if self._values:
            waiter.callback(self._values[0])
        else:
            self._waiters.append(waiter)
        return waiter

    def _give_up(self, waiter: Deferred[T]) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
