"""Standard Webhooks, as any sender may speak them.

Pure. The source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
The specification says how a message is signed, and nothing of what a push looks like. Here it looks as GitHub's:
a JSON object with ``ref``, ``after`` and ``repository.full_name``, and if the sender likes ``deleted`` and
``repository.default_branch``. An object with none of the first three tells of no push, and is ignored.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from hmac import compare_digest, digest

from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.json import Decoder

from twisted_hook.forges import parts
from twisted_hook.hooks import Headers, Proof
from twisted_hook.model import Message, Refused

PREFIX = b"whsec_"
"""What a signing secret begins with; the rest is the key in base64."""
ID = b"webhook-id"
TOLERANCE = 300
"""Seconds that a message may be old, and that its sender's clock may be ahead."""

_TIMESTAMP = re.compile(rb"([0-9]{1,12})")
_ID = re.compile(rb"([ -~]{1,200})")
_SIGNATURES = re.compile(rb"([ -~]{1,8192})")
_SIGNATURE = re.compile(rb"v1,([A-Za-z0-9+/]{43}=)")


class _AnyPayload(Struct):
    """Any object, with what tells a push."""

    ref: Raw | UnsetType = UNSET
    after: Raw | UnsetType = UNSET
    repository: Raw | UnsetType = UNSET


_ANY = Decoder(_AnyPayload)


def key(secret: bytes) -> bytes:
    """The key that a secret stands for; empty if it is not written as base64. The prefix may be missing."""
    try:
        return b64decode(secret.removeprefix(PREFIX), validate=True)
    except ValueError:
        return b""


def screen(headers: Headers, *, allow_sha1: bool) -> None:
    """Refuse a message without an id, a time, or a signature of a known kind."""
    _claimed(headers)


def verify(headers: Headers, body: bytes, *, secrets: tuple[bytes, ...], allow_sha1: bool, now: float) -> Proof:
    """Refuse a body that none of the secrets has signed, together with its id and its time, within five minutes."""
    guid, timestamp, signatures = _claimed(headers)
    keys = {secret: found for secret in secrets if (found := key(secret))}
    signed = b"%b.%b.%b" % (guid, timestamp, body)
    rights = {secret: b64encode(digest(found, signed, "sha256")) for secret, found in keys.items()}
    matching = [secret for secret, right in rights.items() for claimed in signatures if compare_digest(right, claimed)]
    if not matching:
        raise Refused(401, "the signature is of another body, id or time, or of another secret")
    if abs(now - int(timestamp)) > TOLERANCE:
        raise Refused(401, "the message is older than five minutes, or from the future")
    return Proof(body, matching[0])


def read(headers: Headers, body: bytes) -> Message:
    """What a verified message says; its id is the one that is signed with it, and stays when it is sent again."""
    guid = parts.guid(headers, ID, body)
    with parts.well_formed():
        told = _ANY.decode(body)
        if told.ref is told.after is told.repository is UNSET:
            return Message(guid, "message", reason="it tells of no ref, commit or repository, so of no push")
        return Message(guid, "push", (parts.github_push(body),))


def _claimed(headers: Headers) -> tuple[bytes, bytes, list[bytes]]:
    """The id, the time and the signatures that the headers claim. Those of other kinds, such as v1a, do not count."""
    guid, timestamp, listed = (
        parts.signature(headers, name, shape)
        for name, shape in ((ID, _ID), (b"webhook-timestamp", _TIMESTAMP), (b"webhook-signature", _SIGNATURES))
    )
    signatures = [found[1] for each in listed.split(b" ") if (found := _SIGNATURE.fullmatch(each))]
    if not signatures:
        raise Refused(401, "a malformed signature")
    return guid, timestamp, signatures
