"""How long the phases of a deployment took, and how long they usually take.

Pure: it reads what the journal says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from statistics import median

from twisted_hook.model import Deployment, Outcome, Phase, Trigger

SAMPLE = 10
"""Deployments from which it is told what is usual: what was longer ago was another app."""


def took(deployment: Deployment) -> Mapping[Phase, float]:
    """The seconds of each phase that it has left, in order; the last one counts once it has ended."""
    marks = [(Phase.QUEUED, deployment.queued_at)]
    marks += [(phase, at) for phase, at in deployment.phases if phase is not Phase.DONE]
    if deployment.finished_at is not None:
        marks.append((Phase.DONE, deployment.finished_at))
    return {phase: max(0.0, end - begin) for (phase, begin), (_, end) in pairwise(marks)}


def usual(deployments: Iterable[Deployment], *, like: Deployment) -> Mapping[Phase, float]:
    """The median of each phase, in seconds, among the newest good deployments of the kind of this one.

    ``deployments`` are those of its app, the newest first. A rollback builds nothing, and so is of another kind.
    """
    alike = [
        each
        for each in deployments
        if each.outcome is Outcome.DEPLOYED and each.id != like.id and _goes_back(each) == _goes_back(like)
    ][:SAMPLE]
    seconds: dict[Phase, list[float]] = {}
    for each in alike:
        for phase, length in took(each).items():
            seconds.setdefault(phase, []).append(length)
    return {phase: median(lengths) for phase, lengths in seconds.items()}


def _goes_back(deployment: Deployment) -> bool:
    return deployment.trigger is Trigger.ROLLBACK
