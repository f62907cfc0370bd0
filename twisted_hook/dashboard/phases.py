"""The phases of a deployment as a person follows them: those behind it, the one in which it is, and those to come.

Pure. What is usual is for others to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from twisted_hook.dashboard.words import ENDED_EARLY
from twisted_hook.model import Deployment, Phase


@dataclass(frozen=True, slots=True)
class Passed:
    """A phase of a deployment: how long it took, or since when it is in it, against what is usual."""

    phase: Phase
    state: str
    """``past``, ``now``, ``ahead``, or ``ended`` for the one in which it came to a bad end."""
    since: float | None
    seconds: float | None
    usual: float | None

    @property
    def slow(self) -> bool:
        """Whether it took clearly longer than usual."""
        if self.seconds is None or self.usual is None:
            return False
        return self.seconds > max(2 * self.usual, self.usual + 1)


def marks(deployment: Deployment) -> list[tuple[Phase, float, float | None]]:
    """Each phase that it has entered, when it began, and when it ended if it has."""
    begun = [(Phase.QUEUED, deployment.queued_at)]
    begun += [(phase, at) for phase, at in deployment.phases if phase not in {Phase.QUEUED, Phase.DONE}]
    ends = [*(at for _, at in begun[1:]), deployment.finished_at]
    return [(phase, at, None if end is None else max(at, end)) for (phase, at), end in zip(begun, ends, strict=True)]


def passed(deployment: Deployment, usually: Mapping[Phase, float]) -> list[Passed]:
    """The phases behind it, the one in which it is, and those that usually follow."""
    seen = [
        Passed(phase, "now" if end is None else "past", at, None if end is None else end - at, usually.get(phase))
        for phase, at, end in marks(deployment)
    ]
    if deployment.outcome in ENDED_EARLY:
        return [*seen[:-1], replace(seen[-1], state="ended")]
    if deployment.outcome is not None:
        return seen
    known = {each.phase for each in seen}
    order = list(Phase)
    ahead = [phase for phase in usually if phase not in known and order.index(phase) > order.index(seen[-1].phase)]
    return [*seen, *(Passed(phase, "ahead", None, None, usually[phase]) for phase in sorted(ahead, key=order.index))]
