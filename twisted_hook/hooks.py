"""The hooks: who may push, under which path and secret, and which apps a genuine push is for.

Pure. It decides, and never verifies a signature, reads a payload or answers anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from twisted_hook.model import Message, Push, Refused
from twisted_hook.refs import HEADS, TAGS

Headers = Callable[[bytes], Sequence[bytes]]
"""Gives every value of a header, in the order in which they came; the name is lower case.

All of them, because of two that differ a rule must see both: ``Request.getHeader`` gives the last one only.
"""

JSON = b"application/json"
FORM = b"application/x-www-form-urlencoded"


def media_type(headers: Headers) -> bytes:
    """The body's type without its parameters, in lower case; empty where it is missing or told more than once."""
    values = headers(b"content-type")
    return values[0].partition(b";")[0].strip().lower() if len(values) == 1 else b""


def _folded(name: str) -> bytes:
    """The name with ASCII letters in lower case: ``bytes.lower`` knows no others, so that a Kelvin sign is no ``k``."""
    return name.encode().lower()


@dataclass(frozen=True, slots=True)
class Subscription:
    """What one app wants to hear of."""

    app: str
    names: tuple[str, ...] = ()
    """What deliveries may call the app's repository; none means any name."""
    ref: str | None = None
    """The full name of the ref to deploy, e.g. ``refs/heads/main``; None means the repository's default branch."""
    tag: str | None = None
    """The pattern of the tags to deploy, e.g. ``v*``; it stands in the place of ``ref``."""

    def serves(self, repository: str) -> bool:
        """Whether the repository is this app's. ASCII case does not count, as at the forges; nothing else is folded."""
        asked = _folded(repository)
        return not self.names or any(asked == _folded(name) for name in self.names)

    def wants(self, push: Push) -> bool:
        """Whether the push is of this app's ref, compared exactly, or of a tag that matches."""
        if self.tag is not None:
            return fnmatchcase(push.ref, f"{TAGS}{self.tag}")
        if self.ref is not None:
            return push.ref == self.ref
        if push.default_branch is not None:
            return push.ref == HEADS + push.default_branch
        return push.ref.startswith(HEADS)


@dataclass(frozen=True, slots=True)
class Audience:
    """Whom a genuine event is for: some apps, or nobody, for a reason."""

    apps: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """One address at which a forge may deliver, and whom it delivers to."""

    name: str
    path: str
    """The path of its URL, compared exactly, e.g. ``/hooks/github``."""
    forge: str
    secrets: tuple[bytes, ...] = field(repr=False)
    """Any of them verifies, so that one can follow the other without a gap."""
    allow_sha1: bool = False
    subscriptions: tuple[Subscription, ...]

    def __post_init__(self) -> None:
        if not self.secrets or not all(self.secrets):
            raise ValueError(f"the hook {self.name} has no secret, or an empty one")

    def audience(self, message: Message) -> Audience:
        """Whom a message is for: those of its first push first, and nobody twice.

        Raises ``Refused(403)`` for a repository that none of the hook's apps deploys.
        """
        if not message.pushes:
            return Audience(reason=message.reason)
        serving = {name: self._serving(name) for name in {push.repository for push in message.pushes}}
        audiences = [_audience_of(push, serving[push.repository]) for push in message.pushes]
        apps = tuple(dict.fromkeys(app for each in audiences for app in each.apps))
        reasons = dict.fromkeys(each.reason for each in audiences)
        return Audience(apps) if apps else Audience(reason="; ".join(reasons))

    def _serving(self, repository: str) -> Sequence[Subscription]:
        serving = [subscription for subscription in self.subscriptions if subscription.serves(repository)]
        if not serving:
            raise Refused(403, "a repository that the hook does not serve")
        return serving


def _audience_of(push: Push, serving: Sequence[Subscription]) -> Audience:
    if push.after is None:
        return Audience(reason="the ref was deleted")
    apps = tuple(subscription.app for subscription in serving if subscription.wants(push))
    if apps:
        return Audience(apps)
    return Audience(reason=f"no app deploys this {'tag' if push.ref.startswith(TAGS) else 'branch'}")
