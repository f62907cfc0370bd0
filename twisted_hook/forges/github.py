"""GitHub's webhooks: the signature over the raw body, and the events in it.

Pure. Nothing of a payload but what a ``Push`` holds is ever looked at: no URL, no author, no text.
The format: https://docs.github.com/en/webhooks/webhook-events-and-payloads
"""

from __future__ import annotations

import re
from binascii import a2b_qp
from hashlib import sha256
from hmac import compare_digest, digest

from msgspec import Struct, ValidationError
from msgspec.json import Decoder

from twisted_hook.hooks import FORM, Headers, media_type
from twisted_hook.model import Message, NotAPush, Push, Refused

_SHA256 = re.compile(rb"sha256=([0-9a-f]{64})")
_SHA1 = re.compile(rb"sha1=([0-9a-f]{40})")
_EVENT = re.compile(rb"[!-~]{1,100}")
_GUID = re.compile(rb"[ -~]{1,200}")
_OBJECT_ID = re.compile("[0-9a-f]{40}(?:[0-9a-f]{24})?")
_TEXT = re.compile("[^\x00-\x1f\x7f]{1,1024}")
_AS_QUOTED_PRINTABLE = bytes.maketrans(b"%+", b"= ")


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


def verify(headers: Headers, body: bytes, *, secrets: tuple[bytes, ...], allow_sha1: bool) -> None:
    """Refuse a body that none of the secrets has signed.

    GitHub signs the raw body, for forms too, and nothing else: neither the event's name nor the delivery's id.
    """
    algorithm, claimed = _signature(headers, allow_sha1=allow_sha1)
    # Bytes, in constant time: compare_digest raises TypeError on a str that is not ASCII.
    matches = [compare_digest(digest(secret, body, algorithm).hex().encode(), claimed) for secret in secrets if secret]
    if not any(matches):
        raise Refused(401, "the signature is of another body or another secret")


def read(headers: Headers, body: bytes) -> Message:
    """What a verified message says; a redelivery keeps the id of the original."""
    name = _single(headers, b"x-github-event", _EVENT)
    if name is None:
        raise Refused(400, "no X-GitHub-Event header")
    guid = _single(headers, b"x-github-delivery", _GUID) or sha256(body).hexdigest()
    try:
        event = _event(name, _form_payload(body) if media_type(headers) == FORM else body)
    # msgspec raises RecursionError, which is no ValueError, on a thousand nested lists.
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not the JSON of such an event") from None
    return Message(guid=guid, name=name, event=event)


def _signature(headers: Headers, *, allow_sha1: bool) -> tuple[str, bytes]:
    """The signature's algorithm and its hexadecimal digits. SHA-1 counts only where SHA-256 is not even tried."""
    algorithm, values, shape = "sha256", headers(b"x-hub-signature-256"), _SHA256
    if not values and allow_sha1:
        algorithm, values, shape = "sha1", headers(b"x-hub-signature"), _SHA1
    if not values:
        raise Refused(401, "no signature")
    found = shape.fullmatch(values[0])
    if found is None or len(values) > 1:
        raise Refused(401, "a malformed signature")
    return algorithm, found[1]


def _single(headers: Headers, name: bytes, shape: re.Pattern[bytes]) -> str | None:
    """The one value of a header; None where there is none."""
    values = headers(name)
    if not values:
        return None
    if len(values) > 1 or shape.fullmatch(values[0]) is None:
        raise Refused(400, "a malformed event or delivery header")
    return values[0].decode("ascii")


def _event(name: str, payload: bytes) -> Push | NotAPush:
    if name == "push":
        return _push(_PUSH.decode(payload))
    _ANY.decode(payload)
    return NotAPush("ping" if name == "ping" else f"event {name} is not a push")


def _push(payload: _PushPayload) -> Push:
    repository = payload.repository
    texts = (payload.ref, repository.full_name, repository.default_branch or "none")
    if not all(map(_TEXT.fullmatch, texts)) or not _OBJECT_ID.fullmatch(payload.after):
        raise ValidationError("no ref, repository or object id looks like this")
    # Zeros say that the ref names nothing now, whatever `deleted` says.
    gone = payload.deleted or not payload.after.strip("0")
    return Push(repository.full_name, payload.ref, None if gone else payload.after, repository.default_branch)


def _form_payload(body: bytes) -> bytes:
    """The JSON in a form of the one field ``payload``.

    Percent-encoding is quoted-printable with another sign, and Python has that one in C: 43 ms where
    ``urllib.parse.unquote_to_bytes`` holds the reactor for 4.4 s, over 25 MB of escapes.
    """
    field, _, value = body.partition(b"=")
    if field != b"payload" or any(sign in value for sign in (b"&", b"=", b"\r", b"\n")):
        raise ValueError("not a form of one payload")
    return a2b_qp(value.translate(_AS_QUOTED_PRINTABLE))
