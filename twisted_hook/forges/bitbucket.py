"""Bitbucket Cloud's webhooks: the signature over the raw body, and pushes of several branches and tags at once.

Pure. The format: https://support.atlassian.com/bitbucket-cloud/docs/event-payloads/
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct
from msgspec.json import Decoder

from twisted_hook.forges import parts
from twisted_hook.hooks import Headers, Proof
from twisted_hook.model import Message, Push
from twisted_hook.refs import HEADS, TAGS

EVENT = b"x-event-key"
PING = "diagnostics:ping"
"""What the server of one's own tries a webhook out with."""
NOTHING_PUSHED = "it changes no branch and no tag"

# GitHub puts SHA-1 under this name. The hook's forge says which of the two is meant, and not the message.
_SIGNATURE = b"x-hub-signature"
_PREFIXES = {"branch": HEADS, "tag": TAGS}


class _Commit(Struct):
    hash: str


class _Ref(Struct):
    type: str
    name: str


class _NewRef(_Ref):
    target: _Commit


class _Change(Struct):
    old: _Ref | None = None
    new: _NewRef | None = None


class _Changes(Struct):
    changes: list[_Change]


class _Repository(Struct):
    full_name: str


class _PushPayload(Struct):
    repository: _Repository
    push: _Changes


_PUSH = Decoder(_PushPayload)


def screen(headers: Headers, *, allow_sha1: bool) -> None:
    """Refuse a message without exactly one well-formed signature header."""
    parts.signature(headers, _SIGNATURE, parts.SHA256)


def verify(headers: Headers, body: bytes, *, secrets: tuple[bytes, ...], allow_sha1: bool, now: float) -> Proof:
    """Refuse a body that none of the secrets has signed."""
    return parts.believe(parts.signature(headers, _SIGNATURE, parts.SHA256), body, secrets)


def read(headers: Headers, body: bytes) -> Message:
    """What a verified message says: every branch and tag that it tells of, in its order."""
    name, guid = parts.event(headers, EVENT), parts.guid(headers, b"x-request-uuid", body)
    with parts.well_formed():
        if name != "repo:push":
            return parts.other_event(guid, name, body, ping=PING)
        payload = _PUSH.decode(body)
        return Message(guid, name, pushes := tuple(_pushes(payload)), "" if pushes else NOTHING_PUSHED)


def _pushes(payload: _PushPayload) -> Iterator[Push]:
    for change in payload.push.changes:
        ref = change.new or change.old
        if ref is None:
            raise ValueError("a change of nothing")
        if ref.type in _PREFIXES:
            after = change.new.target.hash if change.new else None
            yield parts.push(payload.repository.full_name, _PREFIXES[ref.type] + ref.name, after)
