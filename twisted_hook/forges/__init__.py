"""The forges: one module each, which knows how that forge signs a message and what it says.

A forge is pure and total: whatever the bytes, it gives a ``Message`` or raises ``Refused``. It never compares against
an empty key. A refusal's reason is for the log; it holds no word of the message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from twisted_hook.forges import bitbucket, bitbucket_server, github, gitlab, standard
from twisted_hook.forges.forgejo import FORGEJO
from twisted_hook.forges.gitea import GITEA
from twisted_hook.hooks import Headers, Proof
from twisted_hook.model import Message


class Forge(Protocol):
    """What a door needs of a forge, in the order in which it asks. ``allow_sha1`` is for GitHub's signatures alone."""

    def screen(self, headers: Headers, *, allow_sha1: bool) -> None:
        """Refuse, with 401, a message whose headers carry no well-formed signature; no byte of its body is read yet."""

    def verify(
        self, headers: Headers, body: bytes, *, secrets: tuple[bytes, ...], allow_sha1: bool, now: float
    ) -> Proof:
        """Refuse, with 401, a body that none of the secrets has signed; gives what of it is signed, and by which.

        ``now`` is in seconds since the epoch, UTC, for a forge that signs the time of its messages.
        """

    def read(self, headers: Headers, body: bytes) -> Message:
        """What a verified message says. Refuses, with 400, what is not a message of this forge."""


FORGES: Mapping[str, Forge] = {
    "github": github,
    "gitlab": gitlab,
    "gitea": GITEA,
    "forgejo": FORGEJO,
    "bitbucket": bitbucket,
    "bitbucket-server": bitbucket_server,
    "standard": standard,
}
"""The forges by the names that the configuration gives them."""


def flaw(forge: str, secret: bytes) -> str:
    """Why this forge could sign nothing with a secret, in words for its owner; empty if it could."""
    signing = forge == "standard" or (forge == "gitlab" and secret.startswith(standard.PREFIX))
    if not signing or standard.key(secret):
        return ""
    return f"is no signing secret: {standard.PREFIX.decode()} and the key in base64, as the sender shows it"
