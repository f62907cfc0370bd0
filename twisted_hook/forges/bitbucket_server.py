"""Bitbucket Server's and Data Center's webhooks: signed as those of the cloud, told in other words.

Pure. The format: https://confluence.atlassian.com/bitbucketserver/event-payload-938025882.html
Its test of the connection comes unsigned, though there is a secret (https://github.com/runatlantis/atlantis/issues/474),
and is refused: whoever wants to try the webhook out has to push.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from msgspec.json import Decoder

from twisted_hook.forges import bitbucket, parts
from twisted_hook.forges.bitbucket import screen, verify
from twisted_hook.hooks import Headers
from twisted_hook.model import Message
from twisted_hook.refs import HEADS, TAGS

__all__ = ["read", "screen", "verify"]


class _Project(Struct):
    key: str


class _Repository(Struct):
    slug: str
    project: _Project


class _Change(Struct, rename="camel"):
    ref_id: str
    to_hash: str
    type: Literal["ADD", "UPDATE", "DELETE"]


class _PushPayload(Struct):
    repository: _Repository
    changes: list[_Change]


_PUSH = Decoder(_PushPayload)


def read(headers: Headers, body: bytes) -> Message:
    """What a verified message says: every branch and tag that it tells of, in its order.

    The repository is called ``PROJECT/slug``, as at the end of the URL that it is cloned from.
    """
    name, guid = parts.event(headers, bitbucket.EVENT), parts.guid(headers, b"x-request-id", body)
    with parts.well_formed():
        if name != "repo:refs_changed":
            return parts.other_event(guid, name, body, ping=bitbucket.PING)
        payload = _PUSH.decode(body)
        repository = f"{payload.repository.project.key}/{payload.repository.slug}"
        pushes = tuple(
            parts.push(repository, change.ref_id, change.to_hash, deleted=change.type == "DELETE")
            for change in payload.changes
            if change.ref_id.startswith((HEADS, TAGS))
        )
        return Message(guid, name, pushes, "" if pushes else bitbucket.NOTHING_PUSHED)
