"""GitHub's webhooks: the signature over the raw body, and the events in it.

Pure. Nothing of a payload but what a ``Push`` holds is ever looked at: no URL, no author, no text.
The format: https://docs.github.com/en/webhooks/webhook-events-and-payloads
"""

from __future__ import annotations

import re

from twisted_hook.forges import parts
from twisted_hook.hooks import Headers, Proof
from twisted_hook.model import Message

_SHA1 = re.compile(rb"sha1=([0-9a-f]{40})")


def screen(headers: Headers, *, allow_sha1: bool) -> None:
    """Refuse a message without exactly one well-formed signature header."""
    _signature(headers, allow_sha1=allow_sha1)


def verify(headers: Headers, body: bytes, *, secrets: tuple[bytes, ...], allow_sha1: bool, now: float) -> Proof:
    """Refuse a body that none of the secrets has signed.

    GitHub signs the raw body, for forms too, and nothing else: neither the event's name nor the delivery's id.
    """
    algorithm, claimed = _signature(headers, allow_sha1=allow_sha1)
    return parts.believe(claimed, body, secrets, algorithm=algorithm)


def read(headers: Headers, body: bytes) -> Message:
    """What a verified message says; a redelivery keeps the id of the original."""
    return parts.github_message(headers, body, event_header=b"x-github-event", guid_header=b"x-github-delivery")


def _signature(headers: Headers, *, allow_sha1: bool) -> tuple[str, bytes]:
    """The signature's algorithm and its hexadecimal digits. SHA-1 counts only where SHA-256 is not even tried."""
    if allow_sha1 and not headers(b"x-hub-signature-256"):
        return "sha1", parts.signature(headers, b"x-hub-signature", _SHA1)
    return "sha256", parts.signature(headers, b"x-hub-signature-256", parts.SHA256)
