"""The chart of an app's deployments: a bar for each, as high as it took long, with a sign where it failed.

Pure: numbers for an SVG, and the same in words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from twisted_hook.dashboard.words import Badge, badge_of, took
from twisted_hook.model import Deployment, Outcome

WIDTH, HEIGHT, TOP = 600, 96, 14
"""In the units of the SVG; above ``TOP`` is room for the signs."""
MOST = 50
_SPACE = 12
"""What a bar has for itself."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One deployment."""

    x: int
    y: float
    height: float
    badge: Badge
    marked: bool
    """Whether it ended otherwise than well, which a sign above says."""


@dataclass(frozen=True, slots=True)
class Chart:
    """The deployments that have ended, the newest at the right."""

    bars: tuple[Bar, ...]
    longest: float
    words: str


def chart_of(deployments: Sequence[Deployment]) -> Chart | None:
    """The chart of these, given newest first; None if none of them has come to an end that took time."""
    ended = [(each, seconds) for each in deployments if (seconds := lasted(each)) is not None][:MOST][::-1]
    if not ended:
        return None
    longest = max(seconds for _, seconds in ended) or 1.0
    start = WIDTH - _SPACE * len(ended)
    bars = tuple(_bar(each, start + place * _SPACE, seconds / longest) for place, (each, seconds) in enumerate(ended))
    return Chart(bars, longest, _words(ended))


def lasted(deployment: Deployment) -> float | None:
    """Seconds from its begin to its end; None where it has none, or was never worked on."""
    if deployment.outcome in {None, Outcome.SUPERSEDED, Outcome.UNCHANGED} or deployment.finished_at is None:
        return None
    if deployment.started_at is None:
        return None
    return max(0.0, deployment.finished_at - deployment.started_at)


def _bar(deployment: Deployment, x: int, share: float) -> Bar:
    height = max(2.0, round((HEIGHT - TOP) * share, 1))
    badge = badge_of(deployment)
    return Bar(x, round(HEIGHT - height, 1), height, badge, marked=deployment.outcome is not Outcome.DEPLOYED)


def _words(ended: Sequence[tuple[Deployment, float]]) -> str:
    counts = Counter(badge_of(each).word for each, _ in ended)
    ends = ", ".join(f"{count} {word}" for word, count in counts.most_common())
    good = [seconds for each, seconds in ended if each.outcome is Outcome.DEPLOYED]
    usual = f" A good one usually takes {took(median(good))}." if good else ""
    number = "The last deployment" if len(ended) == 1 else f"The last {len(ended)} deployments"
    return f"{number}: {ends}.{usual}"
