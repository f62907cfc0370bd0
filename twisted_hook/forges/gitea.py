"""Gitea's webhooks, and those of its kin: the signature over the JSON, and GitHub's push in their own headers.

Pure. Only the headers of the forge itself count: it sends GitHub's as well, and all of them with an empty digest where
it has no secret.
The source: https://github.com/go-gitea/gitea/blob/main/services/webhook/deliver.go
"""

from __future__ import annotations

import re

from msgspec import Struct
from msgspec.json import Decoder

from twisted_hook.forges import parts
from twisted_hook.hooks import Headers
from twisted_hook.model import Message, Refused

_DIGEST = re.compile(f"({parts.HEX_DIGEST})".encode())


class _PushPayload(Struct):
    ref: str
    after: str
    repository: parts.Repository


_PUSH = Decoder(_PushPayload)


class Gitea:
    """The rules of a forge of this kin."""

    def __init__(self, name: bytes) -> None:
        """``name`` is what its headers are called after, in lower case."""
        self._signature = b"x-%b-signature" % name
        self._event = b"x-%b-event" % name
        self._delivery = b"x-%b-delivery" % name

    def screen(self, headers: Headers, *, allow_sha1: bool) -> None:
        """Refuse a message without exactly one well-formed signature header."""
        parts.signature(headers, self._signature, _DIGEST)

    def verify(
        self, headers: Headers, body: bytes, *, secrets: tuple[bytes, ...], allow_sha1: bool, now: float
    ) -> bytes:
        """Refuse a body that none of the secrets has signed; of a form it is the JSON inside that is signed."""
        claimed = parts.signature(headers, self._signature, _DIGEST)
        try:
            signed = parts.payload_of(headers, body)
        except ValueError:
            raise Refused(401, "the signature is of no form like this") from None
        parts.believe(claimed, signed, secrets)
        return signed

    def read(self, headers: Headers, body: bytes) -> Message:
        """What a verified message says. The zeros of a deletion are all that tells it."""
        name, guid = parts.event(headers, self._event), parts.guid(headers, self._delivery, body)
        with parts.well_formed():
            payload = parts.payload_of(headers, body)
            if name == "push":
                told = _PUSH.decode(payload)
                repository = told.repository
                push = parts.push(repository.full_name, told.ref, told.after, repository.default_branch)
                return Message(guid, name, (push,))
            return parts.other_event(guid, name, payload)


GITEA = Gitea(b"gitea")
