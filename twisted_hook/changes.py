"""What has changed of late, for those who watch: names of things with the order of their last change, and no values.

Pure. Whoever watches asks for the present value of what has changed: who is slow, or was away, misses values in between
and never the last one, and no queue grows while nobody reads it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile

MOST = 1000
"""So many things are remembered; who was away for more of them begins anew."""


class Kind(StrEnum):
    """What can change."""

    APP = "app"
    DEPLOYMENT = "deployment"
    DELIVERY = "delivery"
    LOG = "log"
    """More of a deployment's log is there; its id is the deployment's."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something is not as it was."""

    kind: Kind
    id: str
    """The id of a deployment or a delivery, or the name of an app."""


Watcher = Callable[[Change], None]


class Changes:
    """Tells watchers at once what changes, and remembers it for those who come back.

    ``life`` tells the places of one process from those of another: they are no places here.
    """

    def __init__(self, life: str) -> None:
        self._life = life
        self._place = 0
        self._forgotten = 0
        """The newest place that is not remembered any more."""
        self._places: OrderedDict[Change, int] = OrderedDict()
        self._watchers: dict[Watcher, None] = {}

    @property
    def place(self) -> str:
        """By which a watcher can come back to where it is now."""
        return self.name_of(self._place)

    def name_of(self, number: int) -> str:
        return f"{self._life}-{number}"

    def publish(self, kind: Kind, id: str) -> None:
        """This has changed just now. A watcher must not raise."""
        change = Change(kind, id)
        self._place += 1
        self._places.pop(change, None)
        self._places[change] = self._place
        if len(self._places) > MOST:
            _, self._forgotten = self._places.popitem(last=False)
        for watcher in tuple(self._watchers):
            watcher(change)

    def since(self, place: str) -> Sequence[Change] | None:
        """What has changed since a place, in order, each once; None if that is not known any more, or is no place."""
        life, _, number = place.rpartition("-")
        if life != self._life or not (number.isascii() and number.isdigit()) or len(number) > 15:
            return None
        if not self._forgotten <= int(number) <= self._place:
            return None
        newer = takewhile(lambda item: item[1] > int(number), reversed(self._places.items()))
        return [change for change, _ in newer][::-1]

    def place_of(self, change: Change) -> str | None:
        """Where something changed last; None if that is not remembered any more."""
        number = self._places.get(change)
        return None if number is None else self.name_of(number)

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Tell it from now on. What is returned ends that."""
        self._watchers[watcher] = None

        def leave() -> None:
            self._watchers.pop(watcher, None)

        return leave
