"""GitLab's webhooks: the secret token, or the signature of Standard Webhooks, and the events.

Pure. The hook's secret decides which of the two counts: one that begins with ``whsec_`` is a signing token, and is
never compared with what came in clear; any other is a secret token, and signs nothing.
The format: https://docs.gitlab.com/user/project/integrations/webhook_events/ and, for the headers,
https://gitlab.com/gitlab-org/gitlab/-/blob/master/app/services/web_hook_service.rb
A test is a push of what is there already; that of an empty project speaks of a repository ``gitlab/gitlab``.
"""

from __future__ import annotations

import re
from contextlib import suppress
from hmac import compare_digest

from msgspec import Struct
from msgspec.json import Decoder

from twisted_hook.forges import parts, standard
from twisted_hook.hooks import Headers, Proof
from twisted_hook.model import Message, Refused

_TOKEN = re.compile(rb"([^\r\n]{1,1024})")
_PUSHES = ("push", "tag_push")
_EVENT = re.compile("[!-~]{1,100}")


class _AnyPayload(Struct):
    """System hooks tell the second one alone."""

    object_kind: str | None = None
    event_name: str | None = None


class _Project(Struct):
    path_with_namespace: str
    default_branch: str | None = None


class _PushPayload(Struct):
    ref: str
    after: str
    project: _Project


_PUSH = Decoder(_PushPayload)
_ANY = Decoder(_AnyPayload)


def screen(headers: Headers, *, allow_sha1: bool) -> None:
    """Refuse a message with neither one token nor a well-formed signature."""
    if headers(b"webhook-signature"):
        with suppress(Refused):
            standard.screen(headers, allow_sha1=allow_sha1)
            return
    _token(headers)


def verify(headers: Headers, body: bytes, *, secrets: tuple[bytes, ...], allow_sha1: bool, now: float) -> Proof:
    """Refuse a message that has neither the token of one of the secrets nor a signature of one of them."""
    signing = tuple(secret for secret in secrets if secret.startswith(standard.PREFIX))
    tokens = [secret for secret in secrets if secret and secret not in signing]
    if signing and headers(b"webhook-signature"):
        with suppress(Refused):
            return standard.verify(headers, body, secrets=signing, allow_sha1=allow_sha1, now=now)
    if not tokens:
        raise Refused(401, "no signature of one of the signing tokens")
    token = _token(headers)
    matching = [secret for secret in tokens if compare_digest(secret, token)]
    if not matching:
        raise Refused(401, "another token")
    return Proof(body, matching[0])


def read(headers: Headers, body: bytes) -> Message:
    """What a verified message says. The body tells which event it is; a retry keeps the id of the original.

    ``X-Gitlab-Event-UUID`` is no such id: what one event leads to shares it.
    """
    name = standard.ID if headers(standard.ID) else b"idempotency-key"
    guid = parts.guid(headers, name, body)
    with parts.well_formed():
        told = _ANY.decode(body)
        kind = told.object_kind or told.event_name or ""
        if not _EVENT.fullmatch(kind):
            raise ValueError("no event is called so")
        if kind not in _PUSHES:
            return Message(guid, kind, reason=f"event {kind} is not a push")
        payload = _PUSH.decode(body)
        project = payload.project
        push = parts.push(project.path_with_namespace, payload.ref, payload.after, project.default_branch)
        return Message(guid, kind, (push,))


def _token(headers: Headers) -> bytes:
    return parts.signature(headers, b"x-gitlab-token", _TOKEN)
