"""The hooks: who may push, under which path and secret, and which apps a genuine push is for.

Pure. It decides, and never verifies a signature, reads a payload or answers anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hmac import digest
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from twisted_hook.model import Message, Push, Refused
from twisted_hook.refs import HEADS, TAGS, matches

Headers = Callable[[bytes], Sequence[bytes]]
"""Gives every value of a header, in the order in which they came; the name is lower case.

All of them, because of two that differ a rule must see both: ``Request.getHeader`` gives the last one only.
"""

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

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
class Secret:
    """One of the secrets of a hook."""

    value: bytes = field(repr=False)
    source: str = ""
    """Where it is configured, for people, e.g. ``file hook.secret``."""
    name: str = field(init=False)
    """Tells it from others, also from those that were at the same place before; it cannot be told from this."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", digest(self.value, b"the name of a secret of hookdeploy", "sha256").hex()[:16])


@dataclass(frozen=True, slots=True)
class Proof:
    """That a message is genuine."""

    signed: bytes = field(repr=False)
    """What of it is signed."""
    secret: bytes = field(repr=False)
    """By which of the hook's secrets."""


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
            return matches(push.ref, f"{TAGS}{self.tag}")
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
    secrets: tuple[Secret, ...]
    """Any of them verifies, so that one can follow the other without a gap."""
    allow_sha1: bool = False
    subscriptions: tuple[Subscription, ...]
    networks: tuple[Network, ...] = ()
    """From where alone it is delivered to; empty, with ``published`` false, is from anywhere."""
    published: bool = False
    """Also from the networks that the forge publishes as its own."""
    keys: tuple[bytes, ...] = field(init=False, repr=False)
    """What the secrets are, without where they come from."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(secret.value for secret in self.secrets))
        if not self.keys or not all(self.keys):
            raise ValueError(f"the hook {self.name} has no secret, or an empty one")

    def name_of(self, key: bytes) -> str:
        """The name of the secret that is this."""
        return next(secret.name for secret in self.secrets if secret.value == key)

    def admits(self, sender: Address | None, published: Sequence[Network] | None) -> bool:
        """Whether it may be delivered to from there; None is a sender without an address, such as a unix socket's.

        ``published`` is what is known of the forge's own networks; None means that nothing is, which keeps nobody out:
        there is still the signature.
        """
        if not self.networks and not self.published:
            return True
        if sender is None or (self.published and published is None):
            return True
        return any(sender in network for network in (*self.networks, *(published or () if self.published else ())))

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
