"""The parts that the messages of several forges are made of: headers that come once, signatures, pushes, forms.

Pure. What a delivery gets wrong is a ``Refused``; what a payload gets wrong a ``ValueError``, which ``well_formed``
turns into one.
"""

from __future__ import annotations

import re
from binascii import a2b_qp
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from hmac import compare_digest, digest

from msgspec import Struct
from msgspec.json import Decoder

from twisted_hook.hooks import FORM, Headers, Proof, media_type
from twisted_hook.model import Message, Push, Refused

BARE_SHA256 = re.compile(rb"([0-9a-f]{64})")
SHA256 = re.compile(rb"sha256=([0-9a-f]{64})")
EVENT = re.compile(rb"[!-~]{1,100}")
GUID = re.compile(rb"[ -~]{1,200}")
MALFORMED = "the body is not the JSON of such an event"

_OBJECT_ID = re.compile("[0-9a-f]{40}(?:[0-9a-f]{24})?")
_TEXT = re.compile("[^\x00-\x1f\x7f]{1,1024}")
_AS_QUOTED_PRINTABLE = bytes.maketrans(b"%+", b"= ")


class _Repository(Struct):
    """As GitHub words it, and those who follow GitHub."""

    full_name: str
    default_branch: str | None = None


class _GitHubPush(Struct):
    ref: str
    after: str
    repository: _Repository
    deleted: bool = False


class _AnyPayload(Struct):
    """Any object: msgspec skips what it is not asked for."""


_GITHUB_PUSH = Decoder(_GitHubPush)
_ANY = Decoder(_AnyPayload)


def single(headers: Headers, name: bytes, shape: re.Pattern[bytes]) -> str | None:
    """The one value of a header; None where there is none."""
    values = headers(name)
    if not values:
        return None
    if len(values) > 1 or shape.fullmatch(values[0]) is None:
        raise Refused(400, "a malformed event or delivery header")
    return values[0].decode("ascii")


def event(headers: Headers, name: bytes) -> str:
    """The event's name, where the forge tells it in a header."""
    found = single(headers, name, EVENT)
    if found is None:
        raise Refused(400, f"no {name.decode()} header")
    return found


def guid(headers: Headers, name: bytes, body: bytes) -> str:
    """The delivery's id from this header; the digest of the body where there is none."""
    return single(headers, name, GUID) or sha256(body).hexdigest()


def signature(headers: Headers, name: bytes, shape: re.Pattern[bytes]) -> bytes:
    """The first group of the one well-formed signature in a header. Refuses all else with 401."""
    values = headers(name)
    if not values:
        raise Refused(401, "no signature")
    found = shape.fullmatch(values[0])
    if found is None or len(values) > 1:
        raise Refused(401, "a malformed signature")
    return found[1]


def believe(claimed: bytes, signed: bytes, secrets: tuple[bytes, ...], *, algorithm: str = "sha256") -> Proof:
    """Refuse, with 401, hexadecimal digits that are not the HMAC of ``signed`` under one of the secrets."""
    # Bytes, in constant time: compare_digest raises TypeError on a str that is not ASCII.
    matching = [
        key for key in secrets if key and compare_digest(digest(key, signed, algorithm).hex().encode(), claimed)
    ]
    if not matching:
        raise Refused(401, "the signature is of another body or another secret")
    return Proof(signed, matching[0])


@contextmanager
def well_formed() -> Iterator[None]:
    """Around all that reads a payload: what goes wrong there is refused with 400."""
    try:
        yield
    # msgspec raises RecursionError, which is no ValueError, on a thousand nested lists.
    except (ValueError, RecursionError):
        raise Refused(400, MALFORMED) from None


def push(
    repository: str, ref: str, after: str | None, default_branch: str | None = None, *, deleted: bool = False
) -> Push:
    """A push of one ref. Raises ``ValueError`` for texts that no forge writes and no process or database takes.

    Zeros say that the ref names nothing now, whatever ``deleted`` says; None says the same.
    """
    if not all(map(_TEXT.fullmatch, (repository, ref, default_branch or "none"))):
        raise ValueError("no ref, repository or branch looks like this")
    if after is not None and not _OBJECT_ID.fullmatch(after):
        raise ValueError("no object id looks like this")
    gone = deleted or after is None or not after.strip("0")
    return Push(repository, ref, None if gone else after, default_branch)


def github_push(payload: bytes) -> Push:
    """A push in GitHub's words. Raises ``ValueError`` for what is none."""
    told = _GITHUB_PUSH.decode(payload)
    repository = told.repository
    return push(repository.full_name, told.ref, told.after, repository.default_branch, deleted=told.deleted)


def github_message(headers: Headers, body: bytes, *, event_header: bytes, guid_header: bytes) -> Message:
    """What a message in GitHub's words says, whatever the headers are called that go with it."""
    name, delivery = event(headers, event_header), guid(headers, guid_header, body)
    with well_formed():
        payload = payload_of(headers, body)
        if name == "push":
            return Message(delivery, name, (github_push(payload),))
        return other_event(delivery, name, payload, ping="ping")


def other_event(guid: str, name: str, payload: bytes, *, ping: str | None = None) -> Message:
    """A message that is no push; ``ping`` is the name of those that only try out whether one is there.

    Raises ``ValueError`` if it is no JSON object all the same.
    """
    _ANY.decode(payload)
    return Message(guid, name, reason="ping" if name == ping else f"event {name} is not a push")


def payload_of(headers: Headers, body: bytes) -> bytes:
    """The JSON of a message that comes as it is, or in a form. Raises ``ValueError`` for another form."""
    return form_payload(body) if media_type(headers) == FORM else body


def form_payload(body: bytes) -> bytes:
    """The JSON in a form of the one field ``payload``. Raises ``ValueError`` for any other form.

    Percent-encoding is quoted-printable with another sign, and Python has that one in C: 43 ms where
    ``urllib.parse.unquote_to_bytes`` holds the reactor for 4.4 s, over 25 MB of escapes.
    """
    field, _, value = body.partition(b"=")
    if field != b"payload" or any(sign in value for sign in (b"&", b"=", b"\r", b"\n")):
        raise ValueError("not a form of one payload")
    return a2b_qp(value.translate(_AS_QUOTED_PRINTABLE))
