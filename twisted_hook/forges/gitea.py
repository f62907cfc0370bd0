"""Gitea's webhooks, and those of its kin: the signature over the JSON, and GitHub's push in their own headers.

Pure. Only the headers of the forge itself count: it sends GitHub's as well, and all of them with an empty digest where
it has no secret. It never tries twice. A test is a push of the tip that is there; that of an empty repository is one of
zeros, as a deletion is. Until 1.15 the secret was in the body too, which nobody reads
(https://github.com/go-gitea/gitea/pull/16176).
The source: https://github.com/go-gitea/gitea/blob/main/services/webhook/deliver.go
"""

from __future__ import annotations

from twisted_hook.forges import parts
from twisted_hook.hooks import Headers, Proof
from twisted_hook.model import Message, Refused


class Gitea:
    """The rules of a forge of this kin."""

    def __init__(self, name: bytes) -> None:
        """``name`` is what its headers are called after, in lower case."""
        self._signature = b"x-%b-signature" % name
        self._event = b"x-%b-event" % name
        self._delivery = b"x-%b-delivery" % name

    def screen(self, headers: Headers, *, allow_sha1: bool) -> None:
        """Refuse a message without exactly one well-formed signature header."""
        parts.signature(headers, self._signature, parts.BARE_SHA256)

    def verify(
        self, headers: Headers, body: bytes, *, secrets: tuple[bytes, ...], allow_sha1: bool, now: float
    ) -> Proof:
        """Refuse a body that none of the secrets has signed; of a form it is the JSON inside that is signed."""
        claimed = parts.signature(headers, self._signature, parts.BARE_SHA256)
        try:
            signed = parts.payload_of(headers, body)
        except ValueError:
            raise Refused(401, "the signature is of no form like this") from None
        return parts.believe(claimed, signed, secrets)

    def read(self, headers: Headers, body: bytes) -> Message:
        """What a verified message says. The zeros of a deletion are all that tells it."""
        return parts.github_message(headers, body, event_header=self._event, guid_header=self._delivery)


GITEA = Gitea(b"gitea")
