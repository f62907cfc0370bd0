"""How long something took, each time that it was done: counted by size, so that no number of times needs more room.

Pure, and one thread writes. Whoever reads beside it may see a time that is counted and not summed up yet, no more.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

MOMENTS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds, for what is to be over before anybody notices."""
WORK = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
"""Seconds, for what people wait for."""


class Durations:
    """Times in seconds, by the smallest of these limits that each does not exceed."""

    __slots__ = ("_counts", "limits", "total")

    def __init__(self, limits: Sequence[float]) -> None:
        self.limits = tuple(limits)
        self.total = 0.0
        """All of them together."""
        self._counts = [0] * (len(self.limits) + 1)

    def note(self, seconds: float) -> None:
        """It was done once more, and took this long. A clock that was set back makes none shorter than nothing."""
        seconds = max(0.0, seconds)
        self._counts[bisect_left(self.limits, seconds)] += 1
        self.total += seconds

    @property
    def within(self) -> tuple[int, ...]:
        """How many took no longer than each of the limits; and, as the last, how many there were."""
        return tuple(accumulate(self._counts))
