"""The page's words: states, outcomes, ages and times as a person says them, each with a sign beside its colour.

Pure. It decides nothing: it names what others have found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType

from twisted_hook.model import Deployment, Outcome, Phase, ServerStatus, Trigger, Verdict


@dataclass(frozen=True, slots=True)
class Badge:
    """A state in a word, with a sign and a tone, so that nobody needs to see colours."""

    tone: str
    """``good``, ``bad``, ``busy``, ``warn`` or ``idle``."""
    sign: str
    word: str


_SERVER = MappingProxyType(
    {
        "serving": Badge("good", "●", "serving"),
        "starting": Badge("busy", "◐", "starting"),
        "restarting": Badge("warn", "↻", "restarting"),
        "stopped": Badge("bad", "■", "stopped"),
        "down": Badge("bad", "✕", "down"),
    }
)
_OUTCOMES: Mapping[Outcome, Badge] = MappingProxyType(
    {
        Outcome.DEPLOYED: Badge("good", "✓", "deployed"),
        Outcome.FAILED: Badge("bad", "✕", "failed"),
        Outcome.SUPERSEDED: Badge("idle", "»", "superseded"),
        Outcome.ROLLED_BACK: Badge("bad", "↶", "rolled back"),
        Outcome.CANCELLED: Badge("warn", "⊘", "cancelled"),
        Outcome.INTERRUPTED: Badge("warn", "!", "interrupted"),
        Outcome.UNCHANGED: Badge("idle", "=", "unchanged"),
    }
)
_VERDICTS = MappingProxyType(
    {
        Verdict.ACCEPTED: Badge("good", "✓", "accepted"),
        Verdict.DUPLICATE: Badge("idle", "=", "duplicate"),
        Verdict.IGNORED: Badge("idle", "○", "ignored"),
    }
)
_TRIGGERS = MappingProxyType(
    {
        Trigger.PUSH: "a push",
        Trigger.POLL: "a look at the remote",
        Trigger.MANUAL: "a person",
        Trigger.ROLLBACK: "a rollback",
        Trigger.REPLAY: "a replay",
        Trigger.START: "the start",
    }
)
UNHAPPY = frozenset({Outcome.FAILED, Outcome.ROLLED_BACK, Outcome.INTERRUPTED})
"""Ends of which a person wants to know why."""
ENDED_EARLY = UNHAPPY | {Outcome.CANCELLED}
EXPLAINED = UNHAPPY | {Outcome.SUPERSEDED, Outcome.CANCELLED, Outcome.UNCHANGED}
NOTICES = MappingProxyType(
    {
        "deploy": "The deployment was asked for.",
        "rollback": "The rollback was asked for.",
        "pin": "Pinned: what arrives is written down and not deployed.",
        "unpin": "Unpinned: what arrives is deployed again.",
        "pause": "Paused: what arrives waits; the newest is deployed when you resume.",
        "resume": "Resumed.",
        "cancel": "The deployment was told to end.",
        "replay": "The delivery was replayed.",
        "nothing": "The delivery was replayed; no app wants it, so nothing is deployed.",
        "logout": "You are signed out.",
    }
)
"""What an address may have a page say: by a name, so that a link cannot put words into our mouth."""


def server_badge(status: ServerStatus) -> Badge:
    return _SERVER.get(status.state, Badge("warn", "?", status.state))


def badge_of(deployment: Deployment) -> Badge:
    """Its outcome, or the phase in which it is."""
    if deployment.outcome is not None:
        return _OUTCOMES[deployment.outcome]
    return Badge("idle", "…", "waiting") if deployment.phase is Phase.QUEUED else Badge("busy", "◐", deployment.phase)


def verdict_badge(verdict: Verdict) -> Badge:
    return _VERDICTS[verdict]


def trigger_words(trigger: Trigger) -> str:
    return _TRIGGERS[trigger]


def took(seconds: float | None) -> str:
    """A length of time."""
    if seconds is None:
        return ""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    if not rest and minutes < 60:
        return f"{minutes} min"
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def ago(at: float, now: float) -> str:
    """How long ago a time was, in one unit; ``live.js`` says it with the same words."""
    seconds = max(0, int(now - at))
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago" if seconds >= 5 else "just now"


def iso(at: float) -> str:
    """For ``<time datetime>``."""
    return _utc(at).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def full(at: float) -> str:
    """For people."""
    return f"{_utc(at):%Y-%m-%d %H:%M:%S} UTC"


def _utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def short(revision: str | None) -> str:
    return (revision or "")[:7]


def branch_of(ref: str) -> str:
    """A ref as people call it."""
    return ref.removeprefix("refs/heads/").removeprefix("refs/tags/")
