"""GitHub's webhooks: the signature over the raw body, and the events in it.

Pure. Nothing of a payload but what a ``Push`` holds is ever looked at: no URL, no author, no text.
The format: https://docs.github.com/en/webhooks/webhook-events-and-payloads
"""

from __future__ import annotations

import re

from msgspec import Struct
from msgspec.json import Decoder

from twisted_hook.forges import parts
from twisted_hook.hooks import FORM, Headers, media_type
from twisted_hook.model import Message, Push, Refused

_SHA256 = re.compile(rb"sha256=([0-9a-f]{64})")
_SHA1 = re.compile(rb"sha1=([0-9a-f]{40})")


class _Repository(Struct):
    full_name: str
    default_branch: str | None = None


class _PushPayload(Struct):
    ref: str
    after: str
    repository: _Repository
    deleted: bool = False


class _AnyPayload(Struct):
    """Any object: msgspec skips what it is not asked for."""


_PUSH = Decoder(_PushPayload)
_ANY = Decoder(_AnyPayload)


def screen(headers: Headers, *, allow_sha1: bool) -> None:
    """Refuse a message without exactly one well-formed signature header."""
    _signature(headers, allow_sha1=allow_sha1)


def verify(headers: Headers, body: bytes, *, secrets: tuple[bytes, ...], allow_sha1: bool, now: float) -> bytes:
    """Refuse a body that none of the secrets has signed.

    GitHub signs the raw body, for forms too, and nothing else: neither the event's name nor the delivery's id.
    """
    algorithm, claimed = _signature(headers, allow_sha1=allow_sha1)
    parts.believe(claimed, body, secrets, algorithm=algorithm)
    return body


def read(headers: Headers, body: bytes) -> Message:
    """What a verified message says; a redelivery keeps the id of the original."""
    name, guid = parts.event(headers, b"x-github-event"), parts.guid(headers, b"x-github-delivery", body)
    try:
        return _message(guid, name, parts.form_payload(body) if media_type(headers) == FORM else body)
    # msgspec raises RecursionError, which is no ValueError, on a thousand nested lists.
    except (ValueError, RecursionError):
        raise Refused(400, parts.MALFORMED) from None


def _signature(headers: Headers, *, allow_sha1: bool) -> tuple[str, bytes]:
    """The signature's algorithm and its hexadecimal digits. SHA-1 counts only where SHA-256 is not even tried."""
    if allow_sha1 and not headers(b"x-hub-signature-256"):
        return "sha1", parts.signature(headers, b"x-hub-signature", _SHA1)
    return "sha256", parts.signature(headers, b"x-hub-signature-256", _SHA256)


def _message(guid: str, name: str, payload: bytes) -> Message:
    if name == "push":
        return Message(guid, name, (_push(_PUSH.decode(payload)),))
    _ANY.decode(payload)
    return Message(guid, name, reason="ping" if name == "ping" else f"event {name} is not a push")


def _push(payload: _PushPayload) -> Push:
    repository = payload.repository
    return parts.push(
        repository.full_name, payload.ref, payload.after, repository.default_branch, deleted=payload.deleted
    )
