"""Which forge is at a host, and what its pages call what a person pastes there.

Pure: words alone. It asks no forge, and knows nothing of addresses below a repository's own settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """Where a forge is told of a webhook and of a deploy key."""

    name: str
    adding: str
    """Where a webhook is made."""
    editing: str
    """Where one is changed."""
    url: str = "URL"
    """What the form calls the address."""
    secret: str = "Secret"  # noqa: S105 - a label
    """What it calls the secret."""
    settings: tuple[tuple[str, str], ...] = ()
    """What else is to be chosen there."""
    pushes: tuple[str, str]
    """How pushes are chosen."""
    event: str = "push"
    """What the forge itself calls a push."""
    keys: str
    """Where a deploy key is entered, and how it is kept from writing."""
    note: str = ""
    """What surprises there."""

    def fields(self, url: str, secret: str) -> Iterator[tuple[str, str]]:
        """The form of a webhook, filled in, in its order."""
        yield self.url, url
        yield from self.settings
        yield self.secret, secret
        yield self.pushes


_JSON = "application/json"


def _of_gitea(name: str) -> Pages:
    return Pages(
        name=name,
        adding=f"under the repository's Settings → Webhooks → Add webhook → {name}",
        editing="under Settings → Webhooks → Edit",
        url="Target URL",
        settings=(("HTTP method", "POST"), ("POST content type", _JSON)),
        pushes=("Trigger on", "Push events"),
        keys="under its Settings → Deploy keys → Add deploy key, without write access",
    )


_BITBUCKET = "under Repository settings → Webhooks"

PAGES: Mapping[str, Pages] = MappingProxyType(
    {
        "github": Pages(
            name="GitHub",
            adding="under the repository's Settings → Webhooks → Add webhook",
            editing="under Settings → Webhooks → Edit",
            url="Payload URL",
            settings=(("Content type", _JSON),),
            pushes=("Events", "Just the push event"),
            keys="under its Settings → Deploy keys → Add deploy key, without write access",
        ),
        "gitlab": Pages(
            name="GitLab",
            adding="under the project's Settings → Webhooks → Add new webhook",
            editing="under Settings → Webhooks → Edit",
            secret="Secret token",  # noqa: S106 - a label
            pushes=("Trigger", "Push events"),
            keys="under its Settings → Repository → Deploy keys → Add new key, without write permissions",
            note="GitLab sends the secret token in clear with each delivery: let its address be an https one.",
        ),
        "gitea": _of_gitea("Gitea"),
        "forgejo": _of_gitea("Forgejo"),
        "bitbucket": Pages(
            name="Bitbucket",
            adding=f"{_BITBUCKET} → Add webhook",
            editing=f"{_BITBUCKET} → Edit",
            pushes=("Triggers", "Repository push"),
            event="repo:push",
            keys="under its Repository settings → Access keys → Add key",
        ),
        "bitbucket-server": Pages(
            name="Bitbucket",
            adding=f"{_BITBUCKET} → Create webhook",
            editing=f"{_BITBUCKET} → Edit",
            pushes=("Events", "Repository: Push"),
            event="repo:refs_changed",
            keys="under its Repository settings → Access keys → Add key, with the permission to read",
            note="Bitbucket's “Test connection” comes without a signature and is refused: try the webhook by a push.",
        ),
        "standard": Pages(
            name="the sender",
            adding="in the settings of its webhooks",
            editing="in the settings of the webhook",
            secret="Signing secret",  # noqa: S106 - a label
            pushes=("Messages", "pushes, told as docs/configuration.md says"),
            keys="where the repository is, as a key that can only read",
        ),
    }
)
"""By the names that the configuration gives the forges."""

_AT: Mapping[str, str] = MappingProxyType(
    {
        "bitbucket.org": "bitbucket",
        "altssh.bitbucket.org": "bitbucket",
        "codeberg.org": "forgejo",
        "salsa.debian.org": "gitlab",
        "invent.kde.org": "gitlab",
    }
)
_NAMED = ("github", "gitlab", "gitea", "forgejo", "bitbucket")


def forge_at(host: str) -> str | None:
    """The forge of which a host is known, or that has it in its name, as in ``gitlab.example.com``; None for others."""
    labels = host.lower().split(".")
    named = next((forge for forge in _NAMED if forge in labels), None)
    return _AT.get(host.lower()) or ("bitbucket-server" if named == "bitbucket" else named)
